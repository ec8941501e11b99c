//! The time of requests by stage, median and 99th percentile; and the exits at EL2.

use std::collections::BTreeMap;
use std::fmt::Write;

use ringvisor::abi::counters::Exit;

use super::join::{Joined, POINTS, Point};
use super::{Source, Step, Trace};
use crate::stats::nanoseconds;

/// Durations of one kind, in ticks.
#[derive(Clone, Debug, Default)]
struct Samples(Vec<u64>);

impl Samples {
    /// Returns the value that `percent` of the sorted samples do not exceed.
    fn percentile(&self, percent: usize) -> u64 {
        let rank = (self.0.len() * percent).div_ceil(100).saturating_sub(1);
        self.0.get(rank).copied().unwrap_or(0)
    }

    fn sum(&self) -> u64 {
        self.0.iter().sum()
    }
}

/// A row of the summary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// Number of samples.
    pub count: usize,
    /// Median, in nanoseconds.
    pub median: u64,
    /// 99th percentile.
    pub p99: u64,
    /// Sum.
    pub sum: u64,
}

fn row(name: &str, mut samples: Samples, frequency: u64) -> Row {
    samples.0.sort_unstable();
    Row {
        name: name.to_owned(),
        count: samples.0.len(),
        median: nanoseconds(samples.percentile(50), frequency),
        p99: nanoseconds(samples.percentile(99), frequency),
        sum: nanoseconds(samples.sum(), frequency),
    }
}

/// Returns rows by stage, each from the last point that was passed to the one that names the stage; then
/// whole requests.
pub fn stages(trace: &Trace, joined: &Joined) -> Vec<Row> {
    let mut stages: [Samples; POINTS] = Default::default();
    let mut whole = Samples::default();
    for request in &joined.requests {
        let mut before = None;
        for (point, stamp) in request.points() {
            if let (Some(before), Some(samples)) = (before, stages.get_mut(point as usize)) {
                samples.0.push(stamp.saturating_sub(before));
            }
            before = Some(stamp);
        }
        whole.0.push(request.ticks());
    }
    let named = Point::ALL.into_iter().zip(stages);
    let used = named.filter(|(_, samples)| !samples.0.is_empty());
    let mut rows: Vec<Row> = used
        .map(|(point, samples)| row(point.name(), samples, trace.frequency))
        .collect();
    rows.push(row("request", whole, trace.frequency));
    rows
}

/// Returns the stays at EL2 by zone of the CPU and reason.
pub fn exits(trace: &Trace) -> Vec<Row> {
    let mut by: BTreeMap<(u8, usize), Samples> = BTreeMap::new();
    for event in &trace.events {
        if let (Step::Exit(exit, ticks), Source::Cpu(_)) = (event.step, event.source) {
            let samples = by.entry((event.zone, exit as usize)).or_default();
            samples.0.push(ticks.into());
        }
    }
    by.into_iter()
        .map(|((zone, exit), samples)| {
            let exit = Exit::from_number(exit as u64).map_or("?", Exit::name);
            row(&format!("zone {zone} {exit}"), samples, trace.frequency)
        })
        .collect()
}

fn microseconds(nanoseconds: u64) -> String {
    format!("{:.1}", nanoseconds as f64 / 1000.0)
}

