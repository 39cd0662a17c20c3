//! The Secrets that a host names: for what, whether they are there, and what becomes of them. Pure.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::api::core::v1::SecretReference;
use muster_proto::kinds::{
    BareMetalHost, BareMetalHostSpec, BmcDetails, CredentialsStatus, OperationalStatus, Session,
};

use super::{
    access, conditions,
    draft::{Draft, clause},
    observed::{SecretSeen, SecretState},
    plan::{Drive, Effect, Hold},
    secret_content::{LARGEST_DRIVE, Use},
};

/// Whether all that goes on the config drive is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Inputs {
    /// It is.
    Ready,
    /// Something could not be asked for.
    Wait(String),
    /// Something is missing or wrong.
    Bad(String),
    /// The session may not have it.
    Untrusted(String),
}

/// For what a host names a Secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Credentials of the BMC.
    Bmc,
    /// User data of the config drive.
    UserData,
    /// Network data of the config drive.
    NetworkData,
    /// Metadata of the config drive.
    MetaData,
    /// Network data before there is an image, and of the config drive where it has none of its own.
    Preprovisioning,
}

impl Purpose {
    pub(super) const ALL: [Purpose; 5] = [
        Purpose::Bmc,
        Purpose::UserData,
        Purpose::NetworkData,
        Purpose::MetaData,
        Purpose::Preprovisioning,
    ];

    /// Where the host names it, below `spec`.
    pub(super) fn field(self) -> &'static str {
        match self {
            Purpose::Bmc => "bmc.credentialsName",
            Purpose::UserData => "userData",
            Purpose::NetworkData => "networkData",
            Purpose::MetaData => "metaData",
            Purpose::Preprovisioning => "preprovisioningNetworkDataName",
        }
    }

    /// What it must contain.
    pub(super) fn content(self) -> Use {
        match self {
            Purpose::Bmc => Use::Bmc,
            Purpose::UserData => Use::UserData,
            Purpose::NetworkData | Purpose::Preprovisioning => Use::NetworkData,
            Purpose::MetaData => Use::MetaData,
        }
    }

    /// What it gets beside the label.
    pub(super) fn hold(self) -> Hold {
        match self {
            Purpose::Bmc => Hold::Owned,
            Purpose::Preprovisioning => Hold::Finalizer,
            Purpose::UserData | Purpose::NetworkData | Purpose::MetaData => Hold::Label,
        }
    }

    /// True if what it contains goes on the config drive.
    pub(super) fn is_input(self) -> bool {
        self != Purpose::Bmc
    }

    fn reference(self, spec: &BareMetalHostSpec) -> Option<&SecretReference> {
        match self {
            Purpose::UserData => spec.user_data.as_ref(),
            Purpose::NetworkData => spec.network_data.as_ref(),
            Purpose::MetaData => spec.meta_data.as_ref(),
            Purpose::Bmc | Purpose::Preprovisioning => None,
        }
    }

    /// The name of the Secret that `host` names for this.
    fn name(self, host: &BareMetalHost) -> Option<&str> {
        let name = match self {
            Purpose::Bmc => bmc_secret(host),
            Purpose::Preprovisioning => host.spec.preprovisioning_network_data_name.as_deref(),
            Purpose::UserData | Purpose::NetworkData | Purpose::MetaData => {
                self.reference(&host.spec)?.name.as_deref()
            }
        };
        name.filter(|name| !name.is_empty())
    }
}

/// The Secrets that `host` names.
pub(super) fn named(host: &BareMetalHost) -> impl Iterator<Item = (Purpose, &str)> {
    Purpose::ALL
        .into_iter()
        .filter_map(|purpose| Some((purpose, purpose.name(host)?)))
}

/// Those of the config drive.
fn inputs_of<'a>(draft: &Draft<'a>) -> impl Iterator<Item = (Purpose, &'a str, &'a SecretSeen)> + use<'a> {
    let (host, seen) = (draft.host, &draft.seen.secrets);
    named(host)
        .filter(|(purpose, _)| purpose.is_input())
        .map(|(purpose, name)| (purpose, name, seen.of(purpose)))
}

/// Those of them that are written on it: network data for the ramdisk only where there is none for the operating system.
fn written<'a>(draft: &Draft<'a>) -> impl Iterator<Item = (Purpose, &'a str, &'a SecretSeen)> + use<'a> {
    let is_replaced = Purpose::NetworkData.name(draft.host).is_some();
    inputs_of(draft).filter(move |(purpose, ..)| !(is_replaced && *purpose == Purpose::Preprovisioning))
}

/// Labels what is there, so that its changes are seen.
pub(super) fn hold(draft: &mut Draft<'_>) {
    for (purpose, name, seen) in inputs_of(draft) {
        if seen.state.is_present() && !seen.held {
            draft.effect(Effect::HoldSecret {
                name: name.to_owned(),
                hold: purpose.hold(),
            });
        }
    }
}

