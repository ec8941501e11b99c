//! Boots a machine and runs test scripts in its root.
//!
//! The script of the boot is `driver.sh` with the list of tests; it reports each test's begin and end with
//! marks ([`crate::console`]). A test that kills the machine fails, and those after it get a new boot.

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::catalog::{Script, TestMachine, test_name};
use super::host::late;
use super::report::Report;
use crate::console::Line;
use crate::exec::{Next, Process, Stop, watch};
use crate::machine::{Machine, Mode};
use crate::options::MachineOptions;
use crate::project::Project;

/// How long a boot may take.
const BOOT: Duration = Duration::from_secs(240);
/// Added to a test's own time limit, which root keeps, before the machine counts as hanging.
const GRACE: Duration = Duration::from_secs(20);

const DRIVER: &str = include_str!("driver.sh");

/// Runs `scripts` on `machine`.
pub fn run(
    project: &Project,
    base: &MachineOptions,
    machine: &TestMachine,
    scripts: Vec<Script>,
    report: &Report,
) {
    let options = machine.options(base);
    let mut left: VecDeque<Script> = scripts.into();
    while !left.is_empty() {
        let before = left.len();
        let mut boot = Boot {
            machine: &machine.name,
            report,
            left,
            current: None,
            output: String::new(),
            typed: BTreeSet::new(),
        };
        let stop = boot.run(project, &options);
        left = boot.end(stop, before);
    }
}

/// One boot.
struct Boot<'a> {
    machine: &'a str,
    report: &'a Report,
    left: VecDeque<Script>,
    /// Since when the first of `left` is running, and the machine's CPU time then.
    current: Option<(Instant, Duration)>,
    output: String,
    /// What the running test had typed already: its marks come several times.
    typed: BTreeSet<String>,
}

impl Boot<'_> {
    fn run(&mut self, project: &Project, options: &MachineOptions) -> Result<Stop> {
        let board = options.board(&project.dir)?;
        let files = tempfile::tempdir()?;
        let source = project.dir.join("tests/system");
        let mut tests = project.test_programs();
        for entry in fs::read_dir(&source).with_context(|| format!("cannot read {}", source.display()))? {
            tests.push(entry?.path());
        }
        for file in tests.iter().filter(|file| file.is_file()) {
            if let Some(name) = file.file_name() {
                fs::copy(file, files.path().join(name))?;
            }
        }
        let mut script = String::from("#!/bin/sh\ntests='");
        for test in &self.left {
            let _ = write!(script, "{}:{} ", test.name, test.timeout.as_secs());
        }
        let _ = write!(script, "'\n{DRIVER}");
        let mode = Mode::Exec {
            script: script.into_bytes(),
            files: Some(files.path().to_owned()),
        };
        let machine = Machine::prepare(project, &board, options, &mode)?;
        watch(&machine, BOOT, |line, process| match line {
            Line::Text(text) | Line::Panic(text) => {
                self.output.push_str(text);
                self.output.push('\n');
                Next::Continue
            }
            Line::Test(mark) => self.mark(mark, process),
            _ => Next::Continue,
        })
    }

    /// Handles `begin NAME`, `end NAME STATUS` or `type NAME TEXT`. Each comes several times.
    fn mark(&mut self, mark: &str, process: &mut Process) -> Next {
        let mut words = mark.splitn(3, ' ');
        let (verb, name, rest) = (words.next(), words.next(), words.next());
        let Some(test) = self.left.front().filter(|t| name == Some(t.name.as_str())) else {
            return Next::Continue;
        };
        match (verb, self.current) {
            (Some("begin"), None) => {
                self.current = Some((Instant::now(), process.cpu()));
                self.output.clear();
                self.typed.clear();
                Next::Within(test.timeout + GRACE)
            }
            (Some("type"), Some(_)) => {
                let text = format!("{}\r", rest.unwrap_or_default());
                if !self.typed.insert(text.clone()) {
                    return Next::Continue;
                }
                let input = &mut process.input;
                if input
                    .write_all(text.as_bytes())
                    .and_then(|()| input.flush())
                    .is_err()
                {
                    self.output.push_str("the machine takes no input\n");
                }
                Next::Continue
            }
            (Some("end"), Some((start, cpu))) => {
                let name = test_name(self.machine, test);
                match rest {
                    Some("0") => self.report.passed(&name, process.took(start, cpu), &self.output),
                    Some("124" | "137") => self.report.failed(&name, &late(test.timeout), &self.output),
                    status => {
                        let why = format!("status {}", status.unwrap_or("unknown"));
                        self.report.failed(&name, &why, &self.output);
                    }
                }
                self.left.pop_front();
                self.current = None;
                self.output.clear();
                Next::Within(BOOT)
            }
            _ => Next::Continue,
        }
    }

    /// Returns what is left for another boot after this one ended by `stop`.
    fn end(mut self, stop: Result<Stop>, before: usize) -> VecDeque<Script> {
        let why = match stop {
            Ok(Stop::Script(0)) if self.left.is_empty() => return self.left,
            Ok(stop) => stop.to_string(),
            Err(error) => format!("{error:#}"),
        };
        if self.left.is_empty() {
            // All tests were done, but the machine did not end as it should.
            self.report
                .failed(&format!("{}::power-off", self.machine), &why, &self.output);
        } else if self.current.is_some() || self.left.len() == before {
            // A test that was running, or a machine that did not come as far as the first.
            if let Some(test) = self.left.pop_front() {
                self.report
                    .failed(&test_name(self.machine, &test), &why, &self.output);
            }
        }
        self.left
    }
}
