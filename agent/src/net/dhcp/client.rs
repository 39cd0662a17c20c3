//! The client's state machine: times in, messages out; it reads no clock and opens no socket.
//!
//! ```text
//! Discovering --offer--> Requesting --ack--> Bound --T1--> (asks its server) --T2--> (asks everyone) --over--> Discovering
//!      ^----- nak, or four requests unanswered ----+
//! ```

use std::{net::Ipv4Addr, time::Duration};

use muster_proto::Mac;

use super::{
    Lease,
    packet::{self, Ask, Reply},
};

/// Between one try and the next, in milliseconds; the last is repeated for ever.
const PAUSES: [u64; 6] = [250, 500, 1000, 2000, 4000, 8000];

/// How often an offer is asked for before it is given up.
const REQUESTS: usize = 4;

/// The shortest time between two tries to renew (RFC 2131, 4.4.5).
const RENEW_PAUSE: Duration = Duration::from_secs(60);

/// Seen from the start of the client.
type At = Duration;

#[derive(Debug)]
pub(super) struct Client {
    mac: Mac,
    xid: u32,
    state: State,
    /// When the state began to ask, and how often it has asked.
    since: At,
    tries: usize,
    /// When to ask next.
    next: Option<At>,
}

#[derive(Debug)]
enum State {
    Discovering { former: Option<Ipv4Addr> },
    Requesting { offer: Lease },
    Bound { lease: Lease, from: At },
}

/// One message to send.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outgoing {
    pub(super) bytes: Vec<u8>,
    /// Our address; unspecified while we have none.
    pub(super) from: Ipv4Addr,
    pub(super) to: Ipv4Addr,
}

/// What a reply led to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Granted(Lease),
    /// The server wants the lease in use back.
    Refused(Lease),
}

impl Client {
    /// Asks at once. `former` is the address held before, which a server may grant again.
    pub(super) fn new(mac: Mac, random: u64, former: Option<Ipv4Addr>) -> Client {
        let xid = u32::try_from(random >> 32).expect("32 bits are left");
        Client {
            mac,
            xid,
            state: State::Discovering { former },
            since: At::ZERO,
            tries: 0,
            next: Some(At::ZERO),
        }
    }

    /// When something is to be done without a message; `None` is never.
    pub(super) fn wake(&self) -> Option<At> {
        let over = match &self.state {
            State::Bound { lease, from } => lease.duration.map(|duration| *from + duration),
            _ => None,
        };
        [self.next, over].into_iter().flatten().min()
    }

    /// The lease whose time is over; the client then looks for a new one.
    pub(super) fn expire(&mut self, now: At) -> Option<Lease> {
        let State::Bound { lease, from } = &self.state else {
            return None;
        };
        let over = lease.duration.is_some_and(|duration| now >= *from + duration);
        let lease = over.then(|| lease.clone())?;
        self.discover(Some(lease.address), now, now);
        Some(lease)
    }

    /// The message that is due.
    pub(super) fn send(&mut self, now: At) -> Option<Outgoing> {
        self.next.filter(|next| *next <= now)?;
        if let State::Requesting { offer } = &self.state
            && self.tries == REQUESTS
        {
            let former = Some(offer.address);
            self.discover(former, now, now);
        }
        let everyone = Ipv4Addr::BROADCAST;
        let (ask, to, next) = match &self.state {
            State::Discovering { former } => (Ask::Discover(*former), everyone, now + self.pause()),
            State::Requesting { offer } => {
                let ask = Ask::Request {
                    address: offer.address,
                    server: offer.server,
                };
                (ask, everyone, now + self.pause())
            }
            State::Bound { lease, from } => {
                let (rebind, over) = (
                    *from + lease.rebind,
                    lease.duration.map(|duration| *from + duration),
                );
                // Half of the time that is left, at least a minute (RFC 2131, 4.4.5).
                let until = if now < rebind { Some(rebind) } else { over };
                let left = until.map_or(RENEW_PAUSE, |until| until.saturating_sub(now));
                let next =
                    (now + (left / 2).max(RENEW_PAUSE)).min(if now < rebind { rebind } else { At::MAX });
                // A server that does not say who it is can only be asked together with all others.
                let knows_server = now < rebind && !lease.server.is_unspecified();
                let to = if knows_server { lease.server } else { everyone };
                (Ask::Renew(lease.address), to, next)
            }
        };
        let secs = u16::try_from(now.saturating_sub(self.since).as_secs()).unwrap_or(u16::MAX);
        self.tries += 1;
        self.next = Some(next);
        Some(Outgoing {
            bytes: packet::encode(ask, self.mac, self.xid, secs),
            from: ask.own(),
            to,
        })
    }

