//! What an answer that is no success means. Pure.

use std::time::Duration;

use muster_proto::text::clean;
use serde_json::Value;

use super::model;
use crate::bmc::BmcError;

/// The most messages of one answer that are told.
const MESSAGES: usize = 3;

/// No BMC is left alone for longer on its own wish.
const LONGEST_RETRY: Duration = Duration::from_secs(600);

/// The ends of message ids (DSP0268, Base registry, and vendors' own) that say "later".
const LATER: &[&str] = &[
    "ServiceTemporarilyUnavailable",
    "ServiceInUnknownState",
    "ServiceShuttingDown",
    "ResourceInUse",
    // HPE, while the machine tests itself, and while an order before is carried out.
    "UnableToModifyDuringSystemPOST",
    "InvalidOperationForSystemState",
    // Dell, while the iDRAC starts, and while it is not ready.
    "SYS518",
    "SWC0700",
    // None for us, that is.
    "SessionLimitExceeded",
];

/// Those that say "not here".
const NEVER: &[&str] = &[
    "ActionNotSupported",
    "ActionParameterNotSupported",
    "ActionParameterValueNotInList",
    "OperationNotAllowed",
    "PropertyNotWritable",
    "PropertyUnknown",
    "PropertyValueNotInList",
];

/// The end of the name of what stands beside a property and says something of it.
const EXTENDED: &str = "@Message.ExtendedInfo";

/// Those that speak of user and password, whatever the status.
const CREDENTIALS: &[&str] = &[
    "InsufficientPrivilege",
    "NoValidSession",
    "PasswordChangeRequired",
    "ResourceAtUriUnauthorized",
    // HPE, with status 400.
    "UnauthorizedLoginAttempt",
];

/// What an error's body says (DSP0266, "Error responses").
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    ids: Vec<String>,
    /// For people; cleaned, without secrets.
    pub(super) text: String,
}

impl Said {
    /// Reads the body of an answer with `status`; whatever it repeats of `secrets` is blotted out.
    pub(super) fn read(status: u16, body: &[u8], secrets: &[String]) -> Said {
        let value = model::json(body).unwrap_or_default();
        let of_all = value.pointer("/error/@Message.ExtendedInfo").into_iter();
        // Of one property each, as OpenBMC answers a change.
        let of_one = value.as_object().into_iter().flatten();
        let of_one = of_one.filter(|(name, _)| name.ends_with(EXTENDED));
        let messages = of_all
            .chain(of_one.map(|(_, extended)| extended))
            .flat_map(listed);
        let messages: Vec<&Value> = messages.filter(|one| one.is_object()).take(MESSAGES).collect();
        let word = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
        let error = value.get("error").unwrap_or(&Value::Null);
        let last = |id: String| id.rsplit('.').next().unwrap_or_default().to_owned();
        // The second is how iLO 4 writes it, without any text.
        let id = |one: &Value| {
            word(one, "MessageId")
                .or_else(|| word(one, "MessageID"))
                .map(last)
        };
        let is_pointer = |text: &String| text.starts_with("See @Message.ExtendedInfo");
        let whole = word(error, "message").filter(|text| !text.is_empty() && !is_pointer(text));
        let text = |one: &Value| word(one, "Message").or_else(|| id(one).filter(|_| whole.is_none()));
        let ids: Vec<String> = messages.iter().copied().filter_map(id).collect();
        let mut texts: Vec<String> = messages.iter().copied().filter_map(text).collect();
        texts.dedup();
        let text = match texts.is_empty() {
            true => whole.unwrap_or_default(),
            false => texts.join(" "),
        };
        let text = clean(blot(&text, secrets).as_bytes());
        Said {
            ids: ids.into_iter().chain(word(error, "code").map(last)).collect(),
            text: if text.is_empty() {
                format!("HTTP status {status} without a message")
            } else {
                text
            },
        }
    }

