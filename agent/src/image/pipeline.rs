//! The stages between the network and the disk, each on a thread of its own, with bounded buffers between them.

use std::{
    cell::Cell,
    io::{self, BufRead, Read},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use flate2::bufread::MultiGzDecoder;
use hyper::body::Bytes;
use zstd::zstd_safe::{self, zstd_sys::ZSTD_ErrorCode};

use super::{
    Failure,
    checksum::{Digested, Wanted},
    format::{self, Packing},
    source::{Got, Sink, SourceError},
};
use crate::{
    disk::aligned::Aligned,
    sync::lock,
    work::{Stopped, Work},
};

/// Bytes that are written at once. A multiple of every disk's block.
pub(super) const BUFFER: usize = 1 << 20;

/// Buffers between decoder and writer.
const BUFFERS: usize = 8;

/// Pieces from the network, of at most 256 KiB, that wait for the decoder and for the digest.
const CHUNKS: usize = 16;

/// The largest window of a zstd frame, as a power of two, in bytes: what `zstd -19` and `--ultra` make. A decoder holds it in
/// memory, so `--long=31` is refused. [`Failure::Window`] tells it in words.
const WINDOW: u32 = 27;

/// As many bytes tell how they are packed, and how long a zstd frame says it is (RFC 8878, 3.1.1.1).
const PEEK: usize = 18;

/// As many bytes in a row may give nothing of the image. Frames and members may be empty, and frames may be there to be skipped, such as a
/// table for seeking at the end: a server that sends nothing else would never be done.
const BARREN: u64 = 256 << 20;

/// What came through.
#[derive(Debug)]
pub(super) struct Transfer {
    /// From the network.
    pub(super) got: Got,
    /// Bytes of the image.
    pub(super) image: u64,
    /// Digest of those from the network.
    pub(super) digest: Digested,
}

/// How far the network is: for the percentage.
#[derive(Debug, Default)]
struct Counters {
    /// As the server said last.
    total: Mutex<Option<u64>>,
    transferred: AtomicU64,
}

impl Counters {
    fn total(&self) -> Option<u64> {
        *lock(&self.total)
    }

    /// 0 to 100; 0 where it is not known.
    fn percent(&self) -> u8 {
        let transferred = self.transferred.load(Ordering::Relaxed);
        let total = self.total().filter(|total| *total > 0);
        let percent = total.map_or(0, |total| u128::from(transferred) * 100 / u128::from(total));
        u8::try_from(percent.min(100)).unwrap_or(100)
    }
}

/// Gives each piece from the network to the decoder and to the digest.
struct Fork<'a> {
    counters: &'a Counters,
    decoder: SyncSender<Bytes>,
    digest: SyncSender<Bytes>,
}

impl Sink for Fork<'_> {
    fn expect(&mut self, total: Option<u64>) {
        *lock(&self.counters.total) = total;
    }

    fn take(&mut self, bytes: Bytes) -> bool {
        self.counters
            .transferred
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.digest.send(bytes.clone()).is_ok() && self.decoder.send(bytes).is_ok()
    }
}

/// Why the decoder ended early.
enum DecodeEnd {
    /// Nobody takes what it decodes: the writer knows why.
    Unwanted,
    Failed(Failure),
}

/// Brings the bytes of `source` to `write`, decompressed, in pieces of [`BUFFER`] bytes of which the last may be shorter, and
/// their digest, by the algorithm of the one that is `wanted`. `percent` maps how much of the transfer is done to how much of the work is.
pub(super) fn run(
    source: impl FnOnce(&mut dyn Sink) -> Result<Got, SourceError> + Send,
    wanted: &Wanted,
    disk_size: u64,
    work: &Work,
    percent: impl Fn(u8) -> u8,
    mut write: impl FnMut(&mut Aligned, usize) -> Result<(), Failure>,
) -> Result<Transfer, Failure> {
    let counters = &Counters::default();
    let mut digest = wanted.begin();
    let (to_decoder, chunks) = sync_channel::<Bytes>(CHUNKS);
    let (to_digest, digested) = sync_channel::<Bytes>(CHUNKS);
    let (fill, filled) = sync_channel::<(Aligned, usize)>(BUFFERS);
    let (free, unused) = sync_channel::<Aligned>(BUFFERS);
    for _ in 0..BUFFERS {
        free.send(Aligned::zeroed(BUFFER)).expect("the other end is here");
    }
    thread::scope(|scope| {
        let mut fork = Fork {
            counters,
            decoder: to_decoder,
            digest: to_digest,
        };
        let fetching = part(scope, work, "image-source", move || source(&mut fork))?;
        let summing = part(scope, work, "image-digest", move || {
            digested.into_iter().for_each(|bytes| digest.update(&bytes));
            digest.finish()
        })?;
        let decoding = part(scope, work, "image-decoder", move || {
            decode(chunks, counters, disk_size, &unused, &fill)
        })?;

        let mut image = 0;
        let mut written = Ok(());
        // Until all is written, or nothing more is to be: then the channels close, and the others end.
        for (mut buffer, len) in &filled {
            written = work
                .go_on()
                .map_err(stopped)
                .and_then(|()| write(&mut buffer, len));
            if written.is_err() {
                break;
            }
            image += len as u64;
            work.advance(image, percent(counters.percent()));
            // The decoder may have ended.
            _ = free.send(buffer);
        }
        drop((filled, free));
        let decoded = decoding.join().expect("the decoder does not panic");
        let fetched = fetching.join().expect("the source does not panic");
        let digest = summing.join().expect("the digest does not panic");
        work.go_on().map_err(stopped)?;
        // What failed first: a decoder that gets half a file complains, too.
        let got = fetched.map_err(|source| Failure::Source { source })?;
        // What has the digest that it should have is whole, and was made as it is.
        let is_whole = wanted.compare(&digest).is_ok();
        let given = |failure: Failure| if is_whole { failure } else { failure.given(&got) };
        written.map_err(given)?;
        match decoded {
            Ok(()) => Ok(Transfer { got, image, digest }),
            Err(DecodeEnd::Failed(failure)) => Err(given(failure)),
            Err(DecodeEnd::Unwanted) => unreachable!("the writer ends early only with an error"),
        }
    })
}

