//! What a Secret is good for: keys, fallbacks and checks as upstream has them. Pure, and the only place that looks inside.

use std::fmt;

use k8s_openapi::{ByteString, api::core::v1::Secret};
use ring::hmac;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};
use serde_saphyr::{DuplicateKeyPolicy, NonFiniteFloatPolicy};

use crate::bmc::Credentials;

/// The largest user data, and the largest of either other kind, in bytes. All together may be less: [`LARGEST_DRIVE`].
const LARGEST_USER_DATA: usize = 512 << 10;
const LARGEST: usize = 128 << 10;
/// The largest config drive, in bytes of JSON: sealed it has a third more, and an agent reads an answer of 1 MiB at most. It holds
/// 512 KiB of user data with 40 KiB of the rest.
pub(super) const LARGEST_DRIVE: usize = 750 << 10;

/// Under this key the content is looked for where the special one is missing.
const FALLBACK: &str = "value";

/// What a Secret can be good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// `spec.bmc.credentialsName`.
    Bmc,
    /// `spec.userData`.
    UserData,
    /// `spec.networkData` and `spec.preprovisioningNetworkDataName`.
    NetworkData,
    /// `spec.metaData`.
    MetaData,
}

impl Use {
    const ALL: [Use; 4] = [Use::Bmc, Use::UserData, Use::NetworkData, Use::MetaData];

    /// What it is called; of data for the config drive, its key in the Secret, and its kind in upstream's metrics.
    pub(super) fn name(self) -> &'static str {
        match self {
            Use::Bmc => "credentials",
            Use::UserData => "userData",
            Use::NetworkData => "networkData",
            Use::MetaData => "metaData",
        }
    }
}

/// What is told of what a Secret has for one use.
#[derive(Clone, Debug)]
pub(super) struct Content {
    /// Tells it from another.
    pub(super) digest: Box<str>,
    /// How much it adds to a config drive, in bytes of that as JSON.
    pub(super) bytes: usize,
}

/// What a Secret lacks, without anything of its content.
pub(super) type Lack = Box<str>;

/// What is known of a Secret for each use: what it has for it, or what it lacks.
#[derive(Clone)]
pub(super) struct Seen {
    uses: [Result<Content, Lack>; 4],
    /// Kept, because every call to a BMC needs it.
    login: Option<Credentials>,
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seen")
    }
}

impl Seen {
    /// What `secret` is good for; digests are made with `key`.
    pub(super) fn of(secret: &Secret, key: &hmac::Key) -> Seen {
        let login = login(secret);
        let part = |key_of_data, bytes| Content {
            digest: digest(key, &[raw(secret, key_of_data).unwrap_or_default()]),
            bytes,
        };
        let uses = Use::ALL.map(|what| match what {
            Use::Bmc => login
                .map(|(user, password)| Content {
                    digest: digest(key, &[user, password]),
                    bytes: 0,
                })
                .map_err(Lack::from),
            // In base64.
            Use::UserData => user_data(secret)
                .map(|bytes| part(what.name(), bytes.len().div_ceil(3) * 4))
                .map_err(Lack::from),
            Use::NetworkData => network_data(secret)
                .map(|data| part(what.name(), data.map_or(0, |data| data.to_string().len()))),
            Use::MetaData => {
                meta_data(secret).map(|data| part(what.name(), Value::Object(data).to_string().len()))
            }
        });
        let login = login.ok().and_then(|(user, password)| {
            Some(Credentials::new(
                std::str::from_utf8(user).ok()?,
                std::str::from_utf8(password).ok()?,
            ))
        });
        Seen { uses, login }
    }

    /// What it has for `what`, or what it lacks.
    pub(super) fn for_use(&self, what: Use) -> &Result<Content, Lack> {
        let [bmc, user, network, meta] = &self.uses;
        match what {
            Use::Bmc => bmc,
            Use::UserData => user,
            Use::NetworkData => network,
            Use::MetaData => meta,
        }
    }

    /// Who we are to the BMC.
    pub(super) fn login(&self) -> Option<&Credentials> {
        self.login.as_ref()
    }
}

/// Tells contents apart without showing anything of them: every part with its length, so that none runs into the next.
fn digest(key: &hmac::Key, parts: &[&[u8]]) -> Box<str> {
    let mut context = hmac::Context::with_key(key);
    for part in parts {
        context.update(&part.len().to_be_bytes());
        context.update(part);
    }
    let tag = context.sign();
    tag.as_ref()
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect::<String>()
        .into()
}

