//! Images: what a disk is configured as, opening it, its size and its lock.
//!
//! [`Disk::open`] refuses what cannot work with a message that names the file. A lock on the open file description
//! keeps two writers apart. Requests that the kernel still runs for a dead daemon hold that description, so the lock
//! is also the proof that they have ended: [`OpenOptions::wait`].

use std::fs::{File, OpenOptions as FileOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::control::Control;
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

/// A disk as a zone file describes it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Raw image file or block device.
    pub path: PathBuf,
    /// The guest may not write.
    #[serde(default)]
    pub readonly: bool,
    /// What GET_ID answers: up to 20 bytes.
    #[serde(default)]
    pub serial: String,
    /// How I/O is done.
    #[serde(default)]
    pub engine: EngineKind,
}

/// How to open, beside what the zone file says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpenOptions {
    /// Names the disk's user across restarts of the daemon, e.g. a number made of zone and slot. Readers share a
    /// lock, but two of the same owner exclude each other, so that a read-only disk is not taken over too early.
    pub owner: Option<u64>,
    /// How long to wait for a lock that another holds.
    pub wait: Duration,
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

/// An open image.
#[derive(Debug)]
pub struct Disk {
    file: File,
    config: DiskConfig,
    serial: [u8; VIRTIO_BLK_ID_BYTES],
    capacity: AtomicU64,
    block_size: u32,
    memory: bool,
    device: bool,
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
        let io = |action| {
            move |source| DiskError::Io {
                path: config.path.clone(),
                action,
                source,
            }
        };
        let bytes = config.serial.as_bytes();
        let mut serial = [0; VIRTIO_BLK_ID_BYTES];
        match serial.get_mut(..bytes.len()) {
            Some(head) => head.copy_from_slice(bytes),
            None => {
                return Err(DiskError::Serial {
                    path: path.clone(),
                    serial: config.serial.clone(),
                });
            }
        }
        // Before the open, which would block on a pipe.
        let is_device = check_kind(path, &std::fs::metadata(path).map_err(io("open it"))?)?;
        let deadline = Instant::now().checked_add(options.wait);
        let mut file = loop {
            let attempt = open_file(path, config.readonly, is_device).and_then(|file| {
                lock(&file, config.readonly, options.owner)?;
                Ok(file)
            });
            match attempt {
                Ok(file) => break file,
                Err(error) if !is_busy(&error) => return Err(io("open it")(error)),
                Err(_) if deadline.is_none_or(|deadline| Instant::now() < deadline) => {
                    thread::sleep(Duration::from_millis(2))
                }
                Err(_) => {
                    let expected = if config.readonly {
                        "no writer beside a reader"
                    } else {
                        "no other user beside a writer"
                    };
                    return Err(DiskError::Locked {
                        path: path.clone(),
                        expected,
                    });
                }
            }
        };
        check_kind(path, &file.metadata().map_err(io("examine it"))?)?;
        let size = file.seek(SeekFrom::End(0)).map_err(io("find its size"))?;
        if size == 0 || !size.is_multiple_of(SECTOR_SIZE) {
            return Err(DiskError::Size {
                path: path.clone(),
                size,
            });
        }
        let block_size = if is_device {
            logical_block_size(&file).map_err(io("find its block size"))?
        } else {
            SECTOR_SIZE as u32
        };
        let memory = !is_device && is_in_memory(&file).map_err(io("examine its file system"))?;
        Ok(Arc::new(Self {
            file,
            config: config.clone(),
            serial,
            capacity: AtomicU64::new(size / SECTOR_SIZE),
            block_size,
            memory,
            device: is_device,
            sync_failed: AtomicBool::new(false),
            control: Control::default(),
        }))
    }

    /// A drive without a medium: of capacity 0, so that each transfer fails, until another disk takes its place.
    pub fn absent() -> Result<Arc<Self>, DiskError> {
        let path = PathBuf::from("/dev/null");
        let file = open_file(&path, false, false).map_err(|source| DiskError::Io {
            path: path.clone(),
            action: "open it",
            source,
        })?;
        Ok(Arc::new(Self {
            file,
            config: DiskConfig {
                path,
                ..DiskConfig::default()
            },
            serial: [0; VIRTIO_BLK_ID_BYTES],
            capacity: AtomicU64::new(0),
            block_size: SECTOR_SIZE as u32,
            memory: false,
            device: false,
            sync_failed: AtomicBool::new(false),
            control: Control::default(),
        }))
    }

    /// Makes the image's file this long, a number of sectors, and takes that as the capacity. Of a block device the
    /// size cannot be changed. The transport must be told of the new capacity.
    pub fn set_size(&self, bytes: u64) -> Result<(), DiskError> {
        let failed = |source| DiskError::Io {
            path: self.config.path.clone(),
            action: "change its size",
            source,
        };
        self.file.set_len(bytes).map_err(failed)?;
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
        let size = (&self.file)
            .seek(SeekFrom::End(0))
            .map_err(|source| DiskError::Io {
                path: path.clone(),
                action: "find its size",
                source,
            })?;
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
        self.device
    }

    /// Bytes of a logical block of the backing device; 512 for a file.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Whether it is on a file system that lives in memory, where I/O is a copy and waits for no device.
    #[must_use]
    pub fn is_memory(&self) -> bool {
        self.memory
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

    /// The image's descriptor, open as long as the disk.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
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
    FileOptions::new()
        .read(true)
        .write(!readonly)
        .custom_flags(exclusive | libc::O_CLOEXEC)
        .open(path)
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

/// Bytes from here on are locked by owners; below is the image.
const OWNER_BASE: i64 = 1 << 62;

/// Writers lock everything; readers share the image's bytes, and their owner's byte.
pub(crate) fn lock(file: &File, readonly: bool, owner: Option<u64>) -> io::Result<()> {
    if !readonly {
        return set_lock(file, libc::F_WRLCK, 0, 0);
    }
    set_lock(file, libc::F_RDLCK, 0, OWNER_BASE)?;
    let Some(owner) = owner else { return Ok(()) };
    // A reader cannot hold a writer's lock, but may ask whether one would be granted.
    let byte = OWNER_BASE + (owner & (u64::MAX >> 3)) as i64;
    let mut query = flock(libc::F_WRLCK, byte, 1);
    fcntl(file, libc::F_OFD_GETLK, &mut query)?;
    if i32::from(query.l_type) != i32::from(libc::F_UNLCK as i16) {
        return Err(io::Error::from_raw_os_error(libc::EAGAIN));
    }
    set_lock(file, libc::F_RDLCK, byte, 1)
}

fn set_lock(file: &File, kind: libc::c_int, start: i64, len: i64) -> io::Result<()> {
    fcntl(file, libc::F_OFD_SETLK, &mut flock(kind, start, len))
}

fn flock(kind: libc::c_int, start: i64, len: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

fn fcntl(file: &File, command: libc::c_int, lock: &mut libc::flock) -> io::Result<()> {
    // SAFETY: both commands take a pointer to a `struct flock`, which outlives the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(lock)) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn logical_block_size(file: &File) -> io::Result<u32> {
    let mut size: libc::c_int = 0;
    // SAFETY: BLKSSZGET stores an `int` where the pointer says.
    match unsafe {
        libc::ioctl(
            file.as_raw_fd(),
            libc::BLKSSZGET as _,
            std::ptr::from_mut(&mut size),
        )
    } {
        -1 => Err(io::Error::last_os_error()),
        _ => u32::try_from(size).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

fn is_in_memory(file: &File) -> io::Result<bool> {
    let mut info = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: fstatfs fills the structure that the pointer names.
    if unsafe { libc::fstatfs(file.as_raw_fd(), info.as_mut_ptr()) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed, which is a valid value, then filled.
    let info = unsafe { info.assume_init() };
    // TMPFS_MAGIC and RAMFS_MAGIC of `linux/magic.h`; the field's type differs between C libraries.
    Ok(matches!(info.f_type, 0x0102_1994 | 0x8584_58f6))
}
