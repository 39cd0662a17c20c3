//! Who a process is, in the words of a Lease, and whether another that was on the same computer has ended for certain.
//!
//! A controller that crashed and is started again need not wait for its own old lease: when the holder was a process of this same
//! boot, in this same PID namespace, and the kernel has no such process any more, nobody leads.

use std::{fs, path::Path};

/// `host_boot_namespace_pid_start`: no two processes have the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The computer's name, its boot and the PID namespace; none if one of them cannot be found out.
    place: Option<Place>,
    text: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    host: String,
    /// `/proc/sys/kernel/random/boot_id`: another one after every boot.
    boot: String,
    /// The inode of the PID namespace. A number is used again only after its namespace has ended, with all of its processes.
    namespace: String,
}

impl Place {
    fn here() -> Option<Place> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let namespace = fs::read_link("/proc/self/ns/pid").ok()?;
        let digits = |text: &str| text.chars().filter(char::is_ascii_digit).collect::<String>();
        Some(Place {
            host: sysinfo::System::host_name().ok()?,
            boot: boot.trim().to_owned(),
            namespace: digits(&namespace.to_string_lossy()),
        })
    }

    fn text(&self, pid: u32, start: u64) -> String {
        let Place {
            host,
            boot,
            namespace,
        } = self;
        format!("{host}_{boot}_{namespace}_{pid}_{start}")
    }
}

impl Identity {
    /// This process's.
    pub fn own() -> Identity {
        let place = Place::here();
        let pid = std::process::id();
        let text = place
            .as_ref()
            .zip(started(pid))
            .map(|(place, start)| place.text(pid, start));
        Identity {
            text: text.unwrap_or_else(random),
            place,
        }
    }

    /// As it stands in a Lease.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// True if `holder` was a process on this computer that has ended. False whenever that is not certain.
    pub fn has_ended(&self, holder: &str) -> bool {
        let known = || {
            let place = self.place.as_ref()?;
            // From the end: a computer's name may have any character.
            let mut parts = holder.rsplitn(3, '_');
            let start: u64 = parts.next()?.parse().ok()?;
            let pid: u32 = parts.next()?.parse().ok()?;
            (place.text(pid, start) == holder).then_some((pid, start))
        };
        match known() {
            None => false,
            // Readable for everyone, unless /proc is mounted with `hidepid`: then the kernel is asked otherwise.
            Some((pid, start)) => match started(pid) {
                Some(other) => other != start,
                None => !exists(pid),
            },
        }
    }
}

/// The 22nd field of `/proc/PID/stat` (proc_pid_stat(5)): when the process started, in ticks since the boot. None for one that has
/// ended, also if nobody has asked for its status yet.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    // The second field is a name in parentheses and may hold anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    (!matches!(state, "Z" | "X"))
        .then(|| fields.nth(18)?.parse().ok())
        .flatten()
}

/// False if the kernel knows no such process, or only its remains.
fn exists(pid: u32) -> bool {
    use nix::{errno::Errno, sys::signal::kill, unistd::Pid};
    let Ok(number) = i32::try_from(pid) else {
        return false;
    };
    let remains = || {
        let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
        let state = stat.ok().and_then(|stat| {
            let (_, rest) = stat.rsplit_once(") ")?;
            rest.chars().next()
        });
        matches!(state, Some('Z' | 'X'))
    };
    kill(Pid::from_raw(number), None) != Err(Errno::ESRCH) && !remains()
}

fn random() -> String {
    use ring::rand::SecureRandom;
    let mut bytes = [0_u8; 16];
    // Without any randomness there would be no TLS either; the number of the process is all that is left.
    if ring::rand::SystemRandom::new().fill(&mut bytes).is_err() {
        return format!("muster-{}", std::process::id());
    }
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("muster-{digits}")
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn only_a_process_of_this_computer_that_is_no_more_has_ended() {
        let own = Identity::own();
        let place = own.place.clone().expect("this computer tells its boot");
        assert!(!own.has_ended(own.text()), "{own:?}");

        let mut child = Command::new("sleep")
            .arg("600")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let other = place.text(child.id(), started(child.id()).unwrap());
        assert!(!own.has_ended(&other), "it runs");
        child.kill().unwrap();
        // Until somebody asks for its status it is a zombie.
        while started(child.id()).is_some() {
            std::thread::yield_now();
        }
        assert!(own.has_ended(&other), "a zombie writes nothing");
        child.wait().unwrap();
        assert!(own.has_ended(&other));

        let ours = place.text(std::process::id(), 1);
        assert!(own.has_ended(&ours), "the number is another process's now");
        let elsewhere = Place {
            boot: "another".to_owned(),
            ..place
        };
        assert!(!own.has_ended(&elsewhere.text(1, 1)));
        for junk in ["", "_", "a_b", "muster-00", "h_b_n_x_1", "h_b_n_1_"] {
            assert!(!own.has_ended(junk), "{junk}");
        }
    }
}
