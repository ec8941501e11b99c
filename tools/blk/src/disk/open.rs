//! Opening disks.
//!
//! [`Disk::open`] refuses what cannot work with a message that names the image. [`OpenContext`] is what
//! opening needs of its surroundings: who opens files, and who finds remote disks.
//!
//! A file or block device is locked. The lock is on the open file description and keeps two writers apart.
//! Requests that the kernel still runs for a dead daemon hold that description, so a granted lock also proves
//! that they have ended.

use std::fs::{File, Metadata};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, thread};

use super::handle::Disk;
use super::{DiskConfig, Format, HostCache};
use crate::error::{DiskError, failed};
use crate::image::Image;
use crate::image::file::RawFile;
use crate::image::lock::lock;
use crate::image::magic::detect;
use crate::image::qcow2::Qcow2Image;
use crate::image::synthetic::Synthetic;
use crate::opener::{LocalOpener, Opener};
use crate::remote::{self, Connector, KnownGeometry, RemoteDisk};

/// What opening a disk needs of its surroundings. The default opens files with this process's own rights and
/// knows no remote disks.
#[derive(Clone)]
pub struct OpenContext {
    /// Opens image files.
    pub opener: Arc<dyn Opener>,
    /// Finds remote disks; without it they cannot be opened.
    pub connector: Option<Arc<dyn Connector>>,
}

impl Default for OpenContext {
    fn default() -> Self {
        Self {
            opener: Arc::new(LocalOpener),
            connector: None,
        }
    }
}

/// How to open a disk, beside its configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpenOptions {
    /// Names the disk's user across restarts of the daemon, e.g. a number made of zone and slot. Readers
    /// share a lock, but two of the same owner exclude each other, so that a read-only disk is not taken over
    /// too early.
    pub owner: Option<u64>,
    /// How long to wait for a lock that another process holds.
    pub wait: Duration,
    /// The geometry that the guest knows: with it, a remote disk is opened even if its server is down.
    pub known: Option<KnownGeometry>,
    /// Nobody has said that the format is raw: an image that begins like one of another format is refused.
    pub format_unstated: bool,
}

impl Disk {
    /// Opens and locks the image with this process's own rights; fails at once if it is locked.
    ///
    /// # Errors
    /// It cannot be used, or is locked.
    pub fn open(config: &DiskConfig) -> Result<Arc<Self>, DiskError> {
        Self::open_with(config, &OpenContext::default(), &OpenOptions::default())
    }

    /// Opens and locks the image.
    ///
    /// # Errors
    /// It cannot be used, or is still locked after [`OpenOptions::wait`].
    pub fn open_with(
        config: &DiskConfig,
        context: &OpenContext,
        options: &OpenOptions,
    ) -> Result<Arc<Self>, DiskError> {
        let path = &config.path;
        config.serial_bytes()?;
        if let Some(socket) = remote::socket(path) {
            let remote = connect(config, context, socket, options.known)?;
            return Self::of_remote(remote, config.clone(), 0).measured();
        }
        let deadline = Instant::now().checked_add(options.wait);
        let opener = &*context.opener;
        let open = || open_locked(opener, path, config.readonly, options.owner, deadline);
        let image = match (config.format, Synthetic::parse(path)) {
            (Format::Raw, Some(Ok(synthetic))) => Image::Synthetic(synthetic),
            (Format::Raw, Some(Err(size))) => {
                let path = path.clone();
                return Err(DiskError::SyntheticSize { path, size });
            }
            (Format::Raw, None) => {
                let (file, direct) = (open()?, config.cache == HostCache::None);
                if options.format_unstated
                    && let Some(found) = detect(&file).map_err(failed(path, "read it"))?
                {
                    let path = path.clone();
                    return Err(DiskError::Unstated { path, found });
                }
                let file = RawFile::new(file, direct).map_err(failed(path, "examine it"))?;
                if !config.readonly {
                    file.complete_sector()
                        .map_err(failed(path, "complete its last sector"))?;
                }
                Image::Raw(file)
            }
            (Format::Qcow2, _) => {
                // Readers share backing files; a writer of one would change the disk.
                let backing = |path: &Path| open_locked(opener, path, true, None, deadline);
                let image = Qcow2Image::open(path, open()?, config.readonly, &backing)?;
                Image::Qcow2(Box::new(image))
            }
        };
        Self::of(image, config.clone(), 0).measured()
    }

    /// Returns a disk in place of a device that is closed or cannot be opened, until another disk takes its
    /// place: it has this geometry, and its queues start nothing.
    ///
    /// # Errors
    /// The serial is too long, or the size is not a number of sectors.
    pub fn closed(config: &DiskConfig, known: KnownGeometry) -> Result<Arc<Self>, DiskError> {
        config.serial_bytes()?;
        Self::of(Image::Closed(known), config.clone(), 0).measured()
    }
}

