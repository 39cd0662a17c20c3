//! How long things take, and what goes wrong. Pure.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hasher},
    str::FromStr,
    time::Duration,
};

use anyhow::{Context, Error, Result, bail, ensure};

/// What takes time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// From power-on to the first request.
    Firmware,
    /// Kernel and ramdisk: to fetch them, and to start.
    Load,
    /// To collect the inventory.
    Inventory,
    /// To clean disks.
    Clean,
    /// To write an image.
    Write,
    /// To start the system on the disk.
    System,
    /// From a refusal or a device with nothing to boot to the next try.
    Again,
    /// For a BMC to switch the power that it was asked to.
    Switch,
    /// For an operating system to shut down when it is asked to.
    Shutdown,
    /// For a person to walk to a server without a BMC.
    Walk,
}

impl Step {
    /// On a server of today, in seconds.
    fn seconds(self) -> f64 {
        match self {
            Step::Firmware => 90.0,
            Step::Load => 15.0,
            Step::Inventory => 4.0,
            Step::Clean => 3.0,
            Step::Write => 60.0,
            Step::System => 30.0,
            Step::Again => 60.0,
            Step::Switch => 3.0,
            Step::Shutdown => 20.0,
            Step::Walk => 300.0,
        }
    }
}

/// The least pause between two tries, however fast everything else is: a fleet of thousands would do nothing else.
const BREATH: Duration = Duration::from_secs(1);

/// How long `step` takes on server `number` where 1 is real time: within a fifth of the usual, always the same for one server.
pub fn takes(step: Step, number: u32, scale: f64) -> Duration {
    // 0.8 to 1.2, by a hash of the number.
    let spread = 0.8 + f64::from(u32::from(hash(number, "pace") % 401)) / 1000.0;
    let time = Duration::try_from_secs_f64(step.seconds() * spread * scale).unwrap_or(Duration::ZERO);
    if step == Step::Again {
        time.max(BREATH)
    } else {
        time
    }
}

/// Something that can go wrong on demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The firmware hangs; a power cycle helps.
    Firmware,
    /// The ramdisk does not arrive; the firmware begins anew.
    Boot,
    /// The inventory never ends.
    Inventory,
    /// A job fails half-way.
    Job,
    /// The BMC refuses to change the power.
    Power,
}

impl FromStr for Fault {
    type Err = Error;

    fn from_str(name: &str) -> Result<Fault> {
        Ok(match name {
            "firmware" => Fault::Firmware,
            "boot" => Fault::Boot,
            "inventory" => Fault::Inventory,
            "job" => Fault::Job,
            "power" => Fault::Power,
            _ => bail!("{name:?} is not one of firmware, boot, inventory, job, power"),
        })
    }
}

/// How many servers have a fault, and how often it shows on each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Failing {
    fault: Fault,
    /// Of a thousand servers.
    per_mille: u16,
    /// Every time without.
    times: Option<u32>,
}

impl Failing {
    /// True if it never ends on the servers that it hits.
    pub fn is_lasting(&self) -> bool {
        self.times.is_none() && self.per_mille > 0
    }
}

/// Why these do not go together; none: they do.
pub(super) fn clash(failing: &[Failing], once: bool) -> Option<String> {
    let named = |fault: Fault| failing.iter().filter(move |failing| failing.fault == fault);
    let twice = failing.iter().find(|failing| named(failing.fault).count() > 1);
    if let Some(twice) = twice {
        return Some(format!("--fail {:?} is given twice", twice.fault).to_ascii_lowercase());
    }
    let lasting = failing.iter().find(|failing| once && failing.is_lasting())?;
    Some(format!(
        "with --once the fleet would never end, since some servers fail for ever: give --fail {}=PERCENTxTIMES",
        format!("{:?}", lasting.fault).to_ascii_lowercase()
    ))
}

impl FromStr for Failing {
    type Err = Error;

    /// `FAULT=PERCENT` or `FAULT=PERCENTxTIMES`.
    fn from_str(text: &str) -> Result<Failing> {
        let (fault, rest) = text.split_once('=').context("FAULT=PERCENT, such as job=5")?;
        let (percent, times) = match rest.split_once('x') {
            Some((percent, times)) => (percent, Some(times.parse().context("a number of times")?)),
            None => (rest, None),
        };
        let (whole, part) = percent.split_once('.').unwrap_or((percent, "0"));
        let (whole, part) = (whole.parse::<u16>(), part.parse::<u16>());
        let (Ok(whole), Ok(part @ 0..=9)) = (whole, part) else {
            bail!("{percent:?} is not a percentage with at most one decimal");
        };
        ensure!(
            whole < 100 || (whole == 100 && part == 0),
            "more than all servers"
        );
        Ok(Failing {
            fault: fault.parse()?,
            per_mille: whole * 10 + part,
            times,
        })
    }
}

