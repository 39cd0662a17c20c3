//! Whether a secret can be seen where it has no business to be. A canary is a word of letters, digits and hyphens that stands in a
//! Secret and nowhere else.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};
use kube::{
    Api, ResourceExt,
    api::{DynamicObject, ListParams},
    discovery::{Discovery, Scope, verbs},
};

use super::Stage;
use crate::{lines::Line, machine::CONSOLE};

/// Kinds that must have been looked at, or the look was worth nothing.
const KINDS: [&str; 7] = [
    "BareMetalHost",
    "Enrolment",
    "Event",
    "HardwareData",
    "Lease",
    "Segment",
    "Server",
];

/// One canary, and the forms in which it shows.
struct Canary<'a> {
    plain: &'a str,
    forms: Vec<String>,
}

impl Canary<'_> {
    /// Plain, as `Debug` shows its bytes, in hexadecimal, and as it looks inside of something longer that is written in base64 (RFC 4648):
    /// by where it begins in a group of three bytes, in both alphabets.
    fn new(plain: &str) -> Canary<'_> {
        let shown = |each: fn(u8) -> String, between: &str| -> String {
            let bytes: Vec<String> = plain.bytes().map(each).collect();
            bytes.join(between)
        };
        let mut forms = vec![
            plain.to_owned(),
            shown(|byte| byte.to_string(), ", "),
            shown(|byte| format!("{byte:02x}"), ""),
            shown(|byte| format!("{byte:02X}"), ""),
        ];
        for shift in 0..3 {
            let bytes: Vec<u8> = std::iter::repeat_n(0, shift).chain(plain.bytes()).collect();
            let text = BASE64_STANDARD_NO_PAD.encode(&bytes);
            // Without the characters in which bits of what stands before or after it are mixed.
            let (first, last) = ((shift * 8).div_ceil(6), bytes.len() * 8 / 6);
            let form = text[first..last].to_owned();
            forms.push(form.replace('+', "-").replace('/', "_"));
            forms.push(form);
        }
        Canary { plain, forms }
    }

    fn is_in(&self, bytes: &[u8]) -> bool {
        // Bytes that are no text do not hide the text beside them.
        let text = String::from_utf8_lossy(bytes);
        self.forms.iter().any(|form| text.contains(form))
    }
}

impl Stage {
    /// Fails if one of `canaries` stands, plain or in base64, in an object other than a Secret, in a file that the controller wrote, its
    /// log among them, or in `said`, the lines of a machine's console.
    pub async fn shows_nowhere(&self, canaries: &[&str], said: &[Line]) -> Result<()> {
        let canaries: Vec<_> = canaries.iter().map(|canary| Canary::new(canary)).collect();
        let mut seen = Vec::new();
        let mut look = |place: &str, bytes: &[u8]| {
            let found = canaries.iter().filter(|canary| canary.is_in(bytes));
            seen.extend(found.map(|canary| format!("{} in {place}", canary.plain)));
        };
        self.objects(&mut look).await?;
        files(self.scratch.path(), &mut look)?;
        for line in said {
            look("the console", line.text.as_bytes());
        }
        ensure!(seen.is_empty(), "secrets are shown: {seen:#?}");
        Ok(())
    }

    async fn objects(&self, look: &mut impl FnMut(&str, &[u8])) -> Result<()> {
        let client = &self.client.0;
        let found = Discovery::new(client.clone()).run().await;
        let found = found.context("ask which kinds there are")?;
        let mut kinds = Vec::new();
        for (kind, can) in found.groups().flat_map(|group| group.recommended_resources()) {
            let is_secret = kind.group.is_empty() && kind.kind == "Secret";
            if is_secret || can.scope != Scope::Namespaced || !can.supports_operation(verbs::LIST) {
                continue;
            }
            let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &self.namespace, &kind);
            let list = api.list(&ListParams::default()).await;
            for object in list.with_context(|| format!("list {}", kind.plural))? {
                let place = format!("{} {}", kind.kind, object.name_any());
                look(&place, &serde_json::to_vec(&object).context("write an object")?);
            }
            kinds.push(kind.kind);
        }
        let missed = KINDS
            .iter()
            .filter(|kind| !kinds.iter().any(|seen| seen == *kind));
        let missed: Vec<_> = missed.collect();
        ensure!(missed.is_empty(), "{missed:?} are not among {kinds:?}");
        Ok(())
    }
}

/// The files below `dir`, but for those of machines: their disks hold what they were given.
fn files(dir: &Path, look: &mut impl FnMut(&str, &[u8])) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("list {}", dir.display()))?.path();
        if path.is_dir() && !path.join(CONSOLE).exists() {
            files(&path, look)?;
        } else if path.is_file() {
            let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            look(&path.display().to_string(), &bytes);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use base64::prelude::BASE64_URL_SAFE;

    use super::*;

    #[test]
    fn a_canary_is_seen_wherever_it_stands_in_what_is_encoded() {
        let canary = Canary::new("canary-1f>?7");
        for before in ["", "a", "ab", "abc", "admin:"] {
            let text = format!("{before}canary-1f>?7 and more");
            assert!(canary.is_in(text.as_bytes()));
            for encoded in [
                BASE64_STANDARD_NO_PAD.encode(&text),
                BASE64_URL_SAFE.encode(&text),
            ] {
                assert!(canary.is_in(encoded.as_bytes()), "{text}: {encoded}");
            }
        }
        let other = "canary-2f>?7 and more";
        assert!(!canary.is_in(other.as_bytes()));
        assert!(!canary.is_in(BASE64_STANDARD_NO_PAD.encode(other).as_bytes()));
    }
}