/// Connects to a remote disk; if its server is down and the geometry is known, the disk's requests wait for
/// the server.
fn connect(
    config: &DiskConfig,
    context: &OpenContext,
    socket: &Path,
    known: Option<KnownGeometry>,
) -> Result<Arc<dyn RemoteDisk>, DiskError> {
    let refused = |reason| DiskError::Remote {
        path: socket.to_owned(),
        reason,
    };
    let Some(connector) = &context.connector else {
        return Err(refused("this program has no vhost-user".into()));
    };
    let remote = match (connector.connect(socket), known) {
        (Err(error), Some(known)) => {
            let path = socket.display();
            tracing::warn!(%path, %error, "the disk's server cannot be used: its requests wait");
            connector.connect_later(socket, known)
        }
        (found, _) => found.map_err(refused)?,
    };
    if remote.is_readonly() && !config.readonly {
        return Err(refused(
            "the server's disk is read-only, expected readonly = true or a disk that can be written".into(),
        ));
    }
    Ok(remote)
}

/// Time between two attempts to get a lock.
const RETRY_INTERVAL: Duration = Duration::from_millis(2);

/// Opens a file or block device and locks it for this owner. Retries while it is locked, until the deadline;
/// `None` is no deadline.
///
/// # Errors
/// It is locked, cannot be opened, or is neither a file nor a block device.
pub fn open_locked(
    opener: &dyn Opener,
    path: &Path,
    readonly: bool,
    owner: Option<u64>,
    deadline: Option<Instant>,
) -> Result<File, DiskError> {
    // Before the open, which would block on a pipe.
    let is_device = check_kind(path, &opener.metadata(path).map_err(failed(path, "open it"))?)?;
    // O_EXCL without O_CREAT refuses a block device that is mounted or held by another exclusive user.
    let exclusive = if is_device && !readonly { libc::O_EXCL } else { 0 };
    let file = loop {
        let attempt = opener.open(path, !readonly, exclusive).and_then(|file| {
            lock(&file, readonly, owner)?;
            Ok(file)
        });
        match attempt {
            Ok(file) => break file,
            Err(error) if !is_busy(&error) => return Err(failed(path, "open it")(error)),
            Err(_) if deadline.is_none_or(|deadline| Instant::now() < deadline) => {
                thread::sleep(RETRY_INTERVAL)
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
    // The path may have been replaced since.
    check_kind(path, &file.metadata().map_err(failed(path, "examine it"))?)?;
    Ok(file)
}

/// Returns whether it is a block device.
///
/// # Errors
/// It is neither a file nor a block device.
fn check_kind(path: &Path, metadata: &Metadata) -> Result<bool, DiskError> {
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

/// Returns whether another attempt may succeed. EACCES is not among these: it is a conflict only where a file
/// system reports a lock so, and otherwise a missing permission.
fn is_busy(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io;
    use std::path::{Path, PathBuf};
    use std::sync::{Arc, Mutex};

    use super::{OpenContext, OpenOptions};
    use crate::disk::{Disk, DiskConfig};
    use crate::opener::{LocalOpener, Opener};
    use crate::remote::{Connector, KnownGeometry, RemoteDisk};

    /// Records what it is asked for.
    #[derive(Default)]
    struct Recorder(Mutex<Vec<PathBuf>>);

    impl Recorder {
        fn take(&self) -> Vec<PathBuf> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    impl Opener for Recorder {
        fn open(&self, path: &Path, write: bool, flags: i32) -> io::Result<File> {
            self.0.lock().unwrap().push(path.into());
            LocalOpener.open(path, write, flags)
        }
    }

    impl Connector for Recorder {
        fn connect(&self, path: &Path) -> Result<Arc<dyn RemoteDisk>, String> {
            self.0.lock().unwrap().push(path.into());
            Err("it is down".into())
        }

        fn connect_later(&self, _: &Path, _: KnownGeometry) -> Arc<dyn RemoteDisk> {
            panic!("no geometry is known")
        }
    }

    #[test]
    fn the_context_opens_and_connects() {
        let recorder = Arc::new(Recorder::default());
        let context = OpenContext {
            opener: recorder.clone(),
            connector: Some(recorder.clone()),
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(512).unwrap();
        let config = |path: &Path| DiskConfig {
            path: path.into(),
            ..DiskConfig::default()
        };
        let options = OpenOptions::default();
        Disk::open_with(&config(file.path()), &context, &options).unwrap();
        assert_eq!(recorder.take(), [file.path(); 2], "its metadata, then the file");
        let served = config(Path::new("vhost-user:/run/s"));
        let error = Disk::open_with(&served, &context, &options).unwrap_err();
        assert_eq!(error.to_string(), "disk served at /run/s: it is down");
        assert_eq!(recorder.take(), [Path::new("/run/s")]);
        let error = Disk::open(&served).unwrap_err().to_string();
        assert!(error.contains("has no vhost-user"), "{error}");
        assert!(recorder.take().is_empty());
    }
}
