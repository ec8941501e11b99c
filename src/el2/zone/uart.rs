//! A zone's PL011, whose other end are the zone's console rings.

use ringvisor::pl011::{self, Sink, Source};
use ringvisor::ring::ZoneWindow;
use ringvisor::ring::console::{InputConsumer, OutputProducer};
use ringvisor::syndrome::Width;

/// The device and its ends of the console rings.
pub struct Uart {
    device: pl011::Uart,
    output: OutputProducer,
    input: InputConsumer,
}

struct FromRing<'a>(&'a mut InputConsumer, &'a ZoneWindow);

impl Source for FromRing<'_> {
    fn next(&mut self) -> Option<u8> {
        self.0.pop(&self.1.input())
    }
}

struct ToRing<'a> {
    output: &'a mut OutputProducer,
    window: &'a ZoneWindow,
    wrote: bool,
}

impl Sink for ToRing<'_> {
    fn put(&mut self, byte: u8) {
        self.output.write(&self.window.output(), &[byte]);
        self.wrote = true;
    }
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
        let source = &mut FromRing(&mut self.input, window);
        let mut sink = ToRing {
            output: &mut self.output,
            window,
            wrote: false,
        };
        let value = match stored {
            Some(value) => {
                self.device.write(offset, width, value, source, &mut sink);
                0
            }
            None => self.device.read(offset, width, source),
        };
        (value, sink.wrote)
    }

    /// Receives what is in the input ring, as far as the FIFO has room.
    pub fn receive(&mut self, window: &ZoneWindow) {
        self.device.poll(&mut FromRing(&mut self.input, window));
    }
}
