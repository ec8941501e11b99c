//! A zone's PL011, whose other end are the zone's console rings.

use ringvisor::pl011;
use ringvisor::ring::ZoneWindow;
use ringvisor::ring::console::{InputConsumer, OutputProducer};
use ringvisor::syndrome::Width;

/// The device and its ends of the console rings.
pub struct Uart {
    device: pl011::Uart,
    output: OutputProducer,
    input: InputConsumer,
}

impl Uart {
    /// Returns a device after power-on, with empty rings.
    pub fn new() -> Self {
        Self {
            device: pl011::Uart::new(),
            output: OutputProducer::new(),
            input: InputConsumer::new(),
        }
    }

    /// Resets the device; what is in the rings stays.
    pub fn reset(&mut self) {
        self.device = pl011::Uart::new();
    }

    /// Returns the level of its interrupt line.
    pub fn line(&self) -> bool {
        self.device.line()
    }

    /// Emulates a register access. Returns the value of a load, and whether output was written to the ring.
    pub fn access(
        &mut self,
        window: &ZoneWindow,
        offset: u16,
        width: Width,
        stored: Option<u64>,
    ) -> (u32, bool) {
        let Some(value) = stored else {
            let mut source = || self.input.pop(&window.input());
            return (self.device.read(offset, width, &mut source), false);
        };
        let mut wrote = false;
        let mut sink = |byte| {
            self.output.write(&window.output(), &[byte]);
            wrote = true;
        };
        let mut source = || self.input.pop(&window.input());
        self.device.write(offset, width, value, &mut source, &mut sink);
        (0, wrote)
    }

    /// Receives what is in the input ring, as far as the FIFO has room.
    pub fn receive(&mut self, window: &ZoneWindow) {
        self.device.poll(&mut || self.input.pop(&window.input()));
    }
}
