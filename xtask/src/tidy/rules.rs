//! The rules.

use super::{Violation, cycles, tree::Tree};

/// A rule: what breaks it.
pub(crate) type Rule = fn(&Tree) -> Vec<Violation>;

/// All rules that fail.
pub(crate) const ALL: &[Rule] = &[
    proto_has_no_io,
    what_matters_is_decided_by_pure_modules,
    modules_are_as_pure_as_they_say,
    agent_knows_no_controller,
    boot_knows_no_agents,
    cycles::modules_import_without_cycles,
    only_sys_names_absolute_paths,
    dependencies_are_sorted,
    dependencies_are_explained,
    merges_are_finished,
    nothing_is_left_undone,
    no_machine_paths,
    public_pages_exist,
    promises_are_held,
];

/// The modules in which what matters is decided: plain data in, plan out. Their first comment has to say that they are pure.
const DECIDE: &[&str] = &[
    "controller/src/boot/policy.rs",
    "controller/src/boot/decide.rs",
    "controller/src/agents/identity.rs",
    "controller/src/discovery/next.rs",
    "controller/src/host/next.rs",
    "controller/src/host/guard.rs",
    "controller/src/lease/next.rs",
];

/// Plain data, although it comes from a crate that does IO: by which name it goes, and where it comes from.
const DATA: &[(&str, &str)] = &[
    ("Bytes", "hyper::body::Bytes"),
    ("Instant", "tokio::time::Instant"),
];

const IO: &[&str] = &[
    "std::fs",
    "std::process",
    "tokio",
    "hyper",
    "kube::Client",
    "kube::client",
    "kube::runtime",
    "kube::Api",
    "kube::api",
];
const CLOCKS: &[&str] = &["SystemTime", "Instant::now", "Timestamp::now", "Zoned::now"];
const SOCKETS: &[&str] = &["UdpSocket", "TcpStream", "TcpListener", "socket2", "pnet"];

fn found(path: &str, line: usize, what: impl Into<String>) -> Violation {
    Violation {
        path: path.to_owned(),
        line,
        what: what.into(),
    }
}

fn forbid(tree: &Tree, prefix: &str, words: &[&str], why: &str) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (path, text) in tree.files(prefix, ".rs") {
        for (line, code) in Tree::code(text) {
            let code = DATA
                .iter()
                .fold(code.to_owned(), |code, (name, path)| code.replace(path, name));
            for word in words.iter().filter(|word| code.contains(**word)) {
                violations.push(found(path, line, format!("`{word}`: {why}")));
            }
        }
    }
    violations
}

fn proto_has_no_io(tree: &Tree) -> Vec<Violation> {
    let words: Vec<&str> = [IO, CLOCKS, SOCKETS].concat();
    forbid(
        tree,
        "proto/src/",
        &words,
        "proto has no IO, no client and no clock",
    )
}

fn what_matters_is_decided_by_pure_modules(tree: &Tree) -> Vec<Violation> {
    let map = tree.get("ARCHITECTURE.md").unwrap_or_default();
    let mut violations = Vec::new();
    for path in DECIDE {
        if !tree.get(path).is_some_and(says_that_it_is_pure) {
            violations.push(found(
                path,
                0,
                "its first comment does not say that this module is pure",
            ));
        }
        let short = path.replace("controller/src/", "");
        if !map.contains(&format!("`{short}`")) {
            violations.push(found(
                "ARCHITECTURE.md",
                0,
                format!("its list of pure modules lacks {short}"),
            ));
        }
    }
    violations
}

/// True if the first comment of a file says `Pure`, without exception.
fn says_that_it_is_pure(text: &str) -> bool {
    let head = text.lines().take_while(|line| line.starts_with("//!"));
    let head = head
        .map(|line| line.trim_start_matches("//!"))
        .collect::<String>();
    let mut after = head
        .match_indices("Pure")
        .map(|(at, word)| &head[at + word.len()..]);
    after.any(|after| !after.starts_with(char::is_alphanumeric) && !after.starts_with(" but"))
}

