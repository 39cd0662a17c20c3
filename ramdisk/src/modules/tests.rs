use super::*;
use crate::elf::tests::object;

fn ko(modinfo: &str) -> Vec<u8> {
    object(&[(".text", b"code"), (".modinfo", modinfo.as_bytes())])
}

fn catalogue(files: &[(&str, &str)]) -> Catalogue {
    Catalogue::index(
        files
            .iter()
            .map(|(path, info)| (format!("kernel/{path}"), ko(info))),
    )
    .unwrap()
}

fn closure<'a>(catalogue: &'a Catalogue, seeds: &[&str]) -> Result<Set<'a>, ModulesError> {
    catalogue.closure(seeds.iter().map(|&seed| seed.to_owned()))
}

/// A diamond: d needs b and c, which both need a.
const DIAMOND: &[(&str, &str)] = &[
    ("d.ko", "depends=b,c\0alias=pci:v1*\0firmware=d/*.bin\0"),
    ("x/c.ko", "depends=a\0softdep=pre: sum post: nothing\0"),
    ("x/b-b.ko", "alias=unused\0"),
    ("b.ko", "depends=a\0"),
    ("a.ko", "depends=\0"),
    ("sum-intel.ko", "alias=sum\0alias=crypto-sum\0"),
    ("sum_generic.ko", "alias=sum\0"),
];

#[test]
fn dependencies_are_listed_to_be_loaded_from_right_to_left() {
    let catalogue = catalogue(DIAMOND);
    let set = closure(&catalogue, &["d"]).unwrap();
    let table = set.dep_table().unwrap();
    assert!(
        table.contains("kernel/d.ko: kernel/x/c.ko kernel/b.ko kernel/a.ko\n"),
        "{table}"
    );
    assert!(table.contains("kernel/a.ko:\n"), "{table}");
    for line in table.lines() {
        let (module, needed) = line.split_once(':').unwrap();
        let order: Vec<_> = needed.split_whitespace().rev().chain([module]).collect();
        for (at, path) in order.iter().enumerate() {
            for needed in &catalogue.get(&name_of(path)).unwrap().info.depends {
                let needed = &catalogue.get(needed).unwrap().path.as_str();
                assert!(order[..at].contains(needed), "{path} before {needed} in {line}");
            }
        }
    }
}

#[test]
fn optional_companions_come_along_by_alias_and_absent_ones_do_no_harm() {
    let catalogue = catalogue(DIAMOND);
    let set = closure(&catalogue, &["d"]).unwrap();
    let names: Vec<_> = set.iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["a", "b", "c", "d", "sum_generic", "sum_intel"]);
    assert_eq!(set.softdep_table(), "softdep c pre: sum post: nothing\n");
}

#[test]
fn what_the_kernel_would_ask_modprobe_for_is_a_soft_dependency_where_it_is_there() {
    let catalogue = catalogue(&[
        ("mlx4_core.ko", "softdep=pre: sum\0"),
        ("mlx4_en.ko", "depends=mlx4_core\0"),
        ("tg3.ko", "depends=\0"),
        ("broadcom.ko", "depends=\0"),
    ]);
    let set = closure(&catalogue, &["mlx4_en", "tg3"]).unwrap();
    let expected = "softdep mlx4_core pre: sum\nsoftdep mlx4_core post: mlx4_en\n";
    assert_eq!(set.softdep_table(), expected);
    let set = closure(&catalogue, &["tg3", "broadcom"]).unwrap();
    assert_eq!(set.softdep_table(), "softdep tg3 pre: broadcom\n");
}

#[test]
fn tables_name_only_what_is_included() {
    let catalogue = catalogue(DIAMOND);
    let set = closure(&catalogue, &["d"]).unwrap();
    let expected =
        "alias pci:v1* d\nalias sum sum_generic\nalias sum sum_intel\nalias crypto-sum sum_intel\n";
    assert_eq!(set.alias_table(), expected);
    assert_eq!(
        set.firmware(),
        BTreeMap::from([("d".to_owned(), vec!["d/*.bin".to_owned()])])
    );
}

#[test]
fn a_missing_dependency_is_an_error_that_names_it() {
    let catalogue = catalogue(&[("d.ko", "depends=gone\0")]);
    let error = closure(&catalogue, &["d"]).unwrap_err();
    assert!(
        matches!(&error, ModulesError::Missing { module, missing } if module == "d" && missing == "gone")
    );
    assert!(error.to_string().contains("gone") && error.to_string().contains('d'));
    assert!(matches!(closure(&catalogue, &["e"]), Err(ModulesError::Unknown { name }) if name == "e"));
}

#[test]
fn modules_that_need_each_other_are_an_error() {
    let catalogue = catalogue(&[
        ("a.ko", "depends=b\0"),
        ("b.ko", "depends=c\0"),
        ("c.ko", "depends=b\0"),
    ]);
    let Err(ModulesError::Cycle { cycle }) = closure(&catalogue, &["a"]) else {
        panic!("no cycle found")
    };
    assert_eq!(cycle, ["b", "c"]);
}

#[test]
fn built_in_drivers_satisfy_and_are_not_listed() {
    let files = [
        (
            "modules.builtin".to_owned(),
            b"kernel/drivers/nvme/host/nvme-core.ko\nkernel/x/nvme.ko\n".to_vec(),
        ),
        ("kernel/fabrics.ko".to_owned(), ko("depends=nvme-core\0")),
        ("modules.order".to_owned(), b"kernel/fabrics.ko\n".to_vec()),
    ];
    let catalogue = Catalogue::index(files).unwrap();
    let set = closure(&catalogue, &["fabrics", "nvme"]).unwrap();
    assert_eq!(set.dep_table().unwrap(), "kernel/fabrics.ko:\n");
}

#[test]
fn compressed_modules_read_as_plain_ones() {
    let plain = ko("depends=\0alias=x\0");
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gz, &plain).unwrap();
    let packed = [
        (
            "kernel/a.ko.zst".to_owned(),
            zstd::encode_all(plain.as_slice(), 1).unwrap(),
        ),
        ("kernel/b.ko.gz".to_owned(), gz.finish().unwrap()),
    ];
    let catalogue = Catalogue::index(packed).unwrap();
    let paths: Vec<_> = catalogue.iter().map(|(_, module)| module.path.as_str()).collect();
    assert_eq!(paths, ["kernel/a.ko", "kernel/b.ko"]);
    assert!(catalogue.iter().all(|(_, module)| module.object == plain));
    let broken = [("kernel/a.ko.zst".to_owned(), plain)];
    assert!(matches!(
        Catalogue::index(broken),
        Err(ModulesError::Unpack { .. })
    ));
}

#[test]
fn a_module_under_a_wrong_name_is_an_error() {
    let files = [("kernel/a.ko".to_owned(), ko("name=b\0"))];
    assert!(matches!(Catalogue::index(files), Err(ModulesError::Misnamed { own, .. }) if own == "b"));
}

#[test]
fn two_files_of_one_name_are_an_error() {
    let files = ["kernel/x/a-b.ko", "kernel/y/a_b.ko"].map(|path| (path.to_owned(), ko("")));
    assert!(matches!(Catalogue::index(files), Err(ModulesError::Twice { name, .. }) if name == "a_b"));
}
