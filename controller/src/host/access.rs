//! How a machine is reached: by its BMC, or through its ramdisk. Done in every state but the first two and the last: a process that
//! has just begun knows nothing of a BMC, whatever the host's state. Pure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::SecretReference;
use muster_proto::kinds::{
    BareMetalHost, BmcDetails, CredentialsStatus, ErrorType, IN_BAND_ANNOTATION, IN_BAND_SEGMENT, Segment,
    Session, Trust,
};

use super::{
    State, WaitReason, bmc_identity,
    draft::{Draft, HoldOff, and_next, bounded, clause},
    observed::{Access, Failure, FailureClass, Power, Probed, SecretState},
    owner::{has_bmc, opt_in},
    plan::{BmcCall, Effect, HOLD_SECRET, Hold},
    ramdisk::{self, BOOT_DEADLINE},
    registration, secrets,
};
use crate::bmc::Address;
use crate::time::whole_seconds;

/// By which way a machine is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// By its BMC, which has answered.
    Bmc,
    /// It has a BMC, which was asked and did not answer.
    Silent(Failure),
    /// Through its ramdisk alone.
    InBand,
    /// Not yet, or not at all; the draft says why.
    No,
}

/// How long until something that may appear by itself is looked for again.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// How long a BMC that did not answer is left alone.
pub(super) const ASK_AGAIN: SignedDuration = SignedDuration::from_secs(60);
/// An answer that is younger than this is that to the attempt that is made: the next one comes after a minute at the earliest.
const OF_THIS_ATTEMPT: SignedDuration = SignedDuration::from_secs(30);
/// How long one is left alone that refuses what it took before, such as while it starts: seldom enough to lock no account.
const ASK_LATER: SignedDuration = SignedDuration::from_mins(10);
/// The same for one that never took them: they are wrong, most likely.
const ASK_SELDOM: SignedDuration = SignedDuration::from_hours(1);

/// Why nothing can ever be done with the machine as things are, so that a deletion need not wait for it; none: something may.
pub(super) fn hopeless(draft: &Draft<'_>) -> Option<String> {
    if !has_bmc(draft.host) {
        return opt_in(draft.host)
            .is_none()
            .then(|| format!("the host has neither a BMC nor the annotation {IN_BAND_ANNOTATION}"));
    }
    let bmc = draft.host.spec.bmc.as_ref()?;
    lacking(bmc).or_else(|| match &draft.seen.secrets.bmc.state {
        SecretState::Missing | SecretState::Unnamed => Some(no_secret(&bmc.credentials_name)),
        SecretState::Invalid(why) => Some(bad_secret(&bmc.credentials_name, why)),
        SecretState::Present { .. } | SecretState::Unasked | SecretState::Unreadable(_) => None,
    })
}

/// What of `bmc` is to be there and is not.
fn lacking(bmc: &BmcDetails) -> Option<String> {
    let fields = [
        ("address", &bmc.address),
        ("credentialsName", &bmc.credentials_name),
    ];
    let (what, _) = fields.into_iter().find(|(_, value)| value.is_empty())?;
    Some(format!("spec.bmc.{what} is missing"))
}

fn no_secret(name: &str) -> String {
    format!("the Secret {name} with the BMC's credentials does not exist")
}

fn bad_secret(name: &str, why: &str) -> String {
    format!("the Secret {name} with the BMC's credentials cannot be used: {why}")
}

/// Why there will be no way to the machine unless somebody mends what the host says of it, which nobody does for a host that goes; none:
/// there may be one.
pub(super) fn is_to_be_mended(draft: &Draft<'_>) -> Option<String> {
    if draft.status.error_type == Some(ErrorType::Registration) {
        return Some(draft.status.error_message.clone());
    }
    let unread = secrets::unread(draft)?;
    draft.waited(WaitReason::Inputs, BOOT_DEADLINE).then_some(unread)
}

