//! Seeds of the simulation with a console: many, and those that find mistakes built in on purpose.
#![cfg(test)]

use std::collections::BTreeSet;

use sim::{Kind, Report, Sabotage, run_with};

fn run(seed: u64, sabotage: Sabotage) -> Report {
    run_with(seed, Kind::Console, sabotage, false)
}

// torture a9, c5: kills between any two steps, resets, a hostile ring, a second vCPU
#[test]
fn many_seeds() {
    let runs = std::env::var("SIM_RUNS").ok().and_then(|text| text.parse().ok());
    let mut killed_at = BTreeSet::new();
    let mut answered = 0;
    for seed in 1..=runs.unwrap_or(1000) {
        let report = run(seed, Sabotage::None);
        assert_eq!(
            report.failure, None,
            "sim --device console --seed {seed} shows every event"
        );
        answered += report.counts.answered;
        killed_at.extend(report.killed_at);
    }
    assert!(answered > 20_000, "{answered} requests");
    for step in [
        "between two steps",
        "word stored",
        "output copied",
        "logged",
        "done logged",
        "published",
        "taken over",
    ] {
        assert!(killed_at.contains(step), "no daemon was killed at: {step}");
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 1..=30 {
        let first = run(seed, Sabotage::None);
        let second = std::thread::spawn(move || run(seed, Sabotage::None)).join();
        assert_eq!(Some(first), second.ok());
    }
}

/// Returns the failure that a mistake causes, within 1000 seeds.
fn found(sabotage: Sabotage) -> String {
    let failure = (1..=1000).find_map(|seed| run(seed, sabotage).failure);
    failure.unwrap_or_else(|| panic!("{sabotage:?} goes unnoticed"))
}

// torture c5, negative control: a daemon without the in-flight log, and one that forgets what was started.
#[test]
fn a_lost_log_is_noticed() {
    found(Sabotage::NoLog);
    found(Sabotage::ForgetStarted);
}

#[test]
fn lost_wake_ups_are_noticed() {
    for sabotage in [
        Sabotage::LostNotification,
        Sabotage::NoRecheck,
        Sabotage::LostInterrupt,
        Sabotage::NoEnableNotifications,
    ] {
        assert!(found(sabotage).ends_with("a wake-up is lost"));
    }
}
