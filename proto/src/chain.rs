//! An error with all its causes, put into words once, where it is logged or shown.

use std::{error::Error, fmt};

/// Displays an error and every source below it, `: ` between: `load kernel module x: No such file or directory`.
#[derive(Debug)]
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = self.0.to_string();
        f.write_str(&last)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            let text = error.to_string();
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
