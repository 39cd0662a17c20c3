//! Addresses and routes on interfaces, as leases come and go: asked of the kernel one after the other, on a thread of its own. A driver that
//! hangs may hold the kernel's lock on all interfaces, and whoever asks then waits for it.

use std::{io, sync::mpsc, thread};

use muster_proto::Chain;

use super::{
    NetworkError,
    dhcp::Lease,
    netlink::{self, Request},
};

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

/// Has it done.
pub(super) struct Setup(mpsc::Sender<Order>);

impl Setup {
    /// `done` is told the interface's index and each lease that is in use.
    pub(super) fn begin(done: impl Fn(u32, Lease) + Send + 'static) -> io::Result<Setup> {
        Setup::with(netlink::ask, done)
    }

    fn with(
        ask: impl Fn(Request) -> io::Result<()> + Send + 'static,
        done: impl Fn(u32, Lease) + Send + 'static,
    ) -> io::Result<Setup> {
        let (tx, rx) = mpsc::channel();
        let work = move || {
            for order in rx {
                match order {
                    Order::SetUp { on, held, lease } => {
                        if let Err(error) = set_up(&ask, &on, held.as_ref(), &lease) {
                            tracing::warn!("{}", Chain(&error));
                        }
                        done(on.index, *lease);
                    }
                    Order::Remove { on, lease } => {
                        let request = Request::remove_address(on.index, lease.address, lease.prefix);
                        if let Err(error) = ask(request).map_err(on.failed("remove the address")) {
                            tracing::warn!("{}", Chain(&error));
                        }
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

fn set_up(
    ask: impl Fn(Request) -> io::Result<()>,
    on: &On,
    held: Option<&Lease>,
    lease: &Lease,
) -> Result<(), NetworkError> {
    if let Some(held) = held
        && (held.address, held.prefix) != (lease.address, lease.prefix)
    {
        // The new address goes first on the list only if the old one is gone.
        _ = ask(Request::remove_address(on.index, held.address, held.prefix));
    }
    if let Some(mtu) = lease.mtu {
        // The hardware may take less; then the path is found out by TCP.
        if let Err(error) = ask(Request::set_mtu(on.index, mtu)).map_err(on.failed("set the MTU")) {
            tracing::warn!(mtu, "{}", Chain(&error));
        }
    }
    let add = Request::add_address(on.index, lease.address, lease.prefix, on.metric);
    ask(add).map_err(on.failed("set the address"))?;
    for route in &lease.routes {
        let add = Request::add_route(on.index, lease.address, *route, on.metric);
        ask(add).map_err(on.failed("add a route"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{sync::Mutex, time::Duration};

    use super::*;

    fn lease(last: u8) -> Lease {
        Lease::of([10, 0, 0, last].into())
    }

    #[test]
    fn nobody_waits_for_a_kernel_that_hangs_and_all_is_done_in_turn() {
        let (go_tx, go_rx) = mpsc::channel::<io::Result<()>>();
        let go_rx = Mutex::new(go_rx);
        let (done_tx, done_rx) = mpsc::channel();
        let setup = Setup::with(
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
        // The old address, and the new one, which fails: the lease may do all the same.
        go_tx.send(Ok(())).unwrap();
        go_tx.send(Err(io::ErrorKind::Other.into())).unwrap();
        assert_eq!(done_rx.recv().unwrap(), (2, lease(9).address));
        go_tx.send(Ok(())).unwrap();
    }
}