/// What goes wrong on one server, and how often it has.
#[derive(Clone, Debug, Default)]
pub struct Luck {
    left: BTreeMap<Fault, u32>,
}

impl Luck {
    /// The luck of server `number`: always the same for the same faults.
    pub fn of(number: u32, failing: &[Failing]) -> Luck {
        let hit = failing.iter().filter(|failing| {
            let name = format!("{:?}", failing.fault);
            hash(number, &name) % 1000 < failing.per_mille
        });
        Luck {
            left: hit
                .map(|failing| (failing.fault, failing.times.unwrap_or(u32::MAX)))
                .collect(),
        }
    }

    /// How often `fault` is going to show; `u32::MAX` is always.
    pub fn times(&self, fault: Fault) -> u32 {
        self.left.get(&fault).copied().unwrap_or(0)
    }

    /// Whether `fault` shows now.
    pub fn strikes(&mut self, fault: Fault) -> bool {
        match self.left.get_mut(&fault) {
            None | Some(0) => false,
            Some(&mut u32::MAX) => true,
            Some(left) => {
                *left -= 1;
                true
            }
        }
    }
}

/// Sixteen bits that look random and are the same in every run.
fn hash(number: u32, purpose: &str) -> u16 {
    // Without keys it is the same in every process.
    let mut hasher = DefaultHasher::new();
    hasher.write(purpose.as_bytes());
    hasher.write(&number.to_le_bytes());
    let [high, low, ..] = hasher.finish().to_be_bytes();
    u16::from_be_bytes([high, low])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_spread_by_a_fifth_and_scale() {
        let times: Vec<_> = (0..200).map(|number| takes(Step::Write, number, 1.0)).collect();
        assert!(
            times
                .iter()
                .all(|time| (48.0..=72.0).contains(&time.as_secs_f64()))
        );
        let (least, most) = (times.iter().min().unwrap(), times.iter().max().unwrap());
        assert!(*most - *least > Duration::from_secs(15));
        assert_eq!(takes(Step::Write, 7, 0.0), Duration::ZERO);
        assert_eq!(takes(Step::Again, 7, 0.0), BREATH);
    }

    #[test]
    fn faults_strike_as_many_servers_and_as_often_as_asked() {
        let failing: Vec<Failing> = ["job=10", "boot=100x2"]
            .map(|text| text.parse().unwrap())
            .to_vec();
        let struck = (0..1000)
            .filter(|number| Luck::of(*number, &failing).strikes(Fault::Job))
            .count();
        assert!((70..130).contains(&struck), "{struck}");
        let mut luck = Luck::of(5, &failing);
        let boots: Vec<_> = (0..3).map(|_| luck.strikes(Fault::Boot)).collect();
        assert_eq!(boots, [true, true, false]);
        assert!(!luck.strikes(Fault::Power));
    }

    #[test]
    fn faults_that_do_not_go_together_are_told() {
        let clash = |words: &[&str], once| {
            let failing: Vec<Failing> = words.iter().map(|word| word.parse().unwrap()).collect();
            clash(&failing, once)
        };
        assert_eq!(clash(&["job=5", "boot=5x1"], false), None);
        assert!(
            clash(&["job=5", "job=10x1"], false)
                .unwrap()
                .contains("--fail job")
        );
        assert_eq!(clash(&["job=5x3", "boot=0"], true), None);
        assert!(
            clash(&["boot=5x1", "inventory=1"], true)
                .unwrap()
                .contains("inventory=PERCENTxTIMES")
        );
    }

    #[test]
    fn what_is_no_fault_is_refused() {
        assert_eq!("power=0.5".parse::<Failing>().unwrap().per_mille, 5);
        for text in [
            "",
            "job",
            "job=",
            "job=101",
            "job=100.1",
            "job=1.25",
            "job=1x",
            "rain=1",
        ] {
            assert!(text.parse::<Failing>().is_err(), "{text}");
        }
    }
}
