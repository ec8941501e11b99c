//! Messages of `tests/bench` to the harness, one on a line: `bench: WORD ...`; and fio's `--minimal` output,
//! version 3, in them: one line of fields between semicolons for each group of jobs.

use serde::Serialize;
use serde_json::Value;

/// A message.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// The next configuration begins.
    Config(String),
    /// A guest is about to start; root's clock in seconds.
    Start(f64),
    /// The guest's first line; root's clock, or none from a guest without a root.
    First(Option<f64>),
    /// A job begins.
    Begin(String),
    /// A job ended.
    Job(String, Result<Fio, String>),
    /// A count of requests is about to begin: the job, how many.
    CountBegin(String, u64),
    /// It ended.
    CountEnd(String, u64, Result<Fio, String>),
    /// EL2's counters at the mark before.
    Stats(Value),
    /// What `ringctl info` says with so many zones.
    Size(u64, Value),
    /// The daemon's memory in KiB with so many zones: resident, and of that its own.
    Rss(u64, u64, u64),
    /// A storm rages from now on.
    StormBegin,
    /// It is over.
    StormEnd,
    /// Something for people.
    Note(String),
    /// The guest or its QEMU ended with a status.
    End(String),
    /// All jobs were run.
    Done,
}

/// Reads a line; none for one that is not for us or was spoilt on its way.
pub fn parse(line: &str) -> Option<Message> {
    let (_, text) = line.split_once("bench: ")?;
    let text = text.trim();
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    let mut words = rest.split_whitespace();
    Some(match word {
        "config" => Message::Config(words.next()?.to_owned()),
        "start" => Message::Start(rest.parse().ok()?),
        "first" => Message::First(rest.parse().ok()),
        "begin" => Message::Begin(words.next()?.to_owned()),
        "job" => {
            let name = words.next()?.to_owned();
            Message::Job(name, result(words.next()?, words.next()))
        }
        "count-begin" => Message::CountBegin(words.next()?.to_owned(), words.next()?.parse().ok()?),
        "count-end" => {
            let (name, count) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
            Message::CountEnd(name, count, result(words.next()?, words.next()))
        }
        "stats" => Message::Stats(serde_json::from_str(rest).ok()?),
        "size" => {
            let (zones, json) = rest.split_once(' ')?;
            Message::Size(zones.parse().ok()?, serde_json::from_str(json).ok()?)
        }
        "rss" => Message::Rss(
            words.next()?.parse().ok()?,
            words.next()?.parse().ok()?,
            words.next()?.parse().ok()?,
        ),
        "storm-begin" => Message::StormBegin,
        "storm-end" => Message::StormEnd,
        "note" => Message::Note(rest.to_owned()),
        "end" => Message::End(rest.to_owned()),
        "done" => Message::Done,
        _ => return None,
    })
}

fn result(status: &str, line: Option<&str>) -> Result<Fio, String> {
    match status {
        "0" => Fio::parse(line.unwrap_or_default()),
        "124" => Err("fio did not end in time".into()),
        status => Err(format!("fio ended with status {status}")),
    }
}

/// First field of the reads, and of the writes.
const READ: usize = 5;
const WRITE: usize = 46;
/// Fields after a section's first.
const BANDWIDTH: usize = 1;
const IOPS: usize = 2;
const MEAN: usize = 10;
const PERCENTILES: std::ops::Range<usize> = 12..32;

/// What counts of one group of jobs. Times are from submission to completion.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Fio {
    /// Requests a second.
    pub iops: f64,
    /// Bytes a second, in units of 10^6.
    pub mb_s: f64,
    /// Mean time of a request in microseconds.
    pub mean_us: f64,
    /// The time that 99 % of the requests keep, in microseconds.
    pub p99_us: f64,
}

