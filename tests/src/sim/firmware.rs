//! What network boot firmware and iPXE do before the agent runs: ask for an address, fetch a script, do what it says.
//!
//! It follows the URLs that it is given and never makes one itself.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, bail};
use hyper::{Method, Uri};
use muster_proto::config::{BootConfig, PATH};
use muster_ramdisk::cpio::{self, Node};

use super::{
    Clients,
    dhcp::{Asker, Client, Lease},
    hardware::Hardware,
    http::{self, Content, Dial},
};

/// How long an HTTP server may take for a small file.
const HTTP: Duration = Duration::from_secs(20);
/// As much of an initrd as is looked through for the boot's configuration: it stands at the front.
const FRONT: usize = 64 << 10;

/// What a boot script says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Script {
    /// Load these and start.
    Ramdisk {
        /// The kernel's URL.
        kernel: String,
        /// The initrds' URLs, in order.
        initrds: Vec<String>,
    },
    /// Go on to the next boot device.
    Disk,
}

/// Asks for an address and a boot script, as iPXE does on a BIOS machine.
pub async fn lease(clients: &Clients, hardware: &Hardware, within: Duration) -> Result<Lease> {
    let mut client = Client::new(clients, hardware.boot_mac(), Asker::Ipxe(0));
    client.uuid = hardware.uuid();
    client.lease(within).await
}

/// Fetches the script that `lease` names.
pub async fn script(clients: &Clients, lease: &Lease) -> Result<Script> {
    read_script(&script_text(clients, lease).await?)
}

/// The same as it is written.
pub async fn script_text(clients: &Clients, lease: &Lease) -> Result<String> {
    let url = lease.file.as_deref().context("the lease names no boot file")?;
    text_at(clients, url).await
}

/// Fetches the script at `url`, as iPXE does where another DHCP server names it.
pub async fn script_at(clients: &impl Dial, url: &str) -> Result<Script> {
    read_script(&text_at(clients, url).await?)
}

async fn text_at(clients: &impl Dial, url: &str) -> Result<String> {
    let text = fetch(clients, url, &[]).await?;
    String::from_utf8(text).context("the script is not text")
}

fn read_script(text: &str) -> Result<Script> {
    if !text.starts_with("#!ipxe") {
        bail!("not an iPXE script: {text:?}");
    }
    let urls = |command: &str| -> Vec<String> {
        let lines = text
            .lines()
            .filter(|line| line.split(' ').next() == Some(command));
        let urls = lines.filter_map(|line| line.split(' ').find(|word| word.starts_with("http://")));
        urls.map(str::to_owned).collect()
    };
    Ok(match urls("kernel").pop() {
        Some(kernel) => Script::Ramdisk {
            kernel,
            initrds: urls("initrd"),
        },
        None => Script::Disk,
    })
}

/// The boot's configuration, from the front of one of `initrds`.
pub async fn archive(clients: &impl Dial, initrds: &[String]) -> Result<BootConfig> {
    for url in initrds {
        let range = format!("bytes=0-{}", FRONT - 1);
        let front = fetch(clients, url, &[("range", &range)]).await?;
        if let Some(config) = configuration(&front)? {
            return Ok(config);
        }
    }
    bail!("no boot configuration in {initrds:?}")
}

/// The configuration in the archives at the start of `bytes`; what follows them may be compressed.
fn configuration(mut bytes: &[u8]) -> Result<Option<BootConfig>> {
    while let Ok((entries, end)) = cpio::read(bytes) {
        if let Some(entry) = entries.into_iter().find(|entry| entry.path == PATH) {
            let Node::File(json) = entry.node else {
                bail!("{PATH} is not a file")
            };
            return serde_json::from_slice(&json)
                .context("read the boot configuration")
                .map(Some);
        }
        bytes = bytes.get(end..).unwrap_or_default();
    }
    Ok(None)
}

async fn fetch(clients: &impl Dial, url: &str, headers: &[(&str, &str)]) -> Result<Vec<u8>> {
    let uri: Uri = url.parse().with_context(|| format!("read the URL {url}"))?;
    let host = uri.host().with_context(|| format!("no host in {url}"))?;
    let address = host.parse().with_context(|| format!("no address in {url}"))?;
    let server = SocketAddr::new(address, uri.port_u16().unwrap_or(80));
    let asked = http::ask(clients, server, Method::GET, uri.path(), headers, Content::Keep);
    let answer = tokio::time::timeout(HTTP, asked)
        .await
        .with_context(|| format!("{url} did not come within {HTTP:?}"))??;
    if !answer.status.is_success() {
        let said = String::from_utf8_lossy(&answer.content).into_owned();
        bail!("{url}: {}: {said}", answer.status);
    }
    Ok(answer.content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_followed_and_a_way_out_is_seen() {
        let text = "#!ipxe\nkernel http://h/k initrd=a quiet || goto again\n\
                    initrd --name a http://h/1 || goto again\ninitrd http://h/2\nboot\n";
        let expected = Script::Ramdisk {
            kernel: "http://h/k".to_owned(),
            initrds: vec!["http://h/1".to_owned(), "http://h/2".to_owned()],
        };
        assert_eq!(read_script(text).unwrap(), expected);
        assert_eq!(read_script("#!ipxe\necho no\nexit 0\n").unwrap(), Script::Disk);
        assert!(read_script("<html>").is_err());
    }

    #[test]
    fn the_configuration_is_found_in_front_of_compressed_bytes() {
        let config = BootConfig {
            endpoints: vec!["https://10.0.0.1:1".to_owned()],
            ca_pem: "PEM".to_owned(),
            token: "t".to_owned(),
            time: 1,
            boot_mac: None,
            proxy: None,
        };
        let mut archive = cpio::Archive::new();
        let json = serde_json::to_vec(&config).unwrap();
        archive.file(PATH, 0o600, json).unwrap();
        let mut bytes = archive.to_vec();
        bytes.extend([0x28, 0xb5, 0x2f, 0xfd, 1, 2, 3, 4]);
        assert_eq!(configuration(&bytes).unwrap(), Some(config));
        assert_eq!(configuration(&bytes[..100]).unwrap(), None);
    }
}
