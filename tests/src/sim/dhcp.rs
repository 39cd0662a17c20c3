//! A DHCP client with any MAC address, which asks as firmware, as iPXE or as an installed system does.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use dhcproto::{
    Decodable, Decoder, Encodable, Encoder,
    v4::{Architecture, DhcpOption, Flags, Message, MessageType, OptionCode},
};
use muster_proto::Mac;
use tokio::time::{Instant, timeout_at};

use super::{Clients, Port};

/// When a question is asked again: what iPXE does, in milliseconds after each other.
const AGAIN: [u64; 4] = [1000, 2000, 4000, 8000];

static XID: AtomicU32 = AtomicU32::new(1);

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asker {
    /// PXE firmware of this processor architecture type (RFC 4578, 2.1).
    Pxe(u16),
    /// UEFI HTTP boot of this architecture type.
    HttpBoot(u16),
    /// iPXE, started by firmware of this architecture type.
    Ipxe(u16),
    /// Anything that only wants an address.
    Plain,
}

/// A client.
#[derive(Clone, Debug)]
pub struct Client {
    port: Arc<Port>,
    /// Its MAC address.
    pub mac: Mac,
    /// Who it is.
    pub asker: Asker,
    /// SMBIOS UUID (option 97).
    pub uuid: Option<[u8; 16]>,
}

/// What a client was given.
#[derive(Clone, Debug)]
pub struct Lease {
    /// Its address; unspecified if the answer came from a proxy.
    pub address: Ipv4Addr,
    /// The server.
    pub server: Option<Ipv4Addr>,
    /// The boot file: option 67, else the `file` field.
    pub file: Option<String>,
    /// `siaddr`.
    pub next_server: Ipv4Addr,
    /// The whole answer.
    pub message: Message,
}

impl Client {
    /// A client behind `clients`.
    pub fn new(clients: &Clients, mac: Mac, asker: Asker) -> Client {
        Client {
            port: Arc::clone(clients.port()),
            mac,
            asker,
            uuid: None,
        }
    }

    /// DISCOVER, OFFER, REQUEST, ACK.
    pub async fn lease(&self, within: Duration) -> Result<Lease> {
        let deadline = Instant::now() + within;
        let offer = self.discover(deadline.duration_since(Instant::now())).await?;
        self.request(&offer, deadline.duration_since(Instant::now()))
            .await
    }

    /// DISCOVER, asked again until an OFFER comes.
    pub async fn discover(&self, within: Duration) -> Result<Lease> {
        self.ask(&self.message(MessageType::Discover), MessageType::Offer, within)
            .await
    }

    /// REQUEST of what `offer` offers, asked again until an ACK comes.
    pub async fn request(&self, offer: &Lease, within: Duration) -> Result<Lease> {
        let mut message = self.message(MessageType::Request);
        let options = message.opts_mut();
        options.insert(DhcpOption::RequestedIpAddress(offer.address));
        if let Some(server) = offer.server {
            options.insert(DhcpOption::ServerIdentifier(server));
        }
        self.ask(&message, MessageType::Ack, within).await
    }

    /// Whether nobody answers a DISCOVER within `patience` with anything, be it a refusal or no message at all.
    pub async fn meets_silence(&self, patience: Duration) -> Result<bool> {
        let message = self.message(MessageType::Discover);
        let raw = encoded(&message)?;
        let mut replies = self.port.replies(message.xid());
        let deadline = Instant::now() + patience;
        let mut pauses = AGAIN.into_iter();
        while Instant::now() < deadline {
            self.port
                .broadcast(self.mac, (Ipv4Addr::UNSPECIFIED, 68), 67, &raw)?;
            let pause = pauses.next().map_or(patience, Duration::from_millis);
            let until = deadline.min(Instant::now() + pause);
            match timeout_at(until, replies.recv()).await {
                Ok(Some(_)) => return Ok(false),
                Ok(None) => bail!("{}: nobody is listening any more", self.mac),
                Err(_) => {}
            }
        }
        Ok(true)
    }

    /// A message of this client, ready to be sent or broken first.
    pub fn message(&self, kind: MessageType) -> Message {
        let mut message = Message::default();
        message
            .set_xid(XID.fetch_add(1, Ordering::Relaxed))
            .set_chaddr(&self.mac.0)
            .set_flags(Flags::default().set_broadcast());
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ParameterRequestList(vec![
            OptionCode::SubnetMask,
            OptionCode::Router,
            OptionCode::DomainNameServer,
            OptionCode::TFTPServerName,
            OptionCode::BootfileName,
        ]));
        let (class, architecture) = match self.asker {
            Asker::Pxe(kind) | Asker::Ipxe(kind) => ("PXEClient", kind),
            Asker::HttpBoot(kind) => ("HTTPClient", kind),
            Asker::Plain => return message,
        };
        let class = format!("{class}:Arch:{architecture:05}:UNDI:003001");
        options.insert(DhcpOption::ClassIdentifier(class.into_bytes()));
        options.insert(DhcpOption::ClientSystemArchitecture(Architecture::from(
            architecture,
        )));
        if matches!(self.asker, Asker::Ipxe(_)) {
            options.insert(DhcpOption::UserClass(b"iPXE".to_vec()));
        }
        if let Some(uuid) = self.uuid {
            let mut identifier = vec![0];
            identifier.extend(uuid);
            options.insert(DhcpOption::ClientMachineIdentifier(identifier));
        }
        message
    }

    async fn ask(&self, message: &Message, wanted: MessageType, within: Duration) -> Result<Lease> {
        let deadline = Instant::now() + within;
        let raw = encoded(message)?;
        let mut replies = self.port.replies(message.xid());
        let mut pauses = AGAIN.into_iter();
        loop {
            self.port
                .broadcast(self.mac, (Ipv4Addr::UNSPECIFIED, 68), 67, &raw)?;
            let pause = pauses.next().map_or(within, Duration::from_millis);
            let until = deadline.min(Instant::now() + pause);
            while let Ok(Some(datagram)) = timeout_at(until, replies.recv()).await {
                let Ok(answer) = Message::decode(&mut Decoder::new(&datagram.payload)) else {
                    bail!(
                        "the server's answer is not a DHCP message: {:02x?}",
                        datagram.payload
                    );
                };
                match answer.opts().msg_type() {
                    Some(kind) if kind == wanted => return Ok(Lease::from(answer)),
                    Some(MessageType::Nak) => bail!("{}: the server refused", self.mac),
                    _ => {}
                }
            }
            if Instant::now() >= deadline {
                bail!("{}: no {wanted:?} within {within:?}", self.mac);
            }
        }
    }
}

fn encoded(message: &Message) -> Result<Vec<u8>> {
    let mut raw = Vec::new();
    message
        .encode(&mut Encoder::new(&mut raw))
        .context("write a DHCP message")?;
    Ok(raw)
}

impl From<Message> for Lease {
    fn from(message: Message) -> Lease {
        let server = match message.opts().get(OptionCode::ServerIdentifier) {
            Some(DhcpOption::ServerIdentifier(address)) => Some(*address),
            _ => None,
        };
        let option = match message.opts().get(OptionCode::BootfileName) {
            Some(DhcpOption::BootfileName(name)) => Some(name.clone()),
            _ => None,
        };
        let file = option
            .or_else(|| message.fname().map(<[u8]>::to_vec))
            .map(|name| {
                let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
                String::from_utf8_lossy(&name[..end]).into_owned()
            });
        Lease {
            address: message.yiaddr(),
            server,
            file: file.filter(|name| !name.is_empty()),
            next_server: message.siaddr(),
            message,
        }
    }
}
