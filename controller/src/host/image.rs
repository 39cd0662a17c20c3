//! Which images this version can write. Pure.

use muster_proto::{
    job::{DigestAlgorithm, ImageSource},
    kinds::{ChecksumType, Image, ImageFormat},
};

/// What works, for the message that says what does not.
const WORKS: &str = "this version writes raw images, plain or compressed with zstd or gzip, from http and https, with sha256 or sha512";

/// The image as the agent is told; else why it cannot be written, and what can.
pub(super) fn source(image: &Image) -> Result<ImageSource, String> {
    let scheme = image
        .url
        .split_once("://")
        .map(|(scheme, _)| scheme.to_ascii_lowercase())
        .unwrap_or_default();
    if !matches!(scheme.as_str(), "http" | "https") {
        return Err(format!("images from `{scheme}` cannot be read: {WORKS}"));
    }
    let format = match image.format {
        None | Some(ImageFormat::Unset | ImageFormat::Raw) => None,
        Some(ImageFormat::Qcow2) => Some("qcow2"),
        Some(ImageFormat::Vdi) => Some("vdi"),
        Some(ImageFormat::Vmdk) => Some("vmdk"),
        Some(ImageFormat::LiveIso) => Some("live-iso"),
    };
    if let Some(format) = format {
        return Err(format!(
            "images of the format {format} cannot be written: {WORKS}; convert it (qemu-img convert -O raw)"
        ));
    }
    if matches!(image.format, None | Some(ImageFormat::Unset))
        && let Some(ending) = ending_of_another_format(&image.url)
    {
        return Err(format!(
            "the image's name ends in `{ending}`, and such images cannot be written: {WORKS}; convert it (qemu-img convert -O raw), \
             or set spec.image.format to raw if it is that all the same"
        ));
    }
    let checksum = image.checksum.as_deref().unwrap_or_default().trim();
    if checksum.is_empty() {
        return Err(format!("the image has no checksum: {WORKS}"));
    }
    for (what, url) in [("url", image.url.as_str()), ("checksum", checksum)] {
        if userinfo(url).is_some() {
            return Err(format!(
                "spec.image.{what} has a user or password before its host, which everybody who may look at the host would read: \
                 give an address that needs none"
            ));
        }
        if !can_be_asked_for(url) {
            return Err(format!(
                "spec.image.{what} has characters that no URL has: write them as % and two digits"
            ));
        }
    }
    let algorithm = algorithm(image.checksum_type, checksum)?;
    Ok(ImageSource {
        url: image.url.clone(),
        checksum: checksum.to_owned(),
        algorithm,
    })
}

/// How names of images end that are not written. What an image is only its first bytes tell, which the agent looks at; but where nothing is
/// said of the format, nothing is to be lost first for one that says by its name what it is.
const OTHER_FORMATS: [&str; 19] = [
    ".qcow2",
    ".qcow",
    ".qed",
    ".vmdk",
    ".vdi",
    ".vhd",
    ".vhdx",
    ".ova",
    ".iso",
    ".xz",
    ".bz2",
    ".lz4",
    ".lz",
    ".zip",
    ".7z",
    ".tar",
    ".tgz",
    ".squashfs",
    ".wim",
];

/// With which of [`OTHER_FORMATS`] the name of the file at `url` ends, whether it is packed or not.
fn ending_of_another_format(url: &str) -> Option<&'static str> {
    let name = file_name(url);
    let packed = [".zst", ".zstd", ".gz"];
    let bare = packed
        .iter()
        .find_map(|end| name.strip_suffix(end))
        .unwrap_or(&name);
    OTHER_FORMATS.into_iter().find(|end| bare.ends_with(end))
}

/// What the path of `url` ends with, in lower case.
fn file_name(url: &str) -> String {
    let whole = url.split(['?', '#']).next().unwrap_or_default();
    let (_, rest) = whole.split_once("://").unwrap_or_default();
    let (_, path) = rest.split_once('/').unwrap_or_default();
    let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    name.trim().to_ascii_lowercase()
}

/// True if `url` has no character that no URL may have (RFC 3986, section 2), and with which no HTTP request can be made.
fn can_be_asked_for(url: &str) -> bool {
    url.trim()
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && !b"<>\"`".contains(&byte))
}

/// What stands before an `@` in front of the host.
fn userinfo(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    authority.rsplit_once('@').map(|(user, _)| user)
}

/// `url` as people may read it: without its query, in which signatures stand, and without a user before its host.
pub(super) fn shown(url: &str) -> String {
    let bare = match userinfo(url) {
        Some(user) => url.replacen(&format!("{user}@"), "", 1),
        None => url.to_owned(),
    };
    match bare.split_once('?') {
        Some((bare, _)) => format!("{bare}?…"),
        None => bare,
    }
}

