//! The head of an HTTP/1.1 request, as far as a file server reads it (RFC 9110, RFC 9112). Pure.

use super::response::Status;

/// The longest head, in bytes. Firmware sends some 200.
pub const MAX: usize = 8 * 1024;

/// The most header fields.
const MAX_FIELDS: usize = 64;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// GET.
    Get,
    /// HEAD: the same without the body.
    Head,
    /// Any other; none is served.
    Other,
}

/// A request without a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// GET, HEAD or another.
    pub method: Method,
    /// Path with its leading `/`, and the query if there is one; visible ASCII.
    pub target: String,
    /// The one `Range` field, if it stands without conditions.
    pub range: Option<Vec<u8>>,
    /// Whether the client wants to go on after this request.
    pub keep_alive: bool,
    /// HTTP/1.0, where going on must be said.
    pub old: bool,
}

/// What a buffer that fills up holds so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The start of a head.
    Partial,
    /// A head of so many bytes.
    Complete(Request, usize),
    /// Nothing that can be answered otherwise; the connection ends.
    Refused(Status),
}

/// Reads the head at the start of `buffer`.
pub fn parse(buffer: &[u8]) -> Progress {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut head = httparse::Request::new(&mut fields);
    let len = match head.parse(buffer) {
        Ok(httparse::Status::Complete(len)) if len <= MAX => len,
        Ok(httparse::Status::Partial) if buffer.len() < MAX => return Progress::Partial,
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Progress::Refused(Status::HeadTooLarge),
        Err(_) => return Progress::Refused(Status::BadRequest),
    };
    match request(&head) {
        Some(request) => Progress::Complete(request, len),
        None => Progress::Refused(Status::BadRequest),
    }
}

fn request(head: &httparse::Request<'_, '_>) -> Option<Request> {
    let old = head.version? == 0;
    let values = |name: &'static str| {
        head.headers
            .iter()
            .filter(move |field| field.name.eq_ignore_ascii_case(name))
            .map(|field| field.value)
    };
    // RFC 9112, 3.2: exactly one Host, which HTTP/1.0 did not know.
    match values("Host").count() {
        1 => {}
        0 if old => {}
        _ => return None,
    }
    // Nothing here takes a body, and one that we left unread would be taken for the next request.
    let body = values("Content-Length").any(|value| value.trim_ascii() != b"0");
    if body || values("Transfer-Encoding").next().is_some() {
        return None;
    }
    let says = |what: &str| {
        values("Connection")
            .flat_map(|value| value.split(|byte| *byte == b','))
            .any(|token| token.trim_ascii().eq_ignore_ascii_case(what.as_bytes()))
    };
    let mut ranges = values("Range");
    let range = match (ranges.next(), ranges.next()) {
        // We give out no validator, so that no If-Range can be true (RFC 9110, 13.1.5).
        (Some(range), None) if values("If-Range").next().is_none() => Some(range.to_vec()),
        _ => None,
    };
    Some(Request {
        method: match head.method? {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            _ => Method::Other,
        },
        target: target(head.path?)?,
        range,
        keep_alive: if old { says("keep-alive") } else { !says("close") },
        old,
    })
}

