//! Power and boot device by plain Redfish (DMTF DSP0266), for the whole family: what is special about virtual media or a vendor's
//! own actions is not needed for either.
//!
//! `http` speaks HTTP, `client` knows who we are there; `model`, `choice`, `boot`, `quirks` and `verdict` decide and are pure.

mod boot;
mod choice;
mod client;
mod http;
mod model;
mod quirks;
mod trust;
mod verdict;

use std::time::Duration;

use client::{Change, Client, Memory, Resource};
use futures::{FutureExt, future::BoxFuture};
use model::{BootState, System};
use muster_proto::{Mac, text::clean};
use quirks::Shape;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{
    Access, Answer, BmcError, Boot, BootDevice, Connection, Done, Identify, Permission, Power, Probe, Reset,
    SystemState, WantedMode,
};

pub use http::{Limits, Means};
pub use trust::Trust;

/// The most NICs that are asked one by one.
const NICS: usize = 8;
/// How long a service may take to list them.
const NICS_WITHIN: Duration = Duration::from_secs(15);

/// How often a change is tried, with the ETag that it is to have each time.
const ATTEMPTS: u32 = 4;

/// One system behind one Redfish service.
pub struct Redfish {
    means: Means,
    memory: Memory,
    /// The access of the last call, with which the session can be ended.
    last: Option<Access>,
}

impl std::fmt::Debug for Redfish {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Redfish")
    }
}

impl Redfish {
    /// Connects when it is asked for something.
    pub fn new(means: Means) -> Redfish {
        Redfish {
            means,
            memory: Memory::default(),
            last: None,
        }
    }

    /// Passes `outcome` on. A BMC that was away may come back as another version of itself, and what one says while it starts may not be
    /// so later.
    fn settled<T>(&mut self, outcome: Result<T, BmcError>) -> Result<T, BmcError> {
        if let Err(
            BmcError::Unreachable { .. }
            | BmcError::Busy { .. }
            | BmcError::Answer { .. }
            | BmcError::NoSystem { .. }
            | BmcError::Credentials { .. }
            | BmcError::Unsupported { .. },
        ) = &outcome
        {
            self.memory.forget_service();
        }
        outcome
    }

    /// One that only reads has no `permission`.
    fn client<'a>(
        &'a mut self,
        access: &'a Access,
        permission: Option<Permission>,
    ) -> Result<Client<'a>, BmcError> {
        self.last = Some(access.clone());
        Client::new(access, &self.means, &mut self.memory, permission)
    }

    async fn look(&mut self, access: &Access) -> Result<Probe, BmcError> {
        let mut client = self.client(access, None)?;
        let (_, system) = system(&mut client, access).await?;
        let mut identity = system.identity;
        if let Some(nics) = &system.nics {
            // Useful to tell machines apart, but many services lack it, or forbid it, or take long: then the rest has to do.
            let macs = timeout(NICS_WITHIN, macs(&mut client, nics)).await;
            identity.macs = match macs {
                Ok(Err(error @ (BmcError::Fenced { .. } | BmcError::Lapsed { .. } | BmcError::Stopped))) => {
                    return Err(error);
                }
                Ok(macs) => macs.ok(),
                Err(_late) => None,
            };
        }
        Ok(Probe {
            state: system.state,
            identity,
        })
    }

    async fn read_power(&mut self, access: &Access) -> Result<SystemState, BmcError> {
        let mut client = self.client(access, None)?;
        system(&mut client, access).await.map(|(_, system)| system.state)
    }

    async fn change_power(
        &mut self,
        access: &Access,
        permission: Permission,
        want: Reset,
    ) -> Result<Done, BmcError> {
        let mut client = self.client(access, Some(permission))?;
        let (resource, system) = system(&mut client, access).await?;
        let mut allowed = system.reset.allowed;
        if let (None, Some(info)) = (&allowed, &system.reset.info) {
            let info = client.advice(info).await?;
            allowed = info.and_then(|info| model::allowed(&info.value, "ResetType"));
        }
        let Some(kind) = choice::reset_type(&system.state.power, want, allowed.as_deref())? else {
            return Ok(Done::Already);
        };
        let target = system.reset.target.unwrap_or_else(|| {
            format!(
                "{}/Actions/ComputerSystem.Reset",
                resource.path.trim_end_matches('/')
            )
        });
        client.act(&target, &json!({ "ResetType": kind })).await?;
        Ok(Done::Accepted)
    }

    async fn arm(&mut self, access: &Access, permission: Permission, want: Boot) -> Result<Done, BmcError> {
        let mut client = self.client(access, Some(permission))?;
        let now = override_of(&mut client, access).await?;
        let others = 1..now.ways.len();
        let first = write(&mut client, access, want, 0, now).await;
        for way in others {
            if !is_refused(&first) {
                break;
            }
            let now = override_of(&mut client, access).await?;
            let outcome = write(&mut client, access, want, way, now).await;
            if !is_refused(&outcome) {
                return outcome;
            }
        }
        first
    }
}

