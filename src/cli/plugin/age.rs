//! How long ago something was, in the few letters that kubectl's AGE columns take.

use k8s_openapi::jiff::Timestamp;

/// The time since an RFC 3339 instant; `-` when that is none.
pub(crate) fn since(instant: &str, now: Timestamp) -> String {
    let Ok(instant) = instant.parse::<Timestamp>() else { return "-".to_owned() };
    short((now.as_second() - instant.as_second()).max(0))
}

/// Seconds in the two largest units that matter.
fn short(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let with = |first: i64, unit: char, rest: i64, small: char| match rest {
        0 => format!("{first}{unit}"),
        rest => format!("{first}{unit}{rest}{small}"),
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => with(minutes, 'm', seconds % 60, 's'),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => with(hours, 'h', minutes % 60, 'm'),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => with(days, 'd', hours % 24, 'h'),
        _ => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_as_kubectl_s_do() {
        let now = "2026-03-01T00:00:00Z".parse().unwrap();
        for (instant, expected) in [
            ("2026-02-28T23:59:50Z", "10s"),
            ("2026-02-28T23:57:30Z", "2m30s"),
            ("2026-02-28T23:00:00Z", "60m"),
            ("2026-02-28T20:00:00Z", "4h"),
            ("2026-02-28T19:50:00Z", "4h10m"),
            ("2026-02-28T00:00:00Z", "24h"),
            ("2026-02-26T21:00:00Z", "2d3h"),
            ("2026-01-01T00:00:00Z", "59d"),
            ("2026-03-01T00:00:10Z", "0s"),
            ("", "-"),
        ] {
            assert_eq!(since(instant, now), expected, "{instant}");
        }
    }
}
