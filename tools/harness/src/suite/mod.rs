//! Runs the stages of `make test` (`tests/stages.toml`) and adds their results up. The last line printed is
//! the summary.

mod count;

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use image::cache::Cache;
use image::{Flavour, cmd};
use serde::Deserialize;

use crate::cpu::{self, Took};
use crate::options::given;
use crate::project::Project;
use crate::shard::{Durations, Shard};
use count::Count;

/// Seconds of a stage that was never measured.
const UNMEASURED: u64 = 30;

/// What to run.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Only stages whose names contain this word.
    #[arg(long)]
    only: Option<String>,
    /// Also what is only for `make test-all`.
    #[arg(long)]
    all: bool,
    /// One part of the run: i/n.
    #[arg(long, env = "SHARD")]
    shard: Option<String>,
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
    #[serde(rename = "if")]
    needs: Option<String>,
    #[serde(default)]
    all: bool,
    #[serde(default)]
    every_shard: bool,
    #[serde(default)]
    background: bool,
}

/// A stage's results.
struct Results {
    name: String,
    count: Count,
    took: Took,
    /// Lines for `build/durations.txt`.
    durations: String,
}

/// Returns the seconds that the stages of each shard take, without those that divide themselves.
///
/// # Errors
/// `tests/stages.toml` or `tests/durations.txt` is wrong.
pub fn loads(project: &Project, all: bool, shard: Shard) -> Result<Vec<u64>> {
    let arguments = Arguments {
        only: None,
        all,
        shard: None,
    };
    let mut loads = shard.idle();
    select(project, &arguments, Some((shard, &mut loads)))?;
    Ok(loads)
}

/// Returns the stages that `arguments` ask for, with a shard those that are in it, whose loads are added up.
fn select(
    project: &Project,
    arguments: &Arguments,
    shard: Option<(Shard, &mut [u64])>,
) -> Result<Vec<Stage>> {
    let path = project.dir.join("tests/stages.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let stages: Stages = toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
    let mut stages = stages.stage;
    stages.retain(|stage| stage.wanted(project, arguments));
    if stages.is_empty() {
        bail!("no stage of that name in {}", path.display());
    }
    let Some((shard, loads)) = shard else {
        return Ok(stages);
    };
    let durations = Durations::read(&project.dir.join("tests"))?;
    let seconds: Vec<u64> = stages
        .iter()
        .filter(|stage| !stage.every_shard)
        .map(|stage| durations.of(&stage.name, UNMEASURED))
        .collect();
    let mut selected = shard.select(&seconds, loads).into_iter();
    stages.retain(|stage| stage.every_shard || selected.next() == Some(true));
    Ok(stages)
}

/// Runs the stages; returns 0 if every test of every stage passed. A failed stage does not keep later ones
/// from running.
///
/// # Errors
/// `tests/stages.toml` or an argument is wrong, or no stage is left.
pub fn run(project: &Project, arguments: &Arguments) -> Result<u8> {
    let shard: Option<Shard> = given(arguments.shard.as_ref()).map(str::parse).transpose()?;
    let mut loads = shard.map(Shard::idle).unwrap_or_default();
    let stages = select(
        project,
        arguments,
        shard.map(|shard| (shard, loads.as_mut_slice())),
    )?;
    let started = Instant::now();
    if arguments.only.is_none() {
        fetch_ahead(project);
    }
    let all_results = thread::scope(|scope| -> Result<Vec<Results>> {
        let (later, queue) = mpsc::channel::<Stage>();
        let background = scope.spawn(move || -> Result<Vec<Results>> {
            queue.iter().map(|stage| stage.run(project, arguments)).collect()
        });
        let mut results = Vec::new();
        for stage in stages {
            if stage.background {
                // Fails if an earlier one could not be started: that error is returned below.
                let _ = later.send(stage);
            } else {
                results.push(stage.run(project, arguments)?);
            }
        }
        drop(later);
        let ended = background
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        results.extend(ended);
        Ok(results)
    })?;
    let mut total = Count::default();
    let mut table = Vec::new();
    let mut durations = String::new();
    for results in all_results {
        let Results {
            name, count, took, ..
        } = results;
        let verdict = if count.failed == 0 { "ok" } else { "FAILED" };
        let (seconds, cpu) = (took.wall.as_secs(), took.cpu.as_secs());
        let _ = writeln!(durations, "{name} {seconds} {cpu}");
        durations.push_str(&results.durations);
        table.push(format!(
            "{name:24} {verdict:6} {:5} passed {:3} failed {seconds:4} s {cpu:5} s of CPU",
            count.passed, count.failed
        ));
        total = total.plus(count);
    }
    let path = project.dir.join("build/durations.txt");
    fs::create_dir_all(project.dir.join("build"))?;
    fs::write(&path, durations).with_context(|| format!("cannot write {}", path.display()))?;
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

/// Fetches what the system tests need from Debian while the stages before them compile: it comes over the
/// network and is unpacked on one CPU. The tests wait for it where they need it, and try again what failed
/// here.
fn fetch_ahead(project: &Project) {
    let dir = project.dir.clone();
    thread::spawn(move || {
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
            Some(word) => self.name.contains(word),
        };
        let there = self
            .needs
            .as_ref()
            .is_none_or(|file| project.dir.join(file).exists());
        named && there && (arguments.all || !self.all)
    }

    /// Runs the stage. In the background it has a lower priority, and its output is shown when it has ended.
    fn run(&self, project: &Project, arguments: &Arguments) -> Result<Results> {
        let mut command = Command::new(if self.background { "nice" } else { "bash" });
        if self.background {
            command.arg("bash");
        } else {
            cmd::step(&self.name);
        }
        let redirection = if self.background { "exec 2>&1\n" } else { "" };
        command
            .args(["-euo", "pipefail", "-c", &format!("{redirection}{}", self.run)])
            .current_dir(&project.dir);
        command
            .env("HARNESS", project.harness())
            .env("ALL", if arguments.all { "--all" } else { "" })
            .env("SHARD", arguments.shard.as_deref().unwrap_or_default());
        command.env("CARGO_TARGET_DIR", project.target());
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let start = Instant::now();
        let mut child = command.spawn().context("cannot start bash")?;
        let output = child.stdout.take().context("no pipe from bash")?;
        let mut results = Results {
            name: self.name.clone(),
            count: Count::default(),
            took: Took::default(),
            durations: String::new(),
        };
        let mut kept = Vec::new();
        for line in BufReader::new(output).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            results.count = results.count.plus(Count::parse(&line).unwrap_or_default());
            if let Some((test, wall, cpu)) = count::duration(&line) {
                let _ = writeln!(results.durations, "{test} {wall} {cpu}");
            }
            if self.background {
                writeln!(kept, "{line}")?;
            } else {
                writeln!(std::io::stdout(), "{line}")?;
            }
        }
        let (status, took) = cpu::wait(&mut child, start)?;
        (results.took, results.count) = (took, results.count.with_status(status.success()));
        if self.background {
            let mut stdout = std::io::stdout().lock();
            cmd::step(&self.name);
            stdout.write_all(&kept)?;
        }
        Ok(results)
    }
}

#[cfg(test)]
mod tests {
    use super::Stages;

    #[test]
    fn the_shipped_stages_are_valid() {
        let text = include_str!("../../../../tests/stages.toml");
        let stages: Stages = toml::from_str(text).unwrap();
        assert_eq!(stages.stage.last().unwrap().name, "system tests");
    }
}
