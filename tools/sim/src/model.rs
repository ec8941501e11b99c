//! The disk as the guest may expect it: what each sector reads, and what it may hold after a power cut.

use crate::disk::SECTOR;
use crate::rng::Rng;

/// Stamp of content that nobody knows.
const ANYTHING: u64 = u64::MAX;
/// In the stamp of a request that zeroes.
const ZEROES: u64 = 1 << 40;
/// In the stamp of a request that discards: the sector then reads zero, or as before. What else virtio allows
/// no device here does.
const DISCARD: u64 = 1 << 41;
/// The number in a stamp.
const NUMBER: u64 = ZEROES - 1;

/// What a request does to sectors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Data of its own.
    Write,
    /// WRITE_ZEROES.
    Zeroes,
    /// DISCARD.
    Discard,
}

impl Change {
    fn mark(self) -> u64 {
        match self {
            Self::Write => 0,
            Self::Zeroes => ZEROES,
            Self::Discard => DISCARD,
        }
    }
}

/// Where a write stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// The guest waits for it.
    Outstanding,
    /// It was answered with OK.
    Done,
    /// It failed, or nobody will ever answer: any byte of it may be there, now or later.
    Torn,
}

#[derive(Clone, Copy, Debug)]
struct Version {
    stamp: u64,
    fate: Fate,
    /// A flush after it failed: no later one says anything about it.
    doubtful: bool,
}

/// One sector.
#[derive(Clone, Debug)]
struct Sector {
    /// Oldest first; the first one is what it holds at least.
    versions: Vec<Version>,
    readers: u32,
}

impl Sector {
    /// The version at `position`, which was answered with OK, is durable: what came before is gone, unless it
    /// is a discard, which may have left it.
    fn forget_before(&mut self, mut position: usize) {
        let is_certain = |version: &Version| version.fate == Fate::Done && version.stamp & DISCARD == 0;
        while position > 0 && !self.versions.get(position).is_some_and(is_certain) {
            position -= 1;
        }
        self.versions.drain(..position);
    }
}

/// What a flush that is under way will have proven: by sector the stamp of the last write completed before
/// it.
pub type Covered = Vec<Option<u64>>;

/// See the module.
pub struct Model {
    sectors: Vec<Sector>,
    stamps: u64,
}

/// The bytes of a sector that was written with `stamp`; of one that was discarded, if the discard had an
/// effect.
#[must_use]
pub fn content(stamp: u64, sector: usize) -> Vec<u8> {
    if stamp != ANYTHING && stamp & (ZEROES | DISCARD) != 0 {
        return vec![0; SECTOR];
    }
    let mut rng = Rng::new(stamp << 20 ^ sector as u64);
    let mut bytes = Vec::with_capacity(SECTOR);
    while bytes.len() < SECTOR {
        bytes.extend(rng.draw().to_le_bytes());
    }
    bytes
}

fn name(stamp: u64) -> String {
    match (stamp == ANYTHING, stamp & ZEROES != 0, stamp & DISCARD != 0) {
        (true, ..) => "anything".into(),
        (_, true, _) => format!("zeroes {}", stamp & NUMBER),
        (_, _, true) => format!("discard {}", stamp & NUMBER),
        _ => format!("version {stamp}"),
    }
}

impl Model {
    /// A disk of so many sectors, each written with stamp 0.
    #[must_use]
    pub fn new(sectors: usize) -> Self {
        let first = Version {
            stamp: 0,
            fate: Fate::Done,
            doubtful: false,
        };
        let sector = Sector {
            versions: vec![first],
            readers: 0,
        };
        Self {
            sectors: vec![sector; sectors],
            stamps: 0,
        }
    }

    /// The image that it starts with.
    #[must_use]
    pub fn image(&self) -> Vec<u8> {
        (0..self.sectors.len())
            .flat_map(|sector| content(0, sector))
            .collect()
    }

    /// Whether nobody writes these sectors.
    #[must_use]
    pub fn can_read(&self, first: usize, count: usize) -> bool {
        let busy = |sector: &Sector| {
            sector
                .versions
                .iter()
                .any(|version| version.fate == Fate::Outstanding)
        };
        !self.sectors[first..first + count].iter().any(busy)
    }

    /// Whether nobody uses these sectors.
    #[must_use]
    pub fn can_write(&self, first: usize, count: usize) -> bool {
        let read = |sector: &Sector| sector.readers > 0;
        self.can_read(first, count) && !self.sectors[first..first + count].iter().any(read)
    }

    /// A read begins.
    pub fn read(&mut self, first: usize, count: usize) {
        for sector in &mut self.sectors[first..first + count] {
            sector.readers += 1;
        }
    }

    /// A read ended; `bytes` is what it got if it was answered with OK.
    pub fn read_done(&mut self, first: usize, bytes: &[u8], ok: bool) -> Result<(), String> {
        for (index, bytes) in bytes.chunks(SECTOR).enumerate() {
            let number = first + index;
            self.sectors[number].readers -= 1;
            if ok {
                self.check_current(number, bytes)?;
            }
        }
        Ok(())
    }

