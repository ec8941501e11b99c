//! [`Disk`]: an open disk: its image, size, serial, and whether a sync has failed; and I/O on the calling
//! thread, without an engine: what migration does with source and target.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::{fmt, io};

use ringvirtio::memory::IoVec;

use super::DiskConfig;
use crate::control::Control;
use crate::error::{DiskError, failed};
use crate::image::bounce::scatter;
use crate::image::file::RawFile;
use crate::image::synthetic::Synthetic;
use crate::image::{BlockingIo, Image, IoKind};
use crate::remote::RemoteDisk;
use crate::request::Limits;
use crate::virtio::{SECTOR_SIZE, VIRTIO_BLK_ID_BYTES};

/// An open disk.
pub struct Disk {
    image: Image,
    /// The same, if it is remote, with its engine.
    remote: Option<Arc<dyn RemoteDisk>>,
    config: DiskConfig,
    /// In sectors.
    capacity: AtomicU64,
    sync_failed: AtomicBool,
    loss_unreported: AtomicBool,
    control: Control,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Disk").field(&self.config.path).finish()
    }
}

impl Disk {
    pub(super) fn of(image: Image, config: DiskConfig, capacity: u64) -> Self {
        Self {
            image,
            remote: None,
            config,
            capacity: AtomicU64::new(capacity),
            sync_failed: AtomicBool::new(false),
            loss_unreported: AtomicBool::new(false),
            control: Control::default(),
        }
    }

    /// Returns a remote disk.
    pub(crate) fn of_remote(remote: Arc<dyn RemoteDisk>, config: DiskConfig, capacity: u64) -> Self {
        Self {
            remote: Some(remote.clone()),
            ..Self::of(Image::Remote(remote), config, capacity)
        }
    }

    /// Gives it the size that its image has.
    pub(super) fn measured(self) -> Result<Arc<Self>, DiskError> {
        self.reread_capacity()?;
        Ok(Arc::new(self))
    }

    /// Returns this disk with its I/O going through `remote`, which has the same contents.
    #[must_use]
    pub fn served_by(&self, remote: Arc<dyn RemoteDisk>) -> Arc<Self> {
        let disk = Self::of_remote(remote, self.config.clone(), self.capacity());
        disk.sync_failed.store(self.sync_failed(), Ordering::Relaxed);
        Arc::new(disk)
    }

    /// Returns a drive without a medium: its capacity is 0, so that every transfer fails, until another disk
    /// takes its place.
    pub fn absent() -> Arc<Self> {
        let none = Image::Synthetic(Synthetic::EMPTY);
        Arc::new(Self::of(none, DiskConfig::default(), 0))
    }

    /// Returns whether it is one of [`Self::closed`].
    pub fn is_closed(&self) -> bool {
        matches!(self.image, Image::Closed(_))
    }

    /// Returns the configuration that it was opened with.
    pub fn config(&self) -> &DiskConfig {
        &self.config
    }

