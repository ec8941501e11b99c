//! The flash banks and the firmware configuration device of a zone with firmware.
//!
//! A bank in read-array mode is mapped: loads and fetches do not exit. In all other modes it is not, so that
//! loads trap. What the guest programs or erases is the daemon's to do: EL2 maps no memory of root's.

use ringvisor::abi::command::{CommandStatus, FlashKind, FlashOperation};
use ringvisor::abi::machine::{FIRMWARE_BLOCKS, FLASH_BASE, FLASH_BLOCKS, FLASH_SIZE, VARIABLE_BLOCKS};
use ringvisor::addr::{BLOCK_SIZE, Ipa, Pa};
use ringvisor::flash::{BUFFER, Bank, Buffer, ERASE_BLOCK, Effect, Operation};
use ringvisor::fw_cfg::FwCfg;
use ringvisor::ring::Entry;
use ringvisor::stage2::{Access, Stage2};
use ringvisor::syndrome::Width;

use super::Zone;
use crate::el2::arch;
use crate::el2::channel::Refusal;
use crate::el2::mm::blocks;
use crate::el2::mm::frames::{FrameBox, Tables};
use crate::el2::owner::TrapOutcome;

/// The two banks, with the blocks behind them, and the firmware configuration device.
pub struct Flash {
    banks: [Bank; 2],
    buffer: Buffer,
    blocks: [Pa; FLASH_BLOCKS],
    fw_cfg: FwCfg,
}

impl Flash {
    /// Returns the blocks behind a bank.
    fn blocks(&self, bank: usize) -> &[Pa] {
        let (firmware, variables) = self.blocks.split_at(FIRMWARE_BLOCKS);
        if bank == 0 { firmware } else { variables }
    }

    /// Maps a bank. Its table exists once it was mapped: then no frame is needed.
    #[inline(never)]
    fn map(&self, stage2: &mut Stage2, bank: usize) -> Result<(), Refusal> {
        for (index, &block) in self.blocks(bank).iter().enumerate() {
            let ipa = Ipa(base(bank).0 + index as u64 * BLOCK_SIZE);
            stage2
                .map(&mut Tables, ipa, block, BLOCK_SIZE, Access::Rom)
                .map_err(|_| (CommandStatus::OutOfMemory, 1))?;
        }
        arch::dsb_ish();
        Ok(())
    }
}

/// Returns the guest's address of a bank.
const fn base(bank: usize) -> Ipa {
    Ipa(FLASH_BASE + bank as u64 * FLASH_SIZE)
}

impl Zone {
    /// Takes the blocks of both banks and maps them. The caller holds the lock of `core`.
    ///
    /// # Errors
    /// A refusal; then none of the blocks is donated.
    pub(super) fn donate_flash(&self, list: &[Pa]) -> Result<(), Refusal> {
        let blocks: [Pa; FLASH_BLOCKS] = list
            .try_into()
            .map_err(|_| (CommandStatus::BadArgument, list.len() as u64))?;
        let mut place = self.flash.lock();
        if place.is_some() {
            return Err((CommandStatus::IpaInUse, FLASH_BASE));
        }
        let flash = FrameBox::reserve()
            .ok_or((CommandStatus::OutOfMemory, 2))?
            .fill(Flash {
                // The firmware's is locked.
                banks: [
                    Bank::new(0),
                    Bank::new(VARIABLE_BLOCKS as u32 * BLOCK_SIZE as u32),
                ],
                buffer: [0; BUFFER],
                blocks,
                fw_cfg: FwCfg::default(),
            });
        blocks::donate(&blocks)?;
        let mapped = match self.stage2.lock().as_mut() {
            Some(stage2) => (0..2).try_for_each(|bank| {
                flash.map(stage2, bank).inspect_err(|_| {
                    stage2.unmap(&mut Tables, base(0), 2 * FLASH_SIZE);
                })
            }),
            None => Err((CommandStatus::WrongState, FLASH_BASE)),
        };
        if mapped.is_err() {
            blocks::reclaim_all(&blocks);
            return mapped;
        }
        *place = Some(flash);
        Ok(())
    }

    /// Returns the blocks to root. The zone's stage 2 is no longer in use. Returns false if it has none.
    pub(super) fn reclaim_flash(&self) -> bool {
        let flash = self.flash.lock().take();
        if let Some(flash) = &flash {
            blocks::reclaim_all(&flash.blocks);
        }
        flash.is_some()
    }

