use dhcproto::{
    Decodable, Decoder,
    v4::{self, DhcpOption, OptionCode},
};
use proptest::prelude::*;

use super::*;
use crate::boot::dhcp::corpus::{all, packet, request};

const UUID: &str = "4c4c4544-0035-4b10-8032-cac04f583933";

#[test]
fn what_firmware_says_of_itself_is_read() {
    let ipxe = request("ipxe-rom-bios-discover");
    assert!(ipxe.ipxe);
    assert_eq!(ipxe.features, [0x11, 0x13, 0x15, 0x17, 0x18, 0x19, 0x21, 0x22]);
    assert_eq!(ipxe.architectures, [0]);
    assert_eq!(ipxe.max_size, Some(1472));
    assert_eq!(ipxe.mac.to_string(), "52:54:00:12:34:56");
    assert_eq!(ipxe.uuid().as_deref(), Some(UUID));

    let ovmf = request("ovmf-pxe-discover");
    assert!(!ovmf.ipxe);
    assert_eq!(ovmf.features, [0_u8; 0]);
    assert_eq!(ovmf.architectures, [7]);
    assert_eq!(ovmf.uuid().as_deref(), Some(UUID));

    let http = request("ovmf-http-discover");
    assert_eq!(http.architectures, [16]);
    assert!(http.class.starts_with(b"HTTPClient"));

    let system = request("networkd-init-reboot");
    assert_eq!(system.wanted, Some(Ipv4Addr::new(10, 77, 0, 150)));
    assert_eq!(system.server, None);
    assert_eq!(system.uuid(), None);
}

#[test]
fn bootp_and_other_hardware_are_refused() {
    let with = |at: usize, value: u8| {
        let mut bytes = packet("ovmf-pxe-discover");
        bytes[at] = value;
        Request::parse(&bytes)
    };
    assert_eq!(Request::parse(&packet("bootp")), Err(Malformed::Type));
    assert_eq!(with(0, 2), Err(Malformed::NotRequest));
    assert_eq!(with(1, 32), Err(Malformed::Hardware));
    assert_eq!(with(2, 255), Err(Malformed::Hardware));
    assert_eq!(with(28, 0x01), Err(Malformed::Hardware));
    assert_eq!(with(236, 0), Err(Malformed::Cookie));
    assert_eq!(with(242, 5), Err(Malformed::Type));
    assert_eq!(Request::parse(&[1; 239]), Err(Malformed::Short));
}

#[test]
fn a_host_name_of_junk_hides_nothing_behind_it() {
    let request = request("utf8-junk-host-name");
    assert_eq!(request.architectures, [7]);
    assert_eq!(request.host_name.as_deref(), Some("\u{fffd} [31mbmc\u{fffd}"));
}

#[test]
fn both_forms_of_ipxes_user_class_are_known() {
    let is_ipxe = |class: &[u8]| is_of(class, b"iPXE");
    assert!(is_ipxe(b"iPXE"));
    assert!(is_ipxe(b"\x04iPXE"));
    assert!(is_ipxe(b"\x03abc\x04iPXE"));
    for other in [&b""[..], b"PXE", b"\x05iPXE", b"\x04iPX", b"\xff", b"\x00\x00"] {
        assert!(!is_ipxe(other), "{other:?}");
    }
}

#[test]
fn gpxe_is_not_ipxe_and_gets_what_firmware_gets() {
    let with = |options: &[u8]| {
        let mut bytes = packet("ovmf-pxe-discover");
        bytes.splice(240..240, options.iter().copied());
        Request::parse(&bytes).unwrap().ipxe
    };
    assert!(with(&[175, 1, 0]));
    assert!(!with(&[175, 1, 0, 77, 4, b'g', b'P', b'X', b'E']));
    assert!(with(&[175, 1, 0, 77, 3, b'l', b'a', b'b']));
}

