//! The two Secrets that every replica shares: the authority and the key that seals tokens.
//!
//! The control role makes them ([`ensure`], [`keep`]); the edge role only reads these two names ([`watch`]).
//! A Secret that somebody damaged is never overwritten: it is an error that names it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{Api, Client, api::PostParams};
use tokio::sync::watch;

use super::{
    ca::{Ca, CaError, CaPem, random},
    sweep,
};
use crate::{
    token::{BootSecrets, CA_SECRET, TOKEN_SECRET, TokenKey},
    watches::Watches,
};

const CA_CRT: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const PREVIOUS_CRT: &str = "previous.crt";
const CROSS_CRT: &str = "cross.crt";
const KEY: &str = "key";

/// How soon a failed or still empty look is repeated.
const AGAIN: Duration = Duration::from_millis(250);
/// How often [`watch`] looks for a change, and [`keep`] whether both Secrets exist and no rotation is due: two GETs. Nobody can enrol
/// with keys that a restarted edge does not find, so a deleted Secret is not missed for long.
const LOOK: Duration = Duration::from_secs(30);

/// What the Secrets cannot give.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The API server refused or did not answer.
    #[error("{action} Secret {name}")]
    Kubernetes {
        /// What was tried.
        action: &'static str,
        /// Which Secret.
        name: &'static str,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// The Secret exists and lacks an entry.
    #[error("Secret {name} has no usable entry `{entry}`")]
    Entry {
        /// Which Secret.
        name: &'static str,
        /// Which entry.
        entry: &'static str,
    },
    /// The authority in the Secret is damaged.
    #[error("use the authority in Secret {CA_SECRET}")]
    Authority(#[source] CaError),
    /// The authority seems due to be rotated, by our clock alone.
    #[error("ask the API server what time it is, before the authority is rotated")]
    Time(#[source] sweep::SweepError),
}

impl KeysError {
    /// The Secret that is damaged; none: it is not known that one is.
    fn damaged(&self) -> Option<&'static str> {
        match self {
            KeysError::Entry { name, .. } => Some(*name),
            KeysError::Authority(_) => Some(CA_SECRET),
            KeysError::Kubernetes { .. } | KeysError::Time(_) => None,
        }
    }

    /// What helps, to be said after what failed; nothing where time may.
    fn next(&self) -> &'static str {
        match self.damaged() {
            Some(_) => {
                "; next: restore that Secret from your backup, or delete it: the control role makes a new one within 30 s, and ramdisks that \
                 run may boot again"
            }
            None => "",
        }
    }
}

/// The keys of this installation.
#[derive(Clone, Debug)]
pub struct Keys {
    /// Issues and checks certificates.
    pub ca: Arc<Ca>,
    /// Seals and opens tokens.
    pub token: TokenKey,
    source: (CaPem, Vec<u8>),
}

impl Keys {
    /// From the two Secrets' contents.
    pub fn new(ca: CaPem, token: Vec<u8>) -> Result<Keys, KeysError> {
        if token.len() < 32 {
            return Err(KeysError::Entry {
                name: TOKEN_SECRET,
                entry: KEY,
            });
        }
        Ok(Keys {
            ca: Arc::new(Ca::parse(&ca).map_err(KeysError::Authority)?),
            token: TokenKey::new(&token),
            source: (ca, token),
        })
    }

    /// The part that the boot services need.
    pub fn boot_secrets(&self) -> BootSecrets {
        BootSecrets {
            ca_pem: self.ca.bundle.clone(),
            token_key: self.token.clone(),
        }
    }
}

/// Makes the Secrets that are missing, and rotates the authority when it is due. Safe to call from several replicas at once.
pub async fn ensure(client: &Client, namespace: &str) -> Result<(), KeysError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let now = super::clock::now();
    let token = || {
        Ok(BTreeMap::from([(
            KEY.to_owned(),
            ByteString(random::<32>().to_vec()),
        )]))
    };
    get_or_create(&secrets, TOKEN_SECRET, token).await?;
    let fresh = || Ok(ca_data(&CaPem::generate(now).map_err(KeysError::Authority)?));
    let mut secret = get_or_create(&secrets, CA_SECRET, fresh).await?;
    let stored = ca_pem(&secret)?;
    let rotate = |now| stored.rotate(now).map_err(KeysError::Authority);
    if rotate(now)?.is_none() {
        return Ok(());
    }
    // It cuts agents off whose time has not come: one wrong clock must not be enough.
    let there = sweep::time_there(client, namespace)
        .await
        .map_err(KeysError::Time)?;
    if let Some(next) = rotate(now.min(there))? {
        secret.data = Some(ca_data(&next));
        // The resource version goes along: of two replicas that rotate at once, one is refused and looks again later.
        match secrets.replace(CA_SECRET, &PostParams::default(), &secret).await {
            Ok(_) => tracing::info!(overlap = next.previous.is_some(), "the authority was rotated"),
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(source) => return Err(failed("rotate", CA_SECRET, source)),
        }
    }
    Ok(())
}

