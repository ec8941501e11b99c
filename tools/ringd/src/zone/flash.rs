//! [`Flash`]: the flash of a zone with firmware. The firmware and the variables are read into its memory
//! before each start of the guest; a thread does what the guest programs and erases in the bank of variables.
//!
//! The guest reads memory. So the file comes first: what a guest has seen in its flash, a machine that loses
//! its power still has. Done twice, an operation is done once: a daemon does again what the last one may have
//! done.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use ringblk::Opener;
use ringvisor::abi::command::{CommandStatus, FlashKind, FlashOperation};
use ringvisor::abi::machine::{FIRMWARE_BLOCKS, FLASH_SIZE, VARIABLE_BLOCKS};

use crate::boot::content::{Content, Source};
use crate::config::ZoneConfig;
use crate::config::zone::BLOCK;
use crate::device::context::Wake;
use crate::host::ram;
use crate::hv::Hypervisor;

/// Bytes of memory of the bank with the firmware.
pub const FIRMWARE: u64 = FIRMWARE_BLOCKS as u64 * BLOCK;
/// Bytes of memory of the bank with the variables.
pub const VARIABLES: u64 = VARIABLE_BLOCKS as u64 * BLOCK;
/// How long a start waits for the lock on the file with the variables, which a zone that has just ended may
/// still have.
pub const LOCK_WAIT: Duration = Duration::from_secs(2);

/// The flash of one zone.
pub struct Flash {
    banks: Arc<Mutex<Banks>>,
    thread: Option<JoinHandle<()>>,
    events: Sender<Event>,
}

/// What its thread receives.
enum Event {
    /// There may be an operation.
    Operation,
    /// The zone ends.
    End,
}

/// Its memory and its file.
struct Banks {
    memory: ram::Flash,
    /// The file with the variables; without one they last as long as the zone.
    variables: Option<File>,
    /// Whether the last operation failed: a guest may repeat it without end.
    failing: bool,
}

/// Opens and locks the file with the variables. Waits for the lock until `deadline`; `None` is no deadline.
///
/// # Errors
/// It cannot be used, or another zone or a QEMU uses it.
pub fn open_variables(
    opener: &dyn Opener,
    config: &ZoneConfig,
    deadline: Option<Instant>,
) -> anyhow::Result<Option<File>> {
    let Some(path) = config.variables() else {
        return Ok(None);
    };
    let opened = ringblk::open_locked(opener, path, false, None, deadline);
    let file = opened.map_err(|cause| config.unusable("variables", path, cause))?;
    let found = size(&file).map_err(|cause| config.unusable("variables", path, cause))?;
    if found < VARIABLES {
        let cause = format!(
            "it has {found} bytes, expected at least {VARIABLES}; truncate -s 2M adds what is missing"
        );
        return Err(config.unusable("variables", path, cause));
    }
    Ok(Some(file))
}

/// Returns the size of a file or block device.
fn size(mut file: &File) -> io::Result<u64> {
    io::Seek::seek(&mut file, io::SeekFrom::End(0))
}

/// Checks that `firmware` is raw code that fits into its bank. Padding at the end, as QEMU 7 wants it, is not
/// counted.
///
/// # Errors
/// It does not fit, is another kind of file, or cannot be read.
pub fn check_firmware(firmware: &Content) -> anyhow::Result<()> {
    if firmware.is_empty() {
        anyhow::bail!("it is empty");
    }
    if firmware.head().starts_with(b"\x7fELF") {
        anyhow::bail!("it is an ELF file, expected the flat image of the firmware, such as u-boot.bin");
    }
    let found = firmware.len();
    let mut padded = found <= FLASH_SIZE;
    let mut end = FIRMWARE;
    while padded && end < found {
        let len = found.saturating_sub(end).min(1 << 20);
        let bytes = firmware.read_at(end, usize::try_from(len)?)?;
        padded = bytes.iter().all(|byte| *byte == 0);
        end = end.saturating_add(len);
    }
    if !padded {
        anyhow::bail!(
            "it has {found} bytes, expected at most {FIRMWARE}, and zeroes behind those up to {FLASH_SIZE}"
        );
    }
    Ok(())
}

