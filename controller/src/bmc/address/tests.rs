use proptest::prelude::*;

use super::*;

/// What an address comes to, in one line: scheme, transport, host, port, system, query; or the kind of error.
fn told(text: &str) -> String {
    match text.parse::<Address>() {
        Ok(address) => {
            let query: Vec<_> = address
                .query
                .iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            let words = [
                address.scheme.name(),
                &format!("{:?}", address.transport).to_lowercase(),
                &address.place.to_string(),
                &address.port.to_string(),
                address.system.as_deref().unwrap_or("-"),
                &query.join("&"),
            ];
            words.join(" ").trim_end().to_owned()
        }
        Err(AddressError::Empty) => "empty".to_owned(),
        Err(AddressError::Form) => "form".to_owned(),
        Err(AddressError::Scheme(name)) => format!("no driver {name}"),
        Err(AddressError::Host(name)) => format!("no host {name}"),
        Err(AddressError::Port(port)) => format!("no port {port}"),
    }
}

/// As the rules of the API server have it: `tests/tests/conform_validation` sends most of these to it.
const TABLE: &[(&str, &str)] = &[
    // IPMI, with and without its name.
    ("192.168.122.1", "ipmi ipmi 192.168.122.1 623 -"),
    ("192.168.122.1:6233", "ipmi ipmi 192.168.122.1 6233 -"),
    ("my.favoritebmc.com", "ipmi ipmi my.favoritebmc.com 623 -"),
    ("My.FavoriteBMC.com", "ipmi ipmi my.favoritebmc.com 623 -"),
    ("test-address", "ipmi ipmi test-address 623 -"),
    (
        "[fe80::fc33:62ff:fe83:8a76]:6233",
        "ipmi ipmi [fe80::fc33:62ff:fe83:8a76] 6233 -",
    ),
    ("[fe80::fc33:62ff:fe83:8a76]", "form"),
    (
        "[fe80::fc33:62ff:fe83:8a76]/",
        "ipmi ipmi [fe80::fc33:62ff:fe83:8a76] 623 -",
    ),
    ("ipmi:192.168.122.1", "ipmi ipmi 192.168.122.1 623 -"),
    ("ipmi:192.168.122.1:6233", "ipmi ipmi 192.168.122.1 6233 -"),
    ("ipmi://192.168.122.1", "ipmi ipmi 192.168.122.1 623 -"),
    ("ipmi://192.168.122.1:6233", "ipmi ipmi 192.168.122.1 6233 -"),
    ("IPMI://192.168.122.1", "ipmi ipmi 192.168.122.1 623 -"),
    (
        "ipmi://[fe80::fc33:62ff:fe83:8a76]",
        "ipmi ipmi [fe80::fc33:62ff:fe83:8a76] 623 -",
    ),
    (
        "ipmi://[fe80::fc33:62ff:fe83:8a76]:6233",
        "ipmi ipmi [fe80::fc33:62ff:fe83:8a76] 6233 -",
    ),
    (
        "ipmi://host-0.example.com.org:6223",
        "ipmi ipmi host-0.example.com.org 6223 -",
    ),
    (
        "ipmi://192.168.122.1?privilegelevel=OPERATOR",
        "ipmi ipmi 192.168.122.1 623 - privilegelevel=OPERATOR",
    ),
    (
        "ipmi://192.168.122.1:6233/?privilegelevel=OPERATOR&a=%20b&c",
        "ipmi ipmi 192.168.122.1 6233 - privilegelevel=OPERATOR&a= b&c=",
    ),
    (
        "libvirt://192.168.122.1:16509/",
        "libvirt ipmi 192.168.122.1 16509 -",
    ),
    (
        "libvirt://192.168.122.1:6233/?abc=def",
        "libvirt ipmi 192.168.122.1 6233 - abc=def",
    ),
    ("libvirt://127.0.1.1", "libvirt ipmi 127.0.1.1 623 -"),
    ("libvirt:127.0.1.1", "libvirt ipmi 127.0.1.1 623 -"),
    // Redfish: transports, ports, paths.
    ("redfish://192.168.122.1", "redfish https 192.168.122.1 443 -"),
    ("redfish:192.168.122.1", "redfish https 192.168.122.1 443 -"),
    (
        "redfish:192.168.122.1:8443/redfish/v1/Systems/1",
        "redfish https 192.168.122.1 8443 /redfish/v1/Systems/1",
    ),
    (
        "Redfish+HTTPS://bmc.example.com",
        "redfish https bmc.example.com 443 -",
    ),
    (
        "redfish+http://bmc.example.com",
        "redfish http bmc.example.com 80 -",
    ),
    (
        "redfish+http:bmc.example.com",
        "redfish http bmc.example.com 80 -",
    ),
    (
        "redfish+https://bmc.example.com:80",
        "redfish https bmc.example.com 80 -",
    ),
    (
        "redfish://bmc.example.com:",
        "redfish https bmc.example.com 443 -",
    ),
    (
        "redfish://bmc.example.com/",
        "redfish https bmc.example.com 443 -",
    ),
    (
        "redfish://bmc.example.com/redfish/v1",
        "redfish https bmc.example.com 443 -",
    ),
    (
        "redfish://bmc.example.com/redfish/v1/",
        "redfish https bmc.example.com 443 -",
    ),
    (
        "redfish://bmc.example.com/redfish/v1/Systems/1/",
        "redfish https bmc.example.com 443 /redfish/v1/Systems/1",
    ),
    (
        "redfish://bmc.example.com/redfish/v1/Systems/a b%20c#d",
        "redfish https bmc.example.com 443 /redfish/v1/Systems/a%20b%20c",
    ),
    ("redfish://bmc.example.com/redfish/v1/Systems/%zz", "form"),
    (
        "redfish://bmc.example.com/é",
        "redfish https bmc.example.com 443 /%C3%A9",
    ),
    (
        "redfish://bmc.example.com?a=b",
        "redfish https bmc.example.com 443 - a=b",
    ),
    (
        "redfish://bmc.example.com/s?a=b#c",
        "redfish https bmc.example.com 443 /s a=b",
    ),
    (
        "redfish://[fe80::fc33:62ff:fe83:8a76]:6233/redfish/v1/Systems/1",
        "redfish https [fe80::fc33:62ff:fe83:8a76] 6233 /redfish/v1/Systems/1",
    ),
    (
        "redfish:[2001:db8::1]/foo",
        "redfish https [2001:db8::1] 443 /foo",
    ),
    (
        "redfish://admin:secret@bmc.example.com",
        "redfish https bmc.example.com 443 -",
    ),
    ("redfish://a", "redfish https a 443 -"),
    (
        "redfish-virtualmedia://192.168.122.1",
        "redfish-virtualmedia https 192.168.122.1 443 -",
    ),
    (
        "redfish-virtualmedia+https://192.168.1.1/redfish/v1/Systems/1",
        "redfish-virtualmedia https 192.168.1.1 443 /redfish/v1/Systems/1",
    ),
    (
        "redfish-uefihttp+https://bmc.example.com/redfish/v1/Systems/1",
        "redfish-uefihttp https bmc.example.com 443 /redfish/v1/Systems/1",
    ),
    (
        "redfish-uefihttp+http://bmc.example.com",
        "redfish-uefihttp http bmc.example.com 80 -",
    ),
    (
        "idrac-redfish://192.168.122.1",
        "idrac-redfish https 192.168.122.1 443 -",
    ),
    (
        "idrac-virtualmedia+https://192.168.1.1/redfish/v1/Systems/System.Embedded.1",
        "idrac-virtualmedia https 192.168.1.1 443 /redfish/v1/Systems/System.Embedded.1",
    ),
    (
        "idrac-virtualmedia+http://192.168.1.1",
        "idrac-virtualmedia http 192.168.1.1 80 -",
    ),
    (
        "ilo5-redfish://bmc.example.com",
        "ilo5-redfish https bmc.example.com 443 -",
    ),
    (
        "ilo5-virtualmedia+http://bmc.example.com",
        "ilo5-virtualmedia http bmc.example.com 80 -",
    ),
    // Drivers that there are not.
    ("test:127.0.1.1", "no driver test"),
    ("ipm:host.example.com:6223", "no driver ipm"),
    ("bmc:623", "no driver bmc"),
    ("fe80::1", "no driver fe80"),
    ("ilo4://bmc.example.com", "no driver ilo4"),
    ("irmc://bmc.example.com", "no driver irmc"),
    ("ipmi+https://bmc.example.com", "no driver ipmi+https"),
    ("redfish+ftp://bmc.example.com", "no driver redfish+ftp"),
    (
        "redfish+http+https://bmc.example.com",
        "no driver redfish+http+https",
    ),
    ("idrac+http://bmc.example.com", "no driver idrac+http"),
    // Hosts that are none.
    ("redfish:///redfish/v1/Systems/1", "no host "),
    ("redfish:/redfish/v1/Systems/1", "no host "),
    ("redfish:host/x?y=a://b", "no host "),
    ("ipmi://", "no host "),
    ("ipmi://-host.example.com.org", "no host -host.example.com.org"),
    ("my-.examplehost.com", "no host my-.examplehost.com"),
    ("ipmi://host+1.example.com.org", "no host host+1.example.com.org"),
    ("ipmi://a..b", "no host a..b"),
    ("ipmi://a.", "no host a."),
    ("ipmi://host_1", "no host host_1"),
    (
        "[fe80::fc33:62ff:fe33:8xff]:6223",
        "no host fe80::fc33:62ff:fe33:8xff",
    ),
    ("ipmi://[fe80::1%25eth0]", "no host fe80::1%25eth0"),
    ("ipmi://[::ffff:192.0.2.1]", "no host ::ffff:192.0.2.1"),
    ("ipmi://[192.0.2.1]", "no host 192.0.2.1"),
    ("redfish://fe80::1", "no host fe80:"),
    ("[@]host.example.com", "no host ]host.example.com"),
    ("ipmi://[fe80::1]x", "no host [fe80::1]x"),
    // Ports that are none.
    ("redfish://bmc.example.com:99999", "no port 99999"),
    ("redfish://bmc.example.com:000443", "no port 000443"),
    ("redfish://bmc.example.com:https", "no port https"),
    ("192.168.122.1:-1", "no port -1"),
    // No URL at all.
    ("", "empty"),
    ("://bmc.example.com", "form"),
    ("1redfish://bmc.example.com", "form"),
    ("a b://c", "form"),
    ("redfish://bmc\n.example.com", "form"),
    (" ", "no host "),
];

