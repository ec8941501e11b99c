//! Feature bits (sections 2.2 and 6) and their dependencies: [`missing_dependency`].

/// Feature bits by name.
#[allow(missing_docs, reason = "the names are the specification's")]
pub mod bit {
    pub const INDIRECT_DESC: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const VERSION_1: u64 = 1 << 32;
    pub const IN_ORDER: u64 = 1 << 35;
    pub const ORDER_PLATFORM: u64 = 1 << 36;
    pub const RING_RESET: u64 = 1 << 40;

    pub const BLK_FLUSH: u64 = 1 << 9;
    pub const BLK_CONFIG_WCE: u64 = 1 << 11;

    pub const CONSOLE_EMERG_WRITE: u64 = 1 << 2;
}

/// Device IDs (section 5).
pub mod device {
    /// Network device.
    pub const NET: u32 = 1;
    /// Block device.
    pub const BLOCK: u32 = 2;
    /// Console device.
    pub const CONSOLE: u32 = 3;
}

/// Feature bits reserved for device types: 0 to 23 and 50 to 63 (section 2.2).
const DEVICE_BITS: u64 = 0x00ff_ffff | 0x3fff << 50;

/// Feature bits that this transport can offer. Not RING_PACKED (only split queues are checked),
/// ACCESS_PLATFORM, SR_IOV, NOTIFICATION_DATA, NOTIF_CONFIG_DATA or ADMIN_VQ, nor reserved bits.
pub const SUPPORTED: u64 = DEVICE_BITS
    | bit::INDIRECT_DESC
    | bit::EVENT_IDX
    | bit::VERSION_1
    | bit::IN_ORDER
    | bit::ORDER_PLATFORM
    | bit::RING_RESET;

/// Feature bit `feature` requires one of `any_of`.
struct Dependency {
    feature: u32,
    any_of: u64,
}

const fn needs(feature: u32, any_of: u64) -> Dependency {
    Dependency { feature, any_of }
}

/// Dependencies of the network device's features (section 5.1.3.1; USO, bits 54 to 56, as in virtio 1.3).
const NET: [Dependency; 19] = {
    const CSUM: u64 = 1;
    const GUEST_CSUM: u64 = 1 << 1;
    const GUEST_TSO: u64 = 1 << 7 | 1 << 8;
    const HOST_TSO: u64 = 1 << 11 | 1 << 12;
    const CTRL_VQ: u64 = 1 << 17;
    [
        needs(7, GUEST_CSUM),
        needs(8, GUEST_CSUM),
        needs(9, GUEST_TSO),
        needs(10, GUEST_CSUM),
        needs(11, CSUM),
        needs(12, CSUM),
        needs(13, HOST_TSO),
        needs(14, CSUM),
        needs(18, CTRL_VQ),
        needs(19, CTRL_VQ),
        needs(21, CTRL_VQ),
        needs(22, CTRL_VQ),
        needs(23, CTRL_VQ),
        needs(53, CTRL_VQ),
        needs(54, GUEST_CSUM),
        needs(55, GUEST_CSUM),
        needs(56, CSUM),
        needs(60, CTRL_VQ),
        needs(61, HOST_TSO),
    ]
};

/// Returns a feature bit of `features` whose requirement is not in it, if there is one. For drivers and
/// devices (section 2.2).
pub fn missing_dependency(device_id: u32, features: u64) -> Option<u32> {
    let table: &[Dependency] = match device_id {
        device::NET => &NET,
        _ => &[],
    };
    table
        .iter()
        .find(|need| features & 1 << need.feature != 0 && features & need.any_of == 0)
        .map(|need| need.feature)
}

/// As [`missing_dependency`], and also for what a device must not offer alone: CONFIG_WCE without FLUSH
/// (5.2.5.2).
pub fn missing_for_offer(device_id: u32, features: u64) -> Option<u32> {
    if device_id == device::BLOCK && features & bit::BLK_CONFIG_WCE != 0 && features & bit::BLK_FLUSH == 0 {
        return Some(bit::BLK_CONFIG_WCE.trailing_zeros());
    }
    missing_dependency(device_id, features)
}
