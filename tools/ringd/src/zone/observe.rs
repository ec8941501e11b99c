//! The devices of all zones, for reports.

use super::registry::Registry;
use super::shared::Phase;
use crate::device::Observed;

/// Returns the devices of the zones that exist.
pub fn devices(registry: &Registry) -> Vec<Observed> {
    let io = &registry.context().io;
    let mut devices = Vec::new();
    for status in registry.list() {
        let (Some(number), Ok(zone)) = (status.number, registry.find(&status.name)) else {
            continue;
        };
        for (slot, config) in (0_u8..).zip(zone.devices.state().slots(&zone.config.devices)) {
            devices.push(Observed {
                zone: status.name.clone(),
                number,
                slot,
                config,
                device: io.device(number, slot),
                queues: io.snapshots(number, slot),
                view: zone.devices.clone(),
                recovering: zone.status().state == Phase::Recovering,
            });
        }
    }
    devices
}
