//! The daemon's commands (`ringvisor::abi::command`): one match for all, a method of the zone for most.

use log::info;
use ringvisor::abi::command::{CommandStatus, DeviceSpec, Header, MAX_DONATION, Op, PAYLOAD, ZoneCreate};
use ringvisor::abi::trace;
use ringvisor::addr::{Ipa, Pa};
use ringvisor::virtio::Rejected;

use crate::el2::arch;
use crate::el2::channel::Refusal;
use crate::el2::channel::shared_page::{copy_in, copy_out};
use crate::el2::logger::level_filter;
use crate::el2::stats;
use crate::el2::zone::{Zone, registry};

/// Executes the command in the slot at `slot` and writes how it ended; one that does not serve zones only if
/// `control`. Returns false if it has not ended and is to be executed again; the slot is as it was then. The
/// caller holds the command lock.
pub fn execute(slot: Pa, control: bool) -> bool {
    // Root maps the control page's slot as Device memory, EL2 as Normal non-cacheable. With such mismatched
    // attributes (Arm ARM, B2) a barrier is to be between the stores of one and the loads of the other.
    arch::dsb_sy();
    let mut header: Header = copy_in(slot, 0);
    let result = match Op::try_from(header.op) {
        Ok(op) if !control && !op.serves() => Err((CommandStatus::NotServing, u64::from(header.op))),
        Ok(Op::ZoneDestroy) => match number(&header).and_then(registry::destroy_some) {
            Ok(true) => return false,
            result => result.map(drop),
        },
        Ok(op) => execute_op(op, &mut header, slot),
        Err(op) => Err((CommandStatus::UnknownOp, u64::from(op))),
    };
    (header.status, header.detail) = match result {
        Ok(()) => (CommandStatus::Ok as u32, 0),
        Err((status, detail)) => {
            log::debug!(
                "command {:?} refused: {status:?} ({detail:#x})",
                Op::try_from(header.op)
            );
            (status as u32, detail)
        }
    };
    copy_out(slot, 0, &header);
    arch::dsb_sy();
    true
}

/// `header` is EL2's own copy of that at `at`; results go into it or into the payload.
fn execute_op(op: Op, header: &mut Header, at: Pa) -> Result<(), Refusal> {
    match op {
        Op::ZoneCreate => {
            let request: ZoneCreate = copy_in(at, PAYLOAD);
            header.zone = u32::from(registry::create(&request)?);
            Ok(())
        }
        Op::LogLevel => match header.args[0] {
            level @ 1..=5 => {
                log::set_max_level(level_filter(level as u8));
                info!("log level {level}");
                Ok(())
            }
            other => Err((CommandStatus::BadArgument, other)),
        },
        Op::Trace => match u32::try_from(header.args[0]) {
            Ok(mask) if mask & !trace::ALL == 0 => {
                stats::set_mask(mask);
                Ok(())
            }
            _ => Err((CommandStatus::BadArgument, header.args[0])),
        },
        _ => {
            let number = number(header)?;
            registry::with(number, |zone| execute_on_zone(op, header, at, zone))
                .unwrap_or(Err((CommandStatus::NoSuchZone, u64::from(number))))
        }
    }
}

/// Returns the zone that a command is for.
fn number(header: &Header) -> Result<u8, Refusal> {
    u8::try_from(header.zone).map_err(|_| (CommandStatus::NoSuchZone, u64::from(header.zone)))
}

fn execute_on_zone(op: Op, header: &mut Header, at: Pa, zone: &Zone) -> Result<(), Refusal> {
    let [arg0, arg1, ..] = header.args;
    let slot = header.slot as usize;
    let stale = |_: Rejected| (CommandStatus::Stale, arg0);
    match op {
        // Executed above, or in `execute`.
        Op::ZoneCreate | Op::ZoneDestroy | Op::LogLevel | Op::Trace => {
            Err((CommandStatus::UnknownOp, u64::from(header.op)))
        }
        Op::ZoneDonate => {
            let list: [u64; MAX_DONATION] = copy_in(at, PAYLOAD);
            let blocks = usize::try_from(arg1).ok().filter(|count| *count > 0);
            let blocks = blocks
                .and_then(|count| list.get(..count))
                .ok_or((CommandStatus::BadArgument, arg1))?;
            zone.donate(Ipa(arg0), blocks)
        }
        Op::ZoneStart => zone.start(Ipa(arg0), arg1),
        Op::ZoneStop => zone.stop(),
        Op::ZonePause => zone.pause(),
        Op::ZoneResume => zone.resume(),
        Op::PowerKey => match arg0 {
            0 | 1 => {
                zone.set_power_key(arg0 == 1);
                Ok(())
            }
            other => Err((CommandStatus::BadArgument, other)),
        },
        Op::FlashOperation => zone.flash_operation(|operation| copy_out(at, PAYLOAD, operation)),
        Op::FlashDone => zone.flash_done(arg0, arg1 == 0),
        Op::ZoneInfo => {
            copy_out(at, PAYLOAD, &zone.info());
            Ok(())
        }
        Op::RingHead => {
            header.args[0] = zone.ring_head();
            Ok(())
        }
        Op::DeviceAdd => {
            let spec: DeviceSpec = copy_in(at, PAYLOAD);
            zone.add_device(slot, &spec)
        }
        Op::DeviceRemove => zone.remove_device(slot),
        Op::DeviceState => {
            let state = zone.with_device(slot, |device| device.transport.state())?;
            copy_out(at, PAYLOAD, &state);
            Ok(())
        }
        Op::DeviceQuiesced => zone
            .with_device(slot, |device| device.transport.quiesced(arg0, &device.page))?
            .map_err(stale),
        Op::QueueQuiesced => {
            let queue = u32::try_from(arg1).map_err(|_| (CommandStatus::BadArgument, arg1))?;
            zone.with_device(slot, |device| {
                device.transport.queue_quiesced(queue, arg0, &device.page)
            })?
            .map_err(stale)
        }
        Op::DeviceNeedsReset => zone.device_needs_reset(slot),
        Op::DeviceConfig => {
            let bytes: [u8; 256] = copy_in(at, PAYLOAD);
            let offset = u16::try_from(arg0).map_err(|_| (CommandStatus::BadArgument, arg0))?;
            let bytes = usize::try_from(arg1).ok().and_then(|len| bytes.get(..len));
            zone.device_config(slot, offset, bytes.ok_or((CommandStatus::BadArgument, arg1))?)
        }
    }
}
