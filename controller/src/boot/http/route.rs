//! The URLs of boot files. What does not parse here does not exist; what parses is safe to put into a script or a log.

use std::{fmt, str::FromStr};

use muster_proto::{Mac, text::is_dns_subdomain};

use crate::boot::pass::Pass;

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

/// A file of one boot of one machine; its bytes depend on nothing else. Whether we made its URL, [`Boot::pass`] tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// Which build of the ramdisk.
    pub release: ReleaseName,
    /// The Segment that the machine boots on.
    pub segment: SegmentKey,
    /// The address that it booted from.
    pub mac: Mac,
    /// Which boot, sealed over [`boot_path`].
    pub pass: Pass,
}

/// A URL's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/ipxe/{namespace}/{segment}/{mac}/{uuid or -}/{pass}`: what iPXE is to do. Without a pass it is what another DHCP server
    /// names, which can only write the same URL for all machines; where the machine has no UUID, nothing stands in that one's place.
    Script {
        /// The Segment that the machine boots on.
        segment: SegmentKey,
        /// The address that it booted from.
        mac: Mac,
        /// Its SMBIOS UUID, lower case.
        uuid: Option<String>,
        /// Which answer of ours led here, sealed over [`script_path`].
        pass: Option<Pass>,
    },
    /// `/boot/{release}/vmlinuz`: the kernel, the same for all.
    Kernel(ReleaseName),
    /// `/boot/{release}/{namespace}/{segment}/{mac}/{pass}/initramfs`: the configuration of one boot, then the ramdisk.
    Initramfs(Boot),
    /// `/boot/{release}/{namespace}/{segment}/{mac}/{pass}/uki.efi`: kernel and initramfs as one UEFI program.
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
            ["ipxe", namespace, name, mac, uuid, pass @ ..] => Route::Script {
                segment: SegmentKey::new(namespace, name)?,
                mac: mac_of(mac)?,
                uuid: match *uuid {
                    "" if pass.is_empty() => None,
                    "-" => None,
                    text => Some(uuid_of(text)?),
                },
                pass: match pass {
                    [] => None,
                    [pass] => Some(pass.parse().ok()?),
                    _ => return None,
                },
            },
            ["boot", release, "vmlinuz"] => Route::Kernel(release.parse().ok()?),
            ["boot", release, namespace, name, mac, pass, file] => {
                let boot = Boot {
                    release: release.parse().ok()?,
                    segment: SegmentKey::new(namespace, name)?,
                    mac: mac_of(mac)?,
                    pass: pass.parse().ok()?,
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
            Route::Script {
                segment,
                mac,
                uuid,
                pass,
            } => {
                f.write_str(&script_path(segment, *mac, uuid.as_deref()))?;
                pass.as_ref().map_or(Ok(()), |pass| write!(f, "/{pass}"))
            }
            Route::Kernel(release) => write!(f, "/boot/{release}/vmlinuz"),
            Route::Initramfs(boot) => write!(f, "{}/{}/initramfs", boot.path(), boot.pass),
            Route::Uki(boot) => write!(f, "{}/{}/uki.efi", boot.path(), boot.pass),
        }
    }
}

impl Boot {
    /// What [`Boot::pass`] is sealed over.
    pub fn path(&self) -> String {
        boot_path(&self.release, &self.segment, self.mac)
    }
}

/// The start of a script's URL, which its pass is sealed over.
pub fn script_path(segment: &impl fmt::Display, mac: Mac, uuid: Option<&str>) -> String {
    format!("/ipxe/{segment}/{}/{}", mac.hex(), uuid.unwrap_or("-"))
}

/// The start of the URL of a boot's file, which its pass is sealed over.
pub fn boot_path(release: &impl fmt::Display, segment: &impl fmt::Display, mac: Mac) -> String {
    format!("/boot/{release}/{segment}/{}", mac.hex())
}

/// `target` for a log: without the passes in it, each of which buys a certificate.
pub fn without_passes(target: &str) -> String {
    let foreign = |c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_';
    let parts = target.split_inclusive(foreign).map(|part| {
        let word = part.trim_end_matches(foreign);
        match word.parse::<Pass>() {
            Ok(_) => part.replace(word, "(pass)"),
            Err(_) => part.to_owned(),
        }
    });
    parts.collect()
}

