use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{transfer::LONGEST, *};
use crate::log::said::Said;

const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

fn files() -> BootFiles {
    let bios: Vec<u8> = (0..74_213_u32)
        .map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1])
        .collect();
    BootFiles::new(bios.into(), vec![7; 1368 * 3].into())
}

/// A server on a port of its own, and where it is.
async fn serve(limits: Limits) -> SocketAddr {
    let slots = Slots::new(limits);
    let listener = Listener::bind(SocketAddr::new(LOOPBACK, 0), files(), slots, Arc::default()).unwrap();
    let address = listener.address;
    tokio::spawn(listener.run());
    address
}

async fn client() -> UdpSocket {
    UdpSocket::bind(SocketAddr::new(LOOPBACK, 0)).await.unwrap()
}

fn rrq(parts: &[&str]) -> Vec<u8> {
    let mut packet = vec![0, 1];
    for part in parts {
        packet.extend(part.bytes());
        packet.push(0);
    }
    packet
}

async fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 2048];
    let (len, from) = timeout(Duration::from_secs(20), socket.recv_from(&mut buffer))
        .await
        .expect("an answer")
        .unwrap();
    buffer.truncate(len);
    (buffer, from)
}

/// Reads one file as firmware does, one acknowledgement for each block; drops every `lose`-th packet unread.
async fn download(server: SocketAddr, request: &[u8], block: usize, lose: usize) -> Vec<u8> {
    let socket = client().await;
    socket.send_to(request, server).await.unwrap();
    let mut file = Vec::new();
    let mut expected = 1_u16;
    for count in 1_usize.. {
        let (packet, from) = receive(&socket).await;
        assert_ne!(from, server, "each transfer has its own port");
        if lose > 0 && count.is_multiple_of(lose) {
            continue;
        }
        let number = u16::from_be_bytes([packet[2], packet[3]]);
        match packet[1] {
            6 => drop(socket.send_to(&[0, 4, 0, 0], from).await.unwrap()),
            3 if number == expected => {
                file.extend(&packet[4..]);
                expected = expected.wrapping_add(1);
                socket.send_to(&[0, 4, packet[2], packet[3]], from).await.unwrap();
                if packet.len() - 4 < block {
                    break;
                }
            }
            3 => {}
            other => panic!("packet {other}: {}", String::from_utf8_lossy(&packet)),
        }
    }
    file
}

#[tokio::test]
async fn both_files_arrive_whole() {
    let server = serve(Limits::default()).await;
    assert!(download(server, &rrq(&[BIOS, "octet"]), 512, 0).await == files().bios);
    let asked = rrq(&[UEFI, "octet", "tsize", "0", "blksize", "1468", "windowsize", "4"]);
    assert!(download(server, &asked, 1368, 0).await == files().uefi);
}

#[tokio::test(start_paused = true)]
async fn lost_packets_are_sent_again() {
    let server = serve(Limits::default()).await;
    assert!(download(server, &rrq(&[UEFI, "octet", "blksize", "1024"]), 1024, 3).await == files().uefi);
}

#[tokio::test]
async fn nothing_else_is_served() {
    let server = serve(Limits::default()).await;
    let socket = client().await;
    for (request, code) in [
        (rrq(&["../../etc/passwd", "octet"]), Code::NotFound),
        (rrq(&["/etc/passwd", "octet"]), Code::NotFound),
        (rrq(&["/usr/lib/ipxe/undionly.kpxe", "octet"]), Code::NotFound),
        (rrq(&["UNDIONLY.KPXE", "octet"]), Code::NotFound),
        (rrq(&["./undionly.kpxe", "octet"]), Code::NotFound),
        (rrq(&["", "octet"]), Code::NotFound),
        (rrq(&[BIOS, "netascii"]), Code::NotDefined),
        (rrq(&[BIOS]), Code::Illegal),
        (b"\0\x02undionly.kpxe\0octet\0".to_vec(), Code::Access),
        (rrq(&[&"x".repeat(600), "octet"]), Code::Illegal),
    ] {
        socket.send_to(&request, server).await.unwrap();
        let (answer, from) = receive(&socket).await;
        assert_eq!(from, server);
        assert_eq!(
            answer[..4],
            [0, 5, 0, code as u8],
            "{}",
            String::from_utf8_lossy(&request)
        );
        assert_eq!(answer.last(), Some(&0));
    }
}

#[tokio::test(start_paused = true)]
async fn one_address_has_a_bounded_number_of_transfers() {
    let server = serve(Limits {
        transfers: 10,
        each: 2,
    })
    .await;
    let request = rrq(&[BIOS, "octet"]);
    let (one, two, three) = (client().await, client().await, client().await);
    for socket in [&one, &two] {
        socket.send_to(&request, server).await.unwrap();
        receive(socket).await;
    }
    three.send_to(&request, server).await.unwrap();
    let mut buffer = [0; 64];
    let silence = timeout(Duration::from_millis(100), three.recv_from(&mut buffer)).await;
    assert!(silence.is_err(), "the third waits");
    // Nobody acknowledges: the first two are given up, and the third is served when it asks again.
    for _ in 0..30 {
        three.send_to(&request, server).await.unwrap();
        if timeout(Duration::from_secs(1), three.recv_from(&mut buffer))
            .await
            .is_ok()
        {
            return;
        }
    }
    panic!("the slots were never given back");
}

#[tokio::test]
async fn a_client_that_loads_without_end_has_few_lines() {
    let said = Said::listen();
    let server = serve(Limits {
        transfers: 100,
        each: 100,
    })
    .await;
    for _ in 0..100 {
        download(server, &rrq(&[UEFI, "octet"]), 512, 0).await;
    }
    // Thirty at once and then one in ten seconds, if this test takes so long.
    let lines = said.count(&["boot step", "step=\"tftp\""]);
    assert!((1..=40).contains(&lines), "{lines} lines");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_dawdles_is_told_that_it_takes_too_long_and_gives_its_place_back() {
    let server = serve(Limits {
        transfers: 1,
        each: 1,
    })
    .await;
    let slow = client().await;
    let asked = rrq(&[BIOS, "octet", "blksize", "8"]);
    slow.send_to(&asked, server).await.unwrap();
    let begun = Instant::now();
    let mut last = Vec::new();
    let told = loop {
        let (packet, from) = receive(&slow).await;
        let number = match packet[1] {
            6 => [0, 0],
            3 => [packet[2], packet[3]],
            _ => break packet,
        };
        // Sent again, because it was not acknowledged yet.
        if packet == last {
            continue;
        }
        last = packet;
        sleep(Duration::from_secs(9)).await;
        slow.send_to(&[0, 4, number[0], number[1]], from).await.unwrap();
        assert!(begun.elapsed() < LONGEST * 2, "the transfer goes on and on");
    };
    assert_eq!(told[..4], [0, 5, 0, Code::NotDefined as u8]);
    assert!(begun.elapsed() > LONGEST);
    assert!(download(server, &rrq(&[UEFI, "octet"]), 512, 0).await == files().uefi);
}

#[test]
fn a_request_that_comes_twice_begins_one_transfer() {
    assert_eq!(again(true, false), Again::Ignore);
    assert_eq!(
        again(true, true),
        Again::Replace,
        "the machine was reset and uses the same port"
    );
    assert_eq!(
        again(false, false),
        Again::Replace,
        "first the size, then the file"
    );
}

#[test]
fn a_directory_without_the_files_says_which_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join(BIOS), "x").unwrap();
    let error = BootFiles::load(directory.path()).unwrap_err();
    assert!(error.to_string().ends_with(UEFI), "{error}");
}
