//! `make bench`: measures ringvisor, KVM with QEMU, and QEMU alone in one run on one machine, and writes a
//! table, JSON and charts into `build/bench/<time>/`, with the consoles of all machines in `raw/` beside
//! them.
//!
//! - [`plan`]: jobs, configurations, and how `QUICK` and `ONLY` narrow them.
//! - [`boot`], [`host_image`]: the machines; what runs in them is in `tests/bench`.
//! - [`message`], [`plugin`]: what comes out of them: lines of the console with fio's results, counts of
//!   instructions.
//! - [`collect`], [`marks`], [`results`]: from there to results and medians.
//! - [`sizes`]: what needs no machine.
//!
//! What fails is noted in the results and ends nothing else.

pub mod boot;
pub mod collect;
pub mod host_image;
pub mod marks;
pub mod message;
pub mod plan;
pub mod plugin;
pub mod report;
pub mod results;
pub mod sizes;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use image::{Cache, Flavour, cmd};

use crate::board::Board;
use crate::machine;
use crate::options::{MachineOptions, given};
use crate::project::Project;
use boot::Bench;
use plan::{Boot, Kind, Plan, Section};
use results::Results;

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// One short round with fewer jobs and configurations: to try things out.
    #[arg(long, env = "QUICK")]
    quick: Option<String>,
    /// Sections (fio, instructions, exits, sizes, storm) and parts of the names of jobs and configurations to
    /// take, instead of all.
    #[arg(long, env = "ONLY")]
    only: Option<String>,
    #[command(flatten)]
    machine: MachineOptions,
}

/// Measures; returns 0 if anything could be measured. What could not is in the table.
///
/// # Errors
/// The arguments are wrong, or nothing can be measured at all.
pub fn run(project: &Project, arguments: &Arguments) -> Result<u8> {
    let quick = given(arguments.quick.as_ref()).is_some_and(|q| q != "0");
    let only: Vec<String> = given(arguments.only.as_ref())
        .into_iter()
        .flat_map(str::split_whitespace)
        .map(str::to_owned)
        .collect();
    let plan = Plan::new(quick, &only)?;
    let board = arguments.machine.board(&project.dir)?;
    let cache = Cache::open(&project.dir)?;
    let mut results = Results::default();
    let stamp = cmd::text(cmd::command("date").arg("+%Y%m%d-%H%M%S"))?;
    let parent = project.dir.join("build/bench");
    let out = parent.join(stamp.trim());
    let raw = out.join("raw");
    fs::create_dir_all(&raw).with_context(|| format!("cannot create {}", raw.display()))?;

    let guest = image::machine::guest_files(&cache, Flavour::Cloud)?;
    let qemu_disk = if plan.of(Kind::Kvm).is_empty() {
        None
    } else {
        match image::qemu::root_disk(&cache) {
            Ok(disk) => Some(disk),
            Err(error) => {
                results.fail("KVM", format!("{error:#}"));
                None
            }
        }
    };
    let program = machine::program(&cache, &board, &arguments.machine)?;
    let version = cmd::text(cmd::command(&program).arg("--version"))?;
    let version = version.lines().next().unwrap_or_default().to_owned();
    let plugin = match plugin_for(project, &version) {
        Ok(library) => Some(library),
        Err(why) => {
            if plan.wants(Section::Instructions) {
                results.fail("instructions, other than by virtual time", why);
            }
            None
        }
    };
    about(&mut results, project, arguments, &board, &plan, &version);
    let bench = Bench {
        project,
        board,
        options: arguments.machine.clone(),
        plan,
        raw,
        guest,
        qemu_disk,
        plugin,
    };
    if bench.plan.wants(Section::Sizes) {
        sizes::measure(project, &mut results);
    }
    for boot in boots(&bench.plan) {
        bench.run(&mut results, &boot);
        // After each boot, so that a run that is stopped leaves what it had.
        report::write(&out, &bench.plan, &results)?;
    }
    results
        .about
        .push(("load at end".into(), collect::load().to_string()));
    println!("{}", report::write(&out, &bench.plan, &results)?);
    link(&parent, stamp.trim());
    println!(
        "in {}: table.txt results.json plot.svg summary.svg raw/",
        out.display()
    );
    let nothing = results.samples.is_empty() && results.counts.is_empty() && results.exits.is_empty();
    Ok(u8::from(nothing && results.sizes.is_empty()))
}

