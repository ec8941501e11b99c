//! The PL011 UART of a guest (Arm DDI 0183, r1p5: FIFOs of 32 characters): [`Uart`].
//!
//! Characters come from a [`Source`] and go to a [`Sink`] that accepts them at once, so the transmit FIFO is
//! always empty. The source is read only while there is room in the receive FIFO: nothing is lost while the
//! guest is busy. Like QEMU's model it works whether or not the guest has set UARTEN, because early consoles
//! do not.
//!
//! The receive time-out, which hardware raises 32 bit periods after the last character, is raised at once. A
//! guest that drains the FIFO and then clears interrupts would lose the one for a character that arrived in
//! between; so ICR does not clear receive interrupts for characters that the guest cannot have seen.
//!
//! Neighbours: [`registers`]; `src/el2` traps the accesses and connects [`Uart::line`] to an SPI.

pub mod registers;

use arrayvec::ArrayVec;

use crate::primecell;
use crate::syndrome::Width;
use registers::{self as reg, Control, Flags, Interrupts, LineControl};

/// Characters in a FIFO.
pub const FIFO_DEPTH: usize = 32;

/// The source of received characters.
pub trait Source {
    /// Removes and returns the next character, if there is one.
    fn next(&mut self) -> Option<u8>;
}

impl<F: FnMut() -> Option<u8>> Source for F {
    fn next(&mut self) -> Option<u8> {
        self()
    }
}

/// The sink of transmitted characters.
pub trait Sink {
    /// Accepts a character. Never waits.
    fn put(&mut self, byte: u8);
}

impl<F: FnMut(u8)> Sink for F {
    fn put(&mut self, byte: u8) {
        self(byte);
    }
}

/// State of the device.
#[derive(Clone, Debug)]
pub struct Uart {
    received: ArrayVec<u8, FIFO_DEPTH>,
    /// A character arrived since the guest last read a register that shows it.
    unseen: bool,
    overrun: bool,
    raw: Interrupts,
    mask: Interrupts,
    line_control: LineControl,
    control: Control,
    ifls: u32,
    ilpr: u32,
    ibrd: u32,
    fbrd: u32,
    dmacr: u32,
}

impl Default for Uart {
    fn default() -> Self {
        Self::new()
    }
}

impl Uart {
    /// Returns a device after reset.
    pub fn new() -> Self {
        Self {
            received: ArrayVec::new(),
            unseen: false,
            overrun: false,
            raw: Interrupts::empty(),
            mask: Interrupts::empty(),
            line_control: LineControl::empty(),
            control: Control::TXE | Control::RXE,
            ifls: reg::IFLS_RESET,
            ilpr: 0,
            ibrd: 0,
            fbrd: 0,
            dmacr: 0,
        }
    }

    /// Returns the level of the interrupt output UARTINTR.
    pub fn line(&self) -> bool {
        self.raw.intersects(self.mask)
    }

    /// Receives what the source has and the FIFO has room for, at most [`FIFO_DEPTH`] characters.
    pub fn poll(&mut self, source: &mut impl Source) {
        if self.control.contains(Control::LBE) {
            return;
        }
        while self.received.len() < self.depth() {
            let Some(byte) = source.next() else { break };
            self.receive(byte);
        }
    }

    /// Executes a load of `width` at `offset` in the page. Undefined offsets read as zero.
    pub fn read(&mut self, offset: u16, width: Width, source: &mut impl Source) -> u32 {
        if width == Width::Double {
            return 0;
        }
        self.poll(source);
        let value = match offset {
            reg::DR => {
                let byte = self.take();
                self.poll(source);
                byte
            }
            reg::RSR_ECR => u32::from(self.overrun) << reg::RSR_OE,
            reg::FR => self.flags().bits(),
            reg::ILPR => self.ilpr,
            reg::IBRD => self.ibrd,
            reg::FBRD => self.fbrd,
            reg::LCR_H => self.line_control.bits(),
            reg::CR => self.control.bits(),
            reg::IFLS => self.ifls,
            reg::IMSC => self.mask.bits(),
            reg::RIS => self.raw.bits(),
            reg::MIS => (self.raw & self.mask).bits(),
            reg::DMACR => self.dmacr,
            _ => primecell::identification(reg::PERIPH_ID, offset),
        };
        if matches!(offset, reg::DR | reg::FR | reg::RIS | reg::MIS) {
            self.unseen = false;
        }
        value & width.mask() as u32
    }