fn value<'a>(secret: &'a Secret, key: &str) -> Option<&'a [u8]> {
    secret
        .data
        .as_ref()?
        .get(key)
        .map(|ByteString(bytes)| bytes.as_slice())
}

fn raw<'a>(secret: &'a Secret, key: &str) -> Option<&'a [u8]> {
    value(secret, key).or_else(|| value(secret, FALLBACK))
}

fn text<'a>(secret: &'a Secret, key: &str) -> Option<&'a [u8]> {
    value(secret, key)
        .map(|bytes| bytes.trim_ascii())
        .filter(|bytes| !bytes.is_empty())
}

fn login(secret: &Secret) -> Result<(&[u8], &[u8]), &'static str> {
    let user = text(secret, "username").ok_or("it has no `username`")?;
    let password = text(secret, "password").ok_or("it has no `password`")?;
    let readable = std::str::from_utf8(user).is_ok() && std::str::from_utf8(password).is_ok();
    if !readable {
        return Err("`username` or `password` is not valid UTF-8");
    }
    Ok((user, password))
}

/// The user data, byte for byte.
pub(super) fn user_data(secret: &Secret) -> Result<&[u8], &'static str> {
    let bytes = raw(secret, "userData").ok_or("it has neither `userData` nor `value`")?;
    match bytes.len() > LARGEST_USER_DATA {
        true => Err("`userData` is larger than 512 KiB: compress it, or have the machine download it"),
        false => Ok(bytes),
    }
}

/// The network data; none where the Secret has none, which is as good as an empty one.
pub(super) fn network_data(secret: &Secret) -> Result<Option<Value>, Lack> {
    let bytes = raw(secret, "networkData").unwrap_or_default();
    Ok(map(bytes, Use::NetworkData)?.map(Value::Object))
}

/// The metadata.
pub(super) fn meta_data(secret: &Secret) -> Result<Map<String, Value>, Lack> {
    let bytes = raw(secret, "metaData").ok_or("it has neither `metaData` nor `value`")?;
    Ok(map(bytes, Use::MetaData)?.unwrap_or_default())
}

/// What `bytes`, a map in YAML or JSON, say; none if that is nothing but comments.
fn map(bytes: &[u8], what: Use) -> Result<Option<Map<String, Value>>, Lack> {
    let name = what.name();
    if bytes.trim_ascii().is_empty() {
        return Ok(None);
    }
    if bytes.len() > LARGEST {
        return Err(format!("`{name}` is larger than 128 KiB").into());
    }
    let no_map = || format!("`{name}` is not a map in YAML or JSON");
    let text = std::str::from_utf8(bytes).map_err(|_| no_map())?;
    match serde_json::from_str(text).or_else(|_| yaml(text)) {
        Ok(Value::Null) => Ok(None),
        Ok(Value::Object(map)) => Ok(Some(map)),
        Ok(_) => Err(no_map().into()),
        // The parser's words may show what it parsed.
        Err(error) => Err(error
            .location()
            .map_or_else(no_map, |at| {
                format!("{}: see line {}, column {}", no_map(), at.line(), at.column())
            })
            .into()),
    }
}

/// The YAML in `text`. Upstream's parser takes what overflows a number, such as the commit 61e9540, as a string, so that its writers do
/// not quote it; and of equal keys the last.
fn yaml(text: &str) -> Result<Value, serde_saphyr::Error> {
    let options = |beyond| {
        serde_saphyr::options! {
            // Not `LastWins`, which holds a copy of the rest for each level with a number as key: a `Value` keeps the last anyway.
            duplicate_keys: DuplicateKeyPolicy::PassThrough,
            leading_zero_numbers_as_strings: true,
            non_finite_float_policy: beyond,
            with_snippet: false,
        }
    };
    match serde_saphyr::from_str_with_options(text, options(NonFiniteFloatPolicy::Reject)) {
        Err(serde_saphyr::Error::NonFiniteFloat { .. }) => {}
        read => return read,
    }
    let options = || options(NonFiniteFloatPolicy::AsString);
    let mut value = serde_saphyr::from_str_with_options(text, options())?;
    // That says `.inf` for all of them. What is asked for as a string comes as it is written.
    serde_saphyr::with_deserializer_from_str_with_options(text, options(), |from| {
        AsWritten(&mut value).deserialize(from)
    })?;
    Ok(value)
}

