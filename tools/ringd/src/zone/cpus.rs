//! The CPUs of a zone: chosen, taken offline in root, brought back.

use super::Context;
use super::journal::Journal;
use super::record::Record;
use super::shared::Shared;
use crate::config::ZoneConfig;
use crate::host::{Cpu, cpus};

/// Returns the CPUs that a zone would be given now.
///
/// # Errors
/// There are not enough, or one that is asked for is in use.
pub fn choose(context: &Context, config: &ZoneConfig) -> anyhow::Result<Vec<Cpu>> {
    let all = context
        .host
        .cpus()
        .map_err(|cause| config.failed(format!("list of CPUs: {cause}")))?;
    cpus::choose(&all, &config.cpus).map_err(|error| config.bad("cpus", &config.cpus, error))
}

/// Chooses CPUs, records them and takes them offline. Returns their MPIDRs, the first for vCPU 0.
///
/// # Errors
/// There are not enough, the record cannot be written, or root Linux refused. What was acquired is on record.
pub fn acquire(context: &Context, shared: &Shared, journal: &mut Journal) -> anyhow::Result<Vec<u64>> {
    let config = &shared.config;
    let _choosing = context.cpus.lock();
    let chosen = choose(context, config)?;
    // All of them go into the record first: bringing a CPU online that is online does no harm.
    let numbers: Vec<u32> = chosen.iter().map(|cpu| cpu.number).collect();
    journal.update(|record| record.cpus.clone_from(&numbers))?;
    shared.update(|status| status.cpus = numbers);
    for cpu in &chosen {
        let number = cpu.number;
        let taken = context.host.set_online(number, false);
        taken.map_err(|cause| config.failed(format!("taking CPU {number} offline: {cause}")))?;
    }
    Ok(chosen.iter().map(|cpu| cpu.mpidr).collect())
}

/// Brings the CPUs on a record back online. What fails is logged.
pub fn release(context: &Context, record: &Record) {
    for cpu in record.cpus.iter().rev() {
        if let Err(error) = context.host.set_online(*cpu, true) {
            tracing::error!(zone = record.config.name, cpu, %error, "cannot bring a CPU back online");
        }
    }
}
