//! "Did you mean": the nearest of the words that would have been right.

/// The nearest of `known` to `word`, if one is near enough to be what was meant.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    // Words beyond this are no typing slips, and the distance is quadratic.
    if lower.chars().count() > 64 {
        return None;
    }
    known
        .into_iter()
        .map(|candidate| (distance(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.chars().count() / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance: how many characters must be added, removed or replaced.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (position, from) in from.chars().enumerate() {
        let mut diagonal = position;
        row[0] = position + 1;
        for (column, to) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_word_and_a_different_word_finds_none() {
        let keys = ["srcPort", "dstPort", "srcIP", "proto"];
        let cases = [
            ("srcport", Some("srcPort")),
            ("srcPrt", Some("srcPort")),
            ("scrPort", Some("srcPort")),
            ("protocol", None),
            ("protoo", Some("proto")),
            ("hostname", None),
            ("", None),
        ];
        for (word, expected) in cases {
            assert_eq!(nearest(word, keys), expected, "{word}");
        }
    }
}
