//! The control device's PCI function: [`ConfigSpace`], its configuration space.
//!
//! EL2 maps the function's page of the ECAM window read-only for root, so reads never exit; a write traps and
//! goes to [`ConfigSpace::write`], which updates the page through [`Page`]. What BAR 0 holds is in
//! [`crate::abi`].
//!
//! Section numbers are those of the PCI Local Bus Specification 3.0.

use crate::abi::{BAR_SIZE, PCI_DEVICE, PCI_VENDOR};
use crate::addr::Pa;

/// Bytes of a function's configuration space in an ECAM window.
pub const CONFIG_SIZE: usize = 4096;

/// Implemented registers, as indices of 32-bit words.
mod word {
    pub const ID: usize = 0;
    /// Command in the lower half, status in the upper.
    pub const COMMAND: usize = 1;
    pub const CLASS: usize = 2;
    /// Cache line size in the lowest byte.
    pub const CACHE_LINE: usize = 3;
    pub const BAR0_LOW: usize = 4;
    pub const BAR0_HIGH: usize = 5;
    /// Interrupt line in the lowest byte, pin in the next.
    pub const INTERRUPT: usize = 15;
    /// Words of the header; the rest is zero.
    pub const COUNT: usize = 16;
}

/// Memory space enable, of the command register (6.2.2).
pub const COMMAND_MEMORY: u32 = 1 << 1;
/// Bus master enable. Stored, without effect: the function does no DMA.
pub const COMMAND_MASTER: u32 = 1 << 2;
/// INTx disable.
pub const COMMAND_INTX_DISABLE: u32 = 1 << 10;
/// Interrupt status, of the status register as the upper half of the word (6.2.3).
pub const STATUS_INTERRUPT: u32 = 1 << 19;

/// Base class 0xff: fits no other class (appendix D).
const CLASS_OTHER: u32 = 0xff00_0000;
/// BAR bits: memory, 64 bits wide, not prefetchable (6.2.5.1).
const BAR_TYPE: u32 = 0b0100;
/// Interrupt pin INTA (6.2.4).
const PIN_INTA: u32 = 1 << 8;

/// Writable bits of each word.
const WRITABLE: [u32; word::COUNT] = {
    let mut mask = [0; word::COUNT];
    mask[word::COMMAND] = COMMAND_MEMORY | COMMAND_MASTER | COMMAND_INTX_DISABLE;
    mask[word::CACHE_LINE] = 0xff;
    mask[word::BAR0_LOW] = !(BAR_SIZE as u32 - 1);
    mask[word::BAR0_HIGH] = u32::MAX;
    mask[word::INTERRUPT] = 0xff;
    mask
};

const _: () = assert!(BAR_SIZE.is_power_of_two() && BAR_SIZE >= 4096 && BAR_SIZE <= 1 << 31);

/// The page that shows the configuration space to root.
pub trait Page {
    /// Stores a little-endian 32-bit word at a byte offset, a multiple of 4 below [`CONFIG_SIZE`], in one
    /// access.
    fn store(&mut self, offset: u16, value: u32);
}

/// What EL2 must do after a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Effect {
    /// Nothing.
    None,
    /// Set the function's SPI pending: the interrupt status is set and INTx has just been enabled.
    RaiseIntx,
    /// INTx has just been disabled, by which Linux's interrupt handler acknowledges the interrupt: time for
    /// [`ConfigSpace::deassert_intx`]. A later assertion is signalled when INTx is enabled again.
    IntxMasked,
}

/// Configuration space of the control function, a type 0 header without capabilities.
///
/// INTx is a level of PCI that EL2 carries as a pulse: on each rising edge of the level
/// ([`Self::assert_intx`], or a write that enables INTx while the status is set) the SPI is set pending once.
/// While the level is high and INTx is enabled an interrupt is outstanding, so nothing is lost between two
/// pulses.
///
/// With [`Self::set_pulses`] every assertion is a pulse. The page then shows the status set and INTx
/// disabled: Linux's handler attributes the interrupt to this function and has nothing to write, and INTx
/// need not be enabled again, which saves two exits per interrupt. The armed flag of each ring limits
/// interrupts instead. Software that enables INTx ends this mode.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigSpace {
    words: [u32; word::COUNT],
    pulses: bool,
}

