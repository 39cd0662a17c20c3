use super::{rules, tree::Tree};

const SAYS: &str = "says that it is pure";

fn caught(files: &[(&str, &str)], words: &str) -> bool {
    let tree = Tree::of(files);
    rules::ALL
        .iter()
        .flat_map(|rule| rule(&tree))
        .any(|violation| violation.what.contains(words))
}

#[test]
fn io_in_proto_is_caught() {
    assert!(caught(&[("proto/src/a.rs", "use std::fs;\n")], "proto has no IO"));
    assert!(!caught(
        &[("proto/src/a.rs", "// std::fs is not used\n")],
        "proto has no IO"
    ));
}

#[test]
fn a_clock_in_a_pure_module_is_caught() {
    let at = "agent/src/image/format.rs";
    for clock in ["Instant::now()", "tokio::time::Instant::now()"] {
        let text = format!("//! Pure.\nfn now() {{ {clock}; }}\n");
        assert!(caught(&[(at, &text)], SAYS), "{clock}");
    }
    for clean in [
        "//! Pure.\nfn f() {}\n#[cfg(test)]\nmod tests { use tokio::test; }\n",
        "//! Pure.\nuse tokio::time::Instant;\nuse hyper::body::Bytes;\n",
        "//! Pure but for the clock.\nfn now() { Instant::now(); }\n",
        "//! Purely\nfn now() { Instant::now(); }\n",
    ] {
        assert!(!caught(&[(at, clean)], SAYS), "{clean}");
    }
}

#[test]
fn tests_hide_nothing_that_stands_below_them() {
    let at = "controller/src/boot/policy.rs";
    for tests in [
        "#[cfg(test)]\nmod tests;\n",
        "#[cfg(test)]\nmod tests {\n    fn f() {\n    }\n}\n",
        "#[cfg(test)]\nmod tests { fn f() {} }\n",
        "#[cfg(test)]\nuse super::x;\n",
    ] {
        let below = format!("//! Pure.\n{tests}fn now() {{ Instant::now(); }}\n");
        assert!(caught(&[(at, &below)], SAYS), "{tests}");
        let clean = format!("//! Pure.\n{tests}fn now() {{}}\n");
        assert!(!caught(&[(at, &clean)], SAYS), "{tests}");
    }
    let inline = "//! Pure.\n#[cfg(test)]\nmod tests {\n    fn now() {\n        Instant::now();\n    }\n}\nfn f() {}\n";
    assert!(!caught(&[(at, inline)], SAYS));
    let lines: Vec<usize> = Tree::code(inline).map(|(line, _)| line).collect();
    assert_eq!(lines, [1, 8]);
}

#[test]
fn a_module_that_says_it_is_pure_is_held_to_it() {
    let at = "controller/src/host/disk.rs";
    assert!(caught(&[(at, "//! Which disk. Pure.\n\nuse tokio::fs;\n")], SAYS));
    assert!(!caught(&[(at, "//! Which disk.\n\nuse tokio::fs;\n")], SAYS));
    assert!(!caught(
        &[(at, "//! Which disk. Pure.\n\nuse serde::Serialize;\n")],
        SAYS
    ));
}

#[test]
fn a_module_that_decides_and_does_not_say_that_it_is_pure_is_caught() {
    let at = "controller/src/boot/policy.rs";
    let words = "does not say that this module is pure";
    assert!(caught(&[("README.md", "")], words));
    let others = |text: &str| {
        let tree = Tree::of(&[(at, text)]);
        let rules = rules::ALL.iter().flat_map(|rule| rule(&tree));
        rules.filter(|violation| violation.path == at).count()
    };
    assert_eq!(others("//! Who boots what. Pure.\n"), 0);
    assert_eq!(others("//! Who boots what.\n"), 1);
}

#[test]
fn a_pure_module_that_the_map_does_not_list_is_caught() {
    let words = "list of pure modules lacks boot/policy.rs";
    assert!(caught(&[("ARCHITECTURE.md", "`boot/decide.rs`")], words));
    assert!(!caught(&[("ARCHITECTURE.md", "`boot/policy.rs`")], words));
}

#[test]
fn an_agent_that_knows_the_controller_is_caught() {
    assert!(caught(
        &[("agent/src/a.rs", "use muster_controller::x;\n")],
        "never depends"
    ));
    assert!(caught(
        &[("agent/Cargo.toml", "[dependencies]\nkube = \"1\"\n")],
        "depends on no controller"
    ));
}

