//! A host that is ready to be used: whether it is to be, and whether all is there for that. Pure.
//!
//! All that can be known beforehand is checked here, while nothing is lost: upstream starts, fails, cleans and starts again.

use jiff::{SignedDuration, Timestamp};
use muster_proto::{
    job::ImageSource,
    kinds::{BareMetalHostSpec, ErrorType, Image, RELEASE_ANNOTATION},
};

use super::{
    State, WaitReason,
    access::{self, Reach},
    backoff, boot_mode, conditions, disk,
    draft::{Draft, and_next},
    guard, image, in_band, inspection, power,
    preparing::{self, effective_hints},
    provisioning,
    secrets::{self, Inputs},
};
use crate::hosts::wants_inspection;

/// The host is available.
pub(super) fn go_on(draft: &mut Draft<'_>) {
    let spec = &draft.host.spec;
    // Older versions have another word for it.
    State::Available
        .name()
        .clone_into(&mut draft.status.provisioning.state);
    if spec.externally_provisioned == Some(true) {
        draft.enter(State::ExternallyProvisioned);
        return;
    }
    if in_band::goes_off(draft) {
        let reach = access::ensure(draft);
        power::manage(draft, &reach);
        return;
    }
    if wants_inspection(draft.host) {
        if draft.seen.slot {
            inspection::begin_again(draft);
            return;
        }
        let reach = access::ensure(draft);
        match reach {
            Reach::No => {}
            // Its BMC's answer is what it waits for first.
            Reach::Silent(_) if draft.session().is_none() => draft.is_not_delayed(),
            Reach::Bmc | Reach::Silent(_) | Reach::InBand => {
                draft.takes_slot();
            }
        }
        power::manage(draft, &reach);
        return;
    }
    let unsupported = preparing::unsupported(draft);
    if preparing::is_outdated(draft) && unsupported.is_none() {
        draft.enter(State::Preparing);
        return;
    }
    if draft.annotation(RELEASE_ANNOTATION).is_some() {
        // It has served, or serves nothing: the next tenant's data are not to be left because of it.
        draft
            .metadata
            .remove_annotations
            .push(RELEASE_ANNOTATION.to_owned());
    }
    if draft.host.spec.image.is_none() {
        draft.status.provisioning_fail_count = 0;
    }
    let reach = access::ensure(draft);
    if let Some(why) = unsupported {
        // It could not leave `preparing`, while whoever lets it go waits until it is available.
        power::manage(draft, &reach);
        // That an image could not be written is still told as long as it is asked for, and is not what holds the host up.
        draft.forget(ErrorType::Provisioning);
        draft.refuse_beside(ErrorType::Preparation, why);
        return;
    }
    draft.forget(ErrorType::Preparation);
    if !wants_provisioning(draft) {
        draft.forget(ErrorType::Provisioning);
        draft.is_not_delayed();
        power::manage(draft, &reach);
        if has_request(&draft.host.spec) {
            draft.wait_beside(
                WaitReason::Online,
                "waits for spec.online to be true; next: the image is written",
            );
        }
        return;
    }
    // What is begun without a way to the machine could not be taken back either.
    if reach == Reach::No {
        return;
    }
    let is_silent = matches!(reach, Reach::Silent(_)) || power::unknown_power(draft).is_some();
    // Unless a slot is all it waits for.
    draft.is_not_delayed();
    if is_silent && draft.session().is_none() {
        power::manage(draft, &reach);
        power::waits_for_bmc(draft, &reach, "the image is written");
        return;
    }
    match admit(draft) {
        Ok(true) => provisioning::begin(draft),
        Ok(false) => power::manage(draft, &reach),
        Err(why) => {
            power::manage(draft, &reach);
            draft.refuse_beside(ErrorType::Provisioning, why);
        }
    }
}

/// True if the spec names something to run.
pub(super) fn has_request(spec: &BareMetalHostSpec) -> bool {
    image_url(spec.image.as_ref()).is_some()
        || spec
            .custom_deploy
            .as_ref()
            .is_some_and(|custom| !custom.method.is_empty())
}

/// The image's URL, if it has one.
pub(super) fn image_url(image: Option<&Image>) -> Option<&str> {
    image
        .map(|image| image.url.as_str())
        .filter(|url| !url.is_empty())
}

fn wants_provisioning(draft: &Draft<'_>) -> bool {
    draft.host.spec.online && has_request(&draft.host.spec)
}

/// True if provisioning may begin now; if not, the draft says what it waits for, or the error what has to be changed.
fn admit(draft: &mut Draft<'_>) -> Result<bool, String> {
    if guard::is_protected(draft.host) {
        return Err(guard::UNWRITTEN.to_owned());
    }
    refusal(draft)?;
    if !tries_again(draft)? {
        return Ok(false);
    }
    match secrets::inputs(draft) {
        // What was refused before is mended: the host does not show that while it waits for a slot. What failed is shown until the next attempt.
        Inputs::Ready if draft.status.provisioning_fail_count == 0 => draft.forget(ErrorType::Provisioning),
        Inputs::Ready => {}
        Inputs::Wait(why) => {
            draft.wait_for(WaitReason::Inputs, and_next(&why, "the image is written"));
            draft.again(access::LOOK_AGAIN);
            return Ok(false);
        }
        Inputs::Bad(why) | Inputs::Untrusted(why) => {
            draft.again(access::LOOK_AGAIN);
            return Err(why);
        }
    }
    Ok(draft.takes_slot())
}