/// Writes the override in one of its ways, `now` being as it was a moment ago.
async fn write(
    client: &mut Client<'_>,
    access: &Access,
    mut want: Boot,
    way: usize,
    mut now: Override,
) -> Result<Done, BmcError> {
    for attempt in 0..ATTEMPTS {
        let Some(place) = now.ways.get(way) else {
            return Err(BmcError::Busy {
                message: "the settings of its next boot are not shown any more".to_owned(),
                retry_after: None,
            });
        };
        let Some(body) = now.to_write(place, want)? else {
            return Ok(Done::Already);
        };
        let etag = place.etag.as_deref();
        let tag = match attempt {
            0 => etag,
            // If-Match compares strongly (RFC 9110 section 13.1.1), so that a weak tag never matches; some send one all the same.
            1 => etag.map(|etag| etag.trim_start_matches("W/")),
            // Some refuse the very tag that they gave. It guards little: what is wanted stands in the body, and is ours alone to say.
            2 => Some("*"),
            _ => None,
        };
        let told = client.change(&place.path, &body, tag).await;
        let is_optional = matches!(want.mode, WantedMode::Preferred(_)) && boot::has_mode(&body);
        match told {
            Ok(Change::Taken) => {
                client.memory().taken = Some((place.path.clone(), place.shape));
                return Ok(Done::Accepted);
            }
            Ok(Change::Mismatch) => {}
            Ok(Change::LeftOut(error)) => {
                now = override_of(client, access).await?;
                // What was so already need not be taken.
                if let Some(place) = now.ways.get(way)
                    && boot::patch(&place.written, want, place.shape)?.is_none()
                {
                    return Ok(Done::Accepted);
                }
                if !is_optional {
                    return Err(error);
                }
                want.mode = WantedMode::Any;
                continue;
            }
            // Of the last way it is no verdict that this one is not known.
            Err(BmcError::Refused { .. } | BmcError::Unsupported { .. }) if tag == Some("*") => {}
            // Some list a mode, and take it from nobody.
            Err(BmcError::Refused { .. } | BmcError::Unsupported { .. }) if is_optional => {
                want.mode = WantedMode::Any;
            }
            Err(error) => return Err(error),
        }
        now = override_of(client, access).await?;
    }
    Err(BmcError::Busy {
        message: "the BMC accepts the boot override neither with the ETag that it gave nor without one"
            .to_owned(),
        retry_after: None,
    })
}

/// True if the BMC does not take it so, and may in another way.
fn is_refused(outcome: &Result<Done, BmcError>) -> bool {
    matches!(
        outcome,
        Err(BmcError::Refused { .. } | BmcError::Unsupported { .. })
    )
}

/// The system that is meant, and its resource.
async fn system(client: &mut Client<'_>, access: &Access) -> Result<(Resource, System), BmcError> {
    if let Some(path) = &access.address.system {
        return system_at(client, path.clone()).await;
    }
    if let Some(path) = client.memory().system.clone() {
        match system_at(client, path).await {
            Err(BmcError::NoSystem { .. }) => client.memory().system = None,
            found => return found,
        }
    }
    let path = the_only_system(client).await?;
    let found = system_at(client, path.clone()).await?;
    client.memory().system = Some(path);
    Ok(found)
}

async fn system_at(client: &mut Client<'_>, path: String) -> Result<(Resource, System), BmcError> {
    let resource = client.find(&path).await?;
    let system = resource.and_then(|resource| System::read(&resource.value).map(|system| (resource, system)));
    match system {
        Some(found) => Ok(found),
        None => Err(BmcError::NoSystem {
            path: clean(path.as_bytes()),
        }),
    }
}

async fn the_only_system(client: &mut Client<'_>) -> Result<String, BmcError> {
    let Some(collection) = client.root().await?.systems else {
        return Err(BmcError::NoSystem {
            path: "at all".to_owned(),
        });
    };
    let mut paths = model::members(&client.get(&collection).await?.value);
    match paths.len() {
        0 => Err(BmcError::NoSystem { path: collection }),
        1 => Ok(paths.remove(0)),
        _ => Err(BmcError::SeveralSystems {
            paths: paths.iter().take(3).map(|path| clean(path.as_bytes())).collect(),
        }),
    }
}

/// A system's boot override.
struct Override {
    in_force: BootState,
    /// How it can be written, in the order in which that is tried.
    ways: Vec<Way>,
}

