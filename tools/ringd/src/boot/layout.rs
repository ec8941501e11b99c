//! The layout of a zone's RAM: where the initial RAM disk and the device tree go beside a kernel, which says
//! itself where it goes.
//!
//! The places are those of QEMU 10's `-kernel` for the same kernel (`hw/arm/boot.c`). Where QEMU gives up,
//! because its place is too small, there is another one, and x0 has the tree's address in any case.

use anyhow::{anyhow, bail};

use super::kernel::{BootProtocol, Kernel};
use crate::config::zone::BLOCK;

/// Most bytes of a device tree: room that is kept for it.
pub const FDT_MAX: u64 = 64 << 10;
/// Offset of the initial RAM disk in a zone that has twice this much RAM.
const INITRD_OFFSET: u64 = 128 << 20;
const PAGE: u64 = 4096;

/// Offsets from RAM's base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Initial RAM disk, if there is one.
    pub initrd: u64,
    /// Device tree, of up to [`FDT_MAX`] bytes.
    pub tree: u64,
}

impl Layout {
    /// Returns where an initial RAM disk of `initrd` bytes and the device tree go in `memory` bytes of RAM.
    /// Neither overlaps the other or a segment of `kernel`.
    ///
    /// # Errors
    /// They do not fit.
    pub fn new(kernel: &Kernel, initrd: u64, memory: u64) -> anyhow::Result<Self> {
        let end = kernel.end();
        // Far behind the kernel, which may decompress itself; but in a small zone the middle of RAM.
        let far = end.max(INITRD_OFFSET.min(memory / 2)).next_multiple_of(PAGE);
        let near = end.next_multiple_of(BLOCK);
        let fits = |start: &u64| start.saturating_add(initrd) <= memory;
        let Some(start) = [far, near].into_iter().find(fits) else {
            let needs = near.saturating_add(initrd);
            bail!(
                "{initrd} bytes of initial RAM disk behind a kernel that ends {end:#x} into RAM need {needs} bytes"
            );
        };
        let behind = start.saturating_add(initrd).next_multiple_of(BLOCK);
        let room = |tree: u64, end: u64| tree.checked_add(FDT_MAX).is_some_and(|tree| tree <= end);
        let at_start = (0, kernel.start());
        // Linux maps the tree with one block of 2 MiB (Documentation/arch/arm64/booting.rst).
        let others = [(behind, memory), (near, start), at_start];
        let places = match kernel.protocol {
            BootProtocol::BareMetal => [at_start].into_iter().chain(others),
            BootProtocol::Linux => [others[0]].into_iter().chain(others),
        };
        let tree = places.into_iter().find(|(tree, end)| room(*tree, *end));
        let (tree, _) = tree.ok_or_else(|| {
            anyhow!("{FDT_MAX} bytes of device tree have no room beside the kernel and {initrd} bytes of initial RAM disk")
        })?;
        Ok(Self { initrd: start, tree })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{FDT_MAX, Layout};
    use crate::boot::kernel::{BootProtocol, Kernel, Segment};
    use crate::config::zone::BLOCK;

    const MIB: u64 = 1 << 20;

    fn kernel(protocol: BootProtocol, segments: &[(u64, u64)]) -> Kernel {
        let segment = |&(offset, size): &(u64, u64)| Segment {
            file: 0..0,
            offset,
            size,
            zeroes: false,
        };
        Kernel {
            content: vec![0].into(),
            segments: segments.iter().map(segment).collect(),
            entry: 0,
            protocol,
        }
    }

    fn linux(offset: u64, size: u64) -> Kernel {
        kernel(BootProtocol::Linux, &[(offset, size)])
    }

    fn bare(offset: u64) -> Kernel {
        kernel(BootProtocol::BareMetal, &[(offset, MIB)])
    }

    fn layout(kernel: &Kernel, initrd: u64, memory: u64) -> (u64, u64) {
        let layout = Layout::new(kernel, initrd, memory).unwrap();
        (layout.initrd, layout.tree)
    }

    // As `info roms` of QEMU 10 shows them, for `-m 256M` if nothing else is said.
    #[test]
    fn the_places_are_those_of_qemu() {
        let image = linux(2 * MIB, MIB);
        assert_eq!(layout(&image, 0, 256 * MIB), (128 * MIB, 128 * MIB));
        assert_eq!(layout(&image, MIB, 256 * MIB), (128 * MIB, 130 * MIB));
        assert_eq!(
            layout(&linux(0x8_0000, 5000), 0, 256 * MIB),
            (128 * MIB, 128 * MIB)
        );
        assert_eq!(layout(&image, 5 * MIB, 64 * MIB), (32 * MIB, 38 * MIB));
        let large = linux(2 * MIB, 150 * MIB + 1);
        assert_eq!(layout(&large, 1, 256 * MIB), (152 * MIB + 4096, 154 * MIB));
        assert_eq!(layout(&bare(MIB), 0, 256 * MIB).1, 0);
        assert_eq!(layout(&bare(0x28_0000), MIB, 256 * MIB).1, 0);
    }

    #[test]
    fn where_qemu_gives_up_there_is_another_place() {
        // QEMU keeps 1 MiB for its tree, and starts without one.
        assert_eq!(layout(&bare(0x8_0000), 0, 256 * MIB).1, 0);
        // QEMU writes it to the flash at 0.
        assert_eq!(layout(&bare(0), 0, 256 * MIB).1, 128 * MIB);
        // The initial RAM disk needs more than half of RAM: directly behind the kernel, and the tree behind
        // it.
        assert_eq!(
            layout(&linux(2 * MIB, MIB), 40 * MIB, 64 * MIB),
            (4 * MIB, 44 * MIB)
        );
        // It reaches to RAM's end: the tree before it, or at the start of RAM.
        assert_eq!(
            layout(&linux(2 * MIB, MIB), 32 * MIB, 64 * MIB),
            (32 * MIB, 4 * MIB)
        );
        assert_eq!(layout(&linux(2 * MIB, MIB), 60 * MIB, 64 * MIB), (4 * MIB, 0));
    }

    #[test]
    fn what_does_not_fit_reports_the_memory_needed() {
        let error = Layout::new(&linux(BLOCK, BLOCK), 6 * BLOCK + 1, 8 * BLOCK).unwrap_err();
        let needs = format!("need {} bytes", 8 * BLOCK + 1);
        assert!(error.to_string().ends_with(&needs), "{error}");
        let error = Layout::new(&linux(0, 2 * BLOCK), 2 * BLOCK, 4 * BLOCK).unwrap_err();
        assert!(
            error.to_string().contains("of device tree have no room"),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn nothing_overlaps(
            bare in any::<bool>(),
            gaps in prop::collection::vec((0..64 * MIB, 1..64 * MIB), 1..4),
            initrd in prop_oneof![Just(0), 0..512 * MIB],
            blocks in 4..256_u64,
        ) {
            let memory = blocks * BLOCK;
            let mut segments = Vec::new();
            let mut end = 0;
            for (gap, size) in gaps {
                segments.push((end + gap, size));
                end += gap + size;
            }
            prop_assume!(end <= memory);
            let protocol = if bare { BootProtocol::BareMetal } else { BootProtocol::Linux };
            let kernel = kernel(protocol, &segments);
            if let Ok(layout) = Layout::new(&kernel, initrd, memory) {
                prop_assert_eq!(layout.tree % 8, 0);
                prop_assert!(layout.tree / BLOCK == (layout.tree + FDT_MAX - 1) / BLOCK);
                segments.push((layout.tree, FDT_MAX));
                if initrd > 0 {
                    segments.push((layout.initrd, initrd));
                }
                segments.sort_unstable();
                let mut end = 0;
                for (start, size) in segments {
                    prop_assert!(start >= end, "{layout:?}");
                    end = start + size;
                }
                prop_assert!(end <= memory);
            }
        }
    }
}