/// What was read from a text, whose strings are to be read from it once more, as strings.
struct AsWritten<'a>(&'a mut Value);

impl<'de> DeserializeSeed<'de> for AsWritten<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        match self.0 {
            Value::Object(_) => from.deserialize_map(self),
            Value::Array(_) => from.deserialize_seq(self),
            Value::String(text) => {
                *text = String::deserialize(from)?;
                Ok(())
            }
            _ => {
                IgnoredAny::deserialize(from)?;
                Ok(())
            }
        }
    }
}

impl<'de> Visitor<'de> for AsWritten<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("what was read before")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(key) = entries.next_key::<String>()? {
            match self.0.get_mut(&key) {
                Some(value) => entries.next_value_seed(AsWritten(value))?,
                // Of an equal key before, whose value does not count.
                None => {
                    entries.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        for value in self.0.as_array_mut().into_iter().flatten() {
            if items.next_element_seed(AsWritten(value))?.is_none() {
                return Ok(());
            }
        }
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn secret(data: &[(&str, &str)]) -> Secret {
        let bytes = |text: &&str| ByteString(text.as_bytes().to_vec());
        Secret {
            data: Some(
                data.iter()
                    .map(|(key, text)| ((*key).to_owned(), bytes(text)))
                    .collect(),
            ),
            ..Secret::default()
        }
    }

    fn key(seed: u8) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &[seed; 32])
    }

