//! Secrets that are held for a host, and that no host has to do with any more.

use std::{collections::BTreeSet, sync::Arc};

use muster_proto::Chain;

use super::Context;
use crate::{host::secrets::has_to_do_with, round::ExecuteError};

impl Context {
    /// Lets go of the Secrets that somebody deletes, that are held for a host, and that no host has to do with any more: it named
    /// another one as its network data, or went without us. Nobody else would ever let them go.
    pub(super) fn let_go_of_strays(&self) {
        let mut strays = self.vault.leaving();
        strays.retain(|secret| self.index.named_by(secret).is_empty());
        if strays.is_empty() || !self.executor.term.still() {
            return;
        }
        let Ok(turn) = Arc::clone(&self.letting_go).try_lock_owned() else {
            return;
        };
        // What a host that cannot be read names, nobody can tell.
        let unreadable = self.world.unreadable.all().into_iter();
        let unreadable = unreadable.filter(|(object, _)| object.kind.as_deref() == Some("BareMetalHost"));
        let unsure: BTreeSet<String> = unreadable.filter_map(|(object, _)| object.namespace).collect();
        let hosts = self.world.hosts.state();
        strays.retain(|secret| {
            !unsure.contains(&secret.namespace) && !hosts.iter().any(|host| has_to_do_with(host, secret))
        });
        let vault = Arc::clone(&self.vault);
        self.beside(async move {
            let _turn = turn;
            for secret in strays {
                match vault.release(&secret).await {
                    Ok(()) => tracing::info!(%secret, "it is being deleted and no host's any more: let go"),
                    Err(error @ ExecuteError::Behind { .. }) => tracing::debug!(%secret, %error, "looks again"),
                    Err(error) => {
                        tracing::warn!(%secret, error = %Chain(&error), "it is being deleted and no host's any more; letting it go is tried again");
                    }
                }
            }
        });
    }
}
