//! A bank of parallel NOR flash with Intel's command set (CFI, JESD68), as QEMU's `virt` has two: 64 MiB, two
//! devices of 16 bits side by side on a bus of 32.
//!
//! [`Bank`] is the command state machine. In read-array mode loads go to memory and do not reach it; in all
//! other modes they do ([`Bank::read`]). It does not change memory: a confirmed command becomes an
//! [`Operation`], which is the caller's to do, and the status register says busy until [`Bank::finish`].
//! QEMU's `pflash_cfi01` is the reference, except that programming only clears bits.

#[cfg(test)]
mod tests;

use crate::syndrome::Width;

/// Bytes of an erase block of the bank.
pub const ERASE_BLOCK: u32 = 256 << 10;
/// Bytes of the write buffer, and the alignment of what one command programs: QEMU has twice as many, which
/// do not fit into a command slot ([`crate::abi::command`]).
pub const BUFFER: usize = 2048;

/// The bytes to program; those that no store has set are 0xff, which programs nothing.
pub type Buffer = [u8; BUFFER];

/// Commands; drivers repeat them in the upper half of the bus.
mod command {
    pub const PROGRAM: u8 = 0x40;
    pub const PROGRAM_ALTERNATE: u8 = 0x10;
    pub const LOCK: u8 = 0x01;
    pub const ERASE: u8 = 0x20;
    pub const ERASE_ALTERNATE: u8 = 0x28;
    pub const CLEAR_STATUS: u8 = 0x50;
    pub const LOCK_SETUP: u8 = 0x60;
    pub const READ_STATUS: u8 = 0x70;
    pub const READ_ID: u8 = 0x90;
    pub const QUERY: u8 = 0x98;
    pub const CONFIRM: u8 = 0xd0;
    pub const WRITE_BUFFER: u8 = 0xe8;
}

/// Bits of the status register.
mod status {
    pub const READY: u8 = 0x80;
    pub const ERASE_ERROR: u8 = 0x20;
    pub const PROGRAM_ERROR: u8 = 0x10;
}

/// Identification codes of one device: manufacturer and device.
const ID: [u8; 2] = [0x89, 0x18];

/// First query address of [`QUERY`].
const QUERY_START: u32 = 0x10;
/// The query data of one device: QEMU's, except for the maximum times and the write buffer.
const QUERY: [u8; 0x30] = [
    b'Q', b'R', b'Y', // 0x10
    0x01, 0x00, // Intel's command set
    0x31, 0x00, // address of its extended table
    0x00, 0x00, 0x00, 0x00, // no other command set
    0x45, 0x55, 0x00, 0x00, // supply voltages
    0x07, 0x07, // 0x1f: typical time to program a word, the buffer: 2^7 us
    0x0a, 0x00, // typical time to erase a block: 2^10 ms
    // Maximum times, 2^n times the typical ones. 4 s (QEMU: 2 ms), so that a restart of the daemon is not a
    // failure of the device.
    0x0f, 0x0f, //
    0x04, 0x00, // 16 s for a block
    0x19, // 0x27: 32 MiB
    0x02, 0x00, // 8 or 16 bits
    0x0a, 0x00, // write buffer of 1 KiB
    0x01, // one kind of erase block:
    0xff, 0x00, // 256 of them,
    0x00, 0x02, // of 128 KiB
    b'P', b'R', b'I', b'1', b'0', // 0x31
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // no optional commands
    0x01, // 0x3f: one protection field
];

/// What a store leads to, and what loads return.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    /// Read array: loads go to memory.
    Array,
    Status,
    Id,
    Query,
    /// The next store is the word to program.
    Program,
    /// The next store confirms that a block is to be erased.
    Erase,
    /// The next store locks or unlocks a block, which has no effect.
    Lock,
    /// The next store is the number of words for the buffer, less one.
    Count,
    /// This many stores fill the buffer.
    Fill(u16),
    /// The next store confirms that the buffer is to be programmed.
    Confirm,
}

