//! Bytes from an HTTP server, in order and without gaps, however often the connection breaks.
//!
//! A broken connection goes on where it ended, by `Range` and, where the server gives a strong validator, `If-Range`
//! (RFC 9110, sections 13.1.5 and 14.2). A server that knows no ranges sends everything again, and what is known is skipped.

mod error;
mod way;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, Response, StatusCode,
    body::{Body as _, Bytes, Incoming},
    header::{self, HeaderMap, HeaderValue},
};
use rustls::ClientConfig;
use tokio::time::{Instant, sleep, timeout};

pub use error::SourceError;

use super::{
    Environment,
    url::{Url, UrlError},
};
use crate::{
    dial::Backoff,
    net,
    work::{Stopped, Work},
};

/// How many redirects are followed.
const MOST_REDIRECTS: usize = 5;

/// Who sends fewer bytes than this while it is waited for ([`Patience::pace`]) would take days for an operating system, and the host keeps
/// others from their turn meanwhile.
const LEAST: u64 = 1 << 20;

/// What is said with the step of the work while the file does not come.
const TROUBLE: &str = "download failing, retrying";

/// How patient a source is.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// How long a server may send nothing.
    pub stall: Duration,
    /// How long it may be waited for, in all, for the next [`LEAST`] bytes.
    pub pace: Duration,
    /// How many tries in a row may bring no byte.
    pub tries: u32,
    /// Once a file that has begun to come has brought nothing for so long, it is looked for at the server's other addresses, too. Where it has
    /// another tag there, all of it has to come again, which is not worth it for a server that was only restarted.
    pub loyalty: Duration,
    /// So long a file that has begun to come may bring no more, however many tries that are: a switch that starts anew takes minutes, and
    /// what is on the disk would be written from its beginning again.
    pub outage: Duration,
    /// How many tries there may be in all.
    pub tries_in_all: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            stall: Duration::from_secs(30),
            pace: Duration::from_secs(120),
            tries: 10,
            loyalty: Duration::from_secs(60),
            outage: Duration::from_secs(600),
            tries_in_all: 200,
        }
    }
}

/// What takes the bytes.
pub trait Sink {
    /// So many will come, if the server says so. Called before the first bytes, and again where an answer brought none.
    fn expect(&mut self, total: Option<u64>);

    /// The next bytes. False if no more are wanted.
    fn take(&mut self, bytes: Bytes) -> bool;
}

/// What came of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Got {
    /// How many bytes: fewer than all only if the sink wanted no more, or if nobody told that there are more.
    pub bytes: u64,
    /// False if the file ended where a connection or a part of it did, and nobody told its length or that nothing follows: then a transfer
    /// that was cut off looks like a whole one (RFC 9112, section 8).
    pub is_told: bool,
    /// How the server says that it encoded what it sent, though it was asked not to. It may be wrong, or mean a file that lies there so.
    pub encoding: Option<String>,
}

/// Gets the whole of `url` into `sink`. Blocks: it runs on a runtime of its own, so that neither waits for the other.
///
/// # Errors
/// [`SourceError`].
pub fn get(
    url: &str,
    environment: &Environment,
    patience: Patience,
    work: &Work,
    sink: &mut dyn Sink,
) -> Result<Got, SourceError> {
    let url = Url::parse(url).map_err(|source| SourceError::Url { source })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| SourceError::Runtime { source })?;
    let mut source = Source {
        environment,
        patience,
        work,
        url,
        mirror: None,
        connected: None,
        served: None,
        shunned: Vec::new(),
        tls: None,
        at: 0,
        total: None,
        validator: None,
        encoding: None,
    };
    runtime.block_on(async {
        tokio::select! {
            got = source.run(sink) => got,
            () = work.stopped() => Err(SourceError::Stopped { source: Stopped }),
        }
    })
}

/// All of a small file, and what came of it.
///
/// # Errors
/// [`SourceError`]; [`SourceError::TooLarge`] if it has more than `most` bytes.
pub fn get_small(
    url: &str,
    most: u64,
    environment: &Environment,
    patience: Patience,
    work: &Work,
) -> Result<(Vec<u8>, Got), SourceError> {
    struct Small {
        bytes: Vec<u8>,
        most: u64,
        is_too_large: bool,
    }
    impl Sink for Small {
        fn expect(&mut self, total: Option<u64>) {
            self.is_too_large = total.is_some_and(|total| total > self.most);
        }
        fn take(&mut self, bytes: Bytes) -> bool {
            self.is_too_large |= (self.bytes.len() + bytes.len()) as u64 > self.most;
            if !self.is_too_large {
                self.bytes.extend_from_slice(&bytes);
            }
            !self.is_too_large
        }
    }
    let mut small = Small {
        bytes: Vec::new(),
        most,
        is_too_large: false,
    };
    let got = get(url, environment, patience, work, &mut small)?;
    if small.is_too_large {
        let url = Url::parse(url).map_err(|source| SourceError::Url { source })?;
        let url = url.to_string();
        return Err(SourceError::TooLarge { url, most });
    }
    Ok((small.bytes, got))
}

