//! Tests of the flash bank. A model of its memory does what the daemon does.

extern crate std;

use std::vec::Vec;

use proptest::prelude::*;

use super::{BUFFER, Bank, Buffer, ERASE_BLOCK, Effect, Operation, Stale};
use crate::syndrome::Width;

const SIZE: u32 = 2 << 20;
const READY: u64 = 0x80_0080;

/// A bank with its memory and the daemon.
struct Rig {
    bank: Bank,
    buffer: Buffer,
    memory: Vec<u8>,
    /// Whether loads reach the bank.
    trapped: bool,
    /// Operations that were done.
    done: Vec<Operation>,
}

impl Rig {
    fn new() -> Self {
        Self {
            bank: Bank::new(SIZE),
            buffer: [0; BUFFER],
            memory: std::vec![0xff; SIZE as usize],
            trapped: false,
            done: Vec::new(),
        }
    }

    /// A store; the operation that it begins is left to be done.
    fn store(&mut self, offset: u32, width: Width, value: u64) -> Effect {
        let effect = self.bank.write(&mut self.buffer, offset, width, value);
        match effect {
            Effect::Trap => self.trapped = true,
            Effect::Map => self.trapped = false,
            Effect::None | Effect::Operate => {}
        }
        assert_eq!(self.trapped, !self.bank.reads_array());
        assert_eq!(
            effect == Effect::Operate,
            self.bank.operation().is_some() && effect != Effect::None
        );
        effect
    }

    /// The daemon does the operation, as often as `times`.
    fn operate(&mut self, times: usize) {
        let (operation, sequence) = self.bank.operation().unwrap();
        for _ in 0..times {
            match operation {
                Operation::Erase { offset } => {
                    let block = self.memory.iter_mut().skip(offset as usize);
                    block.take(ERASE_BLOCK as usize).for_each(|byte| *byte = 0xff);
                }
                Operation::Program { offset, len } => {
                    let data = self
                        .buffer
                        .iter()
                        .skip(offset as usize % BUFFER)
                        .take(len as usize);
                    let place = self.memory.iter_mut().skip(offset as usize);
                    place.zip(data).for_each(|(to, from)| *to &= from);
                }
            }
        }
        self.done.push(operation);
        self.bank.finish(sequence, true).unwrap();
    }

    /// A store of a driver that sends commands to both devices and waits until they are ready.
    fn command(&mut self, offset: u32, value: u32) {
        if self.store(offset, Width::Word, value.into()) == Effect::Operate {
            assert_eq!(self.load(0) & READY, 0, "busy");
            self.operate(1);
        }
    }

    fn load(&self, offset: u32) -> u64 {
        if self.trapped {
            self.bank.read(offset, Width::Word)
        } else {
            let bytes = &self.memory[offset as usize..][..4];
            u32::from_le_bytes(bytes.try_into().unwrap()).into()
        }
    }

    fn program(&mut self, offset: u32, words: &[u32]) {
        self.command(offset, 0xe8_00e8);
        assert_eq!(self.load(offset), READY);
        self.command(offset, (words.len() as u32 - 1) * 0x1_0001);
        for (at, word) in (offset..).step_by(4).zip(words) {
            self.command(at, *word);
        }
        self.command(offset, 0xd0_00d0);
    }
}

