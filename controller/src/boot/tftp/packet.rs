//! TFTP packets: RFC 1350, and the options of RFC 2347 to 2349 and 7440. Pure.

/// The smallest block size that may be asked for (RFC 2348).
pub const MIN_BLOCK: u16 = 8;

/// The largest block that we send. With the headers of TFTP, UDP and IPv4 (4 + 8 + 20) a packet then has 1400 bytes: it also
/// crosses a tunnel or an overlay network whose links carry less than Ethernet's 1500. Firmware rarely puts fragments together
/// and never finds out a path's size, and the two files that we serve need a tenth more packets at most.
pub const MAX_BLOCK: u16 = 1368;

/// The block size of a client that asks for none (RFC 1350).
pub const DEFAULT_BLOCK: u16 = 512;

/// The most blocks that we send without an acknowledgement (RFC 7440): enough for a fast link, and a burst of 22 kB fits the
/// receive buffer of every firmware that asks for windows at all.
pub const MAX_WINDOW: u16 = 16;

/// A request longer than this is no request: RFC 2347 lets one fill at most 512 bytes.
pub const MAX_REQUEST: usize = 512;

/// An error code of RFC 1350 or 2347.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Code {
    /// See the message.
    NotDefined = 0,
    /// File not found.
    NotFound = 1,
    /// Access violation.
    Access = 2,
    /// Illegal TFTP operation.
    Illegal = 4,
}

/// What a client asks for when it reads a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadRequest {
    /// The file's name, as sent; never used as a path.
    pub name: Vec<u8>,
    /// The options that we know and whose values make sense.
    pub options: Options,
}

/// The longest pause before the server sends again, in seconds.
const LONGEST_TIMEOUT: u8 = 10;

/// Options of a request; `None` where the client sent none, or one that makes no sense: both are left out of the answer,
/// which is how RFC 2347 says no.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Bytes of a block (RFC 2348).
    pub block: Option<u16>,
    /// Seconds until the server sends again (RFC 2349).
    pub timeout: Option<u8>,
    /// Whether the client wants to know the file's size (RFC 2349).
    pub size: bool,
    /// Blocks per acknowledgement (RFC 7440).
    pub window: Option<u16>,
}

/// A packet that starts a transfer, as it reaches the well-known port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// RRQ in octet mode.
    Read(ReadRequest),
    /// RRQ in a mode that would change the bytes.
    Mode,
    /// WRQ.
    Write,
    /// An RRQ that cannot be read.
    Malformed,
}

/// A packet that reaches the port of a running transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// ACK with the block's number.
    Ack(u16),
    /// ERROR: the client ends the transfer.
    Error(u16),
}

impl Request {
    /// The request in `packet`; `None` for what does not start a transfer, which nobody answers.
    pub fn parse(packet: &[u8]) -> Option<Request> {
        let (opcode, rest) = packet.split_first_chunk()?;
        match u16::from_be_bytes(*opcode) {
            1 if packet.len() > MAX_REQUEST => Some(Request::Malformed),
            1 => Some(read_request(rest).unwrap_or(Request::Malformed)),
            2 => Some(Request::Write),
            _ => None,
        }
    }
}

fn read_request(rest: &[u8]) -> Option<Request> {
    // Everything is a run of strings that each end in a NUL; what follows the last NUL is padding of the firmware.
    let end = rest.iter().rposition(|byte| *byte == 0)?;
    let mut strings = rest[..end].split(|byte| *byte == 0);
    let name = strings.next()?.to_vec();
    if !strings.next()?.eq_ignore_ascii_case(b"octet") {
        return Some(Request::Mode);
    }
    let mut options = Options::default();
    while let (Some(key), Some(value)) = (strings.next(), strings.next()) {
        options.take(key, value);
    }
    Some(Request::Read(ReadRequest { name, options }))
}