    /// Takes one datagram, whatever it is.
    pub(super) fn receive(&mut self, datagram: &[u8], now: At) -> Option<Outcome> {
        let reply = packet::decode(datagram, self.mac, self.xid)?;
        match (&self.state, reply) {
            (State::Discovering { .. }, Reply::Offer(offer)) => {
                // The first offer wins: others could only cost time.
                self.state = State::Requesting { offer };
                (self.tries, self.next) = (0, Some(now));
                None
            }
            (State::Requesting { offer }, Reply::Ack(lease)) if lease.address == offer.address => {
                Some(self.bind(lease, now))
            }
            (State::Bound { lease: held, .. }, Reply::Ack(lease))
                if self.tries > 0 && lease.address == held.address =>
            {
                Some(self.bind(lease, now))
            }
            (State::Requesting { .. }, Reply::Nak) => {
                // Not at once, or a server that always refuses would be asked without pause.
                self.discover(None, now, now + Duration::from_secs(1));
                None
            }
            (State::Bound { lease, .. }, Reply::Nak) if self.tries > 0 => {
                let lease = lease.clone();
                self.discover(None, now, now);
                Some(Outcome::Refused(lease))
            }
            _ => None,
        }
    }

    fn bind(&mut self, lease: Lease, now: At) -> Outcome {
        self.tries = 0;
        self.next = lease.duration.map(|_| now + lease.renew);
        self.since = now + lease.renew;
        self.state = State::Bound {
            lease: lease.clone(),
            from: now,
        };
        Outcome::Granted(lease)
    }

    fn discover(&mut self, former: Option<Ipv4Addr>, now: At, next: At) {
        self.state = State::Discovering { former };
        self.xid = self.xid.wrapping_add(1);
        (self.since, self.tries, self.next) = (now, 0, Some(next));
    }

    fn pause(&self) -> Duration {
        let pause = PAUSES[self.tries.min(PAUSES.len() - 1)];
        // A rack that is switched on as one should not ask as one.
        Duration::from_millis(pause + u64::from(self.xid % 64))
    }
}

#[cfg(test)]
mod tests {
    use dhcproto::{
        Decodable, Decoder, Encodable,
        v4::{DhcpOption, Message, MessageType, Opcode, OptionCode},
    };

    use super::*;

