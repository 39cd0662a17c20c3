//! Process 1 of the ramdisk: makes the system usable, then runs the network, the kernel modules and the session side by side
//! on one thread. It never ends; where it cannot go on, the machine starts again.

mod identity;
mod mounts;
mod orphans;
mod ramdisk;

use std::{convert::Infallible, fs, panic, sync::mpsc, thread, time::Duration};

use muster_proto::{Chain, config::BootConfig, text};
use nix::{
    sys::reboot::{RebootMode, reboot},
    unistd,
};
use tokio::sync::watch;

use crate::{
    clock::Clock,
    config,
    console::Console,
    kmod::{self, Devices},
    net::{self, Network},
    session::{self, Context, Ended},
    sys::Root,
    work,
};
use ramdisk::Ramdisk;

/// Before the machine starts again for a new token or another ramdisk: time for a person to read why.
const REBOOT_PAUSE: Duration = Duration::from_secs(60);

/// How long the consoles may take for the last lines.
const FLUSH: Duration = Duration::from_secs(1);

/// How long what is written may take to its disks, at the end.
const SYNC: Duration = Duration::from_secs(10);

/// How long the kernel may take for the machine's end, which waits for every driver: disks are shut down one after the other, and a server
/// with many of them takes minutes.
const END: Duration = Duration::from_secs(12 * 60);

/// Runs the machine.
pub fn run() -> ! {
    let root = Root::default();
    let failed_mounts = mounts::mount_all(&root);
    let console = Console::of_the_kernel(&root);
    // Nothing else sets one.
    _ = tracing::subscriber::set_global_default(console.clone());
    let last_words = console.clone();
    panic::set_hook(Box::new(move |info| {
        let why = text::clean(info.to_string().as_bytes());
        last_words.line(&format!("error: the agent crashed: {why}"));
        // A job fails of it, and says why. The thread stays here: what comes after a panic's hook is the end of the process, and a machine
        // that starts again in the middle of a job may boot what was on its disk before.
        while work::break_off(&why) {
            thread::park();
        }
        start_again(&last_words, REBOOT_PAUSE);
    }));
    tracing::info!(step = "agent", version = env!("CARGO_PKG_VERSION"));
    for error in &failed_mounts {
        tracing::error!("{}", Chain(error));
    }
    orphans::reap_for_ever();

    let complete = config::is_complete(&root);
    if !complete {
        tracing::error!(
            "not enough memory: the ramdisk is incomplete, the kernel could not unpack all of it"
        );
    }
    let config = match config::load(&root) {
        Ok(config) if complete => Some(config),
        Ok(_) => None,
        Err(error) => {
            tracing::error!("{}", Chain(&error));
            None
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("start the runtime: {error}");
            start_again(&console, REBOOT_PAUSE)
        }
    };
    let (pause, then) = runtime.block_on(serve(root, config, &console));
    end(&console, pause, then)
}