/// The name of the Secret that the status speaks of.
pub(super) fn secret_of(credentials: Option<&CredentialsStatus>) -> Option<&str> {
    credentials?.credentials.as_ref()?.name.as_deref()
}

/// The Secret with the BMC's credentials: the one that the spec names, else the one that was tried last, which may still be held.
pub fn bmc_secret(host: &BareMetalHost) -> Option<&str> {
    let named = host.spec.bmc.as_ref().map(|bmc| bmc.credentials_name.as_str());
    let status = host.status.as_ref();
    let tried = status.and_then(|status| {
        let tried = status.tried_credentials.as_ref();
        secret_of(tried.or(status.good_credentials.as_ref()))
    });
    named.filter(|name| !name.is_empty()).or(tried)
}

/// The Secrets whose credentials were tried or good before, as the status says, and which the host does not name any more: they may
/// still be held.
pub(super) fn former_secrets(host: &BareMetalHost) -> BTreeSet<&str> {
    let status = host.status.as_ref();
    let credentials = status.map(|status| [&status.tried_credentials, &status.good_credentials]);
    let names = credentials
        .into_iter()
        .flatten()
        .filter_map(|credentials| secret_of(credentials.as_ref()));
    let named = bmc_secret(host);
    names
        .filter(|name| !name.is_empty() && Some(*name) != named)
        .collect()
}

/// The Secrets that may carry the finalizer for the host.
fn finalized<'a>(draft: &Draft<'a>) -> impl Iterator<Item = (&'a str, &'a SecretSeen)> {
    let secrets = &draft.seen.secrets;
    let now = named(draft.host)
        .filter(|(purpose, _)| purpose.hold() != Hold::Label)
        .map(|(purpose, name)| (name, secrets.of(purpose)));
    now.chain(secrets.former.iter().map(|(name, seen)| (name.as_str(), seen)))
}

/// Which of them could not be read, and why; none: all could.
pub(super) fn unread(draft: &Draft<'_>) -> Option<String> {
    finalized(draft).find_map(|(name, seen)| match &seen.state {
        SecretState::Unreadable(why) => Some(format!("the Secret {name} cannot be read: {why}")),
        _ => None,
    })
}

/// That the Secret with the BMC's credentials is being deleted, and how a person gets out of that; none: it is not, or goes with the host, or
/// with what is done once the host is detached no more.
pub(super) fn going(draft: &Draft<'_>) -> Option<String> {
    let bmc = draft.host.spec.bmc.as_ref()?;
    let is_detached = draft.status.operational_status == OperationalStatus::Detached;
    let is_told = draft.seen.secrets.bmc.going
        && !bmc.credentials_name.is_empty()
        && !draft.is_being_deleted()
        && !is_detached;
    is_told.then(|| {
        format!(
            "{} but is still in use, and no new one can be created under its name; edit it in place, or set spec.bmc.credentialsName to another Secret: this one is released once the BMC accepts the other's credentials",
            is_going(bmc)
        )
    })
}

/// The same, and what was said of it while nobody knows how it is.
pub(super) fn held(draft: &Draft<'_>) -> Option<String> {
    let secret = &draft.seen.secrets.bmc.state;
    let is_unseen = matches!(secret, SecretState::Unreadable(_) | SecretState::Unasked);
    let bmc = draft.host.spec.bmc.as_ref()?;
    let before =
        conditions::secret_held(&draft.old).filter(|says| is_unseen && says.starts_with(&is_going(bmc)));
    going(draft).or_else(|| before.map(str::to_owned))
}

fn is_going(bmc: &BmcDetails) -> String {
    format!("the Secret {} is being deleted", bmc.credentials_name)
}

/// `message` on credentials that others are to take the place of, and that their Secret is being deleted, if it is: what that means and
/// what helps stands in the condition of its own, once.
pub(super) fn with_going(draft: &Draft<'_>, message: String) -> String {
    let bmc = draft.host.spec.bmc.as_ref();
    match bmc.filter(|_| going(draft).is_some()) {
        Some(bmc) => format!(
            "{}; {} (see the condition {})",
            clause(&message),
            is_going(bmc),
            conditions::SECRET_HELD
        ),
        None => message,
    }
}

/// Lets go of every Secret that carries the finalizer. True if there was one.
pub(super) fn release(draft: &mut Draft<'_>) -> bool {
    let held = finalized(draft).filter(|(_, seen)| seen.finalizer);
    let names: BTreeSet<&str> = held.map(|(name, _)| name).collect();
    for name in &names {
        draft.effect(Effect::ReleaseSecret {
            name: (*name).to_owned(),
            disown: draft.seen.secrets.former.iter().any(|(former, _)| former == name),
        });
    }
    !names.is_empty()
}

