//! The layout of a zone's RAM: device tree first, then the kernel, then the initial RAM disk.
//!
//! Linux wants the initial RAM disk within 32 GiB of the kernel and both in the linear map, which this order
//! ensures; firmware-style guests look for the device tree at RAM's start, as under QEMU.

use anyhow::bail;

use super::kernel::Kernel;
use crate::config::zone::BLOCK;

/// Most bytes of a device tree: flat kernels begin behind it.
pub const FDT_MAX: u64 = super::kernel::FLAT_OFFSET;

/// Returns the offset from RAM's base for an initial RAM disk of `initrd` bytes behind `kernel`, at a 2 MiB
/// boundary.
///
/// # Errors
/// It does not fit into `memory` bytes.
pub fn initrd_offset(kernel: &Kernel, initrd: u64, memory: u64) -> anyhow::Result<u64> {
    let end = kernel.end();
    let offset = end.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX);
    let needs = offset.saturating_add(initrd);
    if needs > memory {
        bail!(
            "{initrd} bytes of initial RAM disk behind a kernel that ends {end:#x} into RAM need {needs} bytes"
        );
    }
    Ok(offset)
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
        assert_eq!(
            initrd_offset(&kernel(BLOCK, 1), 10, 8 * BLOCK).unwrap(),
            2 * BLOCK
        );
        assert_eq!(
            initrd_offset(&kernel(BLOCK, BLOCK), 6 * BLOCK, 8 * BLOCK).unwrap(),
            2 * BLOCK
        );
    }

    #[test]
    fn an_initrd_that_does_not_fit_reports_the_memory_needed() {
        let error = initrd_offset(&kernel(BLOCK, BLOCK), 6 * BLOCK + 1, 8 * BLOCK).unwrap_err();
        let needs = format!("need {} bytes", 8 * BLOCK + 1);
        assert!(error.to_string().ends_with(&needs), "{error}");
        assert!(initrd_offset(&kernel(BLOCK, u64::MAX - BLOCK), 1, 8 * BLOCK).is_err());
    }
}
