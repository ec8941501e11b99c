//! Runs the stages of `make test` (`tests/stages.toml`) and adds their results up. The last line printed is
//! the summary.

mod count;

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use image::cache::Cache;
use image::{Flavour, cmd};
use serde::Deserialize;

use crate::options::given;
use crate::project::Project;
use crate::shard::{Durations, Shard};
use count::Count;

/// Seconds of a stage that was never measured.
const UNMEASURED: u64 = 30;

/// What to run.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Only stages whose names contain this word; `lint` stands for formatting and lints.
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
    #[serde(default)]
    lint: bool,
    #[serde(rename = "if")]
    needs: Option<String>,
    #[serde(default)]
    all: bool,
    #[serde(default)]
    every_shard: bool,
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
    let mut total = Count::default();
    let mut table = Vec::new();
    let mut durations = String::new();
    if arguments.only.is_none() {
        fetch_ahead(project);
    }
    for stage in stages {
        cmd::step(&stage.name);
        let since = Instant::now();
        let count = stage.run(project, arguments, &mut durations)?;
        let verdict = if count.failed == 0 { "ok" } else { "FAILED" };
        let seconds = since.elapsed().as_secs();
        let _ = writeln!(durations, "{} {seconds}", stage.name);
        table.push(format!(
            "{:24} {verdict:6} {:5} passed {:3} failed {seconds:4} s",
            stage.name, count.passed, count.failed
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

    /// Runs the stage and adds what its tests took to `durations`.
    fn run(&self, project: &Project, arguments: &Arguments, durations: &mut String) -> Result<Count> {
        let mut command = Command::new("bash");
        command
            .args(["-euo", "pipefail", "-c", &self.run])
            .current_dir(&project.dir);
        command
            .env("HARNESS", project.harness())
            .env("ALL", if arguments.all { "--all" } else { "" })
            .env("SHARD", arguments.shard.as_deref().unwrap_or_default());
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
            if let Some((test, seconds)) = count::duration(&line) {
                let _ = writeln!(durations, "{test} {seconds}");
            }
            writeln!(stdout, "{line}")?;
        }
        drop(stdout);
        let success = child.wait()?.success();
        Ok(count.with_status(success))
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