#[test]
fn a_boot_that_knows_agents_is_caught() {
    let words = "nothing imports what builds on it";
    let import = "use crate::{\n    agents::Keys,\n    world::World,\n};\n";
    for at in ["controller/src/boot/http/site.rs", "controller/src/token.rs"] {
        assert!(caught(&[(at, import)], words), "{at}");
        let clean = "// Not agents::Keys.\nuse crate::world::World;\nfn f(agents: u16) {}\n";
        assert!(!caught(&[(at, clean)], words), "{at}");
    }
    assert!(!caught(&[("controller/src/run/edge.rs", import)], words));
    let boot = "use crate::boot::segment::Net;\n";
    assert!(caught(&[("controller/src/token.rs", boot)], words));
    assert!(!caught(&[("controller/src/boot/http/site.rs", boot)], words));
}

/// Where cycles begin among the modules of crate `a`, and what is said of them.
fn cycles(modules: &[(&str, &str)]) -> Vec<(String, usize, String)> {
    let root = ("a/src/lib.rs", "pub use one::Item;\n");
    let tree = Tree::of(&[&[root][..], modules].concat());
    let violations = rules::ALL.iter().flat_map(|rule| rule(&tree));
    violations
        .filter(|violation| violation.what.contains("in a cycle"))
        .map(|violation| (violation.path, violation.line, violation.what))
        .collect()
}

#[test]
fn modules_that_import_in_one_direction_are_no_cycle() {
    let modules = [
        (
            "a/src/one.rs",
            "use crate::two::B;\nuse crate::{one::own, three};\n",
        ),
        (
            "a/src/two/mod.rs",
            "use crate::three::C;\nuse other_crate::one::A;\n",
        ),
        ("a/src/two/deep.rs", "// Not crate::one::A.\nuse crate::two::B;\n"),
        ("a/src/three.rs", "fn one() { super_crate::one(); }\n"),
        // A crate of its own.
        ("b/src/main.rs", ""),
        ("b/src/two.rs", "use crate::one::A;\n"),
    ];
    assert_eq!(cycles(&modules), []);
}

#[test]
fn two_modules_that_import_each_other_are_caught() {
    let modules = [
        ("a/src/one/mod.rs", "use std::fmt;\n\nuse crate::two::B;\n"),
        ("a/src/two/deep.rs", "fn f() {\n    crate::one::g();\n}\n"),
    ];
    let what = "one -> two -> one: these modules import each other in a cycle (a/src/one/mod.rs:3 imports two, \
        a/src/two/deep.rs:2 imports one); move what both sides need into a module of its own";
    let found = ("a/src/one/mod.rs".to_owned(), 3, what.to_owned());
    assert_eq!(cycles(&modules), [found]);
}

#[test]
fn three_modules_in_a_circle_are_caught_once() {
    let modules = [
        ("a/src/one.rs", "use crate::three::C;\n"),
        ("a/src/three.rs", "use crate::two::B;\n"),
        ("a/src/two.rs", "use crate::one::A;\n"),
        ("a/src/four.rs", "use crate::one::A;\n"),
    ];
    let found = cycles(&modules);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].2.starts_with("one -> three -> two -> one:"), "{found:?}");
    assert_eq!(cycles(&modules[..2]), []);
}

#[test]
fn what_tests_import_is_no_cycle() {
    let one = ("a/src/one.rs", "use crate::two::B;\n");
    for two in [
        "#[cfg(test)]\nmod tests {\n    use crate::one::A;\n}\n",
        "#[cfg(test)]\nmod tests;\n",
        "#[cfg(test)]\npub(crate) mod tests;\n",
    ] {
        let modules = [
            one,
            ("a/src/two.rs", two),
            ("a/src/two/tests.rs", "use crate::one::A;\n"),
            ("a/src/two/tests/deep.rs", "use crate::one::A;\n"),
            ("a/tests/two.rs", "use crate::one::A;\n"),
        ];
        assert_eq!(cycles(&modules), [], "{two}");
    }
    for (root, all) in [
        ("#[cfg(test)]\npub(crate) mod two;\n", 0),
        ("pub(crate) mod two;\n", 1),
    ] {
        let two = ("a/src/two/deep.rs", "use crate::one::A;\n");
        let found = cycles(&[("a/src/lib.rs", root), one, two]);
        assert_eq!(found.len(), all, "{root}: {found:?}");
    }
}

