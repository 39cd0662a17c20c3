//! Wake-on-LAN, on the side of the machine that is to be woken.

use std::{
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use muster_proto::Chain;
use nix::errno::Errno;

use super::{ethtool, interfaces};
use crate::sys::Root;

/// Makes every NIC that can wake the machine do so at a magic packet: what the firmware left, or the driver switches off with the
/// machine, would else decide. A NIC that cannot, or does not answer, keeps nothing from being switched off.
pub(crate) fn arm(root: Root) {
    aside(move || arm_with(&root, ethtool::wake_on_magic));
}

/// A driver may keep whoever asks it waiting for ever, and all who ask about a network after that.
const PATIENCE: Duration = Duration::from_secs(10);

/// Does `work` on a thread of its own, and goes on without it after [`PATIENCE`].
fn aside(work: impl FnOnce() + Send + 'static) {
    let (done, end) = mpsc::channel::<()>();
    thread::spawn(move || {
        work();
        drop(done);
    });
    if end.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
        tracing::warn!("Wake-on-LAN: a NIC does not respond; the machine is switched off without it");
    }
}

fn arm_with(root: &Root, arm: impl Fn(&str) -> Result<bool, Errno>) {
    let names = match interfaces(root) {
        Ok(names) => names,
        Err(error) => {
            tracing::warn!("Wake-on-LAN is not armed: {}", Chain(&error));
            return;
        }
    };
    let mut armed = Vec::new();
    for name in &names {
        match arm(name) {
            Ok(true) => armed.push(name.as_str()),
            Ok(false) => {}
            Err(errno) => tracing::warn!("Wake-on-LAN of {name} is not armed: {errno}"),
        }
    }
    if armed.is_empty() {
        tracing::info!("Wake-on-LAN is armed on no NIC");
    } else {
        tracing::info!("Wake-on-LAN is armed on {}", armed.join(", "));
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::sys::tree::Tree;

    #[test]
    fn every_nic_with_a_device_is_armed_whatever_another_one_says() {
        let devices = ["eth0/device", "eth1/device", "eth2/device", "lo"];
        let tree = devices.into_iter().fold(Tree::new(), |tree, device| {
            tree.directory(&format!("sys/class/net/{device}"))
        });
        let asked = RefCell::new(Vec::new());
        arm_with(&tree.root(), |name| {
            asked.borrow_mut().push(name.to_owned());
            match name {
                "eth0" => Err(Errno::EIO),
                "eth1" => Ok(false),
                _ => Ok(true),
            }
        });
        assert_eq!(asked.into_inner(), ["eth0", "eth1", "eth2"]);
    }

    #[test]
    fn who_waits_for_a_nic_goes_on_when_it_has_answered() {
        let (tell, told) = mpsc::channel();
        aside(move || tell.send(()).expect("somebody waits"));
        assert_eq!(told.try_recv(), Ok(()));
    }

    /// As most virtual ones; an unprivileged process is not even told that.
    #[test]
    fn the_loopback_interface_cannot_wake_anything() {
        assert!(matches!(
            ethtool::wake_on_magic("lo"),
            Ok(false) | Err(Errno::EPERM)
        ));
        assert!(ethtool::wake_on_magic("no-such-link").is_err());
    }
}
