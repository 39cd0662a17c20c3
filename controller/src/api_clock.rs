//! What time it is by the API server's clock, as its answers say, and how far ours is from that.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use hyper::{HeaderMap, header::DATE};
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use crate::{sync::lock, time::SKEW};

/// How often a difference is told.
const TOLD: Duration = Duration::from_secs(60);

/// When the answer with these `headers` was made (RFC 9110, section 6.6.1); none: it does not say so.
pub(crate) fn date(headers: &HeaderMap) -> Option<Timestamp> {
    let date = headers.get(DATE)?.to_str().ok()?;
    Some(jiff::fmt::rfc2822::parse(date).ok()?.timestamp())
}

/// The API server's clock; cheap to clone. It is read off answers that come anyway, and goes on between them whatever ours is set to.
#[derive(Clone, Debug, Default)]
pub struct ApiClock(Arc<Mutex<Option<(Timestamp, Instant)>>>);

impl ApiClock {
    /// An answer with these `headers` came just now.
    pub(crate) fn hear(&self, headers: &HeaderMap) {
        if let Some(date) = date(headers) {
            *lock(&self.0) = Some((date, Instant::now()));
        }
    }

    /// What time it is there; none: no answer has said so yet.
    pub fn now(&self) -> Option<Timestamp> {
        let (date, heard) = (*lock(&self.0))?;
        let since = SignedDuration::try_from(heard.elapsed()).ok()?;
        date.checked_add(since).ok()
    }

    /// By how much the clock that says `now` differs, in words; none: by no more than clocks of different computers may, as far as is known.
    pub fn difference(&self, now: Timestamp) -> Option<String> {
        let ahead = now.duration_since(self.now()?);
        let (by, way) = (
            ahead.unsigned_abs(),
            if ahead.is_negative() { "behind" } else { "ahead of" },
        );
        (by > SKEW.unsigned_abs()).then(|| {
            let seconds = by.as_secs();
            format!("this computer's clock is {seconds} s {way} the API server's")
        })
    }

    /// Logs again and again that our clock differs, as long as it does; never ends.
    pub async fn tell_difference(self) {
        loop {
            tokio::time::sleep(TOLD).await;
            if let Some(difference) = self.difference(Timestamp::now()) {
                tracing::warn!("{difference}; next: set both by NTP");
            }
        }
    }
}

/// Headers by which an answer says that it was made `at`.
#[cfg(test)]
pub(crate) fn dated(at: Timestamp) -> HeaderMap {
    let date = crate::time::http_date(at).parse().unwrap();
    HeaderMap::from_iter([(DATE, date)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::said::Said;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_764_000_000 + seconds).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_differs_by_more_than_a_minute_is_named() {
        let clock = ApiClock::default();
        assert_eq!(clock.difference(at(0)), None, "nothing is known");
        clock.hear(&dated(at(0)));
        clock.hear(&HeaderMap::new());
        for near in [-60, 0, 60] {
            assert_eq!(clock.difference(at(near)), None, "{near}");
        }
        let named = |ahead| clock.difference(at(ahead)).unwrap();
        assert_eq!(
            named(61),
            "this computer's clock is 61 s ahead of the API server's"
        );
        assert_eq!(
            named(-300),
            "this computer's clock is 300 s behind the API server's"
        );
        // It goes on by itself.
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(clock.now(), Some(at(3600)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_differs_is_told_each_minute() {
        let said = Said::listen();
        let clock = ApiClock::default();
        let now = Timestamp::now();
        clock.hear(&dated(now.checked_sub(SignedDuration::from_hours(13)).unwrap()));
        let telling = tokio::spawn(clock.clone().tell_difference());
        tokio::time::sleep(TOLD * 3 + TOLD / 2).await;
        let told = ["WARN", "ahead of the API server's; next: set both by NTP"];
        assert_eq!(said.count(&told), 3, "{}", said.text());
        clock.hear(&dated(now));
        tokio::time::sleep(TOLD).await;
        telling.abort();
        assert_eq!(said.text().lines().count(), 3, "{}", said.text());
    }
}