    /// Returns whether `ipa` is in the firmware.
    pub(super) fn is_firmware(&self, ipa: Ipa) -> bool {
        ipa.0 < FLASH_BASE + FIRMWARE_BLOCKS as u64 * BLOCK_SIZE && self.flash.lock().is_some()
    }

    /// Resets the banks and the firmware configuration device. No vCPU is inside.
    pub(super) fn reset_flash(&self) {
        let mut guard = self.flash.lock();
        let Some(flash) = guard.as_deref_mut() else { return };
        flash.fw_cfg = FwCfg::default();
        for bank in 0..flash.banks.len() {
            if let Some(state) = flash.banks.get_mut(bank) {
                let mapped = state.reads_array();
                state.reset();
                if !mapped && let Some(stage2) = self.stage2.lock().as_mut() {
                    let _ = flash.map(stage2, bank);
                }
            }
        }
    }

    /// Emulates a store to a bank, or a load that did not find it mapped, at `offset` from the first bank.
    pub(super) fn flash_access(&self, offset: u64, width: Width, stored: Option<u64>) -> TrapOutcome {
        let mut guard = self.flash.lock();
        let Some(flash) = guard.as_deref_mut() else {
            return TrapOutcome::Abort;
        };
        let (bank, offset) = ((offset / FLASH_SIZE) as usize, (offset % FLASH_SIZE) as u32);
        let backed = u64::from(offset) < flash.blocks(bank).len() as u64 * BLOCK_SIZE;
        let Some(state) = flash.banks.get_mut(bank) else {
            return TrapOutcome::Abort;
        };
        let Some(value) = stored else {
            // It was mapped since the fault: the load is executed again and succeeds.
            if state.reads_array() && backed {
                return TrapOutcome::Retry;
            }
            return TrapOutcome::Done(state.read(offset, width));
        };
        match state.write(&mut flash.buffer, offset, width, value) {
            Effect::None => {}
            Effect::Operate => {
                drop(guard);
                self.send_event(Entry::Flash);
            }
            effect => {
                if let Some(stage2) = self.stage2.lock().as_mut() {
                    if effect == Effect::Map {
                        let _ = flash.map(stage2, bank);
                    } else {
                        stage2.unmap(&mut Tables, base(bank), FLASH_SIZE);
                        arch::tlbi_vmalls12e1is();
                    }
                }
            }
        }
        TrapOutcome::Done(0)
    }

    /// Emulates an access to the firmware configuration device.
    pub(super) fn fw_cfg_access(&self, offset: u16, width: Width, stored: Option<u64>) -> TrapOutcome {
        let mut guard = self.flash.lock();
        let Some(flash) = guard.as_deref_mut() else {
            return TrapOutcome::Abort;
        };
        TrapOutcome::Done(match stored {
            Some(value) => {
                flash.fw_cfg.write(offset, width, value);
                0
            }
            None => flash.fw_cfg.read(offset, width, self.cpus.len() as u16),
        })
    }

    /// Calls `show` with what the guest waits for.
    ///
    /// # Errors
    /// The zone has no flash.
    pub fn flash_operation(&self, show: impl FnOnce(&FlashOperation)) -> Result<(), Refusal> {
        let guard = self.flash.lock();
        let flash = guard.as_deref().ok_or((CommandStatus::WrongState, FLASH_BASE))?;
        let operation = flash.banks.iter().find_map(Bank::operation);
        let (kind, offset, len) = match operation {
            None => (FlashKind::None, 0, 0),
            Some((Operation::Program { offset, len }, _)) => (FlashKind::Program, offset, len),
            Some((Operation::Erase { offset }, _)) => (FlashKind::Erase, offset, ERASE_BLOCK),
        };
        show(&FlashOperation {
            sequence: operation.map_or(0, |(_, sequence)| sequence),
            kind: kind as u32,
            offset,
            len,
            reserved: 0,
            data: flash.buffer,
        });
        Ok(())
    }

    /// Ends what the guest waits for.
    ///
    /// # Errors
    /// It is not what the daemon has done.
    pub fn flash_done(&self, sequence: u64, done: bool) -> Result<(), Refusal> {
        let stale = (CommandStatus::Stale, sequence);
        let mut guard = self.flash.lock();
        let flash = guard.as_deref_mut().ok_or(stale)?;
        let ended = flash
            .banks
            .iter_mut()
            .any(|bank| bank.finish(sequence, done).is_ok());
        if ended { Ok(()) } else { Err(stale) }
    }
}