#[test]
fn features_that_cannot_be_read_are_as_good_as_none() {
    assert_eq!(
        features(&[0x13, 1, 1, 0, 0xb0, 1, 1, 0x0f, 1, 1, 0x80, 1, 1, 255, 0x15]),
        [0x13]
    );
    assert_eq!(features(&[0x13, 1, 1, 0x15, 2, 1]), [0_u8; 0]);
}

#[test]
fn a_client_identifier_is_given_back() {
    let mut bytes = packet("ovmf-pxe-discover");
    bytes.splice(240..240, [61, 3, 0, 1, 255]);
    let request = Request::parse(&bytes).unwrap();
    let reply = a_reply("snponly.efi").encode(&request).unwrap();
    assert_eq!(Options::read(&reply).unwrap().get(61), Some(&[0, 1, 255][..]));
}

#[test]
fn an_architecture_only_in_the_class_is_found() {
    assert_eq!(architectures(None, b"PXEClient:Arch:00007:UNDI:003016"), [7]);
    assert_eq!(architectures(None, b"PXEClient:Arch:"), [0_u16; 0]);
    assert_eq!(architectures(Some(&[0, 7, 0, 16, 1]), b""), [7, 16]);
}

#[test]
fn overloaded_and_split_options_are_joined() {
    let mut bytes = packet("dhclient-discover");
    bytes.truncate(240);
    // File holds the second half of option 60, sname option 93.
    bytes[108..116].copy_from_slice(&[60, 4, b'i', b'e', b'n', b't', 255, 0]);
    bytes[44..49].copy_from_slice(&[93, 2, 0, 7, 255]);
    bytes.extend([53, 1, 1, 52, 1, 3, 60, 5, b'P', b'X', b'E', b'C', b'l', 255]);
    let request = Request::parse(&bytes).unwrap();
    assert_eq!(request.class, b"PXEClient");
    assert_eq!(request.architectures, [7]);
}

#[test]
fn a_placeholder_uuid_is_none() {
    let mut request = request("ovmf-pxe-discover");
    request.machine_id = Some([&[0][..], &[0xff; 16]].concat());
    assert_eq!(request.uuid(), None);
    request.machine_id = Some(vec![1; 17]);
    assert_eq!(request.uuid(), None, "type 1 is no UUID");
}

fn a_reply(file: &str) -> Reply {
    Reply {
        kind: Kind::Offer,
        yiaddr: Ipv4Addr::new(10, 77, 0, 150),
        siaddr: Ipv4Addr::new(10, 77, 0, 1),
        file: Some(file.to_owned()),
        required: vec![(54, vec![10, 77, 0, 1]), (67, file.as_bytes().to_vec())],
        optional: vec![(6, vec![8; 64]), (15, vec![b'a'; 200]), (42, vec![9; 16])],
    }
}

#[test]
fn an_independent_decoder_reads_the_reply() {
    let request = request("relayed-discover");
    let bytes = a_reply("snponly.efi").encode(&request).unwrap();
    let message = v4::Message::decode(&mut Decoder::new(&bytes)).unwrap();
    assert_eq!(message.opcode(), v4::Opcode::BootReply);
    assert_eq!(message.xid(), request.xid);
    assert_eq!(message.yiaddr(), Ipv4Addr::new(10, 77, 0, 150));
    assert_eq!(message.siaddr(), Ipv4Addr::new(10, 77, 0, 1));
    assert_eq!(message.giaddr(), request.giaddr);
    assert_eq!(message.chaddr(), request.mac.0);
    assert_eq!(message.fname(), Some(&b"snponly.efi\0"[..]));
    assert_eq!(message.opts().msg_type(), Some(v4::MessageType::Offer));
    assert_eq!(
        message.opts().get(OptionCode::ServerIdentifier),
        Some(&DhcpOption::ServerIdentifier(Ipv4Addr::new(10, 77, 0, 1)))
    );
    assert_eq!(
        message.opts().get(OptionCode::BootfileName),
        Some(&DhcpOption::BootfileName(b"snponly.efi".to_vec()))
    );
}