struct Source<'a> {
    environment: &'a Environment,
    patience: Patience,
    work: &'a Work,
    url: Url,
    /// Where redirects have led to the file.
    mirror: Option<Url>,
    /// Whom the latest connection leads to.
    connected: Option<SocketAddr>,
    /// Whom the file comes from: it may have another tag elsewhere.
    served: Option<SocketAddr>,
    /// Who took a connection and nothing came of it, since something came.
    shunned: Vec<SocketAddr>,
    tls: Option<Arc<ClientConfig>>,
    /// So many bytes are in the sink.
    at: u64,
    total: Option<u64>,
    /// What tells whether the file is still the same: a strong entity tag, or a date.
    validator: Option<HeaderValue>,
    /// What [`Got::encoding`] will say.
    encoding: Option<String>,
}

impl Source<'_> {
    async fn run(&mut self, sink: &mut dyn Sink) -> Result<Got, SourceError> {
        let mut backoff = Backoff::default();
        let (mut in_a_row, mut in_all) = (0, 0);
        let mut came = Instant::now();
        loop {
            let before = self.at;
            let error = match self.once(sink).await {
                Ok(is_told) => {
                    return Ok(Got {
                        bytes: self.at,
                        is_told,
                        encoding: self.encoding.take(),
                    });
                }
                Err(error) if error.is_transient() => error,
                // Who is asked because the file's own server stays away may not have it.
                Err(error @ SourceError::Status { .. })
                    if self.at > 0 && came.elapsed() >= self.patience.loyalty =>
                {
                    error
                }
                Err(error) => return Err(error),
            };
            in_all += 1;
            let is_slow = matches!(error, SourceError::Slow { .. });
            if self.at > before && !is_slow {
                in_a_row = 0;
                came = Instant::now();
                self.shunned.clear();
                backoff.reset();
            } else {
                // Another one may do better.
                self.mirror = None;
                self.shunned.extend(self.connected);
            }
            in_a_row += 1;
            if is_slow || came.elapsed() >= self.patience.loyalty {
                self.served = None;
            }
            let is_away = self.at == 0 || came.elapsed() >= self.patience.outage;
            if (in_a_row >= self.patience.tries && is_away) || in_all >= self.patience.tries_in_all {
                let source = Box::new(error);
                return Err(SourceError::GivenUp {
                    tries: in_all,
                    source,
                });
            }
            tracing::warn!("{}; trying again", muster_proto::Chain(&error));
            self.work.trouble(TROUBLE);
            self.work.is_alive();
            sleep(backoff.pause(None, net::random())).await;
        }
    }

    /// One try: from where we are to the end, and whether that was told ([`Got::is_told`]).
    async fn once(&mut self, sink: &mut dyn Sink) -> Result<bool, SourceError> {
        let (url, response) = self.request().await?;
        let mut is_told = self.take(&url, response, sink).await?;
        // Who knows ranges says now that nothing follows, or sends what does. From anybody else nothing is learnt.
        let mut before = 0;
        for _ in 0..self.patience.tries {
            if is_told || self.at == before {
                break;
            }
            before = self.at;
            let Ok((url, response)) = self.request().await else {
                break;
            };
            let answers = match response.status() {
                StatusCode::RANGE_NOT_SATISFIABLE => true,
                StatusCode::PARTIAL_CONTENT => self.compare(&url, &response).is_ok(),
                _ => false,
            };
            if !answers {
                break;
            }
            match self.take(&url, response, sink).await {
                Err(_) if self.at == before => break,
                taken => is_told = taken?,
            }
        }
        Ok(is_told)
    }

    /// What an answer brings, and whether it tells that this is the end of the file.
    async fn take(
        &mut self,
        url: &Url,
        response: Response<Incoming>,
        sink: &mut dyn Sink,
    ) -> Result<bool, SourceError> {
        // Only where nothing follows what has come: the rest of the answer is no part of the file.
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            self.work.trouble("");
            return Ok(true);
        }
        let mut skip = self.compare(url, &response)?;
        self.served = self.connected;
        // Of which nothing is here yet, another server may call it as it will.
        if self.at == 0 {
            self.encoding = None;
            self.total = content_length(&response);
            self.validator = validator(response.headers());
            sink.expect(self.total);
        }
        self.encoding = self.encoding.take().or_else(|| encoding(response.headers()));
        let is_part = response.status() == StatusCode::PARTIAL_CONTENT;
        // With a part, too, a server may tell how long the whole is; elsewhere the range says nothing (RFC 9110, section 14.4).
        let total = match self.total {
            None if is_part => content_range(response.headers()).and_then(|(_, total)| total),
            total => total,
        };
        // Where a part ends the file need not: a server may send less than was asked for.
        let is_told = total.is_some() || (!is_part && tells_end(&response));
        let mut body = response.into_body();
        // What the disk takes is not the server's matter.
        let (mut waited, mut came) = (Duration::ZERO, 0);
        loop {
            let asked = Instant::now();
            let frame = timeout(self.patience.stall, body.frame())
                .await
                .map_err(|_elapsed| self.stalled(url))?;
            waited += asked.elapsed();
            if waited >= self.patience.pace {
                if came < LEAST {
                    return Err(SourceError::Slow {
                        url: url.to_string(),
                        at: self.at,
                        came,
                        waited,
                    });
                }
                (waited, came) = (Duration::ZERO, 0);
            }
            let Some(frame) = frame else { break };
            // Nothing was lost if only the end of the connection was not as it should be.
            if frame.is_err() && total == Some(self.at) && skip == 0 {
                break;
            }
            let frame = frame.map_err(|source| SourceError::Broken {
                url: url.to_string(),
                at: self.at,
                source,
            })?;
            let Ok(mut data) = frame.into_data() else { continue };
            came += data.len() as u64;
            self.work.trouble("");
            let known = skip.min(data.len() as u64);
            skip -= known;
            data = data.split_off(usize::try_from(known).unwrap_or(usize::MAX));
            if data.is_empty() {
                // A server without ranges sends for long what is on the disk already.
                self.work.is_alive();
                continue;
            }
            self.at += data.len() as u64;
            if !sink.take(data) {
                return Ok(true);
            }
        }
        match total {
            Some(total) if total != self.at => Err(SourceError::Length {
                url: url.to_string(),
                at: self.at,
                total,
            }),
            // More had come before, and this is all.
            None if skip > 0 && is_told => Err(SourceError::Changed {
                url: url.to_string(),
                at: self.at,
            }),
            None if skip > 0 => Err(SourceError::Length {
                url: url.to_string(),
                at: self.at - skip,
                total: self.at,
            }),
            _ => Ok(is_told),
        }
    }

    fn stalled(&self, url: &Url) -> SourceError {
        SourceError::Stalled {
            url: url.to_string(),
            at: self.at,
            patience: self.patience.stall,
        }
    }

    /// Whether the answer goes on where we are; returns how many of its bytes are known already.
    fn compare(&self, url: &Url, response: &Response<Incoming>) -> Result<u64, SourceError> {
        if self.at == 0 {
            return Ok(0);
        }
        let changed = || SourceError::Changed {
            url: url.to_string(),
            at: self.at,
        };
        let headers = response.headers();
        let now = validator(headers);
        // The server has compared what we asked with, and need not repeat a date (RFC 9110, section 15.3.7).
        let is_compared = now.is_none() && response.status() == StatusCode::PARTIAL_CONTENT;
        if now != self.validator && !is_compared {
            return Err(changed());
        }
        if response.status() == StatusCode::PARTIAL_CONTENT {
            let (start, total) = content_range(headers).ok_or_else(changed)?;
            let same = start == self.at && (self.total.is_none() || total.is_none() || total == self.total);
            return if same { Ok(0) } else { Err(changed()) };
        }
        // Everything once more: the server knows no ranges, or the file has changed.
        if content_length(response) == self.total {
            Ok(self.at)
        } else {
            Err(changed())
        }
    }

    /// Whether a server that has nothing from where we are says that the file ends just there. Of one whose length is not known that is
    /// how a connection is told that broke behind the last byte; any other was announced longer than it is.
    fn ends_here(&self, headers: &HeaderMap) -> bool {
        let now = validator(headers);
        let is_same = now.is_none() || now == self.validator;
        is_same && self.at > 0 && unsatisfied_range(headers) == Some(self.at)
    }

    /// The answer of the server that has the bytes, or says that there are no more.
    async fn request(&mut self) -> Result<(Url, Response<Incoming>), SourceError> {
        // Another mirror may call the same file by another tag. Signatures end and mirrors go: then the way there is asked for again.
        if let Some(mirror) = self.mirror.take()
            && let Ok(response) = self.ask(&mirror).await
            && response.status().is_success()
        {
            self.mirror = Some(mirror.clone());
            return Ok((mirror, response));
        }
        let mut url = self.url.clone();
        for _ in 0..=MOST_REDIRECTS {
            let response = self.ask(&url).await?;
            let status = response.status();
            let location = response.headers().get(header::LOCATION);
            if status.is_redirection()
                && let Some(location) = location
            {
                let location = String::from_utf8_lossy(location.as_bytes());
                let next = url
                    .join(&location)
                    .map_err(|source| SourceError::Url { source })?;
                if url.is_tls && !next.is_tls {
                    return Err(SourceError::Downgrade {
                        from: url.to_string(),
                        to: next.to_string(),
                    });
                }
                url = next;
                continue;
            }
            let is_end = status == StatusCode::RANGE_NOT_SATISFIABLE && self.at > 0;
            if is_end && !self.ends_here(response.headers()) {
                return Err(SourceError::Changed {
                    url: url.to_string(),
                    at: self.at,
                });
            }
            let announced = self.total.filter(|announced| *announced != self.at);
            if is_end && let Some(announced) = announced {
                return Err(SourceError::Shorter {
                    url: url.to_string(),
                    announced,
                    has: self.at,
                });
            }
            // A part that nobody asked for is not the whole.
            let is_whole = status == StatusCode::OK || (self.at > 0 && status == StatusCode::PARTIAL_CONTENT);
            return if is_whole || is_end {
                self.mirror = (url != self.url).then(|| url.clone());
                Ok((url, response))
            } else {
                Err(SourceError::Status {
                    url: url.to_string(),
                    status,
                })
            };
        }
        Err(SourceError::Redirects(self.url.to_string()))
    }

    async fn ask(&mut self, url: &Url) -> Result<Response<Incoming>, SourceError> {
        let (mut sender, is_absolute) = self.connect(url).await?;
        let target = if is_absolute {
            // Of plain HTTP alone: the rest goes through a tunnel.
            format!("http://{}{}", url.host_header(), url.target)
        } else {
            url.target.clone()
        };
        let mut request = Request::get(target)
            .header(header::HOST, url.host_header())
            .header(
                header::USER_AGENT,
                concat!("muster-agent/", env!("CARGO_PKG_VERSION")),
            )
            // The digest is of the bytes as they lie on the server.
            .header(header::ACCEPT_ENCODING, "identity");
        if self.at > 0 {
            request = request.header(header::RANGE, format!("bytes={}-", self.at));
            if let Some(validator) = &self.validator {
                request = request.header(header::IF_RANGE, validator);
            }
        }
        let request = request.body(Empty::new()).map_err(|_| SourceError::Url {
            source: UrlError::Malformed(url.to_string()),
        })?;
        timeout(self.patience.stall, sender.send_request(request))
            .await
            .map_err(|_elapsed| self.stalled(url))?
            .map_err(|source| SourceError::Broken {
                url: url.to_string(),
                at: self.at,
                source,
            })
    }
}

