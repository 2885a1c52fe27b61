//! When a link is to be up: times of the day and of the week. PURE: the time, and how far the local clock is from UTC, come in.
//!
//! A span belongs to the days on which it begins: `fri 22:00-06:00` ends on Saturday morning. What a change between summer and winter
//! time leaves out or repeats is left out or repeated here too.

use std::fmt;
use std::str::FromStr;

use crate::clock::WallMs;

const MINUTE_MS: u64 = 60_000;
const DAY_MINUTES: u16 = 24 * 60;
const DAY_MS: u64 = MINUTE_MS * 24 * 60;

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const EVERY_DAY: u8 = 0b111_1111;

/// The spans of time in which a link is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Active(Vec<Span>);

/// One of them: `22:00-06:00`, `mon-fri 08:00-17:30`, `sat,sun`, `02:00-04:00 UTC`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// As it was written.
    text: Box<str>,
    /// On which days it begins: bit 0 is Monday.
    days: u8,
    /// Minutes from midnight.
    from: u16,
    /// Minutes from midnight; not after `from`: on the next day.
    until: u16,
    utc: bool,
}

/// A text that is no span; says what would be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpanError {
    /// Not of this form.
    #[error(
        "`{0}` is no span of time: write such as `22:00-06:00`, `mon-fri 08:00-17:30`, `sat,sun`, `02:00-04:00 UTC`"
    )]
    Form(String),
    /// It begins where it ends.
    #[error("`{0}` ends where it begins: a whole day is `00:00-24:00`")]
    Empty(String),
}

/// How many seconds the local clock is ahead of UTC at a moment.
pub type LocalOffset<'a> = &'a dyn Fn(WallMs) -> i32;

impl Active {
    /// `None` without spans: then there is no limit.
    #[must_use]
    pub fn new(spans: Vec<Span>) -> Option<Self> {
        (!spans.is_empty()).then_some(Self(spans))
    }

    /// Whether `now` is in one of the spans.
    #[must_use]
    pub fn is_open(&self, now: WallMs, offset: LocalOffset<'_>) -> bool {
        self.0.iter().any(|span| span.contains(span.local(now, offset)))
    }

    /// When the next span begins.
    #[must_use]
    pub fn next_start(&self, now: WallMs, offset: LocalOffset<'_>) -> Option<WallMs> {
        self.0.iter().filter_map(|span| span.next_start(now, offset)).min_by_key(|start| start.0)
    }
}

/// `22:00-06:00, sat`.
impl fmt::Display for Active {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, span) in self.0.iter().enumerate() {
            let between = if nth == 0 { "" } else { ", " };
            write!(f, "{between}{}", span.text)?;
        }
        Ok(())
    }
}

impl Span {
    /// Milliseconds since 1970 by the clock that it goes by.
    fn local(&self, at: WallMs, offset: LocalOffset<'_>) -> u64 {
        let ahead_ms = if self.utc { 0 } else { i64::from(offset(at)) * 1_000 };
        at.0.saturating_add_signed(ahead_ms)
    }

    fn begins_on(&self, day: u64) -> bool {
        // 1970 began on a Thursday.
        self.days >> ((day + 3) % 7) & 1 == 1
    }

    fn contains(&self, local: u64) -> bool {
        let (day, minute) = (local / DAY_MS, local % DAY_MS / MINUTE_MS);
        let (from, until) = (u64::from(self.from), u64::from(self.until));
        if from < until {
            return self.begins_on(day) && (from..until).contains(&minute);
        }
        let from_yesterday = day.checked_sub(1).is_some_and(|yesterday| self.begins_on(yesterday)) && minute < until;
        from_yesterday || (self.begins_on(day) && minute >= from)
    }

