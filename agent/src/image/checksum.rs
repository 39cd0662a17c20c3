//! What the digest of an image must be. Pure.

use std::fmt;

use muster_proto::job::DigestAlgorithm;
use ring::digest;

/// The digest that an image's bytes must have, as they come from the network.
#[derive(Clone, PartialEq, Eq)]
pub struct Wanted {
    algorithm: Algorithm,
    value: Vec<u8>,
}

/// The algorithms that count as proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    Sha256,
    Sha512,
}

/// There is no usable digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChecksumError {
    /// None was given.
    #[error("verify the image: it has no checksum, and no image is written without one")]
    None,
    /// It is neither a digest nor a URL.
    #[error("parse the checksum {0:?}: it is neither a SHA-256 or SHA-512 digest in hexadecimal nor a URL")]
    Malformed(String),
    /// A newer controller knows it.
    #[error(
        "verify the image: this agent does not support its checksum algorithm; next: boot a ramdisk of the controller's version"
    )]
    UnknownAlgorithm,
    /// MD5 and SHA-1 can be forged.
    #[error("verify the image with {0}: such a checksum can be forged; give a SHA-256 or SHA-512 digest")]
    Weak(&'static str),
    /// Its length is that of another algorithm.
    #[error("parse the checksum: by its length it is {found}, but the image declares {meant}")]
    OtherAlgorithm {
        /// By its length.
        found: &'static str,
        /// What was asked for.
        meant: &'static str,
    },
    /// What should be the list of digests is something else.
    #[error("read the checksum list: it is {what}; {instead}")]
    NoList {
        /// What it is.
        what: &'static str,
        /// What to do.
        instead: &'static str,
    },
    /// The list of digests has no line for the image.
    #[error("find the checksum of {0:?}: the checksum list has no line for it")]
    NotListed(String),
}

impl Algorithm {
    /// The one that is `declared`; none: the digest's length tells.
    fn meant(declared: DigestAlgorithm) -> Result<Option<Algorithm>, ChecksumError> {
        match declared {
            DigestAlgorithm::Auto => Ok(None),
            DigestAlgorithm::Sha256 => Ok(Some(Algorithm::Sha256)),
            DigestAlgorithm::Sha512 => Ok(Some(Algorithm::Sha512)),
            DigestAlgorithm::Unknown => Err(ChecksumError::UnknownAlgorithm),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    fn ring(self) -> &'static digest::Algorithm {
        match self {
            Algorithm::Sha256 => &digest::SHA256,
            Algorithm::Sha512 => &digest::SHA512,
        }
    }
}

impl Wanted {
    /// Whether a digest by `algorithm` can be compared here, before one is looked for.
    ///
    /// # Errors
    /// [`ChecksumError::UnknownAlgorithm`].
    pub fn can_be_by(algorithm: DigestAlgorithm) -> Result<(), ChecksumError> {
        Algorithm::meant(algorithm).map(drop)
    }

    /// A digest written down in hexadecimal.
    ///
    /// # Errors
    /// [`ChecksumError`].
    pub fn parse(text: &str, algorithm: DigestAlgorithm) -> Result<Wanted, ChecksumError> {
        let meant = Algorithm::meant(algorithm)?;
        let text = text.trim();
        if text.is_empty() {
            return Err(ChecksumError::None);
        }
        let malformed = || ChecksumError::Malformed(muster_proto::text::clean(text.as_bytes()));
        let value = from_hex(text).ok_or_else(malformed)?;
        let found = match value.len() {
            16 => return Err(ChecksumError::Weak("MD5")),
            20 => return Err(ChecksumError::Weak("SHA-1")),
            32 => Algorithm::Sha256,
            64 => Algorithm::Sha512,
            _ => return Err(malformed()),
        };
        let meant = meant.unwrap_or(found);
        if meant == found {
            Ok(Wanted {
                algorithm: found,
                value,
            })
        } else {
            Err(ChecksumError::OtherAlgorithm {
                found: found.name(),
                meant: meant.name(),
            })
        }
    }

    /// The same as [`Wanted::from_list`] of the file that the list is.
    ///
    /// # Errors
    /// [`ChecksumError`].
    pub fn from_file(
        file: &[u8],
        names: &[impl AsRef<str>],
        algorithm: DigestAlgorithm,
    ) -> Result<Wanted, ChecksumError> {
        // As PowerShell writes what it is told to send to a file.
        if file.starts_with(b"\xff\xfe") || file.starts_with(b"\xfe\xff") {
            return Err(ChecksumError::NoList {
                what: "UTF-16 text",
                instead: "save it as UTF-8",
            });
        }
        // Editors for Windows put a byte order mark there.
        let file = file.strip_prefix(b"\xef\xbb\xbf").unwrap_or(file);
        if is_web_page(file) {
            return Err(ChecksumError::NoList {
                what: "a web page",
                instead: "check the URL",
            });
        }
        Wanted::from_list(&String::from_utf8_lossy(file), names, algorithm)
    }

