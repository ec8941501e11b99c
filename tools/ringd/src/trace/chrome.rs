//! The trace as a file for ui.perfetto.dev and chrome://tracing: JSON in the Trace Event Format.
//!
//! EL2 is a process with a thread per CPU, on which exits are slices and the steps of requests instants; the
//! daemon is a process with its threads; each zone is a process whose requests are asynchronous slices, with
//! their stages inside.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::join::Joined;
use super::{Event, Source, Step, Trace};

/// Number of EL2 among the processes; the daemon's, and those of zones from [`ZONES`] on.
const EL2: usize = 1;
const DAEMON: usize = 2;
const ZONES: usize = 100;

/// Returns the number of a process's thread. Perfetto has one space of thread numbers for all processes,
/// where 0 is the idle task, which is not shown, and a thread with its process's number the main thread: none
/// of ours is either.
const fn thread(pid: usize, number: usize) -> usize {
    pid * 1000 + number
}

struct Writer<'a, W> {
    output: W,
    trace: &'a Trace,
    origin: u64,
    first: bool,
}

impl<W: Write> Writer<'_, W> {
    fn time(&self, stamp: u64) -> f64 {
        self.length(stamp.saturating_sub(self.origin))
    }

    fn length(&self, ticks: u64) -> f64 {
        ticks as f64 * 1e6 / self.trace.frequency.max(1) as f64
    }

    fn put(&mut self, entry: &Value) -> io::Result<()> {
        let between: &[u8] = if std::mem::take(&mut self.first) {
            b"\n"
        } else {
            b",\n"
        };
        self.output.write_all(between)?;
        Ok(serde_json::to_writer(&mut self.output, entry)?)
    }

    fn name(&mut self, kind: &str, pid: usize, tid: usize, name: &str) -> io::Result<()> {
        self.put(&json!({"name": kind, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}))
    }

    fn event(&mut self, event: &Event) -> io::Result<()> {
        let (pid, tid) = match event.source {
            Source::Cpu(cpu) => (EL2, thread(EL2, cpu)),
            Source::Thread(number) => (DAEMON, thread(DAEMON, number)),
        };
        let ts = self.time(event.stamp);
        if let Step::Exit(exit, ticks) = event.step {
            return self.put(&json!({
                "name": exit.name(), "cat": "exit", "ph": "X", "ts": ts, "dur": self.length(ticks.into()),
                "pid": pid, "tid": tid, "args": {"zone": event.zone},
            }));
        }
        let mut about = json!({"zone": event.zone, "slot": event.slot, "queue": event.queue});
        let name = match event.step {
            Step::Exit(exit, _) => exit.name(),
            Step::Notify => "notify",
            Step::Ring => "ring",
            Step::EventInterrupt => {
                about = json!({});
                "bell"
            }
            Step::Doorbell => "doorbell",
            Step::Inject(intid) => {
                about = json!({"zone": event.zone, "intid": intid});
                "inject"
            }
            Step::Acknowledge => "acknowledge",
            Step::Daemon(kind) => {
                about = json!({
                    "zone": event.zone, "slot": event.slot, "queue": event.queue, "head": event.value,
                });
                daemon_name(kind)
            }
        };
        self.put(&json!({
            "name": name, "cat": "step", "ph": "i", "s": "t", "ts": ts, "pid": pid, "tid": tid, "args": about,
        }))
    }

    /// Returns the begin (`b`) or the end (`e`) of a span of `id`. Viewers sort by time and keep the order of
    /// the file where times are equal, so a span that ends with the one around it is to be ended first.
    fn edge(
        &mut self,
        ph: &str,
        pid: usize,
        id: &str,
        name: &str,
        stamp: u64,
        args: Value,
    ) -> io::Result<()> {
        self.put(&json!({
            "name": name, "cat": "request", "ph": ph, "ts": self.time(stamp), "pid": pid, "tid": thread(pid, 0),
            "id2": {"local": id}, "args": args,
        }))
    }
}