    fn next_start(&self, now: WallMs, offset: LocalOffset<'_>) -> Option<WallMs> {
        let today = self.local(now, offset) / DAY_MS;
        let starts = (today..=today + 8).filter(|day| self.begins_on(*day)).map(|day| {
            let local = day * DAY_MS + u64::from(self.from) * MINUTE_MS;
            // By what the local clock will be ahead then, which is known well enough from what it is about then.
            let ahead = |at: u64| if self.utc { 0 } else { i64::from(offset(WallMs(at))) * 1_000 };
            local.saturating_add_signed(-ahead(local.saturating_add_signed(-ahead(now.0))))
        });
        starts.filter(|start| *start > now.0).min().map(WallMs)
    }
}

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        let wrong = || SpanError::Form(text.to_owned());
        let mut words: Vec<&str> = text.split_whitespace().collect();
        let utc = words.pop_if(|last| last.eq_ignore_ascii_case("utc")).is_some();
        let times = words.pop_if(|last| last.contains(':'));
        let days = match (words.as_slice(), times) {
            ([], Some(_)) => EVERY_DAY,
            ([days], _) => days_of(days).ok_or_else(wrong)?,
            _ => return Err(wrong()),
        };
        let (from, until) = match times {
            None => (0, DAY_MINUTES),
            Some(times) => {
                let (from, until) = times.split_once('-').ok_or_else(wrong)?;
                (minute_of(from).ok_or_else(wrong)?, minute_of(until).ok_or_else(wrong)?)
            }
        };
        if from == until {
            return Err(SpanError::Empty(text.to_owned()));
        }
        // Nothing begins at the end of a day.
        if from == DAY_MINUTES {
            return Err(wrong());
        }
        Ok(Self { text: text.into(), days, from, until, utc })
    }
}

/// `mon-fri`, `sat,sun`, `fri-mon`.
fn days_of(text: &str) -> Option<u8> {
    let day = |name: &str| DAYS.iter().position(|day| name.eq_ignore_ascii_case(day));
    let mut days = 0;
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (day(first)?, day(last)?);
        let length = (last + 7 - first) % 7;
        for at in first..=first + length {
            days |= 1_u8 << (at % 7);
        }
    }
    Some(days)
}

