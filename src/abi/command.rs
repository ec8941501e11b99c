//! Commands: a [`Header`] in a command slot and, for some, a payload behind it.
//!
//! There is a slot in the shared page, for commands that serve zones that exist ([`Op::serves`]), and one
//! behind the control doorbell page ([`super::doorbell::CONTROL_SLOT`]), for all. The daemon fills header and
//! payload, stores to [`super::doorbell::COMMAND`] of that slot's page, and finds `status`, `detail` and the
//! results when the store has completed. One command at a time in each slot. Each does bounded work at EL2; a
//! longer operation (a zone that stops) is only started here, and a zone event in the ring reports its
//! completion.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{MAX_QUEUES, MAX_VCPUS, NAME_LEN};
use crate::flash::BUFFER;

/// Header of a command.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Debug)]
#[repr(C)]
pub struct Header {
    /// [`Op`].
    pub op: u32,
    /// [`CommandStatus`], written by EL2.
    pub status: u32,
    /// The value that `status` refers to, written by EL2.
    pub detail: u64,
    /// Zone that the command refers to; written by EL2 for [`Op::ZoneCreate`].
    pub zone: u32,
    /// virtio slot, for commands on a device.
    pub slot: u32,
    /// Arguments, as documented at each operation.
    pub args: [u64; 4],
}

numbered! {
    /// Operations.
    pub enum Op: u32 {
        /// Payload [`ZoneCreate`]. Allocates the CPUs, which root must have taken offline. Result: `zone`,
        /// ring state empty, [`super::ZoneState::Created`].
        ZoneCreate = 1,
        /// `args[0]`: IPA, `args[1]`: count, 1 to [`MAX_DONATION`]. Payload: `count` physical addresses
        /// (u64), each a 2 MiB-aligned block of root's RAM that no zone owns; mapped one after the other from
        /// the IPA. On an error none of this command's blocks is mapped. At IPA 0, once, the
        /// [`super::machine::FLASH_BLOCKS`] blocks of both flash banks.
        ZoneDonate = 2,
        /// Payload [`DeviceSpec`] for `slot`. Allowed while the zone is created, and later for a slot that is
        /// empty.
        DeviceAdd = 3,
        /// `args[0]`: entry IPA, `args[1]`: x0 of vCPU 0. From created or stopped: resets devices and vCPUs,
        /// then runs.
        ZoneStart = 4,
        /// Starts to stop the zone, which keeps its CPUs and memory. A zone event reports completion.
        ZoneStop = 5,
        /// Allowed when created or stopped: releases CPUs (parked, root may bring them online) and memory.
        ZoneDestroy = 6,
        /// Starts to pause the zone. A zone event reports completion.
        ZonePause = 7,
        /// Resumes a paused zone.
        ZoneResume = 8,
        /// Result: payload [`ZoneInfo`].
        ZoneInfo = 9,
        /// Result: payload [`DeviceState`] of `slot`.
        DeviceState = 10,
        /// The daemon no longer uses any buffer or queue of `slot` that it got before reset number `args[0]`
        /// (`DeviceState::reset_generation`): the guest's reset can complete.
        DeviceQuiesced = 11,
        /// As [`Self::DeviceQuiesced`] for one queue, `args[1]`, after QueueReset or QueueReady=0.
        QueueQuiesced = 12,
        /// Sets DEVICE_NEEDS_RESET.
        DeviceNeedsReset = 13,
        /// Changes configuration space: `args[0]` offset, `args[1]` length up to 256, payload the bytes.
        DeviceConfig = 14,
        /// Removes the device from `slot`.
        DeviceRemove = 15,
        /// Result: `args[0]` = ring head of the zone (entries ever written). Used on attach.
        RingHead = 16,
        /// `args[0]`: level 1 (error) to 5 (trace).
        LogLevel = 17,
        /// Presses (`args[0]`: 1) or releases (0) the power key.
        PowerKey = 18,
        /// Result: payload [`FlashOperation`], what the guest waits for.
        FlashOperation = 19,
        /// The operation with the sequence number `args[0]` is done and durable (`args[1]`: 0) or has failed
        /// (1).
        FlashDone = 20,
        /// `args[0]`: what the trace buffers record from now on, bits of [`super::trace`]; 0: nothing.
        Trace = 32,
    }
}

