//! A zone's RAM, and the memory of its flash: 2 MiB blocks that root donates before the start and gets back
//! when the zone is destroyed.

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

/// Blocks that are returned to root in one stay at EL2, which a guest of another zone may have to wait for.
const BLOCKS_AT_ONCE: usize = 64;

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

    /// Maps the blocks in `list` one after the other from `ipa`, which must be where RAM ends so far; or as
    /// flash, from its beginning.
    ///
    /// # Errors
    /// A refusal; then none of the blocks is donated.
    pub fn donate(&self, ipa: Ipa, list: &[u64]) -> Result<(), Refusal> {
        let core = self.core.lock();
        if core.state != ZoneState::Created {
            return Err((CommandStatus::WrongState, core.state as u64));
        }
        let list: ArrayVec<Pa, MAX_DONATION> = list.iter().take(MAX_DONATION).map(|&pa| Pa(pa)).collect();
        if ipa.0 == machine::FLASH_BASE {
            return self.donate_flash(&list);
        }
        let have = self.blocks.load(Ordering::Acquire);
        if ipa.0 != machine::RAM_BASE + have * BLOCK_SIZE {
            return Err((CommandStatus::IpaInUse, ipa.0));
        }
        blocks::donate(&list)?;
        let mut guard = self.stage2.lock();
        let Some(stage2) = guard.as_mut() else {
            blocks::reclaim_all(&list);
            return Err((CommandStatus::WrongState, core.state as u64));
        };
        for (index, &block) in list.iter().enumerate() {
            let at = Ipa(ipa.0 + index as u64 * BLOCK_SIZE);
            if let Err(error) = stage2.map(&mut Tables, at, block, BLOCK_SIZE, Access::Ram) {
                stage2.unmap(&mut Tables, ipa, index as u64 * BLOCK_SIZE);
                blocks::reclaim_all(&list);
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

    /// Gives everything back at once: nothing has been donated yet.
    pub(super) fn reclaim(&self) {
        self.begin_reclaim();
        while self.reclaim_some() {}
    }

    /// Takes the zone's stage 2 from use. No CPU is inside, and each invalidated the VMID when it left.
    fn begin_reclaim(&self) {
        if let Some(stage2) = self.stage2.lock().take() {
            *self.reclaiming.lock() = Some(stage2);
        }
    }

    /// Does the next part of destroying a zone that is off. Returns whether more is left. The zone cannot be
    /// started any more.
    ///
    /// # Errors
    /// The zone is not off.
    pub fn destroy_some(&self) -> Result<bool, Refusal> {
        {
            let core = self.core.lock();
            if !core.is_off() || self.inside.load(Ordering::Acquire) != 0 {
                return Err((CommandStatus::WrongState, core.state as u64));
            }
            self.begin_reclaim();
        }
        Ok(self.reclaim_some())
    }

    /// Returns some of the zone's blocks to root, or frees some of its devices or tables. Returns whether
    /// more is left.
    fn reclaim_some(&self) -> bool {
        let mut guard = self.reclaiming.lock();
        let Some(stage2) = guard.as_mut() else {
            return false;
        };
        let have = self.blocks.load(Ordering::Acquire);
        if have > 0 {
            let left = have.saturating_sub(BLOCKS_AT_ONCE as u64);
            let list: ArrayVec<Pa, BLOCKS_AT_ONCE> = (left..have)
                .filter_map(|index| stage2.translate(&Tables, Ipa(machine::RAM_BASE + index * BLOCK_SIZE)))
                .map(|(block, _)| block)
                .collect();
            blocks::reclaim_all(&list);
            self.blocks.store(left, Ordering::Release);
            return true;
        }
        if self.reclaim_flash() {
            return true;
        }
        // The device's frames are freed here.
        if self.slots.iter().any(|slot| slot.lock().take().is_some()) {
            return true;
        }
        if stage2.dismantle(&mut Tables) {
            return true;
        }
        if let Some(stage2) = guard.take() {
            stage2.destroy(&mut Tables);
        }
        false
    }
}
