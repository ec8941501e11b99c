//! Comparing source and target, in passes from the beginning to the end.
//!
//! A difference is the move's end, unless something explains it: a daemon that died and left writes half done, or a server
//! that went and may have lost what it had not made durable. The chunk is copied again then, and a pass follows in which
//! nothing explains a difference any more.

use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};

use super::{CHUNK, Mirror, MirrorError, Step, part};
use crate::image::bounce::Bounce;
use crate::remote::Blocking;

/// A pass over both.
#[derive(Debug)]
pub struct Pass {
    /// Losses of either side ([`Disk::losses`](crate::Disk::losses)) as it began.
    losses: u64,
    /// A difference is explained by what was before it.
    doubt: bool,
    /// Something was copied again.
    mended: bool,
}

impl Pass {
    /// Before the first: `resumed`, an earlier daemon has copied something.
    pub const fn new(losses: u64, resumed: bool) -> Self {
        Self {
            losses,
            doubt: resumed,
            mended: false,
        }
    }
}

impl Mirror {
    /// Makes the target durable, after all is copied.
    ///
    /// # Errors
    /// As for [`Self::copy`].
    pub fn sync(&self) -> Result<(), MirrorError> {
        if let Err(error) = self.target.perform(Blocking::Sync, 0) {
            self.fail(&error.to_string());
        }
        self.check()
    }

    /// Makes the target durable, after all is compared and while nothing is in flight. [`Step::More`]: something may have
    /// been lost since, and both are to be compared again.
    ///
    /// # Errors
    /// As for [`Self::copy`].
    pub fn seal(&self) -> Result<Step, MirrorError> {
        self.sync()?;
        Ok(if self.losses() == self.pass().losses {
            Step::End
        } else {
            Step::More
        })
    }

    /// Compares the chunk at `offset`, which moves on, or back to 0 if another pass has to follow.
    ///
    /// # Errors
    /// As for [`Self::copy`], or they differ and nothing explains it.
    pub fn verify(&self, offset: &mut u64) -> Result<Step, MirrorError> {
        self.check()?;
        let at = *offset;
        if at == 0 {
            let mut pass = self.pass();
            let losses = self.losses();
            pass.doubt |= losses != pass.losses;
            (pass.losses, pass.mended) = (losses, false);
        }
        let len = CHUNK.min(self.size.saturating_sub(at));
        if len == 0 {
            return self.end_pass(offset);
        }
        let (mut one, mut other) = (Bounce::new(len), Bounce::new(len));
        let _held = self.ranges.hold(at, len);
        self.read_source(part(&mut one, len), at)?;
        if let Err(error) = self.target.perform(Blocking::Read(part(&mut other, len)), at) {
            self.fail(&error.to_string());
        }
        self.check()?;
        if part(&mut one, len) != part(&mut other, len) {
            self.mend(part(&mut one, len), at)?;
        }
        *offset = at + len;
        Ok(Step::More)
    }

    /// Bytes that were copied again, after all was copied.
    #[must_use]
    pub fn mended(&self) -> u64 {
        self.mended.load(Ordering::Relaxed)
    }

    /// Copies a chunk again that differs. Its range is held.
    fn mend(&self, bytes: &[u8], offset: u64) -> Result<(), MirrorError> {
        {
            let mut pass = self.pass();
            if !pass.doubt && self.losses() == pass.losses {
                drop(pass);
                self.fail("it differs from the disk");
                return Err(MirrorError::Differs { offset });
            }
            pass.mended = true;
        }
        self.mended.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        tracing::warn!(path = %self.target.config().path.display(), offset, "a moved disk's target lacks something: copied again");
        self.fill(bytes, offset)
    }

    fn end_pass(&self, offset: &mut u64) -> Result<Step, MirrorError> {
        let again = {
            let mut pass = self.pass();
            pass.doubt = false;
            pass.mended || self.losses() != pass.losses
        };
        if !again {
            return Ok(Step::End);
        }
        self.sync()?;
        *offset = 0;
        Ok(Step::More)
    }

    /// A source that loses something makes the two differ, too; the guest has read what is left.
    pub(super) fn losses(&self) -> u64 {
        self.source.losses().wrapping_add(self.target.losses())
    }

    fn pass(&self) -> MutexGuard<'_, Pass> {
        self.pass.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
