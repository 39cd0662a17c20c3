//! An HTTP server for one large file, with ranges, that breaks off when it is told to.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result};

/// A server on the loopback interface. It is gone when dropped.
#[derive(Debug)]
pub struct FileServer {
    address: SocketAddr,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct State {
    file: PathBuf,
    /// The first answer ends after so many bytes of the file.
    breaks_at: Option<u64>,
    requests: AtomicUsize,
    ended: AtomicBool,
}

impl FileServer {
    /// Serves `file` under every path; the first answer breaks off after `breaks_at` bytes.
    pub fn new(file: &Path, breaks_at: Option<u64>) -> Result<FileServer> {
        let listener = TcpListener::bind("127.0.0.1:0").context("listen on the loopback interface")?;
        let address = listener.local_addr().context("ask for a port")?;
        let state = Arc::new(State {
            file: file.to_owned(),
            breaks_at,
            requests: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
        });
        let own = Arc::clone(&state);
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if own.ended.load(Ordering::SeqCst) {
                    return;
                }
                let state = Arc::clone(&own);
                if let Ok(stream) = stream {
                    // The client sees that the connection ends.
                    thread::spawn(move || _ = answer(&stream, &state));
                }
            }
        });
        Ok(FileServer {
            address,
            state,
            thread: Some(thread),
        })
    }

    /// The URL of the file, with this name.
    pub fn url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.address)
    }

    /// How many requests came.
    pub fn requests(&self) -> usize {
        self.state.requests.load(Ordering::SeqCst)
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::SeqCst);
        // Wakes it.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn answer(mut stream: &TcpStream, state: &State) -> io::Result<()> {
    let mut start = 0;
    for line in BufReader::new(stream).lines() {
        let line = line?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(range) = line.strip_prefix("range: bytes=") {
            start = range.trim_end_matches('-').parse().map_err(io::Error::other)?;
        }
    }
    let mut file = File::open(&state.file)?;
    let total = file.metadata()?.len();
    let status = if start == 0 {
        "200 OK".to_owned()
    } else {
        format!(
            "206 Partial Content\r\nContent-Range: bytes {start}-{}/{total}",
            total.saturating_sub(1)
        )
    };
    let is_first = state.requests.fetch_add(1, Ordering::SeqCst) == 0;
    let end = state.breaks_at.filter(|_| is_first).unwrap_or(total);
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: \"{total}\"\r\nConnection: close\r\n\r\n",
        total - start
    )?;
    file.seek(SeekFrom::Start(start))?;
    // By sendfile(2).
    io::copy(&mut file.take(end.saturating_sub(start)), &mut stream)?;
    Ok(())
}
