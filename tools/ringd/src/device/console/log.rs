//! [`Log`]: a file that has a console's output.
//!
//! A thread appends to it what the console has. Beside the console's ring stands how long the file was before
//! the last write, and how many bytes that was to add, so that the next daemon does what this one has not: no
//! byte is missing from the file, and none is there twice.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ringconsole::{PortMemory, Word};

use crate::config::ZoneConfig;
use crate::config::error::quoted;
use crate::console::Console;

/// How long to wait for output at a time, and for a file system that has no room.
const INTERVAL: Duration = Duration::from_secs(1);

/// A log file that is open.
pub struct Log {
    file: File,
    console: Arc<Console>,
    /// Where the positions are kept.
    memory: Arc<PortMemory>,
}

/// Opens a log file, which is made if there is none. `key` names it in messages.
///
/// # Errors
/// It cannot be opened, or is no regular file.
pub fn open(
    opener: &dyn ringblk::Opener,
    zone: &ZoneConfig,
    key: &str,
    path: &Path,
    console: Arc<Console>,
    memory: Arc<PortMemory>,
) -> anyhow::Result<Log> {
    // Another user may be able to write to its directory: what root follows no link to is not appended to.
    let flags = libc::O_CREAT | libc::O_APPEND | libc::O_NOFOLLOW | libc::O_NOCTTY | libc::O_NONBLOCK;
    let opened = opener.open(path, true, flags).and_then(|file| {
        let found = file.metadata()?;
        match (found.is_file(), found.nlink()) {
            (true, 0 | 1) => Ok(file),
            (true, _) => Err(io::Error::other("it has another name (a hard link)")),
            (false, _) => Err(io::Error::other("it is no regular file")),
        }
    });
    let file =
        opened.map_err(|error| zone.unusable_value(key, quoted(&path.display().to_string()), error))?;
    Ok(Log {
        file,
        console,
        memory,
    })
}

impl Log {
    /// Appends output on a thread of its own until the console is closed.
    ///
    /// # Errors
    /// There can be no thread.
    pub fn start(self, name: &str) -> io::Result<()> {
        let thread = std::thread::Builder::new().name(format!("log {name}"));
        thread.spawn(move || self.run()).map(drop)
    }

    fn run(mut self) {
        if let Err(error) = self.recover() {
            tracing::warn!(%error, "cannot look at a console's log file");
        }
        let mut position = self.console.position_of(self.memory.get(Word::Logged));
        let mut failing = false;
        while let Some(chunk) = self.console.read(position, INTERVAL) {
            let mut bytes = Vec::new();
            if chunk.skipped > 0 {
                let skipped = chunk.skipped;
                bytes.extend_from_slice(
                    format!("\r\n[ringd: {skipped} bytes are not in this log]\r\n").as_bytes(),
                );
            }
            bytes.extend_from_slice(&chunk.bytes);
            if bytes.is_empty() {
                continue;
            }
            match self.append(&bytes, self.console.guest_position(chunk.next)) {
                Ok(()) => (position, failing) = (chunk.next, false),
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "cannot write a console's log file; trying again every second");
                    }
                    if self.console.is_closed() {
                        return;
                    }
                    // Room on a file system cannot be awaited.
                    std::thread::sleep(INTERVAL);
                }
            }
        }
    }

    /// Appends bytes, up to this position of the guest's output: all of them or none.
    fn append(&mut self, bytes: &[u8], guest: u64) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        self.memory.set(Word::LogLength, length);
        self.memory.set(Word::LogBytes, bytes.len() as u64);
        self.memory.set(Word::LogNext, guest);
        if let Err(error) = self.file.write_all(bytes) {
            self.file.set_len(length)?;
            self.memory.set(Word::LogNext, self.memory.get(Word::Logged));
            return Err(error);
        }
        self.memory.set(Word::Logged, guest);
        Ok(())
    }

    /// Completes or undoes the write that the last daemon had begun.
    fn recover(&self) -> io::Result<()> {
        let [logged, next, before, bytes] =
            [Word::Logged, Word::LogNext, Word::LogLength, Word::LogBytes].map(|word| self.memory.get(word));
        if logged == next {
            return Ok(());
        }
        let length = self.file.metadata()?.len();
        let whole = before.saturating_add(bytes);
        if length >= whole {
            self.memory.set(Word::Logged, next);
        } else {
            if length > before {
                self.file.set_len(before)?;
            }
            self.memory.set(Word::LogNext, logged);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::Path;
    use std::sync::Arc;

    use ringconsole::{PortMemory, Word, memory};
    use vm_memory::MmapRegion;

    use super::Log;
    use crate::console::Console;

    fn log(path: &Path, kept: &Arc<MmapRegion>) -> Log {
        Log {
            file: File::options().append(true).create(true).open(path).unwrap(),
            console: Arc::new(Console::default()),
            memory: Arc::new(PortMemory::in_mapping(kept, 0).unwrap()),
        }
    }

    // torture c5: killed before, in and behind the write.
    #[test]
    fn a_write_is_done_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        for written in 0..=5 {
            fs::write(&path, "old ").unwrap();
            let kept = Arc::new(MmapRegion::new(memory::BYTES).unwrap());
            let mut first = log(&path, &kept);
            first.append(b"hello ", 6).unwrap();
            first.memory.set(Word::LogLength, 10);
            first.memory.set(Word::LogBytes, 5);
            first.memory.set(Word::LogNext, 11);
            fs::write(&path, format!("old hello {}", "world".get(..written).unwrap())).unwrap();
            let mut next = log(&path, &kept);
            next.recover().unwrap();
            let logged = next.memory.get(Word::Logged);
            assert_eq!(logged, if written == 5 { 11 } else { 6 });
            next.append(&b"world!"[logged as usize - 6..], 12).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), "old hello world!");
        }
    }

    #[test]
    fn a_file_that_another_program_has_emptied() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let kept = Arc::new(MmapRegion::new(memory::BYTES).unwrap());
        let mut log = log(&path, &kept);
        log.append(b"hello ", 6).unwrap();
        fs::write(&path, "").unwrap();
        log.recover().unwrap();
        log.append(b"world", 11).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "world");
    }
}
