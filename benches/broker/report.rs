//! Figures as Markdown tables, for `docs/performance.md`.

use super::contender::Kind;
use super::load::Told;
use super::rows::Row;

/// One contender's rounds in one row.
#[derive(Default)]
pub(super) struct Column {
    pub(super) rounds: Vec<Told>,
    /// System calls a message, if they were counted.
    pub(super) calls: Option<f64>,
}

impl Column {
    fn rate(&self) -> f64 {
        median(self.rounds.iter().map(|round| round.rate).collect())
    }

    fn cpu_us(&self) -> f64 {
        median(self.rounds.iter().map(|round| round.cpu_us).collect())
    }

    fn sum(&self, figure: impl Fn(&Told) -> f64) -> f64 {
        self.rounds.iter().map(figure).sum()
    }

    /// What was lost or came twice, if anything.
    fn fault(&self) -> String {
        let (missing, disorder) = (self.sum(|round| round.missing), self.sum(|round| round.disorder));
        let part = missing * 100.0 / (missing + self.sum(|round| round.total));
        let mut text = String::new();
        if missing > 0.0 {
            text += &if part < 0.1 { format!(" (loses {missing})") } else { format!(" (loses {part:.1} %)") };
        }
        if disorder > 0.0 {
            text += &format!(" ({disorder} twice or out of order)");
        }
        text
    }

    fn cell(&self) -> String {
        format!("{} · {}{}", short(self.rate()), short_us(self.cpu_us()), self.fault())
    }

    /// The median of the ratios of the rounds.
    fn ratio(&self, other: &Self) -> f64 {
        median(self.rounds.iter().zip(&other.rounds).map(|(one, other)| one.rate / other.rate).collect())
    }
}

/// One row's figures.
pub(super) struct Line {
    pub(super) row: &'static Row,
    /// In the order of the contenders.
    pub(super) columns: Vec<Column>,
}

impl Line {
    /// For the person who waits.
    pub(super) fn plain(&self, kinds: &[Kind]) -> String {
        let cells = kinds.iter().zip(&self.columns).map(|(kind, column)| format!("{} {}", kind.title(), column.cell()));
        format!("{:>26}: {}", self.row.name, cells.collect::<Vec<_>>().join(" | "))
    }

    fn column(&self, kinds: &[Kind], kind: Kind) -> Option<&Column> {
        kinds.iter().position(|other| *other == kind).map(|at| &self.columns[at])
    }
}

/// Deliveries a second and CPU time, beside the limit and the peers.
pub(super) fn rates(kinds: &[Kind], lines: &[Line]) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let kinds_shown: Vec<Kind> = kinds.iter().copied().filter(|kind| *kind != Kind::Durable).collect();
    let mut heads = vec!["deliveries a second · CPU µs each".to_owned()];
    heads.extend(kinds_shown.iter().map(|kind| kind.title().to_owned()));
    heads.extend(["/ relay (at least)", "/ Mosquitto", "CPU µs at most"].map(str::to_owned));
    let rows =
        lines.iter().map(|line| {
            let mut cells = vec![line.row.name.to_owned()];
            let cell = |kind: &Kind| line.column(kinds, *kind).map_or_else(String::new, Column::cell);
            cells.extend(kinds_shown.iter().map(cell));
            let ours = line.column(kinds, Kind::Tidegate);
            let against = |kind| Some(ours?.ratio(line.column(kinds, kind)?));
            cells.push(against(Kind::Relay).map_or_else(String::new, |ratio| {
                format!("{} ({:.2})", reached(format!("{ratio:.2}"), ratio >= line.row.of_relay), line.row.of_relay)
            }));
            cells.push(against(Kind::Mosquitto).map_or_else(String::new, |ratio| format!("{ratio:.1}")));
            cells.push(ours.map_or_else(String::new, |ours| {
                reached(line.row.cpu_us.to_string(), ours.cpu_us() <= line.row.cpu_us)
            }));
            cells
        });
    table(&heads, rows)
}

/// System calls a message.
pub(super) fn calls(kinds: &[Kind], lines: &[Line]) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let mut heads = vec!["system calls a delivery".to_owned()];
    heads.extend(kinds.iter().map(|kind| kind.title().to_owned()));
    let rows = lines.iter().map(|line| {
        let mut cells = vec![line.row.name.to_owned()];
        cells.extend(
            line.columns.iter().map(|column| column.calls.map_or_else(|| "–".to_owned(), |n| format!("{n:.2}"))),
        );
        cells
    });
    table(&heads, rows)
}

