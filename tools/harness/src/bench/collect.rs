//! Turns the lines of one boot into results: whose job each result is, and what is missing. What was counted
//! around a job is kept in [`super::marks`].

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use serde_json::Value;

use super::marks::{Difference, Marks};
use super::message::{self, Fio, Message};
use super::plan::Boot;
use super::plugin::Counters;
use super::results::{Results, Sample, Start};

/// The most instructions of an exit in a storm.
const LONGEST_EXIT: u64 = 20_000;

/// Collects one boot.
#[derive(Debug)]
pub struct Collector<'a> {
    results: &'a mut Results,
    boot: &'a Boot,
    /// The boot's configurations, or the one of a machine that is one guest.
    configs: Vec<&'a str>,
    /// Numbers of requests whose difference is counted, in a boot that counts.
    requests: [u64; 2],
    counters: Option<&'a Counters>,
    /// When the machine was started.
    started: Instant,
    config: Option<String>,
    /// Root's clock when the guest was started; none for a machine without a root.
    start: Option<f64>,
    marks: BTreeMap<(String, String, u64), Marks>,
    /// The mark that EL2's counters belong to when they come, and whether it is the second.
    last: Option<((String, String, u64), bool)>,
    /// Last reason to believe that a configuration failed, by configuration.
    reasons: BTreeMap<String, String>,
    /// Last lines of the console that were not for us.
    tail: Vec<String>,
}

impl<'a> Collector<'a> {
    /// Begins to collect a boot that starts now. `config` is set for a machine that is one guest.
    pub fn new(
        results: &'a mut Results,
        boot: &'a Boot,
        requests: [u64; 2],
        counters: Option<&'a Counters>,
        config: Option<&'a str>,
    ) -> Self {
        Self {
            results,
            boot,
            configs: config.map_or_else(|| boot.configs.clone(), |config| vec![config]),
            requests,
            counters,
            started: Instant::now(),
            config: config.map(str::to_owned),
            start: None,
            marks: BTreeMap::new(),
            last: None,
            reasons: BTreeMap::new(),
            tail: Vec::new(),
        }
    }

    /// Takes a line of the console. Returns what a user who waits might want to see.
    pub fn line(&mut self, text: &str) -> Option<String> {
        let Some(message) = message::parse(text) else {
            if !text.trim().is_empty() {
                self.tail.push(text.trim().to_owned());
                let excess = self.tail.len().saturating_sub(4);
                self.tail.drain(..excess);
            }
            return None;
        };
        let config = self.config.clone().unwrap_or_else(|| "root".into());
        match message {
            Message::Config(name) => {
                self.tail.clear();
                self.start = None;
                self.last = None;
                self.config = Some(name.clone());
                return Some(name);
            }
            Message::Start(at) => self.start = Some(at),
            Message::First(at) => {
                let seconds = match (self.start.take(), at) {
                    (Some(start), Some(first)) => first - start,
                    (None, None) => self.started.elapsed().as_secs_f64(),
                    _ => return None,
                };
                if !self.boot.count {
                    self.results.starts.push(Start {
                        config: config.clone(),
                        round: self.boot.round,
                        seconds,
                        load: load(),
                    });
                }
                return Some(format!("{config}: first line after {seconds:.1} s"));
            }
            Message::Begin(_) | Message::Done => {}
            Message::Job(job, result) => return Some(self.job(config, job, result)),
            Message::CountBegin(job, count) => {
                if let Some(Err(error)) = self.counters.map(Counters::begin_stays) {
                    self.reasons.insert(config.clone(), format!("{error:#}"));
                }
                let key = (config, job, count);
                let instructions = self.counters.and_then(Counters::read);
                self.marks.entry(key.clone()).or_default().before.instructions = instructions;
                self.last = Some((key, false));
            }
            Message::CountEnd(job, count, result) => {
                let shown = format!("{config}: {job}: {count} requests counted");
                let key = (config.clone(), job, count);
                let instructions = self.counters.and_then(Counters::read);
                let marks = self.marks.entry(key.clone()).or_default();
                marks.after.instructions = instructions;
                match result {
                    Ok(fio) => marks.fio = Some(fio),
                    Err(why) => drop(self.reasons.insert(config, why)),
                }
                self.last = Some((key, true));
                return Some(shown);
            }
            Message::Stats(stats) => {
                if let Some((key, second)) = &self.last
                    && let Some(marks) = self.marks.get_mut(key)
                {
                    let mark = if *second {
                        &mut marks.after
                    } else {
                        &mut marks.before
                    };
                    mark.stats = Some(stats);
                }
            }
            Message::Size(zones, info) => self.sizes(zones, &info),
            Message::Rss(zones, resident, own) => {
                let what = format!("ringd, {}: resident", zones_word(zones));
                self.results.size(what, resident * 1024, "bytes");
                let what = format!("ringd, {}: its own of that", zones_word(zones));
                self.results.size(what, own * 1024, "bytes");
            }
            Message::StormBegin => {
                if let Some(Err(error)) = self.counters.map(Counters::begin_stays) {
                    self.results.fail("storm", format!("{error:#}"));
                }
            }
            Message::StormEnd => return Some(self.storm()),
            Message::Note(text) => {
                self.reasons.insert(config.clone(), text.clone());
                return Some(format!("{config}: {text}"));
            }
            Message::End(status) => {
                if status != "0" {
                    let why = format!("ended with status {status}: {}", self.tail.join(" | "));
                    self.reasons.insert(config.clone(), why.clone());
                    return Some(format!("{config}: {why}"));
                }
            }
        }
        None
    }

