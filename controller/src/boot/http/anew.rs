//! Hosts that are read anew, while the watched copy of them is known to be old.

use std::{borrow::Cow, fmt, net::IpAddr, sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use kube::{Api, Client, Resource as _};
use muster_proto::kinds::BareMetalHost;
use tokio::{runtime::Handle, task::JoinSet, time::timeout};

use crate::{api_error, log::Refusals, path::Path};

/// How long the API server may take: firmware waits.
const PATIENCE: Duration = Duration::from_secs(2);

/// A host as the API server has it now, or none; or why it could not be read.
pub type Reading = BoxFuture<'static, Result<Option<BareMetalHost>, String>>;

/// Reads hosts.
pub struct Anew {
    read: Box<dyn Fn(Path) -> Reading + Send + Sync>,
    said: Refusals,
}

impl fmt::Debug for Anew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Anew").finish_non_exhaustive()
    }
}

impl Anew {
    /// By `read`.
    pub fn new(read: impl Fn(Path) -> Reading + Send + Sync + 'static) -> Anew {
        Anew {
            read: Box::new(read),
            said: Refusals::default(),
        }
    }

    /// By `client`, on the runtime of the caller: its connections are not for the threads on which boot files are served.
    pub fn through(client: Client) -> Anew {
        let runtime = Handle::current();
        Anew::new(move |path| {
            let hosts: Api<BareMetalHost> = Api::namespaced(client.clone(), &path.namespace);
            let runtime = runtime.clone();
            let read = async move {
                // Ends with whoever waits for it.
                let mut one = JoinSet::new();
                one.spawn_on(async move { hosts.get_opt(&path.name).await }, &runtime);
                match one.join_next().await {
                    Some(Ok(Ok(host))) => Ok(host),
                    Some(Ok(Err(error))) => Err(api_error::words(&error, &BareMetalHost::kind(&()), None)),
                    Some(Err(_)) | None => Err("the request was aborted".to_owned()),
                }
            };
            read.boxed()
        })
    }

    /// `host` as it is now, for the machine that asks from the address `from`, if it is there still; as the copy has it if it cannot be read.
    /// `stale` says of which kind the copy is old, and how old.
    pub(super) async fn host(
        &self,
        host: Arc<BareMetalHost>,
        (kind, since): &(Cow<'static, str>, Duration),
        from: IpAddr,
    ) -> Option<Arc<BareMetalHost>> {
        let path = Path::of(&*host);
        let why = match timeout(PATIENCE, (self.read)(path.clone())).await {
            Ok(Ok(now)) => return now.map(Arc::new),
            Ok(Err(why)) => why,
            Err(_) => format!("no answer within {} s", PATIENCE.as_secs()),
        };
        if let Some(left_out) = self.said.say(from, "a stale copy decides") {
            tracing::warn!(
                host = %path,
                client = %from,
                left_out,
                "what this machine boots is decided by a stale copy: {kind} could not be watched for {} s, and the host could not be read: \
                 {why}",
                since.as_secs()
            );
        }
        Some(host)
    }
}
