//! Request bodies, read within bounds of size, time and memory.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes};
use muster_proto::session::{Problem, ProblemKind};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::problem::problem;

/// How long a body may take to arrive.
const TIMEOUT: Duration = Duration::from_secs(120);
/// How long nothing of it may arrive: a lost segment is sent again a few times in that.
const PROGRESS: Duration = Duration::from_secs(20);
/// How much of a body that is not taken is thrown away before the answer. A connection that is closed with bytes unread is reset,
/// and the reset may overtake the answer that says why.
const DISCARD: usize = 160 << 20;
/// How long that may take.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(20);
/// What is allocated before anything arrived, at most: an announced length is only a word.
const AT_FIRST: usize = 16 << 10;

/// What bodies may take of the memory together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room<'a> {
    /// How many bytes of each body have a place anyway.
    pub(super) free: usize,
    /// A permit for each byte beyond.
    pub(super) bytes: &'a Semaphore,
}

/// A body that has arrived, and its place in the room that it was read into.
#[derive(Debug)]
pub(super) struct Arrived<'a> {
    pub(super) bytes: Vec<u8>,
    _place: Option<SemaphorePermit<'a>>,
}

/// All of `body`, if it has at most `max` bytes. More is never held in memory.
///
/// What arrives takes its bytes from `room`, if there is one: without enough of them the body is refused for now.
pub(super) async fn read<B>(mut body: B, max: usize, room: Option<Room<'_>>) -> Result<Arrived<'_>, Problem>
where
    B: Body<Data = Bytes> + Unpin,
{
    let announced = body
        .size_hint()
        .exact()
        .and_then(|size| usize::try_from(size).ok());
    if announced.is_some_and(|size| size > max) {
        return Err(refuse(body, too_large(max)).await);
    }
    match tokio::time::timeout(TIMEOUT, arrive(&mut body, max, room)).await {
        Ok(Ok(arrived)) => Ok(arrived),
        Ok(Err(End::Refused(problem))) => Err(refuse(body, problem).await),
        Ok(Err(End::Broken(problem))) => Err(problem),
        Err(_) => Err(slow()),
    }
}

/// Why a body did not arrive.
enum End {
    /// It is not taken; more of it may come.
    Refused(Problem),
    /// No more of it comes.
    Broken(Problem),
}

async fn arrive<'a, B>(body: &mut B, max: usize, room: Option<Room<'a>>) -> Result<Arrived<'a>, End>
where
    B: Body<Data = Bytes> + Unpin,
{
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(max);
    let mut bytes = Vec::with_capacity(announced.min(AT_FIRST));
    let mut place: Option<SemaphorePermit<'a>> = None;
    while let Some(frame) = tokio::time::timeout(PROGRESS, body.frame())
        .await
        .map_err(|_| End::Broken(slow()))?
    {
        let frame = frame
            .map_err(|_| End::Broken(problem(ProblemKind::Malformed, "the request body ended early")))?;
        let Some(data) = frame.data_ref() else { continue };
        if bytes.len() + data.len() > max {
            return Err(End::Refused(too_large(max)));
        }
        if let Some(room) = room {
            let beyond = |len: usize| len.saturating_sub(room.free);
            let more = beyond(bytes.len() + data.len()) - beyond(bytes.len());
            let more = u32::try_from(more)
                .ok()
                .and_then(|more| room.bytes.try_acquire_many(more).ok())
                .ok_or_else(|| End::Refused(full()))?;
            match place.as_mut() {
                Some(place) => place.merge(more),
                None => place = Some(more),
            }
        }
        bytes.extend_from_slice(data);
    }
    Ok(Arrived { bytes, _place: place })
}

fn too_large(max: usize) -> Problem {
    problem(
        ProblemKind::TooLarge,
        format!("the request body exceeds the {max} bytes that this call accepts"),
    )
}

fn full() -> Problem {
    problem(
        ProblemKind::Unavailable,
        "too much data is arriving from other machines; try again",
    )
}

fn slow() -> Problem {
    problem(
        ProblemKind::Unavailable,
        "the request body took too long to arrive; send it again",
    )
}

/// `problem`, once the rest of `body` has been thrown away.
pub(super) async fn refuse<B>(mut body: B, problem: Problem) -> Problem
where
    B: Body<Data = Bytes> + Unpin,
{
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
    problem
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::{StreamExt, stream};
    use http_body_util::StreamBody;
    use hyper::body::Frame;

    use super::*;

    /// A body that sends `chunks` chunks of a kilobyte, one after each `pause`.
    fn drip(chunks: usize, pause: Duration) -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
        StreamBody::new(Box::pin(stream::iter(0..chunks).then(move |_| async move {
            tokio::time::sleep(pause).await;
            Ok(Frame::data(Bytes::from(vec![b' '; 1024])))
        })))
    }

    fn kind(read: Result<Arrived<'_>, Problem>) -> Option<ProblemKind> {
        read.err().map(|problem| problem.kind)
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stops_or_never_ends_is_to_be_sent_again() {
        let second = Duration::from_secs(1);
        assert_eq!(kind(read(drip(2, PROGRESS - second), 4096, None).await), None);
        for endless in [drip(2, PROGRESS + second), drip(4096, second)] {
            let read = read(endless, 8 << 20, None).await;
            assert_eq!(kind(read), Some(ProblemKind::Unavailable));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_take_no_more_memory_than_there_is_room() {
        let bytes = Semaphore::new(3 * 1024);
        let room = Some(Room {
            free: 0,
            bytes: &bytes,
        });
        let one = read(drip(2, Duration::ZERO), 4096, room).await.unwrap();
        assert_eq!((one.bytes.len(), bytes.available_permits()), (2048, 1024));
        let other = read(drip(2, Duration::ZERO), 4096, room).await;
        assert_eq!(kind(other), Some(ProblemKind::Unavailable));
        drop(one);
        assert_eq!(bytes.available_permits(), 3 * 1024);
        assert_eq!(
            kind(read(drip(2, Duration::ZERO), 1024, room).await),
            Some(ProblemKind::TooLarge)
        );
        assert_eq!(bytes.available_permits(), 3 * 1024);
    }

    #[tokio::test(start_paused = true)]
    async fn a_small_body_is_read_however_much_of_others_arrives_and_a_large_one_takes_what_is_beyond() {
        let bytes = Semaphore::new(84 * 1024);
        let room = Some(Room {
            free: 16 * 1024,
            bytes: &bytes,
        });
        let [small, large] = [3, 100].map(|size| move || drip(size, Duration::ZERO));
        let one = read(large(), 256 * 1024, room).await.unwrap();
        assert_eq!((one.bytes.len(), bytes.available_permits()), (100 * 1024, 0));
        let other = read(large(), 256 * 1024, room).await;
        assert_eq!(kind(other), Some(ProblemKind::Unavailable));
        let other = read(small(), 256 * 1024, room).await;
        assert_eq!(other.unwrap().bytes.len(), 3 * 1024);
        drop(one);
        assert_eq!(kind(read(large(), 256 * 1024, room).await), None);
    }
}
