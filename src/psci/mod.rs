//! PSCI 1.1 (Arm DEN 0022) and the discovery calls of SMCCC 1.1 (DEN 0028): calls decoded from registers,
//! error codes, and the state of CPUs.
//!
//! [`Call::decode`] decodes root's calls and guests'. [`cpus::CpuTable`] holds each CPU's state; EL2 keeps
//! one table per zone under the zone's lock and carries out what the table decides.

pub mod cpus;

use crate::addr::Ipa;

/// Function identifiers. Bit 30 set: the 64-bit (SMC64) form.
pub mod function {
    /// PSCI_VERSION.
    pub const VERSION: u32 = 0x8400_0000;
    /// CPU_SUSPEND, SMC32.
    pub const CPU_SUSPEND_32: u32 = 0x8400_0001;
    /// CPU_SUSPEND, SMC64.
    pub const CPU_SUSPEND_64: u32 = 0xc400_0001;
    /// CPU_OFF.
    pub const CPU_OFF: u32 = 0x8400_0002;
    /// CPU_ON, SMC32.
    pub const CPU_ON_32: u32 = 0x8400_0003;
    /// CPU_ON, SMC64.
    pub const CPU_ON_64: u32 = 0xc400_0003;
    /// AFFINITY_INFO, SMC32.
    pub const AFFINITY_INFO_32: u32 = 0x8400_0004;
    /// AFFINITY_INFO, SMC64.
    pub const AFFINITY_INFO_64: u32 = 0xc400_0004;
    /// MIGRATE_INFO_TYPE.
    pub const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
    /// SYSTEM_OFF.
    pub const SYSTEM_OFF: u32 = 0x8400_0008;
    /// SYSTEM_RESET.
    pub const SYSTEM_RESET: u32 = 0x8400_0009;
    /// PSCI_FEATURES.
    pub const FEATURES: u32 = 0x8400_000a;
    /// SYSTEM_RESET2, SMC32.
    pub const SYSTEM_RESET2_32: u32 = 0x8400_0012;
    /// SYSTEM_RESET2, SMC64.
    pub const SYSTEM_RESET2_64: u32 = 0xc400_0012;
    /// SMCCC_VERSION.
    pub const SMCCC_VERSION: u32 = 0x8000_0000;
    /// SMCCC_ARCH_FEATURES.
    pub const SMCCC_ARCH_FEATURES: u32 = 0x8000_0001;
}

/// Result of PSCI_VERSION: 1.1.
pub const PSCI_VERSION: u64 = 0x1_0001;
/// Result of SMCCC_VERSION: 1.1.
pub const SMCCC_VERSION: u64 = 0x1_0001;
/// Result of MIGRATE_INFO_TYPE: no trusted OS that requires migration.
pub const NO_TRUSTED_OS: u64 = 2;

/// Error codes (section 5.2.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[repr(i32)]
pub enum Error {
    /// The function is not implemented.
    #[error("not supported")]
    NotSupported = -1,
    /// An argument is invalid, or names a CPU outside the caller's zone.
    #[error("invalid parameters")]
    InvalidParameters = -2,
    /// The operation is not allowed.
    #[error("denied")]
    Denied = -3,
    /// The CPU is on.
    #[error("already on")]
    AlreadyOn = -4,
    /// The CPU is being turned on.
    #[error("on pending")]
    OnPending = -5,
    /// Internal failure.
    #[error("internal failure")]
    InternalFailure = -6,
    /// The entry point is not a valid address.
    #[error("invalid address")]
    InvalidAddress = -9,
}

impl Error {
    /// Returns the value for x0. A caller of the 32-bit form reads w0 only, so one encoding serves both.
    pub const fn to_register(self) -> u64 {
        self as i32 as i64 as u64
    }
}

/// The affinity fields of an MPIDR: Aff3 in bits 39 to 32, Aff2 to Aff0 in bits 23 to 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Mpidr(u64);

impl Mpidr {
    /// Bits that hold affinity fields.
    pub const MASK: u64 = 0xff_00ff_ffff;

    /// Returns the affinity of an MPIDR_EL1 value; other bits (U, MT, RES1) are dropped.
    pub const fn from_register(value: u64) -> Self {
        Self(value & Self::MASK)
    }

    /// Returns the affinity passed as an argument, or `None` if any other bit is set (section 5.1.4).
    pub const fn from_argument(value: u64) -> Option<Self> {
        if value & !Self::MASK == 0 {
            Some(Self(value))
        } else {
            None
        }
    }

