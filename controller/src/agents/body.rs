//! Request bodies, read within bounds of size and time.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Incoming};
use muster_proto::session::{Problem, ProblemKind};

use super::problem::problem;

/// How long a body may take to arrive.
const TIMEOUT: Duration = Duration::from_secs(120);
/// How much of a body that is too large is thrown away before the answer. A connection that is closed with bytes unread is reset,
/// and the reset may overtake the answer that says why.
const DISCARD: usize = 160 << 20;
/// How long that may take.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(20);

/// All of `body`, if it has at most `max` bytes. More is never held in memory.
pub(super) async fn read(mut body: Incoming, max: usize) -> Result<Bytes, Problem> {
    let announced = body
        .size_hint()
        .exact()
        .and_then(|size| usize::try_from(size).ok());
    if announced.is_some_and(|size| size > max) {
        return Err(too_large(body, max).await);
    }
    let mut whole = Vec::with_capacity(announced.unwrap_or_default());
    let arrived = tokio::time::timeout(TIMEOUT, async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| problem(ProblemKind::Malformed, "the body broke off"))?;
            if let Some(data) = frame.data_ref() {
                if whole.len() + data.len() > max {
                    return Ok(false);
                }
                whole.extend_from_slice(data);
            }
        }
        Ok(true)
    });
    match arrived.await {
        Ok(Ok(true)) => Ok(Bytes::from(whole)),
        Ok(Ok(false)) => {
            drop(whole);
            Err(too_large(body, max).await)
        }
        Ok(Err(problem)) => Err(problem),
        Err(_) => Err(problem(
            ProblemKind::Malformed,
            "the body took too long to arrive",
        )),
    }
}

async fn too_large(mut body: Incoming, max: usize) -> Problem {
    let mut left = DISCARD;
    let discard = async {
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                break;
            }
        }
    };
    // Whether it ended or not, the answer is the same.
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, discard).await;
    problem(
        ProblemKind::TooLarge,
        format!("the body has more than the {max} bytes that this call takes"),
    )
}
