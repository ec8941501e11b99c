//! PL011 registers: offsets and bits, named as in the manual.

use bitflags::bitflags;

/// Data.
pub const DR: u16 = 0x000;
/// Receive status (read), error clear (write).
pub const RSR_ECR: u16 = 0x004;
/// Flags, read-only.
pub const FR: u16 = 0x018;
/// IrDA low-power divisor.
pub const ILPR: u16 = 0x020;
/// Integer baud rate divisor.
pub const IBRD: u16 = 0x024;
/// Fractional baud rate divisor.
pub const FBRD: u16 = 0x028;
/// Line control.
pub const LCR_H: u16 = 0x02c;
/// Control.
pub const CR: u16 = 0x030;
/// Interrupt FIFO levels.
pub const IFLS: u16 = 0x034;
/// Interrupt mask; 1 enables.
pub const IMSC: u16 = 0x038;
/// Raw interrupt status, read-only.
pub const RIS: u16 = 0x03c;
/// Masked interrupt status, read-only.
pub const MIS: u16 = 0x040;
/// Interrupt clear, write-only.
pub const ICR: u16 = 0x044;
/// DMA control; stored, without effect.
pub const DMACR: u16 = 0x048;

/// IFLS after reset: both levels at one half.
pub const IFLS_RESET: u32 = 0x12;
/// Overrun in RSR.
pub const RSR_OE: u32 = 3;

/// PeriphID0-3: part 0x011, designer Arm, revision 3.
pub const PERIPH_ID: [u8; 4] = [0x11, 0x10, 0x34, 0x00];

bitflags! {
    /// FR.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Flags: u32 {
        /// Clear to send.
        const CTS = 1;
        /// Data set ready.
        const DSR = 1 << 1;
        /// Data carrier detect.
        const DCD = 1 << 2;
        /// Transmitting; never, here.
        const BUSY = 1 << 3;
        /// Receive FIFO empty.
        const RXFE = 1 << 4;
        /// Transmit FIFO full; never, here.
        const TXFF = 1 << 5;
        /// Receive FIFO full.
        const RXFF = 1 << 6;
        /// Transmit FIFO empty; always, here.
        const TXFE = 1 << 7;
    }
}

bitflags! {
    /// LCR_H.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct LineControl: u32 {
        /// Send break.
        const BRK = 1;
        /// Parity enable.
        const PEN = 1 << 1;
        /// Even parity.
        const EPS = 1 << 2;
        /// Two stop bits.
        const STP2 = 1 << 3;
        /// FIFO enable.
        const FEN = 1 << 4;
        /// Word length.
        const WLEN = 3 << 5;
        /// Stick parity.
        const SPS = 1 << 7;
    }
}

bitflags! {
    /// CR.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Control: u32 {
        /// UART enable.
        const UARTEN = 1;
        /// IrDA enable.
        const SIREN = 1 << 1;
        /// IrDA low power.
        const SIRLP = 1 << 2;
        /// Loopback: what is transmitted is received.
        const LBE = 1 << 7;
        /// Transmit enable.
        const TXE = 1 << 8;
        /// Receive enable.
        const RXE = 1 << 9;
        /// Data transmit ready.
        const DTR = 1 << 10;
        /// Request to send.
        const RTS = 1 << 11;
        /// Free output 1.
        const OUT1 = 1 << 12;
        /// Free output 2.
        const OUT2 = 1 << 13;
        /// RTS flow control.
        const RTSEN = 1 << 14;
        /// CTS flow control.
        const CTSEN = 1 << 15;
    }
}

bitflags! {
    /// IMSC, RIS, MIS, ICR.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Interrupts: u32 {
        /// Ring indicator.
        const RI = 1;
        /// CTS changed.
        const CTS = 1 << 1;
        /// DCD changed.
        const DCD = 1 << 2;
        /// DSR changed.
        const DSR = 1 << 3;
        /// Receive level reached.
        const RX = 1 << 4;
        /// Transmit level reached.
        const TX = 1 << 5;
        /// Receive time-out.
        const RT = 1 << 6;
        /// Framing error.
        const FE = 1 << 7;
        /// Parity error.
        const PE = 1 << 8;
        /// Break.
        const BE = 1 << 9;
        /// Overrun.
        const OE = 1 << 10;
    }
}
