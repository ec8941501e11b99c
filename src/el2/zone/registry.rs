//! The zones by number: creating, finding and destroying them.

use arrayvec::ArrayVec;
use log::info;
use ringvisor::abi::command::{CommandStatus, ZoneCreate};
use ringvisor::abi::info::ZoneSummary;
use ringvisor::abi::{MAX_VCPUS, MAX_ZONES, machine};
use ringvisor::psci::Mpidr;
use ringvisor::stage2::Stage2;
use ringvisor::vgic::Vgic;

use super::Zone;
use crate::el2::channel::{Refusal, shared_page};
use crate::el2::cpu;
use crate::el2::mm::frames::{FrameBox, Tables};
use crate::el2::mm::ipa_bits;
use crate::el2::sync::{RwLock, RwLockWriteGuard};

static ZONES: [RwLock<Option<FrameBox<Zone>>>; MAX_ZONES] = [const { RwLock::new(None) }; MAX_ZONES];

/// Calls `f` on the zone with this number, if there is one; the zone cannot be destroyed meanwhile.
pub fn with<T>(number: u8, f: impl FnOnce(&Zone) -> T) -> Option<T> {
    let guard = ZONES.get(usize::from(number))?.read();
    guard.as_ref().map(|zone| f(zone))
}

/// Returns the number of zones besides root.
pub fn count() -> usize {
    ZONES.iter().filter(|zone| zone.read().is_some()).count()
}

/// Returns what the information page shows of a zone. One that is being destroyed counts as gone.
pub fn summary(number: u8) -> ZoneSummary {
    let guard = ZONES.get(usize::from(number)).and_then(RwLock::try_read);
    guard
        .as_ref()
        .and_then(|guard| guard.as_ref())
        .map_or_else(ZoneSummary::default, |zone| zone.summary())
}

/// Creates a zone and claims its CPUs. Returns its number. The caller holds the command lock.
pub fn create(request: &ZoneCreate) -> Result<u8, Refusal> {
    let vcpus = request.vcpus as usize;
    let wanted = request.cpus.get(..vcpus).filter(|cpus| !cpus.is_empty());
    let wanted = wanted.ok_or((CommandStatus::BadArgument, vcpus as u64))?;
    // Commands are serialized, so a free number stays free.
    let number = (1..MAX_ZONES).find(|&number| ZONES[number].read().is_none());
    let number = number.ok_or((CommandStatus::TooManyZones, MAX_ZONES as u64 - 1))? as u8;
    let window = shared_page::window(number).ok_or((CommandStatus::NotAttached, 0))?;

    let mut cpus = ArrayVec::new();
    for &mpidr in wanted {
        let cpu = Mpidr::from_argument(mpidr)
            .and_then(cpu::find)
            .ok_or((CommandStatus::NoSuchCpu, mpidr))?;
        cpus.push(cpu);
    }
    let affinities: ArrayVec<u32, MAX_VCPUS> =
        (0..vcpus).map(|vcpu| machine::vcpu_mpidr(vcpu) as u32).collect();
    let gic = Vgic::new(&affinities, machine::SPI_COUNT).map_err(|_| (CommandStatus::OutOfMemory, 1))?;
    let stage2 = Stage2::new(&mut Tables, ipa_bits()).ok_or((CommandStatus::OutOfMemory, 2))?;
    let zone = Zone::build(number, request, cpus, gic, stage2, window)?;
    let pointer = core::ptr::from_ref::<Zone>(&zone).cast_mut().cast();
    for (vcpu, cpu) in zone.cpus.iter().enumerate() {
        if !cpu.claim(number, vcpu as u8, pointer) {
            zone.cpus.iter().take(vcpu).for_each(|cpu| cpu.release());
            let mpidr = cpu.mpidr().bits();
            zone.reclaim();
            return Err((CommandStatus::CpuBusy, mpidr));
        }
    }
    window.clear();
    zone.counters.show(number);
    info!("{} created with {vcpus} vCPUs", *zone);
    *change(&ZONES[usize::from(number)]) = Some(zone);
    Ok(number)
}

/// Locks a place for writing. Unlike `write`, this keeps new readers out while it waits for the present ones.
fn change(place: &RwLock<Option<FrameBox<Zone>>>) -> RwLockWriteGuard<'_, Option<FrameBox<Zone>>> {
    place.upgradeable_read().upgrade()
}

/// Does a part of destroying a zone that is off. Returns whether more is left, so that no CPU of root's is at
/// EL2 for as long as it takes; then the command is to be executed again. At the end the zone's CPUs have no
/// owner, and its memory is root's. The caller holds the command lock.
pub fn destroy_some(number: u8) -> Result<bool, Refusal> {
    let no_such_zone = (CommandStatus::NoSuchZone, u64::from(number));
    if with(number, Zone::destroy_some).unwrap_or(Err(no_such_zone))? {
        return Ok(true);
    }
    let place = ZONES.get(usize::from(number)).ok_or(no_such_zone)?;
    // Doorbells for this number need not wait for the rest; commands are serialized.
    let zone = change(place).take();
    if let Some(zone) = zone {
        info!("{} destroyed", *zone);
        zone.cpus.iter().for_each(|cpu| cpu.release());
    }
    Ok(false)
}
