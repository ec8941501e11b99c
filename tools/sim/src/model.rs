//! The model of the disk: the content that a read of each sector may return, and what it may hold after a
//! power cut.

use crate::disk::SECTOR;
use crate::rng::Rng;

/// Stamp of unknown content.
const ANYTHING: u64 = u64::MAX;
/// Flag in the stamp of a WRITE_ZEROES.
const ZEROES: u64 = 1 << 40;
/// Flag in the stamp of a DISCARD: the sector then reads zero, or as before. Virtio allows other content too,
/// which no device here returns.
const DISCARD: u64 = 1 << 41;
/// Mask of the number in a stamp.
const NUMBER: u64 = ZEROES - 1;

/// How a request changes sectors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// OUT, with data of its own.
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

/// State of a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// Its request is outstanding.
    Outstanding,
    /// Its request completed with OK.
    Done,
    /// Its request failed, or will never complete: any byte of it may be on the disk, now or later.
    Torn,
}

#[derive(Clone, Copy, Debug)]
struct Version {
    stamp: u64,
    fate: Fate,
    /// A flush after it failed: no later flush proves that it is durable.
    doubtful: bool,
}

/// One sector.
#[derive(Clone, Debug)]
struct Sector {
    /// Oldest first; the first one is known to be durable.
    versions: Vec<Version>,
    readers: u32,
}

impl Sector {
    /// Drops the versions before `position`, which completed with OK and is durable. Before a discard they
    /// stay, since it may have had no effect.
    fn forget_before(&mut self, mut position: usize) {
        let is_certain = |version: &Version| version.fate == Fate::Done && version.stamp & DISCARD == 0;
        while position > 0 && !self.versions.get(position).is_some_and(is_certain) {
            position -= 1;
        }
        self.versions.drain(..position);
    }
}

/// What an outstanding flush proves when it completes: the stamp, by sector, of the last write that completed
/// before it was submitted.
pub type Covered = Vec<Option<u64>>;

/// See the module.
pub struct Model {
    sectors: Vec<Sector>,
    stamps: u64,
}

/// Returns the content of a sector that was written with `stamp`, or discarded with effect.
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
    /// Returns a model of a disk of `sectors` sectors, each written with stamp 0.
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

    /// Returns the image at the start.
    pub fn image(&self) -> Vec<u8> {
        (0..self.sectors.len())
            .flat_map(|sector| content(0, sector))
            .collect()
    }

    /// Returns whether no outstanding request changes these sectors.
    pub fn can_read(&self, first: usize, count: usize) -> bool {
        let busy = |sector: &Sector| {
            sector
                .versions
                .iter()
                .any(|version| version.fate == Fate::Outstanding)
        };
        !self.sectors[first..first + count].iter().any(busy)
    }

    /// Returns whether no outstanding request reads or changes these sectors.
    pub fn can_write(&self, first: usize, count: usize) -> bool {
        let read = |sector: &Sector| sector.readers > 0;
        self.can_read(first, count) && !self.sectors[first..first + count].iter().any(read)
    }

    /// Records that a read was submitted.
    pub fn read(&mut self, first: usize, count: usize) {
        for sector in &mut self.sectors[first..first + count] {
            sector.readers += 1;
        }
    }

    /// Records that a read completed, and checks its `bytes` if it did with OK.
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

    /// Checks that a read of the sector may return these bytes.
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

    /// Records that a change of sectors was submitted, and returns its stamp.
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

    /// Records that a change completed. `durable`: its completion implies durability.
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

    /// Records that a change of these sectors will never complete: its queue was reset.
    pub fn abandon_change(&mut self, first: usize, count: usize) {
        self.changed(first, count, false, false);
    }

    /// Records that a read of these sectors will never complete.
    pub fn abandon_read(&mut self, first: usize, count: usize) {
        for sector in &mut self.sectors[first..first + count] {
            sector.readers = sector.readers.saturating_sub(1);
        }
    }

    /// Returns what a flush that is submitted now proves.
    pub fn flush(&self) -> Covered {
        let last = |sector: &Sector| {
            let mut versions = sector.versions.iter().rev();
            // A torn change after it may be on the disk as well, so that version stays.
            versions
                .find(|version| version.fate == Fate::Done && !version.doubtful)
                .map(|version| version.stamp)
        };
        self.sectors.iter().map(last).collect()
    }

    /// Records that a flush completed.
    pub fn flush_done(&mut self, covered: &Covered, ok: bool) {
        for (sector, stamp) in self.sectors.iter_mut().zip(covered) {
            if !ok {
                // The kernel has dropped the pages that it could not write.
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

    /// Checks the whole image while no request is outstanding.
    pub fn check_image(&self, image: &[u8]) -> Result<(), String> {
        image
            .chunks(SECTOR)
            .enumerate()
            .try_for_each(|(number, bytes)| self.check_current(number, bytes))
    }

    /// Checks the durable content after a power cut.
    pub fn check_durable(&self, image: &[u8]) -> Result<(), String> {
        for (number, bytes) in image.chunks(SECTOR).enumerate() {
            let versions = &self.sectors[number].versions;
            let whole = versions
                .iter()
                .any(|version| version.stamp == ANYTHING || content(version.stamp, number) == bytes);
            if whole {
                continue;
            }
            // A version that is not known to be durable may be on the disk in part: the kernel may write back
            // in the middle of a transfer.
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

    /// Accepts any content of the image, after an attack by the guest.
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