#[test]
fn addresses_say_what_upstream_takes_them_for() {
    assert!(TABLE.len() >= 85);
    for (text, expected) in TABLE {
        assert_eq!(told(text), *expected, "{text}");
    }
}

#[test]
fn every_scheme_has_upstreams_capabilities() {
    // As upstream's table: MAC needed, fast inspection, Secure Boot, hardware RAID, ISO; and whether there is a driver here.
    let expected = [
        ("ipmi", "-----", false),
        ("libvirt", "m----", false),
        ("redfish", "-fsr-", true),
        ("redfish-virtualmedia", "-fsri", true),
        ("redfish-uefihttp", "-fsri", true),
        ("idrac-redfish", "-fsr-", true),
        ("idrac-virtualmedia", "-fsri", true),
        ("ilo5-redfish", "-fsr-", true),
        ("ilo5-virtualmedia", "-fsri", true),
    ];
    let seen = Scheme::ALL.map(|scheme| {
        let can = scheme.capabilities();
        let marks = [
            (can.needs_mac, 'm'),
            (can.fast_inspection, 'f'),
            (can.secure_boot, 's'),
            (can.hardware_raid, 'r'),
            (can.iso_ramdisk, 'i'),
        ];
        let marks: String = marks
            .map(|(has, mark)| if has { mark } else { '-' })
            .iter()
            .collect();
        (scheme.name(), marks, can.driver.is_some())
    });
    assert_eq!(
        seen.each_ref()
            .map(|(name, marks, driver)| (*name, marks.as_str(), *driver)),
        expected
    );
}

