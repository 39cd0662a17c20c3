//! Writes ISO 9660 file systems (ECMA-119) with Rock Ridge names (IEEE P1282, the part of `NM`, `PX` and `ER`), so that Linux shows
//! the names as they are. Pure: the same files give the same bytes.

use std::collections::BTreeMap;

/// Logical blocks, in bytes.
pub const BLOCK: u32 = 2048;
const BLOCK_LEN: usize = 2048;

/// The first 16 blocks belong to the system (6.2.1); volume descriptor, terminator and the two path tables follow.
const DESCRIPTOR: usize = 16;
const TERMINATOR: usize = 17;
const PATHS_LITTLE: usize = 18;
const PATHS_BIG: usize = 19;
const FIRST_FREE: usize = 20;

/// A name longer than this does not fit into its directory record with all that stands beside it.
const LONGEST_NAME: usize = 100;

/// No file system can be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IsoError {
    /// A name is empty, too long, or holds a slash or NUL.
    #[error("add file {0:?}: its name is empty, too long, or contains a slash or NUL")]
    Name(String),
    /// There are more directories than fit into one block of the path table.
    #[error("list the directories: there are too many")]
    TooManyDirectories,
    /// 4 GiB are the limit.
    #[error("add the files: they are too large")]
    TooLarge,
}

/// What is in a directory.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    files: BTreeMap<String, Vec<u8>>,
    directories: BTreeMap<String, Directory>,
}

impl Directory {
    /// With a file.
    pub fn file(&mut self, name: &str, content: Vec<u8>) {
        self.files.insert(name.to_owned(), content);
    }

    /// With a directory.
    pub fn directory(&mut self, name: &str, content: Directory) {
        self.directories.insert(name.to_owned(), content);
    }

    /// About how many bytes an image of it has: no less.
    pub fn image_len(&self) -> u64 {
        (FIRST_FREE * BLOCK_LEN) as u64 + self.own_len()
    }

    fn own_len(&self) -> u64 {
        let files = self
            .files
            .values()
            .map(|content| content.len().next_multiple_of(BLOCK_LEN) as u64);
        let directories = self.directories.values().map(Directory::own_len);
        let names = self.files.len() + self.directories.len() + 2;
        files.sum::<u64>() + directories.sum::<u64>() + (names * 256).next_multiple_of(BLOCK_LEN) as u64
    }
}

/// One directory of the tree, in the order of the path table: breadth first.
struct Node<'a> {
    directory: &'a Directory,
    name: &'a str,
    parent: usize,
    /// Indices of the directories in it.
    children: Vec<usize>,
    block: usize,
    len: usize,
}

/// A file system with the volume identifier `label` and `root` as its root.
///
/// # Errors
/// [`IsoError`], one variant for each way to fail.
pub fn image(label: &str, root: &Directory) -> Result<Vec<u8>, IsoError> {
    let mut nodes = walk(root)?;
    let mut next = FIRST_FREE;
    for index in 0..nodes.len() {
        // Lengths depend on names only, not on places, which are not known yet.
        let len = records(&nodes, index, &mut |_, _| 0)?.len();
        nodes[index].block = next;
        nodes[index].len = len;
        next += len / BLOCK_LEN;
    }
    let mut places: BTreeMap<(usize, &str), usize> = BTreeMap::new();
    for (index, node) in nodes.iter().enumerate() {
        for (name, content) in &node.directory.files {
            places.insert((index, name), next);
            next += content.len().div_ceil(BLOCK_LEN);
        }
    }
    number(next.saturating_mul(BLOCK_LEN))?;

    let mut image = vec![0; next * BLOCK_LEN];
    let mut put = |block: usize, bytes: &[u8]| {
        image[block * BLOCK_LEN..block * BLOCK_LEN + bytes.len()].copy_from_slice(bytes);
    };
    let (little, big) = path_tables(&nodes)?;
    put(DESCRIPTOR, &descriptor(label, next, little.len(), &nodes[0])?);
    put(TERMINATOR, b"\xffCD001\x01");
    put(PATHS_LITTLE, &little);
    put(PATHS_BIG, &big);
    for (index, node) in nodes.iter().enumerate() {
        put(
            node.block,
            &records(&nodes, index, &mut |at, name| places[&(at, name)])?,
        );
        for (name, content) in &node.directory.files {
            put(places[&(index, name.as_str())], content);
        }
    }
    Ok(image)
}

