//! [`Medium`]: the file of a qcow2 image, read and written by offset.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
#[cfg(test)]
use std::sync::{Arc, OnceLock};

use rustix::fs::FallocateFlags;

use crate::image::bounce::{BOUNCE_MAX, Bounce};
use crate::image::sys::fallocate;

#[cfg(test)]
use super::recorder::{Event, Recorder};

/// A file or block device, used through the page cache.
#[derive(Debug)]
pub struct Medium {
    file: File,
    /// Set when the file turns out not to punch holes.
    no_holes: AtomicBool,
    /// Set when a sync has failed. The kernel reports the error once and drops the pages.
    sync_failed: AtomicBool,
    /// Records what is written, for the replay of power cuts.
    #[cfg(test)]
    pub recorder: OnceLock<Arc<Recorder>>,
    /// Whether it syncs.
    #[cfg(test)]
    syncs: bool,
}

impl Medium {
    pub fn new(file: File) -> Self {
        Self {
            file,
            no_holes: AtomicBool::new(false),
            sync_failed: AtomicBool::new(false),
            #[cfg(test)]
            recorder: OnceLock::new(),
            #[cfg(test)]
            syncs: true,
        }
    }

    /// Returns a medium whose syncs do nothing.
    #[cfg(test)]
    pub fn without_syncs(file: File) -> Self {
        Self {
            syncs: false,
            ..Self::new(file)
        }
    }

    /// Returns the size in bytes.
    pub fn size(&self) -> io::Result<u64> {
        (&self.file).seek(SeekFrom::End(0))
    }

    /// Fills the buffers from `offset` on; what lies behind the end of the file reads zero.
    pub fn read(&self, mut parts: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<()> {
        let mut at = offset;
        while parts.iter().any(|part| !part.is_empty()) {
            let count = parts.len() as libc::c_int;
            // SAFETY: `IoSliceMut` has the layout of an iovec, and the buffers are borrowed for writing.
            let done = unsafe {
                let fd = self.file.as_raw_fd();
                libc::preadv(fd, parts.as_mut_ptr().cast(), count, signed(at)?)
            };
            match transferred(done)? {
                None => {}
                Some(0) => {
                    for part in parts.iter_mut() {
                        part.fill(0);
                    }
                    return Ok(());
                }
                Some(count) => {
                    IoSliceMut::advance_slices(&mut parts, count);
                    at += count as u64;
                }
            }
        }
        Ok(())
    }

    /// Fills the buffer from `offset` on; what lies behind the end of the file reads zero.
    pub fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.read(&mut [IoSliceMut::new(bytes)], offset)
    }

    /// Writes the buffers at `offset`.
    pub fn write(&self, mut parts: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        #[cfg(test)]
        let record = self.recorder.get().map(|recorder| {
            let parts: Vec<&[u8]> = parts.iter().map(|part| &**part).collect();
            let bytes = parts.concat();
            (recorder, bytes)
        });
        #[cfg(test)]
        if let Some((recorder, bytes)) = &record {
            recorder.check_room(offset + bytes.len() as u64)?;
        }
        let mut at = offset;
        while parts.iter().any(|part| !part.is_empty()) {
            let count = parts.len() as libc::c_int;
            // SAFETY: `IoSlice` has the layout of an iovec, and the buffers are borrowed.
            let done = unsafe {
                let fd = self.file.as_raw_fd();
                libc::pwritev(fd, parts.as_ptr().cast(), count, signed(at)?)
            };
            match transferred(done)? {
                None => {}
                Some(0) => return Err(io::ErrorKind::WriteZero.into()),
                Some(count) => {
                    IoSlice::advance_slices(&mut parts, count);
                    at += count as u64;
                }
            }
        }
        #[cfg(test)]
        if let Some((recorder, bytes)) = record {
            recorder.push(Event::Write { offset, bytes });
        }
        Ok(())
    }

    /// Writes the bytes at `offset`.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write(&mut [IoSlice::new(bytes)], offset)
    }

    /// Makes a range read zero. What lies behind the end of the file does so already.
    pub fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset.saturating_add(len).min(self.size()?);
        if offset >= end {
            return Ok(());
        }
        match fallocate(
            &self.file,
            FallocateFlags::PUNCH_HOLE,
            offset,
            end - offset,
            &self.no_holes,
        ) {
            // EINVAL: a block device whose blocks are larger than the range's.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => {}
            done => {
                #[cfg(test)]
                if let Some(recorder) = self.recorder.get() {
                    let bytes = vec![0; (end - offset) as usize];
                    recorder.push(Event::Write { offset, bytes });
                }
                return done;
            }
        }
        let mut bounce = Bounce::new(end - offset);
        let mut at = offset;
        while at < end {
            let now = (end - at).min(BOUNCE_MAX as u64);
            let bytes = bounce.bytes().get(..now as usize).unwrap_or_default();
            self.write_at(bytes, at)?;
            at += now;
        }
        Ok(())
    }

    /// Returns whether a sync has failed.
    pub fn has_sync_failed(&self) -> bool {
        self.sync_failed.load(Ordering::SeqCst)
    }

    /// Makes completed writes durable. After a failure no later sync succeeds.
    pub fn sync(&self) -> io::Result<()> {
        #[cfg(test)]
        let record = self.recorder.get().map(|recorder| (recorder, recorder.len()));
        if self.has_sync_failed() {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        #[cfg(test)]
        if !self.syncs {
            return Ok(());
        }
        rustix::fs::fdatasync(&self.file).inspect_err(|_| self.sync_failed.store(true, Ordering::SeqCst))?;
        #[cfg(test)]
        if let Some((recorder, covered)) = record {
            recorder.push(Event::Sync { covered });
        }
        Ok(())
    }

    /// Returns the whole bytes of a range; what lies behind the end of the file is zero.
    pub fn bytes(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.read_at(&mut bytes, offset)?;
        Ok(bytes)
    }
}

fn signed(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}

/// Returns the bytes transferred; `None` if a signal came first.
fn transferred(result: libc::ssize_t) -> io::Result<Option<usize>> {
    if let Ok(count) = usize::try_from(result) {
        return Ok(Some(count));
    }
    let error = io::Error::last_os_error();
    match error.kind() {
        io::ErrorKind::Interrupted => Ok(None),
        _ => Err(error),
    }
}
