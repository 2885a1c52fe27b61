//! Sizes, durations and rates as people write them: `10GiB`, `7d`, `2000/s`. Parsing reports what would be right.

use std::fmt;
use std::time::Duration;

/// A number of bytes, written with a unit (`64KiB`, `1.5GB`, `512B`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

/// So many messages, or bytes, in a time (`100/s`, `1MiB/s`, `6000/m`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many; at least one.
    amount: u64,
    /// In which time.
    per: Duration,
}

/// Text that is no size, duration or rate; says what would be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a size.
    #[error("`{0}` is no size: write a number and a unit, such as `64KiB`, `10GiB` or `500MB`")]
    Size(String),
    /// Not a duration.
    #[error("`{0}` is no duration: write a number and a unit, such as `200ms`, `30s`, `5m`, `12h` or `7d`")]
    Duration(String),
    /// Not a rate of messages.
    #[error("`{0}` is no rate: write a number and a time, such as `100/s`, `600/m` or `5000/h`")]
    CountRate(String),
    /// Not a rate of bytes.
    #[error("`{0}` is no rate of bytes: write a size and a time, such as `64KiB/s` or `10MiB/m`")]
    ByteRate(String),
}

const SIZE_UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

const DURATION_UNITS_MS: [(&str, u64); 6] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000), ("w", 604_800_000)];

impl ByteSize {
    /// Reads `64KiB`, `1.5 GB`, `512B`.
    ///
    /// # Errors
    /// [`UnitError::Size`] for anything else, a number without a unit included.
    pub fn parse(text: &str) -> Result<Self, UnitError> {
        scaled(text, &SIZE_UNITS).map(Self).ok_or_else(|| UnitError::Size(text.to_owned()))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0;
        for (unit, scale) in [("TiB", 1_u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
            if bytes >= scale {
                let tenths = u128::from(bytes) * 10 / u128::from(scale);
                return if tenths.is_multiple_of(10) {
                    write!(f, "{}{unit}", tenths / 10)
                } else {
                    write!(f, "{}.{}{unit}", tenths / 10, tenths % 10)
                };
            }
        }
        write!(f, "{bytes}B")
    }
}

impl Rate {
    /// Reads `100/s`, `600/m`, `5000/h`.
    ///
    /// # Errors
    /// [`UnitError::CountRate`] for anything else, none at all included.
    pub fn parse_count(text: &str) -> Result<Self, UnitError> {
        let parse = |text: &str| Self::parse(text, |amount| amount.parse().ok());
        parse(text).ok_or_else(|| UnitError::CountRate(text.to_owned()))
    }

    /// Reads `64KiB/s`, `10MiB/m`.
    ///
    /// # Errors
    /// [`UnitError::ByteRate`] for anything else, none at all included.
    pub fn parse_bytes(text: &str) -> Result<Self, UnitError> {
        let parse = |text: &str| Self::parse(text, |amount| ByteSize::parse(amount).ok().map(|size| size.0));
        parse(text).ok_or_else(|| UnitError::ByteRate(text.to_owned()))
    }

    fn parse(text: &str, amount: impl Fn(&str) -> Option<u64>) -> Option<Self> {
        let (many, unit) = text.trim().split_once('/')?;
        let per = match unit.trim() {
            "s" => 1,
            "m" | "min" => 60,
            "h" => 3_600,
            _ => return None,
        };
        let amount = amount(many.trim()).filter(|amount| *amount > 0)?;
        Some(Self { amount, per: Duration::from_secs(per) })
    }

