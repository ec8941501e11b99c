//! qcow2 images, by the crate `imago`: read, write, chains of backing files.
//!
//! The crate is used without `async`: an operation runs to its end on a thread of a pool, many at once; only
//! operations that free clusters exclude others. Data is copied through a [`Bounce`], because the crate takes
//! slices, and no slice of memory that a guest writes to may be formed.
//!
//! The daemon can be killed at any moment, so a write completes only when the tables that lead to it have
//! left this process, too: operations that allocate flush the crate's cache (to the page cache; FLUSH makes
//! it durable).

use std::alloc::{Layout, handle_alloc_error};
use std::borrow::Borrow;
use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};

use imago::file::File as Storage;
use imago::format::PreallocateMode;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{FormatAccess, Mapping, StorageOpenOptions};
use ringvirtio::memory::IoVec;

use super::bounce::{BOUNCE_MAX, Bounce, gather, scatter};
use super::operation::IoKind;
use crate::error::DiskError;

/// Most files of a chain; a longer one is treated as a cycle.
const MAX_DEPTH: usize = 64;

type Access = FormatAccess<Storage>;

/// An open qcow2 image with its backing files.
pub struct Qcow2Image {
    /// Locked exclusively by operations that free clusters.
    access: RwLock<Access>,
    /// Number of operations whose new tables may not have left the process. One that failed to flush them
    /// stays counted.
    unflushed: AtomicUsize,
}

impl Qcow2Image {
    /// Opens the image in `file`, which the caller has locked, and its backing files with `open`, which locks
    /// each.
    ///
    /// # Errors
    /// The image is damaged or unsupported, or a backing file cannot be opened.
    pub fn open(
        path: &Path,
        file: File,
        readonly: bool,
        open: &dyn Fn(&Path) -> Result<File, DiskError>,
    ) -> Result<Self, DiskError> {
        let access = layer(path, file, !readonly, open, 1)?;
        Ok(Self {
            access: RwLock::new(access),
            unflushed: AtomicUsize::new(0),
        })
    }

    /// Returns the size of the disk in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.shared(Access::size)
    }

    /// Grows the disk; the new part reads zero.
    ///
    /// # Errors
    /// The system's error; EOPNOTSUPP if it would shrink.
    pub fn grow(&self, bytes: u64) -> io::Result<()> {
        self.exclusive(|access| {
            if bytes < access.size() {
                return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
            }
            access.resize_grow(bytes, PreallocateMode::Zero)?;
            access.flush()
        })
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

    fn exclusive<R>(&self, work: impl FnOnce(&mut Access) -> R) -> R {
        work(&mut self.access.write().unwrap_or_else(PoisonError::into_inner))
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
        in_pieces(len, |bytes, done| {
            // SAFETY: the caller guarantees valid buffers.
            let count = unsafe { gather(parts, done, bytes) };
            self.write_bytes(bytes.get(..count).unwrap_or_default(), offset + done)?;
            Ok(count)
        })
    }

    fn write_bytes(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.shared(|access| {
            let ready = is_allocated(access, offset, bytes.len() as u64)?;
            // In this order: the operation that allocated these clusters had counted itself before.
            if ready && self.unflushed.load(Ordering::SeqCst) == 0 {
                return access.write(bytes, offset);
            }
            self.flushed(access, |access| access.write(bytes, offset))
        })
    }

    /// Runs an operation that may change tables, and flushes them.
    fn flushed<A: Borrow<Access>>(
        &self,
        mut access: A,
        run: impl FnOnce(&mut A) -> io::Result<()>,
    ) -> io::Result<()> {
        self.unflushed.fetch_add(1, Ordering::SeqCst);
        let result = run(&mut access);
        access.borrow().flush()?;
        self.unflushed.fetch_sub(1, Ordering::SeqCst);
        result
    }

    fn sync(&self) -> io::Result<()> {
        self.shared(|access| {
            access.flush()?;
            access.sync()
        })
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.exclusive(|access| self.flushed(access, |access| access.discard_to_any(offset, len)))
    }

    fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let unsupported = |error: &io::Error| error.kind() == io::ErrorKind::Unsupported;
        if unmap {
            match self.exclusive(|access| self.flushed(access, |access| access.discard_to_zero(offset, len)))
            {
                Err(error) if unsupported(&error) => {}
                done => return done,
            }
        }
        match self.shared(|access| self.flushed(access, |access| access.write_zeroes(offset, len))) {
            Err(error) if unsupported(&error) => {}
            done => return done,
        }
        // Version 2 has no zero clusters.
        in_pieces(len, |bytes, done| {
            self.write_bytes(bytes, offset + done)?;
            Ok(bytes.len())
        })
        .map(drop)
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

/// Opens an image and the backing files below it.
fn layer(
    path: &Path,
    file: File,
    writable: bool,
    open: &dyn Fn(&Path) -> Result<File, DiskError>,
    depth: usize,
) -> Result<Access, DiskError> {
    let unusable = |reason: String| DiskError::Qcow2 {
        path: path.to_owned(),
        reason,
    };
    let refused = |error: io::Error| unusable(error.to_string());
    if depth > MAX_DEPTH {
        return Err(unusable(format!("more than {MAX_DEPTH} backing files")));
    }
    let mut qcow2: Qcow2<Storage> =
        Qcow2::open_image(storage(path, file, writable).map_err(refused)?, writable).map_err(refused)?;
    if qcow2.requires_external_data_file() {
        return Err(unusable("data in an external file, expected in the image".into()));
    }
    qcow2.set_data_file(None);
    let Some(name) = qcow2.implicit_backing_file().cloned() else {
        qcow2.set_backing(None);
        return Ok(FormatAccess::new(qcow2));
    };
    // A relative name is relative to the file that contains it. Names with a protocol never match a file.
    let below = path.parent().unwrap_or(Path::new("")).join(name);
    // Never probed: a guest may have written a header onto a raw image.
    let backing = match qcow2.implicit_backing_format().map(String::as_str) {
        Some("qcow2") => layer(&below, open(&below)?, false, open, depth + 1)?,
        Some("raw") => {
            let raw = storage(&below, open(&below)?, false).and_then(|file| Raw::open_image(file, false));
            FormatAccess::new(raw.map_err(refused)?)
        }
        other => {
            let found = other.unwrap_or("missing");
            return Err(unusable(format!(
                "format of its backing file {} is {found}, expected qcow2 or raw",
                below.display()
            )));
        }
    };
    qcow2.set_backing(Some(backing));
    Ok(FormatAccess::new(qcow2))
}

fn storage(path: &Path, file: File, writable: bool) -> io::Result<Storage> {
    Storage::from_open_file(file, StorageOpenOptions::new().write(writable).filename(path))
}

/// Returns whether a write to the range changes no table.
fn is_allocated(access: &Access, mut offset: u64, len: u64) -> io::Result<bool> {
    let end = offset.saturating_add(len);
    while offset < end {
        let (mapping, found) = access.get_mapping(offset, end - offset)?;
        if found == 0 || !matches!(mapping, Mapping::Raw { writable: true, .. }) {
            return Ok(false);
        }
        offset = offset.saturating_add(found);
    }
    Ok(true)
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
