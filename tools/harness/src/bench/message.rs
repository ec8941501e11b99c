//! Messages of `tests/bench` to the harness, one on a line: `bench: WORD ...`.

use serde_json::Value;

use super::fio::Fio;

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

#[cfg(test)]
mod tests {
    use super::{Message, parse};

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
}
