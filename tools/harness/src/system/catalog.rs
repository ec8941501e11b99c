//! Which system tests there are. A test is a script; lines `#@ key: value` at its start say how it runs:
//!
//! - `on`: names of machines from `tests/machines.toml`, or `every`. Only for scripts in root; the default is
//!   `a57`.
//! - `all`: more machines, for `make test-all` only.
//! - `timeout`: seconds, 120 by default. Only what hangs reaches it, so it is generous.
//! - `needs`: `el2` if it makes no sense on a machine without the hypervisor.
//! - `boot`: a word; tests of the same word (and machine) share a boot, those without one another. `own` is
//!   shared with no other test. Boots are what runs side by side, so they should take about equally long.
//! - `tier`: `all` to run by `make test-all` only.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::options::MachineOptions;
use crate::shard::Durations;

/// Weights ([`Durations::of`]) of a boot, and of a test that was never measured.
const BOOT: u64 = 12;
const UNMEASURED: u64 = 8;

/// QEMU keeps 1 GiB of translated code, which outlives the guests that it was translated for. Clearing their
/// memory invalidates it block by block, which takes longer than to translate again what is still in use.
const TRANSLATED: &str = "-accel tcg,tb-size=128";

/// A machine of `tests/machines.toml`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestMachine {
    /// Its name, the first part of a test's.
    pub name: String,
    /// Whether it is for `make test-all` only.
    #[serde(default)]
    pub all: bool,
    board: Option<String>,
    qemu: Option<String>,
    args: Option<String>,
    cpu: Option<String>,
    smp: Option<u32>,
    mem: Option<String>,
    kernel: Option<String>,
    bootargs: Option<String>,
}

impl TestMachine {
    /// Returns the options it stands for; what it does not set is as in `base`.
    pub fn options(&self, base: &MachineOptions) -> MachineOptions {
        let base = base.clone();
        let args = self.args.clone().or(base.qemu_args).unwrap_or_default();
        MachineOptions {
            board: self.board.clone().or(base.board),
            qemu: self.qemu.clone().or(base.qemu),
            qemu_args: Some(format!("{TRANSLATED} {args}")),
            cpu: self.cpu.clone().or(base.cpu),
            smp: self.smp.map(|n| n.to_string()).or(base.smp),
            mem: self.mem.clone().or(base.mem),
            root_kernel: self.kernel.clone().or(base.root_kernel),
            bootargs: self.bootargs.clone().or(base.bootargs),
            ..base
        }
    }
}

/// A script.
#[derive(Debug, Clone)]
pub struct Script {
    /// The file's name without its end.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// How long it may take.
    pub timeout: Duration,
    on: Vec<String>,
    on_all: Vec<String>,
    needs_el2: bool,
    boot: Option<String>,
    all: bool,
}

/// What one worker does at a time.
#[derive(Debug)]
pub enum Job {
    /// Boots a machine and runs scripts in its root.
    Boot {
        /// The machine.
        machine: TestMachine,
        /// The scripts.
        scripts: Vec<Script>,
    },
    /// Runs a script on the host.
    Host {
        /// The script.
        script: Script,
    },
}

impl Job {
    /// Returns the names of its tests.
    pub fn names(&self) -> Vec<String> {
        match self {
            Self::Boot { machine, scripts } => scripts.iter().map(|s| test_name(&machine.name, s)).collect(),
            Self::Host { script } => vec![test_name("host", script)],
        }
    }

    /// Returns the seconds by which it prolongs a run.
    pub fn seconds(&self, durations: &Durations) -> u64 {
        let tests: u64 = self
            .names()
            .iter()
            .map(|name| durations.of(name, UNMEASURED))
            .sum();
        let boot = match self {
            Self::Boot { .. } => BOOT,
            Self::Host { .. } => 0,
        };
        boot + tests
    }
}

/// The tests to run.
#[derive(Debug, Default)]
pub struct Selection {
    /// In order.
    pub jobs: Vec<Job>,
    /// Names of tests that need the hypervisor when there is none.
    pub ignored: Vec<String>,
}

