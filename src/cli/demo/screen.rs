//! What a person sees while the demo runs: one screen redrawn in place on a terminal, plain lines elsewhere.
//! The drawing is pure: [`frame`] and [`progress`] make text of a [`View`]; only [`Screen`] writes.

use std::time::Duration;

use super::proxy::Line;
use super::tally::Figures;
use crate::cli::out::{self, Redraw};
use crate::cli::text::{self, Span, Style, grouped};
use crate::clock::WallMs;
use crate::telemetry::board::{LinkState, LinkStatus};
use crate::units::show_duration;

/// How far one step of the story is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Not begun.
    Pending,
    /// Going on.
    Active,
    /// Over, with what it showed.
    Done(String),
}

/// One moment of the demo.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// Since the machines began.
    pub elapsed: Duration,
    /// The wall clock now.
    pub now: WallMs,
    /// The story, a line a step.
    pub steps: Vec<(&'static str, Progress)>,
    /// The receiver's and the machines' own counts.
    pub figures: Figures,
    /// What the proxy does.
    pub line: Line,
    /// What the edge's gateway says of its link; `None` while there is no gateway.
    pub link: Option<LinkStatus>,
}

/// How often plain progress is printed.
const PLAIN_EVERY: Duration = Duration::from_secs(2);
/// What the lines are about, where no picture is drawn.
const PLAIN_HEAD: &str = "tidegate demo: 4 machines -> edge gateway -> a line that fails -> cloud gateway -> receiver";
/// Longest bar, in columns.
const BAR_COLUMNS: usize = 36;

/// Where it is shown.
#[derive(Debug)]
pub(crate) enum Screen {
    /// One screen, redrawn.
    Terminal(Redraw),
    /// Lines: how many steps have been announced and concluded, and when progress was last printed.
    Plain {
        /// Steps announced.
        begun: usize,
        /// Steps whose end was told.
        ended: usize,
        /// When progress was last printed.
        last: Duration,
    },
}

impl Screen {
    /// A screen for what standard output is.
    pub(crate) fn new() -> Self {
        if out::is_terminal() {
            Self::Terminal(Redraw::default())
        } else {
            out::line(PLAIN_HEAD);
            Self::Plain { begun: 0, ended: 0, last: Duration::ZERO }
        }
    }

    /// Shows this moment.
    pub(crate) fn show(&mut self, view: &View) {
        match self {
            Self::Terminal(redraw) => {
                let (width, colours) = (out::width(), out::colours());
                let lines: Vec<String> = frame(view).iter().map(|line| text::render(line, width, colours)).collect();
                // A terminal that cannot be written to shows nothing; the report still decides the exit code.
                let _shown: std::io::Result<()> = redraw.draw(&lines);
            }
            Self::Plain { begun, ended, last } => {
                for (number, (title, progress)) in view.steps.iter().enumerate() {
                    if *progress != Progress::Pending && number >= *begun {
                        *begun = number + 1;
                        out::line(&format!("{:>5}  {title}", seconds(view.elapsed)));
                    }
                    if let (Progress::Done(note), true) = (progress, number >= *ended) {
                        *ended = number + 1;
                        out::line(&format!("{:>5}    {note}", seconds(view.elapsed)));
                    }
                }
                if view.elapsed.saturating_sub(*last) >= PLAIN_EVERY {
                    *last = view.elapsed;
                    out::line(&progress(view));
                }
            }
        }
    }
}

/// The whole screen.
pub(crate) fn frame(view: &View) -> Vec<Vec<Span>> {
    let mut lines = vec![
        vec![
            Span::new(Style::Strong, "tidegate demo"),
            Span::plain("  two sites, and between them a line that fails"),
            Span::new(Style::Faint, format!("  {}", seconds(view.elapsed))),
        ],
        Vec::new(),
        map(view),
        Vec::new(),
    ];
    lines.extend(bars(view));
    lines.push(Vec::new());
    lines.push(link(view));
    lines.push(Vec::new());
    lines.extend(view.steps.iter().map(|(title, progress)| step(title, progress)));
    lines
}

/// Progress as one plain line.
pub(crate) fn progress(view: &View) -> String {
    let Figures { published, acknowledged, delivered, .. } = view.figures;
    let link = view.link.as_ref().map_or_else(
        || "the edge gateway is down".to_owned(),
        |link| format!("kept {}  link {}", link.depth, text::state(link.state)),
    );
    let at = seconds(view.elapsed);
    format!("{at:>5}    published {published}  acknowledged {acknowledged}  delivered {delivered}  {link}")
}

fn map(view: &View) -> Vec<Span> {
    let edge = if view.link.is_some() {
        Span::new(Style::Good, "edge gateway")
    } else {
        Span::new(Style::Bad, "edge gateway (killed)")
    };
    let line = match view.line {
        Line::Open => Span::new(Style::Good, " ───────> "),
        Line::Cut => Span::new(Style::Bad, " ──╳ ╳──> "),
        Line::Dead => Span::new(Style::Bad, " ── ? ──> "),
    };
    let cloud = Span::new(Style::Good, "cloud gateway");
    vec![Span::plain("  4 machines ──> "), edge, line, cloud, Span::plain(" ──> receiver")]
}

