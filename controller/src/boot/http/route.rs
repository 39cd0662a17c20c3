//! The URLs of boot files. What does not parse here does not exist; what parses is safe to put into a script or a log.

use std::{fmt, str::FromStr};

use muster_proto::Mac;

use crate::boot::nonce::Nonce;

/// The longest path that can be one of ours.
const MAX: usize = 512;

/// Namespace and name of a Segment, both RFC 1123 subdomains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentKey {
    namespace: String,
    name: String,
}

/// The name of a release: lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReleaseName(String);

/// A file of one boot of one machine; its bytes depend on nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// Which build of the ramdisk.
    pub release: ReleaseName,
    /// The Segment that the machine boots on.
    pub segment: SegmentKey,
    /// The address that it booted from.
    pub mac: Mac,
    /// Which boot.
    pub nonce: Nonce,
}

/// A URL's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/ipxe/{namespace}/{segment}/{mac}/{uuid or -}`: what iPXE is to do.
    Script {
        /// The Segment that the machine boots on.
        segment: SegmentKey,
        /// The address that it booted from.
        mac: Mac,
        /// Its SMBIOS UUID, lower case.
        uuid: Option<String>,
    },
    /// `/boot/{release}/vmlinuz`: the kernel, the same for all.
    Kernel(ReleaseName),
    /// `/boot/{release}/{namespace}/{segment}/{mac}/{nonce}/initramfs`: the configuration of one boot, then the ramdisk.
    Initramfs(Boot),
    /// `/boot/{release}/{namespace}/{segment}/{mac}/{nonce}/uki.efi`: kernel and initramfs as one UEFI program.
    Uki(Boot),
}

impl Route {
    /// The route of `path`.
    pub fn parse(path: &str) -> Option<Route> {
        if path.len() > MAX {
            return None;
        }
        let parts: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
        Some(match parts.as_slice() {
            ["ipxe", namespace, name, mac, uuid] => Route::Script {
                segment: SegmentKey::new(namespace, name)?,
                mac: mac_of(mac)?,
                uuid: match *uuid {
                    "-" => None,
                    text => Some(uuid_of(text)?),
                },
            },
            ["boot", release, "vmlinuz"] => Route::Kernel(release.parse().ok()?),
            ["boot", release, namespace, name, mac, nonce, file] => {
                let boot = Boot {
                    release: release.parse().ok()?,
                    segment: SegmentKey::new(namespace, name)?,
                    mac: mac_of(mac)?,
                    nonce: nonce.parse().ok()?,
                };
                match *file {
                    "initramfs" => Route::Initramfs(boot),
                    "uki.efi" => Route::Uki(boot),
                    _ => return None,
                }
            }
            _ => return None,
        })
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Route::Script { segment, mac, uuid } => {
                write!(
                    f,
                    "/ipxe/{segment}/{}/{}",
                    mac.hex(),
                    uuid.as_deref().unwrap_or("-")
                )
            }
            Route::Kernel(release) => write!(f, "/boot/{release}/vmlinuz"),
            Route::Initramfs(boot) => write!(f, "/boot/{boot}/initramfs"),
            Route::Uki(boot) => write!(f, "/boot/{boot}/uki.efi"),
        }
    }
}

impl fmt::Display for Boot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Boot {
            release,
            segment,
            mac,
            nonce,
        } = self;
        write!(f, "{release}/{segment}/{}/{nonce}", mac.hex())
    }
}