/// [`ensure`] again and again, for the control role; logs what fails and never ends.
pub async fn keep(client: Client, namespace: String) {
    loop {
        let pause = match ensure(&client, &namespace).await {
            Ok(()) => LOOK,
            Err(error) => {
                let next = error.next();
                tracing::warn!(error = %muster_proto::Chain(&error), "the keys could not be checked or renewed; retrying in 5 s{next}");
                Duration::from_secs(5)
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Reads both Secrets once; `None` while one does not exist.
pub async fn load(client: &Client, namespace: &str) -> Result<Option<Keys>, KeysError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let get = async |name| {
        secrets
            .get_opt(name)
            .await
            .map_err(|source| failed("get", name, source))
    };
    let (Some(ca), Some(token)) = (get(CA_SECRET).await?, get(TOKEN_SECRET).await?) else {
        return Ok(None);
    };
    let token = entry(&token, TOKEN_SECRET, KEY)?.to_vec();
    Keys::new(ca_pem(&ca)?, token).map(Some)
}

/// Waits until the Secrets exist, then follows them: the receiver shows a change within half a minute. Needs `get` on the two names, no more.
/// One that is damaged stands in `watches`.
pub async fn watch(client: Client, namespace: String, watches: Watches) -> watch::Receiver<Keys> {
    let mut told = false;
    let first = loop {
        match load(&client, &namespace).await {
            Ok(Some(keys)) => break keys,
            Ok(None) if told => {}
            Ok(None) => {
                tracing::info!(%namespace, "waiting for the Secrets {CA_SECRET} and {TOKEN_SECRET}");
                told = true;
            }
            Err(error) => {
                tell(&watches, &error, "retrying");
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        }
        tokio::time::sleep(AGAIN).await;
    };
    watches.keys(None);
    let (sender, receiver) = watch::channel(first);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = sender.closed() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            let found = load(&client, &namespace).await;
            if found.is_ok() {
                watches.keys(None);
            }
            match found {
                Ok(Some(keys)) => {
                    let changed = |old: &mut Keys| {
                        let changed = old.source != keys.source;
                        if changed {
                            *old = keys;
                        }
                        changed
                    };
                    if sender.send_if_modified(changed) {
                        tracing::info!("the keys changed");
                    }
                }
                // What we hold stays good; a Secret that is gone is the control role's to make anew.
                Ok(None) => tracing::warn!(
                    "a Secret with keys is gone; those in memory stay in use until it is recreated"
                ),
                Err(error) => tell(&watches, &error, "those in memory stay in use"),
            }
        }
    });
    receiver
}

/// Tells that [`load`] failed, and what is done meanwhile.
fn tell(watches: &Watches, error: &KeysError, meanwhile: &str) {
    // One that cannot be read now may be as it was.
    if let Some(secret) = error.damaged() {
        watches.keys(Some(secret));
    }
    let next = error.next();
    tracing::warn!(error = %muster_proto::Chain(error), "the keys cannot be read; {meanwhile}{next}");
}

async fn get_or_create(
    secrets: &Api<Secret>,
    name: &'static str,
    data: impl FnOnce() -> Result<BTreeMap<String, ByteString>, KeysError>,
) -> Result<Secret, KeysError> {
    if let Some(found) = secrets
        .get_opt(name)
        .await
        .map_err(|source| failed("get", name, source))?
    {
        return Ok(found);
    }
    let mut secret = Secret {
        data: Some(data()?),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    };
    secret.metadata.name = Some(name.to_owned());
    match secrets.create(&PostParams::default(), &secret).await {
        Ok(made) => {
            tracing::info!(secret = name, "made");
            Ok(made)
        }
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => secrets
            .get(name)
            .await
            .map_err(|source| failed("get", name, source)),
        Err(source) => Err(failed("create", name, source)),
    }
}

fn failed(action: &'static str, name: &'static str, source: kube::Error) -> KeysError {
    KeysError::Kubernetes {
        action,
        name,
        source: Box::new(source),
    }
}

fn entry<'a>(secret: &'a Secret, name: &'static str, entry: &'static str) -> Result<&'a [u8], KeysError> {
    let found = secret.data.as_ref().and_then(|data| data.get(entry));
    found
        .map(|bytes| bytes.0.as_slice())
        .ok_or(KeysError::Entry { name, entry })
}

fn ca_pem(secret: &Secret) -> Result<CaPem, KeysError> {
    let text = |which| {
        let bytes = entry(secret, CA_SECRET, which)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| KeysError::Entry {
            name: CA_SECRET,
            entry: which,
        })
    };
    Ok(CaPem {
        certificate: text(CA_CRT)?,
        key: text(CA_KEY)?,
        previous: text(PREVIOUS_CRT).ok(),
        cross: text(CROSS_CRT).ok(),
    })
}

fn ca_data(pem: &CaPem) -> BTreeMap<String, ByteString> {
    let entries = [
        (CA_CRT, Some(&pem.certificate)),
        (CA_KEY, Some(&pem.key)),
        (PREVIOUS_CRT, pem.previous.as_ref()),
        (CROSS_CRT, pem.cross.as_ref()),
    ];
    let present = entries.into_iter().filter_map(|(name, text)| Some((name, text?)));
    present
        .map(|(name, text)| (name.to_owned(), ByteString(text.clone().into_bytes())))
        .collect()
}
