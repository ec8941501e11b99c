//! [`Ordered`]: the storage below the qcow2 crate, which brings the crate's writes to tables into an order
//! that a power cut cannot harm.
//!
//! The crate writes refcounts before tables and syncs nothing in between, so a power cut may leave a table
//! that refers to a cluster without a refcount, or to one whose data never arrived. Here, data are written at
//! once, and so are tables to which nothing refers yet. Changes of what the image refers to already
//! (refcounts, refcount table, L1 and L2 tables, header) are held back, by sectors, until
//! [`Ordered::commit`]:
//!
//! 1. Refcounts are written, none lower than it is in the file; sync. What was allocated is counted, and data
//!    and new tables are durable.
//! 2. Refcount table entries are written; sync if there were any.
//! 3. L2 and L1 tables and the header are written. Any part of these may be lost: each entry leads to what is
//!    durable and counted.
//! 4. If refcounts are to be lowered: sync, and they are written. Nothing durable refers to these clusters
//!    any more.
//!
//! The order does not depend on that in which the crate writes. It does depend on the caller: no allocation
//! runs during a commit, and what was freed is not allocated again before it. [`super::Qcow2Image`] ensures
//! both.

use std::collections::{BTreeMap, HashSet};
use std::fmt::{self, Display, Formatter};
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use imago::Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;

use super::header::{Header, u64_at};
use super::medium::Medium;
use super::refcounts;

/// What is held back and written is whole sectors, which a power cut does not tear.
const SECTOR: u64 = 512;
/// The bits of a table's entry that are an offset.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Where the header has offset and clusters of the refcount table.
const HEADER_REFTABLE: Range<usize> = 48..60;
const HEADER_L1: Range<usize> = 36..48;

/// The storage of one file of an image; clones share it.
#[derive(Clone, Debug)]
pub struct Ordered(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    medium: Medium,
    helper: CommonStorageHelper,
    /// Sectors held back, of `tables`.
    held_count: AtomicUsize,
    /// How many commits have ended. Raised before `held_count` sinks.
    commits: AtomicU64,
    /// `None` for a file that is only read.
    tables: Option<Mutex<Tables>>,
}

/// What a held sector belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Refcounts,
    Reftable,
    L2,
    L1,
    Header,
}

type Sector = [u8; SECTOR as usize];
type Held = BTreeMap<u64, (Kind, Box<Sector>)>;

#[derive(Debug)]
struct Tables {
    cluster: u64,
    refcount_order: u32,
    l1: Range<u64>,
    reftable: Range<u64>,
    /// Offsets of the L2 tables that L1 refers to.
    l2: HashSet<u64>,
    /// Offsets of the refcount blocks that the refcount table refers to.
    blocks: HashSet<u64>,
    held: Held,
    /// What a commit is writing; `held` is newer.
    committing: Arc<Held>,
}

impl Ordered {
    /// Returns the storage of a file that is only read.
    pub fn readonly(path: PathBuf, medium: Medium) -> Self {
        Self::new(path, medium, None)
    }

    /// Returns the storage of an image with this header.
    ///
    /// # Errors
    /// The tables cannot be read.
    pub fn writable(path: PathBuf, medium: Medium, header: &Header) -> io::Result<Self> {
        let cluster = 1 << header.cluster_bits;
        let mut tables = Tables {
            cluster,
            refcount_order: header.refcount_order,
            l1: header.l1_offset..header.l1_offset.saturating_add(u64::from(header.l1_entries) * 8),
            reftable: reftable(header.reftable_offset, header.reftable_clusters, cluster),
            l2: HashSet::new(),
            blocks: HashSet::new(),
            held: Held::new(),
            committing: Arc::default(),
        };
        tables.l2 = entries(&medium, &tables.l1)?;
        tables.blocks = entries(&medium, &tables.reftable)?;
        Ok(Self::new(path, medium, Some(Mutex::new(tables))))
    }

    fn new(path: PathBuf, medium: Medium, tables: Option<Mutex<Tables>>) -> Self {
        Self(Arc::new(Inner {
            path,
            medium,
            helper: CommonStorageHelper::default(),
            held_count: AtomicUsize::new(0),
            commits: AtomicU64::new(0),
            tables,
        }))
    }

