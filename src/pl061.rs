//! The PL061 general-purpose I/O controller of a guest (Arm DDI 0190B): [`Gpio`].
//!
//! One of its eight lines is connected, to the power key. What a guest writes to the other lines goes
//! nowhere.

use crate::primecell;
use crate::syndrome::Width;

/// Register offsets, named as in the manual.
pub mod registers {
    /// Data: bits 9 to 2 of the address choose the lines that are read or written.
    pub const DATA_END: u16 = 0x3fc;
    /// Direction; 1 is an output.
    pub const DIR: u16 = 0x400;
    /// Interrupt sense; 1 is a level.
    pub const IS: u16 = 0x404;
    /// Interrupt on both edges.
    pub const IBE: u16 = 0x408;
    /// Interrupt event; 1 is a rising edge or a high level.
    pub const IEV: u16 = 0x40c;
    /// Interrupt mask; 1 enables.
    pub const IE: u16 = 0x410;
    /// Raw interrupt status, read-only.
    pub const RIS: u16 = 0x414;
    /// Masked interrupt status, read-only.
    pub const MIS: u16 = 0x418;
    /// Interrupt clear, write-only.
    pub const IC: u16 = 0x41c;
    /// Mode control select: software or hardware control, without effect here.
    pub const AFSEL: u16 = 0x420;
}

use registers as reg;

/// The line of the power key, as in QEMU's `virt`.
pub const POWER_KEY: u8 = 3;

/// PeriphID0-3: part 0x061, designer Arm.
const PERIPH_ID: [u8; 4] = [0x61, 0x10, 0x04, 0x00];

/// State of the device: a bit for each line.
#[derive(Clone, Debug, Default)]
pub struct Gpio {
    inputs: u8,
    outputs: u8,
    direction: u8,
    sense: u8,
    both: u8,
    event: u8,
    enabled: u8,
    /// Edges that were seen.
    edges: u8,
    mode: u8,
}

impl Gpio {
    /// Returns a device after power-on: all lines are inputs, and low.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Presses or releases the power key.
    pub fn set_power_key(&mut self, pressed: bool) {
        let before = self.data();
        let key = 1 << POWER_KEY;
        self.inputs = if pressed { key } else { 0 };
        let changed = before ^ self.data();
        self.edges |= changed & !self.sense & (self.both | !(self.data() ^ self.event));
    }

    /// Returns the level of the interrupt output GPIOINTR.
    #[must_use]
    pub const fn line(&self) -> bool {
        self.raw() & self.enabled != 0
    }

    const fn data(&self) -> u8 {
        self.inputs & !self.direction | self.outputs & self.direction
    }

    const fn raw(&self) -> u8 {
        self.edges | self.sense & !(self.data() ^ self.event)
    }

    /// Executes a load of `width` at `offset` in the page. Undefined offsets read as zero.
    #[must_use]
    pub fn read(&self, offset: u16, width: Width) -> u32 {
        if width == Width::Double {
            return 0;
        }
        let value = match offset {
            0..=reg::DATA_END if offset.is_multiple_of(4) => self.data() & (offset >> 2) as u8,
            reg::DIR => self.direction,
            reg::IS => self.sense,
            reg::IBE => self.both,
            reg::IEV => self.event,
            reg::IE => self.enabled,
            reg::RIS => self.raw(),
            reg::MIS => self.raw() & self.enabled,
            reg::AFSEL => self.mode,
            _ => return primecell::identification(PERIPH_ID, offset),
        };
        value.into()
    }