/// Makes sure of the way to the machine.
pub(super) fn ensure(draft: &mut Draft<'_>) -> Reach {
    if !has_bmc(draft.host) {
        return in_band(draft);
    }
    let Some((name, access)) = access(draft) else {
        return Reach::No;
    };
    // What goes is marked no more: no mark that is refused is to hold it up.
    let is_marked = draft.seen.secrets.bmc.held || draft.is_being_deleted();
    if !is_marked && !marks(draft, &name) {
        return Reach::No;
    }
    let probed = draft.seen.bmc.probed.as_ref();
    match probed.filter(|probed| probed.access == access) {
        None => {
            let good = secrets::secret_of(draft.old.good_credentials.as_ref()).map(str::to_owned);
            if secrets::release_former(draft, good.as_deref()) {
                return Reach::No;
            }
            try_credentials(draft, &name);
            draft.call(BmcCall::Probe(access));
            if draft.state == State::Registering {
                draft.clear_error();
                draft.wait_for(WaitReason::Bmc, asks(draft.host));
            } else {
                // Asked again after a start: nothing has changed as far as anybody can see.
                draft.keep_wait();
            }
            draft.why("asks the BMC");
            Reach::No
        }
        Some(Probed {
            result: Ok(()),
            at,
            identity,
            ..
        }) => {
            let doubt =
                bmc_identity::anothers(draft, identity).or_else(|| bmc_identity::shared(draft, identity));
            if let Some(why) = doubt {
                let message = format!("BMC {}: {why}", shown(&access.address));
                draft.refuse(ErrorType::Registration, message);
                // It may be another one tomorrow, of which nobody tells us.
                ask_again(draft, *at, access, ASK_AGAIN);
                return Reach::No;
            }
            if secrets::release_former(draft, None) {
                return Reach::No;
            }
            good_credentials(draft, &name);
            forget(draft);
            draft.reached = true;
            Reach::Bmc
        }
        Some(Probed {
            result: Err(failure), ..
        }) => unanswered(draft, failure, access),
    }
}

/// Marks the Secret `name` with the BMC's credentials. False: the API server refuses that so far, and with it all that comes after it; the
/// draft says so.
fn marks(draft: &mut Draft<'_>, name: &str) -> bool {
    // Another write that is refused says nothing of this one.
    let refused = draft.seen.refused.as_ref();
    let Some(refused) = refused.filter(|refused| refused.step == Some(HOLD_SECRET)) else {
        hold(draft, name);
        return true;
    };
    if draft.state == State::Registering {
        // As with every new attempt.
        draft.clear_error();
    }
    let message = format!(
        "waits for the Secret {name} to be marked: {}",
        bounded(&refused.why)
    );
    draft.wait_for(WaitReason::Refused, and_next(&message, "the BMC is asked"));
    bring_in(draft, name);
    false
}

/// The access as the spec and the Secret have it; none without one of them.
fn wanted(draft: &Draft<'_>) -> Option<Access> {
    let bmc = draft.host.spec.bmc.as_ref()?;
    match &draft.seen.secrets.bmc.state {
        SecretState::Present { content, .. } => Some(Access {
            address: bmc.address.clone(),
            insecure: bmc.disable_certificate_verification == Some(true),
            credentials: content.clone(),
        }),
        _ => None,
    }
}

