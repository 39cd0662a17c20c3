//! Who may read the metrics: asked of the API server (TokenReview, then SubjectAccessReview on `get` of the path), and remembered
//! for a short while, so that a scraper that comes every few seconds costs two requests a minute.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Mutex,
    time::Duration,
};

use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, UserInfo},
    authorization::v1::{NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, Client, api::PostParams};
use muster_proto::Chain;
use tokio::time::{Instant, timeout};

use crate::{
    bounded::make_room,
    bucket::{Bucket, Rate},
    sync::lock,
};

/// What a bearer of a token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Read.
    Allowed,
    /// The API server does not know the token.
    Unknown,
    /// It knows the user, who has no such right.
    Forbidden,
    /// It could not be asked, or is asked too often.
    Unanswered,
}

/// A right that was taken away ends within this time.
const ALLOWED: Duration = Duration::from_secs(60);
/// A right that was given begins within this time.
const REFUSED: Duration = Duration::from_secs(10);
/// For so long whoever had a right that has ended is asked for before all others, and has it where the API server does not answer: it is
/// then that somebody has to see what goes on.
const TRUSTED: Duration = Duration::from_secs(600);
/// Tokens that are remembered.
const REMEMBERED: usize = 256;
/// How often the API server is asked for tokens that are not: strangers with ever new ones cost it next to nothing.
const RATE: Rate = Rate {
    burst: 20,
    every: Duration::from_secs(1),
};
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks and remembers.
pub(super) struct Reviewer {
    client: Client,
    known: Mutex<Known>,
}

struct Known {
    /// By the digest of the token: the token itself is not kept.
    verdicts: HashMap<[u8; 32], (Verdict, Instant)>,
    asked: Bucket,
}

/// Until when a verdict is of use: that somebody was allowed is beyond its own time.
fn kept_until((verdict, until): &(Verdict, Instant)) -> Instant {
    match verdict {
        Verdict::Allowed => *until + TRUSTED,
        _ => *until,
    }
}

impl Known {
    fn verdict(&self, token: &[u8; 32], now: Instant) -> Option<Verdict> {
        let (verdict, until) = self.verdicts.get(token)?;
        (now < *until).then_some(*verdict)
    }

    /// True if the bearer of `token` was allowed not long ago.
    fn trusts(&self, token: &[u8; 32], now: Instant) -> bool {
        let known = self.verdicts.get(token);
        known.is_some_and(|known| known.0 == Verdict::Allowed && now < kept_until(known))
    }

    fn remember(&mut self, token: [u8; 32], verdict: Verdict, now: Instant) {
        let lasts = match verdict {
            Verdict::Allowed => ALLOWED,
            Verdict::Unknown | Verdict::Forbidden => REFUSED,
            Verdict::Unanswered => return,
        };
        make_room(&mut self.verdicts, REMEMBERED, |known| now < kept_until(known));
        self.verdicts.insert(token, (verdict, now + lasts));
    }
}

impl Reviewer {
    pub(super) fn new(client: Client) -> Reviewer {
        let known = Known {
            verdicts: HashMap::new(),
            asked: Bucket::new(Instant::now()),
        };
        Reviewer {
            client,
            known: Mutex::new(known),
        }
    }

    /// May the bearer of `token` get `path`?
    pub(super) async fn verdict(&self, token: &str, path: &str) -> Verdict {
        let mut key = [0; 32];
        let digest = ring::digest::digest(&ring::digest::SHA256, format!("{path}\n{token}").as_bytes());
        key.copy_from_slice(digest.as_ref());
        let is_trusted = {
            let now = Instant::now();
            let mut known = lock(&self.known);
            if let Some(verdict) = known.verdict(&key, now) {
                return verdict;
            }
            let is_trusted = known.trusts(&key, now);
            if !is_trusted && !known.asked.take(RATE, now) {
                return Verdict::Unanswered;
            }
            is_trusted
        };
        let verdict = match timeout(PATIENCE, self.ask(token, path)).await {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(error)) => {
                tracing::warn!(error = %Chain(&error), "access to the metrics cannot be checked");
                Verdict::Unanswered
            }
            Err(_) => Verdict::Unanswered,
        };
        let mut known = lock(&self.known);
        known.remember(key, verdict, Instant::now());
        match verdict {
            Verdict::Unanswered if is_trusted => Verdict::Allowed,
            verdict => verdict,
        }
    }

    async fn ask(&self, token: &str, path: &str) -> kube::Result<Verdict> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.to_owned(),
                ..TokenReviewSpec::default()
            },
            ..TokenReview::default()
        };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let status = reviews.create(&PostParams::default(), &review).await?.status;
        let known = status.filter(|status| status.authenticated == Some(true));
        let Some(user) = known.and_then(|status| status.user) else {
            return Ok(Verdict::Unknown);
        };
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let asked = access(user, path);
        let status = reviews.create(&PostParams::default(), &asked).await?.status;
        Ok(match status {
            Some(status) if status.allowed => Verdict::Allowed,
            _ => Verdict::Forbidden,
        })
    }
}