    /// The digest of the file that has one of `names` in a list: `sha256sum`'s form, BSD's or OpenSSL's, or one digest that stands alone.
    ///
    /// # Errors
    /// [`ChecksumError`].
    pub fn from_list(
        list: &str,
        names: &[impl AsRef<str>],
        algorithm: DigestAlgorithm,
    ) -> Result<Wanted, ChecksumError> {
        let lines: Vec<&str> = list
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .collect();
        if let [line] = lines[..]
            && !line.contains(char::is_whitespace)
        {
            return Wanted::parse(line, algorithm);
        }
        let name = names.first().map_or("", AsRef::as_ref);
        let mut failed = ChecksumError::NotListed(muster_proto::text::clean(name.as_bytes()));
        // A file may be called as another one is once its name is decoded.
        let digests = names
            .iter()
            .flat_map(|name| lines.iter().filter_map(|line| digest_for(line, name.as_ref())));
        for digest in digests {
            // There may be lines of several algorithms for one file.
            match Wanted::parse(digest, algorithm) {
                Ok(wanted) => return Ok(wanted),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// Takes the image's bytes in.
    pub fn begin(&self) -> Digest {
        Digest {
            algorithm: self.algorithm,
            context: digest::Context::new(self.algorithm.ring()),
        }
    }

    /// Whether `found` is this.
    ///
    /// # Errors
    /// Both, for people.
    pub fn compare(&self, found: &Digested) -> Result<(), Mismatch> {
        if found.algorithm == self.algorithm && found.value == self.value {
            return Ok(());
        }
        Err(Mismatch {
            wanted: self.to_string(),
            found: found.to_string(),
        })
    }
}

/// The image is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its digest is {found}, but {wanted} is expected")]
pub struct Mismatch {
    /// What it must be.
    pub wanted: String,
    /// What it is.
    pub found: String,
}

/// A digest in the making.
pub struct Digest {
    algorithm: Algorithm,
    context: digest::Context,
}

impl Digest {
    /// The next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
    }

    /// The digest of all of them.
    pub fn finish(self) -> Digested {
        Digested {
            algorithm: self.algorithm,
            value: self.context.finish().as_ref().to_vec(),
        }
    }
}

/// The digest of the bytes that came.
#[derive(Clone, PartialEq, Eq)]
pub struct Digested {
    algorithm: Algorithm,
    value: Vec<u8>,
}

impl fmt::Display for Digested {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.algorithm.name())?;
        self.value.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.value.clone();
        let algorithm = self.algorithm;
        Digested { algorithm, value }.fmt(f)
    }
}

impl fmt::Debug for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Digested {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Digest").finish_non_exhaustive()
    }
}

/// The digest in a line, if the line is for `name`. A path before the name is no matter.
fn digest_for<'l>(line: &'l str, name: &str) -> Option<&'l str> {
    let is_it = |found: &str| found.rsplit('/').next() == Some(name);
    if let Some((found, digest)) = tagged(line) {
        return is_it(found).then_some(digest);
    }
    // `digest  name`, or `digest *name` for binary files.
    let (digest, found) = line.split_once(char::is_whitespace)?;
    let found = found.trim_start();
    is_it(found.strip_prefix('*').unwrap_or(found)).then_some(digest)
}

/// The name and the digest in a line of BSD's form, `SHA256 (name) = digest`, or of OpenSSL's, `SHA2-256(name)= digest`. Others have digests
/// of the same length, such as BLAKE2b.
fn tagged(line: &str) -> Option<(&str, &str)> {
    let (head, digest) = line.rsplit_once('=')?;
    let (algorithm, name) = head.trim_end().strip_suffix(')')?.split_once('(')?;
    let algorithm = algorithm.trim_end().replace('-', "").to_ascii_uppercase();
    let is_known = ["SHA256", "SHA2256", "SHA512", "SHA2512", "SHA1", "MD5"].contains(&&*algorithm);
    is_known.then_some((name, digest.trim_start()))
}