/// `22:00`, `8:30`; `24:00` is the end of the day.
fn minute_of(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':')?;
    let number = |text: &str, digits| {
        let plain =
            !text.is_empty() && text.len() <= 2 && text.len() >= digits && text.bytes().all(|b| b.is_ascii_digit());
        if plain { text.parse::<u16>().ok() } else { None }
    };
    let (hour, minute) = (number(hour, 1)?, number(minute, 2)?);
    let all = hour * 60 + minute;
    (minute < 60 && all <= DAY_MINUTES).then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3_600_000;
    /// Monday, 2026-11-23, 00:00 UTC.
    const MONDAY: u64 = 1_795_392_000_000;

    fn active(spans: &[&str]) -> Active {
        Active::new(spans.iter().map(|text| text.parse().unwrap()).collect()).unwrap()
    }

    /// Days after Monday, hour, minute.
    fn at(day: u64, hour: u64, minute: u64) -> WallMs {
        WallMs(MONDAY + day * DAY_MS + hour * HOUR_MS + minute * MINUTE_MS)
    }

    #[test]
    fn a_span_is_open_from_its_beginning_to_its_end() {
        let utc = |_: WallMs| 0;
        for (spans, moment, open) in [
            (&["08:00-17:30"][..], at(0, 7, 59), false),
            (&["08:00-17:30"], at(0, 8, 0), true),
            (&["8:00-17:30"], at(0, 17, 29), true),
            (&["08:00-17:30"], at(0, 17, 30), false),
            (&["22:00-06:00"], at(0, 0, 0), true),
            (&["22:00-06:00"], at(0, 6, 0), false),
            (&["22:00-06:00"], at(0, 23, 59), true),
            (&["fri 22:00-06:00"], at(4, 5, 0), false),
            (&["fri 22:00-06:00"], at(4, 22, 0), true),
            (&["fri 22:00-06:00"], at(5, 5, 59), true),
            (&["fri 22:00-06:00"], at(5, 22, 0), false),
            (&["mon-fri 00:00-24:00"], at(4, 23, 59), true),
            (&["mon-fri 00:00-24:00"], at(5, 0, 0), false),
            (&["sat,sun"], at(6, 23, 59), true),
            (&["sat,sun"], at(7, 0, 0), false),
            (&["fri-mon"], at(3, 12, 0), false),
            (&["Fri-Mon"], at(7, 12, 0), true),
            (&["20:00-24:00"], at(0, 23, 59), true),
            (&["20:00-24:00"], at(1, 0, 0), false),
            (&["20:00-00:00"], at(0, 23, 59), true),
            (&["20:00-00:00"], at(1, 0, 0), false),
            (&["01:00-02:00", "wed 12:00-13:00"], at(2, 12, 30), true),
            (&["01:00-02:00", "wed 12:00-13:00"], at(1, 12, 30), false),
        ] {
            assert_eq!(active(spans).is_open(moment, &utc), open, "{spans:?} at {moment:?}");
        }
    }

    #[test]
    fn the_next_start_is_the_nearest_of_all_spans() {
        let utc = |_: WallMs| 0;
        for (spans, now, start) in [
            (&["22:00-06:00"][..], at(0, 12, 0), at(0, 22, 0)),
            (&["22:00-06:00"], at(0, 22, 0), at(1, 22, 0)),
            (&["mon 08:00-09:00"], at(0, 8, 0), at(7, 8, 0)),
            (&["sat,sun", "thu 03:00-04:00"], at(0, 0, 0), at(3, 3, 0)),
            (&["sat,sun", "thu 03:00-04:00"], at(3, 3, 30), at(5, 0, 0)),
        ] {
            assert_eq!(active(spans).next_start(now, &utc), Some(start), "{spans:?} after {now:?}");
        }
    }

    #[test]
    fn times_are_local_unless_they_say_utc() {
        let berlin = |_: WallMs| 3_600;
        let new_york = |_: WallMs| -5 * 3_600;
        let night = active(&["mon 22:00-23:00"]);
        assert!(night.is_open(at(0, 21, 30), &berlin) && !night.is_open(at(0, 22, 30), &berlin));
        assert!(night.is_open(at(1, 3, 30), &new_york) && !night.is_open(at(0, 22, 30), &new_york));
        assert_eq!(night.next_start(at(0, 23, 0), &new_york), Some(at(1, 3, 0)));
        let utc = active(&["mon 22:00-23:00 utc"]);
        assert!(utc.is_open(at(0, 22, 30), &berlin) && utc.is_open(at(0, 22, 30), &new_york));
        assert_eq!(utc.next_start(at(0, 20, 0), &new_york), Some(at(0, 22, 0)));
    }

    #[test]
    fn a_start_behind_a_change_of_the_clock_is_by_the_clock_of_then() {
        let changed = at(1, 1, 0);
        let spring = move |moment: WallMs| if moment.0 < changed.0 { 3_600 } else { 7_200 };
        assert_eq!(active(&["22:00-23:00"]).next_start(at(0, 21, 30), &spring), Some(at(1, 20, 0)));
        let autumn = move |moment: WallMs| if moment.0 < changed.0 { 7_200 } else { 3_600 };
        assert_eq!(active(&["22:00-23:00"]).next_start(at(0, 20, 30), &autumn), Some(at(1, 21, 0)));
    }

    #[test]
    fn what_is_no_span_is_told_what_would_be() {
        for text in [
            "",
            "22:00",
            "22-06",
            "22:00-",
            "25:00-26:00",
            "10:60-11:00",
            "24:01-24:02",
            "24:00-06:00",
            "mo 10:00-11:00",
            "mon-",
            "mon 10:00-11:00 CET",
            "10:00-11:00 mon",
            "1:0-2:0",
            "+1:00-02:00",
            "UTC",
            "mon tue 10:00-11:00",
        ] {
            assert!(matches!(text.parse::<Span>(), Err(SpanError::Form(_))), "{text}: {:?}", text.parse::<Span>());
        }
        assert_eq!("10:00-10:00".parse::<Span>(), Err(SpanError::Empty("10:00-10:00".into())));
        assert_eq!(active(&["22:00-06:00", "sat,sun"]).to_string(), "22:00-06:00, sat,sun");
    }

    proptest::proptest! {
        /// Minute by minute: at a start it is open, and between now and the next start nothing begins.
        #[test]
        fn the_next_start_opens_and_nothing_before_it_does(minute in 0..7 * 24 * 60_u64, from in 0..48_u64, length in 1..47_u64, days in 1..128_u8) {
            let text = |half_hour: u64| format!("{:02}:{:02}", half_hour % 48 / 2, half_hour % 2 * 30);
            let names: Vec<&str> = (0..7).filter(|day| days >> day & 1 == 1).map(|day| DAYS[day]).collect();
            let span = format!("{} {}-{}", names.join(","), text(from), text(from + length));
            let (active, utc) = (active(&[&span]), |_: WallMs| 0);
            let now = WallMs(MONDAY + minute * MINUTE_MS);
            let start = active.next_start(now, &utc).unwrap();
            proptest::prop_assert!(active.is_open(start, &utc), "{}", span);
            let mut open = active.is_open(now, &utc);
            let mut at = now.0 + MINUTE_MS;
            while at < start.0 {
                let next = active.is_open(WallMs(at), &utc);
                proptest::prop_assert!(open || !next, "{} opens at {}", span, at);
                open = next;
                at += MINUTE_MS;
            }
        }
    }
}