/// The Secret's name and the access as the host has it; none: it has none, and the draft says why.
fn access(draft: &mut Draft<'_>) -> Option<(String, Access)> {
    let bmc = draft.host.spec.bmc.clone().unwrap_or_default();
    if let Some(why) = lacking(&bmc) {
        unusable(draft, why);
        return None;
    }
    let name = bmc.credentials_name;
    if let Some(access) = wanted(draft) {
        return Some((name, access));
    }
    match &draft.seen.secrets.bmc.state {
        SecretState::Present { .. } => {}
        SecretState::Missing | SecretState::Unnamed => {
            let helps = "create it with the keys username and password, or correct spec.bmc.credentialsName";
            unusable(draft, and_next(&no_secret(&name), helps));
            draft.again(LOOK_AGAIN);
        }
        SecretState::Unasked => {
            draft.keep_wait();
            bring_in(draft, &name);
        }
        SecretState::Unreadable(why) => {
            let why = format!("the Secret {name} with the BMC's credentials cannot be read: {why}");
            draft.wait_for(WaitReason::Inputs, and_next(&why, "retrying"));
            draft.again(LOOK_AGAIN);
        }
        SecretState::Invalid(why) => {
            let message = secrets::with_going(draft, bad_secret(&name, why));
            unusable(draft, message);
            // Nobody watches one that is not marked.
            if !draft.seen.secrets.bmc.held {
                draft.again(LOOK_AGAIN);
            }
        }
    }
    None
}

/// What the host says of its BMC cannot be used: the same error as that of a BMC that refuses, with an Event of its own.
fn unusable(draft: &mut Draft<'_>, message: String) {
    draft.refuse_as("BMCCredentialError", ErrorType::Registration, message);
}

/// The Secret that the host names, if it has a BMC.
fn credentials_name(draft: &Draft<'_>) -> Option<String> {
    let bmc = draft.host.spec.bmc.as_ref()?;
    Some(bmc.credentials_name.clone())
}

fn reference(draft: &Draft<'_>, name: &str) -> CredentialsStatus {
    let version = match &draft.seen.secrets.bmc.state {
        SecretState::Present { version, .. } => Some(version.clone()),
        _ => None,
    };
    CredentialsStatus {
        credentials: Some(SecretReference {
            name: Some(name.to_owned()),
            namespace: draft.host.metadata.namespace.clone(),
        }),
        credentials_version: version,
    }
}

/// Marks the Secret with the BMC's credentials, which nobody has asked for yet, as upstream does: the same request tells what is in it.
/// True if it is to be waited for.
pub(super) fn awaits_secret(draft: &mut Draft<'_>) -> bool {
    let name = credentials_name(draft);
    match name.filter(|_| draft.seen.secrets.bmc.state == SecretState::Unasked) {
        Some(name) => {
            bring_in(draft, &name);
            // Unless there is something else to tell.
            draft.untold = draft.status == draft.old;
            true
        }
        None => false,
    }
}

fn hold(draft: &mut Draft<'_>, name: &str) {
    draft.effect(Effect::HoldSecret {
        name: name.to_owned(),
        hold: Hold::Owned,
    });
}

fn bring_in(draft: &mut Draft<'_>, name: &str) {
    hold(draft, name);
    draft.why(format!("marks the Secret {name}"));
    draft.again(Duration::ZERO);
}

/// What a host that is registered waits for.
fn asks(host: &BareMetalHost) -> &'static str {
    match registration::leads_to(host) {
        State::ExternallyProvisioned => {
            "waits for the BMC to answer; next: the host is externally provisioned, and only its power is managed"
        }
        State::Preparing => "waits for the BMC to answer; next: the host is prepared without inspection",
        _ => "waits for the BMC to answer; next: the host is inspected",
    }
}

/// Says beforehand, with the state that needs it, that the BMC will be asked: one write instead of two.
pub(super) fn announce(draft: &mut Draft<'_>) {
    let Some(name) = credentials_name(draft) else {
        return;
    };
    match draft.seen.secrets.bmc.state {
        SecretState::Missing | SecretState::Unnamed => {}
        SecretState::Present { .. } => {
            try_credentials(draft, &name);
            draft.wait_for(WaitReason::Bmc, asks(draft.host));
        }
        // It was marked, whatever is in it.
        SecretState::Invalid(_) | SecretState::Unasked | SecretState::Unreadable(_) => {
            try_credentials(draft, &name);
        }
    }
}

