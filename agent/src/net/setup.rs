//! Addresses and routes on interfaces, as leases come and go: asked of the kernel one after the other, on a thread of its own. A driver that
//! hangs may hold the kernel's lock on all interfaces, and whoever asks then waits for it. What fails is tried again: a driver that resets
//! its NIC refuses for a moment, and the lease would be renewed for hours without being in use.

use std::{
    collections::BTreeMap,
    io,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use muster_proto::Chain;

use super::{
    NetworkError,
    dhcp::Lease,
    netlink::{self, Request},
};

/// How often a lease is set up that could not be set up as a whole.
const TRIES: u32 = 10;
/// The pause between two of these.
const PAUSE: Duration = Duration::from_secs(3);

/// The interface that is meant.
#[derive(Clone, Debug)]
pub(super) struct On {
    pub(super) index: u32,
    pub(super) name: String,
    /// Of routes over it.
    pub(super) metric: u32,
}

/// What is to be done.
enum Order {
    /// Puts `lease` to use in the place of `held`.
    SetUp {
        on: On,
        held: Option<Lease>,
        lease: Box<Lease>,
    },
    /// Takes the lease's address from the interface.
    Remove { on: On, lease: Box<Lease> },
}

/// A lease that is to be set up.
struct Due {
    on: On,
    lease: Box<Lease>,
    /// How often yet, at most.
    tries: u32,
    /// Whoever waits for it knows that it is in use.
    is_told: bool,
}

/// Has it done.
pub(super) struct Setup(mpsc::Sender<Order>);

impl Setup {
    /// `done` is told the interface's index and each lease that is in use.
    pub(super) fn begin(done: impl Fn(u32, Lease) + Send + 'static) -> io::Result<Setup> {
        Setup::with(PAUSE, netlink::ask, done)
    }

    fn with(
        pause: Duration,
        ask: impl Fn(Request) -> io::Result<()> + Send + 'static,
        done: impl Fn(u32, Lease) + Send + 'static,
    ) -> io::Result<Setup> {
        let (tx, rx) = mpsc::channel();
        let work = move || {
            let mut again: BTreeMap<u32, Due> = BTreeMap::new();
            loop {
                let order = if again.is_empty() {
                    rx.recv().map_err(|_| RecvTimeoutError::Disconnected)
                } else {
                    rx.recv_timeout(pause)
                };
                let due = match order {
                    Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => std::mem::take(&mut again).into_values().collect(),
                    Ok(Order::SetUp { on, held, lease }) => {
                        again.remove(&on.index);
                        // The new address goes first on the list only if the old one is gone.
                        if let Some(old) = held.filter(|held| !held.is_at(&lease)) {
                            _ = ask(Request::remove_address(on.index, old.address, old.prefix));
                        }
                        let (tries, is_told) = (TRIES, false);
                        vec![Due {
                            on,
                            lease,
                            tries,
                            is_told,
                        }]
                    }
                    Ok(Order::Remove { on, lease }) => {
                        again.remove(&on.index);
                        let request = Request::remove_address(on.index, lease.address, lease.prefix);
                        if let Err(error) = ask(request).map_err(on.failed("remove the address")) {
                            tracing::warn!("{}", Chain(&error));
                        }
                        Vec::new()
                    }
                };
                for mut due in due {
                    let SetUp { is_usable, is_whole } = set_up(&ask, &due.on, &due.lease);
                    if is_usable && !std::mem::replace(&mut due.is_told, true) {
                        done(due.on.index, Lease::clone(&due.lease));
                    }
                    due.tries -= 1;
                    if !is_whole && due.tries > 0 {
                        again.insert(due.on.index, due);
                    }
                }
            }
        };
        thread::Builder::new().name("net-setup".to_owned()).spawn(work)?;
        Ok(Setup(tx))
    }

    /// Puts `lease` to use in the place of `held`.
    pub(super) fn set_up(&self, on: On, held: Option<Lease>, lease: Lease) {
        let lease = Box::new(lease);
        self.order(Order::SetUp { on, held, lease });
    }

    /// Takes the lease's address from the interface.
    pub(super) fn remove(&self, on: On, lease: Lease) {
        let lease = Box::new(lease);
        self.order(Order::Remove { on, lease });
    }

    fn order(&self, order: Order) {
        if self.0.send(order).is_err() {
            tracing::error!("the thread that sets up addresses has ended; interfaces stay as they are");
        }
    }
}

impl On {
    fn failed(&self, action: &'static str) -> impl FnOnce(io::Error) -> NetworkError {
        let interface = self.name.clone();
        move |source| NetworkError::Interface {
            action,
            interface,
            source,
        }
    }
}

/// What came of setting up a lease.
struct SetUp {
    /// The interface has the address.
    is_usable: bool,
    /// It has all that goes with it, too.
    is_whole: bool,
}

fn set_up(ask: impl Fn(Request) -> io::Result<()>, on: &On, lease: &Lease) -> SetUp {
    let does = |action: &'static str, request: Request| match ask(request).map_err(on.failed(action)) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!("{}", Chain(&error));
            false
        }
    };
    if let Some(mtu) = lease.mtu {
        // The hardware may take less; then the path is found out by TCP.
        does("set the MTU", Request::set_mtu(on.index, mtu));
    }
    let add = Request::add_address(on.index, lease.address, lease.prefix, on.metric);
    let is_usable = does("set the address", add);
    let mut is_whole = is_usable;
    // One that the kernel does not take keeps none of the others out.
    for route in lease.routes.iter().filter(|_| is_usable) {
        let add = Request::add_route(on.index, lease.address, *route, on.metric);
        is_whole &= does("add a route", add);
    }
    SetUp { is_usable, is_whole }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    };

    use super::{super::Route, *};

    fn lease(last: u8) -> Lease {
        Lease::of([10, 0, 0, last].into())
    }

    #[test]
    fn nobody_waits_for_a_kernel_that_hangs_and_all_is_done_in_turn() {
        let (go_tx, go_rx) = mpsc::channel::<io::Result<()>>();
        let go_rx = Mutex::new(go_rx);
        let (done_tx, done_rx) = mpsc::channel();
        let setup = Setup::with(
            Duration::ZERO,
            move |_| go_rx.lock().unwrap().recv().unwrap(),
            move |index, lease| done_tx.send((index, lease.address)).unwrap(),
        )
        .unwrap();
        let on = On {
            index: 2,
            name: "eth0".to_owned(),
            metric: 50,
        };
        setup.set_up(on.clone(), None, lease(8));
        setup.set_up(on.clone(), Some(lease(8)), lease(9));
        setup.remove(on, lease(9));
        assert!(
            done_rx.recv_timeout(Duration::from_millis(50)).is_err(),
            "it hangs"
        );
        go_tx.send(Ok(())).unwrap();
        assert_eq!(done_rx.recv().unwrap(), (2, lease(8).address));
        // The old address, and the new one.
        go_tx.send(Ok(())).unwrap();
        go_tx.send(Ok(())).unwrap();
        assert_eq!(done_rx.recv().unwrap(), (2, lease(9).address));
        go_tx.send(Ok(())).unwrap();
    }

    #[test]
    fn what_fails_is_tried_again_and_keeps_nothing_else_out() {
        // The address fails; then the first of two routes; then nothing.
        let refused = [0, 2];
        let (tx, rx) = mpsc::channel();
        let (asked, used) = (tx.clone(), tx);
        let number = AtomicUsize::new(0);
        let setup = Setup::with(
            Duration::ZERO,
            move |_| {
                asked.send("asked").unwrap();
                if refused.contains(&number.fetch_add(1, Ordering::SeqCst)) {
                    return Err(io::ErrorKind::Other.into());
                }
                Ok(())
            },
            move |_, _| used.send("used").unwrap(),
        )
        .unwrap();
        let on = On {
            index: 2,
            name: "eth0".to_owned(),
            metric: 50,
        };
        let mut lease = lease(8);
        lease.routes = [1, 2]
            .map(|last| Route::default_over([10, 0, 0, last].into()))
            .to_vec();
        setup.set_up(on, None, lease);
        let came: Vec<_> = rx.iter().take(8).collect();
        assert_eq!(
            came,
            [
                "asked", "asked", "asked", "asked", "used", "asked", "asked", "asked"
            ]
        );
        drop(setup);
        assert_eq!(rx.iter().count(), 0, "it is set up as a whole");
    }
}
