//! Pieces of text that the screens share: coloured spans cut to the terminal's width, states, ages, figures.

use std::fmt::Write as _;
use std::time::Duration;

use crate::clock::WallMs;
use crate::telemetry::board::LinkState;
use crate::units::show_duration;

/// What a piece of text means; its colour follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// As it is.
    Plain,
    /// Bold.
    Strong,
    /// Dim.
    Faint,
    /// Green.
    Good,
    /// Yellow.
    Warn,
    /// Red.
    Bad,
}

/// A piece of text in one style.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    style: Style,
    text: String,
}

impl Span {
    /// Text in a style.
    pub(crate) fn new(style: Style, text: impl Into<String>) -> Self {
        Self { style, text: text.into() }
    }

    /// Text as it is.
    pub(crate) fn plain(text: impl Into<String>) -> Self {
        Self::new(Style::Plain, text)
    }
}

/// One line of at most `width` columns. Control characters (an error text comes from a remote) never reach the terminal.
pub(crate) fn render(line: &[Span], width: usize, colours: bool) -> String {
    let mut text = String::new();
    let mut left = width;
    for span in line {
        let shown: String = span.text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(left).collect();
        left -= shown.chars().count();
        if shown.is_empty() {
            continue;
        }
        match sgr(span.style).filter(|_| colours) {
            // Writing to a String cannot fail.
            Some(sgr) => _ = write!(text, "\x1b[{sgr}m{shown}\x1b[0m"),
            None => text.push_str(&shown),
        }
    }
    text
}

const fn sgr(style: Style) -> Option<&'static str> {
    match style {
        Style::Plain => None,
        Style::Strong => Some("1"),
        Style::Faint => Some("2"),
        Style::Good => Some("32"),
        Style::Warn => Some("33"),
        Style::Bad => Some("31"),
    }
}

/// A state as R22 spells it.
pub(crate) const fn state(state: LinkState) -> &'static str {
    crate::telemetry::metrics::state_name(state)
}

/// How a state looks.
pub(crate) const fn style(state: LinkState) -> Style {
    match state {
        LinkState::Online => Style::Good,
        LinkState::Connecting | LinkState::Paused | LinkState::Blocked => Style::Warn,
        LinkState::Stalled
        | LinkState::BackingOff
        | LinkState::Misconfigured
        | LinkState::DeadLettersFull
        | LinkState::BufferFailed => Style::Bad,
    }
}

/// The time since a wall-clock moment.
pub(crate) fn since(moment_ms: u64, now: WallMs) -> String {
    show_duration(now.since(WallMs(moment_ms)))
}

/// The time until a wall-clock moment.
pub(crate) fn until(moment_ms: u64, now: WallMs) -> String {
    show_duration(WallMs(moment_ms).since(now))
}

/// Milliseconds as people read them.
pub(crate) fn ms(ms: u64) -> String {
    show_duration(Duration::from_millis(ms))
}

/// A moment as RFC 3339 in UTC, to the second: `2026-11-26T17:05:00Z`.
pub(crate) fn utc(moment: WallMs) -> String {
    let s = moment.0 / 1_000;
    let (year, month, day) = date(s / 86_400);
    let (hour, minute, second) = (s / 3_600 % 24, s / 60 % 60, s % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// The date so many days after 1970-01-01. Years are counted off one by one: there are few.
fn date(mut days: u64) -> (u64, u64, u64) {
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    // In 400 years the calendar repeats itself.
    let mut year = 1_970 + 400 * (days / 146_097);
    days %= 146_097;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let months = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in months {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

/// `12345` as `12,345`.
pub(crate) fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_grouped_by_thousands() {
        for (value, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(value), text);
        }
    }

    #[test]
    fn moments_are_written_as_rfc_3339() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400_000, "2000-02-29T00:00:00Z"),
            (1_709_251_199_999, "2024-02-29T23:59:59Z"),
            (1_798_761_600_000, "2027-01-01T00:00:00Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00Z"),
            (13_574_563_200_000, "2400-02-29T00:00:00Z"),
        ] {
            assert_eq!(utc(WallMs(ms)), text);
        }
    }

    #[test]
    fn colours_are_added_only_where_wanted_and_take_no_width() {
        let line = [Span::new(Style::Good, "online"), Span::plain(" for 3s")];
        assert_eq!(render(&line, 80, false), "online for 3s");
        assert_eq!(render(&line, 8, true), "\x1b[32monline\x1b[0m f");
    }

    #[test]
    fn a_remotes_words_cannot_steer_the_terminal() {
        assert_eq!(render(&[Span::plain("bad\x1b[2J\nword")], 80, true), "bad [2J word");
    }
}
