//! What a session needs of the machine that it speaks for; the ramdisk and the simulated fleet each bring their own.

use std::{error::Error, future::Future, net::IpAddr};

use muster_proto::{identity::Identity, inventory::Inventory};

use crate::{
    steps::{Failed, Job},
    work::Work,
};

/// Why a name has no address.
pub type ResolveError = Box<dyn Error + Send + Sync>;

/// The machine. Every future may be dropped before its end and asked for again without a loss.
pub trait Machine: Send {
    /// Who the machine is, as far as it is known already.
    fn identity(&mut self) -> impl Future<Output = Identity> + Send;

    /// Everything that was found, once all devices have appeared.
    fn inventory(&mut self) -> impl Future<Output = Inventory> + Send;

    /// Ends when what the last inventory says is no longer so.
    fn changed(&mut self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    /// Ends when there is a network to reach a controller by.
    fn online(&mut self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// Ends when there are other networks than at the last call of [`Machine::online`]: worth another try.
    fn network_changed(&mut self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    /// The address of a controller that is given by name.
    fn resolve(&mut self, name: &str) -> impl Future<Output = Result<IpAddr, ResolveError>> + Send {
        let error = format!("look up {name}: this machine uses no name server");
        std::future::ready(Err(error.into()))
    }

    /// Carries out `job`, tells its progress to `work`, and ends with an error soon after [`Work::stop`]. Runs beside everything else
    /// here; of two, the second is asked for after the first has ended. Compares the machine and the disk with those that the job
    /// means before it changes anything, and opens a sealed config drive only once the image is verified. May be told to do again what
    /// is done already, or half done.
    fn work(&mut self, job: Job, work: Work) -> impl Future<Output = Result<(), Failed>> + Send + 'static;

    /// The controller told its time, in unix seconds.
    fn told_time(&mut self, _unix: i64) {}

    /// The last lines of the log, oldest first, for the controller to see why a command failed.
    fn log_lines(&self) -> Vec<String> {
        Vec::new()
    }
}
