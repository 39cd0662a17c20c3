use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::boot::{
    decide::{File, Grant, reply},
    dhcp::{corpus::request, fixtures::a_net},
};

const NOW: Duration = Duration::from_secs(50);
const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);

/// What a server at `own` sends to a client.
fn answer(own: [u8; 4], mode: DhcpMode, file: &File, grant: Grant) -> Answer {
    let mut net = a_net(mode);
    net.own = own.into();
    let client = request("ovmf-pxe-discover");
    let bytes = reply(&client, &net, file, grant).encode(&client).unwrap();
    Answer::read(&bytes, own.into(), MAC).unwrap()
}

fn a_lease() -> Grant {
    Grant::Offer(Ipv4Addr::new(10, 77, 0, 150))
}

#[test]
fn a_second_dhcp_server_is_reported_once_and_forgotten_when_quiet() {
    let net = a_net(DhcpMode::Server);
    let mut watch = Watch::default();
    let other = answer([10, 77, 0, 2], DhcpMode::Server, &File::None, a_lease());
    let found = watch.hear(&other, &net, NOW).unwrap();
    assert_eq!(
        (found.server, found.what),
        (Ipv4Addr::new(10, 77, 0, 2), What::Dhcp)
    );
    assert_eq!(watch.hear(&other, &net, NOW), None);
    // Who forges answers has a new address each time: that is no news, and nothing is written for it.
    let present = watch.present(NOW);
    let forged = Answer {
        mac: Mac([2, 0, 0, 0, 0, 0x77]),
        ..other.clone()
    };
    assert_eq!(watch.hear(&forged, &net, NOW), None);
    assert_eq!(watch.present(NOW), present);
    assert_eq!(watch.present(NOW + QUIET - Duration::from_secs(1)), [found]);
    assert_eq!(watch.present(NOW + QUIET), []);
}

#[test]
fn beside_a_proxy_only_a_second_boot_file_counts() {
    let net = a_net(DhcpMode::Proxy);
    let mut watch = Watch::default();
    let plain = answer([10, 77, 0, 2], DhcpMode::Server, &File::None, a_lease());
    assert_eq!(watch.hear(&plain, &net, NOW), None);
    let boots = answer(
        [10, 77, 0, 2],
        DhcpMode::Server,
        &File::Tftp("pxelinux.0"),
        a_lease(),
    );
    assert_eq!(watch.hear(&boots, &net, NOW).unwrap().what, What::Boot);
    let proxy = answer(
        [10, 77, 0, 3],
        DhcpMode::Proxy,
        &File::Tftp("x"),
        Grant::ProxyOffer,
    );
    assert_eq!(watch.hear(&proxy, &net, NOW).unwrap().what, What::Boot);
}

#[test]
fn we_and_our_replicas_are_no_strangers() {
    let mut net = a_net(DhcpMode::Server);
    net.agent_endpoints.push("https://10.77.0.5:8443".to_owned());
    for own in [[10, 77, 0, 1], [10, 77, 0, 5]] {
        let ours = answer(own, DhcpMode::Server, &File::None, a_lease());
        assert_eq!(Watch::default().hear(&ours, &net, NOW), None);
    }
}

#[test]
fn who_forges_servers_is_not_remembered_without_end() {
    let net = a_net(DhcpMode::Server);
    let mut watch = Watch::default();
    for last in 2..=200 {
        watch.hear(
            &answer([10, 77, 0, last], DhcpMode::Server, &File::None, a_lease()),
            &net,
            NOW,
        );
    }
    assert_eq!(watch.present(NOW).len(), MAX);
}

proptest! {
    #[test]
    fn random_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..600), shaped: bool) {
        if shaped && bytes.len() > 240 {
            bytes[0] = 2;
            bytes[236..240].copy_from_slice(&[99, 130, 83, 99]);
        }
        let _ = Answer::read(&bytes, Ipv4Addr::UNSPECIFIED, MAC);
    }
}