/// The rows with a durable route: at least half of the rate without it and, with a window of 100, four times Mosquitto's rate
/// without one; with a window of one 0.7 of what the disk allows or of the rate without the route, whichever is less.
pub(super) fn durable(kinds: &[Kind], lines: &[Line], syncs: f64) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let heads =
        ["with a durable route", "without", "with", "ratio", "/ Mosquitto without", "at least"].map(str::to_owned);
    let rows = lines.iter().filter_map(|line| {
        let (without, with) = (line.column(kinds, Kind::Tidegate)?, line.column(kinds, Kind::Durable)?);
        let ratio = with.ratio(without);
        let by_mosquitto = line.column(kinds, Kind::Mosquitto).map(|mosquitto| with.ratio(mosquitto));
        let (bound, is_reached) = if line.row.window == 1 {
            let bound = 0.7 * (syncs * line.row.publishers as f64).min(without.rate());
            (format!("{} a second", short(bound)), with.rate() >= bound)
        } else if line.row.window == 100 {
            ("ratio 0.5, Mosquitto × 4".to_owned(), ratio >= 0.5 && by_mosquitto.is_none_or(|ratio| ratio >= 4.0))
        } else {
            ("ratio 0.5".to_owned(), ratio >= 0.5)
        };
        let by_mosquitto = by_mosquitto.map_or_else(String::new, |ratio| format!("{ratio:.1}"));
        let cells = [line.row.name.to_owned(), without.cell(), with.cell(), format!("{ratio:.2}"), by_mosquitto];
        Some(cells.into_iter().chain([reached(bound, is_reached)]).collect())
    });
    format!("{}\nThe disk syncs {} times a second.\n", table(&heads, rows), short(syncs))
}

/// Time under way.
pub(super) fn latency(kinds: &[Kind], columns: &[Column], pace: f64) -> String {
    let heads = ["time under way", "p50", "p99, median of the rounds", "p99, best"].map(str::to_owned);
    let rows = kinds.iter().zip(columns).map(|(kind, column)| {
        let p99: Vec<f64> = column.rounds.iter().map(|round| round.p99_us).collect();
        let best = p99.iter().copied().fold(f64::INFINITY, f64::min);
        let p50 = median(column.rounds.iter().map(|round| round.p50_us).collect());
        let name = format!("{}{}", kind.title(), column.fault());
        vec![name, format!("{p50:.0} µs"), format!("{:.0} µs", median(p99)), format!("{best:.0} µs")]
    });
    let table = table(&heads, rows);
    format!("{table}\nQoS 1, four to four, {} messages a second: half of what Mosquitto can do.\n", short(pace))
}

/// Memory a connection.
pub(super) fn idle(lines: &[(Kind, [f64; 2])]) -> String {
    let heads = ["memory of an idle connection", "of 5,000", "of 10,000 (at most 3.0 KiB)"].map(str::to_owned);
    let kib = |bytes: f64| format!("{:.1} KiB", bytes / 1024.0);
    table(&heads, lines.iter().map(|(kind, figures)| vec![kind.title().to_owned(), kib(figures[0]), kib(figures[1])]))
}

/// Start and memory of a broker that has nothing to do.
pub(super) fn start_up(lines: &[(Kind, f64, f64)]) -> String {
    let heads = ["", "start to CONNACK (under 100 ms)", "memory idle (under 20 MiB)"].map(str::to_owned);
    let rows = lines.iter().map(|(kind, ms, bytes)| {
        vec![kind.title().to_owned(), format!("{ms:.0} ms"), format!("{:.1} MiB", bytes / f64::from(1 << 20))]
    });
    table(&heads, rows)
}

fn table(heads: &[String], rows: impl Iterator<Item = Vec<String>>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let rule = format!("|{}\n", " --- |".repeat(heads.len()));
    line(heads) + &rule + &rows.map(|cells| line(&cells)).collect::<String>()
}

fn reached(figure: String, is_reached: bool) -> String {
    if is_reached { figure } else { format!("{figure} **not reached**") }
}

/// 3.2M, 609k, 940.
fn short(rate: f64) -> String {
    if rate >= 995_000.0 {
        format!("{:.1}M", rate / 1e6)
    } else if rate >= 9_950.0 {
        format!("{:.0}k", rate / 1e3)
    } else if rate >= 1_000.0 {
        format!("{:.1}k", rate / 1e3)
    } else {
        format!("{rate:.0}")
    }
}

fn short_us(us: f64) -> String {
    if us >= 9.95 { format!("{us:.0}") } else { format!("{us:.2}") }
}

pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
