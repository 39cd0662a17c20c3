//! A resolver for the few names of controllers and image servers: A records over UDP (RFC 1035), and over TCP what does not fit in there.
//!
//! glibc's own would open further files and libraries that a static binary in a ramdisk does not have.

use std::{
    fmt, io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

/// How long one name server may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often the whole list of name servers is asked.
const ROUNDS: usize = 2;

/// UDP answers without EDNS are at most so long (RFC 1035, 4.2.1).
const ANSWER: usize = 512;

/// A name has no address that we could find.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// It is no host name.
    #[error("look up {name:?}: not a host name")]
    Name {
        /// What was asked for.
        name: String,
    },
    /// DHCP gave none.
    #[error("look up {name}: no name server is known")]
    NoServer {
        /// What was asked for.
        name: String,
    },
    /// The name server says that there is no address.
    #[error("look up {name}: {server} returned no address (response code {code})")]
    Unknown {
        /// What was asked for.
        name: String,
        /// Who says so.
        server: SocketAddr,
        /// RFC 1035, 4.1.1; 0 if the name exists without an address.
        code: u8,
    },
    /// No name server answered.
    #[error("look up {name}: no answer from {server}")]
    Silent {
        /// What was asked for.
        name: String,
        /// The last one asked.
        server: SocketAddr,
        /// Why, if not just silence.
        source: Option<io::Error>,
    },
}

/// The name servers of the moment: a lease that comes, goes or is renewed changes them.
#[derive(Clone)]
pub struct NameServers(Arc<dyn Fn() -> Vec<SocketAddr> + Send + Sync>);

impl NameServers {
    /// Those that `now` says each time.
    pub fn new(now: impl Fn() -> Vec<SocketAddr> + Send + Sync + 'static) -> NameServers {
        NameServers(Arc::new(now))
    }

    /// In the order in which they are asked.
    pub fn now(&self) -> Vec<SocketAddr> {
        (self.0)()
    }
}

impl fmt::Debug for NameServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NameServers").field(&self.now()).finish()
    }
}

/// Any one of the IPv4 addresses of `name`: whoever asks again because it does not answer gets another one sooner or later.
///
/// # Errors
/// As [`addresses`].
pub async fn resolve(name: &str, servers: &[SocketAddr]) -> Result<Ipv4Addr, DnsError> {
    let found = addresses(name, servers).await?;
    let any = super::random() % found.len().max(1) as u64;
    let any = usize::try_from(any).ok().and_then(|any| found.get(any));
    any.copied().ok_or_else(|| DnsError::NoServer {
        name: name.to_owned(),
    })
}

/// The IPv4 addresses of `name`, at least one, in the order of the first of `servers` that answers.
///
/// # Errors
/// [`DnsError`], one variant for each way to fail.
pub async fn addresses(name: &str, servers: &[SocketAddr]) -> Result<Vec<Ipv4Addr>, DnsError> {
    let id = u16::from_ne_bytes(super::random().to_ne_bytes()[..2].try_into().expect("two bytes"));
    let query = query(id, name).ok_or_else(|| DnsError::Name {
        name: name.to_owned(),
    })?;
    let mut failed = DnsError::NoServer {
        name: name.to_owned(),
    };
    for &server in servers.iter().cycle().take(servers.len() * ROUNDS) {
        let (silent, source) = match timeout(PATIENCE, ask(server, &query)).await {
            Ok(Ok(Answer::Addresses(found))) => return Ok(found),
            Ok(Ok(Answer::None { code })) => {
                failed = DnsError::Unknown {
                    name: name.to_owned(),
                    server,
                    code,
                };
                continue;
            }
            Ok(Err(source)) => (server, Some(source)),
            Err(_elapsed) => (server, None),
        };
        failed = DnsError::Silent {
            name: name.to_owned(),
            server: silent,
            source,
        };
    }
    Err(failed)
}

async fn ask(server: SocketAddr, query: &[u8]) -> io::Result<Answer> {
    match over_udp(server, query).await? {
        Heard::Whole(answer) => Ok(answer),
        Heard::Truncated => over_tcp(server, query).await,
    }
}

