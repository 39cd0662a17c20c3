//! The agents' side: certificates, tokens, sessions, identity. Writes Server status and Enrolments.

pub mod token;