impl Options {
    fn take(&mut self, key: &[u8], value: &[u8]) {
        let Some(value) = number(value) else { return };
        match key.to_ascii_lowercase().as_slice() {
            b"blksize" if value >= u32::from(MIN_BLOCK) => {
                self.block = Some(u16::try_from(value).map_or(MAX_BLOCK, |size| size.min(MAX_BLOCK)));
            }
            // A longer one is left unanswered (RFC 2347): who is gone holds its place for all tries.
            b"timeout" => {
                let seconds = u8::try_from(value).ok();
                self.timeout = seconds.filter(|seconds| (1..=LONGEST_TIMEOUT).contains(seconds));
            }
            b"tsize" => self.size = true,
            b"windowsize" if value > 0 => {
                self.window = Some(u16::try_from(value).map_or(MAX_WINDOW, |blocks| blocks.min(MAX_WINDOW)));
            }
            _ => {}
        }
    }

    /// True if the answer to these options is an OACK, not the first block.
    pub fn any(&self) -> bool {
        *self != Options::default()
    }
}

/// A decimal number as options carry it; nothing but digits.
fn number(text: &[u8]) -> Option<u32> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    digits.then(|| std::str::from_utf8(text).ok()?.parse().ok())?
}

impl Reply {
    /// The reply in `packet`; `None` for what has no place in a running transfer.
    pub fn parse(packet: &[u8]) -> Option<Reply> {
        let (head, _) = packet.split_first_chunk::<4>()?;
        let value = u16::from_be_bytes([head[2], head[3]]);
        match u16::from_be_bytes([head[0], head[1]]) {
            4 => Some(Reply::Ack(value)),
            5 => Some(Reply::Error(value)),
            _ => None,
        }
    }
}

/// Puts a DATA packet into `out`, in place of what it held.
pub fn data(out: &mut Vec<u8>, block: u16, bytes: &[u8]) {
    out.clear();
    out.extend([0, 3]);
    out.extend(block.to_be_bytes());
    out.extend(bytes);
}

/// Puts an OACK with the answers to `options` into `out`; `size` is the file's.
pub fn oack(out: &mut Vec<u8>, options: &Options, size: usize) {
    out.clear();
    out.extend([0, 6]);
    let mut put = |key: &str, value: usize| out.extend(format!("{key}\0{value}\0").bytes());
    if let Some(block) = options.block {
        put("blksize", block.into());
    }
    if let Some(seconds) = options.timeout {
        put("timeout", seconds.into());
    }
    if options.size {
        put("tsize", size);
    }
    if let Some(window) = options.window {
        put("windowsize", window.into());
    }
}

