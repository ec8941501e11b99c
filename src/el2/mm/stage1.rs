//! EL2's own stage 1: identity, W^X, a guard page under each stack. Built on `aarch64-paging`.

use aarch64_paging::descriptor::El23Attributes as Attr;
use aarch64_paging::idmap::IdMap;
use aarch64_paging::paging::{El2, MemoryRegion};
use ringvisor::addr::{BLOCK_SIZE, PAGE_SIZE, Pa, Va};

use super::heap;
use crate::el2::arch::frame::STACK_SHIFT;
use crate::el2::arch::{self, boot};
use crate::el2::sync::Mutex;

const COMMON: Attr = Attr::VALID.union(Attr::ACCESSED).union(Attr::USER_RES1);
const NORMAL: Attr = COMMON.union(Attr::ATTRIBUTE_INDEX_1).union(Attr::INNER_SHAREABLE);
const DATA: Attr = NORMAL.union(Attr::XN);
const CODE: Attr = NORMAL.union(Attr::READ_ONLY);
const CONSTANT: Attr = DATA.union(Attr::READ_ONLY);
const REGISTERS: Attr = COMMON
    .union(Attr::ATTRIBUTE_INDEX_2)
    .union(Attr::INNER_SHAREABLE)
    .union(Attr::XN);
const DEVICE: Attr = COMMON.union(Attr::ATTRIBUTE_INDEX_0).union(Attr::XN);

/// The translation tables; `None` before [`init`].
static MAP: Mutex<Option<IdMap<El2>>> = Mutex::new(None);

/// Why EL2's own mapping could not be changed.
#[derive(Debug)]
pub struct Stage1Error;

fn region(start: usize, end: usize) -> MemoryRegion {
    MemoryRegion::new(start, end)
}

/// Builds the tables and switches to them: the hypervisor binary W^X, EL2's memory, `ram` (during boot only,
/// until [`unmap_ram`]) and `devices`. Ranges are `(start, end)` in bytes.
pub fn init(ram: &[(u64, u64)], devices: &[(u64, u64)]) -> Result<(), Stage1Error> {
    let mut map = IdMap::new(0, El2);
    let start = boot::binary_start();
    let end = start + boot::EL2_SIZE;
    let (registers, registers_end) = super::uncached_range();
    let mut add = |from: usize, to: usize, attributes: Attr| {
        if from < to {
            map.map_range(&region(from, to), attributes)
                .map_err(|_| Stage1Error)
        } else {
            Ok(())
        }
    };
    add(start, boot::text_end(), CODE)?;
    add(boot::text_end(), boot::rodata_end(), CONSTANT)?;
    add(boot::rodata_end(), registers, DATA)?;
    add(registers, registers_end, REGISTERS)?;
    for &(from, to) in ram {
        let (from, to) = (from as usize, to as usize);
        add(from, to.min(start), DATA)?;
        add(from.max(end), to, DATA)?;
    }
    for &(from, to) in devices {
        add(from as usize, to as usize, DEVICE)?;
    }
    map.mark_active();
    let ttbr = map.root_address().0 as u64;
    *MAP.lock() = Some(map);
    // SAFETY: the binary, the stacks, the heap and the console are mapped as they are used; the tree is
    // static.
    unsafe { boot::use_tables(ttbr) };
    Ok(())
}

/// Returns TTBR0_EL2 for secondary CPUs.
pub fn ttbr() -> u64 {
    MAP.lock().as_ref().map_or(0, |map| map.root_address().0 as u64)
}

fn change(from: usize, to: usize, attributes: Attr) -> Result<(), Stage1Error> {
    let mut map = MAP.lock();
    let map = map.as_mut().ok_or(Stage1Error)?;
    map.map_range(&region(from, to), attributes)
        .map_err(|_| Stage1Error)?;
    arch::dsb_ish();
    arch::isb();
    Ok(())
}

/// Unmaps RAM that is not EL2's: from here on EL2 cannot access root's memory.
pub fn unmap_ram(ram: &[(u64, u64)]) -> Result<(), Stage1Error> {
    let start = boot::binary_start();
    let end = start + boot::EL2_SIZE;
    for &(from, to) in ram {
        for (from, to) in [
            (from as usize, (to as usize).min(start)),
            ((from as usize).max(end), to as usize),
        ] {
            if from < to {
                change(from, to, Attr::empty())?;
            }
        }
    }
    arch::tlbi_alle2is();
    Ok(())
}

/// Maps the 2 MiB shared page that the daemon donated, at its own address. The caller holds the command lock.
pub fn map_shared(page: Pa) -> Result<(), Stage1Error> {
    // `aarch64-paging` panics when there is no memory for a table; at most two are allocated here.
    if !heap::has_room(2) {
        return Err(Stage1Error);
    }
    let start = page.0 as usize;
    change(start, start + BLOCK_SIZE as usize, DATA)
}

/// Unmaps the shared page.
pub fn unmap_shared(page: Pa) -> Result<(), Stage1Error> {
    let start = page.0 as usize;
    change(start, start + BLOCK_SIZE as usize, Attr::empty())?;
    arch::tlbi_alle2is();
    Ok(())
}

/// Unmaps the page below the stack proper in the stack area at `area`.
pub fn guard_stack(area: usize) -> Result<(), Stage1Error> {
    let guard = area + (1 << STACK_SHIFT) - PAGE_SIZE as usize;
    change(guard, guard + PAGE_SIZE as usize, Attr::empty())?;
    arch::tlbi_vae2is(Va(guard as u64));
    Ok(())
}
