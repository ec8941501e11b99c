//! A zone's RAM: 2 MiB blocks that root donates before the start and gets back when the zone is destroyed.

use core::sync::atomic::Ordering;

use arrayvec::ArrayVec;
use ringvisor::abi::command::{CommandStatus, MAX_DONATION};
use ringvisor::abi::{ZoneState, machine};
use ringvisor::addr::{BLOCK_SIZE, Ipa, Pa};
use ringvisor::stage2::{Access, MapError};
use ringvisor::virtio::GuestRam;

use super::Zone;
use crate::el2::arch;
use crate::el2::channel::Refusal;
use crate::el2::mm::blocks;
use crate::el2::mm::frames::Tables;

/// The zone's RAM in bytes, for the transport's checks.
pub struct Ram(u64);

impl GuestRam for Ram {
    fn contains(&self, start: Ipa, len: u64) -> bool {
        let end = start.checked_add(len);
        start.0 >= machine::RAM_BASE && end.is_some_and(|end| end.0 <= machine::RAM_BASE + self.0)
    }
}

impl Zone {
    /// Returns the zone's RAM.
    pub(super) fn ram(&self) -> Ram {
        Ram(self.blocks.load(Ordering::Acquire) * BLOCK_SIZE)
    }

    /// Maps the blocks in `list` one after the other from `ipa`, which must be where RAM ends so far.
    ///
    /// # Errors
    /// A refusal; then none of the blocks is donated.
    pub fn donate(&self, ipa: Ipa, list: &[u64]) -> Result<(), Refusal> {
        let core = self.core.lock();
        if core.state != ZoneState::Created {
            return Err((CommandStatus::WrongState, core.state as u64));
        }
        let have = self.blocks.load(Ordering::Acquire);
        if ipa.0 != machine::RAM_BASE + have * BLOCK_SIZE {
            return Err((CommandStatus::IpaInUse, ipa.0));
        }
        let list: ArrayVec<Pa, MAX_DONATION> = list.iter().take(MAX_DONATION).map(|&pa| Pa(pa)).collect();
        blocks::donate(&list)?;
        let mut guard = self.stage2.lock();
        let Some(stage2) = guard.as_mut() else {
            list.iter().for_each(|&block| blocks::reclaim(block));
            return Err((CommandStatus::WrongState, core.state as u64));
        };
        for (index, &block) in list.iter().enumerate() {
            let at = Ipa(ipa.0 + index as u64 * BLOCK_SIZE);
            if let Err(error) = stage2.map(&mut Tables, at, block, BLOCK_SIZE, Access::Ram) {
                stage2.unmap(&mut Tables, ipa, index as u64 * BLOCK_SIZE);
                list.iter().for_each(|&block| blocks::reclaim(block));
                return Err(match error {
                    MapError::OutOfMemory => (CommandStatus::OutOfMemory, 1),
                    _ => (CommandStatus::IpaInUse, at.0),
                });
            }
        }
        self.blocks.store(have + list.len() as u64, Ordering::Release);
        arch::dsb_ish();
        Ok(())
    }

    /// Returns the zone's blocks to root and frees its tables, before it is dropped. No CPU is inside, and
    /// each invalidated the VMID when it left.
    pub(super) fn reclaim(&self) {
        let memory = &mut Tables;
        if let Some(stage2) = self.stage2.lock().take() {
            for index in 0..self.blocks.load(Ordering::Acquire) {
                let ipa = Ipa(machine::RAM_BASE + index * BLOCK_SIZE);
                if let Some((block, _)) = stage2.translate(memory, ipa) {
                    blocks::reclaim(block);
                }
            }
            stage2.destroy(memory);
        }
    }
}