    /// What the body of a change that succeeded says of properties of the boot that it did not change (DSP0266, "PATCH (update)": some
    /// properties may be left out, each with a message beside it); none: it says nothing such.
    pub(super) fn of_boot_left_out(body: &[u8], secrets: &[String]) -> Option<Said> {
        let value = model::json(body)?;
        let notes = |object: &Value| -> serde_json::Map<String, Value> {
            let all = object.as_object().into_iter().flatten();
            let of_boot = |name: &str| {
                let property = name.strip_suffix(EXTENDED).unwrap_or_default();
                property == "Boot" || property.starts_with("BootSourceOverride")
            };
            let notes = all.filter(|(name, _)| of_boot(name));
            notes.map(|(name, note)| (name.clone(), note.clone())).collect()
        };
        let mut all = notes(&value);
        all.extend(value.get("Boot").map(notes).unwrap_or_default());
        let said = Said::read(400, Value::Object(all).to_string().as_bytes(), secrets);
        said.is_one_of(NEVER).then_some(said)
    }

    fn is_one_of(&self, ids: &[&str]) -> bool {
        self.ids.iter().any(|id| ids.contains(&id.as_str()))
    }

    /// True if the session that we showed is over.
    pub(super) fn knows_no_session(&self) -> bool {
        self.is_one_of(&["NoValidSession"])
    }

    /// True if it says of itself that it is for now.
    pub(super) fn is_for_now(&self) -> bool {
        self.is_one_of(LATER)
    }

    /// What it means that a request for `what` was answered with `status`, which is no success.
    pub(super) fn error(self, status: u16, what: &str, retry_after: Option<Duration>) -> BmcError {
        let message = self.text.clone();
        let busy = |message| BmcError::Busy { message, retry_after };
        match status {
            403 if self.is_for_now() => busy(message),
            401 | 403 => BmcError::Credentials { message },
            _ if self.is_one_of(CREDENTIALS) => BmcError::Credentials { message },
            _ if self.is_one_of(LATER) => busy(message),
            // 409: it changes state already; 412, after a second try: somebody else writes at the same time.
            409 | 412 | 423 | 425 | 429 | 502 | 503 | 504 => busy(message),
            404 | 405 | 410 | 501 => BmcError::Unsupported {
                what: format!("{what}: {message}"),
            },
            _ if self.is_one_of(NEVER) => BmcError::Unsupported {
                what: format!("{what}: {message}"),
            },
            status => BmcError::Refused { status, message },
        }
    }
}

/// What it means that a look at a resource failed with `error`: what a BMC fails to show now, it may show at the next look. A change that it
/// fails to make is refused.
pub(super) fn of_look(error: BmcError) -> BmcError {
    match error {
        BmcError::Refused {
            status: 500..,
            message,
        } => BmcError::Busy {
            message,
            retry_after: None,
        },
        BmcError::Answer { reason } => BmcError::Busy {
            message: format!("{reason}; if that lasts, correct spec.bmc.address or restart the BMC"),
            retry_after: None,
        },
        error => error,
    }
}

/// The messages in `extended`: old services send one object in the place of a list.
fn listed(extended: &Value) -> &[Value] {
    match extended {
        Value::Array(all) => all,
        one => std::slice::from_ref(one),
    }
}

/// `text` without any of `secrets`.
pub(super) fn blot(text: &str, secrets: &[String]) -> String {
    let known = secrets.iter().filter(|secret| !secret.is_empty());
    known.fold(text.to_owned(), |text, secret| {
        text.replace(secret.as_str(), "***")
    })
}

/// `Retry-After` in seconds. Its other form, a date, needs a clock that the BMC shares: it counts as none.
pub(super) fn retry_after(header: Option<&str>) -> Option<Duration> {
    let seconds = header?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_RETRY))
}

/// Where a redirect leads, as a path: only to the same host, or credentials would go elsewhere.
pub(super) fn redirect(location: &str, origin: &str) -> Option<String> {
    let port = if origin.starts_with("https:") { 443 } else { 80 };
    let behind = |origin: &str| {
        let start = location.get(..origin.len())?;
        start
            .eq_ignore_ascii_case(origin)
            .then(|| &location[origin.len()..])
    };
    // The default port may be there or not.
    let target = behind(&format!("{origin}:{port}"))
        .or_else(|| behind(origin))
        .unwrap_or(location);
    super::model::local(target).map(str::to_owned)
}

