//! The output of a machine's console: lines for people, and the marks of root's scripts for us.
//!
//! A mark is a line that begins with the run's random number ([`Nonce`]); `tools/image/files/root/exec`
//! prints them.

use std::hash::{BuildHasher, RandomState};
use std::io::{Read, Write};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// What panics of root's kernel begin with.
const KERNEL_PANIC: &str = "Kernel panic - not syncing";
/// What panics of the hypervisor contain (`src/el2/panic.rs`). A guest that prints it ends a test run,
/// nothing more.
const EL2_PANIC: &str = "EL2 PANIC:";

/// The longest wait for bytes, so that the caller can do other things in between.
const WAIT: Duration = Duration::from_millis(100);

/// A number that no program in the machine prints by chance.
#[derive(Debug, Clone)]
pub struct Nonce(String);

impl Default for Nonce {
    fn default() -> Self {
        // RandomState is seeded by the operating system.
        let random = || RandomState::new().hash_one(0u8);
        Self(format!("@{:016x}{:016x}", random(), random()))
    }
}

impl Nonce {
    /// Returns the number as the machine gets it.
    pub fn text(&self) -> &str {
        &self.0
    }
}

/// A line of the console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// For people, without its end.
    Text(String),
    /// The script is about to start.
    Ready,
    /// The script ended.
    Status(u8),
    /// The machine restarted though it should not have.
    Restarted,
    /// A line by which a script run by the system tests reports.
    Test(String),
    /// Root's kernel panicked before the script started, or the hypervisor at any time.
    Panic(String),
}

/// Cuts the byte stream into lines. Bytes that are not UTF-8 are shown as such.
#[derive(Debug)]
pub struct Lines {
    nonce: Nonce,
    pending: Vec<u8>,
    ready: bool,
}

impl Lines {
    /// Begins with the console of a machine that has `nonce`.
    pub fn new(nonce: Nonce) -> Self {
        Self {
            nonce,
            pending: Vec::new(),
            ready: false,
        }
    }

    /// Adds bytes and returns the lines that they complete.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Line> {
        self.pending.extend_from_slice(bytes);
        let mut lines = Vec::new();
        while let Some(end) = self.pending.iter().position(|&b| b == b'\n') {
            let raw: Vec<u8> = self.pending.drain(..=end).collect();
            let text = String::from_utf8_lossy(&raw);
            lines.push(self.classify(text.trim_end_matches(['\n', '\r'])));
        }
        lines
    }

    /// Returns what is left when the stream ends.
    pub fn finish(&mut self) -> Option<Line> {
        let raw = std::mem::take(&mut self.pending);
        (!raw.is_empty()).then(|| self.classify(String::from_utf8_lossy(&raw).trim_end_matches('\r')))
    }

    fn classify(&mut self, text: &str) -> Line {
        // A carriage return without a line feed may come before a mark when something else wrote in between.
        let Some(at) = text.find(self.nonce.text()) else {
            let root_panic = !self.ready && text.contains(KERNEL_PANIC);
            return if root_panic || text.contains(EL2_PANIC) {
                Line::Panic(text.to_owned())
            } else {
                Line::Text(text.to_owned())
            };
        };
        let mark = text
            .get(at + self.nonce.text().len()..)
            .unwrap_or_default()
            .trim();
        let mut words = mark.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some("ready"), None, None) => {
                self.ready = true;
                Line::Ready
            }
            (Some("restarted"), None, None) => Line::Restarted,
            (Some("status"), Some(status), None) if status.parse::<u8>().is_ok() => {
                Line::Status(status.parse().unwrap_or(u8::MAX))
            }
            (Some("test"), Some(_), _) => {
                Line::Test(mark.strip_prefix("test").unwrap_or_default().trim().to_owned())
            }
            // A mark that something else wrote into: one of its repetitions will be whole.
            _ => Line::Text(String::new()),
        }
    }
}

/// Reads a stream in a thread of its own, so that waiting for it can have a time limit.
#[derive(Debug)]
pub struct Reader {
    chunks: Receiver<Vec<u8>>,
}

/// What came of waiting.
#[derive(Debug)]
pub enum Chunk {
    /// Bytes.
    Data(Vec<u8>),
    /// Nothing within the time.
    Nothing,
    /// The stream has ended.
    End,
}