impl SegmentKey {
    /// The key, if both are names that Kubernetes would take.
    pub fn new(namespace: &str, name: &str) -> Option<Self> {
        (is_dns_subdomain(namespace) && is_dns_subdomain(name)).then(|| SegmentKey {
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

    const PASS: &str = "asD_7gABAgMEBQYHCAkKCwwNDg8QERIT";

    #[test]
    fn every_route_is_its_own_path() {
        for path in [
            "/ipxe/muster-system/lab/525400123456/-".to_owned(),
            format!("/ipxe/muster-system/lab/525400123456/-/{PASS}"),
            format!("/ipxe/muster-system/lab.b/525400123456/4c4c4544-0035-4b10-8032-cac04f583933/{PASS}"),
            "/boot/0123456789abcdef/vmlinuz".to_owned(),
            format!("/boot/0123456789abcdef/a/b/525400123456/{PASS}/initramfs"),
            format!("/boot/0123456789abcdef/a/b/525400123456/{PASS}/uki.efi"),
        ] {
            assert_eq!(Route::parse(&path).unwrap().to_string(), path);
        }
    }

    #[test]
    fn the_uuid_of_a_vendor_that_writes_capitals_is_the_same() {
        let parse = |uuid: &str| Route::parse(&format!("/ipxe/a/b/525400123456/{uuid}/{PASS}"));
        let upper = parse("4C4C4544-0035-4B10-8032-CAC04F583933");
        assert_eq!(upper, parse("4c4c4544-0035-4b10-8032-cac04f583933"));
        assert!(upper.is_some());
    }

    /// As it is copied from there, with what iPXE writes in the place of its settings: nothing where they are empty.
    #[test]
    fn the_url_that_the_docs_give_to_another_dhcp_server_leads_to_a_script_with_or_without_a_uuid() {
        let page = include_str!("../../../../docs/network.md");
        let (_, rest) = page.split_once("`http://EDGE:8080").unwrap();
        let (documented, _) = rest.split_once('`').unwrap();
        for has in [Some("4c4c4544-0035-4b10-8032-cac04f583933"), None] {
            let path = documented
                .replace("NAMESPACE", "metal")
                .replace("SEGMENT", "rack")
                .replace("${netX/mac:hexraw}", "525400123456")
                .replace("${uuid}", has.unwrap_or_default());
            let expected = Route::Script {
                segment: SegmentKey::new("metal", "rack").unwrap(),
                mac: Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]),
                uuid: has.map(str::to_owned),
                pass: None,
            };
            assert_eq!(Route::parse(&path), Some(expected), "{path}");
        }
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
        "/ipxe/a/b/525400123456/-/",
        "/ipxe/a/b/525400123456/-/asD_7gABAgMEBQYHCAkKCwwNDg8QERI",
        "/ipxe/a/b/525400123456/-/asD_7gABAgMEBQYHCAkKCwwNDg8QERI=",
        "/ipxe/a/b/525400123456/-/asD_7gABAgMEBQYHCAkKCwwNDg8QERIT/",
        "/ipxe/a/b/525400123456/-/asD/7gABAgMEBQYHCAkKCwwNDg8QERIT",
        "/ipxe/a/b/525400123456//",
        "/ipxe/a/b/525400123456//asD_7gABAgMEBQYHCAkKCwwNDg8QERIT",
        "/ipxe/a/b/52:54:00:12:34:56/-/asD_7gABAgMEBQYHCAkKCwwNDg8QERIT",
        "/ipxe/a/b/000000000000/-/asD_7gABAgMEBQYHCAkKCwwNDg8QERIT",
        "/ipxe/a/b/ffffffffffff/-/asD_7gABAgMEBQYHCAkKCwwNDg8QERIT",
        "/ipxe/a/b/525400123456/${uuid}/asD_7gABAgMEBQYHCAkKCwwNDg8QERIT",
        "/ipxe/a/b/525400123456/--/asD_7gABAgMEBQYHCAkKCwwNDg8QERIT",
        "/ipxe/A/b/525400123456/-/asD_7gABAgMEBQYHCAkKCwwNDg8QERIT",
        "/ipxe/a/-b/525400123456/-/asD_7gABAgMEBQYHCAkKCwwNDg8QERIT",
        "/ipxe/a/b./525400123456/-/asD_7gABAgMEBQYHCAkKCwwNDg8QERIT",
        "/ipxe/../b/525400123456/-/asD_7gABAgMEBQYHCAkKCwwNDg8QERIT",
        "/ipxe/a/b\n#!ipxe/525400123456/-/asD_7gABAgMEBQYHCAkKCwwNDg8QERIT",
        "/ipxe/a/b/+25400123456/-/asD_7gABAgMEBQYHCAkKCwwNDg8QERIT",
        "/boot/0123456789abcdef/a/b/525400123456/6ac0ffee/initramfs",
        "/boot/0123456789abcdef/a/b/525400123456/asD_7gABAgMEBQYHCAkKCwwNDg8QERIT/vmlinuz",
    ];

    #[test]
    fn logs_show_no_pass() {
        for after in ["/initramfs", "?x", ""] {
            let before = "/boot/0123456789abcdef/a/b/525400123456/";
            assert_eq!(
                without_passes(&format!("{before}{PASS}{after}")),
                format!("{before}(pass){after}")
            );
        }
        assert_eq!(without_passes("/../etc/passwd"), "/../etc/passwd");
    }

    #[test]
    fn the_corpus_leads_nowhere() {
        for path in CORPUS {
            assert_eq!(Route::parse(path), None, "{path}");
        }
        assert_eq!(
            Route::parse(&format!("/ipxe/a/{}/525400123456/-/{PASS}", "b".repeat(600))),
            None
        );
    }

    proptest! {
        #[test]
        fn a_path_is_read_without_harm_and_safe_to_repeat(
            path in "/(ipxe|boot)(/[a-f0-9.\\-]{1,36}|/\\PC{0,8}){2,6}(/-)?(/[A-Za-z0-9_-]{32})?(/vmlinuz|/initramfs)?",
        ) {
            if let Some(route) = Route::parse(&path) {
                // An empty UUID is one that is not there.
                let own = if path.ends_with('/') { format!("{path}-") } else { path.clone() };
                prop_assert_eq!(route.to_string(), own);
                prop_assert!(path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/.-_".contains(&byte)));
            }
        }
    }
}