    const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);

    fn client() -> Client {
        Client::new(MAC, 64 << 32, None)
    }

    fn at(milliseconds: u64) -> At {
        At::from_millis(milliseconds)
    }

    /// The server's answer to a message of ours.
    fn answer(question: &Outgoing, kind: MessageType) -> Vec<u8> {
        let mut message = Message::decode(&mut Decoder::new(&question.bytes)).unwrap();
        message.set_opcode(Opcode::BootReply).set_yiaddr(ADDRESS);
        let options = message.opts_mut();
        options.clear();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ServerIdentifier(SERVER));
        options.insert(DhcpOption::AddressLeaseTime(1000));
        message.to_vec().unwrap()
    }

    fn kind(outgoing: &Outgoing) -> MessageType {
        Message::decode(&mut Decoder::new(&outgoing.bytes))
            .unwrap()
            .opts()
            .msg_type()
            .unwrap()
    }

    fn bound() -> Client {
        let mut client = client();
        let discover = client.send(at(0)).unwrap();
        client.receive(&answer(&discover, MessageType::Offer), at(1));
        let request = client.send(at(1)).unwrap();
        let outcome = client.receive(&answer(&request, MessageType::Ack), at(2));
        assert!(matches!(outcome, Some(Outcome::Granted(_))), "{outcome:?}");
        client
    }

    #[test]
    fn a_silent_port_is_asked_for_ever() {
        let mut client = client();
        let mut now = at(0);
        let mut times = Vec::new();
        for _ in 0..12 {
            let outgoing = client.send(now).unwrap();
            assert_eq!(
                (kind(&outgoing), outgoing.to),
                (MessageType::Discover, Ipv4Addr::BROADCAST)
            );
            assert_eq!(client.send(now), None, "once");
            times.push(now.as_millis());
            now = client.wake().unwrap();
        }
        assert_eq!(
            times,
            [
                0, 250, 750, 1750, 3750, 7750, 15750, 23750, 31750, 39750, 47750, 55750
            ]
        );
        // The port begins to forward after 45 s.
        let discover = client.send(now).unwrap();
        client.receive(&answer(&discover, MessageType::Offer), now);
        assert_eq!(client.wake(), Some(now), "the offer is taken at once");
    }

    #[test]
    fn a_lost_request_is_sent_again_and_then_given_up() {
        let mut client = client();
        let discover = client.send(at(0)).unwrap();
        client.receive(&answer(&discover, MessageType::Offer), at(1));
        let mut sent = Vec::new();
        for _ in 0..5 {
            sent.push(kind(&client.send(client.wake().unwrap()).unwrap()));
        }
        assert_eq!(&sent[..4], [MessageType::Request; 4]);
        assert_eq!(sent[4], MessageType::Discover);
    }

    #[test]
    fn a_refused_request_starts_again_after_a_pause() {
        let mut client = client();
        let discover = client.send(at(0)).unwrap();
        client.receive(&answer(&discover, MessageType::Offer), at(1));
        let request = client.send(at(1)).unwrap();
        assert_eq!(client.receive(&answer(&request, MessageType::Nak), at(2)), None);
        assert_eq!(client.wake(), Some(at(1002)));
        // A late answer to the old transaction changes nothing.
        assert_eq!(client.receive(&answer(&request, MessageType::Ack), at(3)), None);
        assert_eq!(kind(&client.send(at(1002)).unwrap()), MessageType::Discover);
    }

    #[test]
    fn a_lease_is_renewed_with_its_server_then_with_anyone_then_lost() {
        let mut client = bound();
        assert_eq!(client.wake(), Some(at(2 + 500_000)));
        let renew = client.send(at(500_002)).unwrap();
        assert_eq!((kind(&renew), renew.to), (MessageType::Request, SERVER));
        assert_eq!(client.wake(), Some(at(2 + 687_500)), "half of the time until T2");
        client.send(at(687_502)).unwrap();
        client.send(at(781_252)).unwrap();
        assert_eq!(client.wake(), Some(at(841_252)), "not more than once a minute");
        client.send(at(841_252)).unwrap();
        let rebind = client.send(client.wake().unwrap()).unwrap();
        assert_eq!(
            (client.next.map(|_| rebind.to), client.expire(at(999_999))),
            (Some(Ipv4Addr::BROADCAST), None)
        );
        let lost = client.expire(at(1_000_002)).unwrap();
        assert_eq!(lost.address, ADDRESS);
        assert_eq!(kind(&client.send(at(1_000_002)).unwrap()), MessageType::Discover);
    }

    #[test]
    fn a_message_comes_from_an_address_only_while_that_is_ours() {
        // Even of an address that was held before.
        let mut client = Client::new(MAC, 64 << 32, Some(ADDRESS));
        let discover = client.send(at(0)).unwrap();
        client.receive(&answer(&discover, MessageType::Offer), at(1));
        let request = client.send(at(1)).unwrap();
        client.receive(&answer(&request, MessageType::Ack), at(2));
        let renew = client.send(at(500_002)).unwrap();
        let rebind = client.send(at(875_002)).unwrap();
        assert_eq!(rebind.to, Ipv4Addr::BROADCAST);
        client.expire(at(1_000_002)).unwrap();
        let anew = client.send(at(1_000_002)).unwrap();
        let nobody = Ipv4Addr::UNSPECIFIED;
        assert_eq!(
            [discover, request, renew, rebind, anew].map(|outgoing| outgoing.from),
            [nobody, nobody, ADDRESS, ADDRESS, nobody]
        );
    }

    #[test]
    fn a_server_without_a_name_is_asked_by_broadcast() {
        let mut client = client();
        let nameless = |question: &Outgoing, kind| {
            let mut message = Message::decode(&mut Decoder::new(&answer(question, kind))).unwrap();
            message.opts_mut().remove(OptionCode::ServerIdentifier);
            message.to_vec().unwrap()
        };
        let discover = client.send(at(0)).unwrap();
        client.receive(&nameless(&discover, MessageType::Offer), at(1));
        let request = client.send(at(1)).unwrap();
        let outcome = client.receive(&nameless(&request, MessageType::Ack), at(2));
        assert!(matches!(outcome, Some(Outcome::Granted(_))), "{outcome:?}");
        let renew = client.send(at(500_002)).unwrap();
        assert_eq!(
            (kind(&renew), renew.to),
            (MessageType::Request, Ipv4Addr::BROADCAST)
        );
    }

    /// Whatever a server refuses and how often: no more than a request a second.
    #[test]
    fn a_server_that_refuses_for_ever_is_not_asked_without_pause() {
        let mut client = client();
        let (mut now, mut sent) = (at(0), 0);
        while now < at(60_000) {
            if let Some(question) = client.send(now) {
                sent += 1;
                let reply = match kind(&question) {
                    MessageType::Discover => MessageType::Offer,
                    _ => MessageType::Nak,
                };
                client.receive(&answer(&question, reply), now);
            }
            now = client.wake().unwrap().max(now);
        }
        assert!(sent <= 122, "{sent} messages in a minute");
    }

    #[test]
    fn a_renewed_lease_counts_anew() {
        let mut client = bound();
        let renew = client.send(at(500_002)).unwrap();
        let outcome = client.receive(&answer(&renew, MessageType::Ack), at(500_010));
        assert!(matches!(outcome, Some(Outcome::Granted(_))));
        assert_eq!(client.wake(), Some(at(1_000_010)));
        assert_eq!(
            client.receive(&answer(&renew, MessageType::Ack), at(500_011)),
            None,
            "said twice"
        );
    }

    #[test]
    fn a_lease_taken_back_is_given_up() {
        let mut client = bound();
        let renew = client.send(at(500_002)).unwrap();
        let outcome = client.receive(&answer(&renew, MessageType::Nak), at(500_003));
        assert!(matches!(outcome, Some(Outcome::Refused(lease)) if lease.address == ADDRESS));
        assert_eq!(kind(&client.send(at(500_003)).unwrap()), MessageType::Discover);
    }
}
