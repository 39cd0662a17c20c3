use std::time::Duration;

use proptest::prelude::*;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::{
    ClientConfig, ConnectionTrafficSecrets, RootCertStore,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject},
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    super::{
        ca::{Ca, CaPem, Request},
        clock, tls,
    },
    *,
};

const SOON: Duration = Duration::from_secs(20);

/// An authority, what the server does, and what a client does.
struct Place {
    config: Arc<ServerConfig>,
    ca: Ca,
}

impl Place {
    fn new() -> Place {
        let ca = Ca::parse(&CaPem::generate(clock::now()).unwrap()).unwrap();
        let names = tls::Names {
            addresses: vec![[127, 0, 0, 1].into()],
            ..tls::Names::default()
        };
        Place {
            config: Arc::new(tls::server_config(&ca, &names, clock::now()).unwrap()),
            ca,
        }
    }

    fn client(&self, version: &'static rustls::SupportedProtocolVersion, shows: bool) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        self.ca
            .roots
            .iter()
            .for_each(|root| roots.add(root.clone()).unwrap());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots);
        if !shows {
            return Arc::new(config.with_no_client_auth());
        }
        let key = rcgen::KeyPair::generate().unwrap();
        let request = rcgen::CertificateParams::default()
            .serialize_request(&key)
            .unwrap();
        let request = Request::parse(&request.pem().unwrap()).unwrap();
        let pem = self
            .ca
            .issue_client(&request, "s", "session", clock::now())
            .unwrap();
        let chain = CertificateDer::pem_slice_iter(pem.as_bytes())
            .map(Result::unwrap)
            .collect();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Arc::new(config.with_client_auth_cert(chain, key).unwrap())
    }

    /// Both ends of a connection after the handshake.
    async fn pair(
        &self,
        version: &'static rustls::SupportedProtocolVersion,
        shows: bool,
    ) -> (UnbufferedTls, TlsStream<TcpStream>) {
        let (ours, theirs) = sockets().await;
        self.shake(ours, theirs, self.client(version, shows)).await
    }

    async fn shake(
        &self,
        ours: TcpStream,
        theirs: TcpStream,
        client: Arc<ClientConfig>,
    ) -> (UnbufferedTls, TlsStream<TcpStream>) {
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let connector = TlsConnector::from(client);
        let both = async {
            tokio::join!(
                UnbufferedTls::accept(ours, Arc::clone(&self.config)),
                connector.connect(name, theirs)
            )
        };
        let (ours, theirs) = timeout(SOON, both).await.expect("a handshake");
        (ours.unwrap(), theirs.unwrap())
    }
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let theirs = TcpStream::connect(listener.local_addr().unwrap());
    let (ours, theirs) = tokio::join!(listener.accept(), theirs);
    (ours.unwrap().0, theirs.unwrap())
}

fn bytes(len: usize, seed: u8) -> Vec<u8> {
    let byte = |at: usize| u8::try_from((at * 31 + at / 251) % 256).unwrap() ^ seed;
    (0..len).map(byte).collect()
}

