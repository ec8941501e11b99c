//! qcow2 images, by the crate `imago`: read, write, chains of backing files.
//!
//! The crate is used without `async`: an operation runs to its end on a thread of a pool, many at once; only
//! operations that free clusters exclude others. Data is copied through a [`Bounce`], because the crate takes
//! slices, and no slice of memory that a guest writes to may be formed.
//!
//! [`header`] refuses what cannot be served before anything is written. [`tables`] is the storage below the
//! crate; it holds back changes of tables until they are committed. The daemon can be killed at any moment,
//! so an operation that changes tables completes after a commit, which covers all operations that are
//! complete in memory by then.

mod header;
mod medium;
#[cfg(test)]
pub(crate) mod recorder;
mod refcounts;
mod tables;

use std::alloc::{Layout, handle_alloc_error};
use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

use imago::format::PreallocateMode;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{FormatAccess, Mapping};
use ringvirtio::memory::IoVec;

use super::IoKind;
use super::bounce::{BOUNCE_MAX, Bounce, gather, scatter};
use crate::error::{DiskError, failed};
use crate::opener::{LocalOpener, Opener};
use header::{Backing, Header};
use medium::Medium;
use tables::Ordered;

/// Most files of a chain; a longer one is treated as a cycle.
const MAX_DEPTH: usize = 64;
/// Most clusters that are freed while other operations wait.
const FREE_CLUSTERS: u64 = 1 << 15;

type Access = FormatAccess<Ordered>;

/// An open qcow2 image with its backing files.
pub struct Qcow2Image {
    /// Locked exclusively by operations that free clusters, for as long as these change tables in memory.
    access: RwLock<Access>,
    storage: Ordered,
    header: Header,
    /// Locked shared by operations that allocate, exclusively by commits, and by operations that free until
    /// these are committed. Taken before `access`.
    allocating: RwLock<()>,
    /// Number of operations that have begun to change tables.
    changes: AtomicU64,
    /// How many of these are committed. The lock is taken before `allocating`.
    committed: Mutex<u64>,
    /// The same, to be looked at without the lock.
    committed_changes: AtomicU64,
    /// Clusters were freed and the commit failed: they must not be allocated again before one succeeds.
    freed: AtomicBool,
}

impl Qcow2Image {
    /// Opens the image in `file`, which the caller has locked, and its backing files with `open`, which locks
    /// each.
    ///
    /// # Errors
    /// The image is damaged or unsupported, or a backing file cannot be opened. Nothing was written.
    pub fn open(
        path: &Path,
        file: File,
        readonly: bool,
        open: &dyn Fn(&Path) -> Result<File, DiskError>,
    ) -> Result<Self, DiskError> {
        let (access, storage, header) = layer(path, file, !readonly, open, 1)?;
        Ok(Self {
            access: RwLock::new(access),
            storage,
            header,
            allocating: RwLock::new(()),
            changes: AtomicU64::new(0),
            committed: Mutex::new(0),
            committed_changes: AtomicU64::new(0),
            freed: AtomicBool::new(false),
        })
    }

    /// Records from now on what is written to the file.
    #[cfg(test)]
    pub(crate) fn record(&self, recorder: std::sync::Arc<recorder::Recorder>) {
        self.storage.medium().recorder.set(recorder).unwrap();
    }

