//! Process 1 of the lab's operating system: loads its modules, waits for its config drive, says who it is and what it was told,
//! and stays up until somebody presses the power button.

#![forbid(unsafe_code)]

use std::{
    fs::{self, File},
    io::{Read, Write, stdout},
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use muster_os::{
    BOOTED, FILES, HEAD, NAME, NO_CONFIG_DRIVE, POWERS_OFF, USER_DATA_BEGINS, USER_DATA_ENDS, file_system,
    load_order, name, user_data,
};
use nix::{
    errno::Errno,
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
    sys::{
        reboot::{RebootMode, reboot},
        utsname::uname,
    },
    unistd::sync,
};

/// How often it looks for disks and buttons.
const LOOK: Duration = Duration::from_millis(50);
/// How long it waits for a config drive before it says that there is none.
const PATIENCE: Duration = Duration::from_secs(20);
const CONFIG: &str = "/run";

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("muster-os is process 1 of the lab's disk images and nothing else");
        return ExitCode::FAILURE;
    }
    for (kind, place) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        if let Err(error) = mount(Some(kind), place, Some(kind), MsFlags::empty(), None::<&str>) {
            say(&format!("OS cannot mount {place}: {error}"));
        }
    }
    let kernel = uname().map_or_else(
        |_| String::new(),
        |names| names.release().to_string_lossy().into_owned(),
    );
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let uptime = uptime.split(' ').next().unwrap_or_default();
    say(&format!("{BOOTED} (kernel {kernel}, uptime {uptime} s)"));
    load_modules(&Path::new("/lib/modules").join(&kernel));
    thread::spawn(watch_buttons);
    tell_config();
    loop {
        thread::park();
    }
}

/// One write, so that what the kernel says does not come in between.
fn say(line: &str) {
    let mut out = stdout().lock();
    // A console that does not take it leaves nobody to tell.
    let _ = out.write_all(format!("{line}\n").as_bytes());
    let _ = out.flush();
}

fn load_modules(directory: &Path) {
    let table = fs::read_to_string(directory.join("modules.dep")).unwrap_or_default();
    for module in load_order(&table) {
        let loaded = File::open(directory.join(module))
            .map_err(|error| error.to_string())
            .and_then(|file| match finit_module(&file, c"", ModuleInitFlags::empty()) {
                Ok(()) | Err(Errno::EEXIST) => Ok(()),
                Err(error) => Err(error.to_string()),
            });
        if let Err(error) = loaded {
            say(&format!("OS cannot load {module}: {error}"));
        }
    }
}

/// Waits for the config drive and prints what is on it.
fn tell_config() {
    let begun = Instant::now();
    let mut complained = false;
    let (device, kind) = loop {
        if let Some(found) = config_drive() {
            break found;
        }
        if !complained && begun.elapsed() > PATIENCE {
            say(NO_CONFIG_DRIVE);
            complained = true;
        }
        thread::sleep(LOOK);
    };
    if let Err(error) = mount(
        Some(&device),
        CONFIG,
        Some(kind),
        MsFlags::MS_RDONLY,
        None::<&str>,
    ) {
        return say(&format!("OS cannot mount {}: {error}", device.display()));
    }
    let latest = Path::new(CONFIG).join("openstack/latest");
    let read = |file: &str| fs::read(latest.join(file)).unwrap_or_default();
    let mut files: Vec<_> = fs::read_dir(&latest)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    files.sort();
    let device = device.display();
    say(&format!("{FILES}{} ({kind} on {device})", files.join(" ")));
    let name = name(&read("meta_data.json")).unwrap_or_default();
    say(&format!("{NAME}{name}"));
    say(USER_DATA_BEGINS);
    for line in user_data(&read("user_data")) {
        say(&line);
    }
    say(USER_DATA_ENDS);
}

/// The config drive and its file system, once it is there.
fn config_drive() -> Option<(PathBuf, &'static str)> {
    let devices = fs::read_dir("/sys/class/block").ok()?;
    devices.flatten().find_map(|device| {
        let path = Path::new("/dev").join(device.file_name());
        let mut head = Vec::new();
        // A short device has a short head; one that cannot be read may be readable next time.
        let limit = u64::try_from(HEAD).unwrap_or(u64::MAX);
        let _ = File::open(&path).and_then(|file| file.take(limit).read_to_end(&mut head));
        Some((path, file_system(&head)?))
    })
}

/// Powers the machine off when one of its input devices says so.
fn watch_buttons() {
    let mut watched = Vec::new();
    loop {
        let devices = fs::read_dir("/dev/input").into_iter().flatten().flatten();
        for path in devices.map(|entry| entry.path()) {
            let is_events = path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("event"));
            if !is_events || watched.contains(&path) {
                continue;
            }
            if let Ok(file) = File::open(&path) {
                watched.push(path);
                thread::spawn(|| watch_button(file));
            }
        }
        thread::sleep(LOOK);
    }
}

fn watch_button(mut device: File) {
    // `struct input_event` (linux/input.h): 16 bytes of time, then type, code and value.
    let mut event = [0; 24];
    const POWER: [u8; 8] = [1, 0, 116, 0, 1, 0, 0, 0]; // EV_KEY, KEY_POWER, pressed
    while device.read_exact(&mut event).is_ok() {
        if event.ends_with(&POWER) {
            say(POWERS_OFF);
            sync();
            // Returns only if it does not work.
            let Err(error) = reboot(RebootMode::RB_POWER_OFF);
            say(&format!("OS cannot power off: {error}"));
        }
    }
}
