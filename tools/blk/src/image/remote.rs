//! [`RemoteImage`]: an image that another process or another layer serves, as far as the layers below the
//! engines know it. [`crate::remote`] adds the engine.

use std::io;

use ringvirtio::memory::IoVec;

use super::bounce::{BOUNCE_MAX, Bounce, gather, scatter};
use super::{BlockingIo, IoKind};

/// The geometry that a guest has been shown of a disk, for when the image cannot be opened or its server is
/// down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KnownGeometry {
    /// Bytes.
    pub size: u64,
    /// Bytes of a logical block.
    pub block_size: u32,
    /// The guest may not write.
    pub readonly: bool,
}

/// An image with an engine of its own.
pub trait RemoteImage: Send + Sync {
    /// Returns the size in bytes that the server reported last.
    fn size(&self) -> u64;
    /// Returns the size of a logical block in bytes.
    fn block_size(&self) -> u32;
    /// Returns whether writes are refused.
    fn is_readonly(&self) -> bool;
    /// Returns whether ranges can be made to read zero without writing zeroes.
    fn supports_write_zeroes(&self) -> bool;
    /// Runs an operation on the calling thread, without an engine. The caller ensures that nothing else uses
    /// the disk.
    ///
    /// # Errors
    /// The system's error, or the server's.
    fn run_blocking(&self, what: BlockingIo<'_>, offset: u64) -> io::Result<()>;
    /// Returns how many times writes of [`Self::run_blocking`] may have been lost, because their server went
    /// down before a flush.
    fn write_losses(&self) -> u64 {
        0
    }
}

/// Runs an engine's operation on the calling thread; transfers may be short.
///
/// # Safety
/// The buffers are valid.
pub(super) unsafe fn run(
    image: &dyn RemoteImage,
    kind: IoKind,
    parts: &[IoVec],
    offset: u64,
    len: u64,
) -> io::Result<usize> {
    let range = |what| image.run_blocking(what, offset).map(|()| 0);
    match kind {
        IoKind::Sync => image.run_blocking(BlockingIo::Sync, 0).map(|()| 0),
        IoKind::Discard => range(BlockingIo::Discard { len }),
        IoKind::WriteZeroes { unmap } => range(BlockingIo::Zero { len, unmap }),
        IoKind::Read | IoKind::Write | IoKind::WriteDurable => {
            let len = usize::try_from(len).unwrap_or(BOUNCE_MAX).min(BOUNCE_MAX);
            let mut bounce = Bounce::new(len as u64);
            let bytes = bounce.bytes().get_mut(..len).unwrap_or_default();
            if kind == IoKind::Read {
                image.run_blocking(BlockingIo::Read(bytes), offset)?;
                // SAFETY: the caller guarantees valid buffers.
                return Ok(unsafe { scatter(bytes, parts, 0) });
            }
            // SAFETY: the caller guarantees valid buffers.
            let len = unsafe { gather(parts, 0, bytes) };
            let durable = kind == IoKind::WriteDurable;
            let bytes = bytes.get(..len).unwrap_or_default();
            image.run_blocking(BlockingIo::Write(bytes, durable), offset)?;
            Ok(len)
        }
    }
}