fn modules_are_as_pure_as_they_say(tree: &Tree) -> Vec<Violation> {
    let words: Vec<&str> = [IO, CLOCKS, SOCKETS, &["async fn"]].concat();
    let pure = tree
        .files("", ".rs")
        .filter(|(_, text)| says_that_it_is_pure(text));
    pure.flat_map(|(path, _)| forbid(tree, path, &words, "this module says that it is pure"))
        .collect()
}

fn agent_knows_no_controller(tree: &Tree) -> Vec<Violation> {
    let mut violations = forbid(
        tree,
        "agent/",
        &["muster_controller"],
        "the agent never depends on the controller",
    );
    let manifest = tree.get("agent/Cargo.toml").unwrap_or_default();
    for (at, line) in manifest.lines().enumerate() {
        if line.starts_with("muster-controller")
            || line.starts_with("kube")
            || line.starts_with("k8s-openapi")
        {
            violations.push(found(
                "agent/Cargo.toml",
                at + 1,
                "the agent depends on no controller and no Kubernetes client",
            ));
        }
    }
    violations
}

fn boot_knows_no_agents(tree: &Tree) -> Vec<Violation> {
    let why = "agents build on boot, and both on token: nothing imports what builds on it";
    let boot = forbid(tree, "controller/src/boot/", &["agents::"], why);
    let token = forbid(tree, "controller/src/token.rs", &["agents::", "boot::"], why);
    boot.into_iter().chain(token).collect()
}

fn only_sys_names_absolute_paths(tree: &Tree) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (path, text) in tree
        .files("agent/src/", ".rs")
        .filter(|(path, _)| !path.starts_with("agent/src/sys/"))
    {
        if path.ends_with("tests.rs") || path.contains("/tests/") {
            continue;
        }
        for (line, code) in Tree::code(text) {
            for root in ["\"/sys", "\"/proc", "\"/dev/", "\"/lib/", "\"/run"] {
                // `/dev/NAME` is also how a disk is called; only opening below the real root is forbidden.
                if code.contains(root) && !code.contains("format!(\"/dev/") {
                    violations.push(found(
                        path,
                        line,
                        format!("{root}…\": only agent/src/sys opens absolute paths"),
                    ));
                }
            }
        }
    }
    violations
}

fn dependencies_are_sorted(tree: &Tree) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (path, text) in tree.files("", "Cargo.toml") {
        let mut last: Option<&str> = None;
        let mut inside = false;
        for (at, line) in text.lines().enumerate() {
            if line.starts_with('[') {
                inside = line.contains("dependencies]");
                last = None;
            } else if line.starts_with('#') {
                continue;
            } else if line.is_empty() {
                last = None;
            } else if let (true, Some((name, _))) = (inside, line.split_once(['=', '.'])) {
                let name = name.trim();
                if last.is_some_and(|last| last > name) {
                    violations.push(found(
                        path,
                        at + 1,
                        format!("{name} stands after {}: sort", last.unwrap_or_default()),
                    ));
                }
                last = Some(name);
            }
        }
    }
    violations
}

fn dependencies_are_explained(tree: &Tree) -> Vec<Violation> {
    let page = tree.get("docs/dependencies.md").unwrap_or_default();
    let manifest = tree.get("Cargo.toml").unwrap_or_default();
    let section = manifest
        .split("[workspace.dependencies]")
        .nth(1)
        .and_then(|rest| rest.split("\n[").next());
    let names = section
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.split_once('=').map(|(name, _)| name.trim()));
    names
        .filter(|name| !name.starts_with("muster-") && !page.contains(&format!("| `{name}` |")))
        .map(|name| {
            found(
                "docs/dependencies.md",
                0,
                format!("no line for `{name}`: why, who keeps it, what it pulls in"),
            )
        })
        .collect()
}

