//! `sim`: runs seeds of the simulation; `make sim`.

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use sim::{Counts, Kind, Sabotage};

/// Runs seeds of the deterministic simulation.
#[derive(Parser)]
struct Options {
    /// First seed. Without --runs it alone is run, and every event is printed.
    #[arg(long)]
    seed: Option<u64>,
    /// Seeds to run.
    #[arg(long)]
    runs: Option<u64>,
    /// The device.
    #[arg(long, value_enum, default_value_t = Kind::Disk)]
    device: Kind,
    /// A mistake to build in.
    #[arg(long, value_enum, default_value_t = Sabotage::None)]
    sabotage: Sabotage,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let first = options.seed.unwrap_or(1);
    let print = options.seed.is_some() && options.runs.is_none();
    let runs = options.runs.unwrap_or(if print { 1 } else { 10_000 });
    let begin = Instant::now();
    let mut total = Counts::default();
    let mut hash = 0_u64;
    for seed in (0..runs).map(|index| first.wrapping_add(index)) {
        let report = sim::run_with(seed, options.device, options.sabotage, print);
        let Counts {
            kills,
            kills_inside,
            resets,
            queue_resets,
            answered,
            errors,
            turns,
        } = report.counts;
        total.kills += kills;
        total.kills_inside += kills_inside;
        total.resets += resets;
        total.queue_resets += queue_resets;
        total.answered += answered;
        total.errors += errors;
        total.turns += turns;
        hash = hash.rotate_left(1) ^ report.hash;
        if print {
            println!(
                "seed {seed}: {} events, trace {:016x}",
                report.events, report.hash
            );
        }
        if let Some(why) = report.failure {
            eprintln!("seed {seed}: {why}\nto print every event: make sim SEED={seed}");
            return ExitCode::FAILURE;
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "{runs} seeds from {first} in {seconds:.1} s, {:.0} an hour; traces {hash:016x}\n{total:?}",
        runs as f64 * 3600.0 / seconds
    );
    ExitCode::SUCCESS
}
