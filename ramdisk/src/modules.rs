//! The modules of one kernel: what each needs, and the tables that a loader finds them by.
//!
//! A kernel package carries no `modules.dep` (depmod(8) makes it at installation), so everything here is read from
//! the modules themselves.

use std::collections::{BTreeMap, BTreeSet};

use crate::elf::{Elf, ElfError};
use crate::modinfo::{self, Modinfo, canonical};
use crate::packed::Packing;

/// No module comes near this many bytes unpacked.
const MAX_MODULE: u64 = 256 << 20;

/// Why a kernel's modules cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModulesError {
    /// A module could not be decompressed.
    #[error("unpack module {path}")]
    Unpack {
        /// Below `lib/modules/VERSION`.
        path: String,
        /// What the decompressor said.
        #[source]
        source: std::io::Error,
    },
    /// A module is no object file.
    #[error("read module {path}")]
    Elf {
        /// Below `lib/modules/VERSION`.
        path: String,
        /// What is wrong with it.
        #[source]
        source: ElfError,
    },
    /// A module's file and the module itself disagree, so a request by name would find the wrong one.
    #[error("index modules: {path} calls itself {own}")]
    Misnamed {
        /// Below `lib/modules/VERSION`.
        path: String,
        /// The name it gives itself.
        own: String,
    },
    /// Two files claim one module name.
    #[error("index modules: {first} and {second} are both named {name}")]
    Twice {
        /// The name that clashes.
        name: String,
        /// The path indexed first.
        first: String,
        /// The other path.
        second: String,
    },
    /// A module was asked for that is neither a file nor built in.
    #[error("find module {name}: the kernel has no such module")]
    Unknown {
        /// The name asked for.
        name: String,
    },
    /// A module depends on one that is neither a file nor built in.
    #[error("find module {missing}, which {module} depends on: the kernel has no such module")]
    Missing {
        /// The module that names the dependency.
        module: String,
        /// The dependency.
        missing: String,
    },
    /// Modules that wait for each other cannot be loaded.
    #[error("order modules: {} depend on each other", .cycle.join(", "))]
    Cycle {
        /// The modules on the way round.
        cycle: Vec<String>,
    },
}

/// One module file.
#[derive(Clone, Debug)]
pub struct Module {
    /// Below `lib/modules/VERSION`, without any ending of a compression, such as `kernel/fs/ext4/ext4.ko`.
    pub path: String,
    /// What it says about itself.
    pub info: Modinfo,
    /// The object, unpacked.
    pub object: Vec<u8>,
}

impl Module {
    /// The object as it goes into the ramdisk.
    pub fn stripped(&self) -> Vec<u8> {
        Elf::parse(&self.object)
            .expect("it was parsed when it was indexed")
            .stripped()
    }
}

/// All modules of one kernel, by name.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    modules: BTreeMap<String, Module>,
    /// Name and path, as `modules.builtin` has it.
    builtin: BTreeMap<String, String>,
}

impl Catalogue {
    /// Indexes files by their paths below `lib/modules/VERSION`: `*.ko` with or without compression, and
    /// `modules.builtin`; other files are passed over.
    pub fn index(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Result<Self, ModulesError> {
        let mut catalogue = Self::default();
        for (path, content) in files {
            if path != "modules.builtin" {
                catalogue.add(&path, content)?;
                continue;
            }
            let paths = String::from_utf8_lossy(&content);
            catalogue.builtin = paths
                .lines()
                .map(|path| (name_of(path), path.to_owned()))
                .collect();
        }
        Ok(catalogue)
    }

    fn add(&mut self, path: &str, content: Vec<u8>) -> Result<(), ModulesError> {
        let (path, packing) = Packing::of(path);
        if !path.ends_with(".ko") {
            return Ok(());
        }
        let path = path.to_owned();
        let object = packing
            .unpack(content, MAX_MODULE)
            .map_err(|source| ModulesError::Unpack {
                path: path.clone(),
                source,
            })?;
        let elf = Elf::parse(&object).map_err(|source| ModulesError::Elf {
            path: path.clone(),
            source,
        })?;
        let info = modinfo::parse(elf.section(".modinfo").unwrap_or_default());
        let name = name_of(&path);
        if let Some(own) = info.name.as_ref().filter(|own| **own != name) {
            return Err(ModulesError::Misnamed {
                path,
                own: own.clone(),
            });
        }
        if let Some(first) = self.modules.get(&name) {
            return Err(ModulesError::Twice {
                name,
                first: first.path.clone(),
                second: path,
            });
        }
        self.modules.insert(name, Module { path, info, object });
        Ok(())
    }

    /// Every module file, in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Module)> {
        self.modules.iter().map(|(name, module)| (name.as_str(), module))
    }

    /// The module of that name, unless it is built in or absent.
    pub fn get(&self, name: &str) -> Option<&Module> {
        self.modules.get(name)
    }

    /// Name and path of each driver inside the kernel; the path is the one it would have as a module.
    pub fn builtins(&self) -> impl Iterator<Item = (&str, &str)> {
        self.builtin
            .iter()
            .map(|(name, path)| (name.as_str(), path.as_str()))
    }

    /// Whether the kernel itself contains that driver.
    pub fn is_builtin(&self, name: &str) -> bool {
        self.builtin.contains_key(name)
    }

