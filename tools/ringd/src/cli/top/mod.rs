//! `ringctl top`: activity of zones, vCPUs and disks.
//!
//! [`model`] turns two reports into rates, [`draw`] puts them on the screen; this file holds the terminal. It
//! works on any terminal with cursor addressing, also on a serial console, whose size is not known: it is
//! then that of `COLUMNS` and `LINES`, or 80 by 24.

pub mod draw;
pub mod model;

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use ratatui::backend::{CrosstermBackend, TestBackend};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::crossterm::{cursor, execute, terminal};
use ratatui::layout::Rect;
use ratatui::{Terminal, TerminalOptions, Viewport};

use super::terminal::restore_on_signals;
use crate::control::client::{Client, ClientError};
use crate::control::protocol::{Reply, Request};
use crate::stats::StatsReport;
use model::Model;

/// Options of `ringctl top`.
#[derive(Args, Debug)]
pub struct TopOptions {
    /// Seconds between two reports.
    #[arg(long, short = 'd', value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    pub interval: Duration,
    /// Print one screen and end, as if standard output is no terminal.
    #[arg(long)]
    pub once: bool,
}

/// Parses a number of seconds.
fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if !(0.1..=3600.0).contains(&number) {
        return Err(format!("{text} is not between 0.1 and 3600"));
    }
    Ok(Duration::from_secs_f64(number))
}

/// Columns without a terminal.
const WIDTH: u16 = 80;

/// Shows the screen until the user leaves.
///
/// # Errors
/// The daemon or the terminal is gone.
pub fn run(socket: &Path, options: &TopOptions) -> anyhow::Result<ExitCode> {
    let mut client = Client::connect(socket)?;
    let mut report = || -> Result<StatsReport, ClientError> {
        match client.ask(&Request::Stats {})? {
            Reply::Stats(report) => Ok(*report),
            other => Err(ClientError::unexpected(&other)),
        }
    };
    let before = report()?;
    if options.once || !io::stdout().is_terminal() {
        std::thread::sleep(options.interval);
        let text = plain(&Model::new(&before, &report()?));
        io::stdout().lock().write_all(text.as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    let screen = Screen::enter()?;
    let result = watch(screen.terminal()?, before, report, options.interval);
    drop(screen);
    result?;
    Ok(ExitCode::SUCCESS)
}

/// Returns a screen that is high enough, as text lines.
pub fn plain(model: &Model) -> String {
    let height = draw::height(model);
    let Ok(mut terminal) = Terminal::new(TestBackend::new(WIDTH, height));
    let Ok(_) = terminal.draw(|frame| draw::draw(frame, model));
    let buffer = terminal.backend().buffer();
    let mut text = String::new();
    for y in 0..height {
        let line: String = (0..WIDTH)
            .filter_map(|x| buffer.cell((x, y)))
            .map(ratatui::buffer::Cell::symbol)
            .collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn watch<B: ratatui::backend::Backend>(
    mut terminal: Terminal<B>,
    mut before: StatsReport,
    mut report: impl FnMut() -> Result<StatsReport, ClientError>,
    interval: Duration,
) -> anyhow::Result<()>
where
    B::Error: Send + Sync + 'static,
{
    let mut model = Model::new(&before, &before);
    loop {
        terminal.draw(|frame| draw::draw(frame, &model))?;
        let next = Instant::now() + interval;
        loop {
            let left = next.saturating_duration_since(Instant::now());
            if !event::poll(left)? {
                break;
            }
            match event::read()? {
                Event::Key(key) if key.kind != KeyEventKind::Release => {
                    let control = key.modifiers.contains(KeyModifiers::CONTROL);
                    match key.code {
                        KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                        KeyCode::Char('c' | 'd') if control => return Ok(()),
                        // Not `clear`, which asks the terminal for its cursor position: not every one
                        // answers.
                        KeyCode::Char('l') if control => {
                            let area = terminal.get_frame().area();
                            terminal.resize(area)?;
                        }
                        _ => {}
                    }
                }
                _ => break,
            }
        }
        let now = report()?;
        model = Model::new(&before, &now);
        before = now;
    }
}

/// The terminal in raw mode, on its alternate screen; restored when dropped, after a panic and by a signal.
struct Screen;

impl Screen {
    fn enter() -> io::Result<Self> {
        restore_on_signals(restore)?;
        terminal::enable_raw_mode()?;
        let screen = Self;
        let clear = terminal::Clear(terminal::ClearType::All);
        execute!(io::stdout(), terminal::EnterAlternateScreen, clear, cursor::Hide)?;
        Ok(screen)
    }

    fn terminal(&self) -> io::Result<Terminal<CrosstermBackend<io::Stdout>>> {
        let viewport = match terminal::size() {
            Ok((width, height)) if width > 0 && height > 0 => Viewport::Fullscreen,
            _ => Viewport::Fixed(assumed(|name| std::env::var(name).ok())),
        };
        Terminal::with_options(CrosstermBackend::new(io::stdout()), TerminalOptions { viewport })
    }
}

/// Returns the size of a terminal that does not report it.
fn assumed(variable: impl Fn(&str) -> Option<String>) -> Rect {
    let number = |name, otherwise| {
        variable(name)
            .and_then(|text| text.trim().parse().ok())
            .filter(|number| (1..=1000).contains(number))
            .unwrap_or(otherwise)
    };
    Rect::new(0, 0, number("COLUMNS", 80), number("LINES", 24))
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    let _ = execute!(io::stdout(), cursor::Show, terminal::LeaveAlternateScreen);
    let _ = terminal::disable_raw_mode();
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{assumed, seconds};

    #[test]
    fn a_terminal_without_size_gets_one() {
        let none = assumed(|_| None);
        assert_eq!((none.width, none.height), (80, 24));
        let some = assumed(|name| Some(if name == "COLUMNS" { "132" } else { "0" }.to_owned()));
        assert_eq!((some.width, some.height), (132, 24));
    }

    #[test]
    fn intervals() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["0", "-1", "x", "NaN", "inf", "1e9"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