/// The error for a redirect of `path` that is not followed.
pub(super) fn astray(path: &str, location: &str, origin: &str) -> BmcError {
    let reason = match location {
        "" => format!("{path} is redirected, but not to a location"),
        place => format!("{path} is redirected to {place}, which is not on {origin}; correct the address"),
    };
    BmcError::Answer {
        reason: clean(reason.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn class(status: u16, id: &str) -> &'static str {
        let body = json!({"error": {"code": "Base.1.8.GeneralError", "message": "no",
            "@Message.ExtendedInfo": [{"MessageId": id, "Message": "No."}]}});
        Said::read(status, body.to_string().as_bytes(), &[])
            .error(status, "x", None)
            .class()
    }

    #[test]
    fn a_redirect_stays_on_its_host_with_the_default_port_or_without() {
        for (location, origin, path) in [
            ("https://bmc/a", "https://bmc", Some("/a")),
            ("https://BMC:443/a", "https://bmc", Some("/a")),
            ("http://bmc:80/a", "http://bmc", Some("/a")),
            ("https://bmc:8443/a", "https://bmc:8443", Some("/a")),
            ("https://bmc:8443/a", "https://bmc", None),
            ("https://bmc:4430/a", "https://bmc", None),
            ("https://bmc.evil/a", "https://bmc", None),
            ("/a", "https://bmc", Some("/a")),
        ] {
            assert_eq!(redirect(location, origin).as_deref(), path, "{location}");
        }
    }

    #[test]
    fn answers_that_are_written_in_other_ways_are_understood() {
        // iLO 4: neither the name of the id nor any text is as it should be.
        let body = json!({"error": {"code": "iLO.0.10.ExtendedInfo", "message": "See @Message.ExtendedInfo for more information.",
            "@Message.ExtendedInfo": [{"MessageID": "iLO.0.10.InvalidOperationForSystemState", "MessageArgs": ["Power is off"]}]}});
        let said = Said::read(400, body.to_string().as_bytes(), &[]);
        assert_eq!(said.text, "InvalidOperationForSystemState");
        assert_eq!(said.error(400, "x", None).class(), "busy");
        // OpenBMC: beside the property that is meant.
        let body = json!({"Boot@Message.ExtendedInfo": [{"MessageId": "Base.1.8.PropertyUnknown", "Message": "No Boot."}]});
        let said = Said::read(400, body.to_string().as_bytes(), &[]);
        assert_eq!(said.text, "No Boot.");
        assert_eq!(said.error(400, "x", None).class(), "unsupported");
    }

    #[test]
    fn what_a_change_left_out_is_told_though_it_succeeded() {
        let note = |id: &str| json!([{"MessageId": format!("Base.1.18.{id}"), "Message": "It stays."}]);
        let left_out = |body: Value| {
            let said = Said::of_boot_left_out(body.to_string().as_bytes(), &[])?;
            Some(said.error(400, "x", None).class())
        };
        for name in ["BootSourceOverrideTarget", "BootSourceOverrideMode"] {
            let name = format!("{name}@Message.ExtendedInfo");
            let boot =
                json!({"BootSourceOverrideEnabled": "Once", name.clone(): note("PropertyNotWritable")});
            assert_eq!(left_out(json!({ "Boot": boot })), Some("unsupported"));
            assert_eq!(
                left_out(json!({ name: note("PropertyUnknown") })),
                Some("unsupported")
            );
        }
        let whole = json!({"Boot@Message.ExtendedInfo": note("PropertyValueNotInList")});
        assert_eq!(left_out(whole), Some("unsupported"));
        // What HPE says of every change, and what is of something else.
        for body in [
            json!({"error": {"@Message.ExtendedInfo": note("Success")}}),
            json!({"Boot@Message.ExtendedInfo": note("Success")}),
            json!({"AssetTag@Message.ExtendedInfo": note("PropertyNotWritable")}),
            json!({"BootProgress@Message.ExtendedInfo": note("PropertyNotWritable")}),
            json!({"Boot": {"BootSourceOverrideTarget": "Pxe"}}),
            json!(null),
        ] {
            assert_eq!(left_out(body.clone()), None, "{body}");
        }
        assert!(Said::of_boot_left_out(b"", &[]).is_none());
    }

    #[test]
    fn status_and_message_make_the_class() {
        for (status, id, expected) in [
            (401, "", "credentials"),
            (403, "Base.1.8.InsufficientPrivilege", "credentials"),
            (403, "Base.1.8.SessionLimitExceeded", "busy"),
            (401, "Base.1.8.SessionLimitExceeded", "credentials"),
            (400, "iLO.2.25.UnauthorizedLoginAttempt", "credentials"),
            (400, "iLO.2.25.UnableToModifyDuringSystemPOST", "busy"),
            (400, "IDRAC.2.8.SWC0700", "busy"),
            (400, "Base.1.8.SessionLimitExceeded", "busy"),
            (400, "Base.1.8.ActionNotSupported", "unsupported"),
            (400, "Base.1.8.PropertyValueTypeError", "refused"),
            (404, "", "unsupported"),
            (405, "", "unsupported"),
            (409, "IDRAC.2.8.PSU501", "busy"),
            (412, "", "busy"),
            (429, "", "busy"),
            (500, "Base.1.8.InternalError", "refused"),
            (501, "", "unsupported"),
            (503, "Base.1.8.ServiceTemporarilyUnavailable", "busy"),
            (418, "", "refused"),
        ] {
            assert_eq!(class(status, id), expected, "{status} {id}");
        }
    }

    #[test]
    fn what_a_bmc_fails_to_show_is_looked_at_again() {
        for (status, expected) in [
            (400, "refused"),
            (404, "unsupported"),
            (500, "busy"),
            (501, "unsupported"),
            (503, "busy"),
            (599, "busy"),
        ] {
            let error = Said::default().error(status, "x", None);
            assert_eq!(of_look(error).class(), expected, "{status}");
        }
        let reason = "not JSON".to_owned();
        assert_eq!(of_look(BmcError::Answer { reason }).class(), "busy");
    }

    #[test]
    fn the_bmcs_own_words_are_told_without_secrets() {
        let body = json!({"error": {"@Message.ExtendedInfo": [
            {"Message": "User admin with\u{7} password hunter2 cannot."}, {"Message": "Ask\nhunter2."}]}});
        let said = Said::read(
            400,
            body.to_string().as_bytes(),
            &["hunter2".to_owned(), String::new()],
        );
        assert_eq!(said.text, "User admin with password *** cannot. Ask ***.");
        let plain = Said::read(500, b"<html>hunter2</html>", &["hunter2".to_owned()]);
        assert_eq!(plain.text, "HTTP status 500 without a message");
        let single = json!({"error": {"@Message.ExtendedInfo": {"MessageId": "a.b.ResourceInUse", "Message": "Busy."}}});
        assert_eq!(
            Said::read(400, single.to_string().as_bytes(), &[])
                .error(400, "", None)
                .class(),
            "busy"
        );
    }

    #[test]
    fn patience_is_asked_for_in_seconds_and_has_an_end() {
        let seconds = |header| retry_after(Some(header)).map(|asked| asked.as_secs());
        assert_eq!(seconds(" 17 "), Some(17));
        assert_eq!(seconds("999999"), Some(600));
        assert_eq!(seconds("Fri, 31 Dec 1999 23:59:59 GMT"), None);
        assert_eq!(retry_after(None), None);
    }

    #[test]
    fn redirects_stay_on_their_host() {
        let origin = "https://bmc:8443";
        let to = |location| redirect(location, origin);
        assert_eq!(to("/redfish/v1/").unwrap(), "/redfish/v1/");
        assert_eq!(to("HTTPS://bmc:8443/x").unwrap(), "/x");
        for elsewhere in [
            "http://bmc:8443/x",
            "https://bmc/x",
            "//evil/x",
            "https://bmc:8443.evil/x",
            "x",
            "",
        ] {
            assert_eq!(to(elsewhere), None, "{elsewhere}");
            assert!(matches!(astray("/a", elsewhere, origin), BmcError::Answer { .. }));
        }
    }

    proptest! {
        #[test]
        fn any_body_has_a_message(status in 300u16..600, body in prop::collection::vec(any::<u8>(), 0..200)) {
            let said = Said::read(status, &body, &["x".to_owned()]);
            prop_assert!(!said.text.is_empty());
        }
    }
}