// The sequences and replies of QEMU 7.2's `virt` (`-accel qtest`), but for the size of the write buffer.
#[test]
fn identification_and_query_are_qemus() {
    let mut rig = Rig::new();
    rig.command(0, 0x90_0090);
    assert_eq!([0, 4, 8].map(|at| rig.load(at)), [0x89_0089, 0x18_0018, 0]);
    assert_eq!(rig.bank.read(0, Width::Byte), 0x89);
    assert_eq!(rig.bank.read(0, Width::Half), 0x89);
    assert_eq!(rig.bank.read(0, Width::Double), 0x0018_0018_0089_0089);
    rig.command(0x154, 0x98_0098);
    let query = |rig: &Rig, address: u32| rig.load(address * 4);
    assert_eq!(
        [0x10, 0x11, 0x12].map(|at| query(&rig, at)),
        [0x51_0051, 0x52_0052, 0x59_0059]
    );
    let geometry = [0x27, 0x28, 0x2a, 0x2c, 0x2d, 0x2e, 0x2f, 0x30].map(|at| query(&rig, at) & 0xff);
    assert_eq!(geometry, [0x19, 2, 0xa, 1, 0xff, 0, 0, 2]);
    assert_eq!([0x31, 0x32, 0x33].map(|at| query(&rig, at) as u8), *b"PRI");
    assert_eq!(query(&rig, 0x3f), 0x1_0001);
    assert_eq!([0x0f, 0x40, 0x1000].map(|at| query(&rig, at)), [0; 3]);
    rig.command(0, 0xff_00ff);
    assert_eq!(rig.load(0), 0xffff_ffff);
}

#[test]
fn a_word_is_programmed() {
    let mut rig = Rig::new();
    for code in [0x40_0040, 0x10_0010] {
        rig.command(0x1000, code);
        rig.command(0x1004, 0x1234_5678);
        assert_eq!(rig.load(0), READY);
    }
    // Bits are cleared only.
    rig.command(0, 0x40_0040);
    rig.command(0x1004, 0xffff_00ff);
    rig.command(0, 0xff_00ff);
    assert_eq!(
        [0x1000, 0x1004, 0x1008].map(|at| rig.load(at)),
        [0xffff_ffff, 0x1234_0078, 0xffff_ffff]
    );
    assert_eq!(
        rig.done[0],
        Operation::Program {
            offset: 0x1004,
            len: 4
        }
    );
}

#[test]
fn the_buffer_is_programmed_and_a_block_erased() {
    let mut rig = Rig::new();
    let words: Vec<u32> = (0..BUFFER as u32 / 4).collect();
    rig.program(ERASE_BLOCK, &words);
    rig.program(ERASE_BLOCK + 0x2010, &[1, 2, 3]);
    rig.command(0, 0xff_00ff);
    assert_eq!(rig.load(ERASE_BLOCK + 0x7fc), 0x1ff);
    assert_eq!(rig.load(ERASE_BLOCK + 0x2018), 3);
    assert_eq!(
        rig.done[1],
        Operation::Program {
            offset: ERASE_BLOCK + 0x2010,
            len: 12
        }
    );
    rig.command(2 * ERASE_BLOCK - 4, 0x20_0020);
    rig.command(2 * ERASE_BLOCK - 4, 0xd0_00d0);
    rig.command(0, 0xff_00ff);
    assert_eq!(rig.done[2], Operation::Erase { offset: ERASE_BLOCK });
    assert!(rig.memory.iter().all(|byte| *byte == 0xff));
}

#[test]
fn the_rest_of_the_bank_is_locked() {
    let mut rig = Rig::new();
    rig.command(SIZE, 0x40_0040);
    rig.command(SIZE, 0);
    assert_eq!(rig.load(0), READY | 0x10_0010);
    rig.command(0, 0x50_0050);
    rig.command(SIZE, 0x20_0020);
    rig.command(SIZE, 0xd0_00d0);
    assert_eq!(rig.load(0), READY | 0x20_0020);
    rig.command(0, 0x50_0050);
    rig.program(SIZE - 4, &[1, 2]);
    assert_eq!(rig.load(0), READY | 0x10_0010);
    assert!(rig.done.is_empty());
}

#[test]
fn what_does_not_fit_into_the_buffer_is_an_error() {
    let mut rig = Rig::new();
    rig.program(0xff8, &[1, 2, 3]);
    assert_eq!(rig.load(0), READY | 0x10_0010);
    rig.command(0, 0x50_0050);
    rig.command(0, 0xe8_00e8);
    rig.command(0, 0x200_0200);
    assert_eq!(rig.load(0), READY | 0x30_0030);
    assert!(rig.done.is_empty());
}

