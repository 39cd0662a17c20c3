//! The rules of the house that no compiler checks. A rule is a pure function over the tree's text; each has a test that seeds a violation.

mod cycles;
mod rules;
#[cfg(test)]
mod tests;
mod tree;

use std::path::Path;

use anyhow::{Result, bail};
use tree::Tree;

/// One line that breaks a rule.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) path: String,
    /// Counted from 1; 0 speaks of the whole file.
    pub(crate) line: usize,
    pub(crate) what: String,
}

/// Checks every rule; lists, without failing, what may hide a second concept.
pub(crate) fn run(root: &Path) -> Result<()> {
    let tree = Tree::read(root)?;
    for (path, lines) in rules::long_files(&tree) {
        println!(
            "question: {path} has {lines} lines before its tests: which second concept is hiding in it?"
        );
    }
    let violations: Vec<Violation> = rules::ALL.iter().flat_map(|rule| rule(&tree)).collect();
    for violation in &violations {
        println!("{}:{}: {}", violation.path, violation.line, violation.what);
    }
    if !violations.is_empty() {
        bail!("{} violations of the rules in ARCHITECTURE.md", violations.len());
    }
    Ok(())
}
