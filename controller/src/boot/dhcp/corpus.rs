//! Requests as machines send them, laid out by RFC 2131, 2132 and 4578; the files are hexadecimal, `#` starts a comment.

use super::wire::Request;

macro_rules! corpus {
    ($($name:literal),* $(,)?) => {
        /// Every file with its name.
        const FILES: &[(&str, &str)] = &[$(($name, include_str!(concat!("corpus/", $name, ".hex")))),*];
    };
}

corpus![
    "agent-discover",
    "bootp",
    "dhclient-discover",
    "dhclient-renew",
    "ipxe-efi-arm64-discover",
    "ipxe-rom-bios-discover",
    "ipxe-rom-bios-no-http-discover",
    "ipxe-rom-bios-request",
    "networkd-init-reboot",
    "ovmf-http-discover",
    "ovmf-pxe-discover",
    "pxe-rom-bios-discover",
    "relayed-discover",
    "uefi-pxe-4011-request",
    "utf8-junk-host-name",
];

/// All packets.
pub(crate) fn all() -> Vec<(&'static str, Vec<u8>)> {
    FILES.iter().map(|(name, text)| (*name, bytes(text))).collect()
}

/// The packet of this name.
pub(crate) fn packet(name: &str) -> Vec<u8> {
    let (_, text) = FILES.iter().find(|(known, _)| *known == name).unwrap();
    bytes(text)
}

/// The packet of this name, read.
pub(crate) fn request(name: &str) -> Request {
    Request::parse(&packet(name)).unwrap()
}

fn bytes(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(str::bytes)
        .collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}