impl SegmentKey {
    /// The key, if both are names that Kubernetes would take.
    pub fn new(namespace: &str, name: &str) -> Option<Self> {
        (is_subdomain(namespace) && is_subdomain(name)).then(|| SegmentKey {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for SegmentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The text is no release's name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a release's name is 8 to 64 hexadecimal digits in lower case")]
pub struct ParseReleaseError;

impl FromStr for ReleaseName {
    type Err = ParseReleaseError;

    fn from_str(text: &str) -> Result<Self, ParseReleaseError> {
        let valid = (8..=64).contains(&text.len()) && text.bytes().all(is_hex);
        valid
            .then(|| ReleaseName(text.to_owned()))
            .ok_or(ParseReleaseError)
    }
}

impl ReleaseName {
    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ReleaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Lower case only, so that one thing has one URL.
fn is_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

fn is_subdomain(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && text.split('.').all(|label| {
            let ends = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
            ends(label.bytes().next())
                && ends(label.bytes().last())
                && label
                    .bytes()
                    .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        })
}

/// The twelve digits of [`Mac::hex`].
fn mac_of(text: &str) -> Option<Mac> {
    if text.len() != 12 || !text.bytes().all(is_hex) {
        return None;
    }
    let number = u64::from_str_radix(text, 16).ok()?;
    let [_, _, mac @ ..] = number.to_be_bytes();
    Some(Mac(mac)).filter(|mac| mac.is_unicast())
}

fn uuid_of(text: &str) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    let shape = lower.len() == 36
        && lower.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => is_hex(byte),
        });
    shape.then_some(lower)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NONCE: &str = "6ac0ffee000102030405060708090a0b";

    #[test]
    fn every_route_is_its_own_path() {
        for path in [
            "/ipxe/muster-system/lab/525400123456/-".to_owned(),
            "/ipxe/muster-system/lab.b/525400123456/4c4c4544-0035-4b10-8032-cac04f583933".to_owned(),
            "/boot/0123456789abcdef/vmlinuz".to_owned(),
            format!("/boot/0123456789abcdef/a/b/525400123456/{NONCE}/initramfs"),
            format!("/boot/0123456789abcdef/a/b/525400123456/{NONCE}/uki.efi"),
        ] {
            assert_eq!(Route::parse(&path).unwrap().to_string(), path);
        }
    }

    #[test]
    fn the_uuid_of_a_vendor_that_writes_capitals_is_the_same() {
        let upper = Route::parse("/ipxe/a/b/525400123456/4C4C4544-0035-4B10-8032-CAC04F583933");
        assert_eq!(
            upper,
            Route::parse("/ipxe/a/b/525400123456/4c4c4544-0035-4b10-8032-cac04f583933")
        );
        assert!(upper.is_some());
    }

    /// Paths that once were, or might be, taken for more than they are.
    const CORPUS: &[&str] = &[
        "",
        "/",
        "*",
        "/etc/passwd",
        "/../../etc/passwd",
        "/boot/../../etc/passwd",
        "/boot/../vmlinuz",
        "/boot/0123456789abcdef/../vmlinuz",
        "/boot/0123456789abcdef/vmlinuz/",
        "/boot/0123456789abcdef//vmlinuz",
        "//boot/0123456789abcdef/vmlinuz",
        "/boot/0123456789abcdef/initramfs",
        "/boot/0123456789ABCDEF/vmlinuz",
        "/boot/0123456789abcdeg/vmlinuz",
        "/boot/0123456789abcdef/vmlinuz?x",
        "/boot/0123456789abcdef/vmlinuz#x",
        "/boot/0123456789abcde%66/vmlinuz",
        "/boot/current/vmlinuz",
        "/ipxe/a/b/525400123456",
        "/ipxe/a/b/525400123456/",
        "/ipxe/a/b/52:54:00:12:34:56/-",
        "/ipxe/a/b/000000000000/-",
        "/ipxe/a/b/ffffffffffff/-",
        "/ipxe/a/b/525400123456/${uuid}",
        "/ipxe/a/b/525400123456/--",
        "/ipxe/A/b/525400123456/-",
        "/ipxe/a/-b/525400123456/-",
        "/ipxe/a/b./525400123456/-",
        "/ipxe/../b/525400123456/-",
        "/ipxe/a/b\n#!ipxe/525400123456/-",
        "/ipxe/a/b/+25400123456/-",
        "/boot/0123456789abcdef/a/b/525400123456/6ac0ffee/initramfs",
        "/boot/0123456789abcdef/a/b/525400123456/6ac0ffee000102030405060708090a0b/vmlinuz",
    ];

    #[test]
    fn the_corpus_leads_nowhere() {
        for path in CORPUS {
            assert_eq!(Route::parse(path), None, "{path}");
        }
        assert_eq!(
            Route::parse(&format!("/ipxe/a/{}/525400123456/-", "b".repeat(600))),
            None
        );
    }

    proptest! {
        #[test]
        fn a_path_is_read_without_harm_and_safe_to_repeat(
            path in "/(ipxe|boot)(/[a-f0-9.\\-]{1,36}|/\\PC{0,8}){2,6}(/vmlinuz|/initramfs|/-)?",
        ) {
            if let Some(route) = Route::parse(&path) {
                prop_assert_eq!(route.to_string(), path.clone());
                prop_assert!(path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/.-".contains(&byte)));
            }
        }
    }
}
