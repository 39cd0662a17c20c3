//! A cable with faults between one guest NIC and a bridge: loss, delay, a path that swallows large frames, a silent port.
//!
//! The kernel's own fault queue (`netem`) is a module that many kernels lack, so this is a process-local wire: QEMU sends each frame
//! as one datagram to a unix socket, and the wire passes it on to a tap that it holds itself. That tap offers no offloads, so
//! every frame has its checksum and is no longer than the wire's MTU, as on copper.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd},
        unix::{fs::OpenOptionsExt, net::UnixDatagram},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::netns::Netns;

/// How the cable misbehaves. The default is a good one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Frames lost of 1000, in each direction.
    pub loss_per_mille: u32,
    /// Delay in each direction.
    pub delay: Duration,
    /// Frames with more bytes than this after the Ethernet header are lost without a word.
    pub swallow_above: Option<usize>,
    /// Nothing passes for this long after the machine was switched on, as with a port that waits for the spanning tree.
    pub silent_for: Duration,
}

/// The two unix sockets by which QEMU and the wire reach each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ends {
    /// QEMU's.
    pub guest: PathBuf,
    /// The wire's.
    pub wire: PathBuf,
}

/// A cable; passes frames until dropped.
#[derive(Debug)]
pub struct Wire {
    ends: Ends,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    faults: Mutex<(Faults, Instant)>,
    /// Broadcasts of the guest's that were lost.
    unheard: AtomicU64,
    /// Frames that were lost on their way to the guest, and from it.
    lost: [AtomicU64; 2],
    stop: AtomicBool,
}

const ETHERNET_HEADER: usize = 14;
/// Longer than any frame without offloads.
const FRAME: usize = 65_536;

impl Wire {
    /// Lays a cable from a NIC to `bridge`; its sockets are files in `dir` that begin with `name`.
    pub fn new(net: &Netns, bridge: &str, dir: &Path, name: &str, faults: Faults) -> Result<Wire> {
        let ends = Ends {
            guest: dir.join(format!("{name}.guest")),
            wire: dir.join(format!("{name}.wire")),
        };
        let _ = std::fs::remove_file(&ends.wire);
        let socket =
            UnixDatagram::bind(&ends.wire).with_context(|| format!("make {}", ends.wire.display()))?;
        socket.set_nonblocking(true).context("prepare a socket")?;
        let (tap, link) = net.run(open_tap).context("make a tap (/dev/net/tun)")?;
        net.join(&link, bridge)?;
        let state = Arc::new(State {
            faults: Mutex::new((faults, Instant::now())),
            unheard: AtomicU64::new(0),
            lost: [AtomicU64::new(0), AtomicU64::new(0)],
            stop: AtomicBool::new(false),
        });
        let cable = Cable {
            tap,
            socket,
            guest: ends.guest.clone(),
            state: Arc::clone(&state),
            chance: Chance(0x9e37_79b9_7f4a_7c15),
        };
        thread::Builder::new()
            .name("lab-wire".to_owned())
            .spawn(move || cable.run())
            .context("start a thread")?;
        Ok(Wire { ends, state })
    }

    /// The sockets, for QEMU's command line.
    pub fn ends(&self) -> &Ends {
        &self.ends
    }

    /// Changes the faults; [`Faults::silent_for`] counts from now.
    pub fn set(&self, faults: Faults) {
        *self.state.faults.lock().unwrap_or_else(PoisonError::into_inner) = (faults, Instant::now());
    }

    /// How often the guest has called to everyone and the wire lost it.
    pub fn unheard(&self) -> u64 {
        self.state.unheard.load(Ordering::Relaxed)
    }

    /// How many frames the wire has lost on their way to the guest, and from it.
    pub fn lost(&self) -> [u64; 2] {
        self.state
            .lost
            .each_ref()
            .map(|lost| lost.load(Ordering::Relaxed))
    }

    /// The link comes up anew: [`Faults::silent_for`] counts from now.
    pub fn plug(&self) {
        self.state.faults.lock().unwrap_or_else(PoisonError::into_inner).1 = Instant::now();
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
    }
}

/// True if a frame of `length` bytes gets through, `since` the link came up; `dice` is uniform in 0..1000.
fn passes(faults: &Faults, length: usize, since: Duration, dice: u32) -> bool {
    since >= faults.silent_for
        && dice >= faults.loss_per_mille
        && faults
            .swallow_above
            .is_none_or(|most| length.saturating_sub(ETHERNET_HEADER) <= most)
}

/// A small generator (xorshift64): the same run loses the same frames.
#[derive(Debug)]
struct Chance(u64);

impl Chance {
    fn per_mille(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from(self.0 % 1000).unwrap_or(0)
    }
}

struct Cable {
    tap: File,
    socket: UnixDatagram,
    guest: PathBuf,
    state: Arc<State>,
    chance: Chance,
}

#[derive(Clone, Copy)]
enum Way {
    ToGuest,
    ToBridge,
}