/// What did not fit into a datagram (RFC 7766, section 5).
async fn over_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), query].concat()).await?;
    let mut message = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut message).await?;
    match parse(&message, query) {
        Some(Heard::Whole(answer)) => Ok(answer),
        _ => Err(io::Error::other("its answer over TCP is invalid")),
    }
}

async fn over_udp(server: SocketAddr, query: &[u8]) -> io::Result<Heard> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut datagram = [0; ANSWER];
    loop {
        let length = socket.recv(&mut datagram).await?;
        if let Some(answer) = parse(&datagram[..length], query) {
            return Ok(answer);
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// At least one.
    Addresses(Vec<Ipv4Addr>),
    None {
        code: u8,
    },
}

#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Whole(Answer),
    /// There is more than what came, and no address in that.
    Truncated,
}

/// `A`, and `IN`.
const A: [u8; 4] = [0, 1, 0, 1];

/// The question for `name`'s address; `None` if it is no host name.
fn query(id: u16, name: &str) -> Option<Vec<u8>> {
    let mut query = id.to_be_bytes().to_vec();
    // Recursion desired; one question.
    query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.len() > 253 {
        return None;
    }
    for label in name.split('.') {
        let length = u8::try_from(label.len())
            .ok()
            .filter(|length| (1..=63).contains(length))?;
        query.push(length);
        query.extend(label.bytes());
    }
    query.push(0);
    query.extend(A);
    Some(query)
}

/// The answer to `query`; `None` if it is the answer to something else.
fn parse(message: &[u8], query: &[u8]) -> Option<Heard> {
    let header = message.get(..12)?;
    let question = query.get(12..)?;
    // Some servers answer in their own case.
    let same = message.get(12..query.len())?.eq_ignore_ascii_case(question);
    if header[..2] != query[..2] || header[2] & 0x80 == 0 || header[4..6] != [0, 1] || !same {
        return None;
    }
    let code = header[3] & 0x0f;
    let count = u16::from_be_bytes([header[6], header[7]]);
    let is_truncated = header[2] & 2 != 0;
    let mut found = Vec::new();
    let is_whole = read_addresses(message, query.len(), count, &mut found).is_some();
    if !found.is_empty() {
        Some(Heard::Whole(Answer::Addresses(found)))
    } else if is_truncated {
        Some(Heard::Truncated)
    } else {
        is_whole.then_some(Heard::Whole(Answer::None { code }))
    }
}

/// Adds the addresses in the `count` records of `message` from `at` on to `found`. `None`: they end in the middle.
fn read_addresses(message: &[u8], mut at: usize, count: u16, found: &mut Vec<Ipv4Addr>) -> Option<()> {
    for _ in 0..count {
        at = skip_name(message, at)?;
        let length = usize::from(u16::from_be_bytes(message.get(at + 8..at + 10)?.try_into().ok()?));
        let data = message.get(at + 10..at + 10 + length)?;
        // The addresses behind an alias (CNAME) stand in the same answer.
        if message[at..at + 4] == A
            && let Ok(octets) = <[u8; 4]>::try_from(data)
        {
            found.push(octets.into());
        }
        at += 10 + length;
    }
    Some(())
}

