//! The repository as text.

use std::{collections::BTreeMap, path::Path};

use anyhow::Result;

use crate::command::Cmd;

/// Every text file that git knows or would take, by its path from the top.
pub(crate) struct Tree(BTreeMap<String, String>);

impl Tree {
    /// Reads the repository at `root`; files that are no UTF-8 are left out.
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let list = Cmd::new("git")
            .dir(root)
            .args(["ls-files", "--cached", "--others", "--exclude-standard"])
            .output()?;
        let mut files = BTreeMap::new();
        for path in list.lines() {
            let Ok(bytes) = std::fs::read(root.join(path)) else {
                continue;
            };
            if let Ok(text) = String::from_utf8(bytes) {
                files.insert(path.to_owned(), text);
            }
        }
        anyhow::ensure!(!files.is_empty(), "git lists no file in {}", root.display());
        Ok(Tree(files))
    }

    #[cfg(test)]
    pub(crate) fn of(files: &[(&str, &str)]) -> Self {
        Tree(
            files
                .iter()
                .map(|(path, text)| ((*path).to_owned(), (*text).to_owned()))
                .collect(),
        )
    }

    pub(crate) fn get(&self, path: &str) -> Option<&str> {
        self.0.get(path).map(String::as_str)
    }

    /// Files whose path begins with `prefix` and ends with `suffix`.
    pub(crate) fn files<'a>(
        &'a self,
        prefix: &'a str,
        suffix: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a str)> {
        let fits = move |path: &str| path.starts_with(prefix) && path.ends_with(suffix);
        self.0
            .iter()
            .filter(move |(path, _)| fits(path))
            .map(|(path, text)| (path.as_str(), text.as_str()))
    }

    /// The lines of a Rust file without its unit tests and without comments, numbered from 1.
    ///
    /// Unit tests are what stands behind `#[cfg(test)]`: a `mod tests;` is one line wherever it stands, an inline `mod` goes to
    /// the brace that closes it; anything else is code that tests share, and stays.
    pub(crate) fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
        let mut lines = text.lines().enumerate().peekable();
        std::iter::from_fn(move || {
            loop {
                let (at, line) = lines.next()?;
                let is_module = |line: &str| {
                    line.split_whitespace()
                        .take_while(|word| !word.starts_with("//"))
                        .any(|word| word == "mod")
                };
                let follows = lines.next_if(|(_, next)| line.trim() == "#[cfg(test)]" && is_module(next));
                let Some((_, module)) = follows else {
                    return Some((at + 1, line.split_once("//").map_or(line, |(code, _)| code)));
                };
                if module.contains('{') && !module.trim_end().ends_with('}') {
                    // Formatted code closes a block in the column where it began.
                    let indent = module.len() - module.trim_start().len();
                    let closes = |line: &str| line.trim_end().len() == indent + 1 && line.trim() == "}";
                    lines.by_ref().find(|(_, line)| closes(line));
                }
            }
        })
    }
}