/// What tells whether a file is still the same: its entity tag if that is a strong one, else its date.
fn validator(headers: &HeaderMap) -> Option<HeaderValue> {
    let strong = headers
        .get(header::ETAG)
        .filter(|tag| !tag.as_bytes().starts_with(b"W/"));
    strong.or_else(|| headers.get(header::LAST_MODIFIED)).cloned()
}

/// How an answer says that its content is encoded, if that is other than as it is (RFC 9110, section 8.4).
fn encoding(headers: &HeaderMap) -> Option<String> {
    let names = headers.get_all(header::CONTENT_ENCODING).iter();
    let mut names = names.map(|name| muster_proto::text::clean(name.as_bytes()));
    names.find(|name| !name.is_empty() && !name.eq_ignore_ascii_case("identity"))
}

/// How long an answer says that its content is, as hyper understands its headers.
fn content_length(response: &Response<Incoming>) -> Option<u64> {
    response.body().size_hint().exact()
}

/// Whether an answer tells where it ends, by its length or by a last chunk, and not only by the end of its connection (RFC 9112, section 6.3).
fn tells_end(response: &Response<Incoming>) -> bool {
    // The last coding, as hyper does.
    let codings = response.headers().get_all(header::TRANSFER_ENCODING);
    let codings = codings.iter().next_back().and_then(|line| line.to_str().ok());
    let last = codings.and_then(|line| line.rsplit(',').next());
    let is_chunked = last.is_some_and(|coding| coding.trim().eq_ignore_ascii_case("chunked"));
    is_chunked || content_length(response).is_some()
}

/// Start and length of the whole, of `bytes START-END/TOTAL`; the total may be `*`.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let text = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let start = range.split_once('-')?.0.parse().ok()?;
    Some((start, total.parse().ok()))
}

/// Length of the whole, of `bytes */TOTAL`, by which a server says what it has instead of the range (RFC 9110, section 14.4).
fn unsatisfied_range(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    text.strip_prefix("bytes */")?.parse().ok()
}

#[cfg(test)]
mod tests;