#[test]
fn commands_that_are_not_confirmed_have_no_effect() {
    for setup in [0x20_0020, 0x60_0060] {
        let mut rig = Rig::new();
        rig.command(0, setup);
        rig.command(0, 0xff_00ff);
        assert!(!rig.trapped && rig.done.is_empty());
    }
    let mut rig = Rig::new();
    rig.command(0, 0xe8_00e8);
    rig.command(0, 0);
    rig.command(0, 0);
    rig.command(0, 0xff_00ff);
    assert!(!rig.trapped && rig.done.is_empty());
    // Locks are accepted.
    for lock in [0xd0_00d0, 0x01_0001] {
        rig.command(0, 0x60_0060);
        rig.command(0, lock);
        assert_eq!(rig.load(0), READY);
    }
}

#[test]
fn a_busy_bank_takes_no_commands_and_shows_how_it_ended() {
    let mut rig = Rig::new();
    for (done, status) in [(true, 0x80_0080), (false, 0xa0_00a0)] {
        let _ = rig.store(0, Width::Word, 0x20);
        assert_eq!(rig.store(0, Width::Word, 0xd0), Effect::Operate);
        let (_, sequence) = rig.bank.operation().unwrap();
        for code in [0xff, 0x40, 0x90, 0x98, 0x50] {
            assert_eq!(rig.store(0, Width::Word, code), Effect::None);
            assert_eq!(rig.load(0), 0);
        }
        assert_eq!(rig.bank.finish(sequence + 1, true), Err(Stale));
        rig.bank.finish(sequence, done).unwrap();
        assert_eq!(rig.bank.finish(sequence, true), Err(Stale));
        assert_eq!(rig.load(0), status);
    }
}

#[test]
fn an_operation_does_not_outlive_a_reset() {
    let mut rig = Rig::new();
    let _ = rig.store(0, Width::Word, 0x20);
    let _ = rig.store(0, Width::Word, 0xd0);
    let (_, sequence) = rig.bank.operation().unwrap();
    rig.bank.reset();
    rig.trapped = false;
    assert!(rig.bank.reads_array() && rig.bank.operation().is_none());
    let _ = rig.store(0, Width::Word, 0x20);
    let _ = rig.store(0, Width::Word, 0xd0);
    assert_eq!(rig.bank.finish(sequence, true), Err(Stale));
    rig.operate(1);
}

proptest! {
    // The daemon that continues does not know what the last one has done.
    #[test]
    fn any_stores_keep_the_bank_in_order(
        stores in proptest::collection::vec(
            (
                prop_oneof![0..SIZE + 64, 0x1000..0x1040_u32],
                0..4_u64,
                prop_oneof![
                    proptest::sample::select(std::vec![
                        0x10, 0x20, 0x40, 0x50, 0x60, 0x70, 0x90, 0x98, 0xd0, 0xe8, 0xff, 3_u64
                    ]),
                    any::<u64>(),
                ],
                any::<bool>(),
            ),
            0..200,
        )
    ) {
        let mut rig = Rig::new();
        for (offset, width, value, now) in stores {
            let width = Width::from_log2(width);
            let _ = rig.store(offset, width, value);
            if let Some((operation, _)) = rig.bank.operation() {
                let (start, len) = match operation {
                    Operation::Program { offset, len } => {
                        prop_assert!(len > 0 && offset as usize % BUFFER + len as usize <= BUFFER);
                        (offset, len)
                    }
                    Operation::Erase { offset } => {
                        prop_assert_eq!(offset % ERASE_BLOCK, 0);
                        (offset, ERASE_BLOCK)
                    }
                };
                prop_assert!(start + len <= SIZE);
                prop_assert_eq!(rig.bank.read(offset, Width::Byte) & 0x80, 0);
                if now {
                    rig.operate(1 + usize::from(value & 1 == 0));
                    prop_assert_eq!(rig.bank.read(offset, Width::Byte) & 0x80, 0x80);
                }
            }
        }
    }
}
