//! The BMC's side of a plan: what the driver is asked, and what is remembered of the answer.

use std::{collections::BTreeSet, sync::Arc};

use futures::{FutureExt, future::BoxFuture};
use jiff::Timestamp;
use muster_proto::kinds::BareMetalHost;

use super::{
    execute::Executor,
    observed::{self, Failure, FailureClass, PowerReading, Probed, Tried},
    owner::has_bmc,
    plan::{BmcCall, PowerOrder},
    vault::Vault,
};
use crate::{
    bmc::{self, Boot, Device, Done, Lasting, PowerState, Reset, SystemState},
    path::Path,
};

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The answer to a call.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, bmc::BmcError>>;

/// All BMCs: what the loop needs of them. Every call ends by itself, in time.
pub trait Bmcs: Send + Sync {
    /// Logs in, and finds the system. Proves address, certificate and credentials.
    fn probe<'a>(&'a self, access: &'a bmc::Access) -> Answer<'a, bmc::Probe>;
    /// Asks for power and health.
    fn power<'a>(&'a self, access: &'a bmc::Access) -> Answer<'a, SystemState>;
    /// Changes the power.
    fn set_power<'a>(&'a self, access: &'a bmc::Access, term: bmc::Term, reset: Reset) -> Answer<'a, Done>;
    /// Arms a boot device.
    fn set_boot<'a>(&'a self, access: &'a bmc::Access, term: bmc::Term, boot: Boot) -> Answer<'a, Done>;
    /// The host is gone, or not ours any more: logs out.
    fn forget<'a>(&'a self, host: &'a bmc::HostRef) -> BoxFuture<'a, ()>;
    /// The hosts with these UIDs are all that there are: logs out for the others.
    fn retain<'a>(&'a self, uids: &'a BTreeSet<String>) -> BoxFuture<'a, ()>;
    /// Nothing that was decided before `epoch` changes anything from now on.
    fn fence(&self, epoch: bmc::Epoch);
}

impl Bmcs for bmc::Bmcs {
    fn probe<'a>(&'a self, access: &'a bmc::Access) -> Answer<'a, bmc::Probe> {
        self.probe(access).boxed()
    }

    fn power<'a>(&'a self, access: &'a bmc::Access) -> Answer<'a, SystemState> {
        self.power(access).boxed()
    }

    fn set_power<'a>(&'a self, access: &'a bmc::Access, term: bmc::Term, reset: Reset) -> Answer<'a, Done> {
        self.set_power(access, term, reset).boxed()
    }

    fn set_boot<'a>(&'a self, access: &'a bmc::Access, term: bmc::Term, boot: Boot) -> Answer<'a, Done> {
        self.set_boot(access, term, boot).boxed()
    }

    fn forget<'a>(&'a self, host: &'a bmc::HostRef) -> BoxFuture<'a, ()> {
        self.forget(host).boxed()
    }

    fn retain<'a>(&'a self, uids: &'a BTreeSet<String>) -> BoxFuture<'a, ()> {
        self.retain(uids).boxed()
    }

    fn fence(&self, epoch: bmc::Epoch) {
        self.fence(epoch);
    }
}

/// What came of a call, to be remembered.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum News {
    /// A probe, with the power that was read on the way.
    Probed(Box<Probed>, Option<PowerReading>),
    /// The power.
    Power(Result<PowerReading, Failure>),
    /// An effect.
    Tried(Tried),
    /// Nothing is remembered any more.
    Forgotten,
}

impl News {
    /// True if it failed, so that what was to follow does not.
    pub(super) fn is_failure(&self) -> bool {
        match self {
            News::Probed(probed, _) => probed.result.is_err(),
            News::Power(result) => result.is_err(),
            News::Tried(tried) => tried.result.is_err(),
            News::Forgotten => false,
        }
    }