/// Intent before effect: the status says which credentials are tried.
fn try_credentials(draft: &mut Draft<'_>, name: &str) {
    let reference = reference(draft, name);
    if draft.status.good_credentials.as_ref() != Some(&reference) {
        draft.status.tried_credentials = Some(reference);
    }
}

fn good_credentials(draft: &mut Draft<'_>, name: &str) {
    let reference = reference(draft, name);
    if draft.status.good_credentials.as_ref() == Some(&reference) {
        // Others may have been tried meanwhile.
        draft.status.tried_credentials = Some(reference);
        return;
    }
    // Registration tells its own end. The version may have grown since they were tried, by our own label.
    let tried = draft.status.tried_credentials != draft.status.good_credentials;
    if tried && draft.state != State::Registering {
        draft.begin(|history| &mut history.register);
        draft.end(|history| &mut history.register);
        tell_access(draft, name);
    }
    draft.status.tried_credentials = Some(reference.clone());
    draft.status.good_credentials = Some(reference);
}

/// The BMC let us in.
pub(super) fn tell_access(draft: &mut Draft<'_>, secret: &str) {
    let at = whole_seconds(draft.now).0;
    draft.tell(
        "BMCAccessValidated",
        format!("the BMC accepts the credentials of Secret {secret} (tried {at})"),
    );
}

/// How `failure` of the BMC at `address` is told.
pub(super) fn words_of(address: &str, failure: &Failure) -> String {
    format!("BMC {}: {}", shown(address), failure.message)
}

/// The BMC was asked and did not let us in.
fn unanswered(draft: &mut Draft<'_>, failure: &Failure, access: Access) -> Reach {
    let message = words_of(&access.address, failure);
    match failure.class {
        FailureClass::Credentials => {
            let (often, pause) = match was_registered(draft) {
                true => ("10 min", ASK_LATER),
                false => ("hour", ASK_SELDOM),
            };
            let message = secrets::with_going(draft, message);
            refuse_for_now(draft, &message, often);
            // It may be starting, or have locked the account for a while: nobody tells us when that is over.
            ask_again(draft, failure.at, access, pause);
            Reach::No
        }
        FailureClass::Address => {
            unusable(draft, message);
            Reach::No
        }
        class @ (FailureClass::Certificate | FailureClass::System) => {
            let helps = match class {
                FailureClass::System => ": correct spec.bmc.address or fix the BMC",
                _ => "",
            };
            let message = format!("{}{helps}", clause(&message));
            refuse_for_now(draft, &message, "minute");
            // It may be mended at the BMC, of which nobody tells us.
            ask_again(draft, failure.at, access, ASK_AGAIN);
            Reach::No
        }
        // What it said to the attempt before: the one that is announced has not ended.
        _ if draft.state == State::Registering
            && draft
                .waiting_since(WaitReason::Bmc)
                .is_some_and(|since| failure.at < since) =>
        {
            if ramdisk::is_due(draft, failure.at) {
                draft.call(BmcCall::Probe(access));
            }
            draft.keep_wait();
            draft.why("asks the BMC");
            draft.again(LOOK_AGAIN);
            Reach::No
        }
        _ if draft.state == State::Registering => {
            let counted = draft
                .failed_at()
                .is_some_and(|at| at >= whole_seconds(failure.at).0);
            match draft.hold_off(&[ErrorType::Registration]) {
                HoldOff::Waiting if counted => {}
                HoldOff::Over if counted => {
                    draft.clear_error();
                    draft.call(BmcCall::Probe(access));
                    draft.wait_for(WaitReason::Bmc, asks(draft.host));
                }
                _ => draft.fail(ErrorType::Registration, message),
            }
            Reach::No
        }
        _ => {
            forget(draft);
            draft.powerless = Some(message);
            ask_again(draft, failure.at, access, ASK_AGAIN);
            Reach::Silent(failure.clone())
        }
    }
}