impl Fio {
    /// Reads a line.
    ///
    /// # Errors
    /// What is wrong with it. A console can lose or mix characters, so nothing is taken on trust.
    pub fn parse(line: &str) -> Result<Self, String> {
        let fields: Vec<&str> = line.trim().split(';').collect();
        if fields.first() != Some(&"3") || fields.len() < 100 {
            return Err(format!(
                "no line of fio: version {:?}, {} fields",
                fields.first().unwrap_or(&""),
                fields.len()
            ));
        }
        let number = |at: usize| -> Result<f64, String> {
            let text = fields.get(at).copied().unwrap_or_default();
            text.parse::<f64>()
                .ok()
                .filter(|n| n.is_finite() && *n >= 0.0)
                .ok_or_else(|| format!("field {at} of fio's line is {text:?}, expected a number"))
        };
        let error = number(4)?;
        if error != 0.0 {
            return Err(format!("fio reports error {error}"));
        }
        let start = if number(READ)? > 0.0 { READ } else { WRITE };
        if number(start)? == 0.0 {
            return Err("fio moved no data".into());
        }
        let p99 = fields
            .get(start + PERCENTILES.start..start + PERCENTILES.end)
            .unwrap_or_default()
            .iter()
            .find_map(|f| f.strip_prefix("99.000000%="))
            .and_then(|f| f.parse().ok())
            .ok_or("fio's line has no 99th percentile")?;
        Ok(Self {
            iops: number(start + IOPS)?,
            mb_s: number(start + BANDWIDTH)? * 1024.0 / 1e6,
            mean_us: number(start + MEAN)?,
            p99_us: p99,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Fio, MEAN, Message, READ, WRITE, parse};

    #[test]
    fn lines_are_understood() {
        assert_eq!(
            parse("bench: config kvm-threads-none 0.1 0.2"),
            Some(Message::Config("kvm-threads-none".into()))
        );
        assert_eq!(parse("bench: start 12.5"), Some(Message::Start(12.5)));
        assert_eq!(parse("bench: first"), Some(Message::First(None)));
        assert_eq!(parse("bench: first 13.75"), Some(Message::First(Some(13.75))));
        assert_eq!(
            parse("bench: count-begin randread-1 200"),
            Some(Message::CountBegin("randread-1".into(), 200))
        );
        assert_eq!(parse("bench: rss 0 900 300"), Some(Message::Rss(0, 900, 300)));
        assert_eq!(
            parse("[    1.0] x bench: note a b"),
            Some(Message::Note("a b".into()))
        );
        assert!(matches!(
            parse("bench: size 1 {\"pages_used\": 7}"),
            Some(Message::Size(1, _))
        ));
    }

    #[test]
    fn a_failed_job_says_why() {
        let Some(Message::Job(_, Err(why))) = parse("bench: job randread-1 124 ") else {
            panic!("not a failed job")
        };
        assert!(why.contains("in time"));
        assert!(matches!(
            parse("bench: job x 0 3;fio"),
            Some(Message::Job(_, Err(_)))
        ));
    }

    #[test]
    fn other_lines_and_spoilt_ones_are_not() {
        for line in [
            "hello",
            "bench:",
            "bench: start x",
            "bench: count-begin a b",
            "bench: stats {",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }

    /// Returns a line as fio 3.33 prints it, with the sections that are given.
    fn line(read: [&str; 4], write: [&str; 4]) -> String {
        let mut fields = vec!["0".to_owned(); 121];
        fields[0] = "3".into();
        fields[1] = "fio-3.33".into();
        for (start, [total, bandwidth, iops, mean]) in [(READ, read), (WRITE, write)] {
            fields[start] = total.into();
            fields[start + 1] = bandwidth.into();
            fields[start + 2] = iops.into();
            fields[start + MEAN] = mean.into();
            fields[start + 12 + 13] = "99.000000%=1234".into();
        }
        fields.join(";")
    }

    #[test]
    fn reads_and_writes() {
        let none = ["0", "0", "0", "0.000000"];
        let reads = Fio::parse(&line(["8192", "4000", "1000", "960.5"], none)).unwrap();
        assert_eq!(reads.iops, 1000.0);
        assert_eq!(reads.mb_s, 4.096);
        assert_eq!(reads.mean_us, 960.5);
        assert_eq!(reads.p99_us, 1234.0);
        let writes = Fio::parse(&line(none, ["8192", "400", "100", "9.0"])).unwrap();
        assert_eq!((writes.iops, writes.mean_us), (100.0, 9.0));
    }

    #[test]
    fn what_is_no_result_is_an_error() {
        let none = ["0", "0", "0", "0.000000"];
        assert!(Fio::parse("").is_err());
        assert!(Fio::parse("3;fio-3.33;x").is_err());
        assert!(Fio::parse(&line(none, none)).unwrap_err().contains("no data"));
        let spoilt = line(["8192", "4x00", "1000", "1"], none);
        assert!(Fio::parse(&spoilt).unwrap_err().contains("4x00"));
    }

    #[test]
    fn a_real_line() {
        let text = include_str!("../../../../tests/data/fio-minimal.txt");
        let fio = Fio::parse(text).unwrap();
        assert!(fio.iops > 0.0 && fio.mean_us > 0.0 && fio.p99_us >= fio.mean_us / 10.0);
    }
}