    /// Returns the affinity of a guest's vCPU, numbered as in QEMU's `virt`.
    pub const fn of_vcpu(vcpu: usize) -> Self {
        Self::from_register(crate::abi::machine::vcpu_mpidr(vcpu))
    }

    /// Returns the affinity fields.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Returns the value for VMPIDR_EL2: RES1 set, not a uniprocessor, not multithreaded.
    pub const fn register(self) -> u64 {
        self.0 | 1 << 31
    }

    /// Returns whether both have the same affinity fields from `level` upward.
    pub const fn same_from(self, other: Self, level: u32) -> bool {
        let mask = match level {
            0 => Self::MASK,
            1 => Self::MASK & !0xff,
            2 => Self::MASK & !0xffff,
            _ => Self::MASK & !0xff_ffff,
        };
        self.0 & mask == other.0 & mask
    }
}

/// A call with its arguments. Arguments of the 32-bit form are truncated to 32 bits, as SMCCC requires.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// PSCI_VERSION.
    Version,
    /// CPU_SUSPEND.
    CpuSuspend {
        /// power_state; bit 16 requests power-down.
        power_state: u32,
        /// Entry point after power-down.
        entry: Ipa,
        /// x0 there.
        context: u64,
    },
    /// CPU_OFF.
    CpuOff,
    /// CPU_ON.
    CpuOn {
        /// target_cpu, unchecked.
        target: u64,
        /// Entry point.
        entry: Ipa,
        /// x0 there.
        context: u64,
    },
    /// AFFINITY_INFO.
    AffinityInfo {
        /// target_affinity, unchecked.
        target: u64,
        /// Affinity fields below this level are ignored.
        lowest_level: u32,
    },
    /// MIGRATE_INFO_TYPE.
    MigrateInfoType,
    /// SYSTEM_OFF.
    SystemOff,
    /// SYSTEM_RESET.
    SystemReset,
    /// SYSTEM_RESET2.
    SystemReset2 {
        /// 0 is SYSTEM_WARM_RESET; bit 31 marks vendor-specific types.
        reset_type: u32,
        /// Vendor-specific.
        cookie: u64,
    },
    /// PSCI_FEATURES of a function.
    Features(u32),
    /// SMCCC_VERSION.
    SmcccVersion,
    /// SMCCC_ARCH_FEATURES of a function.
    SmcccArchFeatures(u32),
}

impl Call {
    /// Decodes x0 to x3 of an HVC or SMC with immediate 0; `None` for an unknown function: the result is
    /// [`Error::NotSupported`].
    pub const fn decode(x: [u64; 4]) -> Option<Self> {
        let id = x[0] as u32;
        let wide = id & 1 << 30 != 0;
        let mask = if wide { u64::MAX } else { 0xffff_ffff };
        let (a, b, c) = (x[1] & mask, x[2] & mask, x[3] & mask);
        Some(match id {
            function::VERSION => Self::Version,
            function::CPU_SUSPEND_32 | function::CPU_SUSPEND_64 => Self::CpuSuspend {
                power_state: a as u32,
                entry: Ipa(b),
                context: c,
            },
            function::CPU_OFF => Self::CpuOff,
            function::CPU_ON_32 | function::CPU_ON_64 => Self::CpuOn {
                target: a,
                entry: Ipa(b),
                context: c,
            },
            function::AFFINITY_INFO_32 | function::AFFINITY_INFO_64 => Self::AffinityInfo {
                target: a,
                lowest_level: b as u32,
            },
            function::MIGRATE_INFO_TYPE => Self::MigrateInfoType,
            function::SYSTEM_OFF => Self::SystemOff,
            function::SYSTEM_RESET => Self::SystemReset,
            function::SYSTEM_RESET2_32 | function::SYSTEM_RESET2_64 => Self::SystemReset2 {
                reset_type: a as u32,
                cookie: b,
            },
            function::FEATURES => Self::Features(a as u32),
            function::SMCCC_VERSION => Self::SmcccVersion,
            function::SMCCC_ARCH_FEATURES => Self::SmcccArchFeatures(a as u32),
            _ => return None,
        })
    }
}

/// Returns the result of PSCI_FEATURES: 0 for each implemented function (CPU_SUSPEND: original power_state
/// format, no OS-initiated mode).
///
/// # Errors
/// [`Error::NotSupported`] for any other function.
pub const fn features(id: u32) -> Result<u64, Error> {
    match id {
        function::SMCCC_VERSION => Ok(0),
        // SMCCC_ARCH_FEATURES is queried through itself; PSCI_FEATURES covers PSCI functions and
        // SMCCC_VERSION only.
        function::SMCCC_ARCH_FEATURES => Err(Error::NotSupported),
        _ => match Call::decode([id as u64, 0, 0, 0]) {
            Some(_) => Ok(0),
            None => Err(Error::NotSupported),
        },
    }
}

