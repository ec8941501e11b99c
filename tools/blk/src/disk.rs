//! Images: what a disk is configured as, opening it, its size and its lock.
//!
//! [`Disk::open`] refuses what cannot work with a message that names the file. A lock on the open file description
//! keeps two writers apart. Requests that the kernel still runs for a dead daemon hold that description, so the lock
//! is also the proof that they have ended: [`OpenOptions::wait`].

use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::control::Control;
use crate::engine::IoKind;
use crate::image::file::RawFile;
use crate::image::lock::lock;
use crate::image::qcow2::Qcow2Image;
use crate::image::synthetic::Synthetic;
use crate::image::{Image, ImageRef};
use crate::memory::IoVec;
use crate::mirror::Mirror;
use crate::remote::{self, Blocking, Remembered, Remote};
use crate::request::Limits;
use crate::virtio::{SECTOR_SIZE, VIRTIO_BLK_ID_BYTES};

/// How a disk's I/O is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum EngineKind {
    /// The kernel's io_uring.
    #[default]
    #[serde(rename = "io_uring")]
    IoUring,
    /// A pool of threads.
    #[serde(rename = "threads")]
    Threads,
}

/// What the file is. Only the zone file says: a guest could write any header onto its disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The file's bytes are the disk's.
    #[default]
    Raw,
    /// QEMU's format, with backing files.
    Qcow2,
}

/// What the host's page cache is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostCache {
    /// Nothing: O_DIRECT, where the file takes requests at any sector. Elsewhere as [`Self::Writeback`].
    #[default]
    None,
    /// Reads and writes go through it; only flushes wait for the device.
    Writeback,
}

/// A disk as a zone file describes it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Image file or block device; `null:SIZE` and `zero:SIZE` are disks without storage ([`Synthetic`]).
    pub path: PathBuf,
    /// What the file is.
    #[serde(default)]
    pub format: Format,
    /// The guest may not write.
    #[serde(default)]
    pub readonly: bool,
    /// What GET_ID answers: up to 20 bytes.
    #[serde(default)]
    pub serial: String,
    /// How I/O is done.
    #[serde(default)]
    pub engine: EngineKind,
    /// How the host caches; a qcow2 image always goes through its cache.
    #[serde(default)]
    pub cache: HostCache,
}

/// How to open, beside what the zone file says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpenOptions {
    /// Names the disk's user across restarts of the daemon, e.g. a number made of zone and slot. Readers share a
    /// lock, but two of the same owner exclude each other, so that a read-only disk is not taken over too early.
    pub owner: Option<u64>,
    /// How long to wait for a lock that another holds.
    pub wait: Duration,
    /// What a guest knows already of a disk that another process serves: with it, one whose server is not there is opened
    /// all the same.
    pub known: Option<Remembered>,
}

