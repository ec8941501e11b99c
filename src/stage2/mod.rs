//! Stage-2 translation tables: 4 KiB granule, starting at level 1 with concatenated tables.
//!
//! [`Stage2`] is the tree, [`TableMemory`] allocates and accesses its page frames (EL2's own, or those of
//! `fake` in tests). A mapping never replaces another: it must be unmapped first, so no live entry ever
//! changes from one valid value to another (break-before-make, Arm ARM D8.16). TLB maintenance is the
//! caller's responsibility.

#[cfg(any(test, feature = "fakes"))]
pub mod fake;

use crate::addr::{Ipa, PAGE_SIZE, Pa};

/// Allocates and accesses page frames for tables.
pub trait TableMemory {
    /// Allocates `pages` contiguous frames, a power of two, aligned to their size and zeroed; `None` if there
    /// are none left.
    fn alloc(&mut self, pages: usize) -> Option<Pa>;
    /// Frees frames of [`Self::alloc`].
    fn free(&mut self, table: Pa, pages: usize);
    /// Reads entry `index` of the table page at `table`.
    fn read(&self, table: Pa, index: usize) -> u64;
    /// Writes an entry; visible to the table walker once the caller has synchronized.
    fn write(&mut self, table: Pa, index: usize, entry: u64);
}

/// Permissions and memory type of a mapping; combined with those of the zone's stage 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// RAM: write-back, all permissions.
    Ram,
    /// Flash: write-back, read and execute: stores are permission faults.
    Rom,
    /// Device-nGnRE, read and write, never executable.
    Device,
    /// Device-nGnRE, read only, never executable: stores are permission faults.
    DeviceReadOnly,
}

impl Access {
    /// Returns MemAttr, S2AP, SH, AF and XN (Arm ARM D8.3.2, stage 2 without FEAT_S2FWB).
    const fn bits(self) -> u64 {
        const AF: u64 = 1 << 10;
        const INNER: u64 = 3 << 8;
        const READ: u64 = 1 << 6;
        const WRITE: u64 = 1 << 7;
        const XN: u64 = 1 << 54;
        match self {
            Self::Ram => AF | INNER | READ | WRITE | 0xf << 2,
            Self::Rom => AF | INNER | READ | 0xf << 2,
            Self::Device => AF | READ | WRITE | XN | 1 << 2,
            Self::DeviceReadOnly => AF | READ | XN | 1 << 2,
        }
    }
}

/// Why a mapping was refused; nothing was mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MapError {
    /// Address or length is not a multiple of 4 KiB, or the length is zero.
    #[error("{0} is not a multiple of 4 KiB")]
    Misaligned(Ipa),
    /// The range exceeds the intermediate physical address space.
    #[error("{0} is outside the address space")]
    OutOfRange(Ipa),
    /// Part of the range is mapped already.
    #[error("{0} is mapped already")]
    Overlap(Ipa),
    /// No page frame left for a table.
    #[error("no page frame left for a table")]
    OutOfMemory,
}

const VALID: u64 = 1;
const TABLE: u64 = 2;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
const ENTRIES: usize = 512;

/// Returns the bytes that one entry of a level translates.
const fn span(level: u32) -> u64 {
    1 << (39 - 9 * level)
}

/// One zone's stage-2 tree.
#[derive(Debug)]
pub struct Stage2 {
    root: Pa,
    ipa_bits: u32,
    pages: usize,
    /// Root entries below which [`Self::dismantle`] has freed the tables.
    dismantled: usize,
}

impl Stage2 {
    /// Returns an empty tree for IPAs of `ipa_bits` bits, 31 to 43; `None` without memory or for other sizes.
    pub fn new(memory: &mut impl TableMemory, ipa_bits: u32) -> Option<Self> {
        if !(31..=43).contains(&ipa_bits) {
            return None;
        }
        let pages = Self::root_pages(ipa_bits);
        let root = memory.alloc(pages)?;
        Some(Self {
            root,
            ipa_bits,
            pages,
            dismantled: 0,
        })
    }

    const fn root_pages(ipa_bits: u32) -> usize {
        if ipa_bits <= 39 { 1 } else { 1 << (ipa_bits - 39) }
    }

    /// Returns the address of the first root table, for VTTBR_EL2.
    pub const fn root(&self) -> Pa {
        self.root
    }

    /// Returns the number of table pages in use.
    pub const fn pages(&self) -> usize {
        self.pages
    }

    /// Returns the first IPA past the address space.
    pub const fn limit(&self) -> u64 {
        1 << self.ipa_bits
    }

    /// Returns VTCR_EL2 for trees of `ipa_bits` on a CPU with this ID_AA64MMFR0_EL1.PARange.
    pub const fn vtcr(ipa_bits: u32, pa_range: u64) -> u64 {
        const RES1: u64 = 1 << 31;
        RES1 | pa_range << 16 | 3 << 12 | 1 << 10 | 1 << 8 | 1 << 6 | (64 - ipa_bits) as u64
    }

