//! What a run measures: jobs, configurations, sections, and how `QUICK` and `ONLY` narrow them.

use anyhow::{Result, bail};
use clap::ValueEnum;

/// A fio job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its name in tables.
    pub name: &'static str,
    rw: &'static str,
    size: &'static str,
    depth: u32,
    processes: u32,
    quick: bool,
}

const fn job(
    name: &'static str,
    rw: &'static str,
    size: &'static str,
    depth: u32,
    processes: u32,
    quick: bool,
) -> Job {
    Job {
        name,
        rw,
        size,
        depth,
        processes,
        quick,
    }
}

const JOBS: &[Job] = &[
    job("randread-1", "randread", "4k", 1, 1, true),
    job("randread-32", "randread", "4k", 32, 1, true),
    job("randread-4x16", "randread", "4k", 16, 4, false),
    job("randwrite-1", "randwrite", "4k", 1, 1, false),
    job("randwrite-32", "randwrite", "4k", 32, 1, true),
    job("randwrite-4x16", "randwrite", "4k", 16, 4, false),
    job("read-1m", "read", "1m", 4, 1, true),
    job("write-1m", "write", "1m", 4, 1, false),
];

impl Job {
    /// Returns the job as `tests/bench/jobs.sh` takes it.
    pub fn word(&self) -> String {
        format!(
            "{}:{}:{}:{}:{}",
            self.name, self.rw, self.size, self.depth, self.processes
        )
    }

    /// Returns the job as people read it.
    pub fn title(&self) -> String {
        let size = if self.size == "4k" { "4 KiB" } else { "1 MiB" };
        let processes = match self.processes {
            1 => String::new(),
            n => format!("{n} processes, "),
        };
        let depth = if self.processes == 1 { "" } else { " each" };
        format!("{size} {}, {processes}depth {}{depth}", self.rw, self.depth)
    }
}

/// Configurations of one kind share a boot of the machine, but for plain QEMU's, which are machines
/// themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Guests of ringvisor, and the loop device in its root.
    Ours,
    /// Guests under KVM, in a root without ringvisor.
    Kvm,
    /// The guest directly on the emulated machine.
    Plain,
}

/// A configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Its name in tables and in `tests/bench/root.sh`.
    pub name: &'static str,
    /// Which machine it needs.
    pub kind: Kind,
    quick: bool,
    /// Whether instructions are counted.
    counted: bool,
}

const fn config(name: &'static str, kind: Kind, quick: bool, counted: bool) -> Config {
    Config {
        name,
        kind,
        quick,
        counted,
    }
}

const CONFIGS: &[Config] = &[
    config("ours-io_uring", Kind::Ours, true, true),
    config("ours-threads", Kind::Ours, false, true),
    config("kvm-threads-none", Kind::Kvm, false, false),
    config("kvm-threads-writeback", Kind::Kvm, true, true),
    config("kvm-io_uring-none", Kind::Kvm, false, true),
    config("kvm-io_uring-writeback", Kind::Kvm, false, false),
    config("plain-threads", Kind::Plain, true, true),
    config("plain-io_uring", Kind::Plain, false, false),
    config("loop", Kind::Ours, false, false),
];

/// What each configuration is, for the table's head.
pub const LEGEND: &str = "\
ours-ENGINE      guest of ringvisor, ringd with that engine, image in root's tmpfs
kvm-AIO-CACHE    guest of KVM with Debian's arm64 QEMU 10 in the same root without ringvisor, image in its tmpfs
plain-AIO        the guest directly on the emulated machine, QEMU's virtio-blk-device, image in the host's tmpfs
loop             no guest: fio on a loop device over the same file, in the root of ringvisor, on as many CPUs";

/// Parts of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Section {
    /// fio's throughput and latency, and with it the time of starts.
    Fio,
    /// Instructions for a request, under `-icount`.
    Instructions,
    /// Exits for a request at EL2.
    Exits,
    /// Sizes.
    Sizes,
    /// The longest exits while four vCPUs keep their zone's GIC busy, under `-icount`.
    Storm,
}

/// One boot, or for plain QEMU one guest.
#[derive(Debug, Clone)]
pub struct Boot {
    /// Name of the raw log.
    pub label: String,
    /// Which machine.
    pub kind: Kind,
    /// The guests.
    pub configs: Vec<&'static str>,
    /// The jobs.
    pub jobs: Vec<Job>,
    /// From 1.
    pub round: u32,
    /// Requests are counted instead of timed.
    pub count: bool,
    /// Under `-icount shift=0`.
    pub icount: bool,
    /// Sizes are measured, too.
    pub sizes: bool,
    /// The longest exits in a storm are measured.
    pub storm: bool,
}

impl Boot {
    /// Whether its root reports EL2's counters.
    pub fn has_stats(&self) -> bool {
        self.count && self.kind == Kind::Ours
    }
}

/// A run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// One short round.
    pub quick: bool,
    /// Rounds.
    pub rounds: u32,
    /// Seconds of each job that count.
    pub seconds: u32,
    /// Seconds before them.
    pub ramp: u32,
    /// Numbers of requests whose difference is counted.
    pub counts: [u64; 2],
    /// Jobs.
    pub jobs: Vec<Job>,
    /// Configurations.
    pub configs: Vec<Config>,
    sections: Vec<Section>,
}