    /// Executes a store of `width` at `offset` in the page. Undefined offsets and read-only registers ignore
    /// it.
    pub fn write(
        &mut self,
        offset: u16,
        width: Width,
        value: u64,
        source: &mut impl Source,
        sink: &mut impl Sink,
    ) {
        if width == Width::Double {
            return;
        }
        let value = (value & width.mask()) as u32;
        match offset {
            reg::DR => self.transmit(value as u8, sink),
            reg::RSR_ECR => self.overrun = false,
            reg::ILPR => self.ilpr = value & 0xff,
            reg::IBRD => self.ibrd = value & 0xffff,
            reg::FBRD => self.fbrd = value & 0x3f,
            reg::LCR_H => {
                self.line_control = LineControl::from_bits_truncate(value);
                self.check_level();
            }
            reg::CR => self.control = Control::from_bits_truncate(value),
            reg::IFLS => {
                self.ifls = value & 0x3f;
                self.check_level();
            }
            reg::IMSC => self.mask = Interrupts::from_bits_truncate(value),
            reg::ICR => self.clear(Interrupts::from_bits_truncate(value)),
            reg::DMACR => self.dmacr = value & 7,
            _ => {}
        }
        self.poll(source);
    }

    /// Returns the depth of the receive FIFO: one if FIFOs are disabled.
    fn depth(&self) -> usize {
        if self.line_control.contains(LineControl::FEN) {
            FIFO_DEPTH
        } else {
            1
        }
    }

    /// Returns the number of characters at which the receive interrupt is raised.
    fn receive_level(&self) -> usize {
        if !self.line_control.contains(LineControl::FEN) {
            return 1;
        }
        match self.ifls >> 3 & 7 {
            0 => FIFO_DEPTH / 8,
            1 => FIFO_DEPTH / 4,
            2 => FIFO_DEPTH / 2,
            3 => FIFO_DEPTH / 4 * 3,
            // 4, and the reserved values.
            _ => FIFO_DEPTH / 8 * 7,
        }
    }

    fn flags(&self) -> Flags {
        let mut flags = Flags::TXFE | Flags::CTS | Flags::DSR | Flags::DCD;
        flags.set(Flags::RXFE, self.received.is_empty());
        flags.set(Flags::RXFF, self.received.len() >= self.depth());
        flags
    }

    fn receive(&mut self, byte: u8) {
        if self.received.len() >= self.depth() || self.received.try_push(byte).is_err() {
            self.overrun = true;
            self.raw |= Interrupts::OE;
            return;
        }
        self.unseen = true;
        self.raw |= Interrupts::RT;
        if self.received.len() == self.receive_level() {
            self.raw |= Interrupts::RX;
        }
    }

    /// Removes and returns the oldest character, or returns 0.
    fn take(&mut self) -> u32 {
        let Some(byte) = self.received.pop_at(0) else {
            return 0;
        };
        if self.received.len() < self.receive_level() {
            self.raw -= Interrupts::RX;
        }
        // Reading restarts the time-out.
        self.raw.set(Interrupts::RT, !self.received.is_empty());
        u32::from(byte)
    }

    /// Transmits a character. The FIFO drains at once, so each character passes the transmit level.
    fn transmit(&mut self, byte: u8, sink: &mut impl Sink) {
        if self.control.contains(Control::LBE) {
            self.receive(byte);
        } else {
            sink.put(byte);
        }
        self.raw |= Interrupts::TX;
    }

    /// Updates the receive interrupt after a change of the level.
    fn check_level(&mut self) {
        self.raw
            .set(Interrupts::RX, self.received.len() >= self.receive_level());
    }

    fn clear(&mut self, mut which: Interrupts) {
        if self.unseen {
            which -= Interrupts::RX | Interrupts::RT;
        }
        self.raw -= which;
    }
}

#[cfg(test)]
mod tests;
