//! The UART as its drivers use it.

use super::registers as r;
use super::{FIFO_DEPTH, Sink, Source, Uart};
use crate::pl011::registers::{Flags, Interrupts};
use crate::syndrome::Width;
use arrayvec::ArrayVec;

#[derive(Default)]
struct Wire {
    input: ArrayVec<u8, 256>,
    output: ArrayVec<u8, 256>,
    asked: usize,
}

struct Input<'a>(&'a mut Wire);
impl Source for Input<'_> {
    fn next(&mut self) -> Option<u8> {
        self.0.asked += 1;
        self.0.input.pop_at(0)
    }
}

struct Output<'a>(&'a mut ArrayVec<u8, 256>);
impl Sink for Output<'_> {
    fn put(&mut self, byte: u8) {
        self.0.push(byte);
    }
}

struct Bench {
    uart: Uart,
    wire: Wire,
}

impl Bench {
    fn new() -> Self {
        Self {
            uart: Uart::new(),
            wire: Wire::default(),
        }
    }

    /// As Linux's amba-pl011 leaves it: FIFOs on, receive at a half, RX and RT unmasked.
    fn started() -> Self {
        let mut bench = Self::new();
        bench.write(r::ICR, 0x7ff);
        bench.write(r::IFLS, 0x12);
        bench.write(r::LCR_H, 0x70);
        bench.write(r::CR, 0x301);
        bench.write(r::IMSC, (Interrupts::RX | Interrupts::RT).bits());
        bench
    }

    fn read(&mut self, offset: u16) -> u32 {
        self.uart.read(offset, Width::Half, &mut Input(&mut self.wire))
    }

    fn write(&mut self, offset: u16, value: u32) {
        let mut output = core::mem::take(&mut self.wire.output);
        self.uart.write(
            offset,
            Width::Half,
            value.into(),
            &mut Input(&mut self.wire),
            &mut Output(&mut output),
        );
        self.wire.output = output;
    }

    fn arrive(&mut self, bytes: &[u8]) {
        self.wire.input.try_extend_from_slice(bytes).unwrap();
        self.uart.poll(&mut Input(&mut self.wire));
    }
}

#[test]
fn earlycon_transmits_without_uarten() {
    let mut bench = Bench::new();
    for byte in *b"boot" {
        assert_eq!(bench.read(r::FR) & (Flags::TXFF | Flags::BUSY).bits(), 0);
        bench.write(r::DR, byte.into());
    }
    assert_eq!(bench.wire.output.as_slice(), b"boot");
    assert!(!bench.uart.line(), "nothing is unmasked");
}

#[test]
fn transmit_interrupt() {
    let mut bench = Bench::started();
    bench.write(r::IMSC, Interrupts::TX.bits());
    assert!(!bench.uart.line(), "no character has passed the level yet");
    bench.write(r::DR, 0x41);
    assert!(bench.uart.line());
    bench.write(r::ICR, Interrupts::TX.bits());
    assert!(!bench.uart.line());
    bench.write(r::DR, 0x42);
    bench.write(r::IMSC, 0);
    assert!(!bench.uart.line(), "masked");
    assert_eq!(bench.read(r::RIS) & Interrupts::TX.bits(), Interrupts::TX.bits());
    assert_eq!(bench.read(r::MIS), 0);
}

#[test]
fn one_character_times_out_and_is_read() {
    let mut bench = Bench::started();
    bench.arrive(b"x");
    assert!(bench.uart.line());
    assert_eq!(bench.read(r::MIS), Interrupts::RT.bits());
    assert_eq!(bench.read(r::FR) & Flags::RXFE.bits(), 0);
    assert_eq!(bench.read(r::DR), 0x78);
    assert!(!bench.uart.line());
    assert_ne!(bench.read(r::FR) & Flags::RXFE.bits(), 0);
    assert_eq!(bench.read(r::DR), 0, "empty");
}

#[test]
fn receive_level_by_ifls() {
    for (select, level) in [(0, 4), (1, 8), (2, 16), (3, 24), (4, 28), (7, 28)] {
        let mut bench = Bench::started();
        bench.write(r::IFLS, select << 3);
        for count in 1..=32usize {
            bench.arrive(b"a");
            assert_eq!(
                bench.read(r::RIS) & Interrupts::RX.bits() != 0,
                count >= level,
                "{select} {count}"
            );
        }
        for left in (0..32usize).rev() {
            bench.read(r::DR);
            assert_eq!(
                bench.read(r::RIS) & Interrupts::RX.bits() != 0,
                left >= level,
                "{select} {left}"
            );
        }
    }
}

#[test]
fn nothing_is_lost_while_the_guest_is_busy() {
    let mut bench = Bench::started();
    let sent: ArrayVec<u8, 100> = (0..100).collect();
    bench.arrive(&sent);
    assert_ne!(bench.read(r::FR) & Flags::RXFF.bits(), 0);
    assert_eq!(
        bench.wire.input.len(),
        100 - FIFO_DEPTH,
        "the source keeps what does not fit"
    );
    let got: ArrayVec<u8, 100> = (0..100).map(|_| bench.read(r::DR) as u8).collect();
    assert_eq!(got, sent);
    assert_eq!(bench.read(r::RIS) & Interrupts::OE.bits(), 0);
}

