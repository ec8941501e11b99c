//! Register offsets (section 4.2.2) and the bits of Status and InterruptStatus, named as in the
//! specification.

use bitflags::bitflags;

/// "virt", little-endian.
pub const MAGIC: u32 = 0x7472_6976;
/// Version of the register layout.
pub const VERSION: u32 = 2;

/// R: [`MAGIC`].
pub const MAGIC_VALUE: u16 = 0x000;
/// R: [`VERSION`].
pub const VERSION_OFFSET: u16 = 0x004;
/// R: device id; 0: no device.
pub const DEVICE_ID: u16 = 0x008;
/// R: vendor id.
pub const VENDOR_ID: u16 = 0x00c;
/// R: 32 feature bits, chosen by [`DEVICE_FEATURES_SEL`].
pub const DEVICE_FEATURES: u16 = 0x010;
/// W.
pub const DEVICE_FEATURES_SEL: u16 = 0x014;
/// W: 32 feature bits, chosen by [`DRIVER_FEATURES_SEL`].
pub const DRIVER_FEATURES: u16 = 0x020;
/// W.
pub const DRIVER_FEATURES_SEL: u16 = 0x024;
/// W: the queue that the other queue registers refer to.
pub const QUEUE_SEL: u16 = 0x030;
/// R: most entries of the queue; 0: no such queue.
pub const QUEUE_NUM_MAX: u16 = 0x034;
/// W: entries of the queue.
pub const QUEUE_NUM: u16 = 0x038;
/// RW.
pub const QUEUE_READY: u16 = 0x044;
/// W: number of the queue that is notified.
pub const QUEUE_NOTIFY: u16 = 0x050;
/// R: [`Interrupt`].
pub const INTERRUPT_STATUS: u16 = 0x060;
/// W: [`Interrupt`].
pub const INTERRUPT_ACK: u16 = 0x064;
/// RW: [`DeviceStatus`].
pub const STATUS: u16 = 0x070;
/// W: descriptor area, low half.
pub const QUEUE_DESC_LOW: u16 = 0x080;
/// W: descriptor area, high half.
pub const QUEUE_DESC_HIGH: u16 = 0x084;
/// W: driver area, low half.
pub const QUEUE_DRIVER_LOW: u16 = 0x090;
/// W: driver area, high half.
pub const QUEUE_DRIVER_HIGH: u16 = 0x094;
/// W: device area, low half.
pub const QUEUE_DEVICE_LOW: u16 = 0x0a0;
/// W: device area, high half.
pub const QUEUE_DEVICE_HIGH: u16 = 0x0a4;
/// W: a shared memory region; there is none.
pub const SHM_SEL: u16 = 0x0ac;
/// R: its length, low half.
pub const SHM_LEN_LOW: u16 = 0x0b0;
/// R: its length, high half.
pub const SHM_LEN_HIGH: u16 = 0x0b4;
/// R: its address, low half.
pub const SHM_BASE_LOW: u16 = 0x0b8;
/// R: its address, high half.
pub const SHM_BASE_HIGH: u16 = 0x0bc;
/// RW, with VIRTIO_F_RING_RESET.
pub const QUEUE_RESET: u16 = 0x0c0;
/// R.
pub const CONFIG_GENERATION: u16 = 0x0fc;
/// RW: configuration space.
pub const CONFIG: u16 = 0x100;
/// Bytes of configuration space.
pub const CONFIG_SIZE: u16 = 0x100;
/// End of all registers.
pub const END: u16 = CONFIG + CONFIG_SIZE;

bitflags! {
    /// Device status (section 2.1).
    #[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
    pub struct DeviceStatus: u32 {
        /// The driver has found the device.
        const ACKNOWLEDGE = 1;
        /// The driver knows how to drive the device.
        const DRIVER = 2;
        /// The driver is ready: the device may process queues.
        const DRIVER_OK = 4;
        /// Features are negotiated.
        const FEATURES_OK = 8;
        /// The device cannot continue. Set by the device only.
        const DEVICE_NEEDS_RESET = 0x40;
        /// The driver has given up.
        const FAILED = 0x80;
    }
}

bitflags! {
    /// InterruptStatus and InterruptACK.
    #[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
    pub struct Interrupt: u32 {
        /// Used buffer notification.
        const USED_BUFFER = 1;
        /// Configuration change notification: the configuration changed, or the device needs a reset.
        const CONFIG_CHANGE = 2;
    }
}