impl Selection {
    /// Returns the names of all tests to run.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.jobs.iter().flat_map(Job::names)
    }
}

/// Returns `machine::script`.
pub fn test_name(machine: &str, script: &Script) -> String {
    format!("{machine}::{}", script.name)
}

/// All tests.
#[derive(Debug)]
pub struct Catalog {
    machines: Vec<TestMachine>,
    root: Vec<Script>,
    host: Vec<Script>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Machines {
    machine: Vec<TestMachine>,
}

impl Catalog {
    /// Reads the directory `tests`.
    ///
    /// # Errors
    /// A file is missing or wrong.
    pub fn read(tests: &Path) -> Result<Self> {
        let path = tests.join("machines.toml");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let machines: Machines = toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
        let catalog = Self {
            machines: machines.machine,
            root: scripts(&tests.join("system"))?,
            host: scripts(&tests.join("host"))?,
        };
        for script in &catalog.root {
            let names = script.on.iter().chain(&script.on_all);
            for name in names.filter(|n| *n != "every") {
                if !catalog.machines.iter().any(|m| m.name == *name) {
                    bail!(
                        "{}: on: {name}: no such machine in machines.toml",
                        script.path.display()
                    );
                }
            }
        }
        Ok(catalog)
    }

    /// Returns the tests whose names contain one of `words` (all if there is none).
    ///
    /// # Errors
    /// Nothing is left.
    pub fn select(&self, words: &[String], all: bool, with_el2: bool) -> Result<Selection> {
        let mut selection = Selection::default();
        let wanted = |name: &str| words.is_empty() || words.iter().any(|w| name.contains(w.as_str()));
        let mut add = |machine: &str, script: &Script| {
            let name = test_name(machine, script);
            if !wanted(&name) || (script.all && !all) {
                return false;
            }
            if script.needs_el2 && !with_el2 {
                selection.ignored.push(name);
                return false;
            }
            true
        };
        let mut jobs = Vec::new();
        for machine in self.machines.iter().filter(|m| all || !m.all) {
            // In the order of the first test of each.
            let mut boots: Vec<(Option<&str>, Vec<Script>)> = Vec::new();
            for script in &self.root {
                let among = |names: &[String]| names.iter().any(|n| n == "every" || *n == machine.name);
                let runs = among(&script.on) || (all && among(&script.on_all));
                if runs && add(&machine.name, script) {
                    let boot = script.boot.as_deref();
                    match boots.iter_mut().find(|(b, _)| *b == boot && boot != Some("own")) {
                        Some((_, scripts)) => scripts.push(script.clone()),
                        None => boots.push((boot, vec![script.clone()])),
                    }
                }
            }
            jobs.extend(boots.into_iter().map(|(_, scripts)| Job::Boot {
                machine: machine.clone(),
                scripts,
            }));
        }
        for script in self.host.iter().filter(|s| add("host", s)) {
            jobs.push(Job::Host {
                script: script.clone(),
            });
        }
        selection.jobs = jobs;
        if selection.jobs.is_empty() && selection.ignored.is_empty() {
            bail!("no system test's name contains {}", words.join(" or "));
        }
        Ok(selection)
    }
}

/// Reads the scripts in `dir`, in name order. `lib.sh` is what they share.
fn scripts(dir: &Path) -> Result<Vec<Script>> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir)
        .with_context(|| format!("cannot read {}", dir.display()))?
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "sh") && !p.ends_with("lib.sh"))
        .collect();
    paths.sort();
    paths.iter().map(|path| script(path)).collect()
}