    fn job(&mut self, config: String, job: String, result: Result<Fio, String>) -> String {
        match result {
            Ok(fio) => {
                let shown = format!("{config}: {job}: {:.0} IOPS, {:.1} MB/s", fio.iops, fio.mb_s);
                self.results.samples.push(Sample {
                    config,
                    job,
                    round: self.boot.round,
                    fio,
                    load: load(),
                });
                shown
            }
            Err(why) => {
                let shown = format!("{config}: {job}: {why}");
                self.results
                    .fail(format!("{config}, {job}, round {}", self.boot.round), why.clone());
                self.reasons.insert(config, why);
                shown
            }
        }
    }

    fn storm(&mut self) -> String {
        let Some(snapshot) = self.counters.and_then(Counters::read) else {
            self.results.fail("storm", "no instructions are counted");
            return "storm: not counted".into();
        };
        let [root, guest] = snapshot.longest_exits();
        for (whose, longest) in [("root's CPU", root), ("the vCPUs", guest)] {
            let what = format!("storm of 4 vCPUs: longest exit of {whose}");
            if longest > LONGEST_EXIT {
                let why = format!("{longest} instructions, expected at most {LONGEST_EXIT}");
                self.results.fail(what.clone(), why);
            }
            self.results.size(what, longest, "instructions");
        }
        format!("storm: longest exit of root's CPU {root}, of the vCPUs {guest} instructions")
    }

    fn sizes(&mut self, zones: u64, info: &Value) {
        let number = |name: &str| info.get(name).and_then(Value::as_u64);
        let when = zones_word(zones);
        if let Some(pages) = number("pages_used") {
            self.results
                .size(format!("EL2 pages, {when}"), pages * 4096, "bytes");
        }
        if let Some(heap) = number("heap_used") {
            self.results.size(format!("EL2 heap, {when}"), heap, "bytes");
        }
    }

    /// Computes the counts, and records what is missing because of `stop`, the way in which the machine
    /// ended.
    pub fn finish(mut self, label: &str, stop: &str) {
        if self.boot.count {
            for config in std::mem::take(&mut self.configs) {
                for job in &self.boot.jobs {
                    if let Err(why) = self.count(config, job.name) {
                        let why = self.reasons.get(config).unwrap_or(&why);
                        self.results.fail(
                            format!("{label}: {config}, {}", job.name),
                            format!("{why}; the machine: {stop}"),
                        );
                    }
                }
            }
            return;
        }
        for &config in &self.configs {
            let round = self.boot.round;
            let has = |job: &str| {
                self.results
                    .samples
                    .iter()
                    .any(|s| s.config == config && s.job == job && s.round == round)
            };
            let jobs = self.boot.jobs.iter().map(|job| job.name);
            let missing: Vec<&str> = jobs.filter(|job| !has(job)).collect();
            if !missing.is_empty() {
                let why = match self.reasons.get(config) {
                    Some(why) => format!("{why}; the machine: {stop}"),
                    None => format!("the machine: {stop}"),
                };
                self.results
                    .fail(format!("{config}, round {round}: {}", missing.join(" ")), why);
            }
        }
    }

    /// Adds what the counts of a job give to the results.
    fn count(&mut self, config: &str, job: &str) -> Result<(), String> {
        let [small, large] = self.requests;
        let marks = |count| {
            self.marks
                .get(&(config.to_owned(), job.to_owned(), count))
                .ok_or(format!("{count} requests were not counted"))
        };
        let difference = Difference {
            config,
            job,
            small: marks(small)?,
            large: marks(large)?,
            requests: large.saturating_sub(small).max(1),
        };
        if self.boot.icount {
            self.results.counts.push(difference.instructions()?);
        }
        if self.boot.has_stats() {
            self.results.exits.extend(difference.exits(self.boot.icount)?);
        }
        Ok(())
    }
}

