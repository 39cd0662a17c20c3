//! Secrets that carry upstream's finalizer though no host needs them any more, such as one that a host named before its spec was changed,
//! or one that was marked by a write that came late. Nobody else would take it off, and they could not be deleted.

use std::{collections::BTreeSet, time::Duration};

use muster_proto::{Chain, kinds::BareMetalHost};

use super::Context;

/// How often they are looked for; one is let go that was found twice and not changed between: hosts and Secrets are told by two watches, and
/// its host may be about to be made.
const LOOK: Duration = Duration::from_mins(10);

/// Lets go of them, as long as it runs.
pub(super) async fn release(context: &Context) {
    let mut before = BTreeSet::new();
    loop {
        tokio::time::sleep(LOOK).await;
        let now = match may_look(context) {
            true => context.vault.orphans(&context.index),
            false => BTreeSet::new(),
        };
        for (secret, version) in now.intersection(&before) {
            // A host may have come to need it while others were let go.
            if !may_look(context) || !context.vault.is_orphan(secret, version, &context.index) {
                continue;
            }
            match context.vault.release_as(secret, version).await {
                Ok(()) => tracing::info!(%secret, "released the Secret: no host needs it any more"),
                Err(error) => {
                    tracing::warn!(%secret, error = %Chain(&error), "cannot release the Secret; retrying");
                }
            }
        }
        before = now;
    }
}

/// A host that cannot be read may need any.
fn may_look(context: &Context) -> bool {
    !context.world.unreadable.has_any::<BareMetalHost>()
}