/// Does one part of `work` on a thread of that name.
fn part<'scope, T: Send + 'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    work: &'scope Work,
    name: &str,
    part: impl FnOnce() -> T + Send + 'scope,
) -> Result<thread::ScopedJoinHandle<'scope, T>, Failure> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn_scoped(scope, move || work.part(part))
        .map_err(|source| Failure::Threads { source })
}

fn stopped(source: Stopped) -> Failure {
    Failure::Stopped { source }
}

/// Unpacks what `chunks` brings into buffers.
fn decode(
    chunks: Receiver<Bytes>,
    counters: &Counters,
    disk_size: u64,
    unused: &Receiver<Aligned>,
    fill: &SyncSender<(Aligned, usize)>,
) -> Result<(), DecodeEnd> {
    let barren = &Cell::new(0);
    let mut chunks = Chunks::of(chunks, barren);
    let first = chunks.peek(PEEK);
    let packing = format::packing(first);
    let too_large = |len: u64| {
        DecodeEnd::Failed(Failure::TooLarge {
            image: len,
            disk: disk_size,
        })
    };
    let announced = match packing {
        Packing::None => counters.total(),
        // Of the first frame: the image has that many bytes at least.
        Packing::Zstd => zstd_safe::get_frame_content_size(first).ok().flatten(),
        Packing::Gzip => None,
    };
    if let Some(len) = announced.filter(|len| *len > disk_size) {
        return Err(too_large(len));
    }
    match packing {
        Packing::None => pump(&mut chunks, barren, unused, fill),
        Packing::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(chunks).map_err(undecoded)?;
            decoder.window_log_max(WINDOW).map_err(undecoded)?;
            pump(&mut decoder, barren, unused, fill)
        }
        Packing::Gzip => pump(&mut MultiGzDecoder::new(chunks), barren, unused, fill),
    }
}

/// What an error of a decoder's means.
fn undecoded(source: io::Error) -> DecodeEnd {
    const WINDOW_TOO_LARGE: ZSTD_ErrorCode = ZSTD_ErrorCode::ZSTD_error_frameParameter_windowTooLarge;
    // The decoder keeps nothing of zstd's code but its words; the code is the number, negated.
    let words = zstd_safe::get_error_name(0_usize.wrapping_sub(WINDOW_TOO_LARGE as usize));
    DecodeEnd::Failed(if source.to_string() == words {
        Failure::Window
    } else {
        Failure::Decode { source }
    })
}

/// Fills buffers to the brim until `reader` ends. What `reader` has taken is `barren` no more once it gives something.
fn pump(
    reader: &mut dyn Read,
    barren: &Cell<u64>,
    unused: &Receiver<Aligned>,
    fill: &SyncSender<(Aligned, usize)>,
) -> Result<(), DecodeEnd> {
    loop {
        let mut buffer = unused.recv().map_err(|_closed| DecodeEnd::Unwanted)?;
        let mut len = 0;
        while len < BUFFER {
            match reader.read(&mut buffer[len..]) {
                Ok(0) => break,
                Ok(read) => {
                    len += read;
                    barren.set(0);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(undecoded(source)),
            }
        }
        if len > 0 {
            fill.send((buffer, len)).map_err(|_closed| DecodeEnd::Unwanted)?;
        }
        if len < BUFFER {
            return Ok(());
        }
    }
}

/// The pieces from the network as one stream.
struct Chunks<'b> {
    receiver: Receiver<Bytes>,
    current: Bytes,
    /// So many bytes were taken since something of the image came of them.
    barren: &'b Cell<u64>,
}

impl Chunks<'_> {
    fn of(receiver: Receiver<Bytes>, barren: &Cell<u64>) -> Chunks<'_> {
        Chunks {
            receiver,
            current: Bytes::new(),
            barren,
        }
    }

    /// The first bytes of what is to come, at least `len` if there are as many.
    fn peek(&mut self, len: usize) -> &[u8] {
        if self.current.len() < len {
            let mut first = self.current.to_vec();
            while first.len() < len
                && let Ok(more) = self.receiver.recv()
            {
                first.extend_from_slice(&more);
            }
            self.current = first.into();
        }
        &self.current
    }
}

impl BufRead for Chunks<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.barren.get() > BARREN {
            let mib = BARREN >> 20;
            return Err(io::Error::other(format!(
                "no image data in {mib} MiB in a row: they contain only empty or skippable frames"
            )));
        }
        while self.current.is_empty() {
            match self.receiver.recv() {
                Ok(bytes) => self.current = bytes,
                Err(_closed) => break,
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, len: usize) {
        self.current = self.current.slice(len..);
        self.barren.set(self.barren.get() + len as u64);
    }
}

impl Read for Chunks<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let len = available.len().min(into.len());
        into[..len].copy_from_slice(&available[..len]);
        self.consume(len);
        Ok(len)
    }
}
