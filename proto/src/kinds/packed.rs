use std::{
    any::{Any, TypeId},
    borrow::Cow,
    collections::{BTreeMap, VecDeque, btree_map::Entry},
    fmt, io,
    marker::PhantomData,
    ops::RangeInclusive,
    sync::{Arc, Mutex, PoisonError},
};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};
use zstd::bulk::{Compressor, Decompressor};

/// The fastest of zstd's usual levels: what repeats in a list of disks or flags it finds as well as the others do.
const LEVEL: i32 = 1;

/// What is large and seldom read, such as the hardware of a machine: compressed JSON, a tenth or less of what a `T` takes in memory,
/// and a copy of it costs nothing. In an object it is written and read as the `T` is.
pub struct Packed<T> {
    bytes: Arc<[u8]>,
    /// The length of the JSON, in bytes.
    length: u32,
    by: By,
    of: PhantomData<fn() -> T>,
}

/// How something is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// By itself.
    Itself,
    /// As what differs from the pattern.
    Pattern,
}

/// The first JSON of a type with so many bytes is the pattern of all that come later: machines are bought by the rack, and one differs
/// from the next in little more than its numbers. It is kept for ever.
const PATTERN: RangeInclusive<usize> = 2 << 10..=64 << 10;

/// So many of a type stay plain, those that were read or unpacked last: a decision asks for the same hardware several times, several are
/// under way, and what was just read is what the next one is about.
const KEPT: usize = 16;

/// What has more bytes of JSON does not stay: plain, it may take a hundred times as much.
const LARGEST_KEPT: u32 = 128 << 10;

/// What zstd works with for a type: some hundred KiB.
struct Tools {
    pack: (By, Compressor<'static>),
    unpack: Decompressor<'static>,
    unpack_by_pattern: Option<Decompressor<'static>>,
    /// The latest one first.
    kept: VecDeque<Kept>,
}

/// What is packed as these bytes.
struct Kept {
    by: By,
    bytes: Arc<[u8]>,
    plain: Arc<dyn Any + Send + Sync>,
}

static TOOLS: Mutex<BTreeMap<TypeId, Tools>> = Mutex::new(BTreeMap::new());

impl Tools {
    fn new() -> io::Result<Tools> {
        Ok(Tools {
            pack: (By::Itself, Compressor::new(LEVEL)?),
            unpack: Decompressor::new()?,
            unpack_by_pattern: None,
            kept: VecDeque::new(),
        })
    }

    /// What these bytes unpacked to, if that was lately.
    fn kept(&mut self, by: By, bytes: &[u8]) -> Option<Arc<dyn Any + Send + Sync>> {
        let is_it = |kept: &Kept| kept.by == by && *kept.bytes == *bytes;
        let at = self.kept.iter().position(is_it)?;
        let found = self.kept.remove(at)?;
        let plain = Arc::clone(&found.plain);
        self.kept.push_front(found);
        Some(plain)
    }

    /// Keeps what is plain; what it takes the place of.
    fn keep(&mut self, plain: Kept) -> Option<Kept> {
        // An object is read anew with each change of it, and somebody may have unpacked the same meanwhile.
        if self.kept(plain.by, &plain.bytes).is_some() {
            return Some(plain);
        }
        self.kept.push_front(plain);
        if self.kept.len() > KEPT {
            return self.kept.pop_back();
        }
        None
    }

    fn pack(&mut self, json: &[u8]) -> io::Result<(By, Vec<u8>)> {
        if self.unpack_by_pattern.is_none() && PATTERN.contains(&json.len()) {
            self.unpack_by_pattern = Some(Decompressor::with_dictionary(json)?);
            self.pack = (By::Pattern, Compressor::with_dictionary(LEVEL, json)?);
        }
        let (by, tool) = &mut self.pack;
        Ok((*by, tool.compress(json)?))
    }

    fn unpack(&mut self, by: By, bytes: &[u8], length: usize) -> io::Result<Vec<u8>> {
        let by_pattern = self.unpack_by_pattern.as_mut().filter(|_| by == By::Pattern);
        by_pattern.unwrap_or(&mut self.unpack).decompress(bytes, length)
    }
}

fn with_tools<T: 'static, R>(work: impl FnOnce(&mut Tools) -> io::Result<R>) -> io::Result<R> {
    let mut tools = TOOLS.lock().unwrap_or_else(PoisonError::into_inner);
    work(match tools.entry(TypeId::of::<T>()) {
        Entry::Occupied(tools) => tools.into_mut(),
        Entry::Vacant(place) => place.insert(Tools::new()?),
    })
}

impl<T: Serialize + 'static> Packed<T> {
    /// Packs `plain`.
    pub fn new(plain: &T) -> Packed<T> {
        let json = serde_json::to_vec(plain).expect("these kinds have string keys and finite numbers");
        let packed = with_tools::<T, _>(|tools| tools.pack(&json));
        let (by, bytes) = packed.expect("memory can be compressed to memory");
        Packed {
            bytes: bytes.into(),
            length: u32::try_from(json.len()).expect("no object has 4 GiB"),
            by,
            of: PhantomData,
        }
    }
}

