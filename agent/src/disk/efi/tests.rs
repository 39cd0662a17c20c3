use proptest::prelude::*;

use super::*;
use crate::sys::tree::Tree;

const PARTITION: SystemPartition = SystemPartition {
    number: 1,
    first: 2048,
    blocks: 4096,
    signature: Signature::Gpt(Guid([7; 16])),
};

/// An entry whose path has one node.
fn entry(attributes: u32, label: &str, kind: u8, subtype: u8) -> Vec<u8> {
    let nodes = [kind, subtype, 5, 0, 9, 0x7f, 0xff, 4, 0];
    [
        &attributes.to_le_bytes()[..],
        &length(nodes.len()),
        &wide(label),
        &nodes,
    ]
    .concat()
}

fn network() -> Vec<u8> {
    entry(1, "UEFI PXEv4", 3, 11)
}

fn disk() -> Vec<u8> {
    entry(1, "debian", 4, 1)
}

fn menu() -> Vec<u8> {
    entry(0x109, "UiApp", 4, 6)
}

fn variables(entries: &[Vec<u8>], order: &[u16], current: u16) -> Variables {
    Variables {
        entries: (0..).zip(entries.iter().cloned()).collect(),
        order: order.to_vec(),
        current: Some(current),
    }
}

#[test]
fn the_network_keeps_the_first_word_if_the_machine_came_in_by_it() {
    let option = load_option(&PARTITION, "\\EFI\\BOOT\\BOOTX64.EFI");
    let order = |entries: &[Vec<u8>], order: &[u16], current| {
        plan(&variables(entries, order, current), &option).unwrap().order
    };
    let all = [menu(), network(), network(), disk()];
    assert_eq!(order(&all, &[0, 1, 2, 3], 2), [0, 1, 2, 4, 3]);
    assert_eq!(order(&all, &[1, 0, 3], 1), [1, 4, 0, 3]);
    assert_eq!(
        order(&all, &[3, 1], 1),
        [4, 3, 1],
        "a disk came first: it was told to use the network once"
    );
    assert_eq!(order(&all, &[1, 3], 3), [4, 1, 3], "it came in by its disk");
    assert_eq!(
        order(&all, &[1, 3], 9),
        [4, 1, 3],
        "it came in by an entry that is gone"
    );
    assert_eq!(order(&[], &[], 0), [0]);
}

#[test]
fn a_disk_that_comes_before_the_network_stays_there_with_an_older_entry_of_ours() {
    let old = load_option(&PARTITION, "\\old.efi");
    let new = load_option(&PARTITION, "\\new.efi");
    let order = |entries: &[Vec<u8>], order: &[u16], current| {
        plan(&variables(entries, order, current), &new).unwrap().order
    };
    let all = [network(), old, network(), disk()];
    assert_eq!(
        order(&all, &[1, 0], 0),
        [1, 0],
        "it was told to use the network once"
    );
    assert_eq!(order(&all, &[0, 1], 0), [0, 1]);
    assert_eq!(order(&all, &[0, 2, 1, 3], 2), [0, 2, 1, 3]);
    assert_eq!(
        order(&all, &[0, 1, 2], 2),
        [1, 0, 2],
        "a disk came before the entry that brought it"
    );
    let passed_over = [network(), entry(0, LABEL, 4, 1)];
    assert_eq!(
        order(&passed_over, &[1, 0], 0),
        [0, 1],
        "firmware passed over ours, and the network was the first"
    );
}

/// Dell's network entries are of vendor hardware, with a GUID and nothing else.
#[test]
fn an_entry_of_the_vendors_that_brought_the_ramdisk_is_one_of_the_network() {
    let vendor = |guid: u8| {
        let nodes = [&[1, 4, 20, 0][..], &[guid; 16], &[0x7f, 0xff, 4, 0]].concat();
        let head = [
            &1_u32.to_le_bytes()[..],
            &length(nodes.len()),
            &wide("PXE Device 1"),
        ]
        .concat();
        [head, nodes].concat()
    };
    let option = load_option(&PARTITION, "\\EFI\\BOOT\\BOOTX64.EFI");
    let all = [vendor(3), vendor(3), vendor(9), disk()];
    let order = |order: &[u16], current| plan(&variables(&all, order, current), &option).unwrap().order;
    assert_eq!(order(&[0, 1, 3], 0), [0, 1, 4, 3]);
    assert_eq!(
        order(&[0, 2, 3], 0),
        [0, 4, 2, 3],
        "another thing of the vendor's"
    );
    assert_eq!(order(&[3, 0], 0), [4, 3, 0], "a disk came first");
    assert_eq!(order(&[0, 3], 3), [4, 0, 3], "it came in by its disk");
}