impl Reader {
    /// Starts reading.
    pub fn start(mut stream: impl Read + Send + 'static) -> Self {
        let (sender, chunks) = mpsc::sync_channel(64);
        thread::spawn(move || {
            let mut buffer = vec![0; 16 << 10];
            while let Ok(n @ 1..) = stream.read(&mut buffer) {
                let data = buffer.get(..n).unwrap_or_default().to_vec();
                if sender.send(data).is_err() {
                    break;
                }
            }
        });
        Self { chunks }
    }

    /// Waits for bytes until `deadline`, but no longer than a tenth of a second.
    pub fn next(&self, deadline: Instant) -> Chunk {
        let left = deadline.saturating_duration_since(Instant::now()).min(WAIT);
        match self.chunks.recv_timeout(left) {
            Ok(data) => Chunk::Data(data),
            Err(RecvTimeoutError::Timeout) => Chunk::Nothing,
            Err(RecvTimeoutError::Disconnected) => Chunk::End,
        }
    }
}

/// Shows text lines as they come.
#[derive(Debug)]
pub struct Printer<W> {
    out: W,
    blank: bool,
}

impl<W: Write> Printer<W> {
    /// Prints to `out`.
    pub fn new(out: W) -> Self {
        Self { out, blank: false }
    }

    /// Prints `line`. Marks are preceded by an empty line of their own, so empty lines are held back by one.
    ///
    /// # Errors
    /// The output has no reader any more.
    pub fn line(&mut self, line: &Line) -> std::io::Result<()> {
        match line {
            Line::Text(text) | Line::Panic(text) => {
                if text.is_empty() {
                    if std::mem::replace(&mut self.blank, true) {
                        writeln!(self.out)?;
                    }
                    return Ok(());
                }
                if std::mem::take(&mut self.blank) {
                    writeln!(self.out)?;
                }
                writeln!(self.out, "{text}")?;
                self.out.flush()
            }
            _ => {
                self.blank = false;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{EL2_PANIC, KERNEL_PANIC, Line, Lines, Nonce, Printer};

    fn lines() -> (Lines, String) {
        let nonce = Nonce::default();
        let text = nonce.text().to_owned();
        (Lines::new(nonce), text)
    }

    #[test]
    fn marks_are_found_in_any_cut() {
        let (_, nonce) = lines();
        let stream = format!("hello\r\n\r\n{nonce} ready\r\nbye\r\n{nonce} status 7\r\n");
        for cut in 0..stream.len() {
            let mut lines = Lines::new(Nonce(nonce.clone()));
            let mut got = lines.push(&stream.as_bytes()[..cut]);
            got.extend(lines.push(&stream.as_bytes()[cut..]));
            let text = |t: &str| Line::Text(t.into());
            assert_eq!(
                got,
                [text("hello"), text(""), Line::Ready, text("bye"), Line::Status(7)]
            );
        }
    }

    #[test]
    fn a_spoilt_mark_is_neither_shown_nor_believed() {
        let (mut lines, nonce) = lines();
        let got = lines.push(format!("{nonce} stat[ 1.0] oops us 7\n{nonce} status 700\n").as_bytes());
        assert_eq!(got, [Line::Text(String::new()), Line::Text(String::new())]);
    }

    #[test]
    fn a_guests_panic_is_not_roots() {
        let (mut lines, nonce) = lines();
        let panic = format!("[    1.0] {KERNEL_PANIC}: no init\n");
        assert!(matches!(lines.push(panic.as_bytes())[0], Line::Panic(_)));
        lines.push(format!("{nonce} ready\n").as_bytes());
        assert!(matches!(lines.push(panic.as_bytes())[0], Line::Text(_)));
        assert!(matches!(
            lines.push(format!("cpu0 {EL2_PANIC}: x\n").as_bytes())[0],
            Line::Panic(_)
        ));
    }

    #[test]
    fn empty_lines_before_marks_are_not_printed() {
        let (mut lines, nonce) = lines();
        let mut out = Vec::new();
        let mut printer = Printer::new(&mut out);
        for line in lines.push(format!("a\n\nb\n\n{nonce} status 0\n\n{nonce} status 0\n").as_bytes()) {
            printer.line(&line).unwrap();
        }
        assert_eq!(String::from_utf8(out).unwrap(), "a\n\nb\n");
    }

    #[test]
    fn bytes_that_are_no_text_do_no_harm() {
        let (mut lines, _) = lines();
        assert_eq!(lines.push(b"\xff\xfe\n"), [Line::Text("\u{fffd}\u{fffd}".into())]);
        lines.push(b"end");
        assert_eq!(lines.finish(), Some(Line::Text("end".into())));
    }
}