/// An ERROR packet.
pub fn error(code: Code, message: &str) -> Vec<u8> {
    let mut out = vec![0, 5];
    out.extend((code as u16).to_be_bytes());
    out.extend(message.bytes().filter(|byte| *byte != 0));
    out.push(0);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rrq(parts: &[&str]) -> Vec<u8> {
        let mut packet = vec![0, 1];
        for part in parts {
            packet.extend(part.bytes());
            packet.push(0);
        }
        packet
    }

    fn options(parts: &[&str]) -> Options {
        let all: Vec<&str> = ["f", "octet"].into_iter().chain(parts.iter().copied()).collect();
        match Request::parse(&rrq(&all)) {
            Some(Request::Read(request)) => request.options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_request_as_firmware_sends_it_is_read() {
        // EDK2: options in lower case, the size asked for with 0.
        let packet = rrq(&[
            "snponly.efi",
            "octet",
            "tsize",
            "0",
            "blksize",
            "1468",
            "windowsize",
            "4",
        ]);
        let expected = Options {
            block: Some(MAX_BLOCK),
            timeout: None,
            size: true,
            window: Some(4),
        };
        assert_eq!(
            Request::parse(&packet),
            Some(Request::Read(ReadRequest {
                name: b"snponly.efi".to_vec(),
                options: expected
            }))
        );
    }

    #[test]
    fn an_option_that_makes_no_sense_is_left_out() {
        assert_eq!(options(&["blksize", "7"]), Options::default());
        assert_eq!(
            options(&["blksize", "-1", "timeout", "0", "windowsize", "0"]),
            Options::default()
        );
        assert_eq!(options(&["blksize", "99999999999999999999"]), Options::default());
        assert_eq!(options(&["timeout", "10"]).timeout, Some(10));
        assert_eq!(options(&["timeout", "11"]), Options::default());
        assert_eq!(
            options(&["timeout", "256", "multicast", "1", "blksize"]),
            Options::default()
        );
        assert_eq!(options(&["BLKSIZE", "70000"]).block, Some(MAX_BLOCK));
        assert_eq!(options(&["windowsize", "65536"]).window, Some(MAX_WINDOW));
    }

    #[test]
    fn other_modes_and_writes_are_told_apart() {
        assert_eq!(Request::parse(&rrq(&["f", "netascii"])), Some(Request::Mode));
        assert_eq!(Request::parse(b"\0\x02f\0octet\0"), Some(Request::Write));
        assert_eq!(Request::parse(b"\0\x01f"), Some(Request::Malformed));
        assert_eq!(Request::parse(b"\0\x01f\0"), Some(Request::Malformed));
        assert_eq!(Request::parse(b"\0\x04\0\x01"), None);
        assert_eq!(Request::parse(b"\0"), None);
    }

    #[test]
    fn an_answer_names_only_what_was_asked() {
        let mut out = vec![1, 2, 3];
        oack(&mut out, &options(&["tsize", "0", "blksize", "600"]), 74213);
        assert_eq!(out, b"\0\x06blksize\x00600\0tsize\x0074213\0");
    }

    /// Packets that once were, or might be, read past their end; each must be answered or ignored, never more.
    const CORPUS: &[&[u8]] = &[
        b"",
        b"\0",
        b"\0\x01",
        b"\0\x01\0",
        b"\0\x01\0\0",
        b"\0\x01\0octet\0",
        b"\0\x01../../etc/passwd\0octet\0",
        b"\0\x01/etc/passwd\0octet\0blksize\0",
        b"\0\x01f\0octet\0blksize\x001468",
        b"\0\x01f\0octet\0\0\0\0\0",
        b"\0\x01\xff\xfe\0OcTeT\0\xff\0\xff\0",
        b"\0\x02undionly.kpxe\0octet\0",
        b"\0\x03\0\x01data",
        b"\0\x04\0",
        b"\0\x05\0\x08no terminator",
        b"\0\x06blksize\x00512\0",
        b"\xff\xff\xff\xff",
    ];

    #[test]
    fn the_corpus_is_read_without_harm() {
        for packet in CORPUS {
            for end in 0..=packet.len() {
                let _ = (Request::parse(&packet[..end]), Reply::parse(&packet[..end]));
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_and_options_stay_in_bounds(packet: Vec<u8>, opcode in 0_u8..8) {
            let _ = Reply::parse(&packet);
            let mut packet = packet;
            packet.splice(0..0, [0, opcode]);
            let _ = Reply::parse(&packet);
            if let Some(Request::Read(request)) = Request::parse(&packet) {
                let Options { block, window, timeout, .. } = request.options;
                prop_assert!(block.is_none_or(|size| (MIN_BLOCK..=MAX_BLOCK).contains(&size)));
                prop_assert!(window.is_none_or(|blocks| (1..=MAX_WINDOW).contains(&blocks)));
                prop_assert!(timeout != Some(0));
            }
        }

        #[test]
        fn options_round_trip(block in MIN_BLOCK..=MAX_BLOCK, window in 1..=MAX_WINDOW, seconds in 1..=LONGEST_TIMEOUT) {
            let asked = Options { block: Some(block), timeout: Some(seconds), size: true, window: Some(window) };
            let mut answer = Vec::new();
            oack(&mut answer, &asked, 1);
            let mut request = b"\0\x01f\0octet\0".to_vec();
            request.extend(&answer[2..]);
            let Some(Request::Read(read)) = Request::parse(&request) else {
                return Err(TestCaseError::fail("not read"));
            };
            prop_assert_eq!(read.options, asked);
        }
    }
}