/// Work that a command asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Clear the bits from `offset` on that are clear in `len` bytes of the buffer, which begin at `offset`
    /// modulo [`BUFFER`].
    Program {
        /// First byte in the bank.
        offset: u32,
        /// Bytes, all in one aligned piece of [`BUFFER`].
        len: u32,
    },
    /// Set all bits of the [`ERASE_BLOCK`] at `offset`.
    Erase {
        /// First byte in the bank.
        offset: u32,
    },
}

/// What the caller has to do after a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Effect {
    /// Nothing.
    None,
    /// Loads are to reach [`Bank::read`] from now on.
    Trap,
    /// Loads are to go to memory again.
    Map,
    /// [`Bank::operation`] is to be done.
    Operate,
}

/// The operation is not the bank's present one: the bank was reset since.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stale;

/// One bank.
#[derive(Clone, Debug)]
pub struct Bank {
    /// Bytes that can be programmed and erased, from the beginning; the rest is locked.
    writable: u32,
    mode: Mode,
    /// The error bits of the status register.
    errors: u8,
    /// The bytes of the buffer that stores have set, as offsets in the bank; empty if there are none yet.
    filled: (u32, u32),
    operation: Option<Operation>,
    sequence: u64,
}

impl Bank {
    /// Returns a bank after power-on of which `writable` bytes, a multiple of [`ERASE_BLOCK`], are not
    /// locked.
    #[must_use]
    pub const fn new(writable: u32) -> Self {
        Self {
            writable,
            mode: Mode::Array,
            errors: 0,
            filled: (0, 0),
            operation: None,
            sequence: 0,
        }
    }

    /// Resets the bank. An operation that is not finished is dropped. The caller maps the bank.
    pub fn reset(&mut self) {
        let sequence = self.sequence.wrapping_add(1);
        *self = Self::new(self.writable);
        self.sequence = sequence;
    }

    /// Returns whether loads go to memory.
    #[must_use]
    pub fn reads_array(&self) -> bool {
        self.mode == Mode::Array
    }

    /// Returns the operation that is to be done, and its number for [`Self::finish`].
    #[must_use]
    pub const fn operation(&self) -> Option<(Operation, u64)> {
        match self.operation {
            Some(operation) => Some((operation, self.sequence)),
            None => None,
        }
    }

    /// Ends the operation with this number.
    ///
    /// # Errors
    /// There is none: the bank was reset since.
    pub fn finish(&mut self, sequence: u64, done: bool) -> Result<(), Stale> {
        let operation = self
            .operation
            .filter(|_| sequence == self.sequence)
            .ok_or(Stale)?;
        self.operation = None;
        if !done {
            self.errors |= match operation {
                Operation::Program { .. } => status::PROGRAM_ERROR,
                Operation::Erase { .. } => status::ERASE_ERROR,
            };
        }
        Ok(())
    }

    /// Executes a load of `width` at `offset`; not in read-array mode, where it returns 0.
    #[must_use]
    pub fn read(&self, offset: u32, width: Width) -> u64 {
        // What one device returns is on both halves of the bus, for each word of the access.
        let word = |offset: u32| u64::from(self.read_device(offset >> 2)) * 0x1_0001;
        (word(offset) | word(offset.wrapping_add(4)) << 32) & width.mask()
    }

    /// Returns what one device has at its own address.
    fn read_device(&self, address: u32) -> u8 {
        let entry = |table: &[u8], index: u32| table.get(index as usize).copied().unwrap_or(0);
        match self.mode {
            Mode::Array => 0,
            // Bits above are for the lock state of a block, which there is none of.
            Mode::Id => entry(&ID, address & 0xff),
            Mode::Query => entry(&QUERY, address.wrapping_sub(QUERY_START)),
            _ if self.operation.is_some() => self.errors,
            _ => status::READY | self.errors,
        }
    }

