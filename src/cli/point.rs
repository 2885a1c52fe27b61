//! A place in a buffer as the operator names it: an offset, a time, or how long ago.

use crate::clock;
use crate::telemetry::replay::ReplayPoint;
use crate::units::parse_duration;

/// Reads one, as `--from` and `--until` take it.
///
/// # Errors
/// What would be one.
pub(crate) fn point(text: &str) -> Result<ReplayPoint, String> {
    if let Ok(offset) = text.parse() {
        return Ok(ReplayPoint::Offset(offset));
    }
    if let Ok(ago) = parse_duration(text) {
        let ago = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
        return Ok(ReplayPoint::TimeMs(clock::wall().0.saturating_sub(ago)));
    }
    moment(text).map(ReplayPoint::TimeMs).ok_or_else(|| {
        "an offset such as `1200`, a time such as `2026-11-26T08:00:00Z` or `2026-11-26`, or how long ago, such as `2h`"
            .to_owned()
    })
}

/// RFC 3339, in milliseconds since the epoch; a date alone is its midnight in UTC.
pub(crate) fn moment(text: &str) -> Option<u64> {
    let (date, time) = text.split_once(['T', 't', ' ']).unwrap_or((text, "00:00:00Z"));
    let days = days_since_epoch(date)?;
    let at = time.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = time.split_at_checked(at)?;
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut parts = clock.split(':');
    let hour = two_digits(parts.next()?, 23)?;
    let minute = two_digits(parts.next()?, 59)?;
    // 60 is a leap second.
    let second = parts.next().map_or(Some(0), |text| two_digits(text, 60))?;
    if parts.next().is_some() || fraction.is_empty() || !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let ms: i64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    let local = ((days * 24 + hour) * 60 + minute) * 60_000 + second * 1_000 + ms;
    u64::try_from(local - zone_minutes(zone)? * 60_000).ok()
}

/// `Z`, `+01:00`.
fn zone_minutes(zone: &str) -> Option<i64> {
    if zone.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let (sign, rest) = zone.split_at_checked(1)?;
    let (hours, minutes) = rest.split_once(':')?;
    let minutes = two_digits(hours, 23)? * 60 + two_digits(minutes, 59)?;
    Some(if sign == "-" { -minutes } else { minutes })
}

fn two_digits(text: &str, most: i64) -> Option<i64> {
    let is_number = text.len() == 2 && text.bytes().all(|digit| digit.is_ascii_digit());
    text.parse().ok().filter(|number| is_number && *number <= most)
}

/// Of `2026-11-26`.
fn days_since_epoch(date: &str) -> Option<i64> {
    let mut parts = date.split('-');
    let year: i64 = parts.next().filter(|year| year.len() == 4).and_then(|year| year.parse().ok())?;
    let month = two_digits(parts.next()?, 12).filter(|month| *month >= 1)?;
    let day = two_digits(parts.next()?, 31).filter(|day| *day >= 1)?;
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let lengths = [31, 28 + i64::from(is_leap), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let before = usize::try_from(month - 1).ok()?;
    if parts.next().is_some() || day > *lengths.get(before)? || year < 1_970 {
        return None;
    }
    let past = year - 1;
    let leaps = |year: i64| year / 4 - year / 100 + year / 400;
    let days = (year - 1_970) * 365 + leaps(past) - leaps(1_969);
    Some(days + lengths.iter().take(before).sum::<i64>() + day - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::text;
    use crate::clock::WallMs;

    #[test]
    fn moments_are_read_as_they_are_written() {
        for ms in [0, 951_782_400_000, 1_709_251_199_000, 1_798_761_600_000, 4_107_542_400_000, 13_574_563_200_000] {
            assert_eq!(moment(&text::utc(WallMs(ms))), Some(ms), "{}", text::utc(WallMs(ms)));
        }
        for (text, ms) in [
            ("2026-11-26", 1_795_651_200_000),
            ("2026-11-26T01:30:00.25+01:30", 1_795_651_200_250),
            ("2026-11-25 19:00-05:00", 1_795_651_200_000),
        ] {
            assert_eq!(moment(text), Some(ms), "{text}");
        }
        for text in
            ["", "yesterday", "2026-13-01", "2026-02-29", "2026-11-26T25:00:00Z", "2026-11-26T10:00:00", "1969-01-01"]
        {
            assert_eq!(moment(text), None, "{text}");
        }
    }

    #[test]
    fn a_point_is_an_offset_a_time_or_how_long_ago() {
        assert_eq!(point("17"), Ok(ReplayPoint::Offset(17)));
        assert_eq!(point("2026-11-26"), Ok(ReplayPoint::TimeMs(1_795_651_200_000)));
        let Ok(ReplayPoint::TimeMs(ms)) = point("2h") else { panic!() };
        assert!(clock::wall().0 - ms >= 7_200_000);
        assert!(point("2 moons").unwrap_err().contains("how long ago"));
    }
}
