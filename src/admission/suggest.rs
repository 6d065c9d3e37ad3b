//! "Did you mean": the nearest of the words that would have been right.

/// A beginning that is shorter than this says little of what was meant.
const TELLING_BEGINNING: usize = 4;

/// The nearest of `known` to `word`, if one is near enough to be what was meant: a few slips away, or a word that
/// goes on where the other ends, as `protocol` does after `proto`.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    // Words beyond this are no typing slips, and the distance is quadratic.
    if lower.chars().count() > 64 {
        return None;
    }
    let nearness = |candidate: &str| {
        let candidate = candidate.to_lowercase();
        let distance = distance(&lower, &candidate);
        let length = candidate.chars().count();
        let is_near = distance <= length / 3 || is_continued(&lower, &candidate);
        is_near.then_some(distance)
    };
    let near = known.into_iter().filter_map(|candidate| Some((nearness(candidate)?, candidate)));
    near.min_by_key(|(distance, _)| *distance).map(|(_, candidate)| candidate)
}

/// Whether one word begins with the whole other.
fn is_continued(one: &str, other: &str) -> bool {
    let shorter = one.chars().count().min(other.chars().count());
    TELLING_BEGINNING <= shorter && (one.starts_with(other) || other.starts_with(one))
}

/// How many characters must be added, removed, replaced or swapped with their neighbour (optimal string alignment).
fn distance(from: &str, to: &str) -> usize {
    let from: Vec<char> = from.chars().collect();
    let to: Vec<char> = to.chars().collect();
    let mut rows = vec![vec![0; to.len() + 1]; from.len() + 1];
    rows[0] = (0..=to.len()).collect();
    for row in 1..=from.len() {
        rows[row][0] = row;
        for column in 1..=to.len() {
            let replaced = rows[row - 1][column - 1] + usize::from(from[row - 1] != to[column - 1]);
            let changed = replaced.min(rows[row - 1][column] + 1).min(rows[row][column - 1] + 1);
            let is_swap =
                1 < row && 1 < column && from[row - 1] == to[column - 2] && from[row - 2] == to[column - 1];
            rows[row][column] = if is_swap { changed.min(rows[row - 2][column - 2] + 1) } else { changed };
        }
    }
    rows[from.len()][to.len()]
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
            ("protocol", Some("proto")),
            ("srcPortRange", Some("srcPort")),
            ("src", None),
            ("port", None),
            ("protoo", Some("proto")),
            ("rpoto", Some("proto")),
            ("hostname", None),
            ("", None),
        ];
        for (word, expected) in cases {
            assert_eq!(nearest(word, keys), expected, "{word}");
        }
    }
}
