//! EL2's counters, in read-only pages of BAR 0: [`CpuCounters`] by CPU from [`CPU_OFFSET`],
//! [`DeviceCounters`] by zone and slot from [`DEVICE_OFFSET`].
//!
//! Each 64-bit word has one writer at a time and is read by one load, so it is never torn; two words may be
//! of different moments. Those of a CPU count from the moment that its present owner, root or a zone, started
//! to use it (`CpuInfo` in the information page names the owner), those of a device from the moment that it
//! was added. The pages hold a copy; EL2's own counters are in its private memory.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{MAX_CPUS, MAX_SLOTS, MAX_ZONES};

/// Offset in BAR 0 of CPU 0's counters, in the order of `InfoPage::cpus`.
pub const CPU_OFFSET: usize = 0x2000;
/// Offset in BAR 0 of the counters of zone 0's slot 0.
pub const DEVICE_OFFSET: usize = CPU_OFFSET + MAX_CPUS * size_of::<CpuCounters>();
/// End of all counters.
pub const END: usize = DEVICE_OFFSET + MAX_ZONES * MAX_SLOTS * size_of::<DeviceCounters>();

/// Defines an enum of what is counted, by index of its word, with its name in reports and metrics; also of
/// other indices with names.
#[macro_export]
macro_rules! counted {
    (
        $(#[$meta:meta])*
        pub enum $name:ident: $count:literal {
            $($(#[$doc:meta])* $variant:ident = $number:literal => $label:literal,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(usize)]
        pub enum $name { $($(#[$doc])* $variant = $number,)* }

        impl $name {
            /// All variants, by number.
            pub const ALL: [Self; $count] = [$(Self::$variant),*];

            /// Returns the name in reports and metrics.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $label,)*
                }
            }
        }
    };
}

counted! {
    /// Reason of an exit to EL2.
    pub enum Exit: 9 {
        /// A load where stage 2 maps nothing: an emulated device.
        Read = 0 => "read",
        /// A store where stage 2 maps nothing: an emulated device.
        Write = 1 => "write",
        /// A store to a page that stage 2 maps read-only: a register of a virtio device, or a doorbell of
        /// root's.
        Permission = 2 => "permission",
        /// HVC.
        Hvc = 3 => "hvc",
        /// SMC.
        Smc = 4 => "smc",
        /// A system register: an SGI is sent, an interrupt is deactivated.
        Sysreg = 5 => "sysreg",
        /// Physical interrupts.
        Irq = 6 => "irq",
        /// WFI or WFE.
        Wfx = 7 => "wfx",
        /// Anything else: instruction aborts, undefined instructions, SErrors.
        Other = 8 => "other",
    }
}

impl Exit {
    /// Returns the reason with this number.
    pub fn from_number(number: u64) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }
}

counted! {
    /// What is counted on a CPU at EL2, besides exits.
    pub enum CpuEvent: 10 {
        /// Stores to QueueNotify.
        Notifications = 0 => "notifications",
        /// Those that found the queue's pending bit set: no event was necessary.
        NotificationsPending = 1 => "notifications_pending",
        /// Times that this CPU raised the event interrupt, the control device's INTx.
        EventInterrupts = 2 => "bells",
        /// Stores by root to the used-buffer doorbell.
        Doorbells = 3 => "doorbells",
        /// Commands by root.
        Commands = 4 => "commands",
        /// Times that an interrupt was loaded into a list register as pending.
        Injected = 5 => "injected",
        /// Kicks sent to other CPUs.
        KicksSent = 6 => "kicks_sent",
        /// Kicks received.
        KicksTaken = 7 => "kicks_taken",
        /// Maintenance interrupts.
        Maintenance = 8 => "maintenance",
        /// Other physical interrupts: timers, root's devices.
        Interrupts = 9 => "interrupts",
    }
}

/// Array length for exit reasons.
pub const MAX_EXITS: usize = 12;
/// Array length for events.
pub const MAX_EVENTS: usize = 16;

/// Counters of one CPU.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Debug)]
#[repr(C)]
pub struct CpuCounters {
    /// Exits by [`Exit`].
    pub exits: [u64; MAX_EXITS],
    /// Ticks of the generic counter spent at EL2, by [`Exit`]. The time that a paused vCPU waits does not
    /// count.
    pub ticks: [u64; MAX_EXITS],
    /// Ticks of the longest exit.
    pub longest: u64,
    /// [`Exit`] of the longest exit.
    pub longest_exit: u64,
    /// Counts by [`CpuEvent`].
    pub events: [u64; MAX_EVENTS],
    /// Records ever written to this CPU's trace buffer ([`super::trace`]). Never decreases.
    pub trace_head: u64,
    /// Zero.
    pub reserved: [u64; 21],
}

/// Words of [`CpuCounters`].
pub const CPU_WORDS: usize = size_of::<CpuCounters>() / 8;

/// Index of a word in [`CpuCounters`].
pub mod word {
    use core::mem::offset_of;

    use super::CpuCounters;

    /// First of `exits`.
    pub const EXITS: usize = offset_of!(CpuCounters, exits) / 8;
    /// First of `ticks`.
    pub const TICKS: usize = offset_of!(CpuCounters, ticks) / 8;
    /// `longest`.
    pub const LONGEST: usize = offset_of!(CpuCounters, longest) / 8;
    /// `longest_exit`.
    pub const LONGEST_EXIT: usize = offset_of!(CpuCounters, longest_exit) / 8;
    /// First of `events`.
    pub const EVENTS: usize = offset_of!(CpuCounters, events) / 8;
    /// `trace_head`.
    pub const TRACE_HEAD: usize = offset_of!(CpuCounters, trace_head) / 8;
}

/// What is counted for a device, by index of its word in [`DeviceCounters`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(usize)]
pub enum DeviceEvent {
    /// Stores to QueueNotify.
    Notifications = 0,
    /// Those that found the queue's pending bit set.
    NotificationsPending = 1,
    /// Stores by the daemon to the used-buffer doorbell.
    Doorbells = 2,
    /// Rising edges of the interrupt line.
    Interrupts = 3,
}

/// Counters of one device.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Debug)]
#[repr(C)]
pub struct DeviceCounters {
    /// See [`DeviceEvent::Notifications`].
    pub notifications: u64,
    /// See [`DeviceEvent::NotificationsPending`].
    pub notifications_pending: u64,
    /// See [`DeviceEvent::Doorbells`].
    pub doorbells: u64,
    /// See [`DeviceEvent::Interrupts`].
    pub interrupts: u64,
}

/// Words of [`DeviceCounters`].
pub const DEVICE_WORDS: usize = size_of::<DeviceCounters>() / 8;

/// Returns the offset in BAR 0 of a CPU's counters.
pub const fn cpu(index: usize) -> Option<usize> {
    if index < MAX_CPUS {
        Some(CPU_OFFSET + index * size_of::<CpuCounters>())
    } else {
        None
    }
}

/// Returns the offset in BAR 0 of a device's counters.
pub const fn device(zone: u8, slot: usize) -> Option<usize> {
    if (zone as usize) < MAX_ZONES && slot < MAX_SLOTS {
        Some(DEVICE_OFFSET + (zone as usize * MAX_SLOTS + slot) * size_of::<DeviceCounters>())
    } else {
        None
    }
}

const _: () = assert!(size_of::<CpuCounters>() == 512);
const _: () = assert!(size_of::<DeviceCounters>() == 32);
const _: () = assert!(Exit::ALL.len() <= MAX_EXITS && CpuEvent::ALL.len() <= MAX_EVENTS);
const _: () = assert!(END <= super::trace::OFFSET);
// A page holds whole structures.
const _: () = assert!(4096 % size_of::<CpuCounters>() == 0 && 4096 % size_of::<DeviceCounters>() == 0);

#[cfg(test)]
mod tests {
    use super::{CpuEvent, END, Exit, cpu, device};
    use crate::abi::{MAX_CPUS, MAX_SLOTS, MAX_ZONES};

    #[test]
    fn numbers_are_list_indices_and_names_differ() {
        for (number, exit) in Exit::ALL.into_iter().enumerate() {
            assert_eq!(exit as usize, number);
            assert_eq!(Exit::from_number(number as u64), Some(exit));
            assert!(
                Exit::ALL
                    .iter()
                    .all(|other| *other == exit || other.name() != exit.name())
            );
        }
        assert_eq!(Exit::from_number(Exit::ALL.len() as u64), None);
        for (number, event) in CpuEvent::ALL.into_iter().enumerate() {
            assert_eq!(event as usize, number);
            assert!(
                CpuEvent::ALL
                    .iter()
                    .all(|other| *other == event || other.name() != event.name())
            );
        }
    }

    #[test]
    fn offsets_are_within_the_bar_and_do_not_overlap() {
        assert_eq!(cpu(0), Some(0x2000));
        assert_eq!(cpu(MAX_CPUS), None);
        assert_eq!(cpu(MAX_CPUS - 1).map(|at| at + 512), device(0, 0));
        assert_eq!(
            device(MAX_ZONES as u8 - 1, MAX_SLOTS - 1).map(|at| at + 32),
            Some(END)
        );
        assert_eq!(device(0, MAX_SLOTS), None);
        assert_eq!(device(MAX_ZONES as u8, 0), None);
    }
}