fn is_web_page(file: &[u8]) -> bool {
    let file = file.trim_ascii_start();
    let begins = |tag: &str| {
        let begin = file.get(..tag.len());
        begin.is_some_and(|begin| begin.eq_ignore_ascii_case(tag.as_bytes()))
    };
    begins("<!doctype") || begins("<html")
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text
        .chars()
        .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect::<Option<_>>()?;
    digits.len().is_multiple_of(2).then(|| {
        digits
            .chunks_exact(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AUTO: DigestAlgorithm = DigestAlgorithm::Auto;

    fn sha256() -> String {
        "ab".repeat(32)
    }

    fn sha512() -> String {
        "CD".repeat(64)
    }

    #[test]
    fn a_digest_is_known_by_its_length() {
        assert_eq!(
            Wanted::parse(&sha256(), AUTO).unwrap().to_string(),
            format!("sha256:{}", sha256())
        );
        assert_eq!(
            Wanted::parse(&sha512(), DigestAlgorithm::Sha512)
                .unwrap()
                .to_string(),
            format!("sha512:{}", sha512().to_lowercase())
        );
        assert!(matches!(
            Wanted::parse(&sha512(), DigestAlgorithm::Sha256),
            Err(ChecksumError::OtherAlgorithm { .. })
        ));
        assert_eq!(
            Wanted::parse(&"ab".repeat(16), AUTO),
            Err(ChecksumError::Weak("MD5"))
        );
        assert_eq!(Wanted::parse(" ", AUTO), Err(ChecksumError::None));
        assert_eq!(
            Wanted::parse(&sha256(), DigestAlgorithm::Unknown),
            Err(ChecksumError::UnknownAlgorithm)
        );
        for text in ["ab", "xyz", &"a".repeat(63), "ü"] {
            assert!(
                matches!(Wanted::parse(text, AUTO), Err(ChecksumError::Malformed(_))),
                "{text}"
            );
        }
    }

    #[test]
    fn every_form_of_list_is_understood() {
        let wanted = Wanted::parse(&sha256(), AUTO).unwrap();
        let digest = sha256();
        for list in [
            format!("{digest}\n"),
            format!("{}  b.raw\n{digest}  a.raw\n", "00".repeat(32)),
            format!("# sums\n\n{digest} *./a.raw\n{}  a.raw.sig\n", "00".repeat(32)),
            format!("SHA512 (a.raw) = {}\nSHA256 (a.raw) = {digest}\n", "0".repeat(12)),
            format!(
                "BLAKE2s (a.raw) = {}\nSHA3-256 (a.raw) = {}\nSHA2-256 (a.raw) = {digest}\n",
                "11".repeat(32),
                "22".repeat(32)
            ),
            format!(
                "MD5 (a.raw) = {}\nSHA256 (dir/a.raw) = {digest}\r\n",
                "00".repeat(16)
            ),
            // As OpenSSL 3 and 1 write it.
            format!("SHA2-256(a.raw)= {digest}\n"),
            format!("SHA512(a.raw)= {}\nSHA256(./a.raw)= {digest}\n", "0".repeat(12)),
        ] {
            assert_eq!(
                Wanted::from_list(&list, &["a.raw"], AUTO).as_ref(),
                Ok(&wanted),
                "{list}"
            );
        }
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_list_and_what_is_no_list_is_named() {
        let from_file = |file: &[u8]| Wanted::from_file(file, &["a.raw"], AUTO);
        let wanted = Wanted::parse(&sha256(), AUTO);
        for list in [sha256(), format!("{}  a.raw\r\n", sha256())] {
            assert_eq!(from_file(list.as_bytes()), wanted);
            assert_eq!(from_file(format!("\u{feff}{list}").as_bytes()), wanted, "{list}");
            let little: Vec<u8> = format!("\u{feff}{list}")
                .encode_utf16()
                .flat_map(u16::to_le_bytes)
                .collect();
            let big: Vec<u8> = little.chunks(2).flat_map(|two| [two[1], two[0]]).collect();
            for file in [little, big] {
                let refused = from_file(&file).unwrap_err().to_string();
                assert!(refused.contains("UTF-16"), "{refused}");
            }
        }
        for page in ["<html><body>", "\u{feff}\n<!doctype HTML>\n"] {
            let refused = from_file(page.as_bytes()).unwrap_err().to_string();
            assert!(refused.contains("a web page"), "{refused}");
        }
    }

    #[test]
    fn a_list_without_the_image_is_refused() {
        let list = format!("{}  aXraw\n{}  xa.raw\n", sha256(), sha256());
        assert_eq!(
            Wanted::from_list(&list, &["a.raw"], AUTO),
            Err(ChecksumError::NotListed("a.raw".to_owned())),
            "a name is no pattern and no suffix"
        );
        // What only looks like OpenSSL's form is a name, too.
        let odd = format!("{}  a(b)=c\n{}  other\n", sha256(), sha256());
        Wanted::from_list(&odd, &["a(b)=c"], AUTO).unwrap();
        let encoded = format!("{}  a+b.raw\n", sha256());
        Wanted::from_list(&encoded, &["a%2Bb.raw", "a+b.raw"], AUTO).unwrap();
        // Another file may be called as this one is once its name is decoded.
        let both = format!("{}  a+b.raw\n{}  a%2Bb.raw\n", "1".repeat(64), "2".repeat(64));
        assert_eq!(
            Wanted::from_list(&both, &["a%2Bb.raw", "a+b.raw"], AUTO),
            Wanted::parse(&"2".repeat(64), AUTO)
        );
        let weak = format!("{}  a.raw\n", "00".repeat(16));
        assert_eq!(
            Wanted::from_list(&weak, &["a.raw"], AUTO),
            Err(ChecksumError::Weak("MD5"))
        );
    }

    #[test]
    fn digests_are_those_of_the_standard() {
        // FIPS 180-4, "abc".
        let wanted = Wanted::parse(
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            AUTO,
        )
        .unwrap();
        let mut digest = wanted.begin();
        digest.update(b"a");
        digest.update(b"bc");
        wanted.compare(&digest.finish()).unwrap();
        wanted.compare(&wanted.begin().finish()).unwrap_err();
    }

    proptest! {
        #[test]
        fn arbitrary_lists_never_panic(list: String, name in "[a-z.]{0,3}") {
            let _ = Wanted::from_list(&list, &[name], AUTO);
        }
    }
}