impl<T: 'static> Packed<T> {
    fn json(&self) -> Vec<u8> {
        with_tools::<T, _>(|tools| tools.unpack(self.by, &self.bytes, self.length as usize))
            .expect("it was compressed here")
    }
}

impl<T: DeserializeOwned + Send + Sync + 'static> Packed<T> {
    /// What was packed. To ask again at once costs little, unless it is very large.
    pub fn unpack(&self) -> Arc<T> {
        let kept = with_tools::<T, _>(|tools| Ok(tools.kept(self.by, &self.bytes)));
        let kept = kept.expect("nothing is unpacked for that");
        if let Some(plain) = kept.and_then(|kept| kept.downcast().ok()) {
            return plain;
        }
        let plain: Arc<T> = Arc::new(serde_json::from_slice(&self.json()).expect("it was written here"));
        self.keep(Arc::clone(&plain));
        plain
    }
}

impl<T: Send + Sync + 'static> Packed<T> {
    /// Keeps `plain`, which this unpacks to, for a while, unless it is too large for that.
    fn keep(&self, plain: Arc<T>) {
        if self.length > LARGEST_KEPT {
            return;
        }
        let kept = Kept {
            by: self.by,
            bytes: Arc::clone(&self.bytes),
            plain,
        };
        // Dropped when nobody has to wait for that.
        let over = with_tools::<T, _>(|tools| Ok(tools.keep(kept)));
        drop(over.expect("nothing is packed for that"));
    }
}

impl<T: Serialize + 'static> From<T> for Packed<T> {
    fn from(plain: T) -> Packed<T> {
        Packed::new(&plain)
    }
}

impl<T> Clone for Packed<T> {
    fn clone(&self) -> Packed<T> {
        Packed {
            bytes: Arc::clone(&self.bytes),
            length: self.length,
            by: self.by,
            of: PhantomData,
        }
    }
}

/// Equal things have equal JSON; that its compressed form is equal, too, is usual and not promised.
impl<T: 'static> PartialEq for Packed<T> {
    fn eq(&self, other: &Packed<T>) -> bool {
        let same = self.by == other.by && self.bytes == other.bytes;
        same || (self.length == other.length && self.json() == other.json())
    }
}

impl<T: 'static> Eq for Packed<T> {}

impl<T: DeserializeOwned + fmt::Debug + Send + Sync + 'static> fmt::Debug for Packed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.unpack().fmt(f)
    }
}

impl<T: DeserializeOwned + Serialize + Send + Sync + 'static> Serialize for Packed<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.unpack().serialize(serializer)
    }
}

impl<'de, T: Deserialize<'de> + Serialize + Send + Sync + 'static> Deserialize<'de> for Packed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Packed<T>, D::Error> {
        let plain = T::deserialize(deserializer)?;
        let packed = Packed::new(&plain);
        packed.keep(Arc::new(plain));
        Ok(packed)
    }
}

