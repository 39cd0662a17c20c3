//! Credentials that are replaced on disk. The client reads the file of a token again every minute, as in a pod; what stands in a kubeconfig
//! itself, and the files of a client certificate, it reads once. A process whose credentials end while others are there already has to be
//! started again, and would else be refused for ever.

use std::path::PathBuf;

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::{Api, Config, api::PostParams};
use ring::digest::{Context, SHA256};
use serde_json::Value;

use crate::{token_file, watches::Watches};

/// What of a user in a kubeconfig is read once.
const INLINE: [&str; 5] = [
    "username",
    "password",
    "token",
    "client-certificate-data",
    "client-key-data",
];

/// The credentials that are read once.
#[derive(PartialEq, Eq)]
pub(super) struct Credentials {
    /// Where they are shown.
    cluster: String,
    /// Of them: they themselves are not kept.
    digest: Vec<u8>,
}

impl Credentials {
    /// As they are now; none while they cannot be read.
    pub(super) fn read(config: &Config) -> Option<Credentials> {
        let user = &config.auth_info;
        let written = serde_json::to_value(user).ok()?;
        let inline = INLINE.map(|name| written.get(name).and_then(Value::as_str).unwrap_or_default());
        let mut parts: Vec<Vec<u8>> = inline.iter().map(|part| part.as_bytes().to_vec()).collect();
        for path in [&user.client_certificate, &user.client_key].into_iter().flatten() {
            parts.push(std::fs::read(path).ok()?);
        }
        let mut seen = Context::new(&SHA256);
        for part in parts {
            // With its length, or the end of one could be the beginning of the next.
            seen.update(&part.len().to_be_bytes());
            seen.update(&part);
        }
        Some(Credentials {
            cluster: config.cluster_url.to_string(),
            digest: seen.finish().as_ref().to_vec(),
        })
    }
}

/// True if the API server knows who asks by the credentials of `config`.
pub(super) async fn is_known(config: Config) -> bool {
    let Ok(client) = token_file::client(config) else {
        return false;
    };
    let asked = Api::<SelfSubjectReview>::all(client);
    match asked
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await
    {
        Ok(_) => true,
        // An older API server has no such kind, and who may not ask that is known, too, unless it is nobody.
        Err(kube::Error::Api(status)) => {
            status.code == 404 || (status.code == 403 && !status.message.contains("system:anonymous"))
        }
        Err(_) => false,
    }
}

/// Ends once the API server refuses the credentials that were `read` at the start, and `kubeconfig` leads to other ones that it takes, as
/// `is_known` tells: whoever starts this process again lets it use those. As long as nobody has replaced them, that would change nothing, and
/// machines are served without it.
pub(super) async fn outlived(
    read: Option<Credentials>,
    kubeconfig: Option<PathBuf>,
    watches: Watches,
    is_known: impl AsyncFn(Config) -> bool,
) {
    let Some(read) = read else {
        return std::future::pending().await;
    };
    loop {
        watches.strange().await;
        // In the middle of being replaced, perhaps: the next watch fails, too.
        let Ok(config) = super::found(kubeconfig.as_deref()).await else {
            continue;
        };
        // Those of another cluster are for somebody else.
        let is_other = |now: Credentials| now.cluster == read.cluster && now != read;
        if Credentials::read(&config).is_some_and(is_other) && is_known(config).await {
            tracing::error!(
                "the API server refuses the credentials that were read at startup, and they have been replaced since; next: this process \
                 exits, and uses the new ones once it is restarted"
            );
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        path::Path,
        pin::{Pin, pin},
        time::Duration,
    };

    use kube::{core::Status, runtime::watcher};
    use serde_json::json;
    use tokio::time::timeout;

    use super::*;

    /// Writes a kubeconfig into `dir`, with `more` of its user, and returns where it is.
    fn kubeconfig(dir: &Path, more: &Value) -> PathBuf {
        let at = |name: &str| dir.join(name);
        let mut user = json!({"tokenFile": at("token")});
        if let (Value::Object(user), Value::Object(more)) = (&mut user, more) {
            user.extend(more.clone());
        }
        let written = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "one",
            "contexts": [{"name": "one", "context": {"cluster": "one", "user": "one"}}],
            "clusters": [{"name": "one", "cluster": {"server": "http://127.0.0.1:1"}}],
            "users": [{"name": "one", "user": user}],
        });
        std::fs::write(at("kubeconfig"), written.to_string()).unwrap();
        at("kubeconfig")
    }

    async fn now(kubeconfig: &Path) -> Option<Credentials> {
        Credentials::read(&super::super::found(Some(kubeconfig)).await.unwrap())
    }

    fn refuse(watches: &Watches, code: u16) {
        let said = json!({"status": "Failure", "code": code, "reason": "No", "message": "no"});
        let status: Status = serde_json::from_value(said).unwrap();
        let error = watcher::Error::WatchStartFailed(kube::Error::Api(status.boxed()));
        watches.failed("Server", &error);
    }

    async fn goes_on(part: Pin<&mut impl Future<Output = ()>>) -> bool {
        timeout(Duration::from_millis(200), part).await.is_err()
    }

    #[tokio::test]
    async fn credentials_that_are_refused_end_the_process_once_others_have_replaced_them() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["certificate", "key"] {
            std::fs::write(at(name), "old").unwrap();
        }
        let more = json!({"client-certificate": at("certificate"), "client-key": at("key")});
        let path = kubeconfig(dir.path(), &more);
        let watches = Watches::default();
        let are_known = Cell::new(true);
        let is_known = async |_: Config| are_known.get();
        let mut part = pin!(outlived(now(&path).await, Some(path), watches.clone(), is_known));
        refuse(&watches, 401);
        assert!(goes_on(part.as_mut()).await, "there are no others");
        std::fs::write(at("certificate"), "new").unwrap();
        are_known.set(false);
        refuse(&watches, 401);
        assert!(goes_on(part.as_mut()).await, "nor are these taken");
        are_known.set(true);
        refuse(&watches, 403);
        assert!(goes_on(part.as_mut()).await, "the old ones are still good");
        refuse(&watches, 401);
        timeout(Duration::from_secs(20), part).await.expect("it ends");
    }

    #[tokio::test]
    async fn credentials_that_the_client_reads_again_are_not_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let token = |token: &str| std::fs::write(dir.path().join("token"), token).unwrap();
        token("one");
        let path = kubeconfig(dir.path(), &json!({}));
        let before = now(&path).await;
        token("two");
        assert!(before.is_some() && now(&path).await == before);
        for name in INLINE {
            kubeconfig(dir.path(), &json!({name: "b25l"}));
            assert!(now(&path).await != before, "{name}");
        }
        kubeconfig(dir.path(), &json!({"client-key": dir.path().join("none")}));
        assert!(now(&path).await.is_none(), "it cannot be read");
    }
}
