//! Seeds of the simulation: many, those that once found a bug, and those that find mistakes built in on
//! purpose.
#![cfg(test)]

use std::collections::BTreeSet;

use sim::{Sabotage, run};

/// Returns the number of seeds to run: `SIM_RUNS`, or a default.
fn runs() -> u64 {
    std::env::var("SIM_RUNS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(3000)
}

fn passes(seed: u64) -> sim::Report {
    let report = run(seed, Sabotage::None, false);
    assert_eq!(report.failure, None, "make sim SEED={seed} shows every event");
    report
}

// torture a9, b12, c1, c2, c4, c5, c8: kills between any two steps, faults of the disk, resets, hostile ring,
// second vCPU
#[test]
fn many_seeds() {
    let mut killed_at = BTreeSet::new();
    for seed in 1..=runs() {
        killed_at.extend(passes(seed).killed_at);
    }
    // A daemon was killed at every step that `ringvirtio` and `ringblk` name.
    let steps = [
        "between two steps",
        "counted",
        "done logged",
        "format begun",
        "freed",
        "freed late",
        "logged",
        "parsed",
        "publication ended",
        "publication logged",
        "published",
        "published again",
        "status written",
        "taken over",
        "used entries written",
    ];
    for step in steps {
        assert!(killed_at.contains(step), "no daemon was killed at: {step}");
    }
}

// Regressions: seeds that found a bug, or a mistake built in. They lose their meaning when the code makes
// other decisions; the negative controls below do not.
#[test]
fn regression_seeds() {
    for seed in [1, 2, 3, 6, 9, 15, 19, 46, 86, 454, 560, 991, 1665] {
        passes(seed);
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 1..=60 {
        let first = run(seed, Sabotage::None, false);
        let second = std::thread::spawn(move || run(seed, Sabotage::None, false)).join();
        assert_eq!(Some(first), second.ok());
    }
    let hashes: BTreeSet<u64> = (1..=60)
        .map(|seed| run(seed, Sabotage::None, false).hash)
        .collect();
    assert_eq!(hashes.len(), 60, "different seeds are different runs");
}

/// Returns the failure that a mistake causes, within 1000 seeds.
fn found(sabotage: Sabotage) -> String {
    let failure = (1..=1000).find_map(|seed| run(seed, sabotage, false).failure);
    failure.unwrap_or_else(|| panic!("{sabotage:?} goes unnoticed"))
}

// torture c5, negative control: a daemon without the in-flight log
#[test]
fn a_lost_log_is_noticed() {
    found(Sabotage::NoLog);
    found(Sabotage::ForgetStarted);
}

// torture e3, negative control: no fdatasync
#[test]
fn a_missing_sync_is_noticed() {
    assert!(found(Sabotage::NoSync).starts_with("after a power cut sector"));
}

#[test]
fn missing_zeroes_are_noticed() {
    assert!(found(Sabotage::NoZeroes).contains("zeroes"));
}

// virtio-checklist 58, negative control: the cache stays in writeback mode though the driver turned it off
#[test]
fn a_cache_that_stays_on_is_noticed() {
    assert!(found(Sabotage::IgnoreCacheSwitch).starts_with("after a power cut sector"));
}

#[test]
fn publication_before_the_data_is_noticed() {
    found(Sabotage::EarlyPublish);
}

#[test]
fn lost_wake_ups_are_noticed() {
    for sabotage in [
        Sabotage::LostNotification,
        Sabotage::NoRecheck,
        Sabotage::LostInterrupt,
        Sabotage::NoEnableNotifications,
        Sabotage::NoDeferredInterrupt,
    ] {
        assert!(found(sabotage).ends_with("a wake-up is lost"));
    }
}

// torture c7, a9, negative controls
#[test]
fn late_io_is_noticed() {
    found(Sabotage::NoDrain);
    assert!(found(Sabotage::EarlyQuiesce).contains("after a reset"));
}