/// True for the URL of a list of digests.
fn is_list(checksum: &str) -> bool {
    let lower = checksum.to_ascii_lowercase();
    lower.starts_with("http://") || lower.starts_with("https://")
}

fn algorithm(declared: Option<ChecksumType>, checksum: &str) -> Result<DigestAlgorithm, String> {
    let declared = match declared {
        Some(ChecksumType::Md5) => return Err(format!("md5 proves nothing: {WORKS}")),
        Some(ChecksumType::Sha256) => DigestAlgorithm::Sha256,
        Some(ChecksumType::Sha512) => DigestAlgorithm::Sha512,
        Some(ChecksumType::Auto) | None => DigestAlgorithm::Auto,
    };
    if is_list(checksum) {
        let name = file_name(checksum);
        let is_md5 = [".md5", ".md5sum", ".md5sums"]
            .iter()
            .any(|end| name.ends_with(end));
        return match declared {
            DigestAlgorithm::Auto if is_md5 || name.starts_with("md5sum") => Err(format!(
                "the image's checksum is a list of md5, by its name, which proves nothing: {WORKS}; set spec.image.checksumType if it has others"
            )),
            declared => Ok(declared),
        };
    }
    if !checksum.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err("the image's checksum is neither hexadecimal nor an http or https URL".to_owned());
    }
    let by_length = match checksum.len() {
        32 => {
            return Err(format!(
                "the image's checksum has the length of md5, which proves nothing: {WORKS}"
            ));
        }
        64 => DigestAlgorithm::Sha256,
        128 => DigestAlgorithm::Sha512,
        length => {
            return Err(format!(
                "the image's checksum has {length} digits, which no digest has: {WORKS}"
            ));
        }
    };
    if declared != DigestAlgorithm::Auto && declared != by_length {
        return Err("the image's checksumType is not what its checksum's length says".to_owned());
    }
    Ok(by_length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_that_says_by_its_name_what_it_is_is_refused_where_nobody_says_otherwise() {
        let image = |url: &str, checksum: &str, format| Image {
            url: format!("http://h/{url}"),
            checksum: Some(checksum.to_owned()),
            format,
            ..Image::default()
        };
        let sum = "0".repeat(64);
        for format in [None, Some(ImageFormat::Unset)] {
            for url in [
                "a/os.QCOW2?x=.raw",
                "os.qcow2.gz",
                "os.raw.xz",
                "os.iso#raw",
                "os.tar.gz/",
            ] {
                let refusal = source(&image(url, &sum, format)).unwrap_err();
                assert!(refusal.contains("spec.image.format to raw"), "{url}: {refusal}");
                source(&image(url, &sum, Some(ImageFormat::Raw))).unwrap();
            }
            for url in [
                "os.raw",
                "os.img",
                "os.raw.zst",
                "os.img.gz",
                "iso",
                "os.qcow2/raw",
                "?os.qcow2",
            ] {
                source(&image(url, &sum, format)).unwrap();
            }
        }
        for list in ["http://h/os.raw.md5sum", "http://h/MD5SUMS?x", "http://h/a.md5"] {
            let mut image = image("os.raw", list, None);
            assert!(source(&image).unwrap_err().contains("md5"), "{list}");
            image.checksum_type = Some(ChecksumType::Sha256);
            source(&image).unwrap();
        }
        source(&image("os.raw", "http://h/md5/SHA256SUMS", None)).unwrap();
    }

    #[test]
    fn a_url_that_cannot_be_asked_for_is_refused_beforehand() {
        let image = |url: &str, checksum: &str| Image {
            url: url.to_owned(),
            checksum: Some(checksum.to_owned()),
            ..Image::default()
        };
        let sum = "0".repeat(64);
        for url in [
            "http://h",
            "https://h:1/a%20b.raw?x=1&y=%3C#part",
            "http://[fd00::1]?a",
        ] {
            source(&image(url, &sum)).unwrap();
        }
        for url in ["http://h/a<b", "http://h/a b", "http://h/?\"", "http://h/\u{7f}"] {
            let why = source(&image(url, &sum)).unwrap_err();
            assert!(why.contains("spec.image.url has characters"), "{why}");
            let why = source(&image("http://h/a", url)).unwrap_err();
            assert!(why.contains("spec.image.checksum"), "{why}");
        }
    }

    #[test]
    fn a_url_is_shown_without_what_may_be_secret_in_it() {
        for (url, text) in [
            ("http://a/b.raw", "http://a/b.raw"),
            ("https://a:8443/b?X-Sig=s3cret&x=1", "https://a:8443/b?…"),
            ("http://me:pass@a/b", "http://a/b"),
            ("http://me@a/b@c?d@e", "http://a/b@c?…"),
            ("http://a/b@c", "http://a/b@c"),
            ("nonsense", "nonsense"),
        ] {
            assert_eq!(shown(url), text);
        }
    }
}
