//! Root maps a BAR as Device memory: use aligned loads of 4 or 8 bytes.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{MAX_CPUS, MAX_ZONES};

/// [`CpuInfo::owner`] of a CPU without an owner: root took it offline, no zone has it.
pub const OWNER_NONE: u8 = 0xff;

/// One physical CPU.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Debug)]
#[repr(C)]
pub struct CpuInfo {
    /// Affinity fields of MPIDR_EL1, as in the device tree's `reg`.
    pub mpidr: u64,
    /// Zone that owns the CPU, or [`OWNER_NONE`].
    pub owner: u8,
    /// 1 while it runs a vCPU, 0 while it is parked at EL2, 2 if it panicked there.
    pub running: u8,
    /// vCPU number in its zone.
    pub vcpu: u8,
    /// Zero.
    pub reserved: [u8; 5],
}

/// One zone.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Debug)]
#[repr(C)]
pub struct ZoneSummary {
    /// [`super::ZoneState`].
    pub state: u8,
    /// [`super::StopReason`].
    pub reason: u8,
    /// vCPUs.
    pub vcpus: u8,
    /// vCPUs that are on (PSCI).
    pub vcpus_on: u8,
    /// Incremented at each change of `state`.
    pub generation: u32,
    /// EL2 pages that the zone uses.
    pub pages: u32,
    /// Accesses answered by an injected external abort.
    pub aborts: u32,
}

/// The whole page.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Debug)]
#[repr(C)]
pub struct InfoPage {
    /// [`super::MAGIC`].
    pub magic: u64,
    /// [`super::ABI_VERSION`].
    pub abi_version: u32,
    /// Bytes of the shared page, 2 MiB.
    pub shared_size: u32,
    /// Version of EL2, NUL-padded.
    pub version: [u8; 16],
    /// Successful `ATTACH`es since boot.
    pub attach_epoch: u32,
    /// [`super::command::CommandStatus`] of the last `ATTACH` or `DETACH`.
    pub attach_status: u32,
    /// Entries of `cpus` in use.
    pub cpu_count: u32,
    /// Most zones, including root.
    pub zone_count: u32,
    /// EL2's 4 KiB page frames in total.
    pub pages_total: u32,
    /// Page frames in use (tables, register pages, stacks, ...).
    pub pages_used: u32,
    /// Bytes of EL2's heap in total.
    pub heap_total: u32,
    /// Bytes of EL2's heap in use.
    pub heap_used: u32,
    /// INTID of the event interrupt, the control device's INTx.
    pub event_intid: u32,
    /// Times that the event interrupt was raised.
    pub event_interrupts: u32,
    /// Frequency of the generic counter in Hz (CNTFRQ_EL0).
    pub counter_frequency: u32,
    /// `log` level: 1 error to 5 trace.
    pub log_level: u32,
    /// Physical address of the attached shared page, 0 if none.
    pub shared_pa: u64,
    /// Records in each CPU's trace buffer ([`super::trace`]), a power of two.
    pub trace_records: u32,
    /// What is recorded: bits of [`super::trace`].
    pub trace_mask: u32,
    /// Zero.
    pub reserved: [u8; 32],
    /// CPUs in the order of the device tree.
    pub cpus: [CpuInfo; MAX_CPUS],
    /// Zones by number.
    pub zones: [ZoneSummary; MAX_ZONES],
}

const _: () = assert!(size_of::<CpuInfo>() == 16);
const _: () = assert!(size_of::<ZoneSummary>() == 16);
const _: () = assert!(core::mem::offset_of!(InfoPage, cpus) == 0x80);
const _: () = assert!(size_of::<InfoPage>() <= 4096);