/// The directories, breadth first and in a directory by name (6.9.1).
fn walk(root: &Directory) -> Result<Vec<Node<'_>>, IsoError> {
    let node = |directory, name, parent| Node {
        directory,
        name,
        parent,
        children: Vec::new(),
        block: 0,
        len: 0,
    };
    let mut nodes = vec![node(root, "", 0)];
    let mut at = 0;
    while at < nodes.len() {
        let directory = nodes[at].directory;
        for name in directory.files.keys().chain(directory.directories.keys()) {
            if name.is_empty() || name.len() > LONGEST_NAME || name.contains(['/', '\0']) {
                return Err(IsoError::Name(name.clone()));
            }
        }
        for (name, directory) in &directory.directories {
            let index = nodes.len();
            nodes[at].children.push(index);
            nodes.push(node(directory, name, at));
        }
        at += 1;
    }
    Ok(nodes)
}

/// A number in both byte orders (7.3.3).
fn both(value: usize) -> Result<[u8; 8], IsoError> {
    let value = number(value)?;
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&value.to_le_bytes());
    bytes[4..].copy_from_slice(&value.to_be_bytes());
    Ok(bytes)
}

fn number(value: usize) -> Result<u32, IsoError> {
    u32::try_from(value).map_err(|_| IsoError::TooLarge)
}

fn byte(value: usize) -> u8 {
    u8::try_from(value).expect("names are bounded")
}

/// A name as readers without Rock Ridge see it (7.5): capitals, digits and underscores, one dot.
fn plain_name(name: &str, is_directory: bool) -> String {
    let plain = |text: &str| -> String {
        let plain = |c: char| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_uppercase()
            } else {
                '_'
            }
        };
        text.chars().map(plain).collect()
    };
    if is_directory {
        return plain(name).chars().take(31).collect();
    }
    let (stem, extension) = name.rsplit_once('.').unwrap_or((name, ""));
    let stem: String = plain(stem).chars().take(20).collect();
    let extension: String = plain(extension).chars().take(8).collect();
    format!("{stem}.{extension};1")
}

