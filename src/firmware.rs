//! Calls of root and guests that EL2 passes on to the firmware ([`Firmware`]): an allow-list, for firmware
//! may write memory on the caller's behalf.
//!
//! - SMCCC_ARCH_WORKAROUND_1 to 3 (Arm DEN 0028, 7.5 to 7.8), for CPUs whose firmware has them;
//! - the TRNG (DEN 0098), which passes its numbers in registers;
//! - for root, SCMI (DEN 0056): only the function that the device tree names. It takes no argument, and
//!   firmware accesses the shared memory that the tree names.
//!
//! All else is NOT_SUPPORTED. The calls of PSCI are emulated ([`crate::psci`]).

use crate::psci::{self, function};

/// Function identifiers.
pub mod id {
    /// SMCCC_ARCH_WORKAROUND_1: CVE-2017-5715 (Spectre v2).
    pub const ARCH_WORKAROUND_1: u32 = 0x8000_8000;
    /// SMCCC_ARCH_WORKAROUND_2: CVE-2018-3639 (Spectre v4).
    pub const ARCH_WORKAROUND_2: u32 = 0x8000_7fff;
    /// SMCCC_ARCH_WORKAROUND_3: CVE-2022-23960 (Spectre-BHB).
    pub const ARCH_WORKAROUND_3: u32 = 0x8000_3fff;
    /// TRNG_VERSION; TRNG_FEATURES, TRNG_GET_UUID and TRNG_RND, SMC32, follow.
    pub const TRNG_VERSION: u32 = 0x8400_0050;
    /// TRNG_RND, SMC32.
    pub const TRNG_RND_32: u32 = 0x8400_0053;
    /// TRNG_RND, SMC64.
    pub const TRNG_RND_64: u32 = 0xc400_0053;
}

/// Makes calls to the firmware.
pub trait Firmware {
    /// Calls with x0 to x3, of which the function identifier is w0; returns x0 to x3.
    fn call(&self, x: [u64; 4]) -> [u64; 4];
}

/// Who calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Caller {
    /// Root.
    Root,
    /// A guest.
    Guest,
}

/// What is passed on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Calls {
    /// The firmware has SMCCC 1.1, so a function that it does not have is answered with NOT_SUPPORTED, and
    /// all registers but x0 to x3 are kept.
    smccc: bool,
    /// It wants to be told whether a vCPU needs the mitigation of [`id::ARCH_WORKAROUND_2`].
    ssbd: bool,
    scmi: Option<u32>,
}

const NOT_SUPPORTED: u64 = psci::Error::NotSupported.to_register();

/// Returns whether x0 is an error code, of which only the low half is defined.
const fn is_error(x0: u64) -> bool {
    (x0 as u32 as i32) < 0
}

const fn is_workaround(function: u32) -> bool {
    matches!(
        function,
        id::ARCH_WORKAROUND_1 | id::ARCH_WORKAROUND_2 | id::ARCH_WORKAROUND_3
    )
}

impl Calls {
    /// Nothing is passed on.
    pub const NONE: Self = Self {
        smccc: false,
        ssbd: false,
        scmi: None,
    };

    /// Asks the firmware what it has; `scmi` is the device tree's SCMI function.
    pub fn probe(firmware: &impl Firmware, scmi: Option<u32>) -> Self {
        let ask = |function: u32, argument: u32| {
            let [x0, ..] = firmware.call([function.into(), argument.into(), 0, 0]);
            x0
        };
        let smccc = !is_error(ask(function::FEATURES, function::SMCCC_VERSION))
            && ask(function::SMCCC_VERSION, 0) as u32 >= psci::SMCCC_VERSION as u32;
        Self {
            smccc,
            ssbd: smccc && ask(function::SMCCC_ARCH_FEATURES, id::ARCH_WORKAROUND_2) as u32 == 0,
            scmi: scmi.filter(|_| smccc),
        }
    }

