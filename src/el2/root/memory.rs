//! Root's stage 2.

use alloc::vec::Vec;

use arrayvec::ArrayVec;
use ringvisor::abi::{BAR_SIZE, doorbell, log};
use ringvisor::addr::{BLOCK_SIZE, Ipa, PAGE_SIZE, Pa};
use ringvisor::machine::{ECAM_SIZE, Machine, Region};
use ringvisor::stage2::{Access, MapError, Stage2};

use crate::el2::control::Pages;
use crate::el2::mm::frames::Tables;
use crate::el2::{mm, stats};

/// Maps at its own address what [`Machine::root_map`] allows, without EL2's memory; in the window of the
/// control device, its pages.
///
/// # Errors
/// There is no memory for the tables, or ranges of the machine overlap.
pub fn map_machine(
    machine: &Machine,
    ipa_bits: u32,
    control: &Pages,
    ecam: Pa,
    bar: Pa,
) -> Result<Stage2, MapError> {
    let memory = &mut Tables;
    let mut tree = Stage2::new(memory, ipa_bits).ok_or(MapError::OutOfMemory)?;
    let (start, end) = mm::el2_range();
    let window = Pa(ecam.0 + BLOCK_SIZE);
    let holes = [Region::from_bounds(start, end), Region::from_bounds(ecam, window)];
    let holes: ArrayVec<Region, 2> = holes.into_iter().flatten().collect();
    let map = machine.root_map(&holes, tree.limit());
    for (regions, access) in [(&map.ram, Access::Ram), (&map.devices, Access::Device)] {
        for region in regions {
            let at = region.base();
            tree.map(memory, Ipa(at.0), at, region.size(), access)?;
        }
    }

    let mut page_as = |at: u64, to: Pa, access| tree.map(memory, Ipa(at), to, PAGE_SIZE, access);
    page_as(bar.0 + doorbell::CONTROL_SLOT, control.slot, Access::Device)?;
    let mut page = |at: u64, to: Pa| page_as(at, to, Access::DeviceReadOnly);
    page(ecam.0, control.config)?;
    for function in 1..ECAM_SIZE / PAGE_SIZE {
        page(ecam.0 + function * PAGE_SIZE, control.ones)?;
    }
    page(bar.0, control.info)?;
    let mut shown = Vec::new();
    stats::init(|offset, to| shown.push((offset as u64 / PAGE_SIZE, to)))
        .map_err(|_| MapError::OutOfMemory)?;
    let (text, _) = mm::log_range();
    for at in (0..log::SIZE as u64).step_by(PAGE_SIZE as usize) {
        shown.push(((log::OFFSET as u64 + at) / PAGE_SIZE, Pa(text as u64 + at)));
    }
    let unmapped = [
        doorbell::PAGE_OFFSET,
        doorbell::CONTROL_OFFSET,
        doorbell::CONTROL_SLOT,
    ];
    for index in 1..BAR_SIZE / PAGE_SIZE {
        if unmapped.contains(&(index * PAGE_SIZE)) {
            continue;
        }
        let to = shown.iter().find(|(at, _)| *at == index);
        page(bar.0 + index * PAGE_SIZE, to.map_or(control.ones, |(_, to)| *to))?;
    }
    Ok(tree)
}