impl Flash {
    /// Returns the flash of zone `number`, with a thread that serves it until this is dropped, which waits
    /// for the thread's end.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn new(
        memory: ram::Flash,
        variables: Option<File>,
        hv: Arc<dyn Hypervisor>,
        number: u8,
    ) -> io::Result<Self> {
        let banks = Arc::new(Mutex::new(Banks {
            memory,
            variables,
            failing: false,
        }));
        let (events, received) = channel();
        let served = banks.clone();
        let thread = std::thread::Builder::new()
            .name(format!("flash {number}"))
            .spawn(move || {
                while let Ok(Event::Operation) = received.recv() {
                    served.lock().serve(&*hv, number);
                }
            })?;
        Ok(Self {
            banks,
            thread: Some(thread),
            events,
        })
    }

    /// Returns what makes the thread look for an operation.
    pub fn wake(&self) -> Wake {
        let events = self.events.clone();
        Arc::new(move || {
            let _ = events.send(Event::Operation);
        })
    }

    /// Waits until no operation is being done, then reads the variables anew.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn reload(&self, firmware: &Content) -> io::Result<()> {
        let banks = self.banks.lock();
        load(&banks.memory, firmware, banks.variables.as_ref())
    }
}

impl Drop for Flash {
    fn drop(&mut self) {
        let _ = self.events.send(Event::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Puts firmware and variables into memory.
///
/// # Errors
/// A file cannot be read.
pub fn load(memory: &ram::Flash, firmware: &Content, variables: Option<&File>) -> io::Result<()> {
    let len = firmware.len().min(FIRMWARE);
    let place = memory.place(0, len)?;
    match firmware.source() {
        Source::Bytes(bytes) => place.copy_from(bytes),
        Source::File(unread) => {
            let mut file = unread.at(0)?;
            let read = vm_memory::ReadVolatile::read_exact_volatile(&mut file, &mut place.clone());
            // A change is the better reason than a short read.
            unread.check()?;
            read.map_err(io::Error::other)?;
        }
    }
    // What an older, longer one has left.
    let rest = memory.place(len, FIRMWARE.saturating_sub(len))?;
    rest.copy_from(&vec![0_u8; rest.len()]);
    if let Some(file) = variables {
        let mut bytes = vec![0; usize::try_from(VARIABLES).map_err(io::Error::other)?];
        file.read_exact_at(&mut bytes, 0)?;
        memory.place(FIRMWARE, VARIABLES)?.copy_from(&bytes);
    }
    memory.clean_caches(0, FIRMWARE + VARIABLES)
}

impl Banks {
    /// Does what the guest waits for.
    fn serve(&mut self, hv: &dyn Hypervisor, number: u8) {
        let mut failing = self.failing;
        let served = hv.flash_operation(number).and_then(|operation| {
            let bytes = |bytes| self.operate(&operation, bytes);
            let done = match FlashKind::try_from(operation.kind) {
                Ok(FlashKind::Program) => bytes(&|old, data| old & data),
                Ok(FlashKind::Erase) => bytes(&|_, _| u8::MAX),
                Ok(FlashKind::None) | Err(_) => return Ok(()),
            };
            let failed_before = std::mem::replace(&mut failing, done.is_err());
            if let Err(error) = &done
                && !failed_before
            {
                tracing::error!(zone = number, %error, "cannot write the variables of a zone's firmware");
            }
            hv.flash_done(number, operation.sequence, done.is_ok())
        });
        self.failing = failing;
        match served {
            // The guest was reset meanwhile, or ends.
            Err(refusal) if !refusal.is(CommandStatus::Stale) && !refusal.is(CommandStatus::NoSuchZone) => {
                tracing::warn!(zone = number, %refusal, "cannot serve the flash of a zone");
            }
            _ => {}
        }
    }

    /// Replaces the bytes of an operation by what `change` makes of them and of the operation's data.
    fn operate(&self, operation: &FlashOperation, change: &dyn Fn(u8, u8) -> u8) -> io::Result<()> {
        let (offset, len) = (u64::from(operation.offset), u64::from(operation.len));
        if offset.saturating_add(len) > VARIABLES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let place = self.memory.place(FIRMWARE + offset, len)?;
        let mut bytes = vec![0; place.len()];
        place.copy_to(&mut bytes);
        let within = operation.offset as usize % operation.data.len();
        let data = operation
            .data
            .iter()
            .skip(within)
            .chain(std::iter::repeat(&u8::MAX));
        for (byte, data) in bytes.iter_mut().zip(data) {
            *byte = change(*byte, *data);
        }
        if let Some(file) = &self.variables {
            file.write_all_at(&bytes, offset)?;
            file.sync_data()?;
        }
        place.copy_from(&bytes);
        self.memory.clean_caches(FIRMWARE + offset, len)
    }
}
