//! Responses: a status, a few header fields, and a [`Body`]. Pure.

use std::ops::Range;

use jiff::Timestamp;
use muster_proto::Mac;

use super::{
    body::Body,
    head::{Method, Request},
    range::{self, Wanted},
};
use crate::time::http_date;

/// The statuses that we answer with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// 200.
    Ok,
    /// 206.
    Partial,
    /// 400.
    BadRequest,
    /// 403.
    Forbidden,
    /// 404.
    NotFound,
    /// 405.
    MethodNotAllowed,
    /// 408.
    Timeout,
    /// 410.
    Gone,
    /// 416.
    RangeNotSatisfiable,
    /// 431.
    HeadTooLarge,
    /// 500.
    Internal,
    /// 503.
    Unavailable,
}

impl Status {
    /// Code and reason phrase.
    pub fn line(self) -> &'static str {
        match self {
            Status::Ok => "200 OK",
            Status::Partial => "206 Partial Content",
            Status::BadRequest => "400 Bad Request",
            Status::Forbidden => "403 Forbidden",
            Status::NotFound => "404 Not Found",
            Status::MethodNotAllowed => "405 Method Not Allowed",
            Status::Timeout => "408 Request Timeout",
            Status::Gone => "410 Gone",
            Status::RangeNotSatisfiable => "416 Range Not Satisfiable",
            Status::HeadTooLarge => "431 Request Header Fields Too Large",
            Status::Internal => "500 Internal Server Error",
            Status::Unavailable => "503 Service Unavailable",
        }
    }

    /// True for 200 and 206.
    pub fn is_success(self) -> bool {
        matches!(self, Status::Ok | Status::Partial)
    }
}

/// What a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A script or a message.
    Text,
    /// A UEFI program; OVMF boots nothing that is called otherwise or ends in no `.efi`.
    Efi,
    /// Kernels and archives.
    Binary,
}

impl Kind {
    fn media_type(self) -> &'static str {
        match self {
            Kind::Text => "text/plain; charset=utf-8",
            Kind::Efi => "application/efi",
            Kind::Binary => "application/octet-stream",
        }
    }
}

/// A step of a machine's boot, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// `script`, `kernel`, `initramfs` or `uki`.
    pub what: &'static str,
    /// Whose boot, if the URL says so.
    pub mac: Option<Mac>,
    /// `namespace/name` of the Segment, if the URL says so.
    pub segment: Option<String>,
}

/// The answer to a request.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status.
    pub status: Status,
    /// What the body is.
    pub kind: Kind,
    /// The body that a GET sends.
    pub body: Body,
    /// Bytes that the body is of how many, where it is a part.
    part: Option<(Option<Range<u64>>, u64)>,
    /// What to log once it is sent.
    pub step: Option<Step>,
    /// What an error's body says.
    pub why: Option<&'static str>,
}

impl Response {
    /// 200 with this body.
    pub fn ok(kind: Kind, body: Body, step: Step) -> Self {
        Response {
            status: Status::Ok,
            kind,
            body,
            part: None,
            step: Some(step),
            why: None,
        }
    }

    /// An error with a sentence for the person who looks at the machine's screen.
    pub fn error(status: Status, message: &'static str) -> Self {
        let text = format!("{}: {message}\n", status.line());
        Response {
            status,
            kind: Kind::Text,
            body: Body::of(text),
            part: None,
            step: None,
            why: Some(message),
        }
    }

    /// The response cut to what `request` wants of it.
    #[must_use]
    pub fn ranged(self, request: &Request) -> Self {
        let (Status::Ok, Method::Get, Some(header)) = (self.status, request.method, &request.range) else {
            return self;
        };
        let whole = self.body.len();
        match range::wanted(header, whole) {
            Wanted::Whole => self,
            Wanted::Part(range) => Response {
                status: Status::Partial,
                body: self.body.slice(&range),
                part: Some((Some(range), whole)),
                ..self
            },
            Wanted::Beyond => Response {
                part: Some((None, whole)),
                ..Response::error(Status::RangeNotSatisfiable, "there are not as many bytes")
            },
        }
    }

    /// The head, up to and with its empty line.
    pub fn head(&self, go_on: bool, now: Timestamp) -> Vec<u8> {
        let length = self.body.len();
        let kind = self.kind.media_type();
        let connection = if go_on { "keep-alive" } else { "close" };
        let date = http_date(now);
        let mut head = format!(
            "HTTP/1.1 {}\r\nDate: {date}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: {connection}\r\n",
            self.status.line()
        );
        if self.status.is_success() {
            // A body may hold a token that is meant for one machine.
            head.push_str("Accept-Ranges: bytes\r\nCache-Control: no-store\r\n");
        }
        match &self.part {
            Some((Some(range), whole)) => {
                let last = range.end - 1;
                head.push_str(&format!(
                    "Content-Range: bytes {}-{last}/{whole}\r\n",
                    range.start
                ));
            }
            Some((None, whole)) => head.push_str(&format!("Content-Range: bytes */{whole}\r\n")),
            None => {}
        }
        match self.status {
            Status::MethodNotAllowed => head.push_str("Allow: GET, HEAD\r\n"),
            Status::Unavailable => head.push_str("Retry-After: 2\r\n"),
            _ => {}
        }
        head.push_str("\r\n");
        head.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole() -> Response {
        Response::ok(
            Kind::Efi,
            Body::of("0123456789"),
            Step {
                what: "uki",
                mac: None,
                segment: None,
            },
        )
    }

    fn get(range: &str) -> Request {
        Request {
            method: Method::Get,
            target: "/".into(),
            range: Some(range.into()),
            keep_alive: true,
            old: false,
        }
    }

    fn head(response: &Response) -> String {
        String::from_utf8(response.head(true, Timestamp::UNIX_EPOCH)).unwrap()
    }

    #[test]
    fn a_head_has_what_firmware_needs() {
        assert_eq!(
            head(&whole()),
            "HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Type: application/efi\r\n\
             Content-Length: 10\r\nConnection: keep-alive\r\nAccept-Ranges: bytes\r\nCache-Control: no-store\r\n\r\n"
        );
    }

    #[test]
    fn a_part_says_which() {
        let part = whole().ranged(&get("bytes=2-4"));
        assert_eq!((part.status, part.body.len()), (Status::Partial, 3));
        assert!(head(&part).contains("\r\nContent-Range: bytes 2-4/10\r\n"));
        let beyond = whole().ranged(&get("bytes=10-"));
        assert_eq!(beyond.status, Status::RangeNotSatisfiable);
        assert!(head(&beyond).contains("\r\nContent-Range: bytes */10\r\n"));
    }

    #[test]
    fn head_requests_and_errors_have_no_ranges() {
        let asked = Request {
            method: Method::Head,
            ..get("bytes=2-4")
        };
        assert_eq!(whole().ranged(&asked).body.len(), 10);
        let error = Response::error(Status::NotFound, "x").ranged(&get("bytes=0-0"));
        assert_eq!(error.status, Status::NotFound);
    }
}