    /// Returns the file.
    pub fn medium(&self) -> &Medium {
        &self.0.medium
    }

    fn tables(&self) -> Option<MutexGuard<'_, Tables>> {
        let tables = self.0.tables.as_ref()?;
        Some(tables.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes what is held back, in an order that survives a power cut at any point. What could not be
    /// written stays held back.
    ///
    /// # Errors
    /// The system's error.
    pub fn commit(&self) -> io::Result<()> {
        let (batch, order) = match self.tables() {
            Some(mut tables) if !tables.held.is_empty() => {
                tables.committing = Arc::new(std::mem::take(&mut tables.held));
                (tables.committing.clone(), tables.refcount_order)
            }
            _ => return Ok(()),
        };
        let result = self.write_in_order(&batch, order);
        if let Some(mut tables) = self.tables() {
            tables.committing = Arc::default();
            self.0.commits.fetch_add(1, Ordering::SeqCst);
            if result.is_err() {
                let mut batch = (*batch).clone();
                batch.append(&mut tables.held);
                tables.held = batch;
            }
            self.0.held_count.store(tables.held.len(), Ordering::SeqCst);
        }
        result
    }

    fn write_in_order(&self, batch: &Held, order: u32) -> io::Result<()> {
        let medium = &self.0.medium;
        let of = |kind| batch.iter().filter(move |(_, (found, _))| *found == kind);
        let mut lowered = Vec::new();
        for (&offset, (_, new)) in of(Kind::Refcounts) {
            let (old, mut raised) = (self.sector(offset)?, new.clone());
            refcounts::raise(&mut raised[..], &old[..], order);
            if raised[..] != old[..] {
                medium.write_at(&raised[..], offset)?;
            }
            if raised[..] != new[..] {
                lowered.push((offset, new));
            }
        }
        medium.sync()?;
        if of(Kind::Reftable).next().is_some() {
            write_all(medium, of(Kind::Reftable))?;
            medium.sync()?;
        }
        for kind in [Kind::L2, Kind::L1, Kind::Header] {
            write_all(medium, of(kind))?;
        }
        if !lowered.is_empty() {
            medium.sync()?;
            for (offset, new) in lowered {
                medium.write_at(&new[..], offset)?;
            }
        }
        Ok(())
    }

    /// Returns a sector as it is in the file.
    fn sector(&self, offset: u64) -> io::Result<Box<Sector>> {
        let mut bytes = Box::new([0; SECTOR as usize]);
        self.0.medium.read_at(&mut bytes[..], offset)?;
        Ok(bytes)
    }

    /// Reads the file with what is held back of it.
    fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        loop {
            let commits = self.0.commits.load(Ordering::SeqCst);
            self.0.medium.read_at(bytes, offset)?;
            if self.0.held_count.load(Ordering::SeqCst) > 0
                && let Some(tables) = self.tables()
            {
                for held in [&*tables.committing, &tables.held] {
                    patch(held, bytes, offset);
                }
            }
            // What a commit has written since the file was read is held back no more, and not in `bytes`.
            if self.0.commits.load(Ordering::SeqCst) == commits {
                return Ok(());
            }
        }
    }