/// Why a disk cannot be opened. Each message names the file.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A system call failed.
    #[error("disk image {path}: cannot {action}: {source}")]
    Io {
        /// The image.
        path: PathBuf,
        /// What was attempted.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// Neither file nor block device.
    #[error("disk image {path}: is a {found}, expected a raw image file or a block device")]
    Kind {
        /// The image.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// A size that is no number of sectors.
    #[error("disk image {path}: size {size} bytes, expected a multiple of 512, at least 512")]
    Size {
        /// The image.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// A qcow2 image that is damaged, or has what is not supported.
    #[error("disk image {path}: cannot be used as qcow2: {reason}")]
    Qcow2 {
        /// The image, or the file of its chain.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A disk without storage, of no size.
    #[error("disk {path}: size \"{size}\", expected a number of bytes, which may end in K, M, G or T")]
    SyntheticSize {
        /// As configured.
        path: PathBuf,
        /// What should be a size.
        size: String,
    },
    /// A disk of another process that is not there, or cannot be used.
    #[error("disk served at {path}: {reason}")]
    Remote {
        /// The socket.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Someone else has it open.
    #[error("disk image {path}: in use by another zone or program, expected {expected}")]
    Locked {
        /// The image.
        path: PathBuf,
        /// What would be allowed.
        expected: &'static str,
    },
    /// A serial that does not fit.
    #[error("disk image {path}: serial \"{serial}\" has {} bytes, expected up to 20", serial.len())]
    Serial {
        /// The image.
        path: PathBuf,
        /// As configured.
        serial: String,
    },
}

/// An open disk.
#[derive(Debug)]
pub struct Disk {
    image: Image,
    config: DiskConfig,
    serial: [u8; VIRTIO_BLK_ID_BYTES],
    capacity: AtomicU64,
    sync_failed: AtomicBool,
    control: Control,
}

impl Disk {
    /// Opens and locks the image; fails at once if it is in use.
    pub fn open(config: &DiskConfig) -> Result<Arc<Self>, DiskError> {
        Self::open_with(config, &OpenOptions::default())
    }

    /// Opens and locks the image.
    pub fn open_with(config: &DiskConfig, options: &OpenOptions) -> Result<Arc<Self>, DiskError> {
        let path = &config.path;
        let serial = serial(config)?;
        let deadline = Instant::now().checked_add(options.wait);
        let open = || open_locked(path, config.readonly, options.owner, deadline);
        if let Some(socket) = remote::socket(path) {
            return Self::connect(config, serial, socket, options.known);
        }
        let image = match (config.format, Synthetic::parse(path)) {
            (Format::Raw, Some(Ok(synthetic))) => Image::Synthetic(synthetic),
            (Format::Raw, Some(Err(size))) => {
                let path = path.clone();
                return Err(DiskError::SyntheticSize { path, size });
            }
            (Format::Raw, None) => {
                let direct = config.cache == HostCache::None;
                Image::Raw(RawFile::new(open()?, direct).map_err(failed(path, "examine it"))?)
            }
            (Format::Qcow2, _) => {
                // Backing files are shared by readers; a writer of one would change the disk underneath.
                let below = |path: &Path| open_locked(path, true, None, deadline);
                Image::Qcow2(Box::new(Qcow2Image::open(
                    path,
                    open()?,
                    config.readonly,
                    &below,
                )?))
            }
        };
        Self::new(image, config, serial)
    }

    /// Around an image, whose size must be a disk's.
    fn new(
        image: Image,
        config: &DiskConfig,
        serial: [u8; VIRTIO_BLK_ID_BYTES],
    ) -> Result<Arc<Self>, DiskError> {
        let disk = Self {
            image,
            config: config.clone(),
            serial,
            capacity: AtomicU64::new(0),
            sync_failed: AtomicBool::new(false),
            control: Control::default(),
        };
        disk.reread_capacity()?;
        Ok(Arc::new(disk))
    }

    /// A disk that another process serves.
    fn connect(
        config: &DiskConfig,
        serial: [u8; VIRTIO_BLK_ID_BYTES],
        socket: &Path,
        known: Option<Remembered>,
    ) -> Result<Arc<Self>, DiskError> {
        let refused = |reason| DiskError::Remote {
            path: socket.to_owned(),
            reason,
        };
        let remote = remote::connect(socket, known).map_err(refused)?;
        if remote.is_readonly() && !config.readonly {
            return Err(refused(
                "the server's disk is read-only, expected readonly = true or a disk that can be written"
                    .into(),
            ));
        }
        Self::new(Image::Remote(remote), config, serial)
    }

    /// The disk that a mirror's source is, by way of the mirror.
    #[must_use]
    pub fn mirrored(mirror: Arc<Mirror>) -> Arc<Self> {
        let source = mirror.source();
        Arc::new(Self {
            config: source.config.clone(),
            serial: source.serial,
            capacity: AtomicU64::new(source.capacity()),
            sync_failed: AtomicBool::new(source.sync_failed()),
            control: Control::default(),
            image: Image::Remote(mirror),
        })
    }

    /// Somebody else's disk.
    #[cfg(test)]
    pub(crate) fn of_remote(remote: Arc<dyn Remote>) -> Arc<Self> {
        Arc::new(Self {
            capacity: AtomicU64::new(remote.size() / SECTOR_SIZE),
            image: Image::Remote(remote),
            config: DiskConfig::default(),
            serial: [0; VIRTIO_BLK_ID_BYTES],
            sync_failed: AtomicBool::new(false),
            control: Control::default(),
        })
    }

    /// Does something to the image on the calling thread, to its end.
    ///
    /// # Errors
    /// What the system said.
    pub fn perform(&self, what: Blocking<'_>, offset: u64) -> io::Result<()> {
        if let Some(remote) = self.remote() {
            return remote.perform(what, offset);
        }
        let (kind, len) = match what {
            Blocking::Read(bytes) => return self.perform_transfer(IoKind::Read, IoVec::of(bytes), offset),
            Blocking::Write(bytes, durable) => {
                let kind = if durable {
                    IoKind::WriteDurable
                } else {
                    IoKind::Write
                };
                return self.perform_transfer(kind, IoVec::reading(bytes), offset);
            }
            Blocking::Sync => (IoKind::Sync, 0),
            Blocking::Zero { len, unmap } => (IoKind::WriteZeroes { unmap }, len),
            Blocking::Discard { len } => (IoKind::Discard, len),
        };
        // SAFETY: there are no buffers.
        unsafe { self.image.run(kind, &[], offset, len) }.map(drop)
    }

    fn perform_transfer(&self, kind: IoKind, bytes: IoVec, offset: u64) -> io::Result<()> {
        let (mut rest, mut offset) = (bytes, offset);
        let mut interrupted = 0;
        while !rest.is_empty() {
            let len = rest.len() as u64;
            // SAFETY: part of a slice that the caller has borrowed, mutably if it is written to.
            match unsafe { self.image.run(kind, &[rest], offset, len) } {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(moved) => {
                    rest = rest.behind(moved);
                    offset += moved as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted && interrupted < 100 => {
                    interrupted += 1;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// A drive without a medium: of capacity 0, so that each transfer fails, until another disk takes its place.
    #[must_use]
    pub fn absent() -> Arc<Self> {
        Arc::new(Self {
            image: Image::Synthetic(Synthetic::EMPTY),
            config: DiskConfig::default(),
            serial: [0; VIRTIO_BLK_ID_BYTES],
            capacity: AtomicU64::new(0),
            sync_failed: AtomicBool::new(false),
            control: Control::default(),
        })
    }

    /// In the place of a device that is closed, or cannot be opened, until another disk takes its place: of this shape, and
    /// its queues start nothing.
    ///
    /// # Errors
    /// The configuration is wrong, or the shape is no disk's.
    pub fn released(config: &DiskConfig, shape: Remembered) -> Result<Arc<Self>, DiskError> {
        Self::new(Image::Released(shape), config, serial(config)?)
    }

    /// Whether it is one of [`Self::released`].
    #[must_use]
    pub fn is_released(&self) -> bool {
        matches!(self.image, Image::Released(_))
    }

    /// Makes the image this long, a number of sectors, and takes that as the capacity. Of a block device the size
    /// cannot be changed, and a qcow2 image only grows. The transport must be told of the new capacity.
    pub fn set_size(&self, bytes: u64) -> Result<(), DiskError> {
        let changed = self.image.set_size(bytes);
        changed.map_err(failed(&self.config.path, "change its size"))?;
        self.reread_capacity().map(drop)
    }

    /// What it was opened as.
    #[must_use]
    pub fn config(&self) -> &DiskConfig {
        &self.config
    }

    /// Sectors of 512 bytes.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }

    /// Looks at the image's size again: `true` if the capacity has changed. The transport must be told then, see
    /// [`crate::device::capacity`]. A size that is no disk's is an error, and the capacity stays as it was.
    pub fn reread_capacity(&self) -> Result<bool, DiskError> {
        let path = &self.config.path;
        let size = self.image.size().map_err(failed(path, "find its size"))?;
        if size == 0 || !size.is_multiple_of(SECTOR_SIZE) {
            return Err(DiskError::Size {
                path: path.clone(),
                size,
            });
        }
        let capacity = size / SECTOR_SIZE;
        Ok(self.capacity.swap(capacity, Ordering::Relaxed) != capacity)
    }

    /// What may be changed while it is in use.
    #[must_use]
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Whether it is a block device.
    #[must_use]
    pub fn is_device(&self) -> bool {
        self.image.raw().is_some_and(RawFile::is_device)
    }

    /// The other process's disk, if it is one.
    #[must_use]
    pub fn remote(&self) -> Option<&Arc<dyn Remote>> {
        match &self.image {
            Image::Remote(remote) => Some(remote),
            _ => None,
        }
    }

    /// How often something that [`Self::perform`] wrote may have been lost, with a server that went.
    #[must_use]
    pub fn losses(&self) -> u64 {
        self.remote().map_or(0, |remote| remote.losses())
    }

    /// Bytes of a logical block of the backing device; 512 for a file.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        if let Some(remote) = self.remote() {
            return remote.block_size();
        }
        if let Image::Released(released) = &self.image {
            return released.block_size;
        }
        self.image.raw().map_or(SECTOR_SIZE as u32, RawFile::block_size)
    }

    /// Whether I/O is a copy in memory at most, and waits for no device.
    #[must_use]
    pub fn is_memory(&self) -> bool {
        self.image.is_memory()
    }

    /// The serial, NUL-padded.
    #[must_use]
    pub fn serial(&self) -> &[u8; VIRTIO_BLK_ID_BYTES] {
        &self.serial
    }

    /// What limits requests now.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            capacity: self.capacity(),
            readonly: self.config.readonly,
        }
    }

    /// Names the image for an engine's operations, as long as the disk lives.
    #[must_use]
    pub fn image(&self) -> ImageRef {
        ImageRef::new(&self.image)
    }

    /// The file or device whose bytes are the disk's, if there is one, open as long as the disk.
    #[must_use]
    pub fn raw(&self) -> Option<&RawFile> {
        self.image.raw()
    }

    /// The descriptor of [`Self::raw`]; -1 if there is none.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.image.raw().map_or(-1, RawFile::fd)
    }

    /// Whether an `fdatasync` failed. The kernel reports such an error once and drops the pages, so nothing that was
    /// written before can be called durable any more, until the image is opened again.
    #[must_use]
    pub fn sync_failed(&self) -> bool {
        self.sync_failed.load(Ordering::Relaxed)
    }

    /// Remembers that an `fdatasync` failed.
    pub fn set_sync_failed(&self) {
        self.sync_failed.store(true, Ordering::Relaxed);
    }
}

fn failed<'a>(path: &'a Path, action: &'static str) -> impl Fn(io::Error) -> DiskError + 'a {
    move |source| DiskError::Io {
        path: path.to_owned(),
        action,
        source,
    }
}

fn serial(config: &DiskConfig) -> Result<[u8; VIRTIO_BLK_ID_BYTES], DiskError> {
    let bytes = config.serial.as_bytes();
    let mut serial = [0; VIRTIO_BLK_ID_BYTES];
    match serial.get_mut(..bytes.len()) {
        Some(head) => head.copy_from_slice(bytes),
        None => {
            return Err(DiskError::Serial {
                path: config.path.clone(),
                serial: config.serial.clone(),
            });
        }
    }
    Ok(serial)
}

/// Opens a file or block device and locks it, waiting for another's lock until the deadline.
fn open_locked(
    path: &Path,
    readonly: bool,
    owner: Option<u64>,
    deadline: Option<Instant>,
) -> Result<File, DiskError> {
    // Before the open, which would block on a pipe.
    let metadata = crate::opener::metadata(path).map_err(failed(path, "open it"))?;
    let is_device = check_kind(path, &metadata)?;
    let file = loop {
        let attempt = open_file(path, readonly, is_device).and_then(|file| {
            lock(&file, readonly, owner)?;
            Ok(file)
        });
        match attempt {
            Ok(file) => break file,
            Err(error) if !is_busy(&error) => return Err(failed(path, "open it")(error)),
            Err(_) if deadline.is_none_or(|deadline| Instant::now() < deadline) => {
                thread::sleep(Duration::from_millis(2))
            }
            Err(_) => {
                let expected = if readonly {
                    "no writer beside a reader"
                } else {
                    "no other user beside a writer"
                };
                return Err(DiskError::Locked {
                    path: path.to_owned(),
                    expected,
                });
            }
        }
    };
    check_kind(path, &file.metadata().map_err(failed(path, "examine it"))?)?;
    Ok(file)
}

/// Whether it is a block device; an error if it is neither that nor a file.
fn check_kind(path: &Path, metadata: &std::fs::Metadata) -> Result<bool, DiskError> {
    let kind = metadata.file_type();
    let found = match () {
        () if kind.is_file() => return Ok(false),
        () if kind.is_block_device() => return Ok(true),
        () if kind.is_dir() => "directory",
        () if kind.is_char_device() => "character device",
        () if kind.is_fifo() => "pipe",
        () if kind.is_socket() => "socket",
        () => "file of another kind",
    };
    Err(DiskError::Kind {
        path: path.to_owned(),
        found,
    })
}

fn open_file(path: &Path, readonly: bool, is_device: bool) -> io::Result<File> {
    // O_EXCL without O_CREAT refuses a block device that is mounted or held by another exclusive user.
    let exclusive = if is_device && !readonly { libc::O_EXCL } else { 0 };
    crate::opener::open(path, !readonly, exclusive)
}

fn is_busy(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAGAIN | libc::EACCES | libc::EBUSY)
    ) && !is_permission(error)
}

/// EACCES is a permission when opening, a conflict on some file systems when locking; only the latter is retried.
fn is_permission(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EACCES)
}
