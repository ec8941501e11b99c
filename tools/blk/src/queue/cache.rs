//! [`WriteCache`]: whether a completed write may still be in a cache.

use crate::disk::Disk;

/// What was negotiated (5.2.6.2).
#[derive(Clone, Copy)]
enum Mode {
    /// No FLUSH: each write is durable before it completes.
    Through,
    /// FLUSH.
    Back,
    /// FLUSH and CONFIG_WCE: as the driver chooses from time to time.
    Chosen,
}

/// The mode of a queue's write cache.
pub struct WriteCache {
    mode: Mode,
    /// Whether it was write-back at the last call of [`Self::is_turned_off`].
    was_writeback: bool,
}

impl WriteCache {
    pub fn new(flush: bool, config_wce: bool, disk: &Disk) -> Self {
        let mode = match (flush, config_wce) {
            (false, _) => Mode::Through,
            (true, false) => Mode::Back,
            (true, true) => Mode::Chosen,
        };
        let mut cache = Self {
            mode,
            was_writeback: false,
        };
        cache.was_writeback = cache.is_writeback(disk);
        cache
    }

    /// Returns whether the driver may choose the mode.
    pub const fn is_chosen(&self) -> bool {
        matches!(self.mode, Mode::Chosen)
    }

    /// Returns whether completed writes may wait for a flush.
    pub fn is_writeback(&self, disk: &Disk) -> bool {
        match self.mode {
            Mode::Through => false,
            Mode::Back => true,
            Mode::Chosen => disk.control().writeback(),
        }
    }

    /// Returns whether the driver has turned the cache off since the last call.
    pub fn is_turned_off(&mut self, disk: &Disk) -> bool {
        let back = self.is_writeback(disk);
        std::mem::replace(&mut self.was_writeback, back) && !back
    }
}