    /// How long so many take.
    #[must_use]
    pub fn time_of(self, count: u64) -> Duration {
        let nanos = self.per.as_nanos() * u128::from(count) / u128::from(self.amount.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// Reads `200ms`, `1.5s`, `7d`.
///
/// # Errors
/// [`UnitError::Duration`] for anything else, a number without a unit included.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    scaled(text, &DURATION_UNITS_MS).map(Duration::from_millis).ok_or_else(|| UnitError::Duration(text.to_owned()))
}

/// A duration in the largest unit that keeps it short to read: `850ms`, `12.4s`, `3m20s`, `2h05m`, `7d`.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    let s = duration.as_secs();
    match s {
        0 => format!("{ms}ms"),
        1..60 if ms % 1_000 < 100 => format!("{s}s"),
        1..60 => format!("{s}.{}s", ms % 1_000 / 100),
        60..3_600 if s.is_multiple_of(60) => format!("{}m", s / 60),
        60..3_600 => format!("{}m{:02}s", s / 60, s % 60),
        3_600..86_400 if s % 3_600 / 60 == 0 => format!("{}h", s / 3_600),
        3_600..86_400 => format!("{}h{:02}m", s / 3_600, s % 3_600 / 60),
        _ if s % 86_400 / 3_600 == 0 => format!("{}d", s / 86_400),
        _ => format!("{}d{:02}h", s / 86_400, s % 86_400 / 3_600),
    }
}

/// `number unit` with at most three decimals, scaled to whole base units; `None` where it does not fit.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at_checked(at)?;
    let scale = units.iter().find(|(name, _)| *name == unit.trim())?.1;
    let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || decimals.len() > 3 || (number.contains('.') && decimals.is_empty()) {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let thousandths: u64 = format!("{decimals:0<3}").parse().ok()?;
    whole.checked_mul(scale)?.checked_add(thousandths.checked_mul(scale)? / 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_are_read_with_their_units() {
        for (text, bytes) in [("512B", 512), ("64KiB", 65_536), ("1.5GB", 1_500_000_000), ("10 GiB", 10_737_418_240)] {
            assert_eq!(ByteSize::parse(text), Ok(ByteSize(bytes)), "{text}");
        }
        for (text, ms) in [("200ms", 200), ("1.5s", 1_500), ("7d", 604_800_000), ("2h", 7_200_000)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn a_number_without_a_unit_is_refused_with_what_would_be_right() {
        for text in ["10", "", "GiB", "1.GiB", "-1s", "1.2345s", "99999999999TiB", "5 parsecs"] {
            assert!(ByteSize::parse(text).is_err(), "{text}");
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert!(parse_duration("10").unwrap_err().to_string().contains("such as `200ms`"));
    }

    #[test]
    fn rates_are_read_with_their_time() {
        for (text, nanos) in
            [("100/s", 10_000_000), ("600/m", 100_000_000), (" 60 / min", 1_000_000_000), ("1/h", 3_600_000_000_000)]
        {
            assert_eq!(Rate::parse_count(text).unwrap().time_of(1), Duration::from_nanos(nanos), "{text}");
        }
        assert_eq!(Rate::parse_bytes("1KiB/s").unwrap().time_of(512), Duration::from_millis(500));
        assert_eq!(Rate::parse_bytes("1TiB/s").unwrap().time_of(1 << 30), Duration::from_nanos(976_562));
        for text in ["", "100", "100/d", "0/s", "1.5/s", "/s", "1KiB/s", "-1/s", "99999999999999999999/s"] {
            assert!(Rate::parse_count(text).is_err(), "{text}");
        }
        for text in ["100/s", "1KiB", "0B/s", "1KiB/"] {
            assert!(Rate::parse_bytes(text).is_err(), "{text}");
        }
        assert!(Rate::parse_count("100").unwrap_err().to_string().contains("such as `100/s`"));
    }

    #[test]
    fn sizes_and_durations_read_back_short() {
        assert_eq!(ByteSize(1536).to_string(), "1.5KiB");
        assert_eq!(ByteSize(10 << 30).to_string(), "10GiB");
        assert_eq!(show_duration(Duration::from_millis(12_400)), "12.4s");
        assert_eq!(show_duration(Duration::from_secs(200)), "3m20s");
        assert_eq!(show_duration(Duration::from_secs(604_800)), "7d");
    }
}
