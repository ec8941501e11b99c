//! The fuzz target for the devices of firmware at EL2: stores to a flash bank in any order, with a daemon
//! that does what they lead to, and accesses to the firmware configuration device.

use ringvisor::flash::{BUFFER, Bank, ERASE_BLOCK, Effect, Operation};
use ringvisor::fw_cfg::FwCfg;
use ringvisor::syndrome::Width;

use crate::fuzz_input::Bytes;

/// Bytes of the bank that are not locked.
const SIZE: u32 = 2 << 20;
/// Status register: ready.
const READY: u64 = 0x80;

/// Checks that a bank asks for operations within its memory only, is mapped exactly in read-array mode, and
/// is busy exactly while an operation is outstanding.
pub fn flash(data: &[u8]) {
    let mut input = Bytes(data);
    let (mut bank, mut buffer) = (Bank::new(SIZE), [0; BUFFER]);
    let mut fw_cfg = FwCfg::default();
    let mut trapped = false;
    while !input.is_empty() {
        let step = input.u8();
        let width = Width::from_log2(step.into());
        match step {
            0..=191 => {
                let offset = match step % 3 {
                    0 => u32::from(input.u16()),
                    1 => input.u32() % (2 * SIZE),
                    _ => ERASE_BLOCK - 8 + u32::from(input.u8()),
                };
                let value = u64::from(input.u16()) * 0x1_0001;
                let before = bank.operation();
                let effect = bank.write(&mut buffer, offset, width, value);
                match effect {
                    Effect::Trap => assert!(!std::mem::replace(&mut trapped, true)),
                    Effect::Map => assert!(std::mem::replace(&mut trapped, false)),
                    Effect::Operate => assert!(before.is_none() && trapped),
                    Effect::None => {}
                }
                assert_eq!(bank.reads_array(), !trapped);
                assert_eq!(
                    effect == Effect::Operate,
                    before.is_none() && bank.operation().is_some()
                );
                assert!(bank.read(offset, width) <= width.mask());
            }
            192..=223 => finish(&mut bank, step & 1 == 0),
            224..=231 => {
                let outstanding = bank.operation();
                bank.reset();
                trapped = false;
                assert!(bank.reads_array() && bank.operation().is_none());
                if let Some((_, sequence)) = outstanding {
                    assert!(bank.finish(sequence, true).is_err());
                }
            }
            232..=243 => fw_cfg.write(u16::from(input.u8()), width, input.u16().into()),
            _ => {
                let offset = u16::from(input.u8());
                assert!(fw_cfg.read(offset, width, 4) <= width.mask());
            }
        }
    }
}

/// The daemon finishes the operation, if there is one.
fn finish(bank: &mut Bank, done: bool) {
    let Some((operation, sequence)) = bank.operation() else {
        assert!(bank.finish(0, done).is_err());
        return;
    };
    let (start, len) = match operation {
        Operation::Program { offset, len } => (offset, len),
        Operation::Erase { offset } => (offset, ERASE_BLOCK),
    };
    match operation {
        Operation::Program { .. } => assert!(len > 0 && start as usize % BUFFER + len as usize <= BUFFER),
        Operation::Erase { .. } => assert!(start.is_multiple_of(ERASE_BLOCK)),
    }
    assert!(start + len <= SIZE);
    assert_eq!(bank.read(start, Width::Byte) & READY, 0);
    assert!(bank.finish(sequence.wrapping_add(1), done).is_err());
    assert!(bank.finish(sequence, done).is_ok());
    let status = bank.read(start, Width::Byte);
    assert_eq!(status & READY, READY);
    assert!(done || status & 0x30 != 0);
}
