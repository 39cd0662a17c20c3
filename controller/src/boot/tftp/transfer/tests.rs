use proptest::prelude::*;

use super::*;

fn file(len: usize) -> Bytes {
    (0..len)
        .map(|at| u8::try_from(at % 251).unwrap())
        .collect::<Vec<u8>>()
        .into()
}

/// A client that keeps to RFC 1350 and 7440, and refuses every block that does not fit.
struct Client {
    received: Vec<u8>,
    /// The last block in order.
    last: u64,
    window: u64,
    block: usize,
    /// Blocks since the last acknowledgement.
    since: u64,
    complete: bool,
}

impl Client {
    fn new(options: &Options) -> Self {
        Client {
            received: Vec::new(),
            last: 0,
            window: options.window.unwrap_or(1).into(),
            block: options.block.unwrap_or(DEFAULT_BLOCK).into(),
            since: 0,
            complete: false,
        }
    }

    /// The acknowledgement that a packet provokes.
    fn take(&mut self, packet: &[u8]) -> Option<Reply> {
        let opcode = packet[1];
        if opcode == 6 {
            return (self.last == 0).then_some(Reply::Ack(0));
        }
        assert_eq!(opcode, 3);
        let block = u16::from_be_bytes([packet[2], packet[3]]);
        if block != number(self.last + 1) {
            // Out of order or twice: say again what we have (RFC 7440, 4).
            self.since = 0;
            return Some(Reply::Ack(number(self.last)));
        }
        assert!(!self.complete, "data after the last block");
        self.received.extend(&packet[4..]);
        self.last += 1;
        self.since += 1;
        self.complete = packet.len() - 4 < self.block;
        (self.complete || self.since == self.window).then(|| {
            self.since = 0;
            Reply::Ack(number(self.last))
        })
    }
}

fn encode(transfer: &Transfer, packets: &[Outgoing]) -> Vec<Vec<u8>> {
    let one = |packet: &Outgoing| {
        let mut out = Vec::new();
        transfer.encode(*packet, &mut out);
        out
    };
    packets.iter().map(one).collect()
}

/// Runs a transfer over a network whose every choice comes from `fate`; once that is used up it is a good network.
/// Returns what the client got, how it ended, and how many DATA packets were sent.
fn run(len: usize, options: Options, fate: &[u8]) -> (Client, Step, u64) {
    let mut fate = fate.iter().copied().fuse();
    let (mut transfer, first) = Transfer::start(file(len), options);
    let mut client = Client::new(&options);
    let mut to_client = encode(&transfer, &first);
    let mut to_server: Vec<Reply> = Vec::new();
    let mut sent = first.len() as u64;
    for _ in 0..1_000_000 {
        let choice = fate.next().unwrap_or(0);
        let step = if !to_client.is_empty() {
            // Reordering: any packet under way may be the next to arrive.
            let at = usize::from(choice >> 3) % to_client.len();
            let packet = match choice & 7 {
                1 => to_client[at].clone(),
                _ => to_client.remove(at),
            };
            if choice & 7 != 2 {
                to_server.extend(client.take(&packet));
            }
            continue;
        } else if !to_server.is_empty() {
            let at = usize::from(choice >> 3) % to_server.len();
            let reply = match choice & 7 {
                1 => to_server[at],
                _ => to_server.remove(at),
            };
            match choice & 7 {
                2 => continue,
                _ => transfer.on_reply(reply),
            }
        } else {
            transfer.on_timeout()
        };
        match step {
            Step::Send(packets) => {
                sent += packets.len() as u64;
                to_client.extend(encode(&transfer, &packets));
            }
            Step::Ignore => {}
            end => return (client, end, sent),
        }
    }
    panic!("the transfer never ended");
}

fn options(block: u16, window: Option<u16>) -> Options {
    Options {
        block: Some(block),
        window,
        ..Options::default()
    }
}

#[test]
fn a_file_of_full_blocks_ends_with_an_empty_one() {
    for len in [0, 1, 511, 512, 513, 1024] {
        let (client, end, sent) = run(len, Options::default(), &[]);
        assert_eq!((end, sent), (Step::Done, len as u64 / 512 + 1));
        assert_eq!(client.received, file(len));
        assert!(client.complete);
    }
}

#[test]
fn block_numbers_wrap() {
    let len = 8 * 65_536 * 2 + 3;
    let (client, end, _) = run(len, options(8, Some(16)), &[]);
    assert_eq!(end, Step::Done);
    assert!(client.received == file(len));
}

#[test]
fn options_are_answered_before_any_data() {
    let (mut transfer, first) = Transfer::start(file(3000), options(1000, Some(2)));
    assert_eq!(first, [Outgoing::Oack]);
    assert_eq!(transfer.on_reply(Reply::Ack(1)), Step::Ignore);
    let data = Step::Send(vec![Outgoing::Data(1), Outgoing::Data(2)]);
    assert_eq!(transfer.on_reply(Reply::Ack(0)), data);
}

#[test]
fn a_doubled_acknowledgement_sends_nothing() {
    let (mut transfer, _) = Transfer::start(file(5000), Options::default());
    assert_eq!(
        transfer.on_reply(Reply::Ack(1)),
        Step::Send(vec![Outgoing::Data(2)])
    );
    assert_eq!(transfer.on_reply(Reply::Ack(1)), Step::Ignore);
    assert_eq!(transfer.on_reply(Reply::Ack(0)), Step::Ignore);
    assert_eq!(transfer.on_reply(Reply::Ack(3)), Step::Ignore, "not yet sent");
}

