//! What single vendors do otherwise. Pure.

/// How a boot override is written to a system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// The target, and of the rest what differs: some refuse to be told again what is so.
    Changes,
    /// Target, enabled and mode, every time.
    Whole,
}

/// Makers, as words in lower case, whose systems want [`Shape::Whole`]. Others may, too, and are told so where they refuse the changes.
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

/// The shapes in which a system of these makers, as it and its service name them, is told its override, in the order in which they are tried.
pub(super) fn shapes<'a>(mut makers: impl Iterator<Item = &'a str>) -> &'static [Shape] {
    match makers.any(wants_whole) {
        true => &[Shape::Whole],
        false => &[Shape::Changes, Shape::Whole],
    }
}

fn wants_whole(maker: &str) -> bool {
    let name = maker.to_lowercase();
    let words: Vec<&str> = name
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect();
    let name = format!(" {} ", words.join(" "));
    WHOLE.iter().any(|maker| name.contains(&format!(" {maker} ")))
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
            let makers = ["GIGABYTE", maker].into_iter();
            assert_eq!(shapes(makers), [Shape::Whole], "{maker}");
        }
        for maker in ["Dell Inc.", "HPE", "Miami Computers", ""] {
            let makers = [maker].into_iter();
            assert_eq!(shapes(makers), [Shape::Changes, Shape::Whole], "{maker}");
        }
        assert_eq!(shapes(std::iter::empty()), [Shape::Changes, Shape::Whole]);
    }
}