    /// `seeds` and everything that they need to be loaded, with those optional companions that exist.
    pub fn closure(&self, seeds: impl IntoIterator<Item = String>) -> Result<Set<'_>, ModulesError> {
        let mut members = BTreeMap::new();
        let mut open: Vec<String> = seeds.into_iter().collect();
        while let Some(name) = open.pop() {
            if members.contains_key(name.as_str()) || self.is_builtin(&name) {
                continue;
            }
            let (name, module) = self
                .modules
                .get_key_value(&name)
                .ok_or(ModulesError::Unknown { name })?;
            for needed in &module.info.depends {
                if !self.modules.contains_key(needed) && !self.is_builtin(needed) {
                    return Err(ModulesError::Missing {
                        module: name.clone(),
                        missing: needed.clone(),
                    });
                }
            }
            open.extend(module.info.depends.iter().cloned());
            open.extend(module.info.softdeps.iter().flat_map(|line| self.companions(line)));
            members.insert(name.as_str(), module);
        }
        let set = Set { members };
        // Orders every member once, so that a cycle is an error here and not a surprise later.
        for name in set.members.keys() {
            set.load_order(name)?;
        }
        Ok(set)
    }

    /// The modules that a softdep line may mean: it names modules or exact aliases such as `crc32c`.
    fn companions(&self, line: &str) -> Vec<String> {
        let mut found = Vec::new();
        for wanted in modinfo::softdep_names(line) {
            let name = canonical(wanted);
            let by_alias = |module: &Module| module.info.aliases.iter().any(|alias| canonical(alias) == name);
            if self.modules.contains_key(&name) {
                found.push(name);
            } else {
                found.extend(
                    self.iter()
                        .filter(|(_, m)| by_alias(m))
                        .map(|(name, _)| name.to_owned()),
                );
            }
        }
        found
    }
}

/// What the kernel asks `/sbin/modprobe` for, which the ramdisk does not have, and no module says of itself: a module, whether the other
/// comes before or after it, and that one.
const ASKED: &[(&str, &str, &str)] = &[
    // The Ethernet ports of ConnectX-3 (`mlx4_request_modules` in drivers/net/ethernet/mellanox/mlx4/main.c).
    ("mlx4_core", "post", "mlx4_en"),
    // Boards with a PHY of its own do not start without its driver (`tg3_mdio_init` in drivers/net/ethernet/broadcom/tg3.c).
    ("tg3", "pre", "broadcom"),
];

/// Some modules of a [`Catalogue`], closed under dependencies.
#[derive(Clone, Debug)]
pub struct Set<'a> {
    members: BTreeMap<&'a str, &'a Module>,
}

impl<'a> Set<'a> {
    /// Name and file of each module, in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a Module)> {
        self.members.iter().map(|(name, module)| (*name, *module))
    }

    /// How many modules there are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there is no module at all.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The paths of a module and all it needs, in the order in which they must be loaded: the module comes last.
    fn load_order(&self, name: &'a str) -> Result<Vec<&'a str>, ModulesError> {
        let mut order = Vec::new();
        let mut way = Vec::new();
        self.visit(name, &mut way, &mut BTreeSet::new(), &mut order)?;
        Ok(order)
    }

    fn visit(
        &self,
        name: &'a str,
        way: &mut Vec<&'a str>,
        done: &mut BTreeSet<&'a str>,
        order: &mut Vec<&'a str>,
    ) -> Result<(), ModulesError> {
        if let Some(start) = way.iter().position(|earlier| *earlier == name) {
            return Err(ModulesError::Cycle {
                cycle: way[start..].iter().map(|&name| name.to_owned()).collect(),
            });
        }
        // What is not a member is built in: the closure saw to that.
        let Some(module) = self.members.get(name).filter(|_| !done.contains(name)) else {
            return Ok(());
        };
        way.push(name);
        for needed in &module.info.depends {
            self.visit(needed, way, done, order)?;
        }
        way.pop();
        done.insert(name);
        order.push(&module.path);
        Ok(())
    }

    /// `modules.dep`: each module's path, a colon, and the paths of all it needs, to be loaded from right to left
    /// (modules.dep(5)).
    pub fn dep_table(&self) -> Result<String, ModulesError> {
        let mut out = String::new();
        for (name, module) in self.iter() {
            let order = self.load_order(name)?;
            let needed: String = order
                .iter()
                .rev()
                .skip(1)
                .map(|path| format!(" {path}"))
                .collect();
            out.push_str(&format!("{}:{needed}\n", module.path));
        }
        Ok(out)
    }

    /// `modules.alias`: lines of `alias PATTERN MODULE`.
    pub fn alias_table(&self) -> String {
        self.lines(|name, info| {
            info.aliases
                .iter()
                .map(|alias| format!("alias {alias} {name}\n"))
                .collect()
        })
    }

    /// `modules.softdep`: lines of `softdep MODULE pre: ... post: ...`, those of [`ASKED`] included.
    pub fn softdep_table(&self) -> String {
        self.lines(|name, info| {
            let asked = ASKED
                .iter()
                .filter(|(module, _, other)| *module == name && self.members.contains_key(other))
                .map(|(_, when, other)| format!("{when}: {other}"));
            info.softdeps
                .iter()
                .cloned()
                .chain(asked)
                .map(|line| format!("softdep {name} {line}\n"))
                .collect()
        })
    }

    fn lines(&self, of: impl Fn(&str, &Modinfo) -> String) -> String {
        self.iter().map(|(name, module)| of(name, &module.info)).collect()
    }

    /// The firmware that each module may ask for; modules that need none are left out.
    pub fn firmware(&self) -> BTreeMap<String, Vec<String>> {
        let named = self.iter().filter(|(_, module)| !module.info.firmware.is_empty());
        named
            .map(|(name, module)| (name.to_owned(), module.info.firmware.clone()))
            .collect()
    }
}

/// The name of the module at `path`: `kernel/crypto/crc32c-intel.ko` is `crc32c_intel`.
pub fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    canonical(file.split(".ko").next().unwrap_or(file))
}

#[cfg(test)]
mod tests;