fn bars(view: &View) -> Vec<Vec<Span>> {
    let Figures { published, acknowledged, delivered, duplicated, .. } = view.figures;
    let bar = |name: &str, value: u64, style: Style, note: String| {
        vec![
            Span::plain(format!("  {name:<13}{:>9}  ", grouped(value))),
            Span::new(style, "█".repeat(columns(value, published))),
            Span::new(Style::Faint, note),
        ]
    };
    let copies = if duplicated > 0 { format!("  and {} copies", grouped(duplicated)) } else { String::new() };
    let (kept, oldest) = view.link.as_ref().map_or((None, None), |link| (Some(link.depth), link.oldest_age_ms));
    let oldest =
        oldest.map_or_else(String::new, |ms| format!("  the oldest for {}", show_duration(Duration::from_millis(ms))));
    let kept = kept.map_or_else(
        || vec![Span::plain("  kept on disk         "), Span::new(Style::Faint, "  (no gateway to ask)")],
        |kept| bar("kept on disk", kept, Style::Warn, oldest),
    );
    vec![
        bar("published", published, Style::Plain, String::new()),
        bar("acknowledged", acknowledged, Style::Plain, String::new()),
        bar("delivered", delivered, Style::Good, copies),
        kept,
    ]
}

fn link(view: &View) -> Vec<Span> {
    let Some(link) = &view.link else {
        return vec![Span::plain("  link  "), Span::new(Style::Faint, "gone with its gateway; its buffer is on disk")];
    };
    let mut line = vec![Span::plain("  link  "), Span::new(text::style(link.state), text::state(link.state))];
    if let Some(sink) = &link.sink {
        line.push(Span::plain(format!(" for {}", text::since(sink.since_ms, view.now))));
        if let (Some(error), true) = (&sink.last_error, link.state != LinkState::Online) {
            line.push(Span::plain(format!(": {error}")));
        }
    }
    line
}

fn step(title: &str, progress: &Progress) -> Vec<Span> {
    match progress {
        Progress::Pending => vec![Span::new(Style::Faint, format!("  ·  {title}"))],
        Progress::Active => vec![Span::new(Style::Strong, format!("  ▶  {title}"))],
        Progress::Done(note) => vec![
            Span::new(Style::Good, "  ✔  "),
            Span::plain(title.to_owned()),
            Span::new(Style::Faint, format!("  {note}")),
        ],
    }
}

fn columns(value: u64, full: u64) -> usize {
    let columns = u128::from(value) * BAR_COLUMNS as u128 / u128::from(full.max(1));
    usize::try_from(columns).unwrap_or(BAR_COLUMNS).min(BAR_COLUMNS)
}

fn seconds(elapsed: Duration) -> String {
    format!("{}.{}s", elapsed.as_secs(), elapsed.subsec_millis() / 100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::board::HalfStatus;

    fn view(link: Option<LinkStatus>, line: Line) -> View {
        View {
            elapsed: Duration::from_millis(12_340),
            now: WallMs(20_000),
            steps: vec![
                ("The line works", Progress::Done("812 delivered".to_owned())),
                ("The line is cut", Progress::Active),
                ("The line is mended", Progress::Pending),
            ],
            figures: Figures { published: 4_000, acknowledged: 3_900, delivered: 1_000, owed: 2_900, duplicated: 3 },
            line,
            link,
        }
    }

    fn backing_off() -> LinkStatus {
        LinkStatus {
            state: LinkState::BackingOff,
            depth: 2_900,
            oldest_age_ms: Some(6_100),
            sink: Some(HalfStatus {
                state: LinkState::BackingOff,
                since_ms: 17_000,
                last_error: Some("connection refused".to_owned()),
                ..HalfStatus::default()
            }),
            ..LinkStatus::default()
        }
    }

    fn drawn(view: &View, width: usize) -> String {
        frame(view).iter().map(|line| text::render(line, width, false)).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_screen_tells_the_whole_state_at_a_glance() {
        let expected = "\
tidegate demo  two sites, and between them a line that fails  12.3s

  4 machines ──> edge gateway ──╳ ╳──> cloud gateway ──> receiver

  published        4,000  ████████████████████████████████████
  acknowledged     3,900  ███████████████████████████████████
  delivered        1,000  █████████  and 3 copies
  kept on disk     2,900  ██████████████████████████  the oldest for 6.1s

  link  backing_off for 3s: connection refused

  ✔  The line works  812 delivered
  ▶  The line is cut
  ·  The line is mended";
        assert_eq!(drawn(&view(Some(backing_off()), Line::Cut), 100), expected);
    }

    #[test]
    fn a_killed_gateway_is_shown_as_such() {
        let text = drawn(&view(None, Line::Dead), 100);
        assert!(text.contains("edge gateway (killed) ── ? ──>"), "{text}");
        assert!(text.contains("its buffer is on disk"), "{text}");
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        for line in frame(&view(Some(backing_off()), Line::Open)) {
            assert!(text::render(&line, 40, false).chars().count() <= 40);
        }
    }

    #[test]
    fn progress_is_one_plain_line() {
        let line = progress(&view(Some(backing_off()), Line::Cut));
        assert_eq!(line, "12.3s    published 4000  acknowledged 3900  delivered 1000  kept 2900  link backing_off");
    }
}