/// Where the record goes on behind the name at `at`.
fn skip_name(datagram: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *datagram.get(at)? {
            0 => return Some(at + 1),
            // A pointer ends the name (RFC 1035, 4.1.4).
            0xc0.. => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answer(query: &[u8], records: &[&[u8]], code: u8) -> Vec<u8> {
        let mut answer = query.to_vec();
        answer[2] |= 0x80;
        answer[3] |= code;
        answer[7] = u8::try_from(records.len()).unwrap();
        answer.extend(records.concat());
        answer
    }

    const ALIAS: &[u8] = &[0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 60, 0, 4, 1, b'x', 0xc0, 12];
    const ADDRESS: &[u8] = &[1, b'x', 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 1, 2, 3];

    #[test]
    fn an_address_behind_an_alias_is_found() {
        let query = query(7, "muster.example.").unwrap();
        let datagram = answer(&query, &[ALIAS, ADDRESS], 0);
        assert_eq!(
            parse(&datagram, &query),
            Some(Heard::Whole(Answer::Addresses(vec![[10, 1, 2, 3].into()])))
        );
        let two = answer(&query, &[ADDRESS, ADDRESS], 0);
        assert_eq!(
            parse(&two, &query),
            Some(Heard::Whole(Answer::Addresses(vec![[10, 1, 2, 3].into(); 2])))
        );
        assert_eq!(
            parse(&answer(&query, &[], 3), &query),
            Some(Heard::Whole(Answer::None { code: 3 }))
        );
    }

    #[tokio::test]
    async fn an_address_that_does_not_fit_into_a_datagram_is_asked_for_again() {
        // Name servers leave out all records, or end in the middle of one.
        for (records, cut) in [(vec![], 0), (vec![ALIAS], 0), (vec![ALIAS, ADDRESS], 3)] {
            let stream = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let server = stream.local_addr().unwrap();
            let datagrams = UdpSocket::bind(server).await.unwrap();
            let name_server = async {
                let mut query = [0; 300];
                let (length, from) = datagrams.recv_from(&mut query).await.unwrap();
                let mut short = answer(&query[..length], &records, 0);
                short[2] |= 2;
                short.truncate(short.len() - cut);
                datagrams.send_to(&short, from).await.unwrap();
                let (mut stream, _) = stream.accept().await.unwrap();
                let mut query = vec![0; stream.read_u16().await.unwrap().into()];
                stream.read_exact(&mut query).await.unwrap();
                let whole = answer(&query, &[ALIAS, ADDRESS], 0);
                let length = u16::try_from(whole.len()).unwrap();
                stream.write_u16(length).await.unwrap();
                stream.write_all(&whole).await.unwrap();
            };
            let servers = [server];
            let (found, ()) = tokio::join!(resolve("muster.example", &servers), name_server);
            assert_eq!(found.unwrap(), Ipv4Addr::new(10, 1, 2, 3));
        }
    }

    #[test]
    fn the_answer_to_another_question_is_not_believed() {
        let (ours, other) = (
            query(7, "muster.example").unwrap(),
            query(7, "master.example").unwrap(),
        );
        assert_eq!(parse(&answer(&other, &[ADDRESS], 0), &ours), None);
        assert_eq!(
            parse(
                &answer(&query(8, "muster.example").unwrap(), &[ADDRESS], 0),
                &ours
            ),
            None
        );
    }

    #[test]
    fn what_is_no_name_is_not_asked() {
        for name in ["", "a..b", &"a".repeat(64), &"a.".repeat(128)] {
            assert_eq!(query(1, name), None, "{name}");
        }
    }

    #[tokio::test]
    async fn the_second_name_server_is_asked_if_the_first_does_not_know() {
        let server = || async { UdpSocket::bind("127.0.0.1:0").await.unwrap() };
        let (ignorant, wise) = (server().await, server().await);
        let servers = [ignorant.local_addr().unwrap(), wise.local_addr().unwrap()];
        let serve = |socket: UdpSocket, records: &'static [&'static [u8]], code| async move {
            let mut datagram = [0; ANSWER];
            let (length, from) = socket.recv_from(&mut datagram).await.unwrap();
            socket
                .send_to(&answer(&datagram[..length], records, code), from)
                .await
                .unwrap();
        };
        let (found, (), ()) = tokio::join!(
            resolve("x.example", &servers),
            serve(ignorant, &[], 3),
            serve(wise, &[ADDRESS], 0)
        );
        assert_eq!(found.unwrap(), Ipv4Addr::new(10, 1, 2, 3));
        assert!(matches!(
            resolve("x.example", &[]).await,
            Err(DnsError::NoServer { .. })
        ));
    }

    proptest! {
        #[test]
        fn arbitrary_answers_never_panic(tail: Vec<u8>, count: u16) {
            let query = query(7, "muster.example").unwrap();
            let mut datagram = answer(&query, &[&tail], 0);
            datagram[6..8].copy_from_slice(&count.to_be_bytes());
            parse(&datagram, &query);
            parse(&tail, &query);
        }
    }
}
