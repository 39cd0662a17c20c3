//! Which BMC is meant and how it is entered. Plain data.

use std::{fmt, sync::Arc};

use super::Address;

/// A host and the way into its BMC, as the host's spec and its Secret say it. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// For whom: the session at a BMC lasts until the last host that has it is forgotten.
    pub host: HostRef,
    /// Where the BMC is.
    pub address: Address,
    /// Who we are there.
    pub credentials: Credentials,
    /// Whether the BMC's certificate must be trusted.
    pub verify: Verify,
}

/// A BareMetalHost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct HostRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

impl fmt::Display for HostRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// `spec.bmc.disableCertificateVerification`, turned into what is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Verify {
    /// The certificate leads to an authority of the system, or of `Config::authorities`, and names the BMC's host.
    #[default]
    Certificate,
    /// Any certificate will do: whoever sits between us and the BMC learns the password.
    Nothing,
}

impl Verify {
    /// From the field of the host's spec.
    pub fn from_spec(disabled: Option<bool>) -> Verify {
        match disabled {
            Some(true) => Verify::Nothing,
            _ => Verify::Certificate,
        }
    }
}

/// A user of a BMC and the password. Neither is ever shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials(Arc<(String, String)>);

impl Credentials {
    /// White space around both is dropped, as upstream does.
    pub fn new(username: &str, password: &str) -> Credentials {
        Credentials(Arc::new((username.trim().to_owned(), password.trim().to_owned())))
    }

    pub(super) fn username(&self) -> &str {
        &self.0.0
    }

    pub(super) fn password(&self) -> &str {
        &self.0.1
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}
