//! The shared page: 2 MiB that the daemon donates for its commands and for the zones' rings.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use log::{info, warn};
use ringvisor::abi::command::{self, CommandStatus};
use ringvisor::abi::{self, shared};
use ringvisor::addr::{BLOCK_SIZE, Pa};
use ringvisor::ring::ZoneWindow;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::Refusal;
use crate::el2::mm::{blocks, stage1};

const _: () = assert!(size_of::<command::DeviceState>() <= shared::PAYLOAD_SIZE);

/// Physical address of the attached page, 0 for none.
static ADDRESS: AtomicU64 = AtomicU64::new(0);
/// Successful attaches since boot.
static EPOCH: AtomicU32 = AtomicU32::new(0);

/// Returns the address of the attached page.
pub fn address() -> Option<Pa> {
    match ADDRESS.load(Ordering::Acquire) {
        0 => None,
        address => Some(Pa(address)),
    }
}

/// Returns how often a page was attached since boot.
pub fn epoch() -> u32 {
    EPOCH.load(Ordering::Relaxed)
}

/// Attaches the page at `page`, which must be a 2 MiB block of root's RAM with the daemon's header. While
/// there are `zones`, only the page that is attached already is accepted. The caller holds the command lock.
///
/// # Errors
/// A refusal; the page that was attached before stays attached unless the new one's header is wrong.
pub fn attach(page: Pa, zones: usize) -> Result<(), Refusal> {
    let old = Pa(ADDRESS.load(Ordering::Acquire));
    // Address 0 means "none attached" below, and is never root's RAM.
    if page == Pa(0) {
        return Err((CommandStatus::BadArgument, 0));
    }
    if old != page {
        if zones > 0 {
            return Err((CommandStatus::ZonesExist, zones as u64));
        }
        if !page.is_aligned(BLOCK_SIZE) {
            return Err((CommandStatus::Misaligned, page.0));
        }
        blocks::donate(&[page])?;
        if stage1::map_shared(page).is_err() {
            blocks::reclaim(page);
            return Err((CommandStatus::OutOfMemory, 1));
        }
        if old != Pa(0) {
            release_page(old);
        }
        ADDRESS.store(page.0, Ordering::Release);
    }
    let (magic, version) = (
        read_word(page, shared::HEADER),
        read_word(page, shared::HEADER + 8),
    );
    if magic != abi::MAGIC || version as u32 != abi::ABI_VERSION {
        if zones == 0 {
            ADDRESS.store(0, Ordering::Release);
            release_page(page);
        }
        return Err((CommandStatus::VersionMismatch, version & 0xffff_ffff));
    }
    let epoch = EPOCH.fetch_add(1, Ordering::Relaxed) + 1;
    info!("daemon attached, shared page {page}, epoch {epoch}");
    Ok(())
}

/// Detaches the page, which returns to root. The caller holds the command lock.
///
/// # Errors
/// No page is attached, or there are `zones`, which use it.
pub fn detach(zones: usize) -> Result<(), Refusal> {
    if zones > 0 {
        return Err((CommandStatus::ZonesExist, zones as u64));
    }
    match ADDRESS.swap(0, Ordering::AcqRel) {
        0 => Err((CommandStatus::NotAttached, 0)),
        page => {
            release_page(Pa(page));
            info!("daemon detached");
            Ok(())
        }
    }
}

fn release_page(page: Pa) {
    if stage1::unmap_shared(page).is_err() {
        warn!("shared page {page} cannot be unmapped");
    }
    blocks::reclaim(page);
}

/// Returns a zone's window in the attached page.
pub fn window(number: u8) -> Option<&'static ZoneWindow> {
    let page = address()?;
    let offset = shared::zone_window(number)?;
    // SAFETY: the page is mapped from attach to detach, and detach is refused while zones exist; every field
    // of the window is an atomic, for which root's concurrent writes are defined.
    Some(unsafe { &*((page.0 as usize + offset) as *const ZoneWindow) })
}

/// Reads the aligned word of 8 bytes at `offset` from `page`: the shared page or a command slot.
fn read_word(page: Pa, offset: usize) -> u64 {
    // SAFETY: callers pass an attached, mapped page or the control device's frame, and an aligned offset
    // inside.
    unsafe { ((page.0 as usize + (offset & (shared::SIZE - 8))) as *const u64).read_volatile() }
}

fn write_word(page: Pa, offset: usize, value: u64) {
    // SAFETY: as for `read_word`.
    unsafe { ((page.0 as usize + (offset & (shared::SIZE - 8))) as *mut u64).write_volatile(value) }
}

/// Copies a struct out of the shared page or a command slot and reads each word once, so that what is checked
/// is what is used.
pub fn copy_in<T: FromZeros + FromBytes + IntoBytes>(page: Pa, offset: usize) -> T {
    let mut value = T::new_zeroed();
    for (index, chunk) in value.as_mut_bytes().chunks_mut(8).enumerate() {
        let word = read_word(page, offset + index * 8).to_le_bytes();
        for (to, from) in chunk.iter_mut().zip(word) {
            *to = from;
        }
    }
    value
}

/// Copies a struct into the shared page or a command slot.
pub fn copy_out<T: IntoBytes + Immutable>(page: Pa, offset: usize, value: &T) {
    for (index, chunk) in value.as_bytes().chunks(8).enumerate() {
        let mut word = [0; 8];
        for (to, from) in word.iter_mut().zip(chunk) {
            *to = *from;
        }
        write_word(page, offset + index * 8, u64::from_le_bytes(word));
    }
}
