//! The file that a zone's devices leave for the next daemon: `NAME.inflight`.
//!
//! It holds the in-flight log of each queue of each slot, and behind them a word for each slot, in which a
//! device keeps what changes too often for the zone's record; behind those what drivers of network devices
//! have set, and what was said to vhost-user servers; at its end what consoles print and read.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use ringvirtio::inflight::InflightError;
use ringvirtio::memory::Slots;
use ringvirtio::{InflightArea, MemoryError};
use ringvisor::abi::{MAX_QUEUES, MAX_SLOTS};
use vm_memory::{FileOffset, MmapRegion};

use crate::regular;

/// Largest queue whose in-flight log fits into its place in the file.
pub const QUEUE_SIZE_MAX: u16 = 256;
/// Bytes of a queue's in-flight log, whole pages.
pub const LOG_STRIDE: usize = InflightArea::bytes(QUEUE_SIZE_MAX).next_multiple_of(4096);
/// Offset of the words of the slots.
pub const WORDS: usize = MAX_SLOTS * MAX_QUEUES * LOG_STRIDE;
/// Bytes reserved for the words.
const WORDS_LEN: usize = 4096;
/// Words before those of vhost-user servers: one for each slot, then [`ringnet::state::WORDS`] for each.
const SERVER_WORDS: usize = MAX_SLOTS * (1 + ringnet::state::WORDS);
/// All words.
const WORDS_COUNT: usize = SERVER_WORDS + MAX_SLOTS * ringvhost::device::state::WORDS;
const _: () = assert!(WORDS_COUNT * 8 <= WORDS_LEN);
/// Offset of what consoles keep, and how many can be there: the ports of a device, then the UART.
const CONSOLES: usize = WORDS + WORDS_LEN;
const CONSOLES_MAX: usize = ringconsole::PORTS_MAX + 1;
/// Bytes of the file.
const SIZE: usize = CONSOLES + CONSOLES_MAX * ringconsole::memory::BYTES;
/// Number of the UART among the consoles.
pub const UART: usize = ringconsole::PORTS_MAX;

/// Returns the path of a zone's file in the directory of the records.
pub fn path(directory: &Path, zone: &str) -> PathBuf {
    directory.join(format!("{zone}.inflight"))
}

/// Maps a zone's file. A new one is all zeroes, and takes memory only where it is written.
///
/// # Errors
/// The system's.
pub fn map(directory: &Path, zone: &str) -> io::Result<Arc<MmapRegion>> {
    let file = regular::open_private(&path(directory, zone))?;
    file.set_len(SIZE as u64)?;
    let region = MmapRegion::from_file(FileOffset::new(file, 0), SIZE).map_err(io::Error::other)?;
    Ok(Arc::new(region))
}

/// Returns where the log of a queue of `size` entries lies in a mapped file.
///
/// # Errors
/// The log would not end before the next queue's.
pub fn area(
    mapping: &Arc<MmapRegion>,
    slot: u8,
    queue: usize,
    size: u16,
) -> Result<InflightArea, InflightError> {
    if size > QUEUE_SIZE_MAX {
        return Err(InflightError::TooLarge {
            size,
            most: QUEUE_SIZE_MAX,
        });
    }
    Ok(InflightArea {
        mapping: mapping.clone(),
        offset: (usize::from(slot) * MAX_QUEUES + queue) * LOG_STRIDE,
    })
}

/// Returns the words of the slots in a mapped file.
///
/// # Errors
/// The mapping is too short.
pub fn words(mapping: &Arc<MmapRegion>) -> Result<Slots<AtomicU64>, MemoryError> {
    Slots::in_mapping(mapping, WORDS, WORDS_COUNT)
}

/// Returns the first of the words in which the network device in a slot keeps what its driver has set.
pub const fn net_words(slot: u8) -> usize {
    MAX_SLOTS + slot as usize * ringnet::state::WORDS
}

/// Returns the first of the words about the connection to the vhost-user server of the device in a slot.
pub const fn server_words(slot: u8) -> usize {
    SERVER_WORDS + slot as usize * ringvhost::device::state::WORDS
}

/// Returns where a console keeps its output and input: a port by its number, or [`UART`].
pub const fn console(index: usize) -> usize {
    CONSOLES + index * ringconsole::memory::BYTES
}

/// Checks that this program understands all logs in the file at `path`.
///
/// # Errors
/// The first log that it does not understand: its version and the one expected.
pub fn check(path: &Path) -> anyhow::Result<()> {
    let file = regular::open(path)?;
    let length = file.metadata()?.len();
    for index in 0..MAX_SLOTS * MAX_QUEUES {
        let offset = (index * LOG_STRIDE) as u64;
        let mut word = [0; 8];
        if offset + 8 <= length {
            file.read_exact_at(&mut word, offset)?;
        }
        ringvirtio::inflight::check_identity(u64::from_le_bytes(word))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ringvirtio::inflight::InflightError;
    use ringvirtio::{InflightArea, SetupError};
    use vm_memory::MmapRegion;

    use super::{LOG_STRIDE, QUEUE_SIZE_MAX, area};

    #[test]
    fn a_log_that_would_reach_into_the_next_is_refused() {
        let mapping = Arc::new(MmapRegion::new(4 * LOG_STRIDE).unwrap());
        let last = area(&mapping, 0, 1, QUEUE_SIZE_MAX).unwrap();
        let next = area(&mapping, 0, 2, 1).unwrap();
        assert!(last.offset + InflightArea::bytes(QUEUE_SIZE_MAX) <= next.offset);
        let Err(error) = area(&mapping, 0, 1, QUEUE_SIZE_MAX + 1) else {
            panic!("a queue of {} entries has a log", QUEUE_SIZE_MAX + 1)
        };
        let (size, most) = (QUEUE_SIZE_MAX + 1, QUEUE_SIZE_MAX);
        assert_eq!(error, InflightError::TooLarge { size, most });
        assert!(SetupError::from(error).to_string().contains("257 entries"));
    }
}
