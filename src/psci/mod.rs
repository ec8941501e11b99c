//! PSCI 1.1 (Arm DEN 0022) and the discovery calls of SMCCC 1.1 (DEN 0028): calls decoded from registers, error
//! codes, and the rules of turning CPUs on and off.
//!
//! [`Call::decode`] is used for root's calls and for guests'. [`cpus::CpuTable`] holds each CPU's state; EL2
//! keeps one table per zone behind its lock and does what the table allows.

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

/// What PSCI_VERSION answers: 1.1.
pub const PSCI_VERSION: u64 = 0x1_0001;
/// What SMCCC_VERSION answers: 1.1.
pub const SMCCC_VERSION: u64 = 0x1_0001;
/// What MIGRATE_INFO_TYPE answers: no trusted OS that would have to be migrated.
pub const NO_TRUSTED_OS: u64 = 2;

/// Error codes (section 5.2.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[repr(i32)]
pub enum Error {
    /// The function is not there.
    #[error("not supported")]
    NotSupported = -1,
    /// An argument does not name anything, a CPU of another zone included.
    #[error("invalid parameters")]
    InvalidParameters = -2,
    /// It is not allowed.
    #[error("denied")]
    Denied = -3,
    /// The CPU is on.
    #[error("already on")]
    AlreadyOn = -4,
    /// The CPU is being turned on.
    #[error("on pending")]
    OnPending = -5,
    /// Something failed that should not.
    #[error("internal failure")]
    InternalFailure = -6,
    /// The entry point cannot be executed.
    #[error("invalid address")]
    InvalidAddress = -9,
}

impl Error {
    /// As it is returned in x0. A caller of the 32-bit form looks at w0 only, so one encoding serves both.
    #[must_use]
    pub const fn to_register(self) -> u64 {
        self as i32 as i64 as u64
    }
}

/// The affinity fields of an MPIDR: Aff3 in bits [39:32], Aff2 to Aff0 in bits [23:0].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Mpidr(u64);

impl Mpidr {
    /// Bits that hold affinity fields.
    pub const MASK: u64 = 0xff_00ff_ffff;

    /// The affinity of an MPIDR_EL1 value; other bits (U, MT, RES1) are dropped.
    #[must_use]
    pub const fn from_register(value: u64) -> Self {
        Self(value & Self::MASK)
    }

    /// The affinity given as an argument, where all other bits must be zero (section 5.1.4).
    #[must_use]
    pub const fn from_argument(value: u64) -> Option<Self> {
        if value & !Self::MASK == 0 {
            Some(Self(value))
        } else {
            None
        }
    }

    /// The affinity of a guest's vCPU, as QEMU's `virt` numbers them.
    #[must_use]
    pub const fn of_vcpu(vcpu: usize) -> Self {
        Self::from_register(crate::abi::machine::vcpu_mpidr(vcpu))
    }

    /// Its bits.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// What VMPIDR_EL2 holds for it: RES1 set, not a uniprocessor, not multithreaded.
    #[must_use]
    pub const fn register(self) -> u64 {
        self.0 | 1 << 31
    }

    /// Whether both agree in the affinity fields from `level` upward.
    #[must_use]
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

/// A call with its arguments. Arguments of the 32-bit form are cut to 32 bits, as SMCCC says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// PSCI_VERSION.
    Version,
    /// CPU_SUSPEND.
    CpuSuspend {
        /// power_state; bit 16 asks for power-down.
        power_state: u32,
        /// Where to go on after power-down.
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
        /// Where it starts.
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
        /// 0 is SYSTEM_WARM_RESET; bit 31 marks vendors' own.
        reset_type: u32,
        /// Vendors' own.
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
    /// Decodes x0 to x3 of an HVC or SMC with immediate 0; `None`: answer [`Error::NotSupported`].
    #[must_use]
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

/// What PSCI_FEATURES answers: 0 for each function that is there (CPU_SUSPEND: original power_state format, no
/// OS-initiated mode), otherwise an error.
pub const fn features(id: u32) -> Result<u64, Error> {
    match id {
        function::SMCCC_VERSION => Ok(0),
        // SMCCC_ARCH_FEATURES asks about itself; PSCI_FEATURES knows PSCI functions and SMCCC_VERSION only.
        function::SMCCC_ARCH_FEATURES => Err(Error::NotSupported),
        _ => match Call::decode([id as u64, 0, 0, 0]) {
            Some(_) => Ok(0),
            None => Err(Error::NotSupported),
        },
    }
}

/// What SMCCC_ARCH_FEATURES answers to a guest: the two discovery calls are there, no workaround is.
pub const fn arch_features(id: u32) -> Result<u64, Error> {
    match id {
        function::SMCCC_VERSION | function::SMCCC_ARCH_FEATURES => Ok(0),
        _ => Err(Error::NotSupported),
    }
}

/// Checks the reset type of SYSTEM_RESET2 (section 5.1.12): only SYSTEM_WARM_RESET is there, done as SYSTEM_RESET.
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
    fn the_32_bit_form_cuts_its_arguments() {
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