fn access(user: UserInfo, path: &str) -> SubjectAccessReview {
    SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: user.username,
            uid: user.uid,
            groups: user.groups,
            extra: user
                .extra
                .map(|extra| extra.into_iter().collect::<BTreeMap<_, _>>()),
            non_resource_attributes: Some(NonResourceAttributes {
                path: Some(path.to_owned()),
                verb: Some("get".to_owned()),
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use http_body_util::Full;
    use hyper::{Request, Response, body::Bytes};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    /// An API server that knows the tokens `good` and `weak`, of which the first may read; counts requests.
    fn api() -> (Client, Arc<AtomicUsize>) {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        let serve = move |request: Request<Body>| {
            let count = counted.clone();
            async move {
                count.fetch_add(1, Ordering::SeqCst);
                let path = request.uri().path().to_owned();
                let body = request.into_body().collect_bytes().await.unwrap();
                let asked: Value = serde_json::from_slice(&body).unwrap();
                let status = if path.ends_with("/tokenreviews") {
                    let token = asked["spec"]["token"].as_str().unwrap();
                    let known = ["good", "weak"].contains(&token);
                    json!({"authenticated": known, "user": {"username": token, "groups": ["scrapers"]}})
                } else {
                    assert!(path.ends_with("/subjectaccessreviews"), "{path}");
                    let spec = &asked["spec"];
                    let right = json!({"path": "/metrics", "verb": "get"});
                    let may = spec["user"] == "good"
                        && spec["groups"] == json!(["scrapers"])
                        && spec["nonResourceAttributes"] == right;
                    json!({"allowed": may})
                };
                let answer = json!({"spec": {}, "status": status}).to_string();
                Ok::<_, std::io::Error>(Response::new(Full::new(Bytes::from(answer))))
            }
        };
        (Client::new(tower::service_fn(serve), "default"), count)
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_do_not_keep_out_whoever_was_let_in_nor_does_an_api_server_that_is_away() {
        let (client, _) = api();
        let reviewer = Reviewer::new(client);
        assert_eq!(reviewer.verdict("good", "/metrics").await, Verdict::Allowed);
        tokio::time::advance(ALLOWED).await;
        let mut last = Verdict::Unknown;
        for number in 0..100 {
            last = reviewer.verdict(&number.to_string(), "/metrics").await;
        }
        assert_eq!(last, Verdict::Unanswered);
        assert_eq!(reviewer.verdict("good", "/metrics").await, Verdict::Allowed);
        let away =
            |_: Request<Body>| async { Err::<Response<Full<Bytes>>, _>(std::io::Error::other("away")) };
        let known = reviewer.known.into_inner().unwrap();
        let reviewer = Reviewer {
            client: Client::new(tower::service_fn(away), "default"),
            known: Mutex::new(known),
        };
        tokio::time::advance(ALLOWED).await;
        assert_eq!(reviewer.verdict("good", "/metrics").await, Verdict::Allowed);
        assert_eq!(reviewer.verdict("weak", "/metrics").await, Verdict::Unanswered);
        tokio::time::advance(TRUSTED).await;
        assert_eq!(reviewer.verdict("good", "/metrics").await, Verdict::Unanswered);
    }

    #[tokio::test(start_paused = true)]
    async fn the_api_server_says_who_may_read_and_is_not_asked_each_time() {
        let (client, count) = api();
        let reviewer = Reviewer::new(client);
        for _ in 0..50 {
            assert_eq!(reviewer.verdict("good", "/metrics").await, Verdict::Allowed);
            assert_eq!(reviewer.verdict("weak", "/metrics").await, Verdict::Forbidden);
            assert_eq!(reviewer.verdict("bad", "/metrics").await, Verdict::Unknown);
        }
        assert_eq!(count.load(Ordering::SeqCst), 5);
        tokio::time::advance(ALLOWED).await;
        assert_eq!(reviewer.verdict("good", "/metrics").await, Verdict::Allowed);
        assert_eq!(count.load(Ordering::SeqCst), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn ever_new_tokens_are_not_all_passed_on_nor_remembered() {
        let (client, count) = api();
        let reviewer = Reviewer::new(client);
        for number in 0..10_000 {
            reviewer.verdict(&number.to_string(), "/metrics").await;
        }
        assert!(count.load(Ordering::SeqCst) <= 20);
        let now = Instant::now();
        let mut known = reviewer.known.lock().unwrap();
        for number in 0..10_000_u16 {
            let mut token = [0; 32];
            token[..2].copy_from_slice(&number.to_be_bytes());
            known.remember(token, Verdict::Unknown, now);
        }
        assert!(known.verdicts.len() <= REMEMBERED);
    }
}
