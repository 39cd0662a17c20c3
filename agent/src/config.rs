//! What the boot services put beside the ramdisk for this boot.

use muster_proto::config::{self, BootConfig};

use crate::sys::{self, Root};

/// The configuration cannot be had: without it no controller can be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is none, or it cannot be read.
    #[error("read the boot configuration")]
    Read {
        /// Why.
        source: sys::ReadError,
    },
    /// It is not what this agent understands.
    #[error("parse the boot configuration")]
    Parse {
        /// Why.
        source: serde_json::Error,
    },
    /// It names no controller.
    #[error("find a controller in the boot configuration: it lists no endpoints")]
    NoEndpoint,
}

/// The configuration of this boot.
///
/// # Errors
/// [`ConfigError`], one variant for each way to fail.
pub fn load(root: &Root) -> Result<BootConfig, ConfigError> {
    let bytes = sys::bytes(&root.at(config::PATH)).map_err(|source| ConfigError::Read { source })?;
    let config: BootConfig =
        serde_json::from_slice(&bytes).map_err(|source| ConfigError::Parse { source })?;
    if config.endpoints.is_empty() {
        Err(ConfigError::NoEndpoint)
    } else {
        Ok(config)
    }
}

/// True if the whole ramdisk was unpacked. The kernel starts `/init` even if the rest did not fit in memory.
pub fn is_complete(root: &Root) -> bool {
    root.at(config::SENTINEL).exists()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::tree::Tree;

    #[test]
    fn a_configuration_is_read() {
        let json =
            r#"{"endpoints":["https://10.0.0.1:8443"],"caPem":"x","token":"t","time":1800000000,"new":1}"#;
        let tree = Tree::new().file(config::PATH, json).file(config::SENTINEL, "");
        assert_eq!(load(&tree.root()).unwrap().endpoints, ["https://10.0.0.1:8443"]);
        assert!(is_complete(&tree.root()));
    }

    #[test]
    fn what_is_wrong_with_it_is_told_apart() {
        let with = |json: &str| load(&Tree::new().file(config::PATH, json).root());
        assert!(matches!(load(&Tree::new().root()), Err(ConfigError::Read { .. })));
        assert!(matches!(with("{"), Err(ConfigError::Parse { .. })));
        assert!(matches!(
            with(r#"{"endpoints":[],"caPem":"","token":"","time":0}"#),
            Err(ConfigError::NoEndpoint)
        ));
        assert!(!is_complete(&Tree::new().root()));
    }
}