/// One way to write it.
struct Way {
    /// What stands where it is written, with what may be chosen.
    written: BootState,
    path: String,
    etag: Option<String>,
    shape: Shape,
}

impl Override {
    /// What is to be written in this `way` so that the system boots what is wanted; none: it is armed so.
    fn to_write(&self, way: &Way, want: Boot) -> Result<Option<Value>, BmcError> {
        let body = boot::patch(&way.written, want, way.shape)?;
        if body.is_some() || boot::patch(&self.in_force, want, way.shape)?.is_none() {
            return Ok(body);
        }
        // What was written into the settings may have been used up, and stand there still: what is in force tells.
        let used_up = BootState {
            target: None,
            enabled: Some(String::new()),
            ..way.written.clone()
        };
        boot::patch(&used_up, want, way.shape)
    }
}

/// The override of the system that is meant. It is written to the system's settings, if they have it: some have other things of the boot
/// there (Dell's iDRAC 9 its order). Some show it in both places, and take it in one: what is refused there is written to the system.
async fn override_of(client: &mut Client<'_>, access: &Access) -> Result<Override, BmcError> {
    let (resource, system) = system(client, access).await?;
    let settings = match &system.settings {
        Some(settings) => client.advice(settings).await?,
        None => None,
    };
    let settings = settings.filter(|found| BootState::is_in(&found.value));
    let makers = client.root().await?.makers;
    let makers = makers.iter().map(String::as_str);
    let shapes = quirks::shapes(makers.chain(system.identity.manufacturer.as_deref()));
    let in_force = system.boot;
    let mut ways = Vec::new();
    for found in settings.into_iter().chain([resource]) {
        // Where nothing waits in the settings, what is in force stays; and what may be chosen often stands beside that.
        let written = BootState::read(&found.value).or(in_force.clone());
        ways.extend(shapes.iter().map(|shape| Way {
            written: written.clone(),
            path: found.path.clone(),
            etag: found.etag.clone(),
            shape: *shape,
        }));
    }
    // What it took last is tried first: each way that it refuses costs three requests.
    let taken = client.memory().taken.as_ref();
    ways.sort_by_key(|way| taken.is_none_or(|(path, shape)| (path, *shape) != (&way.path, way.shape)));
    Ok(Override { in_force, ways })
}

async fn macs(client: &mut Client<'_>, collection: &str) -> Result<Vec<Mac>, BmcError> {
    let expand = client.root().await?.expands;
    let query = if expand && !collection.contains('?') {
        "?$expand=."
    } else {
        ""
    };
    let listed = client.get(&format!("{collection}{query}")).await?.value;
    let members = listed.get("Members").and_then(|members| members.as_array());
    let whole = members.into_iter().flatten();
    let mut macs: Vec<Mac> = whole.filter_map(model::mac).collect();
    if macs.is_empty() {
        let members = model::members(&listed);
        drop(listed);
        for nic in members.iter().take(NICS) {
            let nic = client.find(nic).await?;
            macs.extend(nic.and_then(|nic| model::mac(&nic.value)));
        }
    }
    macs.sort();
    macs.dedup();
    Ok(macs)
}

impl Power for Redfish {
    fn power<'a>(&'a mut self, access: &'a Access) -> Answer<'a, SystemState> {
        async move {
            let outcome = self.read_power(access).await;
            self.settled(outcome)
        }
        .boxed()
    }

    fn reset<'a>(&'a mut self, access: &'a Access, permission: Permission, reset: Reset) -> Answer<'a, Done> {
        async move {
            let outcome = self.change_power(access, permission, reset).await;
            self.settled(outcome)
        }
        .boxed()
    }
}

impl BootDevice for Redfish {
    fn set_boot<'a>(
        &'a mut self,
        access: &'a Access,
        permission: Permission,
        boot: Boot,
    ) -> Answer<'a, Done> {
        async move {
            let outcome = self.arm(access, permission, boot).await;
            self.settled(outcome)
        }
        .boxed()
    }
}

impl Identify for Redfish {
    fn probe<'a>(&'a mut self, access: &'a Access) -> Answer<'a, Probe> {
        async move {
            let outcome = self.look(access).await;
            self.settled(outcome)
        }
        .boxed()
    }
}

impl Connection for Redfish {
    fn power(&mut self) -> &mut dyn Power {
        self
    }

    fn boot_device(&mut self) -> Option<&mut dyn BootDevice> {
        Some(self)
    }

    fn identify(&mut self) -> Option<&mut dyn Identify> {
        Some(self)
    }

    fn close(&mut self) -> BoxFuture<'_, ()> {
        async move {
            let Some(access) = self.last.take() else { return };
            if let Ok(mut client) = Client::new(&access, &self.means, &mut self.memory, None) {
                client.close().await;
            }
        }
        .boxed()
    }
}