#[test]
fn without_fifos_there_is_room_for_one() {
    let mut bench = Bench::new();
    bench.write(r::IMSC, Interrupts::RX.bits());
    bench.arrive(b"ab");
    assert_ne!(bench.read(r::FR) & Flags::RXFF.bits(), 0);
    assert!(bench.uart.line());
    assert_eq!(bench.read(r::DR), 0x61);
    assert!(bench.uart.line(), "the next one has moved up");
    assert_eq!(bench.read(r::DR), 0x62);
    assert!(!bench.uart.line());
}

#[test]
fn clearing_after_draining_does_not_lose_a_wakeup() {
    let mut bench = Bench::started();
    bench.arrive(b"a");
    bench.read(r::DR);
    assert_ne!(
        bench.read(r::FR) & Flags::RXFE.bits(),
        0,
        "the driver thinks it is done"
    );
    bench.arrive(b"b");
    bench.write(r::ICR, 0x7ff);
    assert!(bench.uart.line(), "the second character still interrupts");
}

#[test]
fn clearing_received_characters_interrupt() {
    let mut bench = Bench::started();
    bench.arrive(b"ab");
    assert_eq!(bench.read(r::MIS), Interrupts::RT.bits());
    bench.write(r::ICR, Interrupts::RT.bits());
    assert!(!bench.uart.line());
    assert_eq!(bench.read(r::DR), 0x61);
    assert!(bench.uart.line(), "reading restarts the time-out for the rest");
}

#[test]
fn loopback_feeds_the_receiver_alone() {
    let mut bench = Bench::started();
    bench.write(r::CR, 0x381);
    bench.arrive(b"z");
    for byte in 0..33 {
        bench.write(r::DR, byte);
    }
    assert!(bench.wire.output.is_empty());
    assert_eq!(bench.read(r::RSR_ECR), 8, "the 33rd overran");
    assert_eq!(bench.read(r::RIS) & Interrupts::OE.bits(), Interrupts::OE.bits());
    bench.write(r::RSR_ECR, 0);
    assert_eq!(bench.read(r::RSR_ECR), 0);
    for byte in 0..32 {
        assert_eq!(bench.read(r::DR), byte);
    }
    bench.write(r::CR, 0x301);
    assert_eq!(bench.read(r::DR), 0x7a, "the wire's character waited");
}

#[test]
fn identification_as_the_amba_bus_reads_it() {
    let mut bench = Bench::new();
    let id = |bench: &mut Bench, base: u16| {
        (0..4).fold(0, |id, byte| {
            id | bench.read(base + 4 * byte) << (8 * u32::from(byte))
        })
    };
    assert_eq!(id(&mut bench, 0xff0), 0xb105_f00d);
    let periph = id(&mut bench, 0xfe0);
    assert_eq!(periph & 0x000f_ffff, 0x0004_1011);
    assert_eq!(periph >> 20 & 0xf, 3, "revision 3: FIFOs of 32");
}

#[test]
fn registers_keep_what_they_have_bits_for() {
    let mut bench = Bench::new();
    for (offset, kept) in [
        (r::ILPR, 0xff),
        (r::IBRD, 0xffff),
        (r::FBRD, 0x3f),
        (r::LCR_H, 0xff),
        (r::CR, 0xff87),
        (r::IFLS, 0x3f),
        (r::IMSC, 0x7ff),
        (r::DMACR, 7),
    ] {
        bench.write(offset, 0xffff);
        assert_eq!(bench.read(offset), kept, "{offset:#x}");
        bench.write(offset, 0);
        assert_eq!(bench.read(offset), 0, "{offset:#x}");
    }
}

// torture a1, for the UART: no width, offset or value does anything unbounded or leaves the page.
#[test]
fn any_access_is_bounded() {
    let mut bench = Bench::new();
    for offset in (0..0x1000).step_by(if cfg!(miri) { 61 } else { 1 }) {
        for width in Width::ALL {
            for value in [0, 1, 0x10, 0x80, u64::MAX] {
                bench.wire.asked = 0;
                let mut output = ArrayVec::new();
                bench.uart.write(
                    offset,
                    width,
                    value,
                    &mut Input(&mut bench.wire),
                    &mut Output(&mut output),
                );
                let read = bench.uart.read(offset, width, &mut Input(&mut bench.wire));
                assert_eq!(u64::from(read) & !width.mask(), 0);
                if offset % 4 != 0 || width == Width::Double {
                    assert_eq!(read, 0);
                    assert!(output.is_empty());
                }
                assert!(bench.wire.asked <= 3 * FIFO_DEPTH);
            }
        }
    }
}
