//! The sources of the live lines: the controller's log, the consoles, the watch on hosts.

use std::{sync::Arc, time::Instant};

use futures::StreamExt;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt, watcher},
};
use muster_proto::{Mac, kinds::BareMetalHost};
use tokio::sync::mpsc::UnboundedSender;

use super::step::{self, Step};
use crate::{lines::Lines, stage};

/// A server took a step.
#[derive(Clone, Debug)]
pub(crate) struct News {
    /// Which server, by any of its MAC addresses.
    pub(crate) mac: Mac,
    /// What it did.
    pub(crate) step: Step,
    /// When.
    pub(crate) at: Instant,
    /// Its host, with [`Step::Host`].
    pub(crate) host: Option<Arc<BareMetalHost>>,
}

impl News {
    fn new(mac: Mac, step: Step, at: Instant) -> News {
        News {
            mac,
            step,
            at,
            host: None,
        }
    }
}

/// Reads the controller's log from line `from` on, for ever or until nobody listens.
pub(crate) async fn log(lines: Lines, mut from: usize, news: UnboundedSender<News>) {
    loop {
        for line in lines.from(from) {
            from += 1;
            if let Some((mac, step)) = step::in_log(&line.text)
                && news.send(News::new(mac, step, line.at)).is_err()
            {
                return;
            }
        }
        lines.more_than(from).await;
    }
}

/// Reads the console of the server with `mac`.
pub(crate) async fn console(lines: Lines, mac: Mac, news: UnboundedSender<News>) {
    let mut from = 0;
    loop {
        for line in lines.from(from) {
            from += 1;
            if let Some(step) = step::on_console(&line.text)
                && news.send(News::new(mac, step, line.at)).is_err()
            {
                return;
            }
        }
        lines.more_than(from).await;
    }
}

/// Watches the hosts of `namespace` and tells of each that has its hardware.
pub(crate) async fn hosts(client: Client, namespace: String, news: UnboundedSender<News>) {
    let api: Api<BareMetalHost> = Api::namespaced(client, &namespace);
    let mut changes = watcher(api, watcher::Config::default())
        .default_backoff()
        .applied_objects()
        .boxed();
    while let Some(change) = changes.next().await {
        // The watch begins anew by itself.
        let Ok(host) = change else { continue };
        let host = Arc::new(host);
        for mac in stage::macs(&host) {
            let told = News {
                host: Some(Arc::clone(&host)),
                ..News::new(mac, Step::Host, Instant::now())
            };
            if news.send(told).is_err() {
                return;
            }
        }
    }
}
