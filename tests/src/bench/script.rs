//! What a client takes from an iPXE script that boots a Linux: the same of ours and of any other. Pure.

use std::net::SocketAddr;

use anyhow::{Context, Result};

/// A kernel and an initrd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Script<'a> {
    /// Where the kernel is.
    pub(super) kernel: (SocketAddr, &'a str),
    /// Where the initrd is.
    pub(super) initrd: (SocketAddr, &'a str),
    /// The kernel's command line.
    pub(super) parameters: &'a str,
}

impl<'a> Script<'a> {
    /// Reads its commands `kernel` and `initrd`.
    pub(super) fn parse(text: &'a str) -> Result<Script<'a>> {
        let command = |name: &str| -> Result<&'a str> {
            let found = text.lines().find_map(|line| line.strip_prefix(name));
            let line = found.with_context(|| format!("no command {name}in a script"))?;
            Ok(line.split("||").next().unwrap_or_default().trim())
        };
        let (kernel, parameters) = command("kernel ")?
            .split_once(' ')
            .context("a kernel without parameters")?;
        let initrd = command("initrd ")?
            .split(' ')
            .next_back()
            .context("an initrd without a URL")?;
        Ok(Script {
            kernel: split(kernel)?,
            initrd: split(initrd)?,
            parameters,
        })
    }
}

/// Server and path of an `http://` URL with an address in it.
pub(super) fn split(url: &str) -> Result<(SocketAddr, &str)> {
    let broken = || format!("{url:?} is not a URL with an address");
    let rest = url.strip_prefix("http://").with_context(broken)?;
    let at = rest.find('/').with_context(broken)?;
    let (host, path) = rest.split_at(at);
    let server = host
        .parse()
        .or_else(|_| format!("{host}:80").parse())
        .with_context(broken)?;
    Ok((server, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_initrd_and_parameters_are_found() {
        let text = "#!ipxe\n:fetch\nkernel http://10.0.0.1:8080/boot/a/vmlinuz initrd=initramfs console=ttyS0 quiet || goto again\n\
                    initrd --name initramfs http://10.0.0.1/boot/initramfs || goto again\nboot\n";
        let script = Script::parse(text).unwrap();
        assert_eq!(script.kernel, (([10, 0, 0, 1], 8080).into(), "/boot/a/vmlinuz"));
        assert_eq!(script.initrd, (([10, 0, 0, 1], 80).into(), "/boot/initramfs"));
        assert_eq!(script.parameters, "initrd=initramfs console=ttyS0 quiet");
        assert!(Script::parse("#!ipxe\necho Muster: unknown\nexit 0\n").is_err());
    }
}