fn zones_word(zones: u64) -> String {
    match zones {
        0 => "no zone".into(),
        1 => "1 zone".into(),
        n => format!("{n} zones"),
    }
}

/// Returns the host's load over the last minute; 0 where there is none to be read.
pub fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|w| w.parse().ok()).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::super::plugin::Counters;
    use super::super::results::Results;

    use super::Collector;
    use crate::bench::plan::{Boot, Kind, Plan};

    const REQUESTS: [u64; 2] = [100, 600];

    fn boot(count: bool) -> Boot {
        Boot {
            label: String::new(),
            kind: Kind::Ours,
            configs: vec!["ours-io_uring", "kvm-threads-none"],
            jobs: Plan::new(false, &["randread-1".into()]).unwrap().jobs,
            round: 1,
            count,
            icount: false,
            sizes: false,
            storm: false,
        }
    }

    #[test]
    fn a_failed_configuration_is_reported_with_its_reason() {
        let (mut results, boot) = (Results::default(), boot(false));
        let mut collector = Collector::new(&mut results, &boot, REQUESTS, None, None);
        for line in [
            "bench: config kvm-threads-none 1 2 3",
            "bench: start 10.00",
            "qemu-system-aarch64: -drive: file system does not support O_DIRECT",
            "bench: end 1",
        ] {
            collector.line(line);
        }
        collector.finish("round 1", "the script ended with status 0");
        let why = &results
            .failures
            .iter()
            .find(|f| f.what.contains("kvm"))
            .unwrap()
            .why;
        assert!(why.contains("O_DIRECT"), "{why}");
        assert!(results.failures.iter().any(|f| f.what.contains("ours-io_uring")));
        assert!(results.starts.is_empty());
    }

    #[test]
    fn starts_are_measured_by_roots_clock() {
        let (mut results, boot) = (Results::default(), boot(false));
        let mut collector = Collector::new(&mut results, &boot, REQUESTS, None, None);
        for line in [
            "bench: config ours-io_uring 1",
            "bench: start 10.00",
            "bench: first 13.50",
        ] {
            collector.line(line);
        }
        drop(collector);
        assert_eq!(results.starts[0].seconds, 3.5);
    }

    #[test]
    fn exits_are_the_difference_of_two_counts() {
        let stats = |guest: u64, root: u64| {
            format!(
                "bench: stats {{\"cpus\":[{{\"zone\":0,\"exits\":{{\"irq\":{root}}}}},{{\"zone\":1,\"exits\":{{\"permission\":{guest}}},\"longest_ns\":7}},{{\"zone\":null}}]}}"
            )
        };
        let fio = include_str!("../../../../tests/data/fio-minimal.txt").trim();
        let (mut results, boot) = (Results::default(), boot(true));
        let mut collector = Collector::new(&mut results, &boot, REQUESTS, None, None);
        collector.line("bench: config ours-io_uring 1");
        for (count, before, after) in [(100, 1000, 1250), (600, 2000, 3250)] {
            collector.line(&format!("bench: count-begin randread-1 {count}"));
            collector.line(&stats(before, before));
            collector.line(&format!("bench: count-end randread-1 {count} 0 {fio}"));
            collector.line(&stats(after, after));
        }
        collector.finish("exits", "done");
        let guest = results.exits.iter().find(|e| e.side == "guest").unwrap();
        assert_eq!((guest.total, guest.requests, guest.longest_ns), (2.0, 500, 7));
        assert_eq!(guest.reasons["permission"], 2.0);
    }

    #[test]
    fn a_storm_is_judged_by_its_longest_exits() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("counters");
        let counters = Counters::create(file.clone()).unwrap();
        let (mut results, boot) = (Results::default(), boot(false));
        let mut collector = Collector::new(&mut results, &boot, REQUESTS, Some(&counters), None);
        let set = |root: u64, guest: u64| {
            let mut words = std::fs::read(&file).unwrap();
            words[24..32].copy_from_slice(&root.to_le_bytes());
            words[56..64].copy_from_slice(&guest.to_le_bytes());
            std::fs::write(&file, words).unwrap();
        };
        set(50_000, 0);
        assert_eq!(collector.line("bench: storm-begin"), None);
        set(700, 20_001);
        let shown = collector.line("bench: storm-end").unwrap();
        assert!(shown.contains("700") && shown.contains("20001"), "{shown}");
        assert_eq!(results.sizes.len(), 2);
        assert_eq!(results.failures.len(), 1);
        assert!(results.failures[0].why.contains("at most 20000"));
    }
}
