//! The charts: for each job a panel of bars of requests a second. [`plot`] has all configurations with the
//! range of their rounds; [`summary`] the best of each kind of machine, small enough for a document.

use std::fmt::Write as _;

use crate::bench::plan::Plan;
use crate::bench::results::{Medians, Results};

const WIDTH: f64 = 900.0;
const LEFT: f64 = 190.0;
const RIGHT: f64 = 130.0;
const BAR: f64 = 18.0;
const TITLE: f64 = 34.0;
const GAP: f64 = 18.0;
/// The line above the first panel.
const HEAD: f64 = 30.0;

/// A row of a panel: its label, whose colour it has, its value if it was measured.
struct Row<'a> {
    name: &'a str,
    kind: &'a str,
    medians: Option<Medians>,
}

/// Returns the chart of all configurations as an SVG document.
pub fn plot(plan: &Plan, results: &Results) -> String {
    let rows = |job: &str| {
        let row = |name: &'static str| Row {
            name,
            kind: name,
            medians: results.medians(name, job),
        };
        plan.configs.iter().map(|config| row(config.name)).collect()
    };
    let head = "Requests a second: medians; the thin line goes from the lowest to the highest round";
    document(plan, head, plan.configs.len(), rows)
}

/// Returns the chart of the best configuration of each kind as an SVG document.
pub fn summary(plan: &Plan, results: &Results) -> String {
    let kinds = [
        ("ringvisor", "ours"),
        ("KVM with QEMU", "kvm"),
        ("QEMU alone", "plain"),
    ];
    let rows = |job: &str| {
        let row = |(name, kind): (&'static str, &'static str)| Row {
            name,
            kind,
            medians: results.best(plan, job, kind),
        };
        kinds.map(row).into()
    };
    let head =
        "Requests a second of the best configuration of each kind: medians, and the range of the rounds";
    document(plan, head, kinds.len(), rows)
}

fn document<'a>(plan: &Plan, head: &str, rows: usize, of: impl Fn(&str) -> Vec<Row<'a>>) -> String {
    let panel = TITLE + rows as f64 * BAR + GAP;
    let height = HEAD + plan.jobs.len() as f64 * panel;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    label(&mut svg, 10.0, 20.0, "start", head);
    for (index, job) in plan.jobs.iter().enumerate() {
        let top = HEAD + index as f64 * panel;
        label(&mut svg, 10.0, top + 20.0, "start", &job.title());
        let rows = of(job.name);
        let highest = rows.iter().filter_map(|row| row.medians).map(|m| m.range.1);
        let highest = highest.fold(1.0, f64::max);
        let scale = (WIDTH - LEFT - RIGHT) / highest;
        for (index, row) in rows.iter().enumerate() {
            let y = top + TITLE + index as f64 * BAR;
            label(&mut svg, LEFT - 8.0, y + 12.0, "end", row.name);
            match &row.medians {
                Some(medians) => bar(&mut svg, y, row.kind, medians, scale),
                None => label(&mut svg, LEFT + 4.0, y + 12.0, "start", "not measured"),
            }
        }
    }
    svg.push_str("</svg>\n");
    svg
}

fn bar(svg: &mut String, y: f64, kind: &str, medians: &Medians, scale: f64) {
    let width = medians.fio.iops * scale;
    let (low, high) = (LEFT + medians.range.0 * scale, LEFT + medians.range.1 * scale);
    let colour = match kind.split('-').next() {
        Some("ours") => "#2166ac",
        Some("kvm") => "#d6604d",
        Some("plain") => "#4d9221",
        _ => "#888888",
    };
    let middle = y + 7.0;
    let _ = writeln!(
        svg,
        "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"14\" fill=\"{colour}\"/>\n\
         <line x1=\"{low:.1}\" y1=\"{middle}\" x2=\"{high:.1}\" y2=\"{middle}\" stroke=\"black\"/>"
    );
    let text = format!("{:.0}  ({:.0} MB/s)", medians.fio.iops, medians.fio.mb_s);
    label(svg, high.max(LEFT + width) + 6.0, y + 12.0, "start", &text);
}

fn label(svg: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>",
        escaped(text)
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::{escaped, plot, summary};
    use crate::bench::message::Fio;
    use crate::bench::plan::Plan;
    use crate::bench::results::{Results, Sample};

    #[test]
    fn every_configuration_has_a_place_and_text_is_escaped() {
        let plan = Plan::new(false, &["randread-1".into()]).unwrap();
        let svg = plot(&plan, &Results::default());
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("not measured").count(), plan.configs.len());
        assert_eq!(escaped("a<b & c"), "a&lt;b &amp; c");
    }

    #[test]
    fn the_summary_has_the_best_of_each_kind() {
        let plan = Plan::new(false, &["randread-1".into()]).unwrap();
        let mut results = Results::default();
        for (config, iops) in [
            ("ours-io_uring", 700.0),
            ("ours-threads", 650.0),
            ("plain-threads", 300.0),
        ] {
            results.samples.push(Sample {
                config: config.into(),
                job: "randread-1".into(),
                round: 1,
                fio: Fio {
                    iops,
                    mb_s: 1.0,
                    mean_us: 1.0,
                    p99_us: 1.0,
                },
                load: 0.0,
            });
        }
        let svg = summary(&plan, &results);
        assert!(
            svg.contains(">700  (1 MB/s)<") && svg.contains(">300  (1 MB/s)<"),
            "{svg}"
        );
        assert!(!svg.contains(">650  "), "{svg}");
        assert_eq!(svg.matches("not measured").count(), 1, "KVM was not");
    }
}
