//! Root's stage 2.

use alloc::collections::BinaryHeap;
use alloc::vec::Vec;

use ringvisor::abi::BAR_SIZE;
use ringvisor::addr::{BLOCK_SIZE, Ipa, PAGE_SIZE, Pa};
use ringvisor::machine::{ECAM_SIZE, Machine, Region, subtract};
use ringvisor::stage2::{Access, MapError, Stage2, gaps};

use crate::el2::control::Pages;
use crate::el2::mm::frames::Tables;
use crate::el2::{mm, stats};

/// Maps everything at its own address: RAM as RAM, the rest as devices, without EL2's memory and the GIC; in
/// the window of the control device, its pages.
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
    let mut holes = alloc::vec![(start.0, end.0), (ecam.0, ecam.0 + BLOCK_SIZE)];
    for region in core::iter::once(&machine.gic.distributor).chain(&machine.gic.redistributors) {
        let (from, to) = region.bounds();
        holes.push((from & !(PAGE_SIZE - 1), to.next_multiple_of(PAGE_SIZE)));
    }
    let mut not_ram = holes.clone();
    not_ram.extend(machine.ram.iter().map(Region::bounds));
    // Sorted as in `region::merge`.
    let not_ram = BinaryHeap::from(not_ram).into_sorted_vec();
    let limit = tree.limit();
    gaps(limit, &not_ram, |at, len| {
        tree.map(memory, Ipa(at), Pa(at), len, Access::Device)
    })?;
    let holes: Vec<_> = holes
        .iter()
        .filter_map(|hole| Region::from_bounds(Pa(hole.0), Pa(hole.1)))
        .collect();
    for region in subtract(&machine.ram, &holes) {
        let base = region.base();
        tree.map(memory, Ipa(base.0), base, region.size(), Access::Ram)?;
    }

    let mut page = |at: u64, to: Pa| tree.map(memory, Ipa(at), to, PAGE_SIZE, Access::DeviceReadOnly);
    page(ecam.0, control.config)?;
    for function in 1..ECAM_SIZE / PAGE_SIZE {
        page(ecam.0 + function * PAGE_SIZE, control.ones)?;
    }
    page(bar.0, control.info)?;
    let mut shown = Vec::new();
    stats::init(|offset, to| shown.push((offset as u64 / PAGE_SIZE, to)))
        .map_err(|_| MapError::OutOfMemory)?;
    for index in 2..BAR_SIZE / PAGE_SIZE {
        let to = shown.iter().find(|(at, _)| *at == index);
        page(bar.0 + index * PAGE_SIZE, to.map_or(control.ones, |(_, to)| *to))?;
    }
    Ok(tree)
}
