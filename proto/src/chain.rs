//! An error with all its causes, put into words once, where it is logged or shown.

use std::{error::Error, fmt};

/// Displays an error and every source below it, `: ` between: `load kernel module x: No such file or directory`. What foreign errors show
/// of their sources for programmers is left out.
#[derive(Debug)]
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = plain(self.0);
        f.write_str(&last)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            let text = plain(error);
            // Foreign errors often print their source themselves.
            if !last.contains(&text) {
                write!(f, ": {text}")?;
            }
            last = text;
            source = error.source();
        }
        Ok(())
    }
}

/// What `error` says, without the debug form of its sources in parentheses, which the API client puts behind what the API server answered.
fn plain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = text.replace(&format!(" ({error:?})"), "");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Failed(&'static str, Option<Box<Failed>>);

    impl fmt::Display for Failed {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Failed {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|source| source as _)
        }
    }

    fn failed(texts: &[&'static str]) -> Failed {
        let (first, rest) = texts.split_first().expect("a text");
        let source = (!rest.is_empty()).then(|| Box::new(failed(rest)));
        Failed(first, source)
    }

    /// Shows its source twice, as people read it and as programmers do.
    #[derive(Debug)]
    struct Dumps(Failed);

    impl fmt::Display for Dumps {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "answer: {0} ({0:?})", self.0)
        }
    }

    impl Error for Dumps {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn what_an_error_shows_of_its_cause_for_programmers_is_left_out() {
        let error = Dumps(failed(&["not valid"]));
        assert!(error.to_string().contains("Failed("), "{error}");
        assert_eq!(Chain(&error).to_string(), "answer: not valid");
    }

    #[test]
    fn every_cause_is_named_once() {
        for (texts, shown) in [
            (&["boot"][..], "boot"),
            (
                &["boot", "load module x", "no such file"],
                "boot: load module x: no such file",
            ),
            (
                &["boot", "load: no such file", "no such file"],
                "boot: load: no such file",
            ),
            (&["a", "a", "b"], "a: b"),
        ] {
            assert_eq!(Chain(&failed(texts)).to_string(), shown);
        }
    }
}