    /// Whether these bytes are what a read of the sector gives now.
    fn check_current(&self, number: usize, bytes: &[u8]) -> Result<(), String> {
        let versions = &self.sectors[number].versions;
        for version in versions.iter().rev() {
            if version.fate != Fate::Done
                || version.stamp == ANYTHING
                || content(version.stamp, number) == bytes
            {
                return Ok(());
            }
            if version.stamp & DISCARD == 0 {
                break;
            }
        }
        let expected: Vec<String> = versions.iter().map(|version| name(version.stamp)).collect();
        let found = self.explain(number, bytes);
        Err(format!(
            "sector {number} reads {found}, expected the last of {expected:?}"
        ))
    }

    fn explain(&self, number: usize, bytes: &[u8]) -> String {
        if bytes.iter().all(|byte| *byte == 0) {
            return "zero".into();
        }
        match (0..=self.stamps).find(|&stamp| content(stamp, number) == bytes) {
            Some(stamp) => name(stamp),
            None => format!("{:02x?}... of no version", &bytes[..8]),
        }
    }

    /// A change of sectors begins; its stamp.
    pub fn change(&mut self, what: Change, first: usize, count: usize) -> u64 {
        self.stamps += 1;
        for sector in &mut self.sectors[first..first + count] {
            sector.versions.push(Version {
                stamp: self.stamps | what.mark(),
                fate: Fate::Outstanding,
                doubtful: false,
            });
        }
        self.stamps
    }

    /// A change was answered. `durable`: the answer says that it is.
    pub fn changed(&mut self, first: usize, count: usize, ok: bool, durable: bool) {
        for sector in &mut self.sectors[first..first + count] {
            if let Some(last) = sector.versions.last_mut() {
                last.fate = if ok { Fate::Done } else { Fate::Torn };
            }
            if ok && durable {
                sector.forget_before(sector.versions.len() - 1);
            }
        }
    }

    /// Nobody will answer any more a change of these sectors: its queue was reset.
    pub fn forget_change(&mut self, first: usize, count: usize) {
        self.changed(first, count, false, false);
    }

    /// Nobody will answer any more a read of these sectors.
    pub fn forget_read(&mut self, first: usize, count: usize) {
        for sector in &mut self.sectors[first..first + count] {
            sector.readers = sector.readers.saturating_sub(1);
        }
    }

    /// A flush begins.
    #[must_use]
    pub fn flush(&self) -> Covered {
        let last = |sector: &Sector| {
            let mut versions = sector.versions.iter().rev();
            // What was torn after it may be there as well, so it stays in the list of what may be found.
            versions
                .find(|version| version.fate == Fate::Done && !version.doubtful)
                .map(|version| version.stamp)
        };
        self.sectors.iter().map(last).collect()
    }

    /// A flush was answered.
    pub fn flush_done(&mut self, covered: &Covered, ok: bool) {
        for (sector, stamp) in self.sectors.iter_mut().zip(covered) {
            if !ok {
                // The system has forgotten what it could not write.
                sector
                    .versions
                    .iter_mut()
                    .for_each(|version| version.doubtful = true);
                continue;
            }
            let Some(stamp) = *stamp else { continue };
            let position = sector
                .versions
                .iter()
                .position(|version| version.stamp == stamp && !version.doubtful);
            if let Some(position) = position {
                sector.forget_before(position);
            }
        }
    }

    /// The device's whole image, when nothing is outstanding.
    pub fn check_image(&self, image: &[u8]) -> Result<(), String> {
        image
            .chunks(SECTOR)
            .enumerate()
            .try_for_each(|(number, bytes)| self.check_current(number, bytes))
    }

    /// What is left after a power cut.
    pub fn check_durable(&self, image: &[u8]) -> Result<(), String> {
        for (number, bytes) in image.chunks(SECTOR).enumerate() {
            let versions = &self.sectors[number].versions;
            let whole = versions
                .iter()
                .any(|version| version.stamp == ANYTHING || content(version.stamp, number) == bytes);
            if whole {
                continue;
            }
            // What is not known to be durable may be there in part: the system may write back in the middle
            // of a transfer.
            let torn = versions.len() > 1;
            let candidates: Vec<Vec<u8>> = versions
                .iter()
                .map(|version| content(version.stamp, number))
                .collect();
            let mixed = bytes
                .iter()
                .enumerate()
                .all(|(at, byte)| candidates.iter().any(|candidate| candidate[at] == *byte));
            if !(torn && mixed) {
                let stamps: Vec<String> = versions.iter().map(|version| name(version.stamp)).collect();
                return Err(format!(
                    "after a power cut sector {number} is {}, expected one of versions {stamps:?}",
                    self.explain(number, bytes)
                ));
            }
        }
        Ok(())
    }

    /// Takes the image as it is: after a guest that wrote what it liked.
    pub fn adopt(&mut self) {
        for sector in &mut self.sectors {
            sector.readers = 0;
            sector.versions = vec![Version {
                stamp: ANYTHING,
                fate: Fate::Torn,
                doubtful: true,
            }];
        }
    }
}
