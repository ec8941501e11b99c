//! Counts of requests: what was read at the marks before and after each, and what the difference of a large
//! and a small number of requests gives for one, so that the cost of fio and of the marks themselves cancels
//! out.

use std::collections::BTreeMap;

use serde_json::Value;

use super::message::Fio;
use super::plugin::Snapshot;
use super::results::{Count, Exits};

/// One count of requests.
#[derive(Debug, Default)]
pub struct Marks {
    /// Before the first request.
    pub before: Mark,
    /// After the last.
    pub after: Mark,
    /// fio's result.
    pub fio: Option<Fio>,
}

/// What was read at a mark.
#[derive(Debug, Default)]
pub struct Mark {
    /// The plugin's counters.
    pub instructions: Option<Snapshot>,
    /// EL2's counters: `ringctl stats --json`.
    pub stats: Option<Value>,
}

/// Two counts of one job that differ in `requests`.
#[derive(Debug)]
pub struct Difference<'a> {
    /// The configuration.
    pub config: &'a str,
    /// The job.
    pub job: &'a str,
    /// The count of fewer requests.
    pub small: &'a Marks,
    /// The count of more.
    pub large: &'a Marks,
    /// How many more, at least 1.
    pub requests: u64,
}

impl Difference<'_> {
    /// Returns the instructions for a request.
    ///
    /// # Errors
    /// fio gave no result. Without the plugin only virtual time is known.
    pub fn instructions(&self) -> Result<Count, String> {
        let fio = self.large.fio.ok_or("fio gave no result")?;
        let between = |m: &Marks| Some(m.after.instructions?.since(&m.before.instructions?));
        let ours = self.config.starts_with("ours-");
        let mut parts = BTreeMap::new();
        let (mut total, mut longest_exit) = (None, None);
        if let (Some(small), Some(large)) = (between(self.small), between(self.large)) {
            longest_exit = Some(large.longest_exit()).filter(|_| ours);
            let small = small.parts(ours);
            for (part, count) in large.parts(ours) {
                let less = small.get(&part).copied().unwrap_or(0);
                parts.insert(part, (count as f64 - less as f64) / self.requests as f64);
            }
            total = Some(parts.values().sum());
        }
        Ok(Count {
            config: self.config.to_owned(),
            job: self.job.to_owned(),
            requests: self.requests,
            instructions: total,
            parts,
            virtual_us: fio.mean_us,
            longest_exit,
        })
    }

    /// Returns the exits for a request, of the guest's CPUs and of root's.
    ///
    /// # Errors
    /// EL2's counters are missing at a mark, or fio gave no result.
    pub fn exits(&self, icount: bool) -> Result<Vec<Exits>, String> {
        self.large.fio.ok_or("fio gave no result")?;
        let (small, large) = (self.small, self.large);
        let marks = [&small.before, &small.after, &large.before, &large.after];
        let [Some(a), Some(b), Some(c), Some(d)] = marks.map(|m| m.stats.as_ref().map(sides)) else {
            return Err("`ringctl stats` gave no counters".into());
        };
        let side = |side: &str| {
            let of = |all: &Sides| all.get(side).cloned().unwrap_or_default();
            let (a, b, c, d) = (of(&a), of(&b), of(&c), of(&d));
            let each = |pick: fn(&Side) -> &BTreeMap<String, u64>| -> BTreeMap<String, f64> {
                let value = |side: &Side, name: &str| pick(side).get(name).copied().unwrap_or(0) as f64;
                pick(&d)
                    .keys()
                    .map(|name| {
                        let large = value(&d, name) - value(&c, name);
                        let small = value(&b, name) - value(&a, name);
                        (name.clone(), (large - small) / self.requests as f64)
                    })
                    .collect()
            };
            let reasons = each(|s| &s.exits);
            Exits {
                config: self.config.to_owned(),
                job: self.job.to_owned(),
                icount,
                requests: self.requests,
                side: side.to_owned(),
                total: reasons.values().sum(),
                reasons,
                events: each(|s| &s.events),
                longest_ns: d.longest_ns,
            }
        };
        Ok(["guest", "root"].map(side).into())
    }
}

/// Sums over the CPUs of one side.
#[derive(Debug, Clone, Default)]
struct Side {
    exits: BTreeMap<String, u64>,
    events: BTreeMap<String, u64>,
    longest_ns: u64,
}

type Sides = BTreeMap<&'static str, Side>;

/// Sums what `ringctl stats --json` says, by root's CPUs and the guest's.
fn sides(stats: &Value) -> Sides {
    let mut sides = Sides::new();
    for cpu in stats.get("cpus").and_then(Value::as_array).into_iter().flatten() {
        let name = match cpu.get("zone").and_then(Value::as_u64) {
            Some(0) => "root",
            Some(_) => "guest",
            None => continue,
        };
        let side = sides.entry(name).or_default();
        for (key, into) in [("exits", &mut side.exits), ("events", &mut side.events)] {
            for (reason, count) in cpu.get(key).and_then(Value::as_object).into_iter().flatten() {
                *into.entry(reason.clone()).or_default() += count.as_u64().unwrap_or(0);
            }
        }
        let longest = cpu.get("longest_ns").and_then(Value::as_u64).unwrap_or(0);
        side.longest_ns = side.longest_ns.max(longest);
    }
    sides
}