/// Returns the summary as text.
pub fn text(trace: &Trace, joined: &Joined) -> String {
    let mut text = String::new();
    let (first, last) = (trace.events.first(), trace.events.last());
    let span = match (first, last) {
        (Some(first), Some(last)) => nanoseconds(last.stamp.saturating_sub(first.stamp), trace.frequency),
        _ => 0,
    };
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "{} records in {:.3} s, {} lost; {} requests, {} more not complete\n",
        trace.events.len(),
        span as f64 / 1e9,
        trace.lost,
        joined.requests.len(),
        joined.unfinished
    );
    let rows = stages(trace, joined);
    let whole = rows.last().map_or(0, |row| row.sum).max(1);
    let _ = writeln!(
        text,
        "{:<20} {:>8} {:>12} {:>12} {:>7}",
        "STAGE, UNTIL", "COUNT", "MEDIAN us", "P99 us", "SHARE"
    );
    for row in &rows {
        let _ = writeln!(
            text,
            "{:<20} {:>8} {:>12} {:>12} {:>6.1}%",
            row.name,
            row.count,
            microseconds(row.median),
            microseconds(row.p99),
            row.sum as f64 * 100.0 / whole as f64
        );
    }
    let _ = writeln!(
        text,
        "\n{:<20} {:>8} {:>12} {:>12} {:>10}",
        "STAYS AT EL2", "COUNT", "MEDIAN us", "P99 us", "SUM us"
    );
    for row in exits(trace) {
        let _ = writeln!(
            text,
            "{:<20} {:>8} {:>12} {:>12} {:>10}",
            row.name,
            row.count,
            microseconds(row.median),
            microseconds(row.p99),
            microseconds(row.sum)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use crate::trace::Event;
    use crate::trace::join::Request;
    use ringvisor::abi::counters::Exit;

    use super::{exits, stages, text};
    use crate::trace::join::{Joined, POINTS, Point};
    use crate::trace::{Source, Step, Trace};

    fn request(points: &[(Point, u64)]) -> Request {
        let mut at = [None; POINTS];
        for (point, stamp) in points {
            at[*point as usize] = Some(*stamp);
        }
        Request {
            zone: 1,
            slot: 0,
            queue: 0,
            head: 0,
            at,
        }
    }

    #[test]
    fn medians_and_percentiles_by_stage() {
        let trace = Trace {
            frequency: 1_000_000,
            ..Trace::default()
        };
        // Stage "completed" lasts 1 to 100 us; one request was notified.
        let mut requests: Vec<Request> = (1..=100)
            .map(|n| request(&[(Point::Popped, 1000), (Point::Completed, 1000 + n)]))
            .collect();
        requests[4].at[Point::Notify as usize] = Some(990);
        let joined = Joined {
            requests,
            unfinished: 0,
        };
        let rows = stages(&trace, &joined);
        let of = |name: &str| rows.iter().find(|row| row.name == name).unwrap().clone();
        let completed = of("completed");
        assert_eq!(
            (completed.count, completed.median, completed.p99),
            (100, 50_000, 99_000)
        );
        assert_eq!((of("popped").count, of("popped").median), (1, 10_000));
        assert_eq!(of("request").count, 100);
        assert_eq!(of("request").sum, completed.sum + 10_000);
        assert_eq!(rows.len(), 3);
        let text = text(&trace, &joined);
        assert!(text.contains("100 requests, 0 more not complete"), "{text}");
        let line: Vec<&str> = text
            .lines()
            .find(|line| line.starts_with("completed"))
            .unwrap()
            .split_whitespace()
            .collect();
        assert_eq!(&line[1..4], ["100", "50.0", "99.0"]);
    }

    #[test]
    fn stays_are_grouped_by_zone_and_reason() {
        let exit = |zone, exit, ticks| Event {
            stamp: 5,
            source: Source::Cpu(1),
            step: Step::Exit(exit, ticks),
            zone,
            slot: 0,
            queue: 0,
            value: ticks,
        };
        let trace = Trace {
            frequency: 1_000_000_000,
            events: vec![
                exit(0, Exit::Irq, 10),
                exit(1, Exit::Irq, 20),
                exit(1, Exit::Irq, 30),
                exit(1, Exit::Permission, 7),
            ],
            ..Trace::default()
        };
        let rows: Vec<(String, usize, u64)> = exits(&trace)
            .into_iter()
            .map(|row| (row.name, row.count, row.sum))
            .collect();
        assert_eq!(
            rows,
            [
                ("zone 0 irq".to_owned(), 1, 10),
                ("zone 1 permission".to_owned(), 1, 7),
                ("zone 1 irq".to_owned(), 2, 50)
            ]
        );
        // An empty trace is a summary, too.
        assert!(text(&Trace::default(), &Joined::default()).starts_with("0 records in 0.000 s"));
    }
}
