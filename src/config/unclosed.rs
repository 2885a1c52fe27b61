//! Brackets and quotes that lack their partner: YAML notices it only lines below. Pure.

/// A bracket or quote, and its line.
type Opened = (char, usize);

/// What the text has left open in an earlier line than a mistake at byte `at`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Unclosed {
    /// A quoted text that began in an earlier line, and ends in that of the mistake, or never.
    pub(super) quote: Option<Opened>,
    /// A bracket without a partner in the whole text.
    pub(super) bracket: Option<Opened>,
}

impl Unclosed {
    pub(super) fn before(text: &str, at: usize) -> Self {
        let before = text.get(..at).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let is_last = text.get(at..).is_none_or(|rest| rest.trim().is_empty());
        let scan = Scan::of(text);
        let is_earlier = |opened: &Opened| opened.1 < line || is_last;
        let long = scan.long.iter().find(|(_, to)| *to == line).map(|(opened, _)| *opened);
        let bracket = scan.lost.or_else(|| scan.open.iter().rev().find(|opened| is_earlier(opened)).copied());
        Self { quote: long.or(scan.quote).filter(is_earlier), bracket: bracket.filter(is_earlier) }
    }
}

/// What is to be said of it.
pub(super) fn hint((c, line): Opened) -> String {
    format!("the `{c}` of line {line} is not closed")
}

#[derive(Debug)]
struct Scan {
    open: Vec<Opened>,
    /// The first bracket that another kind of bracket closes.
    lost: Option<Opened>,
    /// The quote that the text is in.
    quote: Option<Opened>,
    /// Quoted texts that go over lines, and their last lines.
    long: Vec<(Opened, usize)>,
    /// What comes next begins a value.
    starts_value: bool,
}

impl Scan {
    fn of(text: &str) -> Self {
        let mut scan = Self { open: Vec::new(), lost: None, quote: None, long: Vec::new(), starts_value: true };
        let (mut line, mut last) = (1, ' ');
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            // Of a comment nothing counts.
            if c == '#' && last.is_whitespace() && scan.quote.is_none() {
                while chars.next_if(|c| *c != '\n').is_some() {}
            } else if c == '\\' && scan.quote.is_some_and(|(quote, _)| quote == '"') {
                line += usize::from(chars.next() == Some('\n'));
            } else {
                line += usize::from(c == '\n');
                scan.take(c, line);
                last = c;
            }
        }
        scan
    }

    fn take(&mut self, c: char, line: usize) {
        if let Some(opened) = self.quote {
            if c == opened.0 {
                self.quote = None;
                if line > opened.1 {
                    self.long.push((opened, line));
                }
                self.starts_value = false;
            }
            return;
        }
        match c {
            '"' | '\'' if self.starts_value => self.quote = Some((c, line)),
            '{' | '[' if self.starts_value || !self.open.is_empty() => {
                self.open.push((c, line));
                self.starts_value = true;
            }
            '}' => self.close('{'),
            ']' => self.close('['),
            ':' | '-' | '\n' => self.starts_value = true,
            ',' => self.starts_value = !self.open.is_empty(),
            c if c.is_whitespace() => {}
            _ => self.starts_value = false,
        }
    }

    fn close(&mut self, partner: char) {
        self.starts_value = false;
        if let Some(at) = self.open.iter().rposition(|(c, _)| *c == partner) {
            let within = self.open.split_off(at);
            self.lost = self.lost.or_else(|| within.get(1).copied());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `^` is where the mistake is.
    #[test]
    fn what_is_left_open_is_named_with_its_line() {
        for (text, quote, bracket) in [
            ("a:\n  - { b: 1, c: 2\n  ^- { b: 2 }\n", None, Some(('{', 2))),
            ("a: [\n  { b: 1 },\n  { b: 2,\n  c: [ 1 ]\n ^]\n", None, Some(('{', 3))),
            ("a:\n  - { b: \"1, c: 2 }\n  - { b: \"^3\" }\n", Some(('"', 2)), None),
            ("a: 'x\nb: 1\nc: '^d\n", Some(('\'', 1)), None),
            ("a: { b: { c: 1 }\n^", None, Some(('{', 1))),
            // Whole ones are no matter.
            ("a: [\n  { b: 1 },\n  { b: ^}, c }\n]\n", None, None),
            ("a: it's {b\nc: \"d {\" # {\ne: \"\\\"{\"\n^f\n", None, None),
            ("a: [\n  \"{\",\n  '}'^x\n]\n", None, None),
            ("a: { b: { ^c: 1 }\n", None, None),
        ] {
            let at = text.find('^').unwrap();
            assert_eq!(Unclosed::before(&text.replacen('^', "", 1), at), Unclosed { quote, bracket }, "{text}");
        }
        assert_eq!(hint(('{', 7)), "the `{` of line 7 is not closed");
    }
}
