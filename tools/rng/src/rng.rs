//! [`Rng`]: the device: the source of its bytes and their rate limit.

use std::io;
use std::sync::Arc;

use ringvirtio::throttle::Throttle;
use ringvirtio::virtio::{
    VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, feature,
};
use rustix::rand::{GetRandomFlags, getrandom};

/// The device ID (virtio 1.2, 5).
pub const DEVICE_ID: u32 = 4;
/// Largest queue size offered: drivers have few requests outstanding.
pub const QUEUE_SIZE_MAX: u16 = 64;

/// Fills a buffer with random bytes, without waiting.
pub type Source = Box<dyn Fn(&mut [u8]) -> io::Result<()> + Send + Sync>;

/// An entropy device.
pub struct Rng {
    source: Source,
    throttle: Throttle,
}

impl Rng {
    /// Returns a device whose bytes come from getrandom(2), without a limit.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::with_source(Box::new(fill))
    }

    /// Returns a device whose bytes come from `source`.
    #[must_use]
    pub fn with_source(source: Source) -> Arc<Self> {
        Arc::new(Self {
            source,
            throttle: Throttle::default(),
        })
    }

    /// Returns the rate limits.
    #[must_use]
    pub const fn throttle(&self) -> &Throttle {
        &self.throttle
    }

    /// Fills `bytes`.
    ///
    /// # Errors
    /// No random bytes are available now.
    pub fn fill(&self, bytes: &mut [u8]) -> io::Result<()> {
        (self.source)(bytes)
    }
}

/// Fills `bytes` from the kernel's generator. Once that is seeded, up to 256 bytes are returned in one call
/// (getrandom(2)); before, the call fails instead of blocking the reactor.
fn fill(bytes: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += getrandom(rest, GetRandomFlags::NONBLOCK)?;
    }
    Ok(())
}

/// Returns the features that the device offers; it works with any subset of them.
#[must_use]
pub fn features() -> u64 {
    [
        VIRTIO_F_VERSION_1,
        VIRTIO_F_RING_RESET,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_RING_F_EVENT_IDX,
    ]
    .iter()
    .fold(0, |all, &number| all | feature(number))
}