#[test]
fn a_group_of_imports_over_several_lines_is_read() {
    let one = ("a/src/one.rs", "use crate::two::B;\n");
    let group = "use crate::{\n    four::{\n        deep::{C, D},\n        E,\n    },\n    one::A,\n};\n";
    let found = cycles(&[one, ("a/src/two.rs", group)]);
    assert!(found[0].2.contains("a/src/two.rs:6 imports one"), "{found:?}");
    // Of what stands deeper, and behind the group, nothing is a module of the crate.
    let clean = "use crate::{four::{one, E}, five};\nuse other::{x, one};\n";
    assert_eq!(cycles(&[one, ("a/src/two.rs", clean)]), []);
}

#[test]
fn an_item_of_the_crates_root_counts_for_its_module() {
    let one = ("a/src/one.rs", "use crate::two::B;\n");
    assert_eq!(cycles(&[one, ("a/src/two.rs", "use crate::Item;\n")]).len(), 1);
    assert_eq!(cycles(&[one, ("a/src/two.rs", "use crate::Other;\n")]), []);
}

#[test]
fn an_absolute_path_outside_sys_is_caught() {
    assert!(caught(
        &[("agent/src/a.rs", "read(\"/sys/block\")\n")],
        "only agent/src/sys"
    ));
    assert!(!caught(
        &[("agent/src/sys/mod.rs", "read(\"/sys/block\")\n")],
        "only agent/src/sys"
    ));
}

#[test]
fn unsorted_dependencies_are_caught() {
    assert!(caught(
        &[("a/Cargo.toml", "[dependencies]\nb = \"1\"\na = \"1\"\n")],
        ": sort"
    ));
    assert!(!caught(
        &[("a/Cargo.toml", "[dependencies]\na = \"1\"\nb = \"1\"\n")],
        ": sort"
    ));
}

#[test]
fn an_unexplained_dependency_is_caught() {
    let manifest = (
        "Cargo.toml",
        "[workspace.dependencies]\nserde = \"1\"\n\n[profile.dev]\ndebug = 1\n",
    );
    assert!(caught(&[manifest], "no line for `serde`"));
    assert!(!caught(
        &[manifest, ("docs/dependencies.md", "| `serde` | why |\n")],
        "no line for"
    ));
}

#[test]
fn an_unfinished_merge_is_caught() {
    for mark in ["<<<<<<< ours", ">>>>>>> theirs"] {
        let text = format!("- one\n{mark}\n- two\n");
        assert!(caught(&[("CHANGELOG.md", &text)], "an unfinished merge"));
    }
    assert!(!caught(
        &[("a.md", "> <<<<<<< quoted\n=======\n")],
        "an unfinished merge"
    ));
}

#[test]
fn unfinished_code_is_caught() {
    assert!(caught(&[("a/src/a.rs", "fn f() { todo!() }\n")], "finish it"));
    assert!(caught(&[("a/src/a.rs", "#[ignore]\nfn f() {}\n")], "finish it"));
    assert!(caught(
        &[("a/src/a.rs", "#[ignore = \"slow\"]\nfn f() {}\n")],
        "finish it"
    ));
}

#[test]
fn a_path_of_one_machine_is_caught() {
    assert!(caught(
        &[("docs/a.md", "see /home/me/x\n")],
        "a path of one machine"
    ));
}

#[test]
fn a_missing_page_is_caught() {
    assert!(caught(&[("ARCHITECTURE.md", "")], "missing"));
}

#[test]
fn a_promise_that_nothing_holds_is_caught() {
    let page = (
        "SPECIFICATION.md",
        "| promise | held by |\n| --- | --- |\n| It `works` | `it_works`, `a/tests.rs` |\n",
    );
    let words = "neither a test nor a file";
    let caught = |path, text| caught(&[page, (path, text)], words);
    assert!(caught("a/tests.rs", "#[test]\nfn it_works_now() {}\n"));
    assert!(caught("b.rs", "#[test]\nfn it_works() {}\n"));
    assert!(caught("a/tests.rs", "fn it_works() {}\n"), "it is no test");
    assert!(caught(
        "a/tests.rs",
        "#[test]\nfn other() {}\n\nfn it_works() {}\n"
    ));
    assert!(!caught("a/tests.rs", "#[test]\nfn it_works() {}\n"));
    let with_care =
        "#[tokio::test(start_paused = true)]\n// Because.\n#[should_panic]\nasync fn it_works() {}\n";
    assert!(!caught("a/tests.rs", with_care));
}

#[test]
fn a_long_file_is_a_question() {
    let long = "fn f() {}\n".repeat(601);
    assert_eq!(rules::long_files(&Tree::of(&[("a.rs", &long)])), [("a.rs", 601)]);
    assert!(rules::long_files(&Tree::of(&[("a.rs", "fn f() {}\n")])).is_empty());
}
