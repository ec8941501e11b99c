//! Interrupts: the handler acknowledges, records, calls a hook that deasserts the device, and ends the
//! interrupt.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};

use arm_gic::InterruptGroup;
use arm_gic::gicv3::GicCpuInterface;
use arrayvec::ArrayVec;
use spin::Mutex;

use crate::affinity;

/// Number of INTIDs that are counted: all those of a zone or of the devices used on the reference machine.
const INTIDS: usize = 128;
const CPUS: usize = 16;
/// INTIDs recorded in the order of their arrival.
const ORDER: usize = 64;

struct Record {
    counts: [AtomicU32; INTIDS],
    order: [AtomicU32; ORDER],
    handled: AtomicU32,
    unknown: AtomicU32,
}

static RECORDS: [Record; CPUS] = [const {
    Record {
        counts: [const { AtomicU32::new(0) }; INTIDS],
        order: [const { AtomicU32::new(0) }; ORDER],
        handled: AtomicU32::new(0),
        unknown: AtomicU32::new(0),
    }
}; CPUS];

/// An INTID and its hook.
type Hook = (u32, fn());

/// The functions that deassert the device of an INTID. Handlers lock this: lock it with interrupts disabled.
static HOOKS: Mutex<ArrayVec<Hook, 8>> = Mutex::new(ArrayVec::new_const());

/// Enables interrupts and SErrors. Unlike arm-gic's functions this and [`disable`] are barriers for the
/// compiler's memory accesses.
pub fn enable() {
    // SAFETY: the handlers are sound at any point, see `HOOKS`.
    unsafe { asm!("msr daifclr, #6", options(nostack)) }
}

/// Disables interrupts.
pub fn disable() {
    // SAFETY: changes nothing but when handlers run.
    unsafe { asm!("msr daifset, #2", options(nostack)) }
}

/// The interrupt handler.
pub fn handle() {
    let record = &RECORDS[affinity::current()];
    while let Some(intid) = GicCpuInterface::get_and_acknowledge_interrupt(InterruptGroup::Group1) {
        let number = u32::from(intid);
        match record.counts.get(number as usize) {
            Some(count) => _ = count.fetch_add(1, Ordering::SeqCst),
            None => _ = record.unknown.fetch_add(1, Ordering::SeqCst),
        }
        let index = record.handled.fetch_add(1, Ordering::SeqCst) as usize;
        record.order[index % ORDER].store(number, Ordering::SeqCst);
        let hook = HOOKS
            .lock()
            .iter()
            .find(|(known, _)| *known == number)
            .map(|(_, hook)| *hook);
        if let Some(hook) = hook {
            hook();
        }
        GicCpuInterface::end_interrupt(intid, InterruptGroup::Group1);
    }
}

/// Sets the function that the handler calls for an INTID before it ends it.
pub fn set_hook(intid: u32, hook: fn()) {
    disable();
    let mut hooks = HOOKS.lock();
    hooks.retain(|(known, _)| *known != intid);
    let _ = hooks.try_push((intid, hook));
    drop(hooks);
    enable();
}

/// Returns how often the CPU handled the INTID since the last [`clear`].
pub fn count(cpu: usize, intid: u32) -> u32 {
    RECORDS[cpu].counts[intid as usize].load(Ordering::SeqCst)
}

/// Returns the number of interrupts that the CPU handled since the last [`clear`].
pub fn handled(cpu: usize) -> u32 {
    RECORDS[cpu].handled.load(Ordering::SeqCst)
}

/// Returns the INTIDs that the CPU handled since the last [`clear`], in order.
pub fn order(cpu: usize) -> ArrayVec<u32, ORDER> {
    let record = &RECORDS[cpu];
    let handled = (record.handled.load(Ordering::SeqCst) as usize).min(ORDER);
    record.order[..handled]
        .iter()
        .map(|intid| intid.load(Ordering::SeqCst))
        .collect()
}

/// Clears all records.
pub fn clear() {
    for record in &RECORDS {
        for count in &record.counts {
            count.store(0, Ordering::SeqCst);
        }
        record.handled.store(0, Ordering::SeqCst);
        record.unknown.store(0, Ordering::SeqCst);
    }
}
