//! How durations (`10s`, `100ms`) and sizes (`64 KB`, `3.1 GB`) are written. What is written from a value reads back as
//! the same value.

use std::time::Duration;

/// The longest duration: a leap year. Far from where adding it to a clock could overflow.
pub const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// Units of a duration, in milliseconds, the largest first.
const DURATION_UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Units of a size, in bytes, the largest first.
const SIZE_UNITS: [(&str, u64); 4] = [("GB", 1 << 30), ("MB", 1 << 20), ("KB", 1 << 10), ("B", 1)];

/// More digits than this after the point of a size say nothing that a byte could show.
const FRACTION_DIGITS_MAX: usize = 12;

/// `10s`, `100ms`, `5m`, `1h`: a whole number and a unit. `None` if it is anything else or longer than 366 days.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split_unit(text);
    let unit_ms = unit_named(&DURATION_UNITS, unit)?;
    let duration = Duration::from_millis(whole(number)?.checked_mul(unit_ms)?);
    (duration <= DURATION_MAX).then_some(duration)
}

/// In the largest unit that leaves a whole number; what is below a millisecond is not shown.
pub fn format_duration(duration: Duration) -> String {
    let total_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if total_ms == 0 {
        return "0s".to_owned();
    }
    let (unit, unit_ms) = largest_whole(&DURATION_UNITS, total_ms);
    format!("{}{unit}", total_ms / unit_ms)
}

/// `64 KB`, `3.1 GB`: a number and a unit, rounded down to whole bytes. `None` if it is anything else or does not fit.
pub fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text);
    let unit_bytes = u128::from(unit_named(&SIZE_UNITS, unit)?);
    let (integer, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if fraction.len() > FRACTION_DIGITS_MAX {
        return None;
    }
    // Decimal digits are scaled, not divided, so that 3.1 GB is the same number on every machine.
    let scale = 10u128.pow(fraction.len() as u32);
    let scaled = u128::from(whole(integer)?) * scale + u128::from(whole(fraction)?);
    u64::try_from(scaled.checked_mul(unit_bytes)? / scale).ok()
}

/// In the largest unit that leaves a whole number.
pub fn format_size(bytes: u64) -> String {
    let (unit, unit_bytes) = largest_whole(&SIZE_UNITS, bytes.max(1));
    format!("{} {unit}", bytes / unit_bytes)
}

/// The number and the unit; spaces between the two are allowed.
fn split_unit(text: &str) -> (&str, &str) {
    let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    (number, unit.trim_start_matches(' '))
}

/// Digits only: Rust would also read a sign.
fn whole(digits: &str) -> Option<u64> {
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

fn unit_named(units: &[(&str, u64)], name: &str) -> Option<u64> {
    units.iter().find(|(unit, _)| unit.eq_ignore_ascii_case(name)).map(|(_, factor)| *factor)
}

fn largest_whole(units: &[(&'static str, u64)], value: u64) -> (&'static str, u64) {
    let found = units.iter().find(|(_, factor)| value.is_multiple_of(*factor));
    *found.expect("the last unit is 1, which divides every number")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations() {
        let check = |text, expected: Option<u64>| {
            assert_eq!(parse_duration(text), expected.map(Duration::from_millis), "{text}");
        };
        check("0s", Some(0));
        check("100ms", Some(100));
        check("10s", Some(10_000));
        check("10 s", Some(10_000));
        check("10m", Some(600_000));
        check("1h", Some(3_600_000));
        check("8784h", Some(DURATION_MAX.as_millis() as u64));
        for refused in ["", "10", "s", "-1s", "+1s", "1.5s", "1h30m", "10 d", "8785h", "99999999999999999999s", "٣s"] {
            check(refused, None);
        }
    }

    #[test]
    fn sizes() {
        let check = |text, expected| assert_eq!(parse_size(text), expected, "{text}");
        check("0 B", Some(0));
        check("64 KB", Some(65536));
        check("64KB", Some(65536));
        check("64 kb", Some(65536));
        check("8 MB", Some(8 << 20));
        check("3.1 GB", Some(3_328_599_654));
        check("0.5 KB", Some(512));
        check("17179869183 GB", Some(17_179_869_183 << 30));
        for refused in
            ["", "64", "KB", "1 TB", "-1 KB", "1. KB", ".5 KB", "1.2.3 KB", "17179869184 GB", "1.0000000000001 B"]
        {
            check(refused, None);
        }
    }

    proptest! {
        #[test]
        fn a_duration_reads_back(ms in 0..=DURATION_MAX.as_millis() as u64) {
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Some(duration));
        }

        #[test]
        fn a_size_reads_back(bytes: u64, shift in 0u32..40) {
            let bytes = bytes >> shift << shift;
            prop_assert_eq!(parse_size(&format_size(bytes)), Some(bytes));
        }

        #[test]
        fn no_text_panics(text: String, number in "[0-9.]{0,40} ?[a-zA-Z]{0,3}") {
            let _ = (parse_duration(&text), parse_size(&text));
            let _ = (parse_duration(&number), parse_size(&number));
        }
    }
}