/// Lets go of the Secrets that the host named before, but for `good`, before the status forgets them. True while that is on its way.
pub(super) fn release_former(draft: &mut Draft<'_>, good: Option<&str>) -> bool {
    let former = draft.seen.secrets.former.iter();
    let held = former.filter(|(name, seen)| seen.finalizer && Some(name.as_str()) != good);
    let names: Vec<String> = held.map(|(name, _)| name.clone()).collect();
    let any = !names.is_empty();
    for name in names {
        draft.why(format!(
            "releases the Secret {name}, which the host no longer names"
        ));
        draft.effect(Effect::ReleaseSecret { name, disown: true });
    }
    if any {
        draft.keep_wait();
        draft.again(Duration::ZERO);
    }
    any
}

/// What the Secret `name`, which is named for `purpose`, is called where something is wrong with it.
pub(super) fn called(purpose: Purpose, name: &str) -> String {
    format!("the Secret {name} of spec.{}", purpose.field())
}

/// Whether all that the config drive is made of is there, and the session, if it is, may have it.
pub(super) fn inputs(draft: &Draft<'_>) -> Inputs {
    for purpose in Purpose::ALL {
        let reference = purpose.reference(&draft.host.spec);
        let elsewhere = reference
            .and_then(|reference| reference.namespace.as_ref())
            .filter(|name| !name.is_empty() && Some(*name) != draft.host.metadata.namespace.as_ref());
        if let Some(namespace) = elsewhere {
            return Inputs::Bad(format!(
                "spec.{} names a Secret in the namespace {namespace}, but only Secrets in the host's own namespace are allowed",
                purpose.field()
            ));
        }
    }
    for (purpose, name, seen) in written(draft) {
        let of = called(purpose, name);
        match &seen.state {
            SecretState::Present { .. } => {}
            SecretState::Missing | SecretState::Unnamed => {
                return Inputs::Bad(format!(
                    "{of} does not exist; next: create it with the key {}, or correct spec.{}",
                    purpose.content().name(),
                    purpose.field()
                ));
            }
            SecretState::Invalid(why) => return Inputs::Bad(format!("{of} cannot be used: {why}")),
            SecretState::Unasked => return Inputs::Wait(format!("{of} has not been read yet")),
            SecretState::Unreadable(why) => return Inputs::Wait(format!("{of} cannot be read: {why}")),
        }
    }
    let bytes = drive_bytes(draft);
    if bytes > LARGEST_DRIVE {
        return Inputs::Bad(format!(
            "the config drive is too large: user data, metadata and network data take {bytes} bytes as sent to the agent, and the limit is {LARGEST_DRIVE}; make them smaller, or have the machine download them"
        ));
    }
    let session = draft.session();
    match session.map(|(_, session)| drive(draft, session)) {
        Some(Err(missing)) => Inputs::Untrusted(missing),
        Some(Ok(_)) | None => Inputs::Ready,
    }
}

/// What of the meta data is ours: at most six names of 253 bytes, with their keys.
const OF_OURS: usize = 2 << 10;

/// How large the config drive is at most, in bytes of JSON.
fn drive_bytes(draft: &Draft<'_>) -> usize {
    let bytes = |seen: &SecretSeen| match &seen.state {
        SecretState::Present { bytes, .. } => *bytes,
        _ => 0,
    };
    OF_OURS + written(draft).map(|(.., seen)| bytes(seen)).sum::<usize>()
}

/// What goes on the config drive and whom it is sealed to; none: the agent is too old to be given one, and nothing is lost with
/// it. An error says why the session may not have what the host names.
pub(super) fn drive(draft: &Draft<'_>, session: &Session) -> Result<Option<Drive>, String> {
    let secret = written(draft).next().is_some();
    if secret {
        access::may_have_secrets(draft, session)?;
    }
    if session.seal_key.is_empty() {
        return match secret {
            true => Err("the agent is too old to receive user data: reboot the machine".to_owned()),
            false => Ok(None),
        };
    }
    let name = |purpose: Purpose| purpose.name(draft.host).map(str::to_owned);
    let host = draft.host.metadata.name.clone().unwrap_or_default();
    let namespace = draft.host.metadata.namespace.clone().unwrap_or_default();
    Ok(Some(Drive {
        meta_data: vec![
            ("uuid", draft.uid().to_owned()),
            ("metal3-namespace", namespace),
            ("metal3-name", host.clone()),
            ("local-hostname", host.clone()),
            ("local_hostname", host.clone()),
            ("name", host),
        ],
        meta_data_secret: name(Purpose::MetaData),
        network_data_secret: name(Purpose::NetworkData).or_else(|| name(Purpose::Preprovisioning)),
        user_data_secret: name(Purpose::UserData),
        seal_key: session.seal_key.clone(),
    }))
}
