//! The guest's PL011 over the zone's console rings.

use ringvisor::pl011::{self, Sink, Source};
use ringvisor::ring::console::{InputConsumer, OutputProducer};
use ringvisor::syndrome::Width;

use super::{Zone, machine};
use crate::el2::traps::Outcome;
use ringvisor::ring::{Entry, ZoneWindow};

/// The device and its ends of the rings; behind the zone's lock.
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
    /// After power-on; rings at their beginning.
    pub fn new() -> Self {
        Self {
            device: pl011::Uart::new(),
            output: OutputProducer::new(),
            input: InputConsumer::new(),
        }
    }

    /// The device as after power-on; what is in the rings stays.
    pub fn reset(&mut self) {
        self.device = pl011::Uart::new();
    }
}

impl Zone {
    pub(super) fn uart_access(&self, offset: u16, width: Width, stored: Option<u64>) -> Outcome {
        let mut guard = self.uart.lock();
        let Uart {
            device,
            output,
            input,
        } = &mut *guard;
        let source = &mut FromRing(input, self.window);
        let mut sink = ToRing {
            output,
            window: self.window,
            wrote: false,
        };
        let value = match stored {
            Some(value) => {
                device.write(offset, width, value, source, &mut sink);
                0
            }
            None => device.read(offset, width, source),
        };
        let wrote = sink.wrote;
        let line = device.line();
        self.let_go(guard, machine::UART_SPI, line);
        if wrote {
            self.tell(Entry::Console);
        }
        Outcome::Done(u64::from(value))
    }

    /// The daemon has put input into the ring.
    pub fn console_input(&self) {
        let mut guard = self.uart.lock();
        let Uart { device, input, .. } = &mut *guard;
        device.poll(&mut FromRing(input, self.window));
        let line = device.line();
        self.let_go(guard, machine::UART_SPI, line);
    }
}
