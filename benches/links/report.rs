//! Figures as a Markdown table, for `docs/performance.md`.

use super::Contender;
use super::far::{Count, Kind};
use super::rows::Row;
use super::watch::Told;

/// One row's figures.
pub(super) struct Line {
    row: &'static Row,
    messages: u64,
    columns: Vec<(Contender, Vec<(Told, Count)>)>,
}

impl Line {
    pub(super) fn new(row: &'static Row, messages: u64, contenders: &[Contender]) -> Self {
        Self { row, messages, columns: contenders.iter().map(|contender| (*contender, Vec::new())).collect() }
    }

    pub(super) fn add(&mut self, contender: Contender, told: Told, count: Count) {
        let column = self.columns.iter_mut().find(|(other, _)| *other == contender);
        column.unwrap().1.push((told, count));
    }

    fn rounds(&self, contender: Contender) -> Option<&[(Told, Count)]> {
        self.columns.iter().find(|(other, _)| *other == contender).map(|(_, rounds)| rounds.as_slice())
    }

    /// Rate, CPU time, and what was lost or came twice.
    fn cell(&self, contender: Contender) -> Option<String> {
        let rounds = self.rounds(contender)?;
        let rates = Spread::of(rounds.iter().map(|(told, _)| told.rate));
        let mut text = format!("{} ({} to {})", short(rates.median), short(rates.least), short(rates.most));
        let cpu: Vec<f64> = rounds.iter().filter_map(|(told, _)| told.cpu_us).collect();
        if !cpu.is_empty() {
            text += &format!(" · {:.1} µs", Spread::of(cpu.into_iter()).median);
        }
        let sum = |figure: fn(&Count) -> u64| rounds.iter().map(|(_, count)| figure(count)).sum::<u64>();
        let (lost, twice) = (sum(|count| count.lost), sum(|count| count.twice));
        if lost > 0 {
            text += &format!(" **loses {lost}**");
        }
        if twice > 0 {
            text += &format!(" ({twice} twice)");
        }
        Some(text)
    }

    /// Of the rounds.
    fn ratio(&self, one: Contender, other: Contender) -> Option<Spread> {
        let rounds = self.rounds(one)?.iter().zip(self.rounds(other)?);
        Some(Spread::of(rounds.map(|((one, _), (other, _))| one.rate / other.rate)))
    }

    /// Beside what is asked for.
    fn judged(&self, other: Contender, at_least: Option<f64>) -> String {
        let Some(ratio) = self.ratio(Contender::Tidegate, other) else { return String::new() };
        let shown = format!("{:.2} ({:.2} to {:.2})", ratio.median, ratio.least, ratio.most);
        match at_least {
            Some(at_least) if ratio.median < at_least => format!("{shown}, at least {at_least} **not reached**"),
            Some(at_least) => format!("{shown}, at least {at_least}"),
            None => shown,
        }
    }

    /// For the person who waits.
    pub(super) fn plain(&self) -> String {
        let cells = self
            .columns
            .iter()
            .map(|(contender, _)| format!("{} {}", contender.name(), self.cell(*contender).unwrap_or_default()));
        format!("{:>20} of {}: {}", self.row.name, self.messages, cells.collect::<Vec<_>>().join(" | "))
    }
}

/// Of several rounds.
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let at = |at: usize| values.get(at).copied().unwrap_or_default();
        Self { median: at(values.len() / 2), least: at(0), most: at(values.len().saturating_sub(1)) }
    }
}

/// All rows.
pub(super) fn table(lines: &[Line]) -> String {
    let has = |contender| lines.iter().any(|line| line.rounds(contender).is_some());
    let has_beside = has(Contender::Beside);
    let has_stamped = has(Contender::Stamped);
    let mut heads =
        vec!["messages a second · edge's CPU each", "direct", "other way", "Tidegate", "/ direct", "/ other way"];
    if has_stamped {
        heads.extend(["direct, our headers", "/ direct, our headers"]);
    }
    if has_beside {
        heads.extend(["the other build", "/ the other build"]);
    }
    let mut text = format!("| {} |\n|{}\n", heads.join(" | "), " --- |".repeat(heads.len()));
    for line in lines {
        let cell = |contender| line.cell(contender).unwrap_or_default();
        let other = match line.row.far {
            Kind::RabbitMq => "plugin and shovel",
            Kind::Mosquitto => "bridge",
            Kind::Kafka => "",
        };
        let other = line.cell(Contender::Other).map(|cell| format!("{other} {cell}")).unwrap_or_default();
        let mut cells = vec![
            format!("{}, {}", line.row.name, short(line.messages as f64)),
            cell(Contender::Direct),
            other,
            cell(Contender::Tidegate),
            line.judged(Contender::Direct, line.row.of_direct),
            line.judged(Contender::Other, line.row.of_other),
        ];
        if has_stamped {
            cells.extend([cell(Contender::Stamped), line.judged(Contender::Stamped, None)]);
        }
        if has_beside {
            cells.extend([cell(Contender::Beside), line.judged(Contender::Beside, None)]);
        }
        text += &format!("| {} |\n", cells.join(" | "));
    }
    text
}

/// 3.2M, 609k, 940.
fn short(rate: f64) -> String {
    if rate >= 995_000.0 {
        format!("{:.1}M", rate / 1e6)
    } else if rate >= 99_500.0 {
        format!("{:.0}k", rate / 1e3)
    } else if rate >= 1_000.0 {
        format!("{:.1}k", rate / 1e3)
    } else {
        format!("{rate:.0}")
    }
}
