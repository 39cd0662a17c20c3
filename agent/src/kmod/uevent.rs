//! What the kernel says of its devices: `NETLINK_KOBJECT_UEVENT` datagrams, NUL-separated strings (`lib/kobject_uevent.c`).

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, setsockopt, socket,
        sockopt::RcvBufForce,
    },
};

use tokio::io::unix::AsyncFd;

use crate::descriptor;

/// The kernel's multicast group; the other is udev's.
const KERNEL: u32 = 1;

/// Enough for the events of some thousand devices at once, in bytes.
const BUFFER: usize = 16 << 20;

/// `UEVENT_BUFFER_SIZE` and the header before it, with room to spare.
const DATAGRAM: usize = 8192;

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uevent {
    /// `add`, `remove`, `change`, `bind`, …
    pub action: String,
    /// `block`, `net`, `pci`, …
    pub subsystem: String,
    /// The last part of the device's path in sysfs; what a module is called.
    pub name: String,
    /// `disk`, `partition`, `scsi_device`, …; empty for most.
    pub devtype: String,
    /// By what a module for this device is found; empty if the device has none.
    pub modalias: String,
    /// True for a disk whose size is another one (`set_capacity_and_notify` in `block/genhd.c`).
    pub resized: bool,
}

impl Uevent {
    /// From the bytes of one datagram; `None` for anything else than a kernel event.
    pub fn parse(datagram: &[u8]) -> Option<Uevent> {
        let mut strings = datagram.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        // `add@/devices/…`; the same follows by name.
        strings.next()?.split_once('@')?;
        let mut event = Uevent::default();
        for string in strings {
            let Some((key, value)) = string.split_once('=') else {
                continue;
            };
            match key {
                "ACTION" => event.action = value.to_owned(),
                "SUBSYSTEM" => event.subsystem = value.to_owned(),
                "DEVPATH" => value
                    .rsplit('/')
                    .next()
                    .unwrap_or_default()
                    .clone_into(&mut event.name),
                "DEVTYPE" => event.devtype = value.to_owned(),
                "MODALIAS" => event.modalias = value.to_owned(),
                "RESIZE" => event.resized = value == "1",
                _ => {}
            }
        }
        (!event.action.is_empty()).then_some(event)
    }

    /// The module that is there now, and whose `finit_module` has not ended: it waits for all that is being probed in the background, by
    /// whatever driver (`do_init_module` in `kernel/module/main.c`).
    pub fn live_module(&self) -> Option<&str> {
        (self.action == "add" && self.subsystem == "module").then_some(&*self.name)
    }

    /// True if a disk or a network interface came or went, or a disk has another size.
    pub fn changes_hardware(&self) -> bool {
        let device = match self.subsystem.as_str() {
            "block" => self.devtype == "disk",
            "net" => true,
            _ => false,
        };
        device && (self.resized || matches!(self.action.as_str(), "add" | "remove"))
    }
}

/// The socket. Open it before walking the devices, so that none slips in between.
#[derive(Debug)]
pub struct Uevents(AsyncFd<OwnedFd>);

/// What came of waiting for an event.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// The kernel said this.
    Event(Uevent),
    /// The kernel said more than the socket could hold: look at every device again.
    Lost,
}

impl Uevents {
    /// Listens to the kernel. Needs a tokio runtime.
    ///
    /// # Errors
    /// As `socket(2)` and `bind(2)`.
    pub fn open() -> io::Result<Uevents> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            flags,
            SockProtocol::NetlinkKObjectUEvent,
        )?;
        // Needs CAP_NET_ADMIN; without it the default must do.
        _ = setsockopt(&fd, RcvBufForce, &BUFFER);
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, KERNEL))?;
        Ok(Uevents(descriptor::watch(fd)?))
    }

    /// Waits for the next event. Dropping the future loses nothing.
    ///
    /// # Errors
    /// As `recvfrom(2)`.
    pub async fn next(&self) -> io::Result<Heard> {
        loop {
            let mut ready = self.0.readable().await?;
            let mut datagram = [0; DATAGRAM];
            let received = ready.try_io(|fd| Ok(recvfrom::<NetlinkAddr>(fd.as_raw_fd(), &mut datagram)?));
            match received {
                // Port 0 is the kernel; any process may send to the group.
                Ok(Ok((length, Some(from)))) if from.pid() == 0 => {
                    if let Some(event) = Uevent::parse(&datagram[..length]) {
                        return Ok(Heard::Event(event));
                    }
                }
                Ok(Ok(_)) => {}
                Ok(Err(error)) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                    return Ok(Heard::Lost);
                }
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_event_of_the_kernel_is_understood() {
        let event = Uevent::parse(
            b"add@/devices/pci0000:00/0000:00:03.0/virtio0\0ACTION=add\0DEVPATH=/devices/x\0SUBSYSTEM=virtio\0\
              MODALIAS=virtio:d00000001v00001AF4\0SEQNUM=1046\0",
        );
        let event = event.unwrap();
        assert_eq!(
            (event.action.as_str(), event.subsystem.as_str()),
            ("add", "virtio")
        );
        assert_eq!(event.modalias, "virtio:d00000001v00001AF4");
        assert!(!event.changes_hardware());
        assert_eq!(event.live_module(), None);
        let module =
            b"add@/module/mlx4_core\0ACTION=add\0DEVPATH=/module/mlx4_core\0SUBSYSTEM=module\0SEQNUM=9\0";
        let module = Uevent::parse(module).unwrap();
        assert_eq!(module.live_module(), Some("mlx4_core"));
    }

    #[test]
    fn udevs_messages_are_not_events() {
        assert_eq!(Uevent::parse(b"libudev\0\xfe\xed\xca\xfeACTION=add\0"), None);
        assert_eq!(Uevent::parse(b""), None);
        assert_eq!(Uevent::parse(b"add@/devices/x\0"), None);
    }

    #[test]
    fn only_whole_disks_and_interfaces_change_the_hardware() {
        let event = |action: &str, subsystem: &str, devtype: &str| Uevent {
            action: action.to_owned(),
            subsystem: subsystem.to_owned(),
            devtype: devtype.to_owned(),
            ..Uevent::default()
        };
        assert!(event("add", "block", "disk").changes_hardware());
        assert!(event("remove", "net", "").changes_hardware());
        assert!(!event("change", "block", "disk").changes_hardware());
        let resized = Uevent::parse(
            b"change@/devices/x/block/sda\0ACTION=change\0SUBSYSTEM=block\0DEVTYPE=disk\0RESIZE=1\0",
        );
        assert!(resized.unwrap().changes_hardware());
        assert!(!event("add", "block", "partition").changes_hardware());
        assert!(!event("add", "pci", "").changes_hardware());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(datagram: Vec<u8>) {
            Uevent::parse(&datagram);
        }
    }
}