impl<T: JsonSchema> JsonSchema for Packed<T> {
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }

    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        inventory::{Disk, Inventory},
        kinds::{HardwareDetails, HardwareNic, ServerStatus},
    };

    fn inventory(disks: u32, serial: &str) -> Inventory {
        let disk = |at| Disk {
            name: format!("/dev/nvme{at}n1"),
            by_path: format!("/dev/disk/by-path/pci-0000:5e:{at:02x}.0-nvme-1"),
            serial: format!("{serial}{at}"),
            size_bytes: 960_197_124_096,
            ..Disk::default()
        };
        Inventory {
            disks: (0..disks).map(disk).collect(),
            ..Inventory::default()
        }
    }

    #[test]
    fn a_large_inventory_takes_less_than_a_fifth_of_its_json() {
        let json = serde_json::to_vec(&inventory(26, "S")).unwrap();
        let alone = Compressor::new(LEVEL).unwrap().compress(&json).unwrap();
        assert!(
            json.len() > 4000 && alone.len() * 5 < json.len(),
            "{}",
            alone.len()
        );
        assert_eq!(*Packed::new(&inventory(26, "S")).unpack(), inventory(26, "S"));
    }

    #[test]
    fn one_like_the_first_takes_less_than_a_quarter_of_what_it_takes_by_itself() {
        let pack = |tools: &mut Tools, plain: &Inventory| {
            let json = serde_json::to_vec(plain).unwrap();
            let (by, bytes) = tools.pack(&json).unwrap();
            assert_eq!(tools.unpack(by, &bytes, json.len()).unwrap(), json);
            (by, bytes)
        };
        let mut tools = Tools::new().unwrap();
        let small = Inventory::default();
        let (by, before) = pack(&mut tools, &small);
        assert_eq!(by, By::Itself, "a small one is no pattern");
        pack(&mut tools, &inventory(26, "S"));
        let (by, second) = pack(&mut tools, &inventory(26, "T"));
        assert_eq!(by, By::Pattern);
        let json = serde_json::to_vec(&inventory(26, "T")).unwrap();
        let alone = Compressor::new(LEVEL).unwrap().compress(&json).unwrap();
        assert!(second.len() * 4 < alone.len(), "{} {}", second.len(), alone.len());
        let json = serde_json::to_vec(&small).unwrap();
        assert_eq!(
            tools.unpack(By::Itself, &before, json.len()).unwrap(),
            json,
            "what was packed before the pattern still comes back"
        );
    }

    #[test]
    fn what_was_unpacked_lately_is_not_unpacked_again_and_is_forgotten_in_its_turn() {
        /// No other test has anything of this kind.
        #[derive(Serialize, Deserialize, PartialEq, Debug)]
        struct Own(usize);
        let packed: Vec<Packed<Own>> = (0..=KEPT).map(|number| Packed::new(&Own(number))).collect();
        let first = packed[0].unpack();
        let read_anew = Packed::new(&Own(0));
        assert!(
            Arc::ptr_eq(&first, &read_anew.unpack()),
            "the same, however it came here"
        );
        for (number, other) in packed.iter().enumerate() {
            assert_eq!(*other.unpack(), Own(number));
        }
        assert_eq!(*packed[0].unpack(), Own(0));
        assert!(!Arc::ptr_eq(&first, &packed[0].unpack()));
        assert!(with_tools::<Own, _>(|tools| Ok(tools.kept.len() == KEPT)).unwrap());
    }

    #[test]
    fn what_was_just_read_need_not_be_unpacked() {
        /// No other test has anything of this kind.
        #[derive(Serialize, Deserialize, PartialEq, Debug)]
        struct Own(usize);
        let kept = || with_tools::<Own, _>(|tools| Ok(tools.kept.len())).unwrap();
        let read: Packed<Own> = serde_json::from_value(json!(7)).unwrap();
        assert_eq!(kept(), 1);
        let plain = read.unpack();
        let again: Packed<Own> = serde_json::from_value(json!(7)).unwrap();
        assert_eq!(*plain, Own(7));
        assert!(
            Arc::ptr_eq(&plain, &again.unpack()),
            "an object's next version has the same"
        );
        assert_eq!(kept(), 1);
    }

    #[test]
    fn what_is_very_large_does_not_stay_plain() {
        /// No other test has anything of this kind.
        #[derive(Serialize, Deserialize, PartialEq, Debug)]
        struct Own(Vec<Option<u8>>);
        let largest = usize::try_from(LARGEST_KEPT).unwrap();
        let read = |nulls: usize| -> Packed<Own> { serde_json::from_value(json!(vec![(); nulls])).unwrap() };
        let kept = || with_tools::<Own, _>(|tools| Ok(tools.kept.len())).unwrap();
        let large = read(largest / 4);
        assert_eq!(large.unpack().0.len(), largest / 4);
        assert_eq!(kept(), 0, "{} bytes", large.length);
        assert_eq!(read(2).unpack().0, [None, None]);
        assert_eq!(kept(), 1);
    }

    #[test]
    fn in_an_object_it_is_written_and_read_as_what_it_is() {
        let object = json!({"identity": {}, "inventory": inventory(2, "S")});
        let status: ServerStatus = serde_json::from_value(object).unwrap();
        assert_eq!(
            status.inventory.as_ref().map(|packed| (*packed.unpack()).clone()),
            Some(inventory(2, "S"))
        );
        assert_eq!(json!(status)["inventory"], json!(inventory(2, "S")));
        let schema = |generate: fn(&mut SchemaGenerator) -> Schema| generate(&mut SchemaGenerator::default());
        assert_eq!(
            schema(Packed::<Inventory>::json_schema),
            schema(Inventory::json_schema)
        );
    }

    proptest! {
        #[test]
        fn whatever_is_packed_comes_back_and_is_equal_to_itself_only(one: String, other: String, speed: i64) {
            let nic = |name: &str| HardwareNic { name: Some(name.to_owned()), speed_gbps: Some(speed), ..HardwareNic::default() };
            let plain = |name: &str| HardwareDetails { nics: vec![nic(name)], ..HardwareDetails::default() };
            let packed = Packed::new(&plain(&one));
            prop_assert_eq!(&*packed.unpack(), &plain(&one));
            prop_assert_eq!(&packed, &packed.clone());
            prop_assert_eq!(packed == Packed::new(&plain(&other)), one == other);
            let written: Value = serde_json::to_value(&packed).unwrap();
            prop_assert_eq!(serde_json::from_value::<Packed<HardwareDetails>>(written).unwrap(), packed);
        }
    }
}
