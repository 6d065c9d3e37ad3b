//! Durations as flags write them: `15s`, `500ms`, `1h30m`.

use std::time::Duration;

/// Reads a duration: whole numbers, each with its unit, the largest first.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("{text:?} is not a duration; write whole numbers with h, m, s or ms, as in 15s or 1h30m");
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|character: char| !character.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, after) = rest.split_at(digits);
        let unit = after.find(|character: char| character.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let milliseconds = match unit {
            "h" => 3_600_000,
            "m" => 60_000,
            "s" => 1000,
            "ms" => 1,
            _ => return Err(wrong()),
        };
        let part = number.checked_mul(milliseconds).map(Duration::from_millis).ok_or_else(wrong)?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = after;
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_with_units_are_read() {
        let cases = [("15s", 15_000), ("500ms", 500), ("1h30m", 5_400_000), ("2m5s", 125_000), ("0s", 0)];
        for (text, milliseconds) in cases {
            assert_eq!(parse(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused_with_an_example() {
        for text in
            ["", "15", "s", "15 s", "1.5s", "-1s", "15sec", "99999999999999999999s", "9999999999999999h"]
        {
            let error = parse(text).unwrap_err();
            assert!(
                error.contains(&format!("{text:?}")) && error.contains("15s or 1h30m"),
                "{text}: {error}"
            );
        }
    }
}
