//! Runs the stages of `make test` (`tests/stages.toml`) and adds their results up. The last line printed is the summary.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use image::cache::Cache;
use image::cmd;
use image::machine::Flavour;
use serde::Deserialize;

use crate::machine::Project;

/// What to run.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Only stages whose names contain this word; `lint` stands for formatting and lints.
    #[arg(long)]
    only: Option<String>,
    /// Also what is only for `make test-all`.
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stages {
    stage: Vec<Stage>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stage {
    name: String,
    run: String,
    #[serde(default)]
    lint: bool,
    #[serde(rename = "if")]
    needs: Option<String>,
    #[serde(default)]
    all: bool,
}

/// Numbers of tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
    ignored: u64,
}

/// Runs the stages; returns 0 if every test of every stage passed. A failed stage does not keep later ones from running.
///
/// # Errors
/// `tests/stages.toml` is wrong or no stage is left.
pub fn run(project: &Project, arguments: &Arguments) -> Result<u8> {
    let path = project.dir.join("tests/stages.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let stages: Stages = toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
    let started = Instant::now();
    let mut total = Count::default();
    let mut table = Vec::new();
    if arguments.only.is_none() {
        fetch_ahead(project);
    }
    for stage in stages.stage.iter().filter(|s| s.wanted(project, arguments)) {
        cmd::step(&stage.name);
        let since = Instant::now();
        let count = stage.run(project, arguments.all)?;
        let verdict = if count.failed == 0 { "ok" } else { "FAILED" };
        let seconds = since.elapsed().as_secs();
        table.push(format!(
            "{:24} {verdict:6} {:5} passed {:3} failed {seconds:4} s",
            stage.name, count.passed, count.failed
        ));
        total = total.plus(count);
    }
    if table.is_empty() {
        bail!("no stage of that name in {}", path.display());
    }
    println!("\n{}\n", table.join("\n"));
    let verdict = if total.failed == 0 { "ok" } else { "FAILED" };
    println!(
        "test result: {verdict}. {} passed; {} failed; {} ignored; 0 measured; 0 filtered out; finished in {:.2}s",
        total.passed,
        total.failed,
        total.ignored,
        started.elapsed().as_secs_f64()
    );
    std::io::stdout().flush()?;
    Ok(u8::from(total.failed != 0))
}

/// What the system tests need from Debian comes over the network, and is unpacked on one CPU: it is fetched while the
/// stages before them compile. They wait for it where they need it, and try again what failed here.
fn fetch_ahead(project: &Project) {
    let dir = project.dir.clone();
    std::thread::spawn(move || {
        let fetch = || -> Result<()> {
            let cache = Cache::open(&dir)?;
            for flavour in [Flavour::Cloud, Flavour::Generic] {
                image::machine::root_files(&cache, flavour)?;
            }
            Ok(())
        };
        if let Err(error) = fetch() {
            eprintln!("harness: cannot fetch ahead what the system tests need: {error:#}");
        }
    });
}

impl Stage {
    fn wanted(&self, project: &Project, arguments: &Arguments) -> bool {
        let named = match arguments.only.as_deref() {
            None => true,
            Some("lint") => self.lint,
            Some(word) => self.name.contains(word),
        };
        let there = self
            .needs
            .as_ref()
            .is_none_or(|file| project.dir.join(file).exists());
        let lint = self.lint && arguments.only.as_deref() == Some("lint");
        named && there && (arguments.all || lint || !self.all)
    }

    fn run(&self, project: &Project, all: bool) -> Result<Count> {
        let mut command = Command::new("bash");
        command
            .args(["-euo", "pipefail", "-c", &self.run])
            .current_dir(&project.dir);
        command
            .env("HARNESS", project.harness())
            .env("ALL", if all { "--all" } else { "" });
        command.env("CARGO_TARGET_DIR", project.target());
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start bash")?;
        let output = child.stdout.take().context("no pipe from bash")?;
        let mut count = Count::default();
        let mut stdout = std::io::stdout().lock();
        for line in BufReader::new(output).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            count = count.plus(Count::parse(&line).unwrap_or_default());
            writeln!(stdout, "{line}")?;
        }
        drop(stdout);
        let success = child.wait()?.success();
        Ok(count.with_status(success))
    }
}

impl Count {
    /// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; ...`.
    fn parse(line: &str) -> Option<Self> {
        let (_, rest) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let number = |word: &str| {
            let part = rest.split(';').find_map(|p| p.trim().strip_suffix(word))?;
            part.trim().parse().ok()
        };
        Some(Self {
            passed: number("passed")?,
            failed: number("failed")?,
            ignored: number("ignored")?,
        })
    }

    fn plus(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            ignored: self.ignored + other.ignored,
        }
    }

    /// A stage without results is one test; one that failed without a failed test, too.
    fn with_status(self, success: bool) -> Self {
        match (success, self) {
            (
                true,
                Self {
                    passed: 0, failed: 0, ..
                },
            ) => Self { passed: 1, ..self },
            (false, Self { failed: 0, .. }) => Self { failed: 1, ..self },
            _ => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_cargos_result_lines() {
        let line = "test result: FAILED. 15 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(
            Count::parse(line),
            Some(Count {
                passed: 15,
                failed: 2,
                ignored: 1
            })
        );
        assert_eq!(Count::parse("test result: unknown"), None);
        assert_eq!(Count::parse("test a ... ok"), None);
    }

    #[test]
    fn a_status_is_never_lost() {
        assert_eq!(Count::default().with_status(true).passed, 1);
        assert_eq!(Count::default().with_status(false).failed, 1);
        let some = Count {
            passed: 3,
            failed: 0,
            ignored: 0,
        };
        assert_eq!(some.with_status(false).failed, 1);
        assert_eq!(some.with_status(true), some);
    }

    #[test]
    fn the_shipped_stages_are_valid() {
        let text = include_str!("../../../tests/stages.toml");
        let stages: Stages = toml::from_str(text).unwrap();
        assert_eq!(stages.stage.last().unwrap().name, "system tests");
    }
}
