//! The agents' side: certificates, tokens, sessions, identity. Writes Server status and Enrolments.

pub mod ca;
mod clock;
pub mod identity;
pub mod keys;
mod metrics;
pub mod sweep;
pub mod token;

/// An error with its causes, one line.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