/// The directory's records, a whole number of blocks; `place` tells where the file of a name in a directory begins.
fn records<'a>(
    nodes: &[Node<'a>],
    index: usize,
    place: &mut dyn FnMut(usize, &'a str) -> usize,
) -> Result<Vec<u8>, IsoError> {
    let node = &nodes[index];
    let mut records = Vec::new();
    let here = if index == 0 { root_fields() } else { Vec::new() };
    records.push(record(
        &[0],
        node.block,
        node.len,
        true,
        &[here, posix(true, subdirectories(node))].concat(),
    )?);
    let parent = &nodes[node.parent];
    records.push(record(
        &[1],
        parent.block,
        parent.len,
        true,
        &posix(true, subdirectories(parent)),
    )?);
    let mut named = Vec::new();
    for (name, content) in &node.directory.files {
        let fields = [name_field(name), posix(false, 0)].concat();
        let plain = plain_name(name, false);
        let at = if content.is_empty() { 0 } else { place(index, name) };
        named.push((
            plain.clone(),
            record(plain.as_bytes(), at, content.len(), false, &fields)?,
        ));
    }
    for child in &node.children {
        let child = &nodes[*child];
        let fields = [name_field(child.name), posix(true, subdirectories(child))].concat();
        let plain = plain_name(child.name, true);
        named.push((
            plain.clone(),
            record(plain.as_bytes(), child.block, child.len, true, &fields)?,
        ));
    }
    // 9.3: by name.
    named.sort();
    records.extend(named.into_iter().map(|(_, record)| record));
    let mut bytes: Vec<u8> = Vec::new();
    for record in records {
        // None crosses a block's end (6.8.1.1).
        let free = bytes.len().next_multiple_of(BLOCK_LEN) - bytes.len();
        if record.len() > free {
            bytes.resize(bytes.len() + free, 0);
        }
        bytes.extend(record);
    }
    bytes.resize(bytes.len().next_multiple_of(BLOCK_LEN), 0);
    Ok(bytes)
}

fn subdirectories(node: &Node<'_>) -> usize {
    node.children.len()
}

/// A directory record (9.1) with its system use fields.
fn record(
    name: &[u8],
    block: usize,
    len: usize,
    is_directory: bool,
    fields: &[u8],
) -> Result<Vec<u8>, IsoError> {
    let mut record = vec![0, 0];
    record.extend(both(block)?);
    record.extend(both(len)?);
    // Midnight of 1 January 1970: a time of its own would make other bytes of the same data.
    record.extend([70, 1, 1, 0, 0, 0, 0]);
    record.extend([u8::from(is_directory) << 1, 0, 0]);
    record.extend([1, 0, 0, 1]);
    record.push(byte(name.len()));
    record.extend(name);
    if record.len() % 2 == 1 {
        record.push(0);
    }
    record.extend(fields);
    if record.len() % 2 == 1 {
        record.push(0);
    }
    record[0] = byte(record.len());
    Ok(record)
}

/// `SP` says that there are such fields, `ER` that they are Rock Ridge.
fn root_fields() -> Vec<u8> {
    let (id, text) = (b"RRIP_1991A", b"THE ROCK RIDGE INTERCHANGE PROTOCOL");
    let mut fields = vec![b'S', b'P', 7, 1, 0xbe, 0xef, 0];
    fields.extend([
        b'E',
        b'R',
        byte(8 + id.len() + text.len()),
        1,
        byte(id.len()),
        byte(text.len()),
        0,
        1,
    ]);
    fields.extend(id);
    fields.extend(text);
    fields
}

/// `PX`: mode, links, owner and group. Anyone may read: the file system is mounted by root alone.
fn posix(is_directory: bool, subdirectories: usize) -> Vec<u8> {
    let (mode, links) = if is_directory {
        (0o040_555, 2 + subdirectories)
    } else {
        (0o100_444, 1)
    };
    let mut field = vec![b'P', b'X', 36, 1];
    for value in [mode, links, 0, 0] {
        field.extend(both(value).expect("small numbers"));
    }
    field
}

/// `NM`: the name as it is.
fn name_field(name: &str) -> Vec<u8> {
    let mut field = vec![b'N', b'M', byte(5 + name.len()), 1, 0];
    field.extend(name.as_bytes());
    field
}

/// The path tables (9.4), little-endian and big-endian.
fn path_tables(nodes: &[Node<'_>]) -> Result<(Vec<u8>, Vec<u8>), IsoError> {
    let (mut little, mut big) = (Vec::new(), Vec::new());
    for (index, node) in nodes.iter().enumerate() {
        let name = if index == 0 {
            "\0".to_owned()
        } else {
            plain_name(node.name, true)
        };
        let block = number(node.block)?;
        let parent = u16::try_from(node.parent + 1).map_err(|_| IsoError::TooManyDirectories)?;
        let header = [byte(name.len()), 0];
        little.extend(
            [
                &header[..],
                &block.to_le_bytes(),
                &parent.to_le_bytes(),
                name.as_bytes(),
            ]
            .concat(),
        );
        big.extend(
            [
                &header[..],
                &block.to_be_bytes(),
                &parent.to_be_bytes(),
                name.as_bytes(),
            ]
            .concat(),
        );
        for table in [&mut little, &mut big] {
            table.resize(table.len().next_multiple_of(2), 0);
        }
    }
    if little.len() > BLOCK_LEN {
        return Err(IsoError::TooManyDirectories);
    }
    Ok((little, big))
}

/// The primary volume descriptor (8.4).
fn descriptor(label: &str, blocks: usize, path_table: usize, root: &Node<'_>) -> Result<Vec<u8>, IsoError> {
    let mut bytes = vec![0; BLOCK_LEN];
    bytes[..7].copy_from_slice(b"\x01CD001\x01");
    // Names of system, volume, volume set, publisher, preparer, application and three files: blank where there is none.
    for text in [8..72, 190..813] {
        bytes[text].fill(b' ');
    }
    for (place, byte) in bytes[40..72].iter_mut().zip(label.bytes()) {
        *place = byte;
    }
    bytes[80..88].copy_from_slice(&both(blocks)?);
    // Set size, sequence number, block size: two bytes in both orders.
    bytes[120..124].copy_from_slice(&[1, 0, 0, 1]);
    bytes[124..128].copy_from_slice(&[1, 0, 0, 1]);
    bytes[128..132].copy_from_slice(&[0, 8, 8, 0]);
    bytes[132..140].copy_from_slice(&both(path_table)?);
    bytes[140..144].copy_from_slice(&number(PATHS_LITTLE)?.to_le_bytes());
    bytes[148..152].copy_from_slice(&number(PATHS_BIG)?.to_be_bytes());
    let root = record(&[0], root.block, root.len, true, &[])?;
    bytes[156..156 + root.len()].copy_from_slice(&root);
    // Made and changed at midnight of 1 January 1970; no date of expiry, valid at once (8.4.26.1).
    for (at, date) in [
        (813, "1970010100000000"),
        (830, "1970010100000000"),
        (847, "0000000000000000"),
        (864, "1970010100000000"),
    ] {
        bytes[at..at + 16].copy_from_slice(date.as_bytes());
    }
    bytes[881] = 1;
    Ok(bytes)
}

#[cfg(test)]
pub(crate) mod tests;