impl Op {
    /// Whether the command serves a zone that exists: it reads the zone's state or answers its devices, and
    /// neither gives it anything, starts or stops it, nor concerns anything else.
    #[must_use]
    pub const fn serves(self) -> bool {
        matches!(
            self,
            Self::ZoneInfo
                | Self::DeviceState
                | Self::DeviceQuiesced
                | Self::QueueQuiesced
                | Self::DeviceNeedsReset
                | Self::DeviceConfig
                | Self::RingHead
                | Self::FlashOperation
                | Self::FlashDone
        )
    }
}

/// Offset of the payload in a command slot.
pub const PAYLOAD: usize = 0x40;
/// Most bytes of payload in the control page's slot.
pub const CONTROL_PAYLOAD_SIZE: usize = 0x1000 - PAYLOAD;

numbered! {
    /// Status of a command. `detail` is the value it refers to.
    pub enum CommandStatus: u32 {
        /// Success.
        Ok = 0,
        /// `op` is not an [`Op`].
        UnknownOp = 1,
        /// An argument is out of its range (`detail`: the argument).
        BadArgument = 2,
        /// No zone of that number.
        NoSuchZone = 3,
        /// The zone's state (`detail`) does not allow the command.
        WrongState = 4,
        /// No CPU with that MPIDR (`detail`).
        NoSuchCpu = 5,
        /// The CPU (`detail`: MPIDR) is online in root or owned by another zone.
        CpuBusy = 6,
        /// The block (`detail`: its address) is not root's RAM.
        NotRootRam = 7,
        /// The address (`detail`) is not 2 MiB-aligned.
        Misaligned = 8,
        /// The block (`detail`) is owned by a zone, or is the shared page.
        BlockInUse = 9,
        /// The IPA (`detail`) is mapped already or outside the zone's RAM range.
        IpaInUse = 10,
        /// EL2 has no page frames left (`detail`: frames requested).
        OutOfMemory = 11,
        /// All zone numbers are in use.
        TooManyZones = 12,
        /// The slot (`detail`) has no device, or is not a slot.
        NoSuchDevice = 13,
        /// The slot (`detail`) has a device.
        SlotInUse = 14,
        /// Magic or ABI version (`detail`) of the shared page is not EL2's.
        VersionMismatch = 15,
        /// No shared page is attached.
        NotAttached = 16,
        /// Zones exist (`detail`: how many), so another shared page or a detach is refused.
        ZonesExist = 17,
        /// A device specification is contradictory.
        BadDevice = 18,
        /// The generation or sequence number (`detail`) is not that of what is pending.
        Stale = 19,
        /// The command (`detail`: its `op`) is executed from the control page's slot only.
        NotServing = 20,
    }
}

/// Most blocks in one [`Op::ZoneDonate`].
pub const MAX_DONATION: usize = 64;

/// Payload of [`Op::ZoneCreate`].
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Debug)]
#[repr(C)]
pub struct ZoneCreate {
    /// Name, NUL-padded UTF-8, for EL2's log.
    pub name: [u8; NAME_LEN],
    /// vCPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u32,
    /// Zero.
    pub reserved: u32,
    /// Time for the RTC at this moment, in seconds since 1970.
    pub epoch_seconds: u64,
    /// MPIDR affinity of the physical CPU of each vCPU.
    pub cpus: [u64; MAX_VCPUS],
}

/// Payload of [`Op::DeviceAdd`].
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Debug)]
#[repr(C)]
pub struct DeviceSpec {
    /// virtio device ID; 2 for block.
    pub device_id: u32,
    /// Vendor ID register.
    pub vendor_id: u32,
    /// Device feature bits offered.
    pub features: u64,
    /// Number of queues, 1 to [`MAX_QUEUES`].
    pub queues: u32,
    /// Bytes of `config` that exist, up to 256.
    pub config_len: u32,
    /// QueueNumMax of each queue: a power of two up to 32768.
    pub queue_max: [u16; MAX_QUEUES],
    /// Configuration space.
    pub config: [u8; 256],
}