    /// Into memory.
    pub(super) fn remember(self, bmc: &mut observed::Bmc, tried: &mut Option<Tried>) {
        match self {
            News::Probed(mut probed, power) => {
                let before = bmc
                    .probed
                    .as_ref()
                    .filter(|before| before.access == probed.access);
                match before {
                    Some(before) => probed.accepted |= before.accepted,
                    // What another BMC said or did, or this one for somebody else, says nothing of this one.
                    None => {
                        let address = bmc.probed.as_ref().map(|before| &before.access.address);
                        if address.is_some_and(|before| *before != probed.access.address) {
                            *tried = None;
                        }
                        *bmc = observed::Bmc::default();
                    }
                }
                bmc.probed = Some(*probed);
                if let Some(power) = power {
                    read(bmc, Ok(power));
                }
            }
            News::Power(power) => read(bmc, power),
            News::Tried(new) => {
                if new.on_power {
                    bmc.power = None;
                }
                *tried = Some(new);
            }
            News::Forgotten => {
                *bmc = observed::Bmc::default();
                *tried = None;
            }
        }
    }
}

fn read(bmc: &mut observed::Bmc, power: Result<PowerReading, Failure>) {
    match power {
        Ok(reading) => {
            bmc.power = Some(reading);
            bmc.unread = None;
        }
        Err(failure) => {
            // It let us in once and does not any more: asking as before might lock the account.
            if failure.class == FailureClass::Credentials
                && let Some(probed) = &mut bmc.probed
            {
                probed.at = failure.at;
                probed.result = Err(failure.clone());
            }
            bmc.unread = Some(failure);
        }
    }
}

/// This process must not act any more: nothing is remembered, for nothing was learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Over;

/// What failed, before it has its time.
type Fault = (FailureClass, String);

/// Makes `call` to the BMC of `host`. The clock is asked when the answer is there.
pub(super) async fn call(executor: &Executor, host: &BareMetalHost, call: &BmcCall) -> Result<News, Over> {
    let Executor {
        bmcs,
        vault,
        term,
        clock,
        ..
    } = executor;
    let lasting = || {
        let term = term.clone();
        bmc::Term::new(term.epoch(), move || term.still())
    };
    match call {
        BmcCall::Probe(wanted) => {
            let answer = match access(vault, host, Some(&wanted.credentials)).await {
                Ok(access) => settled(bmcs.probe(&access).await)?,
                Err(fault) => Err(fault),
            };
            let at = clock();
            let (result, power, mut identity) = match answer {
                Ok(probe) => (Ok(()), Some(reading(&probe.state, at)), probe.identity),
                Err(fault) => (Err(failed(fault, at)), None, bmc::Identity::default()),
            };
            // Tells no machine from another.
            (identity.manufacturer, identity.model) = (None, None);
            let probed = Probed {
                access: wanted.clone(),
                at,
                accepted: result.is_ok(),
                result,
                identity,
            };
            Ok(News::Probed(Box::new(probed), power))
        }
        BmcCall::BootNetworkOnce { operation, mode } => {
            let boot = Boot {
                device: Device::Pxe,
                mode: *mode,
                lasting: Lasting::Once,
            };
            let answer = match access(vault, host, None).await {
                Ok(access) => settled(bmcs.set_boot(&access, lasting(), boot).await)?,
                Err(fault) => Err(fault),
            };
            Ok(News::Tried(tried(operation, false, answer, clock())))
        }
        BmcCall::Power { operation, order } => {
            let reset = match order {
                PowerOrder::On => Reset::On,
                PowerOrder::SoftOff => Reset::GracefulShutdown,
                PowerOrder::HardOff => Reset::ForceOff,
                PowerOrder::SoftReset => Reset::GracefulRestart,
                PowerOrder::Reset => Reset::ForceRestart,
            };
            let answer = match access(vault, host, None).await {
                Ok(access) => settled(bmcs.set_power(&access, lasting(), reset).await)?,
                Err(fault) => Err(fault),
            };
            Ok(News::Tried(tried(operation, true, answer, clock())))
        }
        BmcCall::Forget => {
            bmcs.forget(&reference(host)).await;
            Ok(News::Forgotten)
        }
        BmcCall::ReadPower => {
            let answer = match access(vault, host, None).await {
                Ok(access) => settled(bmcs.power(&access).await)?,
                Err(fault) => Err(fault),
            };
            let at = clock();
            Ok(News::Power(
                answer
                    .map(|state| reading(&state, at))
                    .map_err(|fault| failed(fault, at)),
            ))
        }
    }
}