#[test]
fn a_scheme_without_a_driver_is_refused_with_its_name() {
    let address: Address = "ipmi://192.0.2.1".parse().unwrap();
    let refused = address.driver().unwrap_err().to_string();
    assert!(
        refused.contains("ipmi") && refused.contains("no driver"),
        "{refused}"
    );
    let address: Address = "idrac-virtualmedia://192.0.2.1".parse().unwrap();
    assert_eq!(address.driver(), Ok(Driver::Redfish));
}

#[test]
fn an_address_never_shows_credentials() {
    let address: Address = "redfish://admin:canary@192.0.2.1:8443/redfish/v1/Systems/1?p=canary"
        .parse()
        .unwrap();
    assert_eq!(
        address.to_string(),
        "redfish://192.0.2.1:8443/redfish/v1/Systems/1"
    );
    let wrong = "redfish://admin:canary@-".parse::<Address>().unwrap_err();
    assert!(!format!("{wrong} {wrong:?}").contains("canary"));
}

proptest! {
    #[test]
    fn any_text_is_an_address_or_an_error(text in ".{0,80}") {
        let _ = text.parse::<Address>();
    }

    #[test]
    fn what_is_shown_of_an_address_is_that_address(
        scheme in proptest::sample::select(&Scheme::ALL[2..]),
        plain in any::<bool>(),
        place in "([a-z0-9]{1,8}[.]){0,2}[a-z0-9]{1,8}|\\[2001:db8::[1-9a-f]\\]",
        port in any::<u16>(),
        path in "(/[A-Za-z0-9 .%é-]{0,6}){0,3}",
    ) {
        let text = format!("{}{}://{place}:{port}{}", scheme.name(), if plain { "+http" } else { "" }, path.replace('%', "%41"));
        let once: Address = text.parse().unwrap();
        let again: Address = once.to_string().parse().unwrap();
        prop_assert_eq!(&once, &again);
        let target = once.system.unwrap_or_default();
        prop_assert!(target.bytes().all(|byte| byte.is_ascii_graphic()));
    }
}