    /// Returns the arguments with which the call in `x` is passed on; `None` if it is not.
    fn allowed(&self, caller: Caller, x: [u64; 4]) -> Option<[u64; 4]> {
        let [x0, x1, x2, x3] = x;
        let function = x0 as u32;
        if self.scmi == Some(function) && caller == Caller::Root {
            return Some([function.into(), 0, 0, 0]);
        }
        match function {
            id::TRNG_RND_64 => Some([function.into(), x1, x2, x3]),
            id::TRNG_VERSION..=id::TRNG_RND_32 => {
                let [x1, x2, x3] = [x1, x2, x3].map(|x| u64::from(x as u32));
                Some([function.into(), x1, x2, x3])
            }
            // The mitigation is off if x1 is 0.
            _ if is_workaround(function) => Some([function.into(), u64::from(x1 as u32), 0, 0]),
            _ => None,
        }
        .filter(|_| self.smccc)
    }

    /// Executes a call that is not emulated, with x0 to x3 in `x`; returns them as the caller gets them.
    pub fn call(&self, firmware: &impl Firmware, caller: Caller, x: [u64; 4]) -> Option<[u64; 4]> {
        self.allowed(caller, x).map(|x| firmware.call(x))
    }

    /// Returns the result of SMCCC_ARCH_FEATURES of `function`, which may differ between CPUs.
    pub fn arch_features(&self, firmware: &impl Firmware, function: u32) -> u64 {
        if !is_workaround(function) {
            return psci::arch_features(function).unwrap_or(NOT_SUPPORTED);
        }
        if !self.smccc {
            return NOT_SUPPORTED;
        }
        let [x0, ..] = firmware.call([function::SMCCC_ARCH_FEATURES.into(), function.into(), 0, 0]);
        x0
    }