/// Runs everything until the machine must start again or be switched off; returns which, and after what pause.
async fn serve(root: Root, config: Option<BootConfig>, console: &Console) -> (Duration, RebootMode) {
    let again = (REBOOT_PAUSE, RebootMode::RB_AUTOBOOT);
    let (network_tx, network) = watch::channel(Network::default());
    let (devices_tx, devices) = watch::channel(Devices::default());
    let boot_mac = config.as_ref().and_then(|config| config.boot_mac);
    let modules_root = root.clone();
    tokio::spawn(report_failure(async move {
        kmod::run(modules_root.clone(), mounts::modules(&modules_root), devices_tx).await
    }));
    if let Err(error) = net::keep_apart(&root) {
        tracing::warn!(
            "keep the interfaces apart: {error}; two interfaces on the same network may answer for each other"
        );
    }
    tokio::spawn(report_failure(net::run(boot_mac, network_tx)));
    // Drivers first: on a machine with one processor everything below would delay them.
    tokio::task::yield_now().await;
    let mounts_root = root.clone();
    let mut settled = devices.clone();
    tokio::spawn(async move {
        kmod::settled(&mut settled).await;
        // Its module comes last, and drivers that take long may be before it.
        let mut is_told = false;
        while let Err(error) = mounts::mount_late(&mounts_root) {
            if !std::mem::replace(&mut is_told, true) {
                tracing::warn!("{}; next: retrying when a module is loaded", Chain(&error));
            }
            if settled.changed().await.is_err() {
                return;
            }
        }
    });
    let Some(config) = config else {
        // Whoever looks at the console sees how far the hardware gets.
        let mut devices = devices;
        kmod::settled(&mut devices).await;
        tracing::error!(
            "no controller to talk to: rebooting in {} s",
            REBOOT_PAUSE.as_secs()
        );
        return again;
    };
    let clock = Clock::told(config.time);
    let wake_root = root.clone();
    let machine = Ramdisk::new(root, &config, clock.clone(), network, devices, console.clone());
    match session::run(Context {
        config,
        clock,
        machine,
    })
    .await
    {
        Ended::Reboot => {
            tracing::info!("starting again, as ordered");
            (Duration::ZERO, RebootMode::RB_AUTOBOOT)
        }
        Ended::PowerOff => {
            tracing::info!("switching off, as ordered");
            net::wake::arm(wake_root);
            (Duration::ZERO, RebootMode::RB_POWER_OFF)
        }
        Ended::Refused(problem) => {
            tracing::error!("the controller refuses this session: {problem}");
            tracing::error!("rebooting in {} s to get a new token", REBOOT_PAUSE.as_secs());
            again
        }
        Ended::Distrust => {
            tracing::error!(
                "no controller has a certificate that is trusted here; rebooting in {} s to get the current certificate authorities and time",
                REBOOT_PAUSE.as_secs()
            );
            again
        }
        Ended::Unusable(error) => {
            tracing::error!("{}; rebooting in {} s", Chain(&error), REBOOT_PAUSE.as_secs());
            again
        }
    }
}

/// The session goes on without: the console must say why nothing comes.
async fn report_failure<E: std::error::Error + 'static>(task: impl Future<Output = Result<(), E>>) {
    if let Err(error) = task.await {
        tracing::error!("{}", Chain(&error));
    }
}

/// Starts the machine again, whatever happens.
fn start_again(console: &Console, pause: Duration) -> ! {
    end(console, pause, RebootMode::RB_AUTOBOOT)
}

/// Restarts the machine or switches it off, with everything written to the disks. A machine that cannot switch itself off stops (`reboot(2)`).
fn end(console: &Console, pause: Duration, how: RebootMode) -> ! {
    std::thread::sleep(pause);
    console.flush(FLUSH);
    // The machine has said that it goes, and nobody else makes it: a disk whose driver never answers must not keep it.
    _ = thread::Builder::new().spawn(move || force(how));
    let (done, synced) = mpsc::channel::<()>();
    _ = thread::Builder::new().spawn(move || {
        unistd::sync();
        drop(done);
    });
    // An error says that it is done, or takes too long: jobs have synced what they wrote.
    _ = synced.recv_timeout(SYNC);
    loop {
        let Err(error): Result<Infallible, _> = reboot(how);
        console.line(&format!(
            "error: reboot or switch off the machine ({how:?}): {error}"
        ));
        std::thread::sleep(REBOOT_PAUSE);
    }
}

/// Ends the machine's run, if it has not ended by then: at once and without its drivers, or, where it is to be off, by asking them once more
/// (`Documentation/admin-guide/sysrq.rst`).
fn force(how: RebootMode) {
    thread::sleep(END);
    let command = if how == RebootMode::RB_POWER_OFF { "o" } else { "b" };
    if let Err(error) = fs::write(Root::default().proc("sysrq-trigger"), command) {
        tracing::error!("reboot or switch off the machine by force: {error}");
    }
}