    #[test]
    fn credentials_are_trimmed_and_both_needed() {
        let good = secret(&[("username", " admin\n"), ("password", "hunter2\n")]);
        let seen = Seen::of(&good, &key(1));
        assert_eq!(seen.login(), Some(&Credentials::new("admin", "hunter2")));
        assert!(seen.for_use(Use::Bmc).is_ok());
        for bad in [
            secret(&[("username", "admin")]),
            secret(&[("username", "admin"), ("password", " \n")]),
            secret(&[("username", ""), ("password", "x")]),
            secret(&[("value", "admin")]),
            secret(&[]),
        ] {
            let seen = Seen::of(&bad, &key(1));
            assert!(
                seen.for_use(Use::Bmc).is_err() && seen.login().is_none(),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn each_kind_of_data_has_its_key_its_fallback_and_its_own_idea_of_nothing() {
        let uses = |data: &[(&str, &str)]| {
            let seen = Seen::of(&secret(data), &key(1));
            [Use::UserData, Use::NetworkData, Use::MetaData].map(|what| seen.for_use(what).is_ok())
        };
        assert_eq!(uses(&[("userData", "#cloud-config")]), [true, true, false]);
        assert_eq!(uses(&[("networkData", "links: []")]), [false, true, false]);
        assert_eq!(uses(&[("metaData", "a: 1")]), [false, true, true]);
        assert_eq!(uses(&[("metaData", r#"{"a": 1}"#)]), [false, true, true]);
        assert_eq!(uses(&[("metaData", "[1]")]), [false, true, false]);
        assert_eq!(uses(&[("value", "a: 1")]), [true, true, true]);
        assert_eq!(uses(&[("value", "{{")]), [true, false, false]);
        assert_eq!(uses(&[("networkData", "")]), [false, true, false]);
        // The operating system would come up without a network.
        for no_map in ["- links", "eth0", "7"] {
            assert_eq!(uses(&[("networkData", no_map)]), [false; 3], "{no_map}");
        }
        assert_eq!(uses(&[("networkData", "# later")]), [false, true, false]);
        assert_eq!(uses(&[]), [false, true, false]);
        let both = secret(&[("userData", "special"), ("value", "fallback")]);
        assert_eq!(user_data(&both), Ok(&b"special"[..]));
    }

    #[test]
    fn what_overflows_a_number_stays_a_string_as_upstream_has_it() {
        let read = |text: &str| meta_data(&secret(&[("metaData", text)])).map(Value::Object);
        let texts = "sha: 61e9540\nasset: 0012345\ntags: [7E40293, {a: -1e999}, 5, 'b']\n";
        let others = "n: 12\nf: 1.5e3\nb: true\no: 0o17\nd: 2024-01-02\nq: '7'\nnone:\n";
        let texts_say =
            json!({"sha": "61e9540", "asset": "0012345", "tags": ["7E40293", {"a": "-1e999"}, 5, "b"]});
        let others_say =
            json!({"n": 12, "f": 1500.0, "b": true, "o": 15, "d": "2024-01-02", "q": "7", "none": null});
        assert_eq!(read(texts), Ok(texts_say.clone()));
        assert_eq!(read(others), Ok(others_say.clone()));
        let mut both = texts_say;
        both.as_object_mut()
            .unwrap()
            .extend(others_say.as_object().cloned().unwrap());
        assert_eq!(read(&format!("{texts}{others}")), Ok(both));
        assert_eq!(read(r#"{"sha": 61e9540}"#), Ok(json!({"sha": "61e9540"})));
    }

    #[test]
    fn of_equal_keys_the_last_counts_as_in_json() {
        let read = |text: &str| meta_data(&secret(&[("metaData", text)])).map(Value::Object);
        assert_eq!(read("a: 1\na: [2]\n"), Ok(json!({"a": [2]})));
        assert_eq!(read("a: x\na: 61e9540\n"), Ok(json!({"a": "61e9540"})));
        assert_eq!(
            read("a: {b: 61e9540}\na: {c: 7e40293}\n"),
            Ok(json!({"a": {"c": "7e40293"}}))
        );
    }

    #[test]
    fn a_line_that_cannot_be_read_is_named_without_what_it_says() {
        let read = |text: &str| meta_data(&secret(&[("metaData", text)])).unwrap_err();
        let said = read("a: 1\nb: @hunter2\n");
        assert!(
            said.starts_with("`metaData` is not a map in YAML or JSON: see line 2, column "),
            "{said}"
        );
        assert!(!said.contains("hunter2"), "{said}");
        assert_eq!(&*read("[1]"), "`metaData` is not a map in YAML or JSON");
    }

    #[test]
    fn digests_tell_contents_apart_only_within_one_process_and_only_by_what_counts() {
        let of = |data: &[(&str, &str)], seed| {
            Seen::of(&secret(data), &key(seed))
                .for_use(Use::Bmc)
                .clone()
                .unwrap()
                .digest
        };
        let one = [("username", "ab"), ("password", "c")];
        assert_eq!(of(&one, 1), of(&one, 1));
        assert_ne!(of(&one, 1), of(&one, 2));
        assert_ne!(of(&one, 1), of(&[("username", "a"), ("password", "bc")], 1));
        assert_eq!(
            of(&one, 1),
            of(&[("username", "ab"), ("password", "c"), ("note", "n")], 1)
        );
        let seen = Seen::of(&secret(&one), &key(1));
        assert_eq!(format!("{seen:?}"), "Seen", "nothing of it is shown");
    }

    #[test]
    fn texts_that_swell_or_nest_without_end_are_refused_and_bring_nothing_down() {
        let laughs: String = (1..30)
            .map(|level| {
                format!(
                    "a{level}: &a{level} [{}]\n",
                    format!("*a{},", level - 1).repeat(9)
                )
            })
            .collect();
        let laughs = format!("a0: &a0 [lol]\n{laughs}");
        for text in [
            laughs,
            "[".repeat(100_000),
            "{\"a\":".repeat(20_000),
            "- ".repeat(50_000),
            "\u{feff}%YAML 9\n---\n\0".to_owned(),
        ] {
            let seen = Seen::of(&secret(&[("networkData", &text), ("metaData", &text)]), &key(1));
            assert!(seen.for_use(Use::NetworkData).is_err(), "{}", &text[..20]);
            assert!(seen.for_use(Use::MetaData).is_err(), "{}", &text[..20]);
        }
    }

    #[test]
    fn what_would_not_fit_into_a_job_is_refused_beforehand() {
        let of = |bytes: usize| {
            let text = format!("a: {}", "x".repeat(bytes - 3));
            let data = [("userData", text.as_str()), ("networkData", &text)];
            let seen = Seen::of(&secret(&data), &key(1));
            [Use::UserData, Use::NetworkData].map(|what| seen.for_use(what).is_ok())
        };
        assert_eq!(of(128 << 10), [true, true]);
        assert_eq!(of((128 << 10) + 1), [true, false]);
        assert_eq!(of(512 << 10), [true, false]);
        assert_eq!(of((512 << 10) + 1), [false, false]);
    }
}