fn reading(state: &SystemState, at: Timestamp) -> PowerReading {
    let power = match state.power {
        // Until it is off, it is on: an operating system may take its time, or stay.
        PowerState::On | PowerState::PoweringOn | PowerState::PoweringOff => observed::Power::On,
        PowerState::Off => observed::Power::Off,
        PowerState::Unknown { .. } => observed::Power::Unknown,
    };
    PowerReading {
        power,
        health: state.health,
        at,
    }
}

fn tried(operation: &str, on_power: bool, answer: Result<Done, Fault>, at: Timestamp) -> Tried {
    Tried {
        operation: operation.to_owned(),
        at,
        on_power,
        result: answer.map(drop).map_err(|fault| failed(fault, at)),
    }
}

fn failed((class, message): Fault, at: Timestamp) -> Failure {
    Failure { class, message, at }
}

/// The way into the BMC, as the spec and the Secret have it now; with `content`, only if the Secret's is still that.
async fn access(vault: &Vault, host: &BareMetalHost, content: Option<&str>) -> Result<bmc::Access, Fault> {
    let wrong = |why: String| (FailureClass::Address, why);
    let spec = host.spec.bmc.as_ref().filter(|_| has_bmc(host));
    let spec = spec.ok_or_else(|| wrong("the host has no BMC".to_owned()))?;
    let address: bmc::Address = spec
        .address
        .parse()
        .map_err(|error: bmc::AddressError| wrong(error.to_string()))?;
    address.driver().map_err(|error| wrong(error.to_string()))?;
    let secret = Path::beside(host, &spec.credentials_name);
    // Between looking and acting: it is looked at again, and then this access is not the host's any more.
    let changed = "the Secret with its credentials has changed in the meantime";
    let login = vault.login(&secret, content).await;
    Ok(bmc::Access {
        host: reference(host),
        address,
        credentials: login.ok_or_else(|| (FailureClass::Unreachable, changed.to_owned()))?,
        verify: bmc::Verify::from_spec(spec.disable_certificate_verification),
    })
}

pub(super) fn reference(host: &BareMetalHost) -> bmc::HostRef {
    let Path { namespace, name } = Path::of(host);
    bmc::HostRef {
        namespace,
        name,
        uid: host.metadata.uid.clone().unwrap_or_default(),
    }
}

/// What a driver's error means to the decision.
fn settled<T>(result: Result<T, bmc::BmcError>) -> Result<Result<T, Fault>, Over> {
    use bmc::BmcError;
    let error = match result {
        Ok(value) => return Ok(Ok(value)),
        Err(error) => error,
    };
    let class = match &error {
        BmcError::Credentials { .. } => FailureClass::Credentials,
        BmcError::Untrusted { .. } => FailureClass::Certificate,
        BmcError::Unreachable { .. } => FailureClass::Unreachable,
        BmcError::Busy { .. } => FailureClass::Busy,
        BmcError::Unsupported { .. } => FailureClass::Unsupported,
        BmcError::NoSystem { .. } | BmcError::SeveralSystems { .. } => FailureClass::System,
        BmcError::Refused { .. } | BmcError::Answer { .. } => FailureClass::Refused,
        BmcError::Fenced { .. } | BmcError::Lapsed { .. } | BmcError::Stopped => return Err(Over),
    };
    Ok(Err((class, error.to_string())))
}
