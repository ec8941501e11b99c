//! From a head to the request's buffers: walks a descriptor chain, direct and indirect (2.7.5).
//!
//! [`walk`] copies each descriptor once, checks it, and translates its buffer. It ends within queue-size
//! steps whatever the guest wrote. Every [`ChainError`] is a driver's breach of the specification after which
//! the queue cannot be trusted: the caller asks for a reset. Below it: [`crate::ring`]; above:
//! [`crate::queue`].

use vm_memory::GuestAddress;

use crate::buffers::Buffers;
use crate::memory::MemoryError;
use crate::ring::{Descriptor, MAX_QUEUE_SIZE, SplitRing};
use crate::virtio::{VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};

/// What is wrong with a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A `next` or head outside of its table.
    #[error("descriptor {index} is outside of a table of {size}")]
    OutsideTable {
        /// Index named by the guest.
        index: u16,
        /// Entries of the table.
        size: u16,
    },
    /// More descriptors than the queue has, as in a loop.
    #[error("the chain is longer than the queue size {0}, or loops")]
    TooLong(u16),
    /// A buffer is not RAM.
    #[error("buffer: {0}")]
    Buffer(#[from] MemoryError),
    /// A device-readable buffer after a device-writable one (2.7.4.2).
    #[error("a readable buffer follows a writable one")]
    ReadableAfterWritable,
    /// INDIRECT without the feature.
    #[error("an indirect descriptor, but the feature is not negotiated")]
    IndirectNotNegotiated,
    /// INDIRECT inside an indirect table (2.7.5.3.1).
    #[error("an indirect descriptor inside an indirect table")]
    NestedIndirect,
    /// INDIRECT and NEXT (2.7.5.3.1).
    #[error("an indirect descriptor with a next one")]
    IndirectWithNext,
    /// Length zero, not a multiple of 16, or more than any queue could have.
    #[error("an indirect table of {0} bytes")]
    IndirectLength(u32),
    /// The table is not RAM.
    #[error("indirect table: {0}")]
    IndirectTable(MemoryError),
}

/// The table being walked.
enum Table<'a> {
    Queue(&'a SplitRing),
    Indirect {
        ring: &'a SplitRing,
        at: GuestAddress,
        count: u16,
    },
}

impl Table<'_> {
    fn load(&self, index: u16) -> Result<Descriptor, ChainError> {
        match *self {
            Table::Queue(ring) => ring.descriptor(index).ok_or(ChainError::OutsideTable {
                index,
                size: ring.size(),
            }),
            Table::Indirect { count, .. } if index >= count => {
                Err(ChainError::OutsideTable { index, size: count })
            }
            Table::Indirect { ring, at, .. } => {
                Descriptor::load_indirect(ring.ram(), at, index).ok_or_else(|| {
                    let outside = MemoryError::NotRam {
                        addr: at.0,
                        len: u64::from(index) * u64::from(Descriptor::SIZE),
                    };
                    ChainError::IndirectTable(outside)
                })
            }
        }
    }

    /// Follows an indirect descriptor found in this table.
    fn enter(&self, desc: Descriptor, negotiated: bool) -> Result<Self, ChainError> {
        let Table::Queue(ring) = *self else {
            return Err(ChainError::NestedIndirect);
        };
        if !negotiated {
            return Err(ChainError::IndirectNotNegotiated);
        }
        if desc.flags & VIRTQ_DESC_F_NEXT != 0 {
            return Err(ChainError::IndirectWithNext);
        }
        // The WRITE flag here is ignored (2.7.5.3.2).
        let count = u16::try_from(desc.len / Descriptor::SIZE).unwrap_or(u16::MAX);
        if count == 0 || count > MAX_QUEUE_SIZE || !desc.len.is_multiple_of(Descriptor::SIZE) {
            return Err(ChainError::IndirectLength(desc.len));
        }
        let at = GuestAddress(desc.addr);
        if !ring.ram().contains(at, desc.len.into()) {
            let outside = MemoryError::NotRam {
                addr: desc.addr,
                len: desc.len.into(),
            };
            return Err(ChainError::IndirectTable(outside));
        }
        Ok(Table::Indirect { ring, at, count })
    }
}

/// Collects the buffers of the chain at `head`; both lists must be empty. Buffers without bytes are skipped.
///
/// # Errors
/// The chain is malformed; the lists then have a part of it.
pub fn walk(
    ring: &SplitRing,
    head: u16,
    indirect: bool,
    readable: &mut Buffers,
    writable: &mut Buffers,
) -> Result<(), ChainError> {
    let mut table = Table::Queue(ring);
    let mut index = head;
    let mut seen_writable = false;
    // The pointer to an indirect table does not count for the chain's length; it occurs once at most.
    let mut left = ring.size();
    loop {
        let desc = table.load(index)?;
        if desc.flags & VIRTQ_DESC_F_INDIRECT != 0 {
            table = table.enter(desc, indirect)?;
            index = 0;
            continue;
        }
        left = left.checked_sub(1).ok_or(ChainError::TooLong(ring.size()))?;
        let addr = GuestAddress(desc.addr);
        if desc.flags & VIRTQ_DESC_F_WRITE != 0 {
            seen_writable = true;
            writable.push(addr, desc.len)?;
        } else if seen_writable {
            return Err(ChainError::ReadableAfterWritable);
        } else {
            readable.push(addr, desc.len)?;
        }
        if desc.flags & VIRTQ_DESC_F_NEXT == 0 {
            return Ok(());
        }
        index = desc.next;
    }
}