    /// Turns on, on this CPU, what the last owner may have turned off.
    pub fn reset_cpu(&self, firmware: &impl Firmware) {
        if self.ssbd {
            firmware.call([id::ARCH_WORKAROUND_2.into(), 1, 0, 0]);
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;
    use core::cell::RefCell;

    use super::{Caller, Calls, Firmware, NOT_SUPPORTED, id};
    use crate::psci::function;

    const SCMI: u32 = 0x8200_0010;

    /// Firmware with these functions, and a record of its calls.
    struct Fake {
        version: u64,
        has: &'static [u32],
        calls: RefCell<Vec<[u64; 4]>>,
    }

    impl Fake {
        fn new(version: u64, has: &'static [u32]) -> Self {
            let calls = RefCell::new(Vec::new());
            Self { version, has, calls }
        }

        fn made(&self) -> Vec<[u64; 4]> {
            self.calls.take()
        }
    }

    impl Firmware for Fake {
        fn call(&self, x: [u64; 4]) -> [u64; 4] {
            self.calls.borrow_mut().push(x);
            let has = |id: u64| {
                let known = self.has.contains(&(id as u32));
                if known { 0 } else { NOT_SUPPORTED }
            };
            match x[0] as u32 {
                function::FEATURES | function::SMCCC_ARCH_FEATURES => [has(x[1]), 0, 0, 0],
                function::SMCCC_VERSION => [self.version, 0, 0, 0],
                _ => [has(x[0]), 0x11, 0x22, 0x33],
            }
        }
    }

    const ALL: &[u32] = &[
        function::SMCCC_VERSION,
        id::ARCH_WORKAROUND_1,
        id::ARCH_WORKAROUND_2,
        id::ARCH_WORKAROUND_3,
        id::TRNG_VERSION,
        id::TRNG_RND_64,
        SCMI,
    ];

    fn modern() -> (Fake, Calls) {
        let firmware = Fake::new(0x1_0002, ALL);
        let calls = Calls::probe(&firmware, Some(SCMI));
        firmware.made();
        (firmware, calls)
    }

    #[test]
    fn listed_calls_pass_with_their_arguments_and_results() {
        let (firmware, calls) = modern();
        let wild = u64::MAX - 0xff;
        for caller in [Caller::Root, Caller::Guest] {
            for (function, passed) in [
                (id::ARCH_WORKAROUND_1, [0xffff_ff00, 0, 0]),
                (id::ARCH_WORKAROUND_2, [0xffff_ff00, 0, 0]),
                (id::ARCH_WORKAROUND_3, [0xffff_ff00, 0, 0]),
                (id::TRNG_VERSION, [0xffff_ff00; 3]),
                (id::TRNG_VERSION + 1, [0xffff_ff00; 3]),
                (id::TRNG_RND_32, [0xffff_ff00; 3]),
                (id::TRNG_RND_64, [wild; 3]),
            ] {
                let x0 = u64::from(function) | 0xdead << 32;
                let result = calls.call(&firmware, caller, [x0, wild, wild, wild]).unwrap();
                assert_eq!(result[1..], [0x11, 0x22, 0x33]);
                let [a, b, c] = passed;
                assert_eq!(firmware.made(), [[function.into(), a, b, c]], "{function:#x}");
            }
        }
    }

    #[test]
    fn all_else_stays_here() {
        let (firmware, calls) = modern();
        // Of each owner of SMCCC, and the neighbours of what is listed.
        let owners =
            (0..64u32).flat_map(|owner| [0x8000_0000, 0xc000_0000, 0].map(|kind| kind | owner << 24));
        let neighbours = ALL
            .iter()
            .flat_map(|id| [id - 1, id + 1, id ^ 1 << 30, id & !(1 << 31)]);
        let listed = |id| matches!(id, 0x8400_0050..=0x8400_0053 | 0xc400_0053) || ALL[1..].contains(&id);
        for function in owners.chain(neighbours).filter(|id| !listed(*id)) {
            for caller in [Caller::Root, Caller::Guest] {
                assert_eq!(
                    calls.call(&firmware, caller, [function.into(), 1, 2, 3]),
                    None,
                    "{function:#x}"
                );
            }
        }
        assert!(firmware.made().is_empty());
    }

    #[test]
    fn scmi_is_roots_and_takes_no_argument() {
        let (firmware, calls) = modern();
        let call = [u64::from(SCMI), 0x4020_0000, 0x1000, 7];
        assert!(calls.call(&firmware, Caller::Root, call).is_some());
        assert_eq!(firmware.made(), [[u64::from(SCMI), 0, 0, 0]]);
        assert_eq!(calls.call(&firmware, Caller::Guest, call), None);
        let without = Calls::probe(&firmware, None);
        firmware.made();
        assert_eq!(without.call(&firmware, Caller::Root, call), None);
        assert!(firmware.made().is_empty());
    }

    #[test]
    fn old_firmware_gets_no_call() {
        for firmware in [Fake::new(0x1_0002, &[]), Fake::new(0x1_0000, ALL)] {
            let calls = Calls::probe(&firmware, Some(SCMI));
            firmware.made();
            for &function in &ALL[1..] {
                assert_eq!(
                    calls.call(&firmware, Caller::Root, [function.into(), 0, 0, 0]),
                    None
                );
                assert_eq!(calls.arch_features(&firmware, function), NOT_SUPPORTED);
            }
            calls.reset_cpu(&firmware);
            assert!(firmware.made().is_empty());
        }
    }

    #[test]
    fn features_are_those_of_the_firmware() {
        let firmware = Fake::new(0x1_0001, &[function::SMCCC_VERSION, id::ARCH_WORKAROUND_1]);
        let calls = Calls::probe(&firmware, None);
        assert_eq!(calls.arch_features(&firmware, id::ARCH_WORKAROUND_1), 0);
        assert_eq!(
            calls.arch_features(&firmware, id::ARCH_WORKAROUND_3),
            NOT_SUPPORTED
        );
        // EL2's own answers, without the firmware.
        firmware.made();
        assert_eq!(calls.arch_features(&firmware, function::SMCCC_VERSION), 0);
        assert_eq!(calls.arch_features(&firmware, 0x8000_0002), NOT_SUPPORTED);
        calls.reset_cpu(&firmware);
        assert!(firmware.made().is_empty());
    }

    #[test]
    fn a_new_owner_of_a_cpu_has_the_mitigation_on() {
        let (firmware, calls) = modern();
        calls.reset_cpu(&firmware);
        assert_eq!(firmware.made(), [[id::ARCH_WORKAROUND_2.into(), 1, 0, 0]]);
    }
}
