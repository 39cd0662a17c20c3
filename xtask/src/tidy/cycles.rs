//! Which top-level modules of a crate import which others, and where that leads back to where it began.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Violation, tree::Tree};

/// From each module to those that it imports, with the file and the line where it does so first.
type Imports<'t> = BTreeMap<&'t str, BTreeMap<&'t str, (&'t str, usize)>>;

/// In each crate, no import of a top-level module leads back to it through the imports of others. What is for tests only does not count.
pub(crate) fn modules_import_without_cycles(tree: &Tree) -> Vec<Violation> {
    let sources: BTreeSet<&str> = tree
        .files("", ".rs")
        .filter_map(|(path, _)| path.strip_suffix("lib.rs").or(path.strip_suffix("main.rs")))
        .filter(|source| source.ends_with("src/"))
        .collect();
    sources
        .into_iter()
        .flat_map(|source| cycles(&imports_of(tree, source)))
        .collect()
}

/// The cycles in `imports`: of those that share modules one at least.
fn cycles(imports: &Imports<'_>) -> Vec<Violation> {
    let ways = imports.keys().filter_map(|&module| {
        let way = way_back(imports, module)?;
        // The others on it have it, too, or a shorter one.
        way.iter().all(|&other| module <= other).then_some(way)
    });
    ways.map(|way| violation(imports, &way)).collect()
}

fn violation(imports: &Imports<'_>, way: &[&str]) -> Violation {
    let edges = way.iter().zip(way.iter().cycle().skip(1));
    let places: Vec<(&str, usize)> = edges.clone().map(|(from, to)| imports[from][to]).collect();
    let shown: Vec<String> = edges
        .zip(&places)
        .map(|((_, to), (path, line))| format!("{path}:{line} imports {to}"))
        .collect();
    let what = format!(
        "{} -> {}: these modules import each other in a cycle ({}); move what both sides need into a module of its own",
        way.join(" -> "),
        way[0],
        shown.join(", ")
    );
    let (path, line) = places[0];
    Violation {
        path: path.to_owned(),
        line,
        what,
    }
}

/// The modules of the shortest way from `module` back to it, without its end.
fn way_back<'t>(imports: &Imports<'t>, module: &'t str) -> Option<Vec<&'t str>> {
    let mut seen = BTreeSet::new();
    let mut ways = VecDeque::from([vec![module]]);
    while let Some(way) = ways.pop_front() {
        for &to in imports.get(way.last()?).into_iter().flat_map(BTreeMap::keys) {
            if to == module {
                return Some(way);
            }
            if seen.insert(to) {
                ways.push_back([&way[..], &[to]].concat());
            }
        }
    }
    None
}

/// What the modules of the crate below `source` import.
fn imports_of<'t>(tree: &'t Tree, source: &'t str) -> Imports<'t> {
    let for_tests: Vec<String> = tree
        .files(source, ".rs")
        .flat_map(|(path, text)| test_modules(path, text))
        .collect();
    let is_for_tests = |path: &str| {
        let mut rests = for_tests.iter().filter_map(|module| path.strip_prefix(&**module));
        rests.any(|rest| rest == ".rs" || rest.starts_with('/'))
    };
    let files: Vec<(&str, &str, &str)> = tree
        .files(source, ".rs")
        .filter(|(path, _)| !is_for_tests(path))
        .map(|(path, text)| (module_of(&path[source.len()..]), path, text))
        .collect();
    let modules: BTreeSet<&str> = files.iter().map(|(module, ..)| *module).collect();
    let [lib, main] = ["lib.rs", "main.rs"].map(|root| tree.get(&format!("{source}{root}")));
    let root = tokens(lib.or(main).unwrap_or_default());
    let mut imports = Imports::new();
    for (from, path, text) in files {
        for (line, name) in from_the_crate(&tokens(text)) {
            let known = modules.contains(name).then_some(name);
            let to = known.or_else(|| origin(&root, name));
            if let Some(to) = to.filter(|to| *to != from && modules.contains(to)) {
                imports.entry(from).or_default().entry(to).or_insert((path, line));
            }
        }
    }
    imports
}

/// The top-level module that a file below the crate's sources belongs to.
fn module_of(path: &str) -> &str {
    let first = path.split('/').next().unwrap_or_default();
    first.strip_suffix(".rs").unwrap_or(first)
}

/// Where the modules lie that a file has for tests only, by their paths without `.rs`.
fn test_modules(path: &str, text: &str) -> Vec<String> {
    let (dir, file) = path.rsplit_once('/').unwrap_or_default();
    let home = match file {
        "lib.rs" | "main.rs" | "mod.rs" => dir,
        _ => path.trim_end_matches(".rs"),
    };
    let pairs = text.lines().zip(text.lines().skip(1));
    pairs
        .filter(|(line, _)| line.trim() == "#[cfg(test)]")
        .filter_map(|(_, next)| next.split_once("mod ")?.1.split([';', ' ']).next())
        .map(|name| format!("{home}/{name}"))
        .collect()
}

/// The words and signs of a file's code, each with its line.
fn tokens(text: &str) -> Vec<(usize, &str)> {
    let is_word = |sign: char| sign.is_alphanumeric() || sign == '_';
    let mut tokens = Vec::new();
    for (line, code) in Tree::code(text) {
        let mut rest = code.trim_start();
        while let Some(first) = rest.chars().next() {
            let end = if is_word(first) {
                rest.find(|sign: char| !is_word(sign)).unwrap_or(rest.len())
            } else {
                first.len_utf8()
            };
            let (token, after) = rest.split_at(end);
            tokens.push((line, token));
            rest = after.trim_start();
        }
    }
    tokens
}

/// What stands first in `crate::NAME…` and in each part of `crate::{NAME…, NAME…}`.
fn from_the_crate<'t>(tokens: &[(usize, &'t str)]) -> Vec<(usize, &'t str)> {
    let mut names = Vec::new();
    for at in 0..tokens.len() {
        let [(_, "crate"), (_, ":"), (_, ":"), rest @ ..] = &tokens[at..] else {
            continue;
        };
        let mut depth = 0;
        let mut last = ",";
        for &(line, token) in rest {
            match token {
                "{" => depth += 1,
                "}" => depth -= 1,
                name if depth <= 1 && ["{", ","].contains(&last) => names.push((line, name)),
                _ => {}
            }
            if depth == 0 {
                break;
            }
            last = token;
        }
    }
    names
}

/// The module from which the crate's root takes `item` with a `use`.
fn origin<'t>(root: &[(usize, &'t str)], item: &str) -> Option<&'t str> {
    let mut statements = root.split(|(_, token)| *token == ";");
    statements.find_map(|statement| {
        let at = statement.iter().position(|(_, token)| *token == "use")?;
        let [(_, module), rest @ ..] = &statement[at + 1..] else {
            return None;
        };
        rest.iter().any(|(_, token)| *token == item).then_some(*module)
    })
}
