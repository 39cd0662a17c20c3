use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A one-time token that has been used, and the certificate issued for it. Named after the token's hash, so that the token can be
/// used only once in the whole cluster, whichever replica sees it first.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "muster.dev",
    version = "v1alpha1",
    kind = "Enrolment",
    plural = "enrolments",
    namespaced,
    derive = "PartialEq",
    printcolumn = r#"{"name":"Server","type":"string","jsonPath":".spec.server"}"#,
    printcolumn = r#"{"name":"Contested","type":"boolean","jsonPath":".spec.contested"}"#,
    printcolumn = r#"{"name":"Expires","type":"string","jsonPath":".spec.expires"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase", default)]
pub struct EnrolmentSpec {
    /// The Server that used the token.
    pub server: String,
    /// SHA-256 of the subject public key info that the certificate is for, hexadecimal.
    pub key: String,
    /// The certificate chain, PEM; the same key gets the same one when it asks again.
    pub certificate: String,
    /// True once another key has presented the same token: the certificate is revoked.
    pub contested: bool,
    /// When the token and every certificate issued for it have expired (RFC 3339); the object is then removed.
    #[schemars(regex(pattern = r"^\d{4}-\d{2}-\d{2}T.*Z$"))]
    pub expires: String,
}