/// The target in origin form; the absolute form, which a server must take, too, loses its scheme and authority.
fn target(written: &str) -> Option<String> {
    let path = match written.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => &rest[rest.find('/')?..],
        Some((scheme, _)) if !scheme.starts_with('/') => return None,
        _ => written,
    };
    let plain = path.bytes().all(|byte| byte.is_ascii_graphic());
    (plain && (path.starts_with('/') || path == "*")).then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn complete(head: &str) -> Request {
        match parse(head.as_bytes()) {
            Progress::Complete(request, len) => {
                assert_eq!(len, head.len());
                request
            }
            other => panic!("{head:?}: {other:?}"),
        }
    }

    #[test]
    fn heads_as_firmware_sends_them_are_read() {
        let ipxe = "GET /ipxe/a/b HTTP/1.1\r\nConnection: keep-alive\r\nUser-Agent: iPXE/1.0.0+\r\nHost: 10.0.0.1:8080\r\n\r\n";
        let expected = Request {
            method: Method::Get,
            target: "/ipxe/a/b".into(),
            range: None,
            keep_alive: true,
            old: false,
        };
        assert_eq!(complete(ipxe), expected);
        let edk2 =
            "HEAD /uki.efi HTTP/1.1\r\nHost: 10.0.0.1\r\nAccept: */*\r\nUser-Agent: UefiHttpBoot/1.0\r\n\r\n";
        assert_eq!(complete(edk2).method, Method::Head);
    }

    #[test]
    fn whether_to_go_on_follows_the_version_and_the_field() {
        assert!(complete("GET / HTTP/1.1\r\nHost: a\r\n\r\n").keep_alive);
        assert!(!complete("GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n").keep_alive);
        assert!(!complete("GET / HTTP/1.0\r\n\r\n").keep_alive);
        assert!(complete("GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n").keep_alive);
    }

    #[test]
    fn a_range_counts_only_alone_and_without_conditions() {
        let range = |fields: &str| complete(&format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).range;
        assert_eq!(
            range("Range: bytes=0-1\r\n").as_deref(),
            Some(b"bytes=0-1".as_slice())
        );
        assert_eq!(range("Range: bytes=0-1\r\nRange: bytes=2-3\r\n"), None);
        assert_eq!(range("Range: bytes=0-1\r\nIf-Range: \"x\"\r\n"), None);
    }

    #[test]
    fn the_absolute_form_is_a_path_too() {
        assert_eq!(
            complete("GET http://h:1/a HTTP/1.1\r\nHost: h\r\n\r\n").target,
            "/a"
        );
        assert_eq!(
            complete("GET /a://b HTTP/1.1\r\nHost: h\r\n\r\n").target,
            "/a://b"
        );
        assert_eq!(
            complete("OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n").method,
            Method::Other
        );
    }

    /// Heads that must be refused, with the status.
    const CORPUS: &[(&str, Status)] = &[
        ("GET / HTTP/1.1\r\n\r\n", Status::BadRequest),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", Status::BadRequest),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n",
            Status::BadRequest,
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 9\r\n\r\n",
            Status::BadRequest,
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            Status::BadRequest,
        ),
        ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", Status::BadRequest),
        ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", Status::BadRequest),
        ("GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", Status::BadRequest),
        ("GET /ä HTTP/1.1\r\nHost: a\r\n\r\n", Status::BadRequest),
        ("GET a/b HTTP/1.1\r\nHost: a\r\n\r\n", Status::BadRequest),
        ("GET https://a/b HTTP/1.1\r\nHost: a\r\n\r\n", Status::BadRequest),
        ("GET http://a HTTP/1.1\r\nHost: a\r\n\r\n", Status::BadRequest),
        ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", Status::BadRequest),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Status::BadRequest),
        ("GET /\r\n\r\n", Status::BadRequest),
        ("\x16\x03\x01\x02\0\x01\0\x01\u{fc}\x03\x03", Status::BadRequest),
        ("\0\0\0\0", Status::BadRequest),
    ];

    #[test]
    fn the_corpus_is_refused() {
        for (head, status) in CORPUS {
            assert_eq!(parse(head.as_bytes()), Progress::Refused(*status), "{head:?}");
        }
    }

    #[test]
    fn a_head_too_long_is_refused_before_it_ends() {
        let long = format!("GET /{} HTTP/1.1\r\n", "a".repeat(MAX));
        assert_eq!(parse(&long.as_bytes()[..MAX - 1]), Progress::Partial);
        assert_eq!(
            parse(&long.as_bytes()[..MAX]),
            Progress::Refused(Status::HeadTooLarge)
        );
        let many = format!(
            "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
            "a: b\r\n".repeat(MAX_FIELDS)
        );
        assert_eq!(parse(many.as_bytes()), Progress::Refused(Status::HeadTooLarge));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes: Vec<u8>) {
            parse(&bytes);
        }

        #[test]
        fn any_damage_to_a_head_is_read_without_harm(at: prop::sample::Index, byte: u8, cut: prop::sample::Index) {
            let mut head = b"GET http://h/boot/abc HTTP/1.1\r\nHost: h\r\nRange: bytes=1-2\r\nConnection: close\r\n\r\n".to_vec();
            let at = at.index(head.len());
            head[at] = byte;
            head.truncate(cut.index(head.len() + 1));
            if let Progress::Complete(request, len) = parse(&head) {
                prop_assert!(len <= head.len());
                prop_assert!(request.target.bytes().all(|byte| byte.is_ascii_graphic()));
            }
        }

        /// However a head is torn into packets, it is partial until its last byte.
        #[test]
        fn a_head_is_partial_until_it_is_whole(cut in 0_usize..40) {
            let head = b"GET / HTTP/1.1\r\nHost: example\r\nA: b\r\n\r\n";
            let cut = cut.min(head.len() - 1);
            prop_assert_eq!(parse(&head[..cut]), Progress::Partial);
        }
    }
}
