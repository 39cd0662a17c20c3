//! What one boot of one machine finds beside its ramdisk: where its controller is, whom to trust, and its one-time token.

use muster_proto::{
    Mac,
    config::{BootConfig, PATH},
};
use muster_ramdisk::cpio::Archive;

use super::{pass::Pass, segment::Net};
use crate::token::{BootSecrets, Claims};

/// The configuration of the boot that `pass` stands for. The same pass gives the same bytes.
pub fn config(net: &Net, mac: Mac, pass: &Pass, secrets: &BootSecrets) -> BootConfig {
    let claims = Claims {
        segment: net.key.clone(),
        mac,
        issued: pass.issued(),
        nonce: pass.to_string(),
    };
    BootConfig {
        endpoints: net.agent_endpoints.clone(),
        ca_pem: secrets.ca_pem.clone(),
        token: secrets.token_key.seal(&claims),
        time: pass.issued(),
        boot_mac: Some(mac),
        proxy: net.proxy.clone(),
    }
}

/// The archive that holds `config`; another archive may follow it directly.
pub fn archive(config: &BootConfig) -> Vec<u8> {
    let json = serde_json::to_vec(config).expect("the configuration is plain data");
    let mut archive = Archive::new();
    // Nobody but the agent reads it: the token is a secret until it is spent.
    archive
        .file(PATH, 0o600, json)
        .expect("the path is a constant and the configuration is small");
    archive.to_vec()
}

#[cfg(test)]
mod tests {
    use muster_ramdisk::cpio;

    use super::*;
    use crate::{
        boot::{
            http::site::tests::a_net,
            pass::{Maker, PassKey},
        },
        token::TokenKey,
    };

    fn pass(salt: [u8; 4]) -> Pass {
        Maker::new(PassKey::of(&TokenKey::new(&[7; 32])), 1_800_000_000, salt).pass("/boot")
    }

    #[test]
    fn the_agent_finds_what_it_needs() {
        let net = a_net();
        let secrets = BootSecrets {
            ca_pem: "PEM".into(),
            token_key: TokenKey::new(&[7; 32]),
        };
        let mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        let pass = pass([9; 4]);
        let bytes = archive(&config(&net, mac, &pass, &secrets));
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(
            bytes,
            archive(&config(&net, mac, &pass, &secrets)),
            "the same boot, the same bytes"
        );
        let (entries, len) = cpio::read(&bytes).unwrap();
        assert_eq!(len, bytes.len());
        let entry = entries.last().unwrap();
        assert_eq!((entry.path.as_str(), entry.permissions), (PATH, 0o600));
        let cpio::Node::File(json) = &entry.node else {
            panic!("no file")
        };
        let read: BootConfig = serde_json::from_slice(json).unwrap();
        let claims = Claims {
            segment: "muster-system/lab".into(),
            mac,
            issued: 1_800_000_000,
            nonce: pass.to_string(),
        };
        assert_eq!(
            read,
            BootConfig {
                endpoints: vec!["https://127.0.0.1:8443".into()],
                ca_pem: "PEM".into(),
                token: secrets.token_key.seal(&claims),
                time: 1_800_000_000,
                boot_mac: Some(mac),
                proxy: None,
            }
        );
    }

    #[test]
    fn another_boot_gets_another_token() {
        let secrets = BootSecrets {
            ca_pem: String::new(),
            token_key: TokenKey::new(&[7; 32]),
        };
        let token = |random| config(&a_net(), Mac([2; 6]), &pass(random), &secrets).token;
        assert_ne!(token([0; 4]), token([1; 4]));
    }
}
