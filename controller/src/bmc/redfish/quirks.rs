//! What single vendors do otherwise. Pure.

/// How a boot override is written to a system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// The target, and of the rest what differs: some refuse to be told again what is so.
    Changes,
    /// Target, enabled and mode, every time.
    Whole,
}

/// Makers, as words of `Manufacturer` in lower case, whose systems want [`Shape::Whole`].
///
/// - Supermicro wants `BootSourceOverrideEnabled` every time, and loses the mode if that is left out.
/// - AMI's firmware, and ASRock Rack's, which is made of it, refuse a part of the three.
const WHOLE: &[&str] = &[
    "supermicro",
    "super micro",
    "ami",
    "american megatrends",
    "asrockrack",
    "asrock rack",
];

/// How the systems of this maker want it.
pub(super) fn shape(manufacturer: Option<&str>) -> Shape {
    let name = manufacturer.unwrap_or_default().to_lowercase();
    let words: Vec<&str> = name
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect();
    let name = format!(" {} ", words.join(" "));
    match WHOLE.iter().any(|maker| name.contains(&format!(" {maker} "))) {
        true => Shape::Whole,
        false => Shape::Changes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makers_are_known_by_whole_words() {
        for maker in [
            "Supermicro",
            "AMI",
            "American Megatrends, Inc.",
            "ASRockRack",
            "Super Micro Computer",
        ] {
            assert_eq!(shape(Some(maker)), Shape::Whole, "{maker}");
        }
        for maker in [
            Some("Dell Inc."),
            Some("HPE"),
            Some("Miami Computers"),
            Some(""),
            None,
        ] {
            assert_eq!(shape(maker), Shape::Changes, "{maker:?}");
        }
    }
}