/// Refuses with `message`, and says that the BMC is asked again every so `often`. While the host goes, each attempt asks it instead, and its
/// failure says when that is.
fn refuse_for_now(draft: &mut Draft<'_>, message: &str, often: &str) {
    let message = match draft.is_being_deleted() {
        true => clause(message).to_owned(),
        false => {
            let next = "and as soon as spec.bmc or the data of its Secret change";
            and_next(message, &format!("retrying every {often}, {next}"))
        }
    };
    draft.refuse(ErrorType::Registration, message);
}

/// True if the host's BMC let us in, with these credentials or others: who rotates a password changes the Secret and the BMC one after the other,
/// and an account that was locked meanwhile opens again.
fn was_registered(draft: &Draft<'_>) -> bool {
    let probed = draft.seen.bmc.probed.as_ref();
    draft.old.good_credentials.is_some() || probed.is_some_and(|probed| probed.accepted)
}

/// True if the last attempt failed, and the BMC's latest answer, no good one, is not of this moment: an attempt asks it, and is not judged by
/// what it said to the one before. All stays as it is until it has answered.
pub(super) fn asks_anew(draft: &mut Draft<'_>) -> bool {
    if draft.failed_at().is_none() {
        return false;
    }
    let bmc = &draft.seen.bmc;
    // With another access than it was asked with, it is asked anyway.
    let probed = bmc
        .probed
        .as_ref()
        .filter(|probed| Some(&probed.access) == wanted(draft).as_ref());
    let unknown = bmc.power.filter(|reading| reading.power == Power::Unknown);
    let (failure, at, ask) = match (probed, &bmc.unread, unknown) {
        (
            Some(Probed {
                result: Err(failure),
                access,
                ..
            }),
            ..,
        ) => (Some(failure), failure.at, BmcCall::Probe(access.clone())),
        (Some(_), Some(failure), _) => (Some(failure), failure.at, BmcCall::ReadPower),
        (Some(_), None, Some(reading)) => (None, reading.at, BmcCall::ReadPower),
        _ => return false,
    };
    let is_vain = match failure.map(|failure| failure.class) {
        Some(FailureClass::Credentials) => !was_registered(draft),
        Some(FailureClass::Address) => true,
        _ => false,
    };
    // By its age: what was asked with the last failure may have been answered after it, and clocks differ.
    if is_vain || !draft.has_paused(at, OF_THIS_ATTEMPT) {
        return false;
    }
    draft.call(ask);
    draft.keep_wait();
    draft.why("asks the BMC for another attempt");
    draft.again(LOOK_AGAIN);
    true
}

/// `address` as people may read it: what stands before an `@` may be a password.
pub(super) fn shown(address: &str) -> String {
    match address.parse::<Address>() {
        Ok(address) => address.to_string(),
        Err(_) => address
            .rsplit_once('@')
            .map_or(address, |(_, rest)| rest)
            .to_owned(),
    }
}

fn ask_again(draft: &mut Draft<'_>, asked: Timestamp, access: Access, pause: SignedDuration) {
    let due = asked.checked_add(pause).unwrap_or(draft.now);
    if draft.has_paused(asked, pause) {
        draft.call(BmcCall::Probe(access));
    }
    draft.again_at(due.max(draft.now));
}

fn in_band(draft: &mut Draft<'_>) -> Reach {
    if opt_in(draft.host).is_none() {
        draft.refuse(
            ErrorType::Registration,
            format!(
                "the host has no BMC, and Muster is not allowed to manage it through its ramdisk; next: set spec.bmc, or annotate the host with {IN_BAND_ANNOTATION}=KEY, where KEY is shown on the machine's console"
            ),
        );
        return Reach::No;
    }
    if draft.state != State::Registering {
        forget(draft);
    }
    draft.reached = true;
    Reach::InBand
}

/// What failed on the way to the machine is past. The second kind is another operator's, which has to register a provisioned host
/// with somebody else.
fn forget(draft: &mut Draft<'_>) {
    draft.forget(ErrorType::Registration);
    draft.forget(ErrorType::ProvisionedRegistration);
}

