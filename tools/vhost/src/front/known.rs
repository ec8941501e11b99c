//! [`KnownDisk`]: a served disk as its guest knows it, independent of the server's state.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use ringblk::remote::KnownGeometry;

use super::connect::{DiskInfo, FrontError};
use super::log_limit::LogLimit;

/// Callback for a change of size.
pub type Resized = Box<dyn Fn() + Send + Sync>;

/// A served disk as its guest knows it.
pub struct KnownDisk {
    /// In bytes.
    size: AtomicU64,
    /// Bytes of a logical block.
    pub block_size: u32,
    /// The guest may not write.
    pub readonly: bool,
    resized: Mutex<Option<Resized>>,
}

impl KnownDisk {
    /// Makes one of this geometry.
    pub fn new(known: KnownGeometry) -> Self {
        Self {
            size: AtomicU64::new(known.size),
            block_size: known.block_size,
            readonly: known.readonly,
            resized: Mutex::default(),
        }
    }

    /// Returns the size in bytes.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    /// Registers the callback for a change of size, in place of the previous one.
    pub fn on_resize(&self, resized: Resized) {
        *self.resized.lock() = Some(resized);
    }

    /// Checks whether a server can serve the disk. The disk may have grown; a smaller one is not the disk
    /// that the guest has written to. Its blocks may be smaller: the guest's requests are whole blocks of
    /// that size, too.
    ///
    /// # Errors
    /// It cannot.
    pub fn check(&self, found: &DiskInfo) -> Result<(), FrontError> {
        let changed = |what, found, expected| {
            FrontError(format!(
                "the server says {what} is {found}, expected {expected}, which the guest knows"
            ))
        };
        let (size, block_size) = (self.size(), self.block_size);
        if found.size < size {
            return Err(changed("the size", found.size, size));
        }
        if found.block_size > block_size {
            return Err(changed("blk_size", found.block_size.into(), block_size.into()));
        }
        if found.readonly && !self.readonly {
            return Err(FrontError(
                "the server's disk is read-only, expected one that the guest can write, as it knows it"
                    .into(),
            ));
        }
        Ok(())
    }

    /// Sets the size that the server reports, and calls back if it has changed.
    pub fn resize(&self, path: &Path, size: u64, log: &LogLimit) {
        let before = self.size.swap(size, Ordering::Relaxed);
        if before == size {
            return;
        }
        if log.allows() {
            tracing::info!(path = %path.display(), before, size, "the size of the served disk has changed");
        }
        if let Some(resized) = &*self.resized.lock() {
            resized();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use ringblk::remote::KnownGeometry;

    use super::KnownDisk;
    use crate::front::connect::DiskInfo;
    use crate::front::log_limit::LogLimit;

    #[test]
    fn a_server_may_only_have_grown() {
        let known = KnownDisk::new(KnownGeometry {
            size: 8192,
            block_size: 4096,
            readonly: false,
        });
        let found = |size, block_size, readonly| {
            known.check(&DiskInfo {
                size,
                block_size,
                readonly,
                flush: true,
                discard: 0,
                write_zeroes: 0,
                segments: 1,
                queues: 1,
                features: 0,
            })
        };
        assert!(found(8192, 4096, false).is_ok() && found(16384, 512, false).is_ok());
        for refused in [
            found(4096, 4096, false),
            found(8192, 8192, false),
            found(8192, 4096, true),
        ] {
            assert!(refused.is_err());
        }
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        known.on_resize(Box::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        }));
        for size in [8192, 16384, 16384] {
            known.resize(Path::new("sock"), size, &LogLimit::default());
        }
        assert_eq!((known.size(), calls.load(Ordering::Relaxed)), (16384, 1));
    }
}
