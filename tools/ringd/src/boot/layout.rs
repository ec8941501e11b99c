//! The layout of a zone's RAM: device tree first, then the kernel, then the initial RAM disk.
//!
//! Linux wants the initial RAM disk within 32 GiB of the kernel and both in the linear map, which this order
//! ensures; firmware-style guests look for the device tree at RAM's start, as under QEMU.

use super::kernel::Kernel;
use crate::config::zone::BLOCK;

/// Most bytes of a device tree: flat kernels begin behind it.
pub const FDT_MAX: u64 = super::kernel::FLAT_OFFSET;

/// The initial RAM disk does not fit.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{initrd} bytes of initial RAM disk behind a kernel that ends {kernel_end:#x} into RAM need {needs} bytes"
)]
pub struct NoRoom {
    /// Bytes of the initial RAM disk.
    pub initrd: u64,
    /// End of the kernel, from RAM's base.
    pub kernel_end: u64,
    /// Least RAM that suffices.
    pub needs: u64,
}

/// Returns the offset from RAM's base for an initial RAM disk of `initrd` bytes behind `kernel`, at a 2 MiB
/// boundary.
///
/// # Errors
/// [`NoRoom`] if it does not fit into `memory` bytes.
pub fn initrd_offset(kernel: &Kernel, initrd: u64, memory: u64) -> Result<u64, NoRoom> {
    let no_room = |needs| NoRoom {
        initrd,
        kernel_end: kernel.end(),
        needs,
    };
    let offset = kernel
        .end()
        .checked_next_multiple_of(BLOCK)
        .ok_or(no_room(u64::MAX))?;
    let needs = offset.saturating_add(initrd);
    if needs > memory {
        Err(no_room(needs))
    } else {
        Ok(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::initrd_offset;
    use crate::boot::kernel::{Format, Kernel};
    use crate::config::zone::BLOCK;

    fn kernel(offset: u64, needs: u64) -> Kernel {
        Kernel {
            content: vec![0].into(),
            offset,
            needs,
            format: Format::Image,
        }
    }

    #[test]
    fn the_initrd_follows_the_kernel() {
        assert_eq!(initrd_offset(&kernel(BLOCK, 1), 10, 8 * BLOCK), Ok(2 * BLOCK));
        assert_eq!(
            initrd_offset(&kernel(BLOCK, BLOCK), 6 * BLOCK, 8 * BLOCK),
            Ok(2 * BLOCK)
        );
    }

    #[test]
    fn an_initrd_that_does_not_fit_reports_the_memory_needed() {
        let error = initrd_offset(&kernel(BLOCK, BLOCK), 6 * BLOCK + 1, 8 * BLOCK).unwrap_err();
        assert_eq!(error.needs, 8 * BLOCK + 1);
        assert!(initrd_offset(&kernel(BLOCK, u64::MAX - BLOCK), 1, 8 * BLOCK).is_err());
    }
}
