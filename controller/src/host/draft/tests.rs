use super::*;

#[test]
fn a_message_that_is_cut_shows_it_and_leaves_no_bracket_open() {
    let fits = "a".repeat(WORDS);
    assert_eq!(bounded(&fits), fits);
    for (begin, end) in [("b ", "a…"), ("(b) ", "a…"), ("failed (its log ends: ", "a…)")] {
        let cut = bounded(&(begin.to_owned() + &fits));
        assert!(cut.starts_with(begin) && cut.ends_with(end), "{cut}");
        assert!(cut.len() <= WORDS);
        assert_eq!(bounded(&cut), cut);
    }
}
