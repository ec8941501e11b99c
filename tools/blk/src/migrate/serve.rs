//! The guest's requests during a migration: they go to the source, and what changes it also to the target.

use std::fs::File;
use std::io;
use std::sync::Arc;

use ringvirtio::memory::GuestRam;

use super::migration::{Migration, zero};
use crate::disk::Disk;
use crate::engine::threads::Threads;
use crate::image::BlockingIo;
use crate::image::remote::RemoteImage;
use crate::remote::{RemoteDisk, RemoteEngine};

impl Migration {
    /// Returns the disk that takes the source's place until the migration has ended.
    #[must_use]
    pub fn disk(self: &Arc<Self>) -> Arc<Disk> {
        self.source().served_by(self.clone())
    }

    /// Records a failed `fdatasync` at the source, which may outlive the migration: the kernel reports it
    /// once.
    fn record_failed_sync(&self, done: io::Result<()>) -> io::Result<()> {
        let transient = [libc::EINTR, libc::EAGAIN];
        if let Err(error) = &done
            && !error.raw_os_error().is_some_and(|code| transient.contains(&code))
        {
            self.source().set_sync_failed();
        }
        done
    }

    /// Repeats at the target what was done at the source, if the target has these bytes already. The caller
    /// has locked their range.
    fn apply_to_target(&self, offset: u64, act: impl FnOnce(&Disk) -> io::Result<()>) {
        // A chunk that contains `offset` is not being copied: its range would be locked.
        if offset >= self.copied() || self.failure().is_some() {
            return;
        }
        if let Err(error) = act(self.target()) {
            self.fail(&error.to_string());
        }
    }
}

impl RemoteImage for Migration {
    fn size(&self) -> u64 {
        Self::size(self)
    }

    fn block_size(&self) -> u32 {
        self.source().block_size()
    }

    fn is_readonly(&self) -> bool {
        false
    }

    fn supports_write_zeroes(&self) -> bool {
        true
    }

    fn run_blocking(&self, what: BlockingIo<'_>, offset: u64) -> io::Result<()> {
        let source = self.source();
        match what {
            BlockingIo::Read(_) => source.run_blocking(what, offset),
            BlockingIo::Sync => self.record_failed_sync(source.run_blocking(what, offset)),
            BlockingIo::Write(bytes, durable) => {
                let _guard = self.ranges.lock(offset, bytes.len() as u64);
                let written = source.run_blocking(BlockingIo::Write(bytes, durable), offset);
                match written {
                    Err(error) if durable && error.raw_os_error() != Some(libc::ENOSPC) => {
                        return self.record_failed_sync(Err(error));
                    }
                    written => written?,
                }
                self.apply_to_target(offset, |target| {
                    target.run_blocking(BlockingIo::Write(bytes, false), offset)
                });
                Ok(())
            }
            BlockingIo::Zero { len, unmap } => {
                let _guard = self.ranges.lock(offset, len);
                source.run_blocking(what, offset)?;
                self.apply_to_target(offset, |target| zero(target, offset, len, unmap));
                Ok(())
            }
            BlockingIo::Discard { len } => {
                let _guard = self.ranges.lock(offset, len);
                match source.run_blocking(what, offset) {
                    // A discard is only a hint.
                    Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(()),
                    done => done?,
                }
                // Discarded bytes may read anything; zeroes make both disks equal.
                zero(source, offset, len, true)?;
                self.apply_to_target(offset, |target| zero(target, offset, len, true));
                Ok(())
            }
        }
    }
}

impl RemoteDisk for Migration {
    /// Does nothing: the size is constant.
    fn on_resize(&self, _resized: Box<dyn Fn() + Send + Sync>) {}

    fn start(&self, _ram: &Arc<GuestRam>) -> io::Result<Box<dyn RemoteEngine>> {
        Ok(Box::new(Threads::new()?))
    }
}

/// The engine of a migration: a thread pool of its own, so that a slow target delays no other disk.
impl RemoteEngine for Threads {
    fn event(&self) -> Arc<File> {
        Self::event(self).clone()
    }

    fn has_completions(&self) -> bool {
        Self::has_completions(self)
    }

    fn arm(&mut self) -> bool {
        Self::has_completions(self)
    }

    /// Returns `false`: threads access the buffers, so no operation can be dropped; each completes soon by
    /// itself.
    fn abandon(&mut self, _tag_base: u64) -> bool {
        false
    }
}