    /// Executes a store of `width` at `offset`. One of 8 bytes has no effect.
    pub fn write(&mut self, buffer: &mut Buffer, offset: u32, width: Width, value: u64) -> Effect {
        // Busy: there is no command to suspend it.
        if self.operation.is_some() || width == Width::Double {
            return Effect::None;
        }
        let before = self.mode;
        self.mode = self.next_mode(buffer, offset, width, value);
        match (before == Mode::Array, self.mode == Mode::Array) {
            (true, false) => Effect::Trap,
            (false, true) => Effect::Map,
            _ if self.operation.is_some() => Effect::Operate,
            _ => Effect::None,
        }
    }

    fn next_mode(&mut self, buffer: &mut Buffer, offset: u32, width: Width, value: u64) -> Mode {
        let code = value as u8;
        match (self.mode, code) {
            (Mode::Program, _) => {
                self.fill(buffer, offset, width, value);
                self.program()
            }
            (Mode::Erase, command::CONFIRM) => {
                if offset < self.writable {
                    let offset = offset & !(ERASE_BLOCK - 1);
                    self.begin(Operation::Erase { offset })
                } else {
                    self.fail(status::ERASE_ERROR)
                }
            }
            (Mode::Lock, command::CONFIRM | command::LOCK) => Mode::Status,
            (Mode::Count, _) => match value as u16 {
                last if usize::from(last) < BUFFER / 4 => Mode::Fill(last + 1),
                _ => self.fail(status::PROGRAM_ERROR | status::ERASE_ERROR),
            },
            (Mode::Fill(left), _) => {
                self.fill(buffer, offset, width, value);
                match left {
                    0 | 1 => Mode::Confirm,
                    _ => Mode::Fill(left - 1),
                }
            }
            (Mode::Confirm, command::CONFIRM) => self.program(),
            (Mode::Erase | Mode::Lock | Mode::Confirm, _) => Mode::Array,
            _ => self.first_cycle(code),
        }
    }

    fn first_cycle(&mut self, code: u8) -> Mode {
        self.filled = (0, 0);
        match code {
            command::PROGRAM | command::PROGRAM_ALTERNATE => Mode::Program,
            command::ERASE | command::ERASE_ALTERNATE => Mode::Erase,
            command::LOCK_SETUP => Mode::Lock,
            command::READ_STATUS => Mode::Status,
            command::READ_ID => Mode::Id,
            command::QUERY => Mode::Query,
            command::WRITE_BUFFER => Mode::Count,
            command::CLEAR_STATUS => {
                self.errors = 0;
                Mode::Array
            }
            _ => Mode::Array,
        }
    }

    /// Puts the bytes of a store into the buffer.
    fn fill(&mut self, buffer: &mut Buffer, offset: u32, width: Width, value: u64) {
        let bytes = value.to_le_bytes();
        let end = offset.saturating_add(width.bytes() as u32);
        let (from, to) = self.filled;
        let first = from == to;
        if first {
            self.filled = (offset, end);
        } else {
            self.filled = (from.min(offset), to.max(end));
        }
        if end > self.writable || !self.is_in_one_piece() {
            return;
        }
        if first {
            buffer.fill(0xff);
        }
        let place = buffer.iter_mut().skip(offset as usize % BUFFER);
        for (to, &from) in place.zip(bytes.iter().take(width.bytes() as usize)) {
            *to = from;
        }
    }

    /// Returns whether all bytes are in one aligned piece, as the buffer is.
    const fn is_in_one_piece(&self) -> bool {
        let (from, to) = self.filled;
        from / BUFFER as u32 == to.saturating_sub(1) / BUFFER as u32
    }

    /// Begins to program what is in the buffer.
    fn program(&mut self) -> Mode {
        let (offset, end) = self.filled;
        if end > self.writable || !self.is_in_one_piece() {
            return self.fail(status::PROGRAM_ERROR);
        }
        let len = end - offset;
        self.begin(Operation::Program { offset, len })
    }

    fn begin(&mut self, operation: Operation) -> Mode {
        self.operation = Some(operation);
        self.sequence = self.sequence.wrapping_add(1);
        Mode::Status
    }

    fn fail(&mut self, errors: u8) -> Mode {
        self.errors |= errors;
        Mode::Status
    }
}
