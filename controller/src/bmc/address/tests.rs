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

/// Lines `ADDRESS => MEANING`.
const TABLE: &str = include_str!("table.txt");

#[test]
fn addresses_say_what_upstream_takes_them_for() {
    let mut cases = 0;
    for line in TABLE
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with("# "))
    {
        let (address, expected) = line.split_once(" => ").unwrap();
        assert_eq!(told(address), expected, "{line}");
        cases += 1;
    }
    assert_eq!(cases, 88);
    assert_eq!(told("redfish://bmc\n.example.com"), "form");
}

#[test]
fn every_kind_of_redfish_has_a_driver_and_ipmi_has_none() {
    let redfish = Some(Driver::Redfish);
    let expected = [
        ("ipmi", None),
        ("libvirt", None),
        ("redfish", redfish),
        ("redfish-virtualmedia", redfish),
        ("redfish-uefihttp", redfish),
        ("idrac-redfish", redfish),
        ("idrac-virtualmedia", redfish),
        ("ilo5-redfish", redfish),
        ("ilo5-virtualmedia", redfish),
    ];
    assert_eq!(
        Scheme::ALL.map(|scheme| (scheme.name(), scheme.driver())),
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
