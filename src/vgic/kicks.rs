//! [`Kicks`], the vCPUs that a change of a virtual GIC affects, and [`FlushRequests`], the flags that EL2
//! checks before it enters a guest without taking the GIC's lock.

use core::ops::{BitOr, BitOrAssign};
use core::sync::atomic::{AtomicU64, Ordering};

/// Most vCPUs one GIC can have: the width of [`Kicks`].
pub const MAX_VCPUS: usize = 64;

/// A set of vCPUs whose list registers must be flushed.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[must_use = "a vCPU that is not kicked does not get its interrupt"]
pub struct Kicks(u64);

impl Kicks {
    /// The empty set.
    pub const NONE: Self = Self(0);

    /// Returns the set of the vCPU `vcpu`, or the empty set if there can be no such CPU.
    pub const fn of(vcpu: usize) -> Self {
        Self(if vcpu < MAX_VCPUS { 1 << vcpu } else { 0 })
    }

    /// Returns the set of the first `count` vCPUs.
    pub const fn first(count: usize) -> Self {
        Self(if count >= MAX_VCPUS {
            u64::MAX
        } else {
            (1 << count) - 1
        })
    }

    /// Returns whether `vcpu` is in the set.
    pub const fn contains(self, vcpu: usize) -> bool {
        self.0 & Self::of(vcpu).0 != 0
    }

    /// Returns the set without `vcpu`.
    pub const fn without(self, vcpu: usize) -> Self {
        Self(self.0 & !Self::of(vcpu).0)
    }

    /// Returns the intersection with `other`.
    pub const fn within(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Returns whether the set is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns the vCPUs, in ascending order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        let mut left = self.0;
        core::iter::from_fn(move || {
            let vcpu = left.trailing_zeros() as usize;
            left &= !Self::of(vcpu).0;
            (vcpu < MAX_VCPUS).then_some(vcpu)
        })
    }
}

impl BitOr for Kicks {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Kicks {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// One flag per vCPU, outside the lock of the GIC: its list registers must be flushed.
///
/// The CPU that changed the GIC calls [`FlushRequests::raise`] after it has released the lock and interrupts
/// the CPUs that `raise` returns. The target calls [`FlushRequests::take`] before it enters the guest and, if
/// that returns true, takes the lock and flushes.
#[derive(Default, Debug)]
pub struct FlushRequests(AtomicU64);

impl FlushRequests {
    /// Returns an empty set of requests.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Raises requests for `kicks`. Returns those that were not raised before: their CPUs must be
    /// interrupted.
    pub fn raise(&self, kicks: Kicks) -> Kicks {
        if kicks.is_empty() {
            return kicks;
        }
        // AcqRel: the change made under the lock is visible to the CPU that takes the flag.
        Kicks(kicks.0 & !self.0.fetch_or(kicks.0, Ordering::AcqRel))
    }

    /// Clears the request of `vcpu`. Returns whether it was raised.
    pub fn take(&self, vcpu: usize) -> bool {
        let mine = Kicks::of(vcpu).0;
        // The plain load keeps the common case, no request, free of a write to a shared cache line.
        self.0.load(Ordering::Acquire) & mine != 0 && self.0.fetch_and(!mine, Ordering::AcqRel) & mine != 0
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{FlushRequests, Kicks};
    use std::vec::Vec;

    #[test]
    fn a_set_of_cpus() {
        let kicks = Kicks::of(0) | Kicks::of(5) | Kicks::of(63) | Kicks::of(64);
        assert_eq!(kicks.iter().collect::<Vec<_>>(), [0, 5, 63]);
        assert!(!kicks.without(5).contains(5));
        assert_eq!(Kicks::first(3).iter().count(), 3);
        assert_eq!(Kicks::first(64).iter().count(), 64);
        assert_eq!(kicks.within(Kicks::first(6)), Kicks::of(0) | Kicks::of(5));
    }

    #[test]
    fn a_flush_request_interrupts_once_until_taken() {
        let requests = FlushRequests::new();
        assert_eq!(requests.raise(Kicks::of(1)), Kicks::of(1));
        assert_eq!(requests.raise(Kicks::of(1) | Kicks::of(2)), Kicks::of(2));
        assert!(requests.take(1));
        assert!(!requests.take(1));
        assert_eq!(requests.raise(Kicks::of(1)), Kicks::of(1));
        assert!(requests.take(2) && !requests.take(3));
    }
}