#[test]
fn an_acknowledgement_inside_the_window_goes_on_behind_it() {
    let (mut transfer, _) = Transfer::start(file(5000), options(1000, Some(4)));
    transfer.on_reply(Reply::Ack(0));
    let data = Step::Send(vec![
        Outgoing::Data(3),
        Outgoing::Data(4),
        Outgoing::Data(5),
        Outgoing::Data(6),
    ]);
    assert_eq!(transfer.on_reply(Reply::Ack(2)), data);
}

#[test]
fn a_silent_client_is_given_up_with_growing_waits() {
    let (mut transfer, first) = Transfer::start(file(10), Options::default());
    let mut waits = vec![transfer.wait()];
    loop {
        match transfer.on_timeout() {
            Step::Send(packets) => assert_eq!(packets, first),
            end => break assert_eq!(end, Step::Failed(Failure::Silent)),
        }
        waits.push(transfer.wait());
    }
    let seconds: Vec<f32> = waits.iter().map(Duration::as_secs_f32).collect();
    assert_eq!(seconds, [0.25, 0.5, 1.0, 2.0, 4.0, 8.0]);
}

#[test]
fn a_transfer_of_which_every_block_is_lost_once_ends_well() {
    let len = 512 * 15 + 1;
    // Of each block: it is lost, it is waited for in vain, it arrives, its acknowledgement does.
    let (client, end, sent) = run(len, Options::default(), &[2_u8, 0, 0, 0].repeat(16));
    assert_eq!((end, sent), (Step::Done, 32));
    assert!(client.complete && client.received == file(len));
}

#[test]
fn a_client_that_asks_for_a_timeout_gets_it() {
    let asked = Options {
        timeout: Some(3),
        ..Options::default()
    };
    let (mut transfer, _) = Transfer::start(file(10), asked);
    assert_eq!(transfer.wait(), FIRST_WAIT, "it does not know yet that we agree");
    transfer.on_reply(Reply::Ack(0));
    assert_eq!(transfer.wait(), Duration::from_secs(3));
}

#[test]
fn an_error_of_the_client_ends_the_transfer() {
    let (mut transfer, _) = Transfer::start(file(10), options(512, None));
    assert_eq!(
        transfer.on_reply(Reply::Error(8)),
        Step::Failed(Failure::Client(8))
    );
}

#[test]
fn a_transfer_that_takes_too_long_ends_unless_the_client_has_all() {
    let late = LONGEST + Duration::from_millis(1);
    let send = || Step::Send(vec![Outgoing::Data(1)]);
    for step in [send(), Step::Ignore, Step::Done, Step::Failed(Failure::Silent)] {
        assert_eq!(within(step.clone(), LONGEST), step);
    }
    for step in [send(), Step::Ignore] {
        assert_eq!(within(step, late), Step::Failed(Failure::Slow));
    }
    for step in [Step::Done, Step::Failed(Failure::Client(8))] {
        assert_eq!(within(step.clone(), late), step);
    }
}

#[test]
fn firmware_without_options_has_time_for_a_megabyte() {
    let blocks = (1 << 20) / u32::from(DEFAULT_BLOCK);
    let trouble = FIRST_WAIT * 100;
    assert!(Duration::from_millis(100) * blocks + trouble < LONGEST);
}

proptest! {
    /// Under any loss, doubling and reordering the transfer ends; if it ends well the client has exactly the file, and at
    /// most one window was sent for each step forward and each timeout.
    #[test]
    fn any_network_ends_with_the_exact_file_or_none(
        len in 0_usize..20_000,
        block in 8_u16..1368,
        window in proptest::option::of(1_u16..16),
        asks: bool,
        fate in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        let len = len.min(usize::from(block) * 200);
        let options = if asks { options(block, window) } else { Options::default() };
        let (client, end, sent) = run(len, options, &fate);
        match end {
            Step::Done => prop_assert!(client.complete && client.received == file(len)),
            // Of a window that is sent on a good network the client tells: each of those in vain met some trouble.
            Step::Failed(Failure::Silent) => {
                let bad = fate.iter().filter(|choice| **choice != 0).count();
                prop_assert!(bad as u64 >= u64::from(TRIES), "{bad} times trouble");
            }
            other => prop_assert!(false, "{other:?}"),
        }
        let blocks = (len / client.block + 1) as u64;
        let timeouts = fate.len() as u64 + u64::from(TRIES);
        prop_assert!(sent <= (blocks + 1 + timeouts) * client.window, "{sent} packets for {blocks} blocks");
    }

    /// Replies that no client would send change nothing that matters: no panic, and never a block beyond the file.
    #[test]
    fn any_replies_stay_inside_the_file(replies: Vec<Option<u16>>, len in 0_usize..5000, window in 1_u16..16) {
        let (mut transfer, _) = Transfer::start(file(len), options(64, Some(window)));
        let blocks = (len / 64 + 1) as u64;
        for reply in replies {
            let step = match reply {
                Some(block) => transfer.on_reply(Reply::Ack(block)),
                None => transfer.on_timeout(),
            };
            if let Step::Send(packets) = step {
                prop_assert!(packets.len() <= usize::from(window));
                for packet in encode(&transfer, &packets) {
                    prop_assert!(packet.len() <= 4 + 64);
                }
                let inside = packets.iter().all(|packet| match packet {
                    Outgoing::Oack => true,
                    Outgoing::Data(block) => (1..=blocks).contains(block),
                });
                prop_assert!(inside);
            }
        }
    }
}
