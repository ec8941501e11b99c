//! Tests of the virtual GIC as a whole: the tests play the guest on the fake virtual CPU interface.

mod delivery;
mod machine;
mod property;
mod races;
mod reference;
mod registers;
mod root;
mod root_property;

use super::fake::FakeCpu;
use super::{Kicks, SgiRegister, SgiRequest, Vgic};

/// Returns a zone with `vcpus` vCPUs, 96 SPIs, groups enabled, all interrupts enabled at priority 0xa0, and
/// its CPUs.
fn zone(vcpus: usize, lrs: usize) -> (Vgic, std::vec::Vec<FakeCpu>) {
    let affinities: std::vec::Vec<u32> = (0..vcpus as u32).collect();
    let mut gic = Vgic::new(&affinities, 96).unwrap();
    let mut cpus: std::vec::Vec<FakeCpu> = (0..vcpus).map(|_| FakeCpu::new(lrs)).collect();
    for (vcpu, cpu) in cpus.iter_mut().enumerate() {
        let _ = gic.unpark(vcpu, cpu);
        for offset in (0..32).step_by(4) {
            let _ = gic.redist_write(vcpu, 0x1_0400 + offset, 4, 0xa0a0_a0a0);
        }
        let _ = gic.redist_write(vcpu, 0x1_0100, 4, 0xffff_ffff);
    }
    for offset in (32..128).step_by(4) {
        let _ = gic.dist_write(0x400 + offset, 4, 0xa0a0_a0a0);
    }
    for word in 1..4 {
        let _ = gic.dist_write(0x100 + 4 * word, 4, 0xffff_ffff);
    }
    let _ = gic.dist_write(0, 4, 3);
    for (vcpu, cpu) in cpus.iter_mut().enumerate() {
        let _ = gic.sync(vcpu, cpu);
    }
    (gic, cpus)
}

/// Flushes the CPUs in `kicks`, and those that this kicks.
fn settle(gic: &mut Vgic, cpus: &mut [FakeCpu], mut kicks: Kicks) {
    while let Some(vcpu) = kicks.iter().next() {
        kicks = kicks.without(vcpu) | gic.flush(vcpu, &mut cpus[vcpu]);
    }
}

fn sgi_to(intid: u32, target: u32) -> SgiRequest {
    SgiRequest::decode(SgiRegister::Sgi1r, u64::from(intid) << 24 | 1 << target)
}

extern crate std;
