//! What was measured, as it is written to `results.json`, and the medians of it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::message::Fio;
use super::plan::Plan;

/// All that a run measured.
#[derive(Debug, Default, Serialize)]
pub struct Results {
    /// Host, programs and settings.
    pub about: Vec<(String, String)>,
    /// fio's results.
    pub samples: Vec<Sample>,
    /// Times from the start of a guest to its first line.
    pub starts: Vec<Start>,
    /// Instructions for a request.
    pub counts: Vec<Count>,
    /// Exits for a request.
    pub exits: Vec<Exits>,
    /// Sizes.
    pub sizes: Vec<Size>,
    /// What could not be measured.
    pub failures: Vec<Failure>,
}

/// One run of one job.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    /// The configuration.
    pub config: String,
    /// The job.
    pub job: String,
    /// From 1.
    pub round: u32,
    /// What fio says.
    #[serde(flatten)]
    pub fio: Fio,
    /// The host's load over the last minute when it ended.
    pub load: f64,
}

/// One start of a guest.
#[derive(Debug, Clone, Serialize)]
pub struct Start {
    /// The configuration.
    pub config: String,
    /// From 1.
    pub round: u32,
    /// To the first line of user space.
    pub seconds: f64,
    /// The host's load over the last minute.
    pub load: f64,
}

/// Instructions for one request, under `-icount shift=0` and with one CPU for the guest.
#[derive(Debug, Clone, Serialize)]
pub struct Count {
    /// The configuration.
    pub config: String,
    /// The job.
    pub job: String,
    /// Requests that were counted.
    pub requests: u64,
    /// Instructions of the whole machine, if the plugin counted them.
    pub instructions: Option<f64>,
    /// The same by who executed them.
    pub parts: BTreeMap<String, f64>,
    /// fio's mean time of a request in microseconds of virtual time. An instruction is a nanosecond; what all
    /// CPUs wait passes at the host's speed.
    pub virtual_us: f64,
    /// Instructions of the longest exit of any CPU meanwhile, if the plugin counted and there is our EL2.
    #[serde(rename = "longest_stay")]
    pub longest_exit: Option<u64>,
}

/// Exits for one request.
#[derive(Debug, Clone, Serialize)]
pub struct Exits {
    /// The configuration.
    pub config: String,
    /// The job.
    pub job: String,
    /// Under `-icount shift=0`.
    pub icount: bool,
    /// Requests that were counted.
    pub requests: u64,
    /// `guest` or `root`: whose CPUs.
    pub side: String,
    /// All exits.
    pub total: f64,
    /// Exits by reason.
    pub reasons: BTreeMap<String, f64>,
    /// Other events at EL2.
    pub events: BTreeMap<String, f64>,
    /// Longest exit of those CPUs so far, in nanoseconds.
    pub longest_ns: u64,
}

/// A size.
#[derive(Debug, Clone, Serialize)]
pub struct Size {
    /// Of what.
    pub what: String,
    /// How large.
    pub value: u64,
    /// In what.
    pub unit: String,
}

/// Something that could not be measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// What.
    pub what: String,
    /// Why.
    pub why: String,
}

/// The medians of some runs of one job, each number by itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Medians {
    /// As in [`Fio`].
    pub fio: Fio,
    /// Fewest and most requests a second.
    pub range: (f64, f64),
    /// Mean load of the host.
    pub load: f64,
    /// How many runs.
    pub runs: usize,
}

impl Results {
    /// Records a failure, once.
    pub fn fail(&mut self, what: impl Into<String>, why: impl Into<String>) {
        let failure = Failure {
            what: what.into(),
            why: why.into(),
        };
        if !self.failures.contains(&failure) {
            self.failures.push(failure);
        }
    }

    /// Records a size.
    pub fn size(&mut self, what: impl Into<String>, value: u64, unit: &str) {
        self.sizes.push(Size {
            what: what.into(),
            value,
            unit: unit.to_owned(),
        });
    }

    /// Medians of a job in a configuration; none if no run of it succeeded.
    pub fn medians(&self, config: &str, job: &str) -> Option<Medians> {
        let samples = || {
            self.samples
                .iter()
                .filter(move |s| s.config == config && s.job == job)
        };
        let of = |field: fn(&Sample) -> f64| median(samples().map(field));
        let loads: Vec<f64> = samples().map(|s| s.load).collect();
        Some(Medians {
            fio: Fio {
                iops: of(|s| s.fio.iops)?,
                mb_s: of(|s| s.fio.mb_s)?,
                mean_us: of(|s| s.fio.mean_us)?,
                p99_us: of(|s| s.fio.p99_us)?,
            },
            range: samples().fold((f64::INFINITY, 0.0), |(low, high), s| {
                (low.min(s.fio.iops), high.max(s.fio.iops))
            }),
            load: loads.iter().sum::<f64>() / loads.len().max(1) as f64,
            runs: loads.len(),
        })
    }

    /// Returns the medians of the configuration with the most requests a second among those whose names begin
    /// with `prefix`.
    pub fn best(&self, plan: &Plan, job: &str, prefix: &str) -> Option<Medians> {
        plan.configs
            .iter()
            .filter(|c| c.name.starts_with(prefix))
            .filter_map(|c| self.medians(c.name, job))
            .max_by(|a, b| a.fio.iops.total_cmp(&b.fio.iops))
    }

    /// Returns the median time of the starts of a configuration, and how many there were.
    pub fn start(&self, config: &str) -> Option<(f64, usize)> {
        let times: Vec<f64> = self
            .starts
            .iter()
            .filter(|s| s.config == config)
            .map(|s| s.seconds)
            .collect();
        Some((median(times.iter().copied())?, times.len()))
    }
}

/// Returns the median; of an even number of values the mean of the middle two.
pub fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    if values.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = *values.get((values.len() / 2).checked_sub(1)?)?;
    Some(f64::midpoint(lower, upper))
}

#[cfg(test)]
mod tests {
    use super::super::message::Fio;

    use super::{Results, Sample, median};

    #[test]
    fn medians_of_odd_even_and_none() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), Some(2.5));
        assert_eq!(median([7.0].into_iter()), Some(7.0));
        assert_eq!(median(std::iter::empty()), None);
    }

    #[test]
    fn each_number_has_its_own_median() {
        let mut results = Results::default();
        for (round, iops, mean_us) in [(1, 10.0, 3.0), (2, 30.0, 1.0), (3, 20.0, 9.0)] {
            let fio = Fio {
                iops,
                mb_s: 0.0,
                mean_us,
                p99_us: 0.0,
            };
            results.samples.push(Sample {
                config: "a".into(),
                job: "j".into(),
                round,
                fio,
                load: 2.0,
            });
        }
        let medians = results.medians("a", "j").unwrap();
        assert_eq!((medians.fio.iops, medians.fio.mean_us), (20.0, 3.0));
        assert_eq!(
            (medians.range, medians.runs, medians.load),
            ((10.0, 30.0), 3, 2.0)
        );
        assert!(results.medians("b", "j").is_none());
    }

    #[test]
    fn a_failure_is_noted_once() {
        let mut results = Results::default();
        results.fail("a", "b");
        results.fail("a", "b");
        assert_eq!(results.failures.len(), 1);
    }
}
