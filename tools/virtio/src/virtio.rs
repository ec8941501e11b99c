//! The numbers of the virtio specification that every device uses, under the specification's names.
//!
//! Values come from the kernel's headers (`virtio-bindings`); the widths here are those of the structures
//! that hold them.

pub use virtio_bindings::virtio_config::{VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1};
pub use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use virtio_bindings::virtio_ring as ring;

/// The buffer continues at `next` (2.7.5).
pub const VIRTQ_DESC_F_NEXT: u16 = ring::VRING_DESC_F_NEXT as u16;
/// The buffer is device-writable.
pub const VIRTQ_DESC_F_WRITE: u16 = ring::VRING_DESC_F_WRITE as u16;
/// The buffer holds a table of descriptors.
pub const VIRTQ_DESC_F_INDIRECT: u16 = ring::VRING_DESC_F_INDIRECT as u16;
/// The driver wants no used buffer notifications (2.7.6).
pub const VIRTQ_AVAIL_F_NO_INTERRUPT: u16 = ring::VRING_AVAIL_F_NO_INTERRUPT as u16;
/// The device wants no available buffer notifications (2.7.8).
pub const VIRTQ_USED_F_NO_NOTIFY: u16 = ring::VRING_USED_F_NO_NOTIFY as u16;

/// Returns the feature mask with bit `number` set.
pub const fn feature(number: u32) -> u64 {
    1 << number
}
