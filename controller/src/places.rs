//! Places for the connections of one port: who finds none waits before the door, and who has its share already is refused. Either is told
//! in the log, with those who have most: a port that strangers hold looks like one that is down.

use std::{net::IpAddr, sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::{
    log::Refusals,
    quota::{Quota, QuotaPermit},
};

/// How often it is told that a port is still full.
const REMIND: Duration = Duration::from_secs(60);

/// The places of one service, on all its addresses together.
#[derive(Debug)]
pub(crate) struct Places {
    service: &'static str,
    size: usize,
    each: usize,
    free: Arc<Semaphore>,
    by_address: Arc<Quota<IpAddr>>,
    refusals: Refusals,
}

impl Places {
    /// For so many connections at once, of them `each` by one address.
    pub(crate) fn new(service: &'static str, size: usize, each: usize) -> Places {
        Places {
            service,
            size,
            each,
            free: Arc::new(Semaphore::new(size)),
            by_address: Quota::new(each),
            refusals: Refusals::default(),
        }
    }

    /// A place for the next connection, as soon as there is one.
    pub(crate) async fn next(&self) -> OwnedSemaphorePermit {
        if let Ok(place) = Arc::clone(&self.free).try_acquire_owned() {
            return place;
        }
        let mut place = std::pin::pin!(Arc::clone(&self.free).acquire_owned());
        loop {
            if let Some(left_out) = self.refusals.say_to_all("full") {
                let (service, size, held_by) = (self.service, self.size, self.by_address.most());
                tracing::warn!(
                    held_by,
                    left_out,
                    "{service}: all {size} places for connections are taken; next: further clients wait until one ends"
                );
            }
            if let Ok(place) = timeout(REMIND, &mut place).await {
                return place.expect("the semaphore is never closed");
            }
        }
    }

    /// What a connection from `address` holds beside its place; `None` if that address has as many as it may have.
    pub(crate) fn share(&self, address: IpAddr) -> Option<QuotaPermit<IpAddr>> {
        let client = address.to_canonical();
        let share = self.by_address.take(client);
        if share.is_none()
            && let Some(left_out) = self.refusals.say(client, "its share is taken")
        {
            let (service, each) = (self.service, self.each);
            tracing::warn!(
                %client,
                left_out,
                "{service}: this address has {each} connections, as many as one may have; next: further ones are refused until one ends"
            );
        }
        share
    }

    /// True if whoever comes now has to wait.
    pub(crate) fn are_taken(&self) -> bool {
        self.free.available_permits() == 0
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::log::said::Said;

    #[tokio::test(start_paused = true)]
    async fn a_port_that_stays_full_is_told_again() {
        let said = Said::listen();
        let places = Places::new("HTTP", 1, 1);
        let held = places.next().await;
        assert!(timeout(Duration::from_secs(200), places.next()).await.is_err());
        assert_eq!(said.count(&["all 1 places"]), 4, "{}", said.text());
        drop(held);
        drop(places.next().await);
        assert_eq!(said.text().lines().count(), 4);
    }

    #[tokio::test]
    async fn who_waits_or_is_refused_is_told_once_with_those_who_have_most() {
        let said = Said::listen();
        let places = Places::new("HTTP", 3, 2);
        let [one, other] = [[10, 77, 0, 9], [10, 77, 0, 8]].map(IpAddr::from);
        let held: Vec<_> = [one, other, one]
            .map(|address| (places.next().now_or_never(), places.share(address)))
            .into();
        assert!(
            held.iter()
                .all(|(place, share)| place.is_some() && share.is_some())
        );
        assert!(places.are_taken());
        assert_eq!(said.text(), "");
        for _ in 0..100 {
            assert!(places.next().now_or_never().is_none());
            assert!(places.share(one).is_none());
        }
        let full = ["WARN", "HTTP: all 3 places", "\"10.77.0.9 (2), 10.77.0.8 (1)\""];
        assert_eq!(said.count(&full), 1, "{}", said.text());
        let refused = ["WARN", "has 2 connections", "client=10.77.0.9"];
        assert_eq!(said.count(&refused), 1, "{}", said.text());
        assert_eq!(said.text().lines().count(), 2);
    }
}
