//! Address types: [`Ipa`] (intermediate physical, which a zone calls physical), [`Pa`] (physical) and [`Va`]
//! (virtual). They print in hexadecimal and cannot be mixed by accident.

use core::fmt;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// Returns the address `offset` bytes further, or `None` past 2^64.
            #[must_use]
            pub const fn checked_add(self, offset: u64) -> Option<Self> {
                match self.0.checked_add(offset) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }

            /// Returns whether the address is a multiple of `alignment`, a power of two.
            pub const fn is_aligned(self, alignment: u64) -> bool {
                self.0 & alignment.wrapping_sub(1) == 0
            }

            /// Returns the next lower multiple of `alignment`, a power of two.
            pub const fn align_down(self, alignment: u64) -> Self {
                Self(self.0 & !alignment.wrapping_sub(1))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

address! {
    /// An intermediate physical address: the output of a zone's stage 1, the input of its stage 2.
    Ipa
}
address! {
    /// A physical address of the machine.
    Pa
}
address! {
    /// A virtual address, of EL2 or of a zone, depending on the context.
    Va
}

/// Bytes of a page, the stage-2 granule.
pub const PAGE_SIZE: u64 = 4096;
/// Bytes of a level-2 block, the unit in which guest memory is donated.
pub const BLOCK_SIZE: u64 = 2 << 20;
