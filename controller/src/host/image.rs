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
            "images of the format {format} cannot be written: {WORKS}"
        ));
    }
    let checksum = image.checksum.as_deref().unwrap_or_default().trim();
    if checksum.is_empty() {
        return Err(format!("the image has no checksum: {WORKS}"));
    }
    let algorithm = algorithm(image.checksum_type, checksum)?;
    Ok(ImageSource {
        url: image.url.clone(),
        checksum: checksum.to_owned(),
        algorithm,
    })
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
        return Ok(declared);
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