/// Whether the opt-in holds for the session; if not, what is missing.
pub(super) fn opted_in(value: &str, session: &Session, segment: Option<&Segment>) -> Result<(), String> {
    if value == IN_BAND_SEGMENT {
        return match segment.map(|segment| segment.spec.trust_for_secrets()) {
            Some(required) if required <= Trust::Segment => Ok(()),
            Some(_) => Err(format!(
                "{IN_BAND_ANNOTATION} is `{IN_BAND_SEGMENT}`, but Segment {} requires more trust; set the annotation to the session's key, or set requiredTrust: segment in the Segment",
                session.segment
            )),
            None => Err(format!(
                "Segment {} of the session does not exist; next: recreate it, or name the session's key in {IN_BAND_ANNOTATION}",
                session.segment
            )),
        };
    }
    if names(value, &session.key) {
        return Ok(());
    }
    Err(format!(
        "{IN_BAND_ANNOTATION} does not name the session's key, which is {}; compare this key with the one on the machine's console, then set the annotation to it",
        session.key
    ))
}

/// True if `value` is the fingerprint `key`, or its beginning as consoles show it: 16 digits (64 bits) in groups. Fewer are anybody's.
fn names(value: &str, key: &str) -> bool {
    let digits: String = value.trim().chars().filter(|digit| *digit != '-').collect();
    let begin = key.get(..digits.len());
    digits.len() >= 16 && begin.is_some_and(|begin| begin.eq_ignore_ascii_case(&digits))
}

/// Whether user data may be given to the session; if not, what is missing.
pub(super) fn may_have_secrets(draft: &Draft<'_>, session: &Session) -> Result<(), String> {
    let value = opt_in(draft.host).filter(|_| !has_bmc(draft.host));
    let opted_in = value.map(|value| opted_in(value, session, draft.segment()));
    if let Some(Ok(())) = opted_in {
        return Ok(());
    }
    let Some(segment) = draft.segment() else {
        // A key that is named counts for hosts without a BMC alone.
        let or = match opted_in {
            Some(_) => format!("name the session's key in {IN_BAND_ANNOTATION}"),
            None => "remove userData, networkData and metaData from the host".to_owned(),
        };
        return Err(format!(
            "Segment {} of the session does not exist, so its required trust is unknown; next: recreate it, or {or}",
            session.segment
        ));
    };
    let required = segment.spec.trust_for_secrets().max(Trust::Segment);
    // Nothing proves more yet: what stands there is the word of an edge.
    let trust = session.trust.min(Trust::Segment);
    if trust >= required {
        return Ok(());
    }
    if let Some(Err(missing)) = opted_in {
        // Less than to trust all of a Segment.
        return Err(missing);
    }
    let [is, needs] = [trust, required].map(Trust::name);
    Err(format!(
        "userData, networkData and metaData are given only to sessions with trust `{needs}` (Segment {0}), but this session has `{is}`; set requiredTrust: {is} in Segment {0}, which lets anyone who can send packets there read them, or remove them from the host",
        session.segment
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_named_by_its_whole_key_or_by_what_its_console_shows() {
        let key = "f9a2515c3bb38835ab147e28d356acc9283a241318cc70ab5750e6562d346b03";
        for value in [
            key,
            &key.to_uppercase(),
            "f9a2-515c-3bb3-8835",
            " F9A2515C3BB38835 ",
        ] {
            assert!(names(value, key), "{value}");
        }
        let longer = format!("{key}0");
        for value in [
            "",
            "-",
            "f9a2-515c-3bb3",
            "f9a2-515c-3bb3-8836",
            "segment",
            &longer,
        ] {
            assert!(!names(value, key), "{value}");
        }
        assert!(!names("", "") && !names("ééééééééé", key));
    }
}
