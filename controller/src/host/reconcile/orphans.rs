//! Secrets that carry upstream's finalizer though no host needs them any more, such as one that a host named before its spec was changed,
//! or one that was marked by a write that came late. Nobody else would take it off, and they could not be deleted.

use std::{collections::BTreeSet, time::Duration};

use kube::Resource;
use muster_proto::{Chain, kinds::BareMetalHost};

use super::{Context, Path};

/// How often they are looked for; one is let go that was found twice and not changed between: hosts and Secrets are told by two watches, and
/// its host may be about to be made.
const LOOK: Duration = Duration::from_mins(10);

/// Lets go of them, as long as it runs.
pub(super) async fn release(context: &Context) {
    let mut before = BTreeSet::new();
    loop {
        tokio::time::sleep(LOOK).await;
        let now = find(context);
        for orphan in now.intersection(&before) {
            // A host may have come to need it while others were let go.
            if !find(context).contains(orphan) {
                continue;
            }
            let (secret, version) = orphan;
            match context.vault.release_as(secret, version).await {
                Ok(()) => tracing::info!(%secret, "the Secret is let go: no host needs it any more"),
                Err(error) => tracing::warn!(%secret, error = %Chain(&error), "tried again"),
            }
        }
        before = now;
    }
}

fn find(context: &Context) -> BTreeSet<(Path, String)> {
    let hosts = BareMetalHost::kind(&());
    let unreadable = context.world.unreadable.all();
    // A host that cannot be read may need any.
    match unreadable
        .iter()
        .any(|(about, _)| about.kind.as_deref() == Some(&*hosts))
    {
        true => BTreeSet::new(),
        false => context.vault.orphans(&context.index, &context.world.hosts),
    }
}