    /// Writes data and new tables, and holds back changes of tables that are referred to.
    fn put(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let Some(mut tables) = self.tables() else {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        };
        let Some(kind) = tables.kind(offset) else {
            drop(tables);
            return self.0.medium.write_at(bytes, offset);
        };
        if kind == Kind::Header && self.header_moves_reftable(bytes, offset)? {
            return self.move_reftable(&mut tables, bytes);
        }
        let first = offset / SECTOR * SECTOR;
        let within = (offset - first) as usize;
        let mut now = self
            .0
            .medium
            .bytes(first, (within + bytes.len()).next_multiple_of(SECTOR as usize))?;
        patch(&tables.committing, &mut now, first);
        patch(&tables.held, &mut now, first);
        let old = now.clone();
        if let Some(place) = now.get_mut(within..within + bytes.len()) {
            tables.entries_change(kind, place, bytes);
            place.copy_from_slice(bytes);
        }
        for (number, (old, now)) in old.as_chunks().0.iter().zip(now.as_chunks().0).enumerate() {
            if old != now {
                let sector: Box<Sector> = Box::new(*now);
                tables.held.insert(first + number as u64 * SECTOR, (kind, sector));
            }
        }
        if kind == Kind::Header && offset == 0 && bytes.len() >= HEADER_L1.end {
            let entries =
                u32::from_be_bytes(*bytes.get(36..).and_then(<[u8]>::first_chunk).unwrap_or(&[0; 4]));
            let l1 = u64_at(bytes, 40);
            tables.l1 = l1..l1.saturating_add(u64::from(entries) * 8);
        }
        self.0
            .held_count
            .store(tables.held.len() + tables.committing.len(), Ordering::SeqCst);
        Ok(())
    }

    fn header_moves_reftable(&self, bytes: &[u8], offset: u64) -> io::Result<bool> {
        let (now, new) = (self.sector(0)?, bytes.get(HEADER_REFTABLE));
        Ok(offset == 0 && new.is_some_and(|new| now.get(HEADER_REFTABLE) != Some(new)))
    }

    /// Puts a new refcount table, which has been written, in the place of the old one. Not held back: the
    /// crate frees the old one right afterwards.
    fn move_reftable(&self, tables: &mut Tables, header: &[u8]) -> io::Result<()> {
        let medium = &self.0.medium;
        for (&offset, (kind, new)) in &tables.held {
            if *kind == Kind::Refcounts {
                let (old, mut raised) = (self.sector(offset)?, new.clone());
                refcounts::raise(&mut raised[..], &old[..], tables.refcount_order);
                medium.write_at(&raised[..], offset)?;
            }
        }
        medium.sync()?;
        medium.write_at(header, 0)?;
        medium.sync()?;
        // The new table has the entries that were held back of the old one.
        tables.held.retain(|_, (kind, _)| *kind != Kind::Reftable);
        let clusters = header
            .get(56..)
            .and_then(<[u8]>::first_chunk)
            .map_or(0, |bytes| u32::from_be_bytes(*bytes));
        tables.reftable = reftable(u64_at(header, 48), clusters, tables.cluster);
        tables.blocks = entries(medium, &tables.reftable)?;
        Ok(())
    }
}

impl Tables {
    /// Returns what is at an offset, if the image refers to a table there.
    fn kind(&self, offset: u64) -> Option<Kind> {
        let cluster = offset / self.cluster * self.cluster;
        match () {
            () if offset < self.cluster => Some(Kind::Header),
            () if self.l1.contains(&offset) => Some(Kind::L1),
            () if self.reftable.contains(&offset) => Some(Kind::Reftable),
            () if self.l2.contains(&cluster) => Some(Kind::L2),
            () if self.blocks.contains(&cluster) => Some(Kind::Refcounts),
            () => None,
        }
    }

    /// Follows a change of entries that refer to tables.
    fn entries_change(&mut self, kind: Kind, old: &[u8], new: &[u8]) {
        let known = match kind {
            Kind::L1 => &mut self.l2,
            Kind::Reftable => &mut self.blocks,
            Kind::L2 | Kind::Refcounts | Kind::Header => return,
        };
        for at in (0..new.len()).step_by(8) {
            let (old, new) = (u64_at(old, at) & OFFSET_MASK, u64_at(new, at) & OFFSET_MASK);
            if old != new {
                known.remove(&old);
                if new != 0 {
                    known.insert(new);
                }
            }
        }
    }
}

fn reftable(offset: u64, clusters: u32, cluster: u64) -> Range<u64> {
    offset..offset.saturating_add(u64::from(clusters).saturating_mul(cluster))
}

