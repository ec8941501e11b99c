//! Tables for people.

use std::fmt::{Display, Write as _};

use crate::bench::plan::{LEGEND, Plan, Section};
use crate::bench::results::{Medians, Results};

/// Returns all tables of a run.
pub fn table(plan: &Plan, results: &Results) -> String {
    let mut text = String::new();
    for (key, value) in &results.about {
        let _ = writeln!(text, "{key:14} {value}");
    }
    let _ = writeln!(text, "\n{LEGEND}");
    if plan.wants(Section::Fio) {
        for job in &plan.jobs {
            fio(&mut text, plan, results, job.name, &job.title());
        }
        starts(&mut text, plan, results);
    }
    counts(&mut text, plan, results);
    exits(&mut text, results);
    sizes(&mut text, results);
    if !results.failures.is_empty() {
        let _ = writeln!(text, "\nNot measured:");
        for failure in &results.failures {
            let _ = writeln!(text, "  {}: {}", failure.what, failure.why);
        }
    }
    text
}

/// Adds a row. Column heads are to the right, as numbers are.
fn row(text: &mut String, name: &str, cells: &[impl Display]) {
    let _ = write!(text, "  {name:24}");
    for cell in cells {
        let _ = write!(text, " {cell:>13}");
    }
    text.truncate(text.trim_end_matches(' ').len());
    text.push('\n');
}

fn ratio(value: f64, to: Option<f64>) -> String {
    match to {
        Some(to) if to > 0.0 => format!("{:.2}", value / to),
        _ => "-".into(),
    }
}

fn fio(text: &mut String, plan: &Plan, results: &Results, job: &str, title: &str) {
    let _ = writeln!(
        text,
        "\n{title} ({job}); medians, ratios of IOPS to the best of KVM's and of plain QEMU's"
    );
    let heads = [
        "IOPS",
        "lowest",
        "highest",
        "MB/s",
        "mean us",
        "p99 us",
        "/ KVM",
        "/ plain",
        "host load",
    ];
    row(text, "", &heads);
    let best = |prefix| results.best(plan, job, prefix).map(|medians| medians.fio.iops);
    let (kvm, plain) = (best("kvm-"), best("plain-"));
    for config in &plan.configs {
        match results.medians(config.name, job) {
            Some(Medians {
                fio,
                range: (low, high),
                load,
                runs,
            }) => {
                let mut cells = vec![
                    format!("{:.0}", fio.iops),
                    format!("{low:.0}"),
                    format!("{high:.0}"),
                    format!("{:.1}", fio.mb_s),
                    format!("{:.0}", fio.mean_us),
                    format!("{:.0}", fio.p99_us),
                    ratio(fio.iops, kvm),
                    ratio(fio.iops, plain),
                    format!("{load:.1}"),
                ];
                if runs < plan.rounds as usize {
                    cells.push(format!("{runs} of {} runs", plan.rounds));
                }
                row(text, config.name, &cells);
            }
            None => row(text, config.name, &["failed"]),
        }
    }
}

fn starts(text: &mut String, plan: &Plan, results: &Results) {
    let _ = writeln!(
        text,
        "\nFrom the start of a guest (2 CPUs, 512 MiB) to its first line of user space; medians"
    );
    row(text, "", &["seconds", "/ KVM", "/ plain", "starts"]);
    let best = |prefix: &str| {
        plan.configs
            .iter()
            .filter(|c| c.name.starts_with(prefix))
            .filter_map(|c| results.start(c.name))
            .map(|(seconds, _)| seconds)
            .reduce(f64::min)
    };
    for config in plan.configs.iter().filter(|c| c.name != "loop") {
        let Some((seconds, count)) = results.start(config.name) else {
            row(text, config.name, &["failed"]);
            continue;
        };
        let [kvm, plain] = ["kvm-", "plain-"].map(|prefix| ratio(seconds, best(prefix)));
        row(
            text,
            config.name,
            &[format!("{seconds:.2}"), kvm, plain, count.to_string()],
        );
    }
}

fn counts(text: &mut String, plan: &Plan, results: &Results) {
    if !plan.wants(Section::Instructions) {
        return;
    }
    for job in plan.counted_jobs() {
        let _ = writeln!(
            text,
            "\nInstructions for a request under -icount shift=0, one CPU for the guest: {} ({})",
            job.title(),
            job.name
        );
        row(text, "", &["instructions", "virtual us", "requests"]);
        for count in results.counts.iter().filter(|c| c.job == job.name) {
            let total = count
                .instructions
                .map_or("-".into(), |total| format!("{total:.0}"));
            let time = format!("{:.1}", count.virtual_us);
            row(text, &count.config, &[total, time, count.requests.to_string()]);
            for (part, instructions) in &count.parts {
                row(text, &format!("  {part}"), &[format!("{instructions:.0}")]);
            }
            if let Some(longest) = count.longest_exit {
                row(text, "  longest exit", &[longest]);
            }
        }
    }
}

fn exits(text: &mut String, results: &Results) {
    for exits in &results.exits {
        let how = if exits.icount { ", -icount shift=0" } else { "" };
        let _ = writeln!(
            text,
            "\nExits at EL2 for a request on {}'s CPUs: {}, {}{how}: {:.2} (longest exit so far {:.1} us)",
            exits.side,
            exits.config,
            exits.job,
            exits.total,
            exits.longest_ns as f64 / 1000.0
        );
        for (kind, values) in [("exit", &exits.reasons), ("event", &exits.events)] {
            let list: Vec<String> = values
                .iter()
                .filter(|(_, n)| n.abs() >= 0.005)
                .map(|(name, n)| format!("{name} {n:.2}"))
                .collect();
            if !list.is_empty() {
                let _ = writeln!(text, "  {kind:6} {}", list.join(", "));
            }
        }
    }
}

fn sizes(text: &mut String, results: &Results) {
    if results.sizes.is_empty() {
        return;
    }
    let _ = writeln!(text, "\nSizes");
    for size in &results.sizes {
        let _ = writeln!(text, "  {:44} {:>10} {}", size.what, size.value, size.unit);
    }
}

#[cfg(test)]
mod tests {
    use super::table;
    use crate::bench::message::Fio;
    use crate::bench::plan::Plan;
    use crate::bench::results::{Results, Sample};

    #[test]
    fn ratios_are_to_the_best_and_failures_stay_in_the_table() {
        let plan = Plan::new(false, &["fio".into(), "randread-1".into()]).unwrap();
        let mut results = Results::default();
        for (config, iops) in [
            ("ours-io_uring", 600.0),
            ("kvm-threads-none", 100.0),
            ("kvm-threads-writeback", 200.0),
        ] {
            let fio = Fio {
                iops,
                mb_s: 1.0,
                mean_us: 1.0,
                p99_us: 1.0,
            };
            results.samples.push(Sample {
                config: config.into(),
                job: "randread-1".into(),
                round: 1,
                fio,
                load: 1.0,
            });
        }
        results.fail("kvm-io_uring-none", "no O_DIRECT");
        let text = table(&plan, &results);
        let line = |name: &str| text.lines().find(|l| l.trim().starts_with(name)).unwrap();
        let ours: Vec<&str> = text
            .lines()
            .filter(|l| l.trim().starts_with("ours-io_uring"))
            .collect();
        assert!(
            ours.iter()
                .any(|l| l.contains("3.00") && l.contains("1 of 3 runs")),
            "{text}"
        );
        assert!(line("kvm-io_uring-none: no O_DIRECT").contains("O_DIRECT"));
        assert!(
            text.lines()
                .any(|l| l.contains("plain-threads") && l.contains("failed"))
        );
    }
}
