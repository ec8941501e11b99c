//! [`Backend`] for console devices: what EL2 shows of one, and its queues.

use std::sync::Arc;

use ringconsole::config::CHANGING;
use ringconsole::{Console, PortMemory, QUEUE_SIZE_MAX};
use ringvirtio::{QueueHandler, QueueSetup, SetupError};
use ringvisor::abi::command::DeviceSpec;
use vm_memory::MmapRegion;

use crate::device::backend::{Backend, QueueCounters, spec};
use crate::device::config::Config;
use crate::device::inflight;
use crate::device::zone::ZoneContext;

const _: () = assert!(QUEUE_SIZE_MAX <= inflight::QUEUE_SIZE_MAX);

/// Opens the device with this many consoles; `kept`: the file that outlives the daemon. The zone's consoles
/// have its output from now on.
///
/// # Errors
/// The file is too short.
pub fn open(zone: &ZoneContext, consoles: usize, kept: &Arc<MmapRegion>) -> anyhow::Result<Arc<Console>> {
    let memories: Result<Vec<_>, _> = (0..consoles)
        .map(|index| PortMemory::in_mapping(kept, inflight::console(index)).map(Arc::new))
        .collect();
    let memories = memories.map_err(|error| zone.config.failed(error))?;
    let device = Console::new(format!("{} consoles", zone.config.name), memories);
    for (port, console) in device.ports().iter().zip(&zone.consoles) {
        let (port, output) = (port.clone(), console.clone());
        let source = Arc::downgrade(&port);
        output.pump_port(&port);
        port.on_output(Box::new(move || {
            if let Some(port) = source.upgrade() {
                output.pump_port(&port);
            }
        }));
    }
    Ok(device)
}

impl Backend for Arc<Console> {
    fn describe(&self, _config: &Config, queues: u16) -> DeviceSpec {
        spec(
            ringconsole::DEVICE_ID,
            self.features(),
            queues,
            QUEUE_SIZE_MAX,
            &self.space(),
        )
    }

    fn live_config(&self) -> Option<(u16, Vec<u8>)> {
        let space = self.space();
        Some((0, space.get(..CHANGING)?.into()))
    }

    fn queue(
        &self,
        number: u16,
        setup: QueueSetup,
    ) -> Result<(Box<dyn QueueHandler>, QueueCounters), SetupError> {
        let (queue, counters) = Console::queue(self, number, setup)?;
        Ok((queue, QueueCounters::Console(counters)))
    }
}

/// Has input and sizes of the zone's consoles go to the device in this slot, which the reactor serves.
pub fn watch(zone: &ZoneContext, slot: u8, device: &Arc<Console>) {
    let Some(number) = zone.number else {
        return;
    };
    let io = Arc::downgrade(&zone.io);
    let schedule = Arc::new(move || {
        if let Some(io) = io.upgrade() {
            io.schedule(number, slot);
        }
    });
    for (index, console) in zone.consoles.iter().enumerate() {
        let (device, schedule) = (Arc::downgrade(device), schedule.clone());
        let io = Arc::downgrade(&zone.io);
        console.open_port(Box::new(move |input| {
            let device = device.upgrade()?;
            match input {
                crate::console::PortInput::Bytes(bytes) => {
                    let taken = device.ports().get(index)?.type_in(bytes);
                    if taken > 0 {
                        schedule();
                    }
                    Some(taken)
                }
                crate::console::PortInput::Size(size) => {
                    if device.set_size(index, size) {
                        schedule();
                        if let Some(io) = io.upgrade()
                            && index == 0
                            && let Err(error) = io.show_config(number, slot)
                        {
                            tracing::error!(zone = number, slot, %error, "cannot show a console's size");
                        }
                    }
                    Some(0)
                }
            }
        }));
    }
}