/// What makes the request one that cannot be fulfilled, as far as it can be known now.
fn refusal(draft: &Draft<'_>) -> Result<(), String> {
    request(&draft.host.spec)?;
    preparing::software_raid(&draft.host.spec)?;
    guard::rival(draft.seen)?;
    let status = draft.server().and_then(|server| server.status.as_ref());
    if let Some(inventory) = status.and_then(|status| status.inventory.as_ref()) {
        // Whoever boots it the next time may change that.
        let runs = draft.session().is_some();
        if let Some(why) = boot_mode::refusal(draft.host, inventory).filter(|_| runs) {
            return Err(why);
        }
        let disks = &inventory.unpack().disks;
        let root = disk::choose(effective_hints(draft).as_deref(), disks)?;
        disk::can_be_told(disks, root).map_err(|why| {
            format!(
                "the disk {} has {why}: it cannot be told apart from other disks, so no image is written to it; next: choose another in spec.rootDeviceHints",
                root.name
            )
        })?;
    }
    Ok(())
}

/// The image that the request is for; else what makes it one that this version cannot fulfil.
pub(super) fn request(spec: &BareMetalHostSpec) -> Result<ImageSource, String> {
    if let Some(custom) = spec
        .custom_deploy
        .as_ref()
        .filter(|custom| !custom.method.is_empty())
    {
        return Err(format!(
            "the deploy method `{}` is unknown: this version supports none; set spec.image instead",
            custom.method
        ));
    }
    let image = spec.image.as_ref().ok_or("the host has no image")?;
    image::source(image)
}

/// After failures the same is tried again later and later, and at last not at all, which is an error; another image, or
/// any other spec than that when it failed, at once.
fn tries_again(draft: &mut Draft<'_>) -> Result<bool, String> {
    let failures = draft.status.provisioning_fail_count;
    if failures == 0 {
        return Ok(true);
    }
    if is_another_request(draft) {
        draft.status.provisioning_fail_count = 0;
        return Ok(true);
    }
    if is_given_up(draft) {
        let why = why_failed(draft);
        // Where it is not known for which generation that was, the image alone counts.
        let change = match conditions::failed_for(&draft.old) {
            Some(_) => "anything in the host's spec, such as spec.image",
            None => "spec.image (remove it and set it again)",
        };
        return Err(and_next(
            &format!("gave up after {failures} attempts: {why}"),
            &format!("fix this, then change {change}"),
        ));
    }
    Ok(!pauses(draft))
}

/// True if what is asked for is not what failed.
fn is_another_request(draft: &Draft<'_>) -> bool {
    // Where the kind does not know it, its generation alone tells.
    let attempted = draft.status.last_attempted_image.as_deref();
    let is_another = attempted.is_some() && draft.host.spec.image.as_ref() != attempted;
    is_another || draft.is_another_spec(conditions::failed_for(&draft.old))
}

/// True if the same has failed so often that it is not tried any more.
fn is_given_up(draft: &Draft<'_>) -> bool {
    let most = draft.seen.max_provisioning_retries;
    most > 0 && draft.status.provisioning_fail_count >= most
}

fn why_failed(draft: &Draft<'_>) -> String {
    conditions::why_failed(&draft.old)
        .unwrap_or("see the events")
        .to_owned()
}

/// Says beforehand, with the write that takes the host back to `available`, that it waits for the next attempt: a write that says only that
/// would be put off, and meanwhile the host would look as if nothing were to be done.
pub(super) fn announce_pause(draft: &mut Draft<'_>) {
    let has_failed = draft.status.provisioning_fail_count > 0;
    if has_failed && wants_provisioning(draft) && !is_another_request(draft) && !is_given_up(draft) {
        pauses(draft);
    }
}

/// True while it is not time for the next attempt; the draft says so.
fn pauses(draft: &mut Draft<'_>) -> bool {
    let failures = draft.status.provisioning_fail_count;
    let ended = ended(draft).unwrap_or(draft.now);
    let pause = backoff::pause(draft.uid(), failures);
    if draft.has_paused(ended, SignedDuration::try_from(pause).unwrap_or_default()) {
        return false;
    }
    let why = why_failed(draft);
    draft.wait_for(
        WaitReason::Delay,
        and_next(
            &format!("attempt {failures} failed: {why}"),
            &format!("another attempt after {}", backoff::words(pause)),
        ),
    );
    draft.again_at(ended.checked_add(pause).unwrap_or(draft.now));
    true
}

/// When the host was taken back, in this round perhaps.
fn ended(draft: &Draft<'_>) -> Option<Timestamp> {
    let history = draft.status.operation_history.as_ref()?;
    history.deprovision.as_ref()?.end.as_ref().map(|end| end.0)
}