/// Returns all boots in their order: rounds, with the kinds of machine in turn, each round beginning with
/// another one.
fn boots(plan: &Plan) -> Vec<Boot> {
    let kinds = [(Kind::Ours, "ours"), (Kind::Kvm, "kvm"), (Kind::Plain, "plain")];
    let mut boots = Vec::new();
    let boot = |label: String, kind, configs| Boot {
        label,
        kind,
        configs,
        jobs: plan.jobs.clone(),
        round: 1,
        count: false,
        icount: false,
        sizes: false,
        storm: false,
    };
    let mut sizes = plan.wants(Section::Sizes);
    if plan.wants(Section::Fio) {
        for round in 1..=plan.rounds {
            let first = (round as usize - 1) % kinds.len();
            for (kind, name) in kinds.iter().cycle().skip(first).take(kinds.len()) {
                boots.push(Boot {
                    round,
                    sizes: *kind == Kind::Ours && std::mem::take(&mut sizes),
                    ..boot(format!("round{round}-{name}"), *kind, plan.of(*kind))
                });
            }
        }
    }
    if sizes {
        boots.push(Boot {
            sizes: true,
            ..boot("sizes".into(), Kind::Ours, Vec::new())
        });
    }
    let counting = |boot: Boot, icount| Boot {
        jobs: plan.counted_jobs(),
        count: true,
        icount,
        ..boot
    };
    if plan.wants(Section::Instructions) {
        for (kind, name) in kinds {
            boots.push(counting(
                boot(format!("icount-{name}"), kind, plan.counted(kind)),
                true,
            ));
        }
    }
    if plan.wants(Section::Exits) {
        let configs = plan.counted(Kind::Ours);
        boots.push(counting(boot("exits".into(), Kind::Ours, configs), false));
    }
    if plan.wants(Section::Storm) {
        boots.push(Boot {
            icount: true,
            storm: true,
            ..boot("storm".into(), Kind::Ours, Vec::new())
        });
    }
    boots.retain(|b| b.sizes || b.storm || !b.configs.is_empty() && !b.jobs.is_empty());
    boots
}

/// Returns the plugin, if it is built and QEMU takes it.
fn plugin_for(project: &Project, version: &str) -> std::result::Result<PathBuf, String> {
    let major: Option<u32> = version
        .split_whitespace()
        .skip_while(|w| *w != "version")
        .nth(1)
        .and_then(|v| v.split('.').next()?.parse().ok());
    if major.is_none_or(|m| m >= 9) {
        return Err(format!("the plugin's interface is QEMU 7.2's, this is {version}"));
    }
    let library = project.target().join("release/libqemu_count.so");
    if !library.is_file() {
        return Err(format!("no {}; run make bench", library.display()));
    }
    Ok(library)
}

fn about(
    results: &mut Results,
    project: &Project,
    arguments: &Arguments,
    board: &Board,
    plan: &Plan,
    version: &str,
) {
    let mut add = |key: &str, value: String| results.about.push((key.to_owned(), value));
    let shell = |script: &str| {
        let text = cmd::text(cmd::command("sh").args(["-c", script]).current_dir(&project.dir));
        text.map_or_else(|_| "unknown".into(), |t| t.trim().to_owned())
    };
    add("time", shell("date -u '+%Y-%m-%d %H:%M UTC'"));
    add("revision", shell("git describe --always --dirty"));
    add(
        "host",
        shell(
            "echo \"$(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1), $(nproc) CPUs, Linux $(uname -r) \
             $(uname -m)\"",
        ),
    );
    add("load at start", collect::load().to_string());
    add("QEMU", version.to_owned());
    let options = &arguments.machine;
    let cpu = given(options.cpu.as_ref()).unwrap_or(&board.qemu.cpu);
    let smp = given(options.smp.as_ref()).map_or_else(|| board.qemu.smp.to_string(), str::to_owned);
    add(
        "machine",
        format!("{cpu}; ours and kvm: {smp} CPUs, guests 2 of them, 512 MiB; plain: 2 CPUs, 512 MiB"),
    );
    add(
        "rounds",
        format!(
            "{}, jobs of {} s after {} s that do not count",
            plan.rounds, plan.seconds, plan.ramp
        ),
    );
}

/// Makes `latest` lead to `name`. Without it only convenience is lost.
fn link(parent: &Path, name: &str) {
    let link = parent.join("latest");
    let _ = fs::remove_file(&link);
    let _ = std::os::unix::fs::symlink(name, &link);
}

#[cfg(test)]
mod tests {
    use super::boots;
    use super::plan::Plan;

    fn labels(quick: bool, only: &[&str]) -> Vec<String> {
        let only: Vec<String> = only.iter().map(|w| (*w).to_owned()).collect();
        boots(&Plan::new(quick, &only).unwrap())
            .into_iter()
            .map(|b| b.label)
            .collect()
    }

    #[test]
    fn rounds_are_interleaved_and_begin_with_another_kind_each() {
        let all = labels(false, &[]);
        assert_eq!(
            all[..6],
            [
                "round1-ours",
                "round1-kvm",
                "round1-plain",
                "round2-kvm",
                "round2-plain",
                "round2-ours"
            ]
        );
        assert_eq!(
            all[9..],
            ["icount-ours", "icount-kvm", "icount-plain", "exits", "storm"]
        );
    }

    #[test]
    fn only_what_is_asked_for_is_booted() {
        assert_eq!(labels(true, &["storm"]), ["storm"]);
        assert_eq!(labels(true, &["sizes"]), ["sizes"]);
        assert_eq!(labels(true, &["exits", "ours"]), ["exits"]);
        assert_eq!(labels(true, &["fio", "plain-threads"]), ["round1-plain"]);
    }
}
