//! What depmod wrote: which module serves which device, and what must be loaded before it.
//! Formats: `modules.dep(5)`, and `modprobe.d(5)` for `alias` and `softdep` lines.

use std::collections::HashMap;

use super::pattern;

/// Aliases are grouped by so many of their first bytes: bus and vendor of a PCI device (`pci:v00008086`).
const KEY: usize = 13;

/// A module's name as the kernel has it: `_` where its file may have `-`.
pub type Name = Box<str>;

/// One module of the ramdisk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Module {
    /// The file, relative to the directory of `modules.dep`.
    pub path: Box<str>,
    /// What it takes symbols from.
    pub needs: Vec<Name>,
    /// What should be there before it (`softdep … pre:`), as written: modules or aliases, as [`Index::called`] has them.
    pub before: Vec<Box<str>>,
    /// What should follow it (`softdep … post:`).
    pub after: Vec<Box<str>>,
}

/// Everything that depmod knows, ready to be asked.
#[derive(Debug, Default)]
pub struct Index {
    modules: HashMap<Name, Module>,
    aliases: HashMap<Box<[u8]>, Vec<Alias>>,
}

#[derive(Debug)]
struct Alias {
    pattern: Box<[u8]>,
    module: Name,
}

impl Index {
    /// From the texts of `modules.dep`, `modules.alias` and `modules.softdep`. Lines of other kinds are passed over.
    pub fn parse(dependencies: &str, aliases: &str, soft: &str) -> Index {
        let mut index = Index::default();
        for line in dependencies.lines() {
            if let Some((path, needs)) = line.split_once(':') {
                let module = Module {
                    path: path.into(),
                    needs: needs.split_whitespace().map(name_of_file).collect(),
                    ..Module::default()
                };
                index.modules.insert(name_of_file(path), module);
            }
        }
        for line in soft.lines() {
            index.soft(line);
        }
        for line in aliases.lines() {
            let mut words = line.split_ascii_whitespace();
            if let (Some("alias"), Some(pattern), Some(module)) = (words.next(), words.next(), words.next()) {
                let module = name(module);
                // Built-in or left out of this ramdisk: nothing to load.
                if index.modules.contains_key(&module) {
                    index.alias(pattern.as_bytes(), module);
                }
            }
        }
        index
    }

    /// How many modules there are.
    pub fn len(&self) -> usize {
        self.modules.len()
    }

    /// True for a ramdisk without modules.
    pub fn is_empty(&self) -> bool {
        self.modules.is_empty()
    }

    /// The module called `name`, in the kernel's spelling.
    pub fn module(&self, name: &str) -> Option<&Module> {
        self.modules.get(name)
    }

    /// The modules that `word` means: the one of that name, else all that have it as an alias, such as those of a cipher (`crc32c`).
    pub fn called(&self, word: &str) -> Vec<Name> {
        let name = name(word);
        if self.modules.contains_key(&name) {
            vec![name]
        } else {
            self.serving(word).cloned().collect()
        }
    }

    /// The modules that say that they drive the device with this modalias.
    pub fn serving<'a>(&'a self, modalias: &'a str) -> impl Iterator<Item = &'a Name> {
        let text = modalias.as_bytes();
        let precise = text.get(..KEY);
        let bus = Some(bus(text)).filter(|bus| !bus.is_empty() && Some(*bus) != precise);
        [precise, bus, Some(b"".as_slice())]
            .into_iter()
            .flatten()
            .filter_map(|key| self.aliases.get(key))
            .flatten()
            .filter(move |alias| pattern::matches(&alias.pattern, text))
            .map(|alias| &alias.module)
    }

    fn alias(&mut self, pattern: &[u8], module: Name) {
        let literal = pattern::literal_prefix(pattern);
        let key = literal.get(..KEY).unwrap_or_else(|| {
            let bus = bus(literal);
            // Without a whole bus name (`acpi*:`) any bus may be meant.
            let whole = bus.len() < literal.len() || literal.len() == pattern.len();
            if whole { bus } else { b"" }
        });
        let alias = Alias {
            pattern: pattern.into(),
            module,
        };
        match self.aliases.get_mut(key) {
            Some(group) => group.push(alias),
            None => _ = self.aliases.insert(key.into(), vec![alias]),
        }
    }

    /// `softdep NAME pre: A B post: C`
    fn soft(&mut self, line: &str) {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("softdep") {
            return;
        }
        let Some(module) = words
            .next()
            .and_then(|module| self.modules.get_mut(&name(module)))
        else {
            return;
        };
        let mut post = None;
        for word in words {
            match (word, post) {
                ("pre:", _) => post = Some(false),
                ("post:", _) => post = Some(true),
                (word, Some(false)) => module.before.push(word.into()),
                (word, Some(true)) => module.after.push(word.into()),
                (_, None) => {}
            }
        }
    }
}