    /// Executes a store at `offset` in the page. Only 32-bit stores to registers have an effect.
    pub fn write(&mut self, offset: u16, width: Width, value: u64) {
        if width != Width::Word {
            return;
        }
        let value = value as u8;
        match offset {
            0..=reg::DATA_END if offset.is_multiple_of(4) => {
                let lines = (offset >> 2) as u8 & self.direction;
                self.outputs = self.outputs & !lines | value & lines;
            }
            reg::DIR => self.direction = value,
            reg::IS => self.sense = value,
            reg::IBE => self.both = value,
            reg::IEV => self.event = value,
            reg::IE => self.enabled = value,
            reg::IC => self.edges &= !value,
            reg::AFSEL => self.mode = value,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::registers as reg;
    use super::{Gpio, POWER_KEY};
    use crate::syndrome::Width;

    const KEY: u32 = 1 << POWER_KEY;
    /// The data register of all lines.
    const DATA: u16 = reg::DATA_END;

    fn read(gpio: &Gpio, offset: u16) -> u32 {
        gpio.read(offset, Width::Word)
    }

    fn write(gpio: &mut Gpio, offset: u16, value: u32) {
        gpio.write(offset, Width::Word, value.into());
    }

    #[test]
    fn both_edges_of_the_key_interrupt() {
        // As Linux's gpio-keys sets it up.
        let mut gpio = Gpio::new();
        write(&mut gpio, reg::IBE, KEY);
        write(&mut gpio, reg::IE, KEY);
        assert!(!gpio.line());
        for pressed in [true, false] {
            gpio.set_power_key(pressed);
            assert!(gpio.line());
            assert_eq!(read(&gpio, reg::MIS), KEY);
            assert_eq!(read(&gpio, DATA), if pressed { KEY } else { 0 });
            write(&mut gpio, reg::IC, KEY);
            assert!(!gpio.line());
            gpio.set_power_key(pressed);
            assert!(!gpio.line(), "no edge");
        }
    }

    #[test]
    fn one_edge_or_a_level_interrupts() {
        for (event, pressed) in [(KEY, true), (0, false)] {
            let mut gpio = Gpio::new();
            gpio.set_power_key(!pressed);
            write(&mut gpio, reg::IEV, event);
            write(&mut gpio, reg::IC, 0xff);
            gpio.set_power_key(pressed);
            assert_eq!(read(&gpio, reg::RIS) & KEY, KEY);
            assert_eq!((read(&gpio, reg::MIS), gpio.line()), (0, false), "it is masked");
            gpio.set_power_key(!pressed);
            assert_eq!(read(&gpio, reg::RIS) & KEY, KEY, "latched");
            // A level is not.
            write(&mut gpio, reg::IC, 0xff);
            write(&mut gpio, reg::IS, KEY);
            write(&mut gpio, reg::IE, KEY);
            assert!(!gpio.line());
            gpio.set_power_key(pressed);
            assert!(gpio.line());
            write(&mut gpio, reg::IC, 0xff);
            assert!(gpio.line());
            gpio.set_power_key(!pressed);
            assert!(!gpio.line());
        }
    }

    #[test]
    fn data_is_chosen_by_the_address() {
        let mut gpio = Gpio::new();
        write(&mut gpio, DATA, 0xff);
        assert_eq!(read(&gpio, DATA), 0, "inputs are not written");
        write(&mut gpio, reg::DIR, 0xf0);
        write(&mut gpio, 0x30 << 2, 0xff);
        gpio.set_power_key(true);
        assert_eq!(read(&gpio, DATA), 0x30 | KEY);
        assert_eq!(read(&gpio, 0x18 << 2), 0x10 | KEY);
        assert_eq!(read(&gpio, 0), 0);
    }

    #[test]
    fn identification_and_other_accesses() {
        let mut gpio = Gpio::new();
        let byte = |n: u16| read(&gpio, 0xfe0 + 4 * n) << (8 * u32::from(n % 4));
        assert_eq!((0..4).map(byte).sum::<u32>(), 0x0004_1061);
        assert_eq!((4..8).map(byte).sum::<u32>(), 0xb105_f00d);
        for offset in (0..0x1000).step_by(if cfg!(miri) { 61 } else { 1 }) {
            for width in Width::ALL {
                if offset % 4 != 0 || width != Width::Word {
                    gpio.write(offset, width, u64::MAX);
                }
                assert!(gpio.read(offset, width) <= 0xff);
            }
        }
        for offset in [reg::DIR, reg::IS, reg::IBE, reg::IEV, reg::IE, reg::AFSEL] {
            assert_eq!(read(&gpio, offset), 0);
            write(&mut gpio, offset, 0x1a5);
            assert_eq!(read(&gpio, offset), 0xa5);
        }
    }
}
