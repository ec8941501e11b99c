//! The daemon's log: standard error, or a file of bounded size ([`LogFile`]), with a limit for lines that are
//! alike ([`limit`]).

mod limit;

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use parking_lot::Mutex;
use rustix::fs::FlockOperation;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::prelude::*;

use crate::control::protocol::LogLevel;
use crate::control::server::SetLogLevel;
use limit::Limit;

/// Starts logging to standard error, or to the file at this path; returns the way to change the level.
///
/// # Errors
/// The file cannot be written.
pub fn start(level: LogLevel, path: Option<&Path>) -> anyhow::Result<SetLogLevel> {
    let (filter, handle) = tracing_subscriber::reload::Layer::new(level_filter(level));
    let layer = || {
        tracing_subscriber::fmt::layer()
            .with_target(false)
            .with_ansi(false)
    };
    let registry = tracing_subscriber::registry().with(filter);
    match path {
        None => {
            let limit = Limit::new(Box::new(|line| eprint!("{line}")));
            let layer = layer().with_writer(io::stderr).with_filter(limit);
            registry.with(layer).init();
        }
        Some(path) => {
            let file = LogFile::open(path);
            let file = Arc::new(file.with_context(|| format!("cannot write the log {}", path.display()))?);
            let of_limit = file.clone();
            // A line about lines that is lost is no loss.
            let limit = Limit::new(Box::new(move |line| drop(of_limit.append(line.as_bytes()))));
            let layer = layer().with_writer(file).with_filter(limit);
            registry.with(layer).init();
        }
    }
    Ok(Box::new(move |level| {
        let _ = handle.reload(level_filter(level));
    }))
}

/// Returns the filter of a level.
pub fn level_filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

/// Bytes after which a log is shortened: it is in memory.
const MAX: u64 = 4 << 20;
/// How often the lock is tried that the others' writes, which are short, may hold.
const ATTEMPTS: usize = 100;
/// Mode of the file: paths and guests' doings are for root alone.
const PRIVATE: u32 = 0o600;

/// A log of bounded size.
///
/// Supervisor, broker and worker append to the same file, and the worker can make no other. So the file is
/// shortened in place: its older half is removed when it has become too long.
pub struct LogFile {
    file: File,
    max: u64,
    /// Held while a line is written: the lock on the file is one for all threads.
    writing: Mutex<()>,
}

impl LogFile {
    /// Opens or makes it; one that others may read is restricted.
    ///
    /// # Errors
    /// The system's error.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::bounded(path, MAX)
    }

    fn bounded(path: &Path, max: u64) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .append(true)
            .create(true)
            .mode(PRIVATE)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)?;
        let metadata = file.metadata()?;
        // `--log-file` may name a terminal or a pipe.
        if metadata.is_file() {
            file.set_permissions(Permissions::from_mode(PRIVATE))?;
        }
        Ok(Self {
            file,
            max,
            writing: Mutex::default(),
        })
    }

    /// Appends a line.
    ///
    /// # Errors
    /// The system's error.
    pub fn append(&self, line: &[u8]) -> io::Result<()> {
        let _writing = self.writing.lock();
        // Never waits: a process that holds the lock may be stopped.
        let locked = rustix::fs::flock(&self.file, FlockOperation::NonBlockingLockShared).is_ok();
        let written = (&self.file).write_all(line);
        if self
            .file
            .metadata()
            .is_ok_and(|file| file.is_file() && file.len() > self.max)
        {
            // If it cannot be done now, it is with a later line.
            let _ = self.shorten();
        }
        if locked {
            let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
        }
        written
    }

    /// Removes the older half, up to the end of a line.
    fn shorten(&self) -> io::Result<()> {
        let exclusive = FlockOperation::NonBlockingLockExclusive;
        let mut locked = rustix::fs::flock(&self.file, exclusive);
        for _ in 0..ATTEMPTS {
            if locked.is_ok() {
                break;
            }
            std::thread::yield_now();
            locked = rustix::fs::flock(&self.file, exclusive);
        }
        locked?;
        let len = self.file.metadata()?.len();
        if len <= self.max {
            return Ok(());
        }
        let mut kept = vec![0; usize::try_from(self.max / 2).map_err(io::Error::other)?];
        self.file
            .read_exact_at(&mut kept, len.saturating_sub(self.max / 2))?;
        let line = kept
            .iter()
            .position(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        self.file.set_len(0)?;
        (&self.file).write_all(b"(older lines were removed)\n")?;
        (&self.file).write_all(kept.get(line..).unwrap_or_default())
    }
}

impl Write for &LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.append(line).map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::thread;

    use super::LogFile;

    #[test]
    fn a_log_has_a_bounded_size_and_keeps_the_newest_lines() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let most = 10_000;
        thread::scope(|scope| {
            for writer in 0..3 {
                let path = &path;
                scope.spawn(move || {
                    // As another process: a description of its own.
                    let log = LogFile::bounded(path, most).unwrap();
                    for line in 0..2000 {
                        log.append(format!("{writer} line {line}\n").as_bytes()).unwrap();
                        // It may have to wait for the others' lines.
                        assert!(fs::metadata(path).unwrap().len() <= 2 * most);
                    }
                });
            }
        });
        let text = fs::read_to_string(&path).unwrap();
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("(older lines were removed)"));
        assert!(text.len() as u64 >= most / 2 - 100);
        for line in lines {
            let words: Vec<&str> = line.split(' ').collect();
            assert!(words.len() == 3 && words[1] == "line", "torn: {line:?}");
        }
    }

    // torture i1
    #[test]
    fn a_log_is_for_its_owner_alone_and_no_link() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        drop(LogFile::open(&path).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        let link = directory.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(LogFile::open(&link).is_err());
    }
}
