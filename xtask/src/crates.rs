//! The crates that are in the binaries, and their licences: who passes binaries on passes these on with them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cargo;

/// A crate as the licence file names it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Crate {
    /// Name and version.
    name: String,
    /// As its manifest says it (SPDX).
    licence: String,
    /// Whose repository it is from.
    source: String,
    /// Texts that lie beside its manifest.
    texts: Vec<String>,
}

/// One text with the crates that `packages` are made of for `target`, and the licences of each.
pub(crate) fn licences(packages: &[&str], target: &str) -> Result<String> {
    let linked = linked(packages, target)?;
    let metadata = cargo()
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--filter-platform",
            target,
        ])
        .output()?;
    let metadata: Value = serde_json::from_str(&metadata).context("reading what `cargo metadata` says")?;
    let mut crates = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let text = |field: &str| package[field].as_str().unwrap_or_default();
        let name = format!("{} {}", text("name"), text("version"));
        // Our own have no source.
        if package["source"].is_null() || !linked.contains(&name) {
            continue;
        }
        let manifest = PathBuf::from(text("manifest_path"));
        let dir = manifest
            .parent()
            .with_context(|| format!("the directory of {name}"))?;
        crates.push(Crate {
            licence: text("license").to_owned(),
            source: text("repository").to_owned(),
            texts: texts(dir)?,
            name,
        });
    }
    if crates.is_empty() {
        bail!("`cargo metadata` names no crate of {packages:?}");
    }
    crates.sort();
    Ok(page(&crates))
}

/// Name and version of each crate that ends up in the binaries of `packages`.
fn linked(packages: &[&str], target: &str) -> Result<BTreeSet<String>> {
    let packages = packages.iter().flat_map(|name| ["--package", name]);
    let tree = cargo()
        .args(["tree", "--edges", "normal", "--prefix", "none", "--locked"])
        .args(["--format", "{p}", "--target", target])
        .args(packages)
        .output()?;
    Ok(tree.lines().filter_map(named).collect())
}

/// `NAME vVERSION …` without what follows.
fn named(line: &str) -> Option<String> {
    let mut words = line.split_whitespace();
    let (name, version) = (words.next()?, words.next()?.strip_prefix('v')?);
    Some(format!("{name} {version}"))
}

/// The licences and notices in `dir`.
fn texts(dir: &Path) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        let path = entry
            .with_context(|| format!("listing {}", dir.display()))?
            .path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .to_uppercase();
        let begins = [
            "LICENSE",
            "LICENCE",
            "COPYING",
            "COPYRIGHT",
            "NOTICE",
            "UNLICENSE",
        ];
        if path.is_file() && begins.iter().any(|begin| name.starts_with(begin)) {
            paths.push(path);
        }
    }
    paths.sort();
    let read = |path: &PathBuf| {
        let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        Ok(String::from_utf8_lossy(&bytes).trim_end().replace('\r', ""))
    };
    paths.iter().map(read).collect()
}

/// All crates, and then each text once with those that it is of.
fn page(crates: &[Crate]) -> String {
    let mut page = String::from(
        "Crates in the binaries, with their licences; each text stands once, below the crates that carry it.\n\n",
    );
    for Crate {
        name,
        licence,
        source,
        texts,
    } in crates
    {
        let none = if texts.is_empty() {
            "; it carries no text"
        } else {
            ""
        };
        page += &format!("{name}: {licence}; {source}{none}\n");
    }
    let mut of: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for Crate { name, texts, .. } in crates {
        for text in texts {
            of.entry(text).or_default().push(name);
        }
    }
    let mut all: Vec<_> = of.into_iter().collect();
    all.sort_by(|(_, one), (_, other)| one.cmp(other));
    let rule = "-".repeat(72);
    for (text, names) in all {
        page += &format!("\n{rule}\n{}\n{rule}\n\n{text}\n", names.join(", "));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_text_stands_once_with_the_crates_that_carry_it() {
        let one = |name: &str, texts: &[&str]| Crate {
            name: name.to_owned(),
            licence: "MIT".to_owned(),
            source: "https://example.com".to_owned(),
            texts: texts.iter().map(|text| (*text).to_owned()).collect(),
        };
        let page = page(&[
            one("a 1", &["same"]),
            one("b 2", &["same", "other"]),
            one("c 3", &[]),
        ]);
        assert!(
            page.contains("a 1, b 2\n")
                && page.contains("c 3: MIT; https://example.com; it carries no text\n")
        );
        assert_eq!(
            (page.matches("same").count(), page.matches("other").count()),
            (1, 1)
        );
    }

    #[test]
    fn the_crates_of_the_agent_are_named_and_ours_are_not() {
        let page = licences(&["muster-agent"], "x86_64-unknown-linux-gnu").expect("the crates");
        for (name, is_there) in [
            ("\nrustls ", true),
            ("\nkube ", false),
            ("\nmuster-proto ", false),
        ] {
            assert_eq!(page.contains(name), is_there, "{name}");
        }
        assert!(page.contains("Permission is hereby granted"));
    }
}