impl Plan {
    /// `only`: names of sections, and parts of the names of jobs and configurations. Of a kind that no word
    /// is about, all are taken.
    ///
    /// # Errors
    /// A word that stands for nothing.
    pub fn new(quick: bool, only: &[String]) -> Result<Self> {
        let (mut sections, mut jobs, mut configs) = (Vec::new(), Vec::new(), Vec::new());
        for word in only {
            if let Ok(section) = Section::from_str(word, false) {
                sections.push(section);
                continue;
            }
            let (before_jobs, before_configs) = (jobs.len(), configs.len());
            jobs.extend(JOBS.iter().filter(|j| j.name.contains(word.as_str())).cloned());
            configs.extend(CONFIGS.iter().filter(|c| c.name.contains(word.as_str())).cloned());
            if (before_jobs, before_configs) == (jobs.len(), configs.len()) {
                let names = |list: Vec<&str>| list.join(" ");
                let sections = Section::value_variants()
                    .iter()
                    .filter_map(Section::to_possible_value);
                let sections: Vec<String> = sections.map(|value| value.get_name().to_owned()).collect();
                bail!(
                    "ONLY={word}: expected a section ({}), or part of the name of a job ({}) or of a configuration ({})",
                    sections.join(" "),
                    names(JOBS.iter().map(|j| j.name).collect()),
                    names(CONFIGS.iter().map(|c| c.name).collect())
                );
            }
        }
        if sections.is_empty() {
            sections = Section::value_variants().to_vec();
        }
        // In the order of the lists, each once. What was asked for by name is done in a quick run, too.
        Ok(Self {
            quick,
            rounds: if quick { 1 } else { 3 },
            seconds: if quick { 2 } else { 5 },
            ramp: 1,
            counts: if quick { [100, 600] } else { [200, 2200] },
            jobs: chosen(JOBS, &jobs, |j| j.quick || !quick),
            configs: chosen(CONFIGS, &configs, |c| c.quick || !quick),
            sections,
        })
    }

    /// Returns whether a section is wanted.
    pub fn wants(&self, section: Section) -> bool {
        self.sections.contains(&section)
    }

    /// Returns the configurations of a kind, by name.
    pub fn of(&self, kind: Kind) -> Vec<&'static str> {
        let of = self.configs.iter().filter(|c| c.kind == kind);
        of.map(|c| c.name).collect()
    }

    /// Returns the configurations of a kind whose instructions are counted.
    pub fn counted(&self, kind: Kind) -> Vec<&'static str> {
        let counted = |c: &&Config| c.kind == kind && c.counted;
        self.configs.iter().filter(counted).map(|c| c.name).collect()
    }

    /// Jobs whose requests are counted: those of 4 KiB by one process.
    pub fn counted_jobs(&self) -> Vec<Job> {
        let counted = |j: &&Job| j.size == "4k" && j.processes == 1;
        let mut jobs: Vec<Job> = self.jobs.iter().filter(counted).cloned().collect();
        if self.quick {
            jobs.retain(|j| j.rw == "randread");
        }
        jobs
    }
}

/// Returns those of `all` that are named, or if none is, those that are `usual`.
fn chosen<T: Clone + PartialEq>(all: &[T], named: &[T], usual: impl Fn(&T) -> bool) -> Vec<T> {
    let wanted = |one: &&T| {
        if named.is_empty() {
            usual(one)
        } else {
            named.contains(one)
        }
    };
    all.iter().filter(wanted).cloned().collect()
}

#[cfg(test)]
mod tests {
    use anyhow::Result;

    use clap::ValueEnum as _;

    use super::{CONFIGS, JOBS, Kind, Plan, Section};

    fn plan(quick: bool, only: &[&str]) -> Result<Plan> {
        Plan::new(quick, &only.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn all_without_words() {
        let plan = plan(false, &[]).unwrap();
        assert_eq!((plan.jobs.len(), plan.configs.len()), (JOBS.len(), CONFIGS.len()));
        assert!(Section::value_variants().iter().all(|s| plan.wants(*s)));
        assert_eq!(plan.of(Kind::Kvm).len(), 4);
    }

    #[test]
    fn words_narrow_their_own_kind() {
        let narrow = plan(false, &["fio", "randread", "ours"]).unwrap();
        assert!(narrow.wants(Section::Fio) && !narrow.wants(Section::Exits));
        assert_eq!(narrow.jobs.len(), 3);
        assert_eq!(narrow.of(Kind::Ours), ["ours-io_uring", "ours-threads"]);
        assert!(narrow.of(Kind::Plain).is_empty());
        let quick = plan(true, &["randread-4x16"]).unwrap();
        assert_eq!(quick.jobs.len(), 1);
        let error = plan(false, &["nonsense"]).unwrap_err().to_string();
        assert!(
            error.contains("nonsense") && error.contains("instructions"),
            "{error}"
        );
    }

    #[test]
    fn jobs_are_words_and_titles() {
        let [one, .., last] = JOBS else { panic!("no jobs") };
        assert_eq!(one.word(), "randread-1:randread:4k:1:1");
        assert_eq!(one.title(), "4 KiB randread, depth 1");
        assert_eq!(last.title(), "1 MiB write, depth 4");
        assert_eq!(JOBS[2].title(), "4 KiB randread, 4 processes, depth 16 each");
    }
}