impl ConfigSpace {
    /// Returns the space after reset, but with BAR 0 at `bar`, which is the only place in the bridge's
    /// window: bits below [`BAR_SIZE`] are dropped.
    pub fn new(bar: Pa) -> Self {
        let mut words = [0; word::COUNT];
        words[word::ID] = (PCI_DEVICE as u32) << 16 | PCI_VENDOR as u32;
        words[word::CLASS] = CLASS_OTHER;
        words[word::BAR0_LOW] = bar.0 as u32 & WRITABLE[word::BAR0_LOW] | BAR_TYPE;
        words[word::BAR0_HIGH] = (bar.0 >> 32) as u32;
        words[word::INTERRUPT] = PIN_INTA;
        Self { words, pulses: false }
    }

    /// Writes the whole page.
    pub fn fill(&self, page: &mut impl Page) {
        for offset in (0..CONFIG_SIZE as u16).step_by(4) {
            page.store(offset, self.word(offset));
        }
    }

    /// Returns the address of BAR 0. EL2 need not follow a change: the window has only one place for it.
    /// While Linux sizes the BAR this is briefly all ones.
    pub fn bar(&self) -> Pa {
        let low = self.words[word::BAR0_LOW] & WRITABLE[word::BAR0_LOW];
        Pa(u64::from(self.words[word::BAR0_HIGH]) << 32 | u64::from(low))
    }

    /// Returns whether the interrupt status is set.
    pub fn is_asserted(&self) -> bool {
        self.words[word::COMMAND] & STATUS_INTERRUPT != 0
    }

    /// Returns whether INTx is disabled.
    pub fn is_masked(&self) -> bool {
        self.words[word::COMMAND] & COMMAND_INTX_DISABLE != 0
    }

    /// Enables or disables pulse mode. Enabling it always returns [`Effect::RaiseIntx`], for an assertion
    /// that INTx Disable has held back: a spurious check costs less than a lost interrupt.
    pub fn set_pulses(&mut self, page: &mut impl Page, pulses: bool) -> Effect {
        if pulses == self.pulses {
            return Effect::None;
        }
        self.pulses = pulses;
        if !pulses {
            return Effect::None;
        }
        let shown = self.words[word::COMMAND] | STATUS_INTERRUPT | COMMAND_INTX_DISABLE;
        self.set(page, word::COMMAND, shown);
        Effect::RaiseIntx
    }

    /// Sets the interrupt status. Returns [`Effect::RaiseIntx`] if that is a rising edge which INTx Disable
    /// does not hold back, or in pulse mode.
    pub fn assert_intx(&mut self, page: &mut impl Page) -> Effect {
        if self.pulses {
            return Effect::RaiseIntx;
        }
        let raise = !self.is_asserted() && !self.is_masked();
        self.set(page, word::COMMAND, self.words[word::COMMAND] | STATUS_INTERRUPT);
        if raise { Effect::RaiseIntx } else { Effect::None }
    }

    /// Clears the interrupt status.
    pub fn deassert_intx(&mut self, page: &mut impl Page) {
        self.set(page, word::COMMAND, self.words[word::COMMAND] & !STATUS_INTERRUPT);
    }

    /// Executes a store of `width` bytes (1, 2 or 4) at `offset` of the function's page. Another width, a
    /// store across a word, and bits that are not writable have no effect.
    pub fn write(&mut self, page: &mut impl Page, offset: u16, width: u8, value: u64) -> Effect {
        let lanes: u32 = match width {
            1 => 0xff,
            2 => 0xffff,
            4 => u32::MAX,
            _ => return Effect::None,
        };
        if !offset.is_multiple_of(u16::from(width)) {
            return Effect::None;
        }
        let index = usize::from(offset / 4);
        let (Some(old), Some(writable)) = (self.words.get(index).copied(), WRITABLE.get(index)) else {
            return Effect::None;
        };
        let shift = u32::from(offset % 4) * 8;
        let mask = lanes << shift & writable;
        self.set(page, index, old & !mask | (value as u32) << shift & mask);
        if index != word::COMMAND {
            return Effect::None;
        }
        self.pulses &= self.is_masked();
        match (old & COMMAND_INTX_DISABLE != 0, self.is_masked()) {
            (false, true) => Effect::IntxMasked,
            (true, false) if self.is_asserted() => Effect::RaiseIntx,
            _ => Effect::None,
        }
    }

    /// Returns the word at a byte offset; past the header all is zero.
    fn word(&self, offset: u16) -> u32 {
        self.words.get(usize::from(offset / 4)).copied().unwrap_or(0)
    }

    fn set(&mut self, page: &mut impl Page, index: usize, value: u32) {
        if let Some(word) = self.words.get_mut(index)
            && *word != value
        {
            *word = value;
            // Below 16.
            page.store(index as u16 * 4, value);
        }
    }
}

#[cfg(test)]
mod tests;
