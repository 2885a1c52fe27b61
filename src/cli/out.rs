//! Standard output. A reader that has gone away (`tidegate status | head`) is no failure of the command.

use std::io::{self, IsTerminal as _, Write as _};

/// Prints text and a line end.
pub(crate) fn line(text: &str) {
    let mut out = io::stdout().lock();
    // Nobody reads any more: there is nobody to tell.
    let _heard: io::Result<()> = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Prints a complaint for the operator.
pub(crate) fn complain(text: &str) {
    let _heard: io::Result<()> = writeln!(io::stderr().lock(), "{text}");
}

/// Whether a person watches.
pub(crate) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether colours are wanted: a terminal, and <https://no-color.org> not set.
pub(crate) fn colours() -> bool {
    is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// How wide the terminal is.
pub(crate) fn width() -> usize {
    columns(crossterm::terminal::size().ok())
}

/// A terminal that does not know its size, as one that `script` makes, says 0.
fn columns(size: Option<(u16, u16)>) -> usize {
    size.map(|(columns, _)| usize::from(columns)).filter(|columns| *columns > 0).unwrap_or(80).max(20)
}

/// Redraws a block of lines in place.
#[derive(Debug, Default)]
pub(crate) struct Redraw {
    drawn: usize,
}

impl Redraw {
    /// Draws `lines` over what was drawn before. The lines must fit the terminal's width.
    pub(crate) fn draw(&mut self, lines: &[String]) -> io::Result<()> {
        use crossterm::{QueueableCommand as _, cursor, terminal};
        let mut out = io::stdout().lock();
        if self.drawn > 0 {
            out.queue(cursor::MoveUp(u16::try_from(self.drawn).unwrap_or(u16::MAX)))?;
        }
        for line in lines {
            out.queue(cursor::MoveToColumn(0))?;
            out.write_all(line.as_bytes())?;
            out.queue(terminal::Clear(terminal::ClearType::UntilNewLine))?;
            out.write_all(b"\n")?;
        }
        out.queue(terminal::Clear(terminal::ClearType::FromCursorDown))?;
        self.drawn = lines.len();
        out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_without_a_size_is_as_wide_as_usual() {
        for (size, width) in [(None, 80), (Some((0, 0)), 80), (Some((5, 5)), 20), (Some((132, 40)), 132)] {
            assert_eq!(columns(size), width, "{size:?}");
        }
    }
}
