//! A TFTP client (RFC 1350) with the options blksize, tsize and windowsize (RFC 2347 to 2349, 7440).

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, bail};
use tokio::{net::UdpSocket, time::timeout};

use super::Clients;

const DATA: u16 = 3;
const ACK: u16 = 4;
const ERROR: u16 = 5;
const OACK: u16 = 6;
/// What is assumed without options.
const BLOCK: usize = 512;
/// When the last packet is sent again, and how often.
const AGAIN: Duration = Duration::from_secs(1);
const ATTEMPTS: usize = 5;

/// What a transfer asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Bytes in a block.
    pub block: Option<usize>,
    /// Blocks in a window.
    pub window: Option<usize>,
    /// Ask for the size.
    pub size: bool,
}

/// A file and what the server said about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Content.
    pub content: Vec<u8>,
    /// The size, if asked for and told.
    pub size: Option<usize>,
    /// Bytes in a block, as agreed.
    pub block: usize,
    /// Blocks in a window, as agreed.
    pub window: usize,
}

struct Transfer {
    socket: UdpSocket,
    server: SocketAddr,
    fetched: Fetched,
    /// The last packet that was sent.
    last: Vec<u8>,
    /// The next block, counted without wrapping.
    next: u64,
    in_window: usize,
}

/// Fetches `file`.
pub async fn get(clients: &Clients, server: SocketAddr, file: &str, options: Options) -> Result<Fetched> {
    let mut transfer = Transfer {
        socket: clients.udp()?,
        server,
        fetched: Fetched {
            content: Vec::new(),
            size: None,
            block: BLOCK,
            window: 1,
        },
        last: request(file, options),
        next: 1,
        in_window: 0,
    };
    transfer.send().await?;
    let mut buffer = vec![0; 65_536];
    let mut attempts = 0;
    loop {
        let Ok(received) = timeout(AGAIN, transfer.socket.recv_from(&mut buffer)).await else {
            attempts += 1;
            if attempts == ATTEMPTS {
                bail!("TFTP {file}: no answer after {ATTEMPTS} attempts");
            }
            transfer.send().await?;
            continue;
        };
        let (length, from) = received.with_context(|| format!("TFTP {file}"))?;
        attempts = 0;
        transfer.server = from; // the server answers from a port of its own
        let packet = &buffer[..length];
        if transfer
            .take(packet)
            .await
            .with_context(|| format!("TFTP {file}"))?
        {
            return Ok(transfer.fetched);
        }
    }
}

fn request(file: &str, options: Options) -> Vec<u8> {
    let mut packet = vec![0, 1];
    let mut add = |text: &str| {
        packet.extend(text.as_bytes());
        packet.push(0);
    };
    add(file);
    add("octet");
    if let Some(block) = options.block {
        add("blksize");
        add(&block.to_string());
    }
    if options.size {
        add("tsize");
        add("0");
    }
    if let Some(window) = options.window {
        add("windowsize");
        add(&window.to_string());
    }
    packet
}

impl Transfer {
    async fn send(&self) -> Result<()> {
        self.socket
            .send_to(&self.last, self.server)
            .await
            .context("send")?;
        Ok(())
    }

    async fn acknowledge(&mut self, block: u64) -> Result<()> {
        let [.., high, low] = block.to_be_bytes();
        self.last = vec![0, 4, high, low];
        self.in_window = 0;
        self.send().await
    }

    /// Takes a packet; true once the file is complete.
    async fn take(&mut self, packet: &[u8]) -> Result<bool> {
        let (Some(kind), Some(rest)) = (packet.first_chunk::<2>(), packet.get(2..)) else {
            bail!("a packet of {} bytes", packet.len());
        };
        match u16::from_be_bytes(*kind) {
            OACK => {
                self.options(rest)?;
                self.acknowledge(0).await?;
                Ok(false)
            }
            DATA => {
                let (Some(number), Some(data)) = (rest.first_chunk::<2>(), rest.get(2..)) else {
                    bail!("a block without a number");
                };
                self.block(u16::from_be_bytes(*number), data).await
            }
            ERROR => {
                let text = String::from_utf8_lossy(rest.get(2..).unwrap_or_default()).into_owned();
                bail!("the server refused: {}", text.trim_end_matches('\0'));
            }
            ACK => Ok(false),
            other => bail!("opcode {other}"),
        }
    }

    async fn block(&mut self, number: u16, data: &[u8]) -> Result<bool> {
        if number.to_be_bytes() != self.next.to_be_bytes()[6..] {
            // Out of order: say where to go on (RFC 7440, 4), once for a whole window.
            if self.in_window != 0 || self.fetched.window == 1 {
                self.acknowledge(self.next - 1).await?;
            }
            return Ok(false);
        }
        self.fetched.content.extend(data);
        self.next += 1;
        self.in_window += 1;
        let last = data.len() < self.fetched.block;
        if last || self.in_window == self.fetched.window {
            self.acknowledge(self.next - 1).await?;
        }
        Ok(last)
    }

    fn options(&mut self, raw: &[u8]) -> Result<()> {
        let text = String::from_utf8_lossy(raw).to_lowercase();
        let mut parts = text.split_terminator('\0');
        while let (Some(name), Some(value)) = (parts.next(), parts.next()) {
            let value: usize = value.parse().with_context(|| format!("option {name}"))?;
            match name {
                "blksize" => self.fetched.block = value,
                "windowsize" => self.fetched.window = value,
                "tsize" => self.fetched.size = Some(value),
                _ => bail!("the server agreed to {name}, which nobody asked for"),
            }
        }
        Ok(())
    }
}