    /// Returns the size of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.shared(Access::size)
    }

    /// Returns whether a sync has failed.
    pub fn has_sync_failed(&self) -> bool {
        self.storage.medium().has_sync_failed()
    }

    /// Grows the disk; the new part reads zero.
    ///
    /// # Errors
    /// The system's error; EOPNOTSUPP if it would shrink, or if it is of version 2 and has snapshots, whose
    /// size such an image does not keep.
    pub fn grow(&self, bytes: u64) -> io::Result<()> {
        let old = self.size();
        if bytes < old || (self.header.version == 2 && self.header.snapshots > 0) {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        self.freeing(|access| access.resize_grow(bytes, PreallocateMode::None))?;
        // A backing file that is longer than the disk was would show, as would what the old last cluster has
        // behind the old end.
        let cluster = 1 << self.header.cluster_bits;
        let end = if self.header.backing.is_some() {
            bytes
        } else {
            old.next_multiple_of(cluster).min(bytes)
        };
        self.zero(old, end - old, false)?;
        self.sync()
    }

    /// # Safety
    /// The buffers are valid.
    pub(super) unsafe fn run(
        &self,
        kind: IoKind,
        parts: &[IoVec],
        offset: u64,
        len: u64,
    ) -> io::Result<usize> {
        // A damaged image must not end a pool thread, and with it the request.
        let run = AssertUnwindSafe(|| match kind {
            // SAFETY: the caller guarantees valid buffers.
            IoKind::Read => unsafe { self.read(parts, offset, len) },
            // SAFETY: the caller guarantees valid buffers.
            IoKind::Write => unsafe { self.write(parts, offset, len) },
            // SAFETY: the caller guarantees valid buffers.
            IoKind::WriteDurable => unsafe { self.write(parts, offset, len) }.and_then(|written| {
                self.sync()?;
                Ok(written)
            }),
            IoKind::Sync => self.sync().map(|()| 0),
            IoKind::Discard => self.discard(offset, len).map(|()| 0),
            IoKind::WriteZeroes { unmap } => self.zero(offset, len, unmap).map(|()| 0),
        });
        match catch_unwind(run) {
            // No memory for the crate's own buffers: abort, see `Bounce::new`.
            Ok(Err(error))
                if error.kind() == io::ErrorKind::OutOfMemory && error.raw_os_error().is_none() =>
            {
                handle_alloc_error(Layout::new::<[u8; BOUNCE_MAX]>())
            }
            Ok(result) => result.map_err(|error| io::Error::from_raw_os_error(number(&error))),
            Err(_) => Err(io::Error::from_raw_os_error(libc::EIO)),
        }
    }

    fn shared<R>(&self, work: impl FnOnce(&Access) -> R) -> R {
        work(&self.access.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// # Safety
    /// The buffers are valid.
    unsafe fn read(&self, parts: &[IoVec], offset: u64, len: u64) -> io::Result<usize> {
        in_pieces(len, |bytes, done| {
            self.shared(|access| access.read(&mut *bytes, offset + done))?;
            // SAFETY: the caller guarantees valid buffers.
            Ok(unsafe { scatter(bytes, parts, done) })
        })
    }

    /// # Safety
    /// The buffers are valid.
    unsafe fn write(&self, parts: &[IoVec], offset: u64, len: u64) -> io::Result<usize> {
        let written = in_pieces(len, |bytes, done| {
            // SAFETY: the caller guarantees valid buffers.
            let count = unsafe { gather(parts, done, bytes) };
            self.write_bytes(bytes.get(..count).unwrap_or_default(), offset + done)?;
            Ok(count)
        })?;
        self.commit()?;
        Ok(written)
    }

    /// Writes the bytes; the caller commits.
    fn write_bytes(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let in_place = self.shared(|access| {
            let in_place = Place::of_all(access, offset, bytes.len() as u64)? == Place::Allocated;
            // What is in place may be so by an operation that is not committed yet; the commit covers it,
            // because it had counted itself before.
            if in_place {
                access.write(bytes, offset)?;
            }
            Ok::<_, io::Error>(in_place)
        })?;
        let mut done = if in_place { bytes.len() } else { 0 };
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            done += self.write_run(rest, offset + done as u64)?;
        }
        Ok(())
    }

    /// Writes the first bytes, as many as can be written at once, and returns how many these are.
    ///
    /// Nothing is allocated in one operation with what frees clusters: the crate could allocate those. It
    /// frees a compressed cluster when that is written. Of clusters that read zero and are allocated, it
    /// frees those that do not lie behind the one before, so each is written alone.
    fn write_run(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let cluster = 1_u64 << self.header.cluster_bits;
        let (place, len) = self.allocating(|access| {
            let (place, len) = Place::of_run(access, offset, bytes.len() as u64, cluster)?;
            if place != Place::Compressed {
                access.write(bytes.get(..len as usize).unwrap_or_default(), offset)?;
            }
            Ok((place, len))
        })?;
        if place == Place::Compressed {
            let bytes = bytes.get(..len as usize).unwrap_or_default();
            self.freeing(|access| access.write(bytes, offset))?;
        }
        Ok(len as usize)
    }

    /// Runs what allocates clusters and frees none.
    fn allocating<R>(&self, work: impl FnOnce(&Access) -> io::Result<R>) -> io::Result<R> {
        if self.freed.load(Ordering::SeqCst) {
            self.commit()?;
        }
        let _allocating = self.allocating.read().unwrap_or_else(PoisonError::into_inner);
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.shared(work)
    }

    /// Runs what frees no clusters, but changes where others would.
    fn exclusively(&self, work: impl FnOnce(&Access) -> io::Result<()>) -> io::Result<()> {
        if self.freed.load(Ordering::SeqCst) {
            self.commit()?;
        }
        let _allocating = self.allocating.write().unwrap_or_else(PoisonError::into_inner);
        self.changes.fetch_add(1, Ordering::SeqCst);
        work(&self.access.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs what may free clusters, which are allocated again only when that is committed.
    fn freeing(&self, work: impl FnOnce(&mut Access) -> io::Result<()>) -> io::Result<()> {
        let mut committed = self.committed.lock().unwrap_or_else(PoisonError::into_inner);
        let _allocating = self.allocating.write().unwrap_or_else(PoisonError::into_inner);
        if self.freed.load(Ordering::SeqCst) {
            self.commit_changes(&mut committed)?;
        }
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.freed.store(true, Ordering::SeqCst);
        let done = work(&mut self.access.write().unwrap_or_else(PoisonError::into_inner));
        self.commit_changes(&mut committed)?;
        done
    }

    /// Commits all operations that have changed tables so far, if they are not committed already.
    fn commit(&self) -> io::Result<()> {
        let changes = self.changes.load(Ordering::SeqCst);
        if self.committed_changes.load(Ordering::SeqCst) >= changes {
            return Ok(());
        }
        let mut committed = self.committed.lock().unwrap_or_else(PoisonError::into_inner);
        if *committed >= changes {
            return Ok(());
        }
        let _allocating = self.allocating.write().unwrap_or_else(PoisonError::into_inner);
        self.commit_changes(&mut committed)
    }

    /// Commits; the caller has locked `allocating` exclusively.
    fn commit_changes(&self, committed: &mut u64) -> io::Result<()> {
        let changes = self.changes.load(Ordering::SeqCst);
        self.shared(Access::flush)?;
        self.storage.commit()?;
        *committed = changes;
        self.committed_changes.store(changes, Ordering::SeqCst);
        self.freed.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.commit()?;
        self.storage.medium().sync()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        match (self.header.version, &self.header.backing) {
            // It has no clusters that read zero, and without a mapping the backing file would show.
            (2, Some(_)) => Ok(()),
            (2, None) => self.free(offset, len, |access, offset, len| {
                access.discard_to_backing(offset, len)
            }),
            _ => self.free(offset, len, |access, offset, len| {
                access.discard_to_any(offset, len)
            }),
        }
    }

    fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        if self.header.version == 2 {
            self.write_zeroes(offset, len)?;
        } else if unmap {
            return self.free(offset, len, |access, offset, len| {
                access.discard_to_zero(offset, len)
            });
        } else {
            self.pieces(offset, len, |place, offset, len| match place {
                Place::Compressed => self.freeing(|access| access.write_zeroes(offset, len)),
                // Clusters stay allocated and read zero: see `write_run`.
                _ => self.exclusively(|access| access.write_zeroes(offset, len)),
            })?;
        }
        self.commit()
    }

    /// Writes zeroes where a range does not read zero anyway.
    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.pieces(offset, len, |_, offset, len| {
            let written = in_pieces(len, |bytes, done| {
                self.write_bytes(bytes, offset + done)?;
                Ok(bytes.len())
            });
            written.map(drop)
        })
    }

    /// Calls `work` for each piece of a range that does not read zero by lack of data.
    fn pieces(
        &self,
        offset: u64,
        len: u64,
        mut work: impl FnMut(Place, u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let (mut at, end) = (offset, offset.saturating_add(len));
        while at < end {
            let (place, len) = self.shared(|access| self.piece(access, at, end))?;
            if !place.reads_zero() {
                work(place, at, len)?;
            }
            at += len;
        }
        Ok(())
    }

    /// Frees the clusters of a range by `work`, some of them at a time, so that other operations get their
    /// turn.
    fn free(
        &self,
        offset: u64,
        len: u64,
        work: impl Fn(&mut Access, u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let (mut at, end) = (offset, offset.saturating_add(len));
        while at < end {
            let (place, len) = self.shared(|access| self.piece(access, at, end))?;
            if place.reads_zero() {
                at += len;
                continue;
            }
            self.freeing(|access| {
                let cluster = 1_u64 << self.header.cluster_bits;
                let last = at.saturating_add(FREE_CLUSTERS * cluster).min(end);
                // The L2 table whose clusters were freed last: it is there, and not shared.
                let mut freed = None;
                while at < last {
                    let (place, len) = self.piece(access, at, last)?;
                    let table = at / self.table_bytes();
                    let whole = (at + len).is_multiple_of(cluster);
                    match place {
                        Place::Unallocated | Place::Zeroed => {}
                        // A table or a cluster may have to be allocated, which must not be what has just been
                        // freed.
                        Place::Missing | Place::Compressed
                            if freed.is_some() && (freed != Some(table) || !whole) =>
                        {
                            break;
                        }
                        Place::Missing => work(access, at, len)?,
                        Place::Allocated | Place::Compressed => {
                            work(access, at, len)?;
                            freed = Some(table);
                        }
                    }
                    at += len;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Returns the bytes of the disk that an L2 table covers.
    fn table_bytes(&self) -> u64 {
        1 << (2 * self.header.cluster_bits - 3)
    }

    /// Returns where the data at an offset are, and the bytes for which that holds, up to `end`: whole
    /// clusters, of one L2 table, unless nothing is allocated. A part of a compressed cluster is returned
    /// alone: it is written, which allocates, and must not be what others free.
    fn piece(&self, access: &Access, at: u64, end: u64) -> io::Result<(Place, u64)> {
        let cluster = 1_u64 << self.header.cluster_bits;
        let table = self.table_bytes();
        let most = (end - at).min(table - at % table);
        let (place, len) = Place::of(access, at, most)?;
        if place.reads_zero() {
            return Ok((place, len));
        }
        // The mapping of a backing file may change inside of a cluster.
        let len = (at + len).next_multiple_of(cluster).min(at + most) - at;
        let first = cluster - at % cluster;
        let len = match place {
            Place::Compressed if first < cluster => len.min(first),
            Place::Compressed if len > cluster => len - len % cluster,
            _ => len,
        };
        Ok((place, len))
    }
}

/// Calls `run` for each part of `len` bytes, with a buffer that is zeroed at first, and with the number of
/// bytes before that part. It returns how many bytes it has handled.
fn in_pieces(len: u64, mut run: impl FnMut(&mut [u8], u64) -> io::Result<usize>) -> io::Result<usize> {
    let mut bounce = Bounce::new(len);
    let mut done = 0_u64;
    while done < len {
        let now = (len - done).min(BOUNCE_MAX as u64) as usize;
        done += run(bounce.bytes().get_mut(..now).unwrap_or_default(), done)? as u64;
    }
    Ok(done as usize)
}

/// Where the data of a range are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Place {
    /// In clusters that can be written in place: no table changes.
    Allocated,
    /// Nowhere: the range reads zero.
    Unallocated,
    /// Elsewhere: in a backing file, or shared with a snapshot. A write allocates.
    Missing,
    /// In clusters that read zero, allocated or not.
    Zeroed,
    /// In compressed clusters, which a write frees.
    Compressed,
}

impl Place {
    /// Returns the place at an offset, and the bytes for which it holds, at least 1 and at most `most`.
    fn of(access: &Access, offset: u64, most: u64) -> io::Result<(Self, u64)> {
        let (mapping, found) = access.get_mapping(offset, most)?;
        let place = match mapping {
            Mapping::Raw { writable: true, .. } => Self::Allocated,
            Mapping::Zero { explicit: true, .. } => Self::Zeroed,
            Mapping::Zero { .. } => Self::Unallocated,
            Mapping::Special { layer, .. } if std::ptr::eq(layer, access) => Self::Compressed,
            _ => Self::Missing,
        };
        match found {
            // Behind the end.
            0 => Err(io::Error::from_raw_os_error(libc::EINVAL)),
            _ => Ok((place, found)),
        }
    }

    fn reads_zero(self) -> bool {
        matches!(self, Self::Unallocated | Self::Zeroed)
    }

    /// Returns the place that needs most of those at an offset that can be written at once, and their bytes,
    /// at most `most`: one cluster of those that read zero or are compressed, any number of others.
    fn of_run(access: &Access, offset: u64, most: u64, cluster: u64) -> io::Result<(Self, u64)> {
        let (mut all, mut len) = Self::of(access, offset, most)?;
        if all >= Self::Zeroed {
            return Ok((all, len.min(cluster - offset % cluster)));
        }
        while len < most {
            let (place, found) = Self::of(access, offset + len, most - len)?;
            if place >= Self::Zeroed {
                break;
            }
            (all, len) = (all.max(place), len + found);
        }
        Ok((all, len))
    }

    /// Returns what a write to a range has to do for the part of it that needs most.
    fn of_all(access: &Access, mut offset: u64, len: u64) -> io::Result<Self> {
        let end = offset.saturating_add(len);
        let mut all = Self::Allocated;
        while offset < end {
            let (place, found) = Self::of(access, offset, end - offset)?;
            all = all.max(place);
            offset = offset.saturating_add(found);
        }
        Ok(all)
    }
}

/// Opens an image and the backing files below it.
fn layer(
    path: &Path,
    file: File,
    writable: bool,
    open: &dyn Fn(&Path) -> Result<File, DiskError>,
    depth: usize,
) -> Result<(Access, Ordered, Header), DiskError> {
    let unusable = |reason: String| DiskError::Qcow2 {
        path: path.to_owned(),
        reason,
    };
    let refused = |error: io::Error| unusable(error.to_string());
    if depth > MAX_DEPTH {
        return Err(unusable(format!("more than {MAX_DEPTH} backing files")));
    }
    let header = Header::read(&file).map_err(unusable)?;
    header.check(writable).map_err(unusable)?;
    let backing = match &header.backing {
        Some(backing) => Some(below(path, backing, open, depth)?),
        None => None,
    };
    let medium = Medium::new(file);
    let storage = match writable {
        true => Ordered::writable(path.to_owned(), medium, &header).map_err(refused)?,
        false => Ordered::readonly(path.to_owned(), medium),
    };
    let mut qcow2: Qcow2<Ordered> = Qcow2::open_image(storage.clone(), writable).map_err(refused)?;
    qcow2.set_data_file(None);
    qcow2.set_backing(backing);
    Ok((FormatAccess::new(qcow2), storage, header))
}

/// Returns the backing files that the header of the image at `path` and those of its backing files name; none
/// of an image that cannot be read or is damaged, as opening it will tell.
pub fn backing_files(path: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    let mut image = path.to_owned();
    while found.len() <= MAX_DEPTH {
        // A pipe is not waited for.
        let file = LocalOpener.open(&image, false, libc::O_NONBLOCK);
        let header = file.ok().and_then(|file| Header::read(&file).ok());
        let Some(backing) = header.and_then(|header| header.backing) else {
            break;
        };
        image = named_by(&image, &backing);
        found.push(image.clone());
        if backing.format.as_deref() != Some("qcow2") {
            break;
        }
    }
    found
}

/// Returns the path of a backing file. A relative name is relative to the file that contains it. Names with a
/// protocol never match a file.
fn named_by(path: &Path, backing: &Backing) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).join(&backing.name)
}

/// Opens a backing file of the image at `path`.
fn below(
    path: &Path,
    backing: &Backing,
    open: &dyn Fn(&Path) -> Result<File, DiskError>,
    depth: usize,
) -> Result<Access, DiskError> {
    let below = named_by(path, backing);
    // Never probed: a guest may have written a header onto a raw image.
    match backing.format.as_deref() {
        Some("qcow2") => layer(&below, open(&below)?, false, open, depth + 1).map(|(access, ..)| access),
        Some("raw") => {
            let raw = Ordered::readonly(below.clone(), Medium::new(open(&below)?));
            let raw = Raw::open_image(raw, false).map_err(failed(&below, "find its size"))?;
            Ok(FormatAccess::new(raw))
        }
        other => {
            let found = other.unwrap_or("missing");
            let reason = format!(
                "the format of its backing file {} is {found}, expected qcow2 or raw: `qemu-img rebase -u -b {} -F \
                 FORMAT {}` names it",
                below.display(),
                backing.name,
                path.display()
            );
            Err(DiskError::Qcow2 {
                path: path.to_owned(),
                reason,
            })
        }
    }
}

/// Returns the error number closest to the error.
fn number(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(match error.kind() {
        io::ErrorKind::StorageFull => libc::ENOSPC,
        io::ErrorKind::QuotaExceeded => libc::EDQUOT,
        io::ErrorKind::Unsupported => libc::EOPNOTSUPP,
        io::ErrorKind::Interrupted => libc::EINTR,
        io::ErrorKind::OutOfMemory => libc::ENOMEM,
        _ => libc::EIO,
    })
}