/// One queue in [`DeviceState`].
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Debug)]
#[repr(C)]
pub struct QueueState {
    /// QueueNum.
    pub size: u32,
    /// 1 while QueueReady; 2 while its reset or stop waits for [`Op::QueueQuiesced`].
    pub ready: u32,
    /// IPA of the descriptor table.
    pub desc: u64,
    /// IPA of the driver (available) area.
    pub driver: u64,
    /// IPA of the device (used) area.
    pub device: u64,
}

/// Result of [`Op::DeviceState`]: the registers that EL2 has latched.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Debug)]
#[repr(C)]
pub struct DeviceState {
    /// Device Status register (virtio 1.2, 2.1).
    pub status: u32,
    /// Queues.
    pub queues: u32,
    /// Feature bits negotiated.
    pub features: u64,
    /// Resets begun so far.
    pub reset_generation: u64,
    /// 1 while a reset waits for [`Op::DeviceQuiesced`].
    pub reset_pending: u32,
    /// Zero.
    pub reserved: u32,
    /// Queues by number.
    pub queue: [QueueState; MAX_QUEUES],
    /// Configuration space, with the values of writable fields that the guest wrote last.
    pub config: [u8; 256],
}

/// Result of [`Op::ZoneInfo`].
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Debug)]
#[repr(C)]
pub struct ZoneInfo {
    /// Name given at creation.
    pub name: [u8; NAME_LEN],
    /// [`super::ZoneState`].
    pub state: u32,
    /// [`super::StopReason`].
    pub reason: u32,
    /// vCPUs.
    pub vcpus: u32,
    /// vCPUs that are on.
    pub vcpus_on: u32,
    /// Blocks of 2 MiB donated.
    pub blocks: u64,
    /// For [`super::StopReason::Fault`]: ESR_EL2, ELR_EL2, FAR_EL2.
    pub fault: [u64; 3],
    /// MPIDR of each vCPU's physical CPU.
    pub cpus: [u64; MAX_VCPUS],
}

/// Result of [`Op::FlashOperation`], of the bank of variables.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Debug)]
#[repr(C)]
pub struct FlashOperation {
    /// For [`Op::FlashDone`].
    pub sequence: u64,
    /// [`FlashKind`].
    pub kind: u32,
    /// First byte in the bank.
    pub offset: u32,
    /// Bytes to program, all in one aligned piece of [`BUFFER`]; or to erase.
    pub len: u32,
    /// Zero.
    pub reserved: u32,
    /// To program: bits to leave as they are, from `offset` modulo [`BUFFER`] on; the others are cleared.
    pub data: [u8; BUFFER],
}

numbered! {
    /// What is to be done with flash.
    pub enum FlashKind: u32 {
        /// Nothing.
        None = 0,
        /// Program.
        Program = 1,
        /// Erase: set all bits.
        Erase = 2,
    }
}

const _: () = assert!(size_of::<Header>() == 56);
const _: () = assert!(super::shared::PAYLOAD - super::shared::COMMAND == PAYLOAD);
const _: () = assert!(size_of::<ZoneCreate>() <= CONTROL_PAYLOAD_SIZE);
const _: () = assert!(size_of::<DeviceState>() <= CONTROL_PAYLOAD_SIZE);
const _: () = assert!(size_of::<DeviceSpec>() <= CONTROL_PAYLOAD_SIZE);
const _: () = assert!(size_of::<FlashOperation>() <= CONTROL_PAYLOAD_SIZE);
const _: () = assert!(MAX_DONATION * 8 <= CONTROL_PAYLOAD_SIZE);
// What fits into the control page's slot fits into that of the shared page.
const _: () = assert!(CONTROL_PAYLOAD_SIZE <= super::shared::PAYLOAD_SIZE);

#[cfg(test)]
mod tests {
    use super::Op;

    // torture i2: what the serving page executes gives nothing to a zone and ends none.
    #[test]
    fn few_commands_serve() {
        let serving = [
            Op::ZoneInfo,
            Op::DeviceState,
            Op::DeviceQuiesced,
            Op::QueueQuiesced,
            Op::DeviceNeedsReset,
            Op::DeviceConfig,
            Op::RingHead,
            Op::FlashOperation,
            Op::FlashDone,
        ];
        let all = (0..=64).filter_map(|number| Op::try_from(number).ok());
        assert!(all.filter(|op| op.serves()).eq(serving));
    }
}
