//! The screen: a text line for the daemon, then tables of zones, CPUs, disks and network devices, in 80
//! columns.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Paragraph, Row, Table};

use super::model::{CpuRow, Model, ZoneRow};
use crate::device::disk::top as disk;
use crate::device::net::top as net;

/// A column: its heading, its width, and whether it holds numbers.
type Column = (&'static str, u16, bool);

const ZONES: [Column; 8] = [
    ("ZONE", 12, false),
    ("ID", 3, true),
    ("STATE", 9, false),
    ("VCPUS", 5, true),
    ("MiB", 6, true),
    ("RESTARTS", 8, true),
    ("ABORTS", 6, true),
    ("EXITS/s", 8, true),
];

const CPUS: [Column; 12] = [
    ("CPU", 3, true),
    ("ZONE", 8, false),
    ("VC", 2, true),
    ("EXITS/s", 7, true),
    ("READ", 6, true),
    ("WRITE", 6, true),
    ("PERM", 6, true),
    ("CALL", 5, true),
    ("SYSREG", 6, true),
    ("IRQ", 6, true),
    ("EL2 %", 5, true),
    ("MAX us", 7, true),
];

/// Returns the number of text lines of the whole screen.
pub fn height(model: &Model) -> u16 {
    let nets = if model.nets.is_empty() {
        0
    } else {
        model.nets.len() + 2
    };
    let lines = 2 + (model.zones.len() + 2) + (model.cpus.len() + 2) + (model.disks.len() + 1) + nets;
    u16::try_from(lines).unwrap_or(u16::MAX)
}

/// Draws the screen; what does not fit is cut off at the end.
pub fn draw(frame: &mut Frame<'_>, model: &Model) {
    let rows = |count: usize| Constraint::Length(u16::try_from(count).unwrap_or(u16::MAX));
    let [head, zones, cpus, disks, nets] = Layout::vertical([
        Constraint::Length(2),
        rows(model.zones.len() + 2),
        rows(model.cpus.len() + 2),
        rows(model.disks.len() + 2),
        Constraint::Fill(1),
    ])
    .areas(frame.area());
    let daemon = &model.daemon;
    let line = format!(
        "ringvisor {}  ringd {:.1}% cpu, {:.1} MiB, {} wake-ups/s, {} in vain  q leaves",
        daemon.version,
        daemon.cpu * 100.0,
        daemon.memory,
        number(daemon.wakeups),
        number(daemon.spurious),
    );
    let bold = Style::default().add_modifier(Modifier::BOLD);
    frame.render_widget(Paragraph::new(Line::styled(line, bold)), head);
    table(frame, zones, &ZONES, model.zones.iter().map(zone_cells));
    table(frame, cpus, &CPUS, model.cpus.iter().map(cpu_cells));
    table(
        frame,
        disks,
        &disk::COLUMNS,
        model.disks.iter().map(|disk| disk.cells(number)),
    );
    if !model.nets.is_empty() {
        let cells = model.nets.iter().map(|net| net.cells(number));
        table(frame, nets, &net::COLUMNS, cells);
    }
}

/// Formats a number in at most six characters.
fn number(value: f64) -> String {
    match value {
        v if v >= 999_950.0 => format!("{:.1}M", v / 1e6),
        v if v >= 9999.5 => format!("{:.1}k", v / 1e3),
        v if v >= 99.95 => format!("{v:.0}"),
        v if v < 0.05 => "0".to_owned(),
        v => format!("{v:.1}"),
    }
}

fn zone_cells(row: &ZoneRow) -> Vec<String> {
    let zone = &row.zone;
    vec![
        zone.name.clone(),
        zone.number
            .map_or_else(|| "-".to_owned(), |number| number.to_string()),
        zone.state.clone(),
        zone.vcpus.to_string(),
        (zone.memory >> 20).to_string(),
        zone.restarts.to_string(),
        zone.aborts.to_string(),
        number(row.exits),
    ]
}

fn cpu_cells(cpu: &CpuRow) -> Vec<String> {
    let by = |names: &[&str]| {
        let rates = names.iter().filter_map(|name| cpu.by.get(*name));
        number(rates.sum())
    };
    vec![
        cpu.cpu.to_string(),
        cpu.zone.clone(),
        cpu.vcpu.to_string(),
        number(cpu.exits),
        by(&["read"]),
        by(&["write"]),
        by(&["permission"]),
        by(&["hvc", "smc"]),
        by(&["sysreg"]),
        by(&["irq"]),
        format!("{:.1}", cpu.el2 * 100.0),
        number(cpu.longest),
    ]
}

fn table(frame: &mut Frame<'_>, area: Rect, columns: &[Column], rows: impl Iterator<Item = Vec<String>>) {
    let cells = |texts: Vec<String>| {
        let cells = columns.iter().zip(texts).map(|((_, _, right), text)| {
            let line = Line::from(text);
            Cell::from(if *right { line.right_aligned() } else { line })
        });
        Row::new(cells.collect::<Vec<_>>())
    };
    let heading = columns
        .iter()
        .map(|(heading, ..)| (*heading).to_owned())
        .collect();
    let reversed = Style::default().add_modifier(Modifier::REVERSED);
    let widths = columns.iter().map(|(_, width, _)| Constraint::Length(*width));
    let table = Table::new(rows.map(cells), widths)
        .header(cells(heading).style(reversed))
        .column_spacing(1);
    frame.render_widget(table, area);
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::report;
    use super::super::{Model, plain};
    use super::{CPUS, ZONES, number};
    use crate::device::disk::top as disk;
    use crate::device::net::top as net;

    #[test]
    fn numbers_stay_short() {
        for (value, text) in [
            (0.0, "0"),
            (0.25, "0.2"),
            (99.9, "99.9"),
            (99.96, "100"),
            (9999.0, "9999"),
            (10_000.0, "10.0k"),
            (1_234_567.0, "1.2M"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn everything_is_on_the_screen() {
        let text = plain(&Model::new(&report(1), &report(2)));
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0]
                .starts_with("ringvisor 9.9  ringd 25.0% cpu, 4.0 MiB, 500 wake-ups/s, 0 in vain  q leaves"),
            "{text}"
        );
        let row = |first: &str, second: &str| -> Vec<String> {
            let row = lines
                .iter()
                .map(|line| line.split_whitespace().collect::<Vec<_>>())
                .find(|words| words.first() == Some(&first) && words.get(1) == Some(&second));
            row.unwrap_or_else(|| panic!("{first} {second} is not in\n{text}"))
                .into_iter()
                .map(str::to_owned)
                .collect()
        };
        assert_eq!(
            row("guest1", "1"),
            ["guest1", "1", "running", "1", "256", "0", "0", "3000"]
        );
        assert_eq!(
            row("3", "guest1"),
            [
                "3", "guest1", "0", "3000", "0", "0", "2000", "0", "0", "1000", "1.0", "12.3"
            ]
        );
        assert_eq!(
            row("guest1", "vda"),
            [
                "guest1", "vda", "1000", "0", "4.1", "0", "100", "1000", "200", "0.2", "600"
            ]
        );
        assert_eq!(row("0", "root")[3], "300");
    }

    #[test]
    fn eighty_columns_are_enough() {
        for columns in [&ZONES[..], &CPUS[..], &disk::COLUMNS[..], &net::COLUMNS[..]] {
            let width: u16 = columns
                .iter()
                .map(|(heading, width, _)| {
                    assert!(heading.len() <= usize::from(*width), "{heading}");
                    width + 1
                })
                .sum();
            assert!(width - 1 <= 80, "{width}");
        }
    }
}