fn script(path: &Path) -> Result<Script> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let name = path
        .file_stem()
        .and_then(|n| n.to_str())
        .context("a script without a name")?
        .to_owned();
    let mut script = Script {
        name,
        path: path.to_owned(),
        timeout: Duration::from_secs(120),
        on: vec!["a57".into()],
        on_all: Vec::new(),
        needs_el2: false,
        boot: None,
        all: false,
    };
    for line in text.lines().filter_map(|l| l.strip_prefix("#@")) {
        let wrong = || format!("{}: not understood: #@{line}", path.display());
        let (key, value) = line.split_once(':').with_context(wrong)?;
        match (key.trim(), value.trim()) {
            ("on", names) => script.on = names.split_whitespace().map(str::to_owned).collect(),
            ("all", names) => script.on_all = names.split_whitespace().map(str::to_owned).collect(),
            ("timeout", seconds) => {
                script.timeout = Duration::from_secs(seconds.parse().with_context(wrong)?)
            }
            ("needs", "el2") => script.needs_el2 = true,
            ("boot", word) => script.boot = Some(word.to_owned()),
            ("tier", "all") => script.all = true,
            _ => bail!(wrong()),
        }
    }
    Ok(script)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::time::Duration;

    use anyhow::Result;

    use super::{Catalog, Job};

    fn catalog(scripts: &[(&str, &str)]) -> Result<Catalog> {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("system")).unwrap();
        fs::create_dir(dir.path().join("host")).unwrap();
        let machines = "[[machine]]\nname = \"a57\"\n[[machine]]\nname = \"big\"\nsmp = 8\nall = true\n";
        fs::write(dir.path().join("machines.toml"), machines).unwrap();
        for (name, text) in scripts {
            fs::write(dir.path().join(name), text).unwrap();
        }
        Catalog::read(dir.path())
    }

    fn names(catalog: &Catalog, words: &[&str], all: bool) -> Vec<String> {
        let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        catalog.select(&words, all, true).unwrap().names().collect()
    }

    #[test]
    fn the_shipped_tests_are_described_rightly() {
        Catalog::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests")).unwrap();
    }

    #[test]
    fn scripts_run_where_they_say() {
        let catalog = catalog(&[
            ("system/a.sh", "#!/bin/sh\n#@ on: every\n"),
            ("system/b.sh", "#@ boot: own\n#@ timeout: 5\n"),
            ("system/lib.sh", ""),
            ("system/d.sh", "#@ all: big\n"),
            ("system/e.sh", "#@ boot: disks\n"),
            ("system/f.sh", "#@ boot: own\n"),
            ("system/g.sh", "#@ boot: disks\n"),
            ("host/c.sh", "#@ tier: all\n"),
        ])
        .unwrap();
        let selection = catalog.select(&[], false, true).unwrap();
        let boots: Vec<Vec<&str>> = selection
            .jobs
            .iter()
            .map(|job| match job {
                Job::Boot { scripts, .. } => scripts.iter().map(|s| s.name.as_str()).collect(),
                Job::Host { .. } => Vec::new(),
            })
            .collect();
        let expected: [&[&str]; 4] = [&["a", "d"], &["b"], &["e", "g"], &["f"]];
        assert_eq!(boots, expected);
        assert_eq!(
            names(&catalog, &["a57::a", "big", "host"], true),
            ["a57::a", "big::a", "big::d", "host::c"]
        );
        assert_eq!(
            names(&catalog, &["big", "b"], true),
            ["a57::b", "big::a", "big::d"]
        );
        assert!(catalog.select(&["zzz".into()], true, true).is_err());
        assert_eq!(catalog.root[1].timeout, Duration::from_secs(5));
    }

    #[test]
    fn tests_of_the_hypervisor_are_ignored_without_it() {
        let catalog = catalog(&[("system/a.sh", "#@ needs: el2\n"), ("system/b.sh", "")]).unwrap();
        let selection = catalog.select(&[], false, false).unwrap();
        assert_eq!(selection.ignored, ["a57::a"]);
        assert_eq!(selection.names().collect::<Vec<_>>(), ["a57::b"]);
    }

    #[test]
    fn mistakes_are_named() {
        let error = format!("{:#}", catalog(&[("system/a.sh", "#@ on: vax\n")]).unwrap_err());
        assert!(error.contains("vax") && error.contains("a.sh"), "{error}");
        let error = format!(
            "{:#}",
            catalog(&[("system/a.sh", "#@ colour: red\n")]).unwrap_err()
        );
        assert!(error.contains("colour: red"), "{error}");
    }
}