fn daemon_name(kind: ringvirtio::trace::Kind) -> &'static str {
    use ringvirtio::trace::Kind;
    match kind {
        Kind::Wake => "wake",
        Kind::Service => "service",
        Kind::Popped => "popped",
        Kind::Submitted => "submitted",
        Kind::Completed => "completed",
        Kind::Used => "used",
        Kind::Raise => "raise",
        Kind::Suppressed => "quiet",
    }
}

/// Writes a sorted trace and its requests.
///
/// # Errors
/// The output failed.
pub fn write(trace: &Trace, joined: &Joined, output: impl Write) -> io::Result<()> {
    let mut writer = Writer {
        output,
        trace,
        origin: trace.events.first().map_or(0, |event| event.stamp),
        first: true,
    };
    writer
        .output
        .write_all(b"{\"displayTimeUnit\":\"ns\",\"traceEvents\":[")?;
    writer.name("process_name", EL2, thread(EL2, 0), "EL2")?;
    for cpu in 0..trace.cpus {
        writer.name("thread_name", EL2, thread(EL2, cpu), &format!("cpu{cpu}"))?;
    }
    writer.name("process_name", DAEMON, thread(DAEMON, 0), "ringd")?;
    for (number, name) in trace.threads.iter().enumerate() {
        writer.name("thread_name", DAEMON, thread(DAEMON, number), name)?;
    }
    let mut zones: Vec<u8> = joined.requests.iter().map(|request| request.zone).collect();
    zones.sort_unstable();
    zones.dedup();
    for zone in zones {
        let pid = ZONES + usize::from(zone);
        writer.name("process_name", pid, thread(pid, 0), &format!("zone {zone}"))?;
    }
    for event in &trace.events {
        writer.event(event)?;
    }
    for (number, request) in joined.requests.iter().enumerate() {
        let pid = ZONES + usize::from(request.zone);
        let id = format!("{:#x}", number + 1);
        let (Some((_, begin)), Some((_, end))) = (request.points().next(), request.points().last()) else {
            continue;
        };
        let name = format!("disk {} queue {}", request.slot, request.queue);
        writer.edge("b", pid, &id, &name, begin, json!({"head": request.head}))?;
        let mut before = begin;
        for (point, stamp) in request.points().skip(1) {
            writer.edge("b", pid, &id, point.name(), before, json!({}))?;
            writer.edge("e", pid, &id, point.name(), stamp, json!({}))?;
            before = stamp;
        }
        writer.edge("e", pid, &id, &name, end, json!({}))?;
    }
    let other = json!({"lost": trace.lost, "unfinished": joined.unfinished});
    write!(writer.output, "\n],\"otherData\":{other}}}\n")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use ringvirtio::trace::Kind;
    use ringvisor::abi::counters::Exit;

    use serde_json::Value;

    use super::write;
    use crate::trace::join::{Joined, join};
    use crate::trace::{Event, Source, Step, Trace};

    fn sample() -> Trace {
        let event = |stamp, source, step| Event {
            stamp,
            source,
            step,
            zone: 1,
            slot: 0,
            queue: 0,
            value: 9,
        };
        let thread = |stamp, kind| event(stamp, Source::Thread(0), Step::Daemon(kind));
        Trace {
            frequency: 62_500_000,
            cpus: 2,
            threads: vec!["reactor \"1\"".into()],
            events: vec![
                event(1000, Source::Cpu(1), Step::Exit(Exit::Permission, 50)),
                event(1000, Source::Cpu(1), Step::Notify),
                thread(1100, Kind::Service),
                thread(1101, Kind::Popped),
                thread(1102, Kind::Submitted),
                thread(1103, Kind::Completed),
                thread(1104, Kind::Used),
                thread(1105, Kind::Raise),
                event(1200, Source::Cpu(0), Step::Doorbell),
                event(1250, Source::Cpu(1), Step::Inject(48)),
                event(1300, Source::Cpu(1), Step::Acknowledge),
            ],
            lost: 4,
        }
    }

    /// The rules of the Trace Event Format that the viewers hold a file to.
    fn check(text: &str) -> Vec<Value> {
        let file: Value = serde_json::from_str(text).unwrap();
        assert!(matches!(file["displayTimeUnit"].as_str(), Some("ns" | "ms")));
        let events = file["traceEvents"].as_array().unwrap().clone();
        let mut open: HashMap<String, Vec<(String, f64)>> = HashMap::new();
        let mut owners = HashMap::new();
        // In the order in which viewers go through them.
        let mut sorted: Vec<&Value> = events.iter().collect();
        sorted.sort_by(|a, b| {
            f64::total_cmp(&a["ts"].as_f64().unwrap_or(0.0), &b["ts"].as_f64().unwrap_or(0.0))
        });
        for event in sorted {
            let ph = event["ph"].as_str().unwrap();
            assert!(
                event["pid"].is_u64() && event["tid"].is_u64() && event["name"].is_string(),
                "{event}"
            );
            // Perfetto: 0 is the idle task, its process's number the main thread, and no two processes share
            // one.
            let (pid, tid) = (event["pid"].as_u64().unwrap(), event["tid"].as_u64().unwrap());
            assert!(tid != 0 && tid != pid, "{event}");
            assert_eq!(*owners.entry(tid).or_insert(pid), pid, "{event}");
            if ph == "M" {
                assert!(event["args"]["name"].is_string(), "{event}");
                continue;
            }
            let ts = event["ts"].as_f64().unwrap();
            assert!(ts >= 0.0 && event["cat"].is_string(), "{event}");
            match ph {
                "X" => assert!(event["dur"].as_f64().unwrap() >= 0.0),
                "i" => assert_eq!(event["s"], "t"),
                "b" | "e" => {
                    let key = format!("{}/{}", event["pid"], event["id2"]["local"].as_str().unwrap());
                    let stack = open.entry(key).or_default();
                    let name = event["name"].as_str().unwrap().to_owned();
                    if ph == "b" {
                        stack.push((name, ts));
                    } else {
                        let (innermost, since) = stack.pop().unwrap();
                        assert_eq!(innermost, name, "{event}");
                        assert!(since <= ts, "{event}");
                    }
                }
                other => panic!("phase {other}"),
            }
        }
        assert!(open.values().all(Vec::is_empty), "{open:?}");
        events
    }

    #[test]
    fn the_file_has_the_format_of_trace_viewers() {
        let trace = sample();
        let joined = join(&trace);
        assert_eq!(joined.requests.len(), 1);
        let mut text = Vec::new();
        write(&trace, &joined, &mut text).unwrap();
        let events = check(std::str::from_utf8(&text).unwrap());
        let exit = events.iter().find(|event| event["ph"] == "X").unwrap();
        assert_eq!(
            (&exit["name"], &exit["dur"], &exit["tid"]),
            (&"permission".into(), &0.8.into(), &1001.into())
        );
        let request = events.iter().find(|event| event["ph"] == "b").unwrap();
        assert_eq!(
            (&request["name"], &request["pid"]),
            (&"disk 0 queue 0".into(), &101.into())
        );
        let end = events
            .iter()
            .find(|event| event["ph"] == "e" && event["name"] == request["name"])
            .unwrap();
        assert_eq!(end["ts"], 4.8);
        let stages = events
            .iter()
            .filter(|event| event["ph"] == "b" && event["name"] != request["name"]);
        assert_eq!(stages.count(), joined.requests[0].points().count() - 1);
        let thread = events
            .iter()
            .any(|event| event["args"]["name"] == "reactor \"1\"");
        assert!(thread);
    }

    #[test]
    fn nothing_is_a_file_too() {
        let mut text = Vec::new();
        write(&Trace::default(), &Joined::default(), &mut text).unwrap();
        check(std::str::from_utf8(&text).unwrap());
    }
}
