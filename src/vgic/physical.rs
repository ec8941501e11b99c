//! The physical GIC as the root zone's virtual one accesses it. EL2 implements it with MMIO, the tests with
//! memory.

/// Access to the physical distributor and redistributors, at the architecture's offsets. Offsets are always
/// those of registers that the architecture defines, aligned to their width.
pub trait PhysicalGic {
    /// Reads a 32-bit register of the distributor.
    fn dist_read32(&mut self, offset: u32) -> u32;
    /// Writes a 32-bit register of the distributor.
    fn dist_write32(&mut self, offset: u32, value: u32);
    /// Writes a 64-bit register of the distributor (`GICD_IROUTER<n>`).
    fn dist_write64(&mut self, offset: u32, value: u64);
    /// Reads a 32-bit register, or a half of a 64-bit one, of the redistributor of physical CPU `cpu`.
    fn redist_read32(&mut self, cpu: usize, offset: u32) -> u32;
    /// Writes a 32-bit register of the redistributor of physical CPU `cpu`.
    fn redist_write32(&mut self, cpu: usize, offset: u32, value: u32);
}

/// A physical GIC made of memory, for tests: set and clear registers work, everything else is stored.
#[cfg(test)]
pub(super) mod fake {
    extern crate std;
    use super::PhysicalGic;
    use std::collections::BTreeMap;
    use std::vec::Vec;

    /// See the module.
    #[derive(Default, Debug)]
    pub struct FakeGic {
        /// Distributor registers by offset.
        pub dist: BTreeMap<u32, u32>,
        /// Redistributor registers by CPU and offset.
        pub redist: BTreeMap<(usize, u32), u32>,
        /// Every write of a 64-bit register, in order.
        pub routes: Vec<(u32, u64)>,
    }

    /// Returns what a set or clear register does to the register at the lower offset of its pair.
    fn apply(old: u32, offset: u32, value: u32) -> (u32, u32) {
        match offset & 0xffff {
            0x100..0x180 | 0x200..0x280 | 0x300..0x380 => (offset, old | value),
            0x180..0x200 | 0x280..0x300 | 0x380..0x400 => (offset - 0x80, old & !value),
            _ => (offset, value),
        }
    }

    fn stored_at(offset: u32) -> u32 {
        apply(0, offset, 0).0
    }

    impl PhysicalGic for FakeGic {
        fn dist_read32(&mut self, offset: u32) -> u32 {
            self.dist.get(&stored_at(offset)).copied().unwrap_or(0)
        }

        fn dist_write32(&mut self, offset: u32, value: u32) {
            let old = self.dist_read32(offset);
            let (offset, value) = apply(old, offset, value);
            self.dist.insert(offset, value);
        }

        fn dist_write64(&mut self, offset: u32, value: u64) {
            self.routes.push((offset, value));
        }

        fn redist_read32(&mut self, cpu: usize, offset: u32) -> u32 {
            self.redist.get(&(cpu, stored_at(offset))).copied().unwrap_or(0)
        }

        fn redist_write32(&mut self, cpu: usize, offset: u32, value: u32) {
            let old = self.redist_read32(cpu, offset);
            let (offset, value) = apply(old, offset, value);
            self.redist.insert((cpu, offset), value);
        }
    }
}