#[test]
fn older_entries_of_ours_are_replaced_and_others_stay() {
    let old = load_option(&PARTITION, "\\EFI\\old.efi");
    let new = load_option(&PARTITION, "\\EFI\\new.efi");
    let before = variables(&[disk(), old.clone(), old.clone()], &[1, 0, 2], 0);
    let planned = plan(&before, &new).unwrap();
    assert_eq!(
        (planned.number, planned.is_there, &planned.remove[..]),
        (1, false, &[2][..])
    );
    assert_eq!(planned.order, [1, 0]);
    assert!(plan(&before, &old).unwrap().is_there);
}

#[test]
fn an_entry_says_what_it_was_made_of() {
    let option = load_option(&PARTITION, "\\EFI\\BOOT\\BOOTX64.EFI");
    let parsed = LoadOption::parse(&option).unwrap();
    assert_eq!((parsed.attributes, parsed.label.as_str()), (1, LABEL));
    assert!(!parsed.is_network() && !parsed.is_passed_over());
    // UEFI specification 2.10, table 10-52: HD(1,GPT,…,0x800,0x1000).
    assert_eq!(
        parsed.nodes[..24],
        [
            4, 1, 42, 0, 1, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0
        ]
    );
    assert_eq!(parsed.nodes[40..42], [2, 2]);
    assert_eq!(parsed.nodes[42..48], [4, 4, 48, 0, b'\\', 0]);
    assert!(parsed.nodes.ends_with(&[b'I', 0, 0, 0, 0x7f, 0xff, 4, 0]));
}

#[test]
fn variables_are_written_below_the_root_and_again_without_a_change() {
    let file = |name: &str| format!("sys/firmware/efi/efivars/{name}-{GLOBAL}");
    let with = |value: &[u8]| [&ATTRIBUTES[..], value].concat();
    let tree = Tree::new()
        .file(&file("Boot0000"), with(&network()))
        .file(
            &file("Boot0007"),
            with(&load_option(&PARTITION, "a very long path that is cut off")),
        )
        .file(&file("BootOrder"), with(&[0, 0, 7, 0, 3, 0]))
        .file(&file("BootCurrent"), with(&[0, 0]))
        .file(
            "sys/firmware/efi/efivars/Boot0001-00000000-0000-0000-0000-000000000000",
            "",
        );
    let root = tree.root();
    assert!(root.is_uefi() && !Tree::new().root().is_uefi());
    let option = load_option(&PARTITION, "\\x");
    for _ in 0..2 {
        assert_eq!(enter(&root, &option).unwrap(), 7);
        assert_eq!(fs::read(root.at(file("Boot0007"))).unwrap(), with(&option));
        assert_eq!(
            fs::read(root.at(file("BootOrder"))).unwrap(),
            with(&[0, 0, 7, 0, 3, 0])
        );
    }
    assert!(!root.at(file("BootNext")).exists());
}

#[test]
fn an_entry_that_cannot_be_read_keeps_its_number_and_no_other_from_being_made() {
    let file = |name: &str| format!("sys/firmware/efi/efivars/{name}-{GLOBAL}");
    let with = |value: &[u8]| [&ATTRIBUTES[..], value].concat();
    let tree = Tree::new()
        .directory(&file("Boot0000"))
        .file(&file("Boot0001"), with(&network()))
        .file(&file("BootOrder"), with(&[0, 0, 1, 0]))
        .file(&file("BootCurrent"), with(&[1, 0]));
    let root = tree.root();
    let option = load_option(&PARTITION, "\\x");
    for _ in 0..2 {
        assert_eq!(enter(&root, &option).unwrap(), 2);
        assert!(root.at(file("Boot0000")).is_dir());
        assert_eq!(fs::read(root.at(file("Boot0002"))).unwrap(), with(&option));
        assert_eq!(
            fs::read(root.at(file("BootOrder"))).unwrap(),
            with(&[0, 0, 1, 0, 2, 0])
        );
    }
    let tree = tree.directory(&file("BootOrder"));
    assert!(matches!(enter(&tree.root(), &option), Err(EfiError::Read { .. })));
}

#[test]
fn without_variables_the_entry_fails() {
    let root = Tree::new().directory("sys/firmware/efi").root().clone();
    assert!(matches!(enter(&root, &[]), Err(EfiError::Read { .. })));
}

proptest! {
    #[test]
    fn arbitrary_entries_never_panic_and_ours_is_in_the_order_once(
        entries in prop::collection::btree_map(any::<u16>(), prop::collection::vec(any::<u8>(), 0..64), 0..8),
        order: Vec<u16>, current: Option<u16>,
    ) {
        let option = load_option(&PARTITION, "\\x");
        let planned = plan(&Variables { entries, order, current }, &option).unwrap();
        prop_assert_eq!(planned.order.iter().filter(|number| **number == planned.number).count(), 1);
    }
}
