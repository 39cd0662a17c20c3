//! A body of parts: bytes made for this one request, and stretches of files that go from disk to network unread.

use std::{fs::File, ops::Range, sync::Arc};

use hyper::body::Bytes;

/// One part of a body.
#[derive(Clone, Debug)]
pub enum Segment {
    /// In memory.
    Bytes(Bytes),
    /// A stretch of an open file, so that a replaced or removed one is still served to its end.
    File {
        /// Which.
        file: Arc<File>,
        /// From which byte.
        offset: u64,
        /// How many.
        len: u64,
    },
}

impl Segment {
    /// How many bytes.
    pub fn len(&self) -> u64 {
        match self {
            Segment::Bytes(bytes) => bytes.len() as u64,
            Segment::File { len, .. } => *len,
        }
    }

    /// True for one without bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of `range`, which lies inside.
    fn slice(&self, range: Range<u64>) -> Segment {
        match self {
            Segment::Bytes(bytes) => {
                let at = |offset: u64| usize::try_from(offset).map_or(bytes.len(), |at| at.min(bytes.len()));
                Segment::Bytes(bytes.slice(at(range.start)..at(range.end)))
            }
            Segment::File { file, offset, .. } => Segment::File {
                file: Arc::clone(file),
                offset: offset + range.start,
                len: range.end - range.start,
            },
        }
    }
}

/// The parts of a body, in order; none is empty.
#[derive(Clone, Debug, Default)]
pub struct Body(Vec<Segment>);

impl Body {
    /// A body of one part.
    pub fn of(bytes: impl Into<Bytes>) -> Self {
        Body::default().with(Segment::Bytes(bytes.into()))
    }

    /// The body with `segment` after it.
    #[must_use]
    pub fn with(mut self, segment: Segment) -> Self {
        if !segment.is_empty() {
            self.0.push(segment);
        }
        self
    }

    /// The body with the parts of `other` after it.
    #[must_use]
    pub fn with_body(mut self, other: Body) -> Self {
        self.0.extend(other.0);
        self
    }

    /// The parts.
    pub fn segments(&self) -> &[Segment] {
        &self.0
    }

    /// How many bytes in all.
    pub fn len(&self) -> u64 {
        self.0.iter().map(Segment::len).sum()
    }

    /// True for a body without bytes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes of `range`, as far as there are any.
    #[must_use]
    pub fn slice(&self, range: &Range<u64>) -> Body {
        let mut slice = Body::default();
        let mut at = 0;
        for segment in &self.0 {
            let end = at + segment.len();
            let (from, to) = (range.start.max(at), range.end.min(end));
            if from < to {
                slice = slice.with(segment.slice(from - at..to - at));
            }
            at = end;
        }
        slice
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::fs::FileExt};

    use proptest::prelude::*;

    use super::*;

    fn read(body: &Body) -> Vec<u8> {
        let mut all = Vec::new();
        for segment in body.segments() {
            match segment {
                Segment::Bytes(bytes) => all.extend(bytes),
                Segment::File { file, offset, len } => {
                    let mut part = vec![0; usize::try_from(*len).unwrap()];
                    file.read_exact_at(&mut part, *offset).unwrap();
                    all.extend(part);
                }
            }
        }
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// A body made of memory and file stretches is cut exactly like the bytes it stands for.
        #[test]
        fn a_slice_is_the_slice_of_the_bytes(
            parts in proptest::collection::vec((any::<bool>(), proptest::collection::vec(any::<u8>(), 0..40)), 0..6),
            start in 0_u64..250,
            len in 0_u64..250,
        ) {
            let mut file = tempfile::tempfile().unwrap();
            let (mut written, mut whole, mut stretches) = (0, Vec::<u8>::new(), Vec::new());
            for (on_disk, bytes) in &parts {
                if *on_disk {
                    file.write_all(bytes).unwrap();
                    stretches.push((written, bytes.len() as u64));
                    written += bytes.len() as u64;
                }
                whole.extend(bytes);
            }
            let file = Arc::new(file);
            let mut stretches = stretches.into_iter();
            let body = parts.iter().fold(Body::default(), |body, (on_disk, bytes)| {
                body.with(if *on_disk {
                    let (offset, len) = stretches.next().unwrap();
                    Segment::File { file: Arc::clone(&file), offset, len }
                } else {
                    Segment::Bytes(bytes.clone().into())
                })
            });
            prop_assert_eq!(body.len(), whole.len() as u64);
            prop_assert_eq!(read(&body), whole.clone());
            let part = body.slice(&(start..start + len));
            let from = usize::try_from(start).unwrap().min(whole.len());
            let to = usize::try_from(start + len).unwrap().min(whole.len());
            prop_assert_eq!(read(&part), &whole[from..to]);
            prop_assert!(part.segments().iter().all(|segment| !segment.is_empty()));
        }
    }
}
