//! What the system on an image says on its machine's console.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use muster_os::{BOOTED, FILES, NAME, USER_DATA, USER_DATA_BEGINS, USER_DATA_ENDS};

use crate::lines::{Line, Lines};

/// What it was told by its config drive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Its name.
    pub name: String,
    /// Its user data, line by line.
    pub user_data: Vec<String>,
    /// The names of the files on its config drive.
    pub files: Vec<String>,
}

/// Waits for the system's first line on `console` from line `from` on.
pub async fn booted(console: &Lines, from: usize, within: Duration) -> Result<(usize, Line)> {
    console.wait_for(BOOTED, from, within).await
}

/// Waits until the system has booted, from line `from` of `console` on, and found its config drive; returns what that told it, and the
/// number of the last line of that.
pub async fn told(console: &Lines, from: usize, within: Duration) -> Result<(usize, Told)> {
    let deadline = tokio::time::Instant::now() + within;
    let (first, _) = booted(console, from, within).await?;
    let left = deadline.saturating_duration_since(tokio::time::Instant::now());
    let (last, _) = console.wait_for(USER_DATA_ENDS, first, left).await?;
    let lines = console.from(first);
    let lines = lines.iter().take(last + 1 - first);
    Ok((last, read(lines.map(|line| line.text.as_str()))?))
}

/// What stands in the lines from the system's first to the last of its user data; what the kernel says in between is passed over.
fn read<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Told> {
    let mut told = Told::default();
    let mut inside = false;
    for line in lines {
        if let Some(name) = line.strip_prefix(NAME) {
            name.clone_into(&mut told.name);
        } else if let Some(files) = line.strip_prefix(FILES) {
            let (files, _) = files.split_once(" (").context("where the config drive is")?;
            told.files = files.split(' ').map(str::to_owned).collect();
        } else if line == USER_DATA_BEGINS {
            inside = true;
        } else if line == USER_DATA_ENDS {
            return Ok(told);
        } else if let (true, Some(text)) = (inside, line.strip_prefix(USER_DATA)) {
            told.user_data.push(text.to_owned());
        }
    }
    bail!("no end of the user data")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel_do_not_belong_to_what_was_told() {
        let lines = [
            "OS booted (kernel 6.1, uptime 1.00 s)",
            "OS config drive: meta_data.json user_data (vfat on /dev/vdb)",
            "OS name: n",
            "OS user data begins",
            "OS| a",
            "[    2.0] something",
            "OS| ",
            "OS user data ends",
            "OS| later",
        ];
        let told = read(lines.into_iter()).unwrap();
        assert_eq!(told.name, "n");
        assert_eq!(told.user_data, ["a", ""]);
        assert_eq!(told.files, ["meta_data.json", "user_data"]);
        assert!(read(lines[..5].iter().copied()).is_err());
    }
}