/// Both send so much at once, and read what the other sent.
async fn exchange(ours: UnbufferedTls, theirs: TlsStream<TcpStream>, len: usize) {
    let (up, down) = (bytes(len, 1), bytes(len, 2));
    let (mut our_reader, mut our_writer) = tokio::io::split(ours);
    let (mut their_reader, mut their_writer) = tokio::io::split(theirs);
    let (mut got_up, mut got_down) = (Vec::new(), Vec::new());
    let all = async {
        tokio::join!(
            async {
                our_writer.write_all(&down).await.unwrap();
                our_writer.shutdown().await.unwrap();
            },
            async {
                their_writer.write_all(&up).await.unwrap();
                their_writer.shutdown().await.unwrap();
            },
            our_reader.read_to_end(&mut got_up),
            their_reader.read_to_end(&mut got_down),
        )
    };
    let (_, _, ours, theirs) = timeout(SOON * 3, all).await.expect("an end");
    ours.unwrap();
    theirs.unwrap();
    assert!(got_up == up && got_down == down);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_versions_carry_megabytes_both_ways_with_and_without_a_certificate() {
    let place = Place::new();
    for version in [&TLS12, &TLS13] {
        for shows in [false, true] {
            let (ours, theirs) = place.pair(version, shows).await;
            assert_eq!(ours.certificate().is_some(), shows);
            exchange(ours, theirs, 3 << 20).await;
        }
    }
}

/// Passes on byte by byte, each in a segment of its own.
async fn dripping(from: TcpStream, to: TcpStream) {
    async fn drip(mut from: tokio::net::tcp::OwnedReadHalf, mut to: tokio::net::tcp::OwnedWriteHalf) {
        while let Ok(byte) = from.read_u8().await {
            if to.write_u8(byte).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
        _ = to.shutdown().await;
    }
    from.set_nodelay(true).unwrap();
    to.set_nodelay(true).unwrap();
    let ((from_reader, from_writer), (to_reader, to_writer)) = (from.into_split(), to.into_split());
    tokio::join!(drip(from_reader, to_writer), drip(to_reader, from_writer));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_byte_by_byte_is_understood() {
    let place = Place::new();
    for version in [&TLS12, &TLS13] {
        let ((ours, near), (far, theirs)) = tokio::join!(sockets(), sockets());
        let passing = tokio::spawn(dripping(near, far));
        let (ours, theirs) = place.shake(ours, theirs, place.client(version, true)).await;
        exchange(ours, theirs, 5000).await;
        timeout(SOON, passing).await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_in_the_smallest_records_is_understood() {
    let place = Place::new();
    for version in [&TLS12, &TLS13] {
        let mut client = place.client(version, true);
        // The least that rustls makes: 27 bytes of a message in each, so that its certificate comes in dozens.
        Arc::make_mut(&mut client).max_fragment_size = Some(32);
        let ((ours, near), (far, theirs)) = tokio::join!(sockets(), sockets());
        let passing = tokio::spawn(dripping(near, far));
        let (ours, theirs) = place.shake(ours, theirs, client).await;
        assert!(ours.certificate().is_some());
        exchange(ours, theirs, 1000).await;
        timeout(SOON, passing).await.unwrap().unwrap();
    }
}

/// What the server answers to `said`, and how its handshake ends.
async fn answered(place: &Place, said: &[u8]) -> (Vec<u8>, io::Error) {
    let (ours, mut theirs) = sockets().await;
    let config = Arc::clone(&place.config);
    let accepted = tokio::spawn(async move { UnbufferedTls::accept(ours, config).await.err() });
    // It may be reset, since not all that is said is read.
    _ = theirs.write_all(said).await;
    _ = theirs.shutdown().await;
    let mut answer = Vec::new();
    _ = timeout(SOON, theirs.read_to_end(&mut answer))
        .await
        .expect("an end");
    let error = timeout(SOON, accepted).await.expect("an end").unwrap();
    (answer, error.expect("no handshake"))
}

/// What a client says first.
fn hello(place: &Place) -> Vec<u8> {
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut client = rustls::ClientConnection::new(place.client(&TLS13, false), name).unwrap();
    let mut said = Vec::new();
    client.write_tls(&mut said).unwrap();
    said
}

#[tokio::test]
async fn who_speaks_no_tls_hears_an_alert_and_who_breaks_off_is_known_to() {
    let place = Place::new();
    let (answer, error) = answered(&place, b"POST /v1/poll HTTP/1.1\r\nhost: muster\r\n\r\n").await;
    assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    // ContentType alert (RFC 8446 section 5.1).
    assert_eq!(answer.first(), Some(&21), "{answer:?}");
    let hello = hello(&place);
    for len in [0, 3, hello.len() / 2] {
        let (_, error) = answered(&place, &hello[..len]).await;
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{len}: {error}");
    }
    // Records that are whole, of a message that never is: 16 MiB, it says.
    let endless = [&[22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff][..], &[0; 0x3ffc]].concat();
    let record = [&[22, 3, 1, 0x40, 0][..], &[0; 0x4000]].concat();
    let (_, error) = answered(&place, &[endless, record.repeat(8)].concat()).await;
    assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
}

#[tokio::test]
async fn a_record_that_was_changed_on_its_way_ends_the_connection_with_an_alert() {
    let place = Place::new();
    for version in [&TLS12, &TLS13] {
        let (mut ours, theirs) = place.pair(version, false).await;
        let (mut raw, mut client) = theirs.into_inner();
        raw.write_all(&[&[23, 3, 3, 0, 40][..], &[7; 40]].concat())
            .await
            .unwrap();
        let error = timeout(SOON, ours.read_u8()).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        // What is answered to a call whose content is broken comes to nothing.
        ours.write_all(b"no").await.unwrap_err();
        ours.shutdown().await.unwrap_err();
        drop(ours);
        let mut answer = Vec::new();
        timeout(SOON, raw.read_to_end(&mut answer))
            .await
            .unwrap()
            .unwrap();
        // One record, and no other after it.
        let length = u16::from_be_bytes([answer[3], answer[4]]);
        assert_eq!(answer.len(), 5 + usize::from(length));
        client.read_tls(&mut &answer[..]).unwrap();
        let heard = client.process_new_packets().unwrap_err();
        assert!(matches!(heard, rustls::Error::AlertReceived(_)), "{heard:?}");
    }
}

#[tokio::test]
async fn the_end_is_the_end_only_if_the_peer_says_so() {
    let place = Place::new();
    for version in [&TLS12, &TLS13] {
        let (mut ours, mut theirs) = place.pair(version, false).await;
        theirs.write_all(b"last").await.unwrap();
        theirs.shutdown().await.unwrap();
        let mut got = Vec::new();
        timeout(SOON, ours.read_to_end(&mut got)).await.unwrap().unwrap();
        assert_eq!(got, b"last");
        // It is still listening.
        ours.write_all(b"good-bye").await.unwrap();
        ours.shutdown().await.unwrap();
        got.clear();
        timeout(SOON, theirs.read_to_end(&mut got))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(got, b"good-bye");
        assert_eq!(
            timeout(SOON, ours.read(&mut [0])).await.unwrap().unwrap(),
            0,
            "still"
        );

        let (mut ours, theirs) = place.pair(version, false).await;
        drop(theirs.into_inner());
        let error = timeout(SOON, ours.read_u8()).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{error}");
    }
}

/// Begins to read, and finds nothing.
async fn waits(ours: &mut UnbufferedTls) {
    let mut space = [0; 1];
    let mut space = ReadBuf::new(&mut space);
    poll_fn(|context| {
        let read = Pin::new(&mut *ours).poll_read(context, &mut space);
        assert!(read.is_pending(), "{read:?}");
        Poll::Ready(())
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_waits_keeps_no_buffer() {
    let place = Place::new();
    for version in [&TLS12, &TLS13] {
        let (mut ours, mut theirs) = place.pair(version, true).await;
        for len in [1, 100_000] {
            let sent = bytes(len, 3);
            let (mut got, mut back) = (vec![0; len], vec![0; len]);
            let there = async { tokio::join!(theirs.write_all(&sent), ours.read_exact(&mut got)) };
            timeout(SOON, there).await.unwrap().1.unwrap();
            let back = async {
                tokio::join!(
                    async {
                        ours.write_all(&sent).await.unwrap();
                        ours.flush().await.unwrap();
                    },
                    theirs.read_exact(&mut back)
                )
            };
            timeout(SOON, back).await.unwrap().1.unwrap();
            waits(&mut ours).await;
            let kept = [&ours.incoming, &ours.plain, &ours.outgoing].map(Vec::capacity);
            assert_eq!(kept, [0; 3], "after {len} bytes");
        }
    }
}

#[tokio::test]
async fn a_piece_of_the_next_record_keeps_no_room_for_a_handshake() {
    let place = Place::new();
    let (ours, mut theirs) = sockets().await;
    let accepted = tokio::spawn(UnbufferedTls::accept(ours, Arc::clone(&place.config)));
    let name = ServerName::try_from("127.0.0.1").unwrap();
    // A hello of 40 KiB.
    let mut config = ClientConfig::clone(&place.client(&TLS13, false));
    config.alpn_protocols = vec![vec![b'x'; 200]; 200];
    config.alpn_protocols.push(b"http/1.1".to_vec());
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    loop {
        let mut said = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut said).unwrap();
        }
        if !client.is_handshaking() {
            // The first byte of a record that does not come.
            said.push(23);
            theirs.write_all(&said).await.unwrap();
            break;
        }
        theirs.write_all(&said).await.unwrap();
        let mut heard = [0; 16 << 10];
        let len = timeout(SOON, theirs.read(&mut heard)).await.unwrap().unwrap();
        client.read_tls(&mut &heard[..len]).unwrap();
        client.process_new_packets().unwrap();
    }
    let ours = timeout(SOON, accepted).await.unwrap().unwrap().unwrap();
    assert_eq!(ours.incoming, [23]);
    assert!(ours.incoming.capacity() <= READ, "{}", ours.incoming.capacity());
}

#[tokio::test]
async fn who_does_not_read_is_not_written_to_without_end() {
    let place = Place::new();
    let (mut ours, theirs) = place.pair(&TLS13, false).await;
    let much = bytes(1 << 20, 4);
    let mut taken = 0;
    let fills = async {
        loop {
            taken += ours.write(&much).await.unwrap();
        }
    };
    assert!(
        timeout(Duration::from_secs(2), fills).await.is_err(),
        "it does not wait"
    );
    // What the system keeps for both sockets, and one record.
    assert!(taken < 64 << 20, "{taken}");
    assert!(ours.outgoing.len() <= PLAIN + AROUND, "{}", ours.outgoing.len());
    drop(theirs);
}

#[tokio::test]
async fn keys_may_change_on_the_way() {
    let place = Place::new();
    let (mut ours, mut theirs) = place.pair(&TLS13, false).await;
    for round in 0..5 {
        theirs.get_mut().1.refresh_traffic_keys().unwrap();
        theirs.write_all(&[round]).await.unwrap();
        theirs.flush().await.unwrap();
        assert_eq!(timeout(SOON, ours.read_u8()).await.unwrap().unwrap(), round);
        ours.write_all(&[round]).await.unwrap();
        ours.flush().await.unwrap();
        assert_eq!(timeout(SOON, theirs.read_u8()).await.unwrap().unwrap(), round);
    }
}

/// A client's end after the handshake, which seals what it likes.
struct Sealing {
    tcp: TcpStream,
    key: LessSafeKey,
    iv: rustls::crypto::cipher::Iv,
    sequence: u64,
    version: &'static rustls::SupportedProtocolVersion,
}

impl Sealing {
    async fn pair(
        place: &Place,
        version: &'static rustls::SupportedProtocolVersion,
    ) -> (UnbufferedTls, Sealing) {
        let mut client = place.client(version, false);
        Arc::make_mut(&mut client).enable_secret_extraction = true;
        let (ours, theirs) = sockets().await;
        let (ours, theirs) = place.shake(ours, theirs, client).await;
        let (tcp, client) = theirs.into_inner();
        let (sequence, ConnectionTrafficSecrets::Aes256Gcm { key, iv }) =
            client.dangerous_extract_secrets().unwrap().tx
        else {
            panic!("another cipher");
        };
        let key = UnboundKey::new(&AES_256_GCM, key.as_ref()).unwrap();
        let sealing = Sealing {
            tcp,
            key: LessSafeKey::new(key),
            iv,
            sequence,
            version,
        };
        (ours, sealing)
    }

    /// A record (RFC 8446 section 5.2, RFC 5288 section 3).
    fn seal(&mut self, kind: u8, content: &[u8]) -> Vec<u8> {
        let sequence = self.sequence.to_be_bytes();
        self.sequence += 1;
        let mut nonce: [u8; 12] = self.iv.as_ref().try_into().unwrap();
        let (mut sealed, mut head, mut aad) = (content.to_vec(), vec![kind, 3, 3], Vec::new());
        let with_length =
            |bytes: &mut Vec<u8>, len: usize| bytes.extend(u16::try_from(len).unwrap().to_be_bytes());
        if self.version.version == rustls::ProtocolVersion::TLSv1_3 {
            nonce[4..]
                .iter_mut()
                .zip(sequence)
                .for_each(|(byte, with)| *byte ^= with);
            sealed.push(kind);
            head[0] = 23;
            with_length(&mut head, sealed.len() + 16);
            aad.extend_from_slice(&head);
        } else {
            nonce[4..].copy_from_slice(&sequence);
            aad.extend([&sequence[..], &head].concat());
            with_length(&mut aad, sealed.len());
            with_length(&mut head, 8 + sealed.len() + 16);
            head.extend(sequence);
        }
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.key
            .seal_in_place_append_tag(nonce, Aad::from(aad), &mut sealed)
            .unwrap();
        [head, sealed].concat()
    }
}

#[tokio::test]
async fn what_a_read_calls_for_goes_out_at_once() {
    let place = Place::new();
    let (mut ours, mut theirs) = Sealing::pair(&place, &TLS12).await;
    // Another hello: it is refused (RFC 5746 section 4.5), and the connection stays.
    let again = theirs.seal(22, &hello(&place)[5..]);
    theirs.tcp.write_all(&again).await.unwrap();
    let mut answer = [0; 5];
    let reads = async {
        tokio::select! {
            read = ours.read_u8() => panic!("{read:?}"),
            answered = theirs.tcp.read_exact(&mut answer) => answered,
        }
    };
    timeout(SOON, reads).await.expect("an alert").unwrap();
    assert_eq!(answer[0], 21);
    let kept = [&ours.incoming, &ours.plain, &ours.outgoing].map(Vec::capacity);
    assert_eq!(kept, [0; 3]);
    let more = theirs.seal(23, b"x");
    theirs.tcp.write_all(&more).await.unwrap();
    assert_eq!(timeout(SOON, ours.read_u8()).await.unwrap().unwrap(), b'x');
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Anybody may have good keys: no certificate is needed for that.
    #[test]
    fn nothing_that_is_sealed_well_makes_it_panic(
        old in any::<bool>(),
        records in prop::collection::vec((20..25_u8, prop::collection::vec(prop_oneof![0..3_u8, Just(24), any::<u8>()], 0..40), 0..3_usize), 1..12),
        pieces in prop::collection::vec(1..200_usize, 1..8),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let version = if old { &TLS12 } else { &TLS13 };
            let (mut ours, mut theirs) = Sealing::pair(&Place::new(), version).await;
            let mut sent = Vec::new();
            for (kind, mut content, large) in records {
                content.resize(content.len() + large * 8000, 0);
                sent.extend(theirs.seal(kind, &content));
            }
            let writes = async {
                let mut rest = &sent[..];
                for len in pieces {
                    let (piece, after) = rest.split_at(len.min(rest.len()));
                    _ = theirs.tcp.write_all(piece).await;
                    tokio::task::yield_now().await;
                    rest = after;
                }
                _ = theirs.tcp.write_all(rest).await;
                _ = theirs.tcp.shutdown().await;
            };
            let reads = async {
                let mut space = [0; 5000];
                while let Ok(1..) = ours.read(&mut space).await {
                    assert!(ours.incoming.len() < RECORD + READ && ours.plain.len() <= PLAIN);
                }
                // What a caller may still do.
                _ = ours.write_all(b"answer").await;
                _ = ours.shutdown().await;
                drop(ours);
            };
            timeout(SOON, async { tokio::join!(writes, reads) }).await.expect("an end");
        });
    }

    #[test]
    fn no_hello_makes_it_panic(at in any::<prop::sample::Index>(), with in prop::collection::vec(any::<u8>(), 0..64), cut in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let place = Place::new();
            let mut said = hello(&place);
            let at = at.index(said.len());
            if cut {
                said.truncate(at);
            }
            let end = said.len().min(at + with.len());
            said.splice(at.min(end)..end, with);
            // Some are good, and break off after that.
            _ = answered(&place, &said).await;
        });
    }
}
