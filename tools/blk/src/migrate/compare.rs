//! Comparing source and target, in passes from the beginning to the end.
//!
//! A difference fails the migration unless something explains it: a daemon that was killed with writes half
//! done, or a server that went down and may have lost what it had not made durable. Then the chunk is copied
//! again, and another pass follows in which nothing explains a difference any more.

use std::sync::atomic::Ordering;

use super::migration::{CHUNK, Migration, MigrationError, Step, part};
use crate::image::BlockingIo;
use crate::image::bounce::Bounce;

impl Migration {
    /// Makes the target durable, after everything is copied.
    ///
    /// # Errors
    /// As for [`Self::copy`].
    pub fn sync(&self) -> Result<(), MigrationError> {
        if let Err(error) = self.target().run_blocking(BlockingIo::Sync, 0) {
            self.fail(&error.to_string());
        }
        self.check()
    }

    /// Makes the target durable, after everything is compared and while nothing is in flight. Returns
    /// [`Step::More`] if something may have been lost since, so that both must be compared again.
    ///
    /// # Errors
    /// As for [`Self::copy`].
    pub fn seal(&self) -> Result<Step, MigrationError> {
        self.sync()?;
        Ok(if self.write_losses() == self.pass().losses {
            Step::End
        } else {
            Step::More
        })
    }

    /// Compares the chunk at `offset` and advances `offset`, or resets it to 0 if another pass must follow.
    ///
    /// # Errors
    /// As for [`Self::copy`], or the chunks differ and nothing explains it.
    pub fn verify(&self, offset: &mut u64) -> Result<Step, MigrationError> {
        self.check()?;
        let at = *offset;
        if at == 0 {
            let mut pass = self.pass();
            let losses = self.write_losses();
            pass.explained |= losses != pass.losses;
            (pass.losses, pass.recopied) = (losses, false);
        }
        let len = CHUNK.min(self.size().saturating_sub(at));
        if len == 0 {
            return self.end_pass(offset);
        }
        let (mut source, mut target) = (Bounce::new(len), Bounce::new(len));
        let _guard = self.ranges.lock(at, len);
        self.read_source(part(&mut source, len), at)?;
        let read = BlockingIo::Read(part(&mut target, len));
        if let Err(error) = self.target().run_blocking(read, at) {
            self.fail(&error.to_string());
        }
        self.check()?;
        if part(&mut source, len) != part(&mut target, len) {
            self.recopy(part(&mut source, len), at)?;
        }
        *offset = at + len;
        Ok(Step::More)
    }

    /// Returns the bytes that were copied again, after the first copy.
    pub fn recopied(&self) -> u64 {
        self.recopied.load(Ordering::Relaxed)
    }

    /// Copies a chunk that differs again. The caller has locked its range.
    fn recopy(&self, bytes: &[u8], offset: u64) -> Result<(), MigrationError> {
        {
            let mut pass = self.pass();
            if !pass.explained && self.write_losses() == pass.losses {
                drop(pass);
                self.fail("it differs from the disk");
                return Err(MigrationError::Differs { offset });
            }
            pass.recopied = true;
        }
        self.recopied.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        tracing::warn!(path = %self.target().config().path.display(), offset, "a migrated disk's target lacks data: copied again");
        self.write_target(bytes, offset)
    }

    fn end_pass(&self, offset: &mut u64) -> Result<Step, MigrationError> {
        let again = {
            let mut pass = self.pass();
            pass.explained = false;
            pass.recopied || self.write_losses() != pass.losses
        };
        if !again {
            return Ok(Step::End);
        }
        self.sync()?;
        *offset = 0;
        Ok(Step::More)
    }

    /// Returns the losses of both disks: a source that loses something makes the two differ, too, and the
    /// guest has read what is left.
    fn write_losses(&self) -> u64 {
        self.source()
            .write_losses()
            .wrapping_add(self.target().write_losses())
    }
}