/// A name in the kernel's spelling.
pub fn name(written: &str) -> Name {
    written.replace('-', "_").into()
}

/// `kernel/drivers/net/virtio_net.ko` is `virtio_net`.
fn name_of_file(path: &str) -> Name {
    let file = path.rsplit('/').next().unwrap_or(path);
    name(file.split(".ko").next().unwrap_or(file))
}

/// What stands before the first `:`, or all of it.
fn bus(text: &[u8]) -> &[u8] {
    let end = text.iter().position(|sign| *sign == b':').unwrap_or(text.len());
    &text[..end]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn index() -> Index {
        Index::parse(
            "kernel/a/virtio_net.ko: kernel/a/net-failover.ko kernel/a/failover.ko\n\
             kernel/a/net-failover.ko: kernel/a/failover.ko\nkernel/a/failover.ko:\nkernel/a/button.ko:\n\
             kernel/a/crc32c-intel.ko:\nkernel/a/crc32c_generic.ko:\nkernel/a/libcrc32c.ko:\n\
             kernel/a/e1000e.ko:\nkernel/a/any.ko:\nkernel/a/xhci-pci.ko:\n",
            "# a comment\nalias virtio:d00000001v* virtio_net\nalias acpi*:PNP0C0C:* button\n\
             alias pci:v00008086d0000105Esv*sd*bc*sc*i* e1000e\nalias *:odd any\nalias od[de]:x any\n\
             alias pci:v*d*sv*sd*bc0Csc03i30* xhci-pci\nalias pci:v*d* not_in_this_ramdisk\nalias cut\n\
             alias crc32c crc32c_generic\nalias crypto-crc32c crc32c-intel\nalias crc32c crc32c_intel\n",
            "softdep virtio_net pre: button post: any x-y\nsoftdep nobody pre: any\nsoftdep libcrc32c pre: crc32c\n",
        )
    }

    fn serving(modalias: &str) -> Vec<String> {
        index().serving(modalias).map(|name| name.to_string()).collect()
    }

    #[test]
    fn a_device_finds_its_modules() {
        assert_eq!(serving("virtio:d00000001v00001AF4"), ["virtio_net"]);
        assert_eq!(serving("acpi:PNP0C0C:"), ["button"]);
        assert_eq!(
            serving("pci:v00008086d0000105Esv00008086sd0000105Ebc02sc00i00"),
            ["e1000e"]
        );
        assert_eq!(
            serving("pci:v00001B36d0000000Dsv00001AF4sd00001100bc0Csc03i30"),
            ["xhci_pci"]
        );
        assert_eq!(
            serving("pci:v00008086d0000FFFFsv00008086sd0000105Ebc02sc00i00"),
            Vec::<String>::new()
        );
        assert_eq!(serving("even:odd"), ["any"]);
        assert_eq!(serving("ode:x"), ["any"]);
        assert_eq!(serving(""), Vec::<String>::new());
    }

    #[test]
    fn dependencies_are_known_by_the_kernels_names() {
        let index = index();
        let net = index.module("virtio_net").unwrap();
        assert_eq!(*net.path, *"kernel/a/virtio_net.ko");
        assert_eq!(net.needs, [name("net_failover"), name("failover")]);
        assert_eq!(
            (net.before.as_slice(), net.after.as_slice()),
            (&["button".into()][..], &["any".into(), "x-y".into()][..])
        );
        assert_eq!(index.len(), 10);
    }

    #[test]
    fn a_soft_dependency_may_be_an_alias_of_several_modules() {
        let index = index();
        let [before] = &*index.module("libcrc32c").unwrap().before else {
            panic!("one word")
        };
        assert_eq!(
            index.called(before),
            [name("crc32c_generic"), name("crc32c_intel")]
        );
        assert_eq!(index.called("crypto-crc32c"), [name("crc32c_intel")]);
        assert_eq!(index.called("net-failover"), [name("net_failover")]);
        assert_eq!(index.called("built-in"), Vec::<Name>::new());
    }

    proptest! {
        #[test]
        fn any_text_is_survived(dependencies: String, aliases: String, soft: String, modalias: String) {
            Index::parse(&dependencies, &aliases, &soft).serving(&modalias).count();
        }

        /// The grouping is a short cut only: it finds what trying every alias finds.
        #[test]
        fn grouping_hides_no_alias(pattern in "[ab:*?\\[\\]]{0,18}", modalias in "[ab:]{0,18}") {
            let index = Index::parse("m.ko:\n", &format!("alias {pattern} m"), "");
            let expected = pattern::matches(pattern.as_bytes(), modalias.as_bytes()) && !pattern.is_empty();
            prop_assert_eq!(index.serving(&modalias).count(), usize::from(expected));
        }
    }
}
