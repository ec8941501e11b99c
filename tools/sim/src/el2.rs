//! EL2: the real transport state machine and ring producer, and the daemon's commands to them. The code that
//! `src/el2/zone/devices.rs` and `src/el2/control/command.rs` have around the library is reduced to a few
//! lines. One zone, one slot.

use std::sync::{Mutex, MutexGuard};

use ringd::hv::{Hypervisor, Refusal, SharedPage};
use ringvisor::abi::command::{CommandStatus, DeviceSpec, Header, Op};
use ringvisor::abi::info::InfoPage;
use ringvisor::ring::{Entry, Producer, Wakeup, ZoneWindow};
use ringvisor::syndrome::Width;
use ringvisor::virtio::fake::{FakePage, FakeRam};
use ringvisor::virtio::{Effect, Event, Rejected, Spec, Transport};
use zerocopy::{FromZeros, IntoBytes};

use crate::memory;

/// The zone's number.
pub const ZONE: u8 = 1;
/// The device's slot.
pub const SLOT: u8 = 0;

/// EL2 and the page that it shares with the daemon.
pub struct SimEl2 {
    shared: SharedPage,
    state: Mutex<State>,
}

struct State {
    transport: Transport,
    page: FakePage,
    producer: Producer,
    /// Level of the guest's interrupt line.
    line: bool,
    /// The event interrupt, the daemon's INTx, is pending.
    event_interrupt: bool,
    /// How many of the next available and used buffer notifications are lost: built-in mistakes.
    lose_notifications: u32,
    lose_interrupts: u32,
}

impl SimEl2 {
    /// Returns a new zone with one device; its ring's next entry has number `head`.
    #[must_use]
    pub fn new(spec: &DeviceSpec, head: u64) -> Self {
        let spec = Spec::try_from(spec).expect("the daemon describes devices that EL2 accepts");
        let transport = Transport::new(&spec);
        let page = FakePage::default();
        transport.write_page(&page);
        let shared = SharedPage::private().expect("the system has 2 MiB");
        let el2 = Self {
            shared,
            state: Mutex::new(State {
                transport,
                page,
                producer: Producer::starting_at(head),
                line: false,
                event_interrupt: false,
                lose_notifications: 0,
                lose_interrupts: 0,
            }),
        };
        el2.window().clear();
        el2
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The zone's window in the shared page.
    pub fn window(&self) -> &ZoneWindow {
        self.shared.window(ZONE).expect("zone 1 has a window")
    }

    /// Returns the number of entries ever added to the ring.
    pub fn ring_head(&self) -> u64 {
        self.state().producer.head()
    }

    /// Performs a guest's load.
    pub fn load(&self, offset: u16) -> u32 {
        self.state().page.read32(offset)
    }

    /// Performs a guest's store. Returns `true` if it had no effect and is to be tried again.
    pub fn store(&self, offset: u16, width: Width, value: u64) -> bool {
        let mut state = self.state();
        let State { transport, page, .. } = &mut *state;
        let ram = FakeRam(&[(memory::BASE, memory::SIZE as u64)]);
        let effect = transport.write(offset, width, value, &ram, page);
        let notified = offset == ringvisor::virtio::registers::QUEUE_NOTIFY && effect.event.is_some();
        if notified && state.lose_notifications > 0 {
            state.lose_notifications -= 1;
            return false;
        }
        self.apply(&mut state, effect);
        effect.retry
    }

    fn apply(&self, state: &mut State, effect: Effect) {
        if let Some(level) = effect.line {
            state.line = level;
        }
        if let Some(event) = effect.event
            && state.producer.push(&self.window().ring(), entry(event)) == Wakeup::Required
        {
            state.event_interrupt = true;
        }
    }

    /// Returns the level of the guest's interrupt line.
    pub fn line(&self) -> bool {
        self.state().line
    }

    /// Clears the event interrupt and returns whether it was pending.
    #[must_use]
    pub fn take_event_interrupt(&self) -> bool {
        std::mem::take(&mut self.state().event_interrupt)
    }

    /// Returns whether the event interrupt is pending.
    pub fn event_interrupt(&self) -> bool {
        self.state().event_interrupt
    }

    /// Loses the next available buffer notification.
    pub fn lose_notification(&self) {
        self.state().lose_notifications = 1;
    }

    /// Loses the next used buffer notification.
    pub fn lose_interrupt(&self) {
        self.state().lose_interrupts = 1;
    }
}

impl Hypervisor for SimEl2 {
    fn info(&self) -> InfoPage {
        InfoPage::new_zeroed()
    }

    fn execute(&self, mut header: Header, _payload: &[u8], result: &mut [u8]) -> Result<Header, Refusal> {
        let op = Op::try_from(header.op).ok();
        let refuse = |status: CommandStatus, detail| Refusal {
            op,
            status: status as u32,
            detail,
        };
        if header.zone != u32::from(ZONE) || header.slot != u32::from(SLOT) {
            return Err(refuse(CommandStatus::NoSuchDevice, header.slot.into()));
        }
        let mut state = self.state();
        let State { transport, page, .. } = &mut *state;
        let [arg0, arg1, ..] = header.args;
        let stale = |_: Rejected| refuse(CommandStatus::Stale, arg0);
        match op {
            Some(Op::RingHead) => header.args[0] = state.producer.head(),
            Some(Op::DeviceState) => {
                let bytes = transport.state();
                for (to, from) in result.iter_mut().zip(bytes.as_bytes()) {
                    *to = *from;
                }
            }
            Some(Op::DeviceQuiesced) => transport.quiesced(arg0, page).map_err(stale)?,
            Some(Op::QueueQuiesced) => transport.queue_quiesced(arg1 as u32, arg0, page).map_err(stale)?,
            Some(Op::DeviceNeedsReset) => {
                let effect = transport.needs_reset(page);
                self.apply(&mut state, effect);
            }
            _ => return Err(refuse(CommandStatus::UnknownOp, header.op.into())),
        }
        Ok(header)
    }

    fn used_buffer(&self, zone: u8, slot: u8) {
        if (zone, slot) != (ZONE, SLOT) {
            return;
        }
        let mut state = self.state();
        if state.lose_interrupts > 0 {
            state.lose_interrupts -= 1;
            return;
        }
        let State { transport, page, .. } = &mut *state;
        let effect = transport.used_buffer(page);
        self.apply(&mut state, effect);
    }

    fn console_input(&self, _zone: u8) {}

    fn bar_word(&self, _offset: usize) -> u64 {
        0
    }

    fn shared(&self) -> &SharedPage {
        &self.shared
    }
}

/// Returns the ring entry of a device's event.
fn entry(event: Event) -> Entry {
    match event {
        Event::Notify { queue } => Entry::Notify { slot: SLOT, queue },
        _ => Entry::Device { slot: SLOT },
    }
}