    /// Maps `len` bytes at `ipa` to `pa`, with the largest blocks that fit.
    ///
    /// # Errors
    /// See [`MapError`]; nothing is mapped then.
    pub fn map(
        &mut self,
        memory: &mut impl TableMemory,
        ipa: Ipa,
        pa: Pa,
        len: u64,
        access: Access,
    ) -> Result<(), MapError> {
        let end = ipa.checked_add(len).ok_or(MapError::OutOfRange(ipa))?;
        if len == 0
            || !ipa.is_aligned(PAGE_SIZE)
            || !pa.is_aligned(PAGE_SIZE)
            || !len.is_multiple_of(PAGE_SIZE)
        {
            return Err(MapError::Misaligned(ipa));
        }
        if end.0 > self.limit() || pa.checked_add(len).is_none_or(|end| end.0 > ADDRESS) {
            return Err(MapError::OutOfRange(ipa));
        }
        let mut done = 0;
        while done < len {
            let (at, to) = (Ipa(ipa.0 + done), Pa(pa.0 + done));
            match self.map_one(memory, at, to, len - done, access) {
                Ok(size) => done += size,
                Err(error) => {
                    self.unmap(memory, ipa, done);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Maps one block or page at `ipa`; returns its size.
    fn map_one(
        &mut self,
        memory: &mut impl TableMemory,
        ipa: Ipa,
        pa: Pa,
        len: u64,
        access: Access,
    ) -> Result<u64, MapError> {
        loop {
            let (table, index, entry, level) = self.walk(memory, ipa);
            if entry & VALID != 0 {
                return Err(MapError::Overlap(ipa));
            }
            if len >= span(level) && (ipa.0 | pa.0).is_multiple_of(span(level)) {
                let kind = if level == 3 { TABLE } else { 0 };
                memory.write(table, index, pa.0 | access.bits() | kind | VALID);
                return Ok(span(level));
            }
            let next = memory.alloc(1).ok_or(MapError::OutOfMemory)?;
            self.pages += 1;
            memory.write(table, index, next.0 | TABLE | VALID);
        }
    }

    /// Returns where the walk of `ipa` ends, at a leaf or an entry that is not valid: table, index, entry and
    /// level.
    fn walk(&self, memory: &impl TableMemory, ipa: Ipa) -> (Pa, usize, u64, u32) {
        let (mut table, mut level) = (self.root_page(ipa), 1);
        loop {
            let index = Self::index(ipa, level);
            let entry = memory.read(table, index);
            if level == 3 || entry & (VALID | TABLE) != VALID | TABLE {
                return (table, index, entry, level);
            }
            table = Pa(entry & ADDRESS);
            level += 1;
        }
    }

    /// Unmaps the range, including whole blocks that begin in it; tables are kept until [`Self::destroy`].
    pub fn unmap(&mut self, memory: &mut impl TableMemory, ipa: Ipa, len: u64) {
        let end = ipa.0.saturating_add(len).min(self.limit());
        let mut at = ipa.0;
        while at < end {
            let (table, index, entry, level) = self.walk(memory, Ipa(at));
            if entry & VALID != 0 {
                memory.write(table, index, 0);
            }
            at = (at & !(span(level) - 1)) + span(level);
        }
    }

    /// Returns the physical address and the raw leaf entry that `ipa` translates to.
    pub fn translate(&self, memory: &impl TableMemory, ipa: Ipa) -> Option<(Pa, u64)> {
        if ipa.0 >= self.limit() {
            return None;
        }
        let (_, _, entry, level) = self.walk(memory, ipa);
        let offset = span(level) - 1;
        (entry & VALID != 0).then_some((Pa(entry & ADDRESS & !offset | ipa.0 & offset), entry))
    }

    /// Frees the tables below the next root entry that has any, for the address space of 1 GiB. Returns false
    /// if there was none left. No CPU may use the tree any more, and its VMID must have been invalidated.
    pub fn dismantle(&mut self, memory: &mut impl TableMemory) -> bool {
        while self.dismantled < ENTRIES * Self::root_pages(self.ipa_bits) {
            let table = Pa(self.root.0 + (self.dismantled / ENTRIES) as u64 * PAGE_SIZE);
            let index = self.dismantled % ENTRIES;
            self.dismantled += 1;
            let entry = memory.read(table, index);
            if entry & VALID != 0 {
                memory.write(table, index, 0);
                Self::free_below(memory, entry, 1);
                return true;
            }
        }
        false
    }

    /// Frees all tables, see [`Self::dismantle`].
    pub fn destroy(mut self, memory: &mut impl TableMemory) {
        while self.dismantle(memory) {}
        memory.free(self.root, Self::root_pages(self.ipa_bits));
    }

    fn free_below(memory: &mut impl TableMemory, entry: u64, level: u32) {
        if level == 3 || entry & VALID == 0 || entry & TABLE == 0 {
            return;
        }
        let table = Pa(entry & ADDRESS);
        for index in 0..ENTRIES {
            let below = memory.read(table, index);
            Self::free_below(memory, below, level + 1);
        }
        memory.free(table, 1);
    }

    /// Returns the concatenated root table page that covers `ipa`.
    fn root_page(&self, ipa: Ipa) -> Pa {
        Pa(self.root.0 + (ipa.0 >> 39) * PAGE_SIZE)
    }

    const fn index(ipa: Ipa, level: u32) -> usize {
        ((ipa.0 >> (39 - 9 * level)) & 511) as usize
    }
}

#[cfg(test)]
mod tests;
