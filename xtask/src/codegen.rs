//! Generated files: made by the programs that know, compared by CI.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};

use crate::{cargo, command::Cmd};

/// Directories that hold generated files only, and the controller's word for them.
const GENERATED: &[(&str, &str)] = &[("crds", "deploy/crds"), ("roles", "deploy/manifests/roles")];

/// The one file beside them that people write: which of them `kubectl apply -k` installs.
const LIST: &str = "kustomization.yaml";

/// Raw results of the benchmarks, committed.
pub(crate) const DISCOVERY_RESULTS: &str = "docs/benchmarks/discovery.json";
pub(crate) const WRITE_RESULTS: &str = "docs/benchmarks/write.json";
pub(crate) const HOSTS_RESULTS: &str = "docs/benchmarks/hosts.json";
pub(crate) const PROVISION_RESULTS: &str = "docs/benchmarks/provision.json";

/// The pages that are made from benchmarks' raw results, once there are any, and the lab's word for each.
const BENCHMARKS: [(&str, &str, &str); 4] = [
    ("docs/benchmarks.md", DISCOVERY_RESULTS, "discovery"),
    ("docs/benchmarks-write.md", WRITE_RESULTS, "write"),
    ("docs/benchmarks-hosts.md", HOSTS_RESULTS, "hosts"),
    ("docs/benchmarks-provision.md", PROVISION_RESULTS, "provision"),
];

/// The pages that are made from the operator's own tables and from the command line.
const PAGES: [&str; 2] = ["states.md", "flags.md"];

/// Writes them all.
pub(crate) fn write() -> Result<()> {
    build()?;
    for (what, dir) in GENERATED {
        generate(what, Path::new(dir))?;
    }
    generate("pages", Path::new("docs"))?;
    BENCHMARKS
        .iter()
        .try_for_each(|(page, results, word)| benchmark(results, word, Path::new(page)))
}

/// Fails if one of them is not what would be written.
pub(crate) fn check() -> Result<()> {
    build()?;
    for (what, dir) in GENERATED {
        let fresh = Path::new("target/codegen").join(what);
        if fresh.exists() {
            fs::remove_dir_all(&fresh).with_context(|| format!("removing {}", fresh.display()))?;
        }
        generate(what, &fresh)?;
        compare(Path::new(dir), &fresh)?;
    }
    let pages = Path::new("target/codegen/pages");
    generate("pages", pages)?;
    for page in PAGES {
        same(&Path::new("docs").join(page), &pages.join(page))?;
    }
    for (page, results, word) in BENCHMARKS {
        let fresh = Path::new("target/codegen").join(Path::new(page).file_name().unwrap_or_default());
        if fresh.exists() {
            fs::remove_file(&fresh).with_context(|| format!("removing {}", fresh.display()))?;
        }
        benchmark(results, word, &fresh)?;
        same(Path::new(page), &fresh)?;
    }
    Ok(())
}

fn benchmark(results: &str, word: &str, out: &Path) -> Result<()> {
    if !Path::new(results).exists() {
        return Ok(());
    }
    Cmd::new("target/debug/muster-lab")
        .args(["bench-page", word, "--json", results, "--out"])
        .arg(out)
        .run()
}

fn build() -> Result<()> {
    cargo()
        .args(["build", "--quiet"])
        .args(["--package", "muster-controller", "--package", "muster-tests"])
        .run()
}

fn generate(what: &str, out: &Path) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("creating {}", out.display()))?;
    Cmd::new("target/debug/muster-controller")
        .args(["manifests", what, "--out"])
        .arg(out)
        .run()
}

fn compare(committed: &Path, fresh: &Path) -> Result<()> {
    let names = |dir: &Path| -> Result<Vec<_>> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .with_context(|| format!("listing {}", dir.display()))?
            .filter_map(|entry| {
                entry
                    .ok()
                    .filter(|entry| entry.path().is_file() && entry.file_name() != LIST)
                    .map(|entry| entry.file_name())
            })
            .collect();
        names.sort();
        Ok(names)
    };
    if names(committed)? != names(fresh)? {
        bail!(
            "{} does not contain the generated files: run `cargo xtask codegen`",
            committed.display()
        );
    }
    for name in names(fresh)? {
        same(&committed.join(&name), &fresh.join(&name))?;
    }
    Ok(())
}

/// Both files have the same content, or neither is there.
fn same(committed: &Path, fresh: &Path) -> Result<()> {
    if fs::read(committed).ok() != fs::read(fresh).ok() {
        bail!("{} is stale: run `cargo xtask codegen`", committed.display());
    }
    Ok(())
}