impl Cable {
    fn run(mut self) {
        let mut under_way: VecDeque<(Instant, Way, Vec<u8>)> = VecDeque::new();
        let mut buffer = vec![0; FRAME];
        while !self.state.stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            while under_way.front().is_some_and(|(due, ..)| *due <= now) {
                if let Some((_, way, frame)) = under_way.pop_front() {
                    self.deliver(way, &frame);
                }
            }
            let until = under_way.front().map(|(due, ..)| *due - now);
            let Ok((from_tap, from_guest)) = self.wait(until) else {
                return;
            };
            let sources = [(from_tap, Way::ToGuest), (from_guest, Way::ToBridge)];
            for (_, way) in sources.into_iter().filter(|(ready, _)| *ready) {
                while let Ok(length) = self.receive(way, &mut buffer) {
                    let frame = &buffer[..length];
                    let (faults, since) = *self.state.faults.lock().unwrap_or_else(PoisonError::into_inner);
                    if !passes(&faults, length, since.elapsed(), self.chance.per_mille()) {
                        let [to_guest, from_guest] = &self.state.lost;
                        let lost = match way {
                            Way::ToGuest => to_guest,
                            Way::ToBridge => from_guest,
                        };
                        lost.fetch_add(1, Ordering::Relaxed);
                        if matches!(way, Way::ToBridge) && frame.starts_with(&[0xff; 6]) {
                            self.state.unheard.fetch_add(1, Ordering::Relaxed);
                        }
                        continue;
                    }
                    if faults.delay.is_zero() && under_way.is_empty() {
                        self.deliver(way, frame);
                    } else {
                        under_way.push_back((Instant::now() + faults.delay, way, frame.to_vec()));
                    }
                }
            }
        }
    }

    /// Waits for frames, at most until the next one under way is due, and then looks whether the wire is still wanted.
    fn wait(&self, until: Option<Duration>) -> nix::Result<(bool, bool)> {
        let longest = Duration::from_millis(200);
        let millis = until.unwrap_or(longest).min(longest).as_millis();
        let mut sources = [
            PollFd::new(self.tap.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
        ];
        match poll(
            &mut sources,
            PollTimeout::try_from(millis).unwrap_or(PollTimeout::ZERO),
        ) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
        Ok((sources[0].any() == Some(true), sources[1].any() == Some(true)))
    }

    fn receive(&mut self, way: Way, buffer: &mut [u8]) -> io::Result<usize> {
        match way {
            Way::ToGuest => self.tap.read(buffer),
            Way::ToBridge => self.socket.recv(buffer),
        }
    }

    /// A frame that cannot be delivered (the machine is off, the queue is full) is lost, as frames are.
    fn deliver(&mut self, way: Way, frame: &[u8]) {
        match way {
            Way::ToGuest => {
                let _ = self.socket.send_to(frame, &self.guest);
            }
            Way::ToBridge => {
                let _ = self.tap.write(frame);
            }
        }
    }
}

/// A tap that this process holds; the kernel names it and removes it when the file closes.
#[allow(unsafe_code)]
fn open_tap() -> Result<(File, String)> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .context("open /dev/net/tun")?;
    // SAFETY: an all-zero `ifreq` is a valid value of that plain C struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"wire%d\0") {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_TAP | libc::IFF_NO_PI).context("flags")?;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is, and keeps no pointer to it.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        bail!("set the tap up: {}", io::Error::last_os_error());
    }
    let name: Vec<u8> = request
        .ifr_name
        .iter()
        .take_while(|byte| **byte != 0)
        .map(|byte| byte.to_ne_bytes()[0])
        .collect();
    Ok((file, String::from_utf8(name).context("the tap's name")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_lose_what_they_say() {
        let late = Duration::from_secs(60);
        let good = Faults::default();
        assert!(passes(&good, FRAME, Duration::ZERO, 0));
        let narrow = Faults {
            swallow_above: Some(1400),
            ..good
        };
        assert!(passes(&narrow, 1414, late, 0));
        assert!(!passes(&narrow, 1415, late, 0));
        let silent = Faults {
            silent_for: Duration::from_secs(45),
            ..good
        };
        assert!(!passes(&silent, 60, Duration::from_secs(44), 999));
        assert!(passes(&silent, 60, Duration::from_secs(45), 0));
        let lossy = Faults {
            loss_per_mille: 50,
            ..good
        };
        let mut chance = Chance(1);
        let lost = (0..100_000)
            .filter(|_| !passes(&lossy, 60, late, chance.per_mille()))
            .count();
        assert!((4_500..5_500).contains(&lost), "{lost} of 100,000 at 5 %");
    }

    #[test]
    fn frames_cross_both_ways() {
        let (net, peer) = (Netns::new().unwrap(), Netns::new().unwrap());
        net.bridge("br0", None).unwrap();
        let dir = crate::scratch::Scratch::new().unwrap();
        let wire = Wire::new(&net, "br0", dir.path(), "n0", Faults::default()).unwrap();
        let guest = UnixDatagram::bind(&wire.ends().guest).unwrap();
        guest.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        // A host behind the bridge whose ARP answer proves both directions.
        net.cable("c0", &peer, "eth0").unwrap();
        net.join("c0", "br0").unwrap();
        peer.ip("address add 10.9.0.1/24 dev eth0").unwrap();
        let mut ask = Vec::new();
        ask.extend([0xff; 6]);
        ask.extend([0x52, 0x54, 0, 0, 0, 1, 0x08, 0x06]);
        ask.extend([0, 1, 8, 0, 6, 4, 0, 1]);
        ask.extend([0x52, 0x54, 0, 0, 0, 1, 10, 9, 0, 2]);
        ask.extend([0, 0, 0, 0, 0, 0, 10, 9, 0, 1]);
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut frame = [0; 2048];
        loop {
            assert!(Instant::now() < deadline, "no ARP answer");
            guest.send_to(&ask, &wire.ends().wire).unwrap();
            let length = guest.recv(&mut frame).unwrap_or(0);
            if length >= 42 && frame[12..14] == [8, 6] && frame[20..22] == [0, 2] {
                assert_eq!(frame[28..32], [10, 9, 0, 1]);
                return;
            }
        }
    }
}