/// Returns the offsets that a table's entries have.
fn entries(medium: &Medium, table: &Range<u64>) -> io::Result<HashSet<u64>> {
    /// Larger ones are refused by the crate, which is QEMU's limit, too.
    const TABLE_MAX: u64 = 32 << 20;
    let len = table.end - table.start;
    if len > TABLE_MAX {
        let message = format!("a table of {len} bytes, expected up to {TABLE_MAX}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    let size = medium.size()?;
    if len > 0 && table.start >= size {
        let message = format!(
            "a table at {:#x}, expected inside of the file's {size:#x} bytes",
            table.start
        );
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    let bytes = medium.bytes(table.start, len as usize)?;
    let offsets = (0..bytes.len())
        .step_by(8)
        .map(|at| u64_at(&bytes, at) & OFFSET_MASK);
    Ok(offsets.filter(|offset| *offset != 0).collect())
}

fn write_all<'a>(
    medium: &Medium,
    sectors: impl Iterator<Item = (&'a u64, &'a (Kind, Box<Sector>))>,
) -> io::Result<()> {
    for (&offset, (_, bytes)) in sectors {
        medium.write_at(&bytes[..], offset)?;
    }
    Ok(())
}

/// Copies the held sectors of a range over `bytes`.
fn patch(held: &Held, bytes: &mut [u8], offset: u64) {
    let end = offset + bytes.len() as u64;
    for (&start, (_, sector)) in held.range(offset / SECTOR * SECTOR..end) {
        let (from, to) = (start.max(offset), (start + SECTOR).min(end));
        let place = bytes.get_mut((from - offset) as usize..(to - offset) as usize);
        let part = sector.get((from - start) as usize..(to - start) as usize);
        if let (Some(place), Some(part)) = (place, part) {
            place.copy_from_slice(part);
        }
    }
}

impl Storage for Ordered {
    fn size(&self) -> io::Result<u64> {
        self.0.medium.size()
    }

    unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        let mut at = offset;
        for mut part in bufv.into_inner() {
            let len = part.len() as u64;
            self.read(&mut part, at)?;
            at += len;
        }
        Ok(())
    }

    unsafe fn pure_writev(&self, bufv: IoVector<'_>, offset: u64) -> io::Result<()> {
        let mut at = offset;
        for part in bufv.into_inner() {
            self.put(&part, at)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.0.medium.zero(offset, length)
    }

    unsafe fn pure_write_allocated_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.0.medium.zero(offset, length)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.0.medium.sync()
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.0.helper
    }
}

impl Display for Ordered {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.path.display().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use imago::Storage;
    use imago::io_buffers::{IoVector, IoVectorMut};

    use super::{Medium, Ordered};
    use crate::image::qcow2::header::Header;
    use crate::tests::qcow2_power::qemu_img;

    // A table that is read while a commit ends is never older than before the read: the crate would keep it,
    // and write its entries back.
    #[test]
    fn a_read_during_a_commit_is_not_stale() {
        const ROUNDS: u64 = 20_000;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.qcow2");
        qemu_img(&["create", "-q", "-f", "qcow2", path.to_str().unwrap(), "8M"]);
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        let header = Header::read(&file).unwrap();
        let table = header.l1_offset;
        let storage = Ordered::writable(path, Medium::without_syncs(file), &header).unwrap();
        let (written, ended) = (AtomicU64::new(0), AtomicBool::new(false));
        let reader = || {
            let mut reads = 0;
            while !ended.load(Ordering::SeqCst) {
                let least = written.load(Ordering::SeqCst);
                let mut bytes = [0; 8];
                // SAFETY: the buffer is this thread's own.
                unsafe { storage.pure_readv(IoVectorMut::from(&mut bytes[..]), table) }.unwrap();
                let found = u64::from_be_bytes(bytes) >> 9;
                assert!(found >= least, "read {found} after {least} was written");
                reads += 1;
            }
            reads
        };
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..2).map(|_| scope.spawn(reader)).collect();
            for number in 1..=ROUNDS {
                let bytes = (number << 9).to_be_bytes();
                // SAFETY: the buffer is not written to.
                unsafe { storage.pure_writev(IoVector::from(&bytes[..]), table) }.unwrap();
                written.store(number, Ordering::SeqCst);
                storage.commit().unwrap();
            }
            ended.store(true, Ordering::SeqCst);
            for reader in readers {
                assert!(reader.join().unwrap() > 100);
            }
        });
    }
}
