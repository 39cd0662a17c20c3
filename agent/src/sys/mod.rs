//! The one place that knows where Linux keeps its files: everything else asks a [`Root`] and reads below it.
//!
//! ```text
//! let root = Root::default();                       // the running machine; Root::new(dir) for a captured tree
//! let disk = root.sys("block/sda");                 // a PathBuf
//! let serial = sys::text(&disk.join("serial"));     // cleaned, bounded
//! ```
//!
//! Reads are bounded, text passes [`muster_proto::text::clean`], and an attribute that does not apply to a device
//! ([`ReadError::is_absent`]) can be told from one that could not be read.

mod read;
mod root;

pub use read::{
    LIMIT, ReadError, absent_as_none, base, bytes, flag, head, link_name, list, number, optional_flag,
    optional_number, optional_text, tail, text,
};
pub use root::Root;

#[cfg(test)]
pub(crate) mod tree;
