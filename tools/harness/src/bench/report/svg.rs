//! The plot: for each job a panel of bars, one for each configuration, with the range of its rounds.

use std::fmt::Write as _;

use crate::bench::plan::Plan;
use crate::bench::results::{Medians, Results};

const WIDTH: f64 = 900.0;
const LEFT: f64 = 190.0;
const RIGHT: f64 = 130.0;
const BAR: f64 = 18.0;
const TITLE: f64 = 34.0;
const GAP: f64 = 18.0;

/// An SVG document.
pub fn plot(plan: &Plan, results: &Results) -> String {
    let panels = plan.jobs.len() as f64;
    let panel = TITLE + plan.configs.len() as f64 * BAR + GAP;
    let height = 30.0 + panels * panel;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    label(
        &mut svg,
        10.0,
        20.0,
        "start",
        "Requests a second: medians; the thin line goes from the lowest to the highest round",
    );
    for (index, job) in plan.jobs.iter().enumerate() {
        let top = 30.0 + index as f64 * panel;
        label(&mut svg, 10.0, top + 20.0, "start", &job.title());
        let medians: Vec<(&str, Option<Medians>)> = plan
            .configs
            .iter()
            .map(|c| (c.name, results.medians(c.name, job.name)))
            .collect();
        let highest = medians.iter().filter_map(|(_, m)| *m).map(|m| m.range.1);
        let highest = highest.fold(1.0, f64::max);
        let scale = (WIDTH - LEFT - RIGHT) / highest;
        for (row, (name, medians)) in medians.iter().enumerate() {
            let y = top + TITLE + row as f64 * BAR;
            label(&mut svg, LEFT - 8.0, y + 12.0, "end", name);
            match medians {
                Some(m) => bar(&mut svg, y, name, m, scale),
                None => label(&mut svg, LEFT + 4.0, y + 12.0, "start", "not measured"),
            }
        }
    }
    svg.push_str("</svg>\n");
    svg
}

fn bar(svg: &mut String, y: f64, name: &str, medians: &Medians, scale: f64) {
    let width = medians.fio.iops * scale;
    let (low, high) = (LEFT + medians.range.0 * scale, LEFT + medians.range.1 * scale);
    let colour = match name.split('-').next() {
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
    use super::*;

    #[test]
    fn every_configuration_has_a_place_and_text_is_escaped() {
        let plan = Plan::new(false, &["randread-1".into()]).unwrap();
        let svg = plot(&plan, &Results::default());
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("not measured").count(), plan.configs.len());
        assert_eq!(escaped("a<b & c"), "a&lt;b &amp; c");
    }
}
