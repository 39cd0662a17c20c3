//! Which images this version can write. Pure.

use muster_proto::{
    job::{DigestAlgorithm, ImageSource},
    kinds::{ChecksumType, Image, ImageFormat},
};

/// What works, for the message that says what does not.
const WORKS: &str = "this version writes raw images, plain or compressed with zstd or gzip, from http and https, with sha256 or sha512";

/// What helps with another format of a whole disk.
const CONVERT: &str = "convert it (qemu-img convert -O raw)";
/// What helps with another compression.
const REPACK: &str = "compress it with zstd or gzip instead";
/// What helps with an archive.
const UNPACK: &str = "extract the disk image from it and provide that as raw";
/// What helps with what is no disk: a conversion gives the same bytes.
const INSTALLED: &str = "it cannot be converted to a disk image: provide a raw image of an installed disk";

/// The image as the agent is told; else why it cannot be written, and what can.
pub(super) fn source(image: &Image) -> Result<ImageSource, String> {
    let scheme = image
        .url
        .split_once("://")
        .map(|(scheme, _)| scheme.to_ascii_lowercase())
        .unwrap_or_default();
    if !matches!(scheme.as_str(), "http" | "https") {
        return Err(format!("images cannot be read from `{scheme}`: {WORKS}"));
    }
    let format = match image.format {
        None | Some(ImageFormat::Unset | ImageFormat::Raw) => None,
        Some(ImageFormat::Qcow2) => Some("qcow2"),
        Some(ImageFormat::Vdi) => Some("vdi"),
        Some(ImageFormat::Vmdk) => Some("vmdk"),
        Some(ImageFormat::LiveIso) => {
            return Err(format!(
                "a live ISO (spec.image.format is live-iso) cannot be booted: {WORKS}; {INSTALLED}"
            ));
        }
    };
    if let Some(format) = format {
        return Err(format!(
            "images in {format} format cannot be written: {WORKS}; {CONVERT}"
        ));
    }
    if matches!(image.format, None | Some(ImageFormat::Unset))
        && let Some((ending, instead)) = ending_of_another_format(&image.url)
    {
        return Err(format!(
            "the image's name ends in `{ending}`, and such images cannot be written: {WORKS}; {instead}, \
             or set spec.image.format to raw if it is a raw image despite its name"
        ));
    }
    let checksum = image.checksum.as_deref().unwrap_or_default().trim();
    if checksum.is_empty() {
        return Err(format!("the image has no checksum: {WORKS}"));
    }
    for (what, url) in [("url", image.url.as_str()), ("checksum", checksum)] {
        if userinfo(url).is_some() {
            return Err(format!(
                "spec.image.{what} contains a user or password, which everybody who may read the host could see: \
                 use a URL that needs none"
            ));
        }
        if !can_be_asked_for(url) {
            return Err(format!(
                "spec.image.{what} has characters that are not allowed in a URL: percent-encode them"
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

/// How names of images end that are not written, and what helps. What an image is only its first bytes tell, which the agent looks at; but
/// where nothing is said of the format, nothing is to be lost first for one that says by its name what it is.
const OTHER_FORMATS: [(&str, &str); 19] = [
    (".qcow2", CONVERT),
    (".qcow", CONVERT),
    (".qed", CONVERT),
    (".vmdk", CONVERT),
    (".vdi", CONVERT),
    (".vhd", CONVERT),
    (".vhdx", CONVERT),
    (".ova", UNPACK),
    (".iso", INSTALLED),
    (".xz", REPACK),
    (".bz2", REPACK),
    (".lz4", REPACK),
    (".lz", REPACK),
    (".zip", UNPACK),
    (".7z", UNPACK),
    (".tar", UNPACK),
    (".tgz", UNPACK),
    (".squashfs", INSTALLED),
    (".wim", INSTALLED),
];

/// Which of [`OTHER_FORMATS`] the name of the file at `url` ends with, whether it is packed or not.
fn ending_of_another_format(url: &str) -> Option<(&'static str, &'static str)> {
    let name = file_name(url);
    let packed = [".zst", ".zstd", ".gz"];
    let bare = packed
        .iter()
        .find_map(|end| name.strip_suffix(end))
        .unwrap_or(&name);
    OTHER_FORMATS.into_iter().find(|(end, _)| bare.ends_with(end))
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
        Some(ChecksumType::Md5) => return Err(format!("md5 is not secure: {WORKS}")),
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
                "the image's checksum is, by its name, a list of md5 checksums, and md5 is not secure: {WORKS}; set spec.image.checksumType if the list has other checksums"
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
                "the image's checksum has the length of md5, which is not secure: {WORKS}"
            ));
        }
        64 => DigestAlgorithm::Sha256,
        128 => DigestAlgorithm::Sha512,
        length => {
            return Err(format!(
                "the image's checksum has {length} digits, which matches no supported digest: {WORKS}"
            ));
        }
    };
    if declared != DigestAlgorithm::Auto && declared != by_length {
        return Err("the image's checksumType does not match the length of its checksum".to_owned());
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
    fn a_conversion_is_advised_only_where_it_makes_a_disk() {
        let refusal = |url: &str, format| {
            let image = Image {
                url: format!("http://h/{url}"),
                checksum: Some("0".repeat(64)),
                format,
                ..Image::default()
            };
            source(&image).unwrap_err()
        };
        for format in [ImageFormat::Qcow2, ImageFormat::Vdi, ImageFormat::Vmdk] {
            assert!(refusal("os", Some(format)).contains("; convert it (qemu-img"));
        }
        let live = refusal("os.iso", Some(ImageFormat::LiveIso));
        assert!(
            live.starts_with("a live ISO (spec.image.format is live-iso) cannot be booted: "),
            "{live}"
        );
        assert!(
            live.ends_with(
                "; it cannot be converted to a disk image: provide a raw image of an installed disk"
            )
        );
        for (url, helps) in [
            ("os.vhdx", "; convert it (qemu-img"),
            ("os.iso.gz", "; it cannot be converted to a disk image"),
            ("os.squashfs", "; it cannot be converted to a disk image"),
            ("os.raw.xz", "; compress it with zstd or gzip instead"),
            ("os.tar.gz", "; extract the disk image from it"),
        ] {
            let why = refusal(url, None);
            assert!(why.contains(helps), "{url}: {why}");
            assert_eq!(why.contains("qemu-img"), url == "os.vhdx", "{url}: {why}");
        }
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
