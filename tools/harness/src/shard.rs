//! `SHARD=i/n`: the i-th of n parts of a run. Each stage and each boot of the system tests is in exactly one
//! part, the same one every time, and parts take about equally long by `tests/durations.txt`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Error, Result, bail};

/// One part of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// From 0.
    index: usize,
    count: usize,
}

impl FromStr for Shard {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let numbers = text
            .split_once('/')
            .and_then(|(index, count)| Some((index.parse().ok()?, count.parse().ok()?)));
        match numbers {
            Some((index @ 1.., count)) if index <= count => Ok(Self {
                index: index - 1,
                count,
            }),
            _ => bail!("SHARD={text}: expected i/n with i from 1 to n"),
        }
    }
}

impl Shard {
    /// Returns the loads of shards that have nothing to do yet.
    pub fn idle(self) -> Vec<u64> {
        vec![0; self.count]
    }

    /// Returns for each of `seconds` whether that unit of work is in this shard, and adds all of them to
    /// `loads`. The longest unit goes first, each to the shard with the least to do.
    pub fn select(self, seconds: &[u64], loads: &mut [u64]) -> Vec<bool> {
        let mut order: Vec<(usize, u64)> = seconds.iter().copied().enumerate().collect();
        order.sort_by_key(|(_, seconds)| std::cmp::Reverse(*seconds));
        let mut selected = vec![false; seconds.len()];
        for (unit, seconds) in order {
            let least = loads.iter_mut().enumerate().min_by_key(|(_, load)| **load);
            let Some((shard, load)) = least else { break };
            *load += seconds;
            if let Some(selected) = selected.get_mut(unit) {
                *selected = shard == self.index;
            }
        }
        selected
    }
}

/// What stages and system tests take, as measured: `tests/durations.txt`.
#[derive(Debug, Default)]
pub struct Durations(BTreeMap<String, u64>);

/// CPUs of the machines that a run is divided among.
const CPUS: u64 = 2;
/// Machines and stages that are at work at the same time, most of them waiting.
const BESIDE: u64 = 3;

impl Durations {
    /// Reads the file: a name, seconds of wall time and seconds of CPU time on each line.
    ///
    /// # Errors
    /// It cannot be read, or a line is not understood.
    pub fn read(tests: &Path) -> Result<Self> {
        let path = tests.join("durations.txt");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        text.lines()
            .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
            .map(|line| {
                let mut words = line.rsplitn(3, ' ');
                let cpu: u64 = words.next()?.parse().ok()?;
                let wall: u64 = words.next()?.parse().ok()?;
                let seconds = cpu.div_ceil(CPUS).max(wall.div_ceil(BESIDE));
                Some((words.next()?.trim().to_owned(), seconds))
            })
            .collect::<Option<_>>()
            .map(Self)
            .with_context(|| {
                format!(
                    "{}: expected a name, seconds and CPU seconds on each line",
                    path.display()
                )
            })
    }

    /// Returns the seconds by which `name` prolongs a run beside others on two idle cores, or `otherwise` for
    /// what was never measured: what computes has both cores' time, what waits is one of several that do.
    pub fn of(&self, name: &str, otherwise: u64) -> u64 {
        self.0.get(name).copied().unwrap_or(otherwise)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{Durations, Shard};

    #[test]
    fn each_unit_is_in_exactly_one_shard() {
        let seconds = [5, 50, 20, 20, 1, 0, 7, 31];
        for count in 1..=9 {
            let mut total = vec![0; seconds.len()];
            for index in 1..=count {
                let shard: Shard = format!("{index}/{count}").parse().unwrap();
                let mut loads = shard.idle();
                for (sum, selected) in total.iter_mut().zip(shard.select(&seconds, &mut loads)) {
                    *sum += u32::from(selected);
                }
                assert_eq!(loads.iter().sum::<u64>(), seconds.iter().sum::<u64>());
            }
            assert_eq!(total, [1; 8], "{count} shards");
        }
    }

    #[test]
    fn shards_take_about_equally_long() {
        let shard: Shard = "1/2".parse().unwrap();
        let mut loads = vec![30, 0];
        assert_eq!(shard.select(&[10, 20, 20], &mut loads), [true, false, false]);
        assert_eq!(loads, [40, 40]);
    }

    #[test]
    fn what_is_no_shard_is_refused() {
        for text in ["", "0/2", "3/2", "1", "1/0", "a/b", "-1/2"] {
            let error = text.parse::<Shard>().unwrap_err().to_string();
            assert!(error.contains(&format!("SHARD={text}:")), "{error}");
        }
    }

    #[test]
    fn durations_are_names_wall_and_cpu_seconds() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(
            dir.path().join("durations.txt"),
            "# x\nclippy host 60 80\na57::a 70 9\n",
        )
        .unwrap();
        let durations = Durations::read(dir.path()).unwrap();
        assert_eq!(
            ["clippy host", "a57::a", "new"].map(|name| durations.of(name, 9)),
            [40, 24, 9]
        );
        fs::write(dir.path().join("durations.txt"), "a57::a 7\n").unwrap();
        assert!(Durations::read(dir.path()).is_err());
    }
}
