//! A refused call: the [`Problem`] that the agent reads, and how HTTP says it.

use http_body_util::Full;
use hyper::{
    Response, StatusCode,
    body::Bytes,
    header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER},
};
use muster_proto::session::{Problem, ProblemKind};
use serde::Serialize;

/// The answer to a call.
pub(super) type Answer = Response<Full<Bytes>>;

/// When the agent may try again after [`ProblemKind::Unavailable`], in seconds.
const UNAVAILABLE_RETRY: u16 = 2;
/// The same after [`ProblemKind::Quota`]: people must act first.
const QUOTA_RETRY: u16 = 30;

pub(super) fn problem(kind: ProblemKind, message: impl Into<String>) -> Problem {
    Problem {
        kind,
        message: message.into(),
    }
}

/// `value` as JSON with 200.
pub(super) fn json(value: &impl Serialize) -> Answer {
    with_status(StatusCode::OK, value)
}

/// The HTTP form of `problem`.
pub(super) fn refusal(problem: &Problem) -> Answer {
    let (status, retry) = match problem.kind {
        ProblemKind::Malformed => (StatusCode::BAD_REQUEST, None),
        ProblemKind::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, None),
        ProblemKind::Version => (StatusCode::UPGRADE_REQUIRED, None),
        ProblemKind::Token | ProblemKind::Certificate => (StatusCode::FORBIDDEN, None),
        ProblemKind::Quota => (StatusCode::TOO_MANY_REQUESTS, Some(QUOTA_RETRY)),
        ProblemKind::Unavailable | ProblemKind::Other => {
            (StatusCode::SERVICE_UNAVAILABLE, Some(UNAVAILABLE_RETRY))
        }
    };
    let mut answer = with_status(status, problem);
    if let Some(seconds) = retry {
        answer
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    answer
}

pub(super) fn with_status(status: StatusCode, value: &impl Serialize) -> Answer {
    let body = serde_json::to_vec(value).expect("what the protocol says is plain data");
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}
