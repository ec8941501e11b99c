//! The CPUs of a zone: chosen, taken offline in root, brought back.

use std::collections::BTreeSet;

use ringvisor::abi::info::OWNER_NONE;

use super::Context;
use super::record::{Journal, Record};
use super::shared::Shared;
use crate::config::ZoneConfig;
use crate::host::{Cpu, cpus};

/// Returns the CPUs that a zone would be given now.
///
/// # Errors
/// There are not enough, or one that is asked for is in use.
pub fn choose(context: &Context, config: &ZoneConfig) -> anyhow::Result<Vec<Cpu>> {
    choose_from(context, config, &context.cpus.lock())
}

fn choose_from(context: &Context, config: &ZoneConfig, reserved: &BTreeSet<u64>) -> anyhow::Result<Vec<Cpu>> {
    let mut all = context
        .host
        .cpus()
        .map_err(|cause| config.failed(format!("list of CPUs: {cause}")))?;
    // Root knows of a CPU that it never started only that: a zone may have it.
    let page = context.hv.info();
    let free = |mpidr: u64| {
        let mut known = page.cpus.iter().filter(|cpu| cpu.mpidr == mpidr);
        known.any(|cpu| cpu.owner == OWNER_NONE) && !reserved.contains(&mpidr)
    };
    for cpu in &mut all {
        cpu.spare &= free(cpu.mpidr);
    }
    cpus::choose(&all, &config.cpus).map_err(|error| config.bad("cpus", &config.cpus, error))
}

/// Chooses CPUs, records them and takes them offline. Returns their MPIDRs, the first for vCPU 0.
///
/// # Errors
/// There are not enough, the record cannot be written, or root Linux refused. What was acquired is on record
/// and in `ours`.
pub fn acquire(
    context: &Context,
    shared: &Shared,
    journal: &mut Journal,
    ours: &mut Vec<u64>,
) -> anyhow::Result<Vec<u64>> {
    let config = &shared.config;
    let mut reserved = context.cpus.lock();
    let chosen = choose_from(context, config, &reserved)?;
    // All that are online go into the record first: bringing a CPU online that is online does no harm. Those
    // that root never started stay offline at the zone's end.
    let taken = || chosen.iter().filter(|cpu| cpu.online);
    journal.update(|record| record.cpus = taken().map(|cpu| cpu.number).collect())?;
    shared.update(|status| status.cpus = chosen.iter().map(|cpu| cpu.number).collect());
    ours.extend(chosen.iter().map(|cpu| cpu.mpidr));
    reserved.extend(ours.iter());
    for cpu in taken() {
        let number = cpu.number;
        let taken = context.host.set_online(number, false);
        taken.map_err(|cause| config.failed(format!("taking CPU {number} offline: {cause}")))?;
    }
    Ok(chosen.iter().map(|cpu| cpu.mpidr).collect())
}

/// Returns root's numbers of the CPUs that a zone has at EL2, in the order of its vCPUs.
///
/// # Errors
/// Root's CPUs cannot be listed.
pub fn held(context: &Context, zone: u8) -> std::io::Result<Vec<u32>> {
    let all = context.host.cpus()?;
    let page = context.hv.info();
    let mut held: Vec<_> = page.cpus.iter().filter(|cpu| cpu.owner == zone).collect();
    held.sort_by_key(|cpu| cpu.vcpu);
    let number = |mpidr| all.iter().find(|cpu| cpu.mpidr == mpidr).map(|cpu| cpu.number);
    Ok(held.iter().filter_map(|cpu| number(cpu.mpidr)).collect())
}

/// Brings the CPUs on a record back online, and lets other zones have those that were reserved. What fails is
/// logged.
pub fn release(context: &Context, record: &Record, reserved: &[u64]) {
    context.cpus.lock().retain(|mpidr| !reserved.contains(mpidr));
    for cpu in record.cpus.iter().rev() {
        if let Err(error) = context.host.set_online(*cpu, true) {
            tracing::error!(zone = record.config.name, cpu, %error, "cannot bring a CPU back online");
        }
    }
}