    /// Returns the capacity in sectors of 512 bytes.
    pub fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }

    /// Changes the size of the image and the capacity. A block device cannot be resized so, and a qcow2 image
    /// only grows. The caller updates the configuration space, see [`crate::device::capacity`].
    ///
    /// # Errors
    /// The image cannot have this size, or it is not a number of sectors.
    pub fn set_size(&self, bytes: u64) -> Result<(), DiskError> {
        if !bytes.is_multiple_of(SECTOR_SIZE) {
            return Err(self.wrong_size(bytes));
        }
        let changed = self.image.set_size(bytes);
        changed.map_err(failed(&self.config.path, "change its size"))?;
        self.reread_capacity().map(drop)
    }

    fn wrong_size(&self, size: u64) -> DiskError {
        DiskError::Size {
            path: self.config.path.clone(),
            size,
        }
    }

    /// Reads the image's size again. A raw file that ends inside of a sector counts up to the end of it, as
    /// in QEMU. Returns whether the capacity has changed; the caller then updates the configuration space,
    /// see [`crate::device::capacity`].
    ///
    /// # Errors
    /// The size cannot be read, is 0, or is that of an image of another format and not a number of sectors;
    /// the capacity stays as it was.
    pub fn reread_capacity(&self) -> Result<bool, DiskError> {
        let path = &self.config.path;
        let size = self.image.size().map_err(failed(path, "find its size"))?;
        if size == 0 || (self.raw().is_none() && !size.is_multiple_of(SECTOR_SIZE)) {
            return Err(self.wrong_size(size));
        }
        let capacity = size.div_ceil(SECTOR_SIZE);
        Ok(self.capacity.swap(capacity, Ordering::Relaxed) != capacity)
    }

    /// Returns what can be changed while the disk is in use.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Returns whether it is a block device.
    #[must_use]
    pub fn is_device(&self) -> bool {
        self.raw().is_some_and(|file| file.device)
    }

    /// Returns the remote disk, if it is one.
    pub fn remote(&self) -> Option<&Arc<dyn RemoteDisk>> {
        self.remote.as_ref()
    }

    /// Returns how many times writes of [`Self::run_blocking`] may have been lost with a server that went
    /// down.
    #[must_use]
    pub fn write_losses(&self) -> u64 {
        self.remote().map_or(0, |remote| remote.write_losses())
    }

    /// Returns the size of a logical block in bytes: a device's own, 512 for a file.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        match &self.image {
            Image::Remote(remote) => remote.block_size(),
            Image::Closed(known) => known.block_size,
            image => image.raw().map_or(SECTOR_SIZE as u32, |file| file.block_size),
        }
    }

    /// Returns whether I/O is at most a copy in memory and never waits for a device.
    pub fn is_memory(&self) -> bool {
        self.image.is_memory()
    }

    /// Returns the serial, NUL-padded.
    pub fn serial(&self) -> [u8; VIRTIO_BLK_ID_BYTES] {
        // Its length was checked when the disk was opened.
        self.config.serial_bytes().unwrap_or_default()
    }

    /// Returns the limits that requests are checked against.
    pub fn limits(&self) -> Limits {
        Limits {
            capacity: self.capacity(),
            readonly: self.config.readonly,
        }
    }

    /// Returns the image, open as long as the disk.
    pub fn backing(&self) -> &Image {
        &self.image
    }

    /// Returns a reference to the image for an engine's operations, valid as long as the disk lives.
    pub fn image(&self) -> *const Image {
        &raw const self.image
    }

    /// Returns the file or device whose bytes are the disk's, if there is one.
    pub fn raw(&self) -> Option<&RawFile> {
        self.image.raw()
    }

    /// Returns whether `len` bytes at `offset` are what a file lacks of its last sector, which reads zero. A
    /// file that is only read is not extended.
    #[must_use]
    pub fn is_missing_tail(&self, offset: u64, len: u64) -> bool {
        let Some(Ok(size)) = self.raw().map(RawFile::size) else {
            return false;
        };
        let end = size.next_multiple_of(SECTOR_SIZE);
        // Else the file has been truncated.
        let last = self.capacity() * SECTOR_SIZE == end;
        last && offset >= size && len < SECTOR_SIZE && offset + len == end
    }

    /// Returns the descriptor of [`Self::raw`]; -1 if there is none.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.raw().map_or(-1, RawFile::fd)
    }

    /// Returns whether an `fdatasync` has failed. The kernel reports such an error once and drops the pages,
    /// so earlier writes cannot be called durable any more, until the image is opened again.
    pub fn sync_failed(&self) -> bool {
        self.sync_failed.load(Ordering::Relaxed)
    }

    /// Records that an `fdatasync` has failed.
    pub fn set_sync_failed(&self) {
        self.sync_failed.store(true, Ordering::Relaxed);
    }

    /// Returns whether completed requests may have been lost before the image was opened, by a failed sync of
    /// an earlier daemon's or before the device was opened again, and no FLUSH has said so yet.
    pub fn is_loss_unreported(&self) -> bool {
        self.loss_unreported.load(Ordering::Relaxed)
    }

    /// Records whether such a loss is still to be reported.
    pub fn set_loss_unreported(&self, unreported: bool) {
        self.loss_unreported.store(unreported, Ordering::Relaxed);
    }
}

/// Most interruptions of one transfer by signals before the error is returned.
const INTERRUPTIONS_MAX: usize = 100;

impl Disk {
    /// Runs an operation on the calling thread to its end.
    ///
    /// # Errors
    /// The system's error.
    pub fn run_blocking(&self, what: BlockingIo<'_>, offset: u64) -> io::Result<()> {
        if let Some(remote) = self.remote() {
            return remote.run_blocking(what, offset);
        }
        let (kind, len) = match what {
            BlockingIo::Read(bytes) => return self.transfer_all(IoKind::Read, IoVec::of(bytes), offset),
            BlockingIo::Write(bytes, durable) => {
                let kind = if durable {
                    IoKind::WriteDurable
                } else {
                    IoKind::Write
                };
                return self.transfer_all(kind, IoVec::reading(bytes), offset);
            }
            BlockingIo::Sync => (IoKind::Sync, 0),
            BlockingIo::Zero { len, unmap } => (IoKind::WriteZeroes { unmap }, len),
            BlockingIo::Discard { len } => (IoKind::Discard, len),
        };
        // SAFETY: there are no buffers.
        unsafe { self.backing().run(kind, &[], offset, len) }.map(drop)
    }

    fn transfer_all(&self, kind: IoKind, bytes: IoVec, offset: u64) -> io::Result<()> {
        let (mut rest, mut offset) = (bytes, offset);
        let mut interruptions = 0;
        while !rest.is_empty() {
            let len = rest.len() as u64;
            // SAFETY: part of a slice that the caller has borrowed, mutably if it is written to.
            match unsafe { self.backing().run(kind, &[rest], offset, len) } {
                Ok(0) if kind == IoKind::Read && self.is_missing_tail(offset, len) => {
                    // SAFETY: as above.
                    unsafe { scatter(&[0; SECTOR_SIZE as usize], &[rest], 0) };
                    return Ok(());
                }
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(transferred) => {
                    rest = rest.behind(transferred);
                    offset += transferred as u64;
                }
                Err(error)
                    if error.kind() == io::ErrorKind::Interrupted && interruptions < INTERRUPTIONS_MAX =>
                {
                    interruptions += 1;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