/// Returns the result of a guest's SMCCC_ARCH_FEATURES: the two discovery calls are implemented, no
/// workaround is.
///
/// # Errors
/// [`Error::NotSupported`] for any other function.
pub const fn arch_features(id: u32) -> Result<u64, Error> {
    match id {
        function::SMCCC_VERSION | function::SMCCC_ARCH_FEATURES => Ok(0),
        _ => Err(Error::NotSupported),
    }
}

/// Checks the reset type of SYSTEM_RESET2 (section 5.1.12): only SYSTEM_WARM_RESET is implemented, as
/// SYSTEM_RESET.
///
/// # Errors
/// [`Error::NotSupported`] for a vendor-specific type, [`Error::InvalidParameters`] for an unknown one.
pub const fn check_reset2(reset_type: u32) -> Result<(), Error> {
    match reset_type {
        0 => Ok(()),
        vendor if vendor & 1 << 31 != 0 => Err(Error::NotSupported),
        _ => Err(Error::InvalidParameters),
    }
}

#[cfg(test)]
mod tests {
    use super::{Call, Error, Mpidr, arch_features, check_reset2, features, function};
    use crate::addr::Ipa;

    // torture d5
    #[test]
    fn the_32_bit_form_truncates_its_arguments() {
        let wild = [
            u64::from(function::CPU_ON_32) | 0xdead << 32,
            0xf_0000_0001,
            0xf_4000_0000,
            0xf_0000_0007,
        ];
        assert_eq!(
            Call::decode(wild),
            Some(Call::CpuOn {
                target: 1,
                entry: Ipa(0x4000_0000),
                context: 7
            })
        );
        let wide = [
            u64::from(function::CPU_ON_64),
            0xf_0000_0001,
            0xf_4000_0000,
            u64::MAX,
        ];
        assert_eq!(
            Call::decode(wide),
            Some(Call::CpuOn {
                target: 0xf_0000_0001,
                entry: Ipa(0xf_4000_0000),
                context: u64::MAX
            })
        );
    }

    // torture d5, g3
    #[test]
    fn unknown_ids_are_not_supported() {
        for id in [
            0u64,
            0x8400_0005,
            0x8400_0007,
            0x8400_000b,
            0xc400_0000,
            0xc400_0002,
            0xc400_0008,
            0xffff_ffff,
        ] {
            assert_eq!(Call::decode([id, 1, 2, 3]), None, "{id:#x}");
            assert_eq!(features(id as u32), Err(Error::NotSupported));
        }
        assert_eq!(Error::NotSupported.to_register(), u64::MAX);
        assert_eq!(Error::InvalidAddress.to_register() as i64, -9);
    }

    #[test]
    fn features_names_exactly_what_is_decoded() {
        for id in (0x8400_0000u32..0x8400_0020).chain(0xc400_0000..0xc400_0020) {
            assert_eq!(features(id).is_ok(), Call::decode([id.into(), 0, 0, 0]).is_some());
        }
        assert_eq!(features(function::SMCCC_VERSION), Ok(0));
        assert_eq!(features(function::SMCCC_ARCH_FEATURES), Err(Error::NotSupported));
        assert_eq!(arch_features(0x8000_8000), Err(Error::NotSupported));
        assert_eq!(arch_features(function::SMCCC_VERSION), Ok(0));
    }

    #[test]
    fn affinities() {
        assert_eq!(Mpidr::of_vcpu(0).bits(), 0);
        assert_eq!(Mpidr::of_vcpu(15).bits(), 0xf);
        assert_eq!(Mpidr::of_vcpu(16).bits(), 0x100);
        assert_eq!(Mpidr::of_vcpu(16).register(), 0x8000_0100);
        assert_eq!(Mpidr::from_argument(0x8000_0000), None);
        assert_eq!(Mpidr::from_argument(1 << 40), None);
        assert_eq!(
            Mpidr::from_register(0x8000_0001),
            Mpidr::from_argument(1).unwrap()
        );
    }

    #[test]
    fn reset2_types() {
        assert_eq!(check_reset2(0), Ok(()));
        assert_eq!(check_reset2(1), Err(Error::InvalidParameters));
        assert_eq!(check_reset2(0x8000_0000), Err(Error::NotSupported));
    }
}