/// The one reason for which a test is left out: then it is part of another.
const STARTED_BY_ANOTHER: &str = "another test starts it";

/// What a merge leaves in files where two changes meet.
fn merges_are_finished(tree: &Tree) -> Vec<Violation> {
    let is_mark = |line: &str| ["<<<<<<< ", ">>>>>>> "].iter().any(|mark| line.starts_with(mark));
    let marks = tree.files("", "").flat_map(|(path, text)| {
        let lines = text.lines().enumerate().filter(move |(_, line)| is_mark(line));
        lines.map(move |(at, _)| found(path, at + 1, "an unfinished merge: choose what stays"))
    });
    marks.collect()
}

fn nothing_is_left_undone(tree: &Tree) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (path, text) in tree
        .files("", ".rs")
        .filter(|(path, _)| !path.starts_with("xtask/src/tidy/"))
    {
        for (at, line) in text.lines().enumerate() {
            for mark in ["todo!(", "unimplemented!(", "TODO", "FIXME", "XXX", "#[ignore"] {
                if line.contains(mark) && !line.contains(STARTED_BY_ANOTHER) {
                    violations.push(found(
                        path,
                        at + 1,
                        format!("`{mark}`: finish it, or open an issue"),
                    ));
                }
            }
        }
    }
    violations
}

fn no_machine_paths(tree: &Tree) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (path, text) in tree
        .files("", "")
        .filter(|(path, _)| !path.starts_with("xtask/src/tidy/"))
    {
        for (at, line) in text.lines().enumerate() {
            for place in ["/home/", "/root/", "/work/"] {
                if line.contains(place) {
                    violations.push(found(path, at + 1, format!("`{place}`: a path of one machine")));
                }
            }
        }
    }
    violations
}

fn public_pages_exist(tree: &Tree) -> Vec<Violation> {
    [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "SPECIFICATION.md",
        "SECURITY.md",
        "LICENSE",
        "NOTICE",
    ]
    .iter()
    .filter(|page| tree.get(page).is_none())
    .map(|page| found(page, 0, "missing"))
    .collect()
}

/// What `SPECIFICATION.md` names as holding a promise is there: a test by its function, a file by its path.
fn promises_are_held(tree: &Tree) -> Vec<Violation> {
    let page = "SPECIFICATION.md";
    let mut violations = Vec::new();
    let text = tree.get(page).unwrap_or_default();
    for (at, line) in text.lines().enumerate() {
        let mut cells = line.split('|').skip(1);
        let (Some(_), Some(holders)) = (cells.next(), cells.next()) else {
            continue;
        };
        // Between two backticks stands every second part.
        for holder in holders.split('`').skip(1).step_by(2) {
            let held =
                tree.get(holder).is_some() || tree.files("", ".rs").any(|(_, text)| has_test(text, holder));
            if !held {
                let what = format!(
                    "`{holder}` is neither a test nor a file: a requirement must name what checks it"
                );
                violations.push(found(page, at + 1, what));
            }
        }
    }
    violations
}

/// True if a function of that name stands there below an attribute that makes it a test.
fn has_test(text: &str, name: &str) -> bool {
    let function = format!("fn {name}(");
    let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
    let declared = |at: &usize| lines[*at].trim_start_matches("async ").starts_with(&function);
    (0..lines.len()).filter(declared).any(|at| {
        let above = lines[..at].iter().rev();
        above
            .take_while(|line| line.starts_with("#[") || line.starts_with("//"))
            .any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"))
    })
}

/// Rust files of more than 600 lines before their tests, the longest first: a question, no violation.
pub(crate) fn long_files(tree: &Tree) -> Vec<(&str, usize)> {
    let mut long: Vec<_> = tree
        .files("", ".rs")
        .map(|(path, text)| (path, Tree::code(text).count()))
        .filter(|(path, lines)| *lines > 600 && !path.contains("tests"))
        .collect();
    long.sort_by_key(|(_, lines)| std::cmp::Reverse(*lines));
    long
}