#[test]
fn relay_information_comes_back_as_it_was_and_last() {
    let request = request("relayed-discover");
    let bytes = a_reply("snponly.efi").encode(&request).unwrap();
    let expected = [
        &[82, 18][..],
        request.relay_information.as_deref().unwrap(),
        &[255],
    ]
    .concat();
    assert!(bytes.windows(expected.len()).any(|window| window == expected));
}

#[test]
fn a_long_url_stands_in_the_option_alone() {
    let url = "h".repeat(200);
    let bytes = a_reply(&url).encode(&request("ovmf-http-discover")).unwrap();
    assert_eq!(bytes[FILE], [0; 128]);
    let options = Options::read(&bytes).unwrap();
    assert_eq!(options.get(67), Some(url.as_bytes()));
}

#[test]
fn what_does_not_fit_is_left_out_and_the_boot_file_never_is() {
    let mut request = request("ovmf-http-discover");
    request.max_size = None;
    let url = "h".repeat(200);
    let bytes = a_reply(&url).encode(&request).unwrap();
    assert!(bytes.len() <= 576 - 28);
    let options = Options::read(&bytes).unwrap();
    assert_eq!(options.get(67), Some(url.as_bytes()));
    assert_eq!(options.get(15), None);
    assert_eq!(options.get(42).map(<[u8]>::len), Some(16));
    assert_eq!(a_reply(&"h".repeat(256)).encode(&request), None);
}

fn any_request() -> impl Strategy<Value = Request> {
    let relay = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..600));
    (proptest::sample::select(all()), any::<Option<u16>>(), relay).prop_filter_map(
        "a request",
        |((_, bytes), max_size, relay_information)| {
            Request::parse(&bytes).ok().map(|request| Request {
                max_size,
                relay_information,
                ..request
            })
        },
    )
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        let _ = Request::parse(&bytes);
    }

    #[test]
    fn damaged_packets_never_panic(
        (_, bytes) in proptest::sample::select(all()),
        cut in any::<proptest::sample::Index>(),
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..8),
        tail in proptest::collection::vec(any::<u8>(), 0..1500),
    ) {
        let mut bytes = bytes;
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let _ = Request::parse(&bytes[..cut.index(bytes.len())]);
        bytes.pop();
        bytes.extend(tail);
        if let Ok(request) = Request::parse(&bytes) {
            let _ = request.uuid();
            prop_assert!(request.mac.is_unicast());
        }
    }

    #[test]
    fn random_options_are_read_or_refused(options in proptest::collection::vec(any::<u8>(), 0..1200)) {
        let mut bytes = packet("dhclient-discover");
        bytes.truncate(243);
        bytes.extend(options);
        if let Ok(request) = Request::parse(&bytes) {
            let _ = request.uuid();
        }
    }

    #[test]
    fn a_reply_is_never_longer_than_its_client_takes(
        request in any_request(),
        file in "[a-z]{0,300}",
        mut optional in proptest::collection::vec((1_u8..255, proptest::collection::vec(any::<u8>(), 0..300)), 0..8),
    ) {
        // No reply of ours says that its file name holds options (RFC 2132, 9.3).
        optional.retain(|(code, _)| *code != 52);
        let reply = Reply { optional, ..a_reply(&file) };
        if let Some(bytes) = reply.encode(&request) {
            let allowed = usize::from(request.max_size.unwrap_or(576)).clamp(576, 1500) - 28;
            let relay = Options::read(&bytes).unwrap().get(82).map_or(0, |value| value.len() + 2 * value.len().div_ceil(255));
            // The optional ones may hold a made-up option 82, too; it only makes the bound looser.
            prop_assert!(bytes.len() <= allowed + relay, "{} bytes, {allowed} allowed", bytes.len());
            prop_assert!(bytes.len() <= 1472);
            prop_assert!(bytes.len() >= 300);
        }
    }
}
