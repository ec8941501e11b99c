//! The root zone's GIC on a physical GIC made of memory.

extern crate std;
use super::super::physical::fake::FakeGic;
use crate::vgic::Kicks;
use crate::vgic::fake::{FakeCpu, SPURIOUS};
use crate::vgic::{PhysicalGic, RootConfig, RootGic};
use std::vec::Vec;

const SGI: u32 = 0x1_0000;
const RESERVED: [u32; 4] = [25, 26, 28, 40];
const SOFT: u32 = 100;

fn root(count: usize) -> (RootGic, FakeGic, Vec<FakeCpu>) {
    let mut phys = FakeGic::default();
    phys.dist.insert(4, 8 | 1 << 17 | 1 << 10 | 15 << 19 | 1 << 16);
    for cpu in 0..count {
        phys.redist.insert(
            (cpu, 8),
            (cpu as u32) << 8 | 0b10_1001 | u32::from(cpu + 1 == count) << 4,
        );
        phys.redist.insert((cpu, 12), cpu as u32);
    }
    let affinities: Vec<u32> = (0..count as u32).collect();
    let config = RootConfig {
        affinities: &affinities,
        reserved: &RESERVED,
        soft: &[SOFT],
    };
    let mut root = RootGic::new(&config, &mut phys).unwrap();
    let mut cpus: Vec<FakeCpu> = (0..count).map(|_| FakeCpu::new(4)).collect();
    for (cpu, lrs) in cpus.iter_mut().enumerate() {
        let _ = root.unpark(cpu, lrs, &mut phys);
        let _ = root.redist_write(cpu, SGI + 0x100, 4, 0xffff_ffff, &mut phys);
    }
    let _ = root.dist_write(0, 4, 2, &mut phys);
    for (cpu, lrs) in cpus.iter_mut().enumerate() {
        let _ = root.sync(cpu, lrs);
    }
    (root, phys, cpus)
}

fn settle_root(root: &mut RootGic, cpus: &mut [FakeCpu], mut kicks: Kicks) {
    while let Some(cpu) = kicks.iter().next() {
        kicks = kicks.without(cpu) | root.flush(cpu, &mut cpus[cpu]);
    }
}

#[test]
fn enables_pass_through_except_reserved_interrupts() {
    let (mut root, mut phys, _) = root(2);
    let _ = root.dist_write(0x104, 4, 0xffff_ffff, &mut phys);
    assert_eq!(phys.dist_read32(0x104), !(1 << 8), "SPI 40 is EL2's");
    assert_eq!(root.dist_read(0x104, 4, &mut phys), u64::from(!(1u32 << 8)));
    let _ = root.dist_write(0x184, 4, 1, &mut phys);
    assert_eq!(phys.dist_read32(0x104), !(1 << 8 | 1));
    let _ = root.dist_write(0x10c, 4, 1 << 4, &mut phys);
    assert_eq!(phys.dist_read32(0x10c), 0, "SPI 100 is EL2's invention");
    assert_eq!(root.dist_read(0x10c, 4, &mut phys), 1 << 4);
    // Redistributor: no SGIs, no PPIs of EL2.
    assert_eq!(
        phys.redist_read32(1, SGI + 0x100),
        0xffff_0000 & !(1 << 25 | 1 << 26 | 1 << 28)
    );
    assert_eq!(
        root.redist_read(1, SGI + 0x100, 4, &mut phys),
        u64::from(!(1u32 << 25 | 1 << 26 | 1 << 28))
    );
}

#[test]
fn a_physical_spi_goes_through() {
    let (mut root, mut phys, mut cpus) = root(2);
    let _ = root.dist_write(0x104, 4, 1 << 5, &mut phys);
    let _ = root.dist_write(0x425, 1, 0x50, &mut phys);
    assert_eq!(phys.dist_read32(0x424), 0x5000);
    let _ = root.dist_write(0x6000 + 8 * 37, 8, 1, &mut phys);
    assert_eq!(phys.routes.last(), Some(&(0x6000 + 8 * 37, 1)));
    for _ in 0..5 {
        let (kicks, ours) = root.inject_physical(1, 37);
        assert!(ours);
        assert_eq!(kicks, Kicks::of(1));
        settle_root(&mut root, &mut cpus, kicks);
        let lr = cpus[1].find(37).unwrap();
        assert_eq!((lr.pintid(), lr.priority(), lr.group1()), (Some(37), 0x50, true));
        assert_eq!(cpus[1].ack(), 37);
        cpus[1].eoi(37);
        assert_eq!(core::mem::take(&mut cpus[1].deactivated), [37]);
    }
    // After a change of route it may be signalled elsewhere before CPU 1 has synced.
    let _ = root.dist_write(0x6000 + 8 * 37, 8, 0, &mut phys);
    let (kicks, _) = root.inject_physical(0, 37);
    settle_root(&mut root, &mut cpus, kicks);
    assert_eq!(cpus[0].ack(), 37);
    assert_eq!(cpus[1].ack(), SPURIOUS);
}

#[test]
fn reserved_interrupts_are_not_injected() {
    let (mut root, _, _) = root(1);
    for intid in [0, 15, 25, 40, SOFT, 288, 1023, 8192] {
        assert_eq!(root.inject_physical(0, intid), (Kicks::NONE, false), "{intid}");
    }
}

#[test]
fn not_delivered_while_the_group_is_disabled() {
    let (mut root, mut phys, mut cpus) = root(1);
    let _ = root.dist_write(0x104, 4, 1 << 5, &mut phys);
    assert!(root.is_on());
    let kicks = root.dist_write(0, 4, 0, &mut phys);
    assert!(!root.is_on());
    settle_root(&mut root, &mut cpus, kicks);
    assert_eq!(phys.dist.get(&0), None, "the physical GICD_CTLR is EL2's");
    let (kicks, _) = root.inject_physical(0, 37);
    settle_root(&mut root, &mut cpus, kicks);
    assert_eq!(cpus[0].ack(), SPURIOUS);
    phys.dist_write32(0x304, 1 << 5);
    assert_eq!(
        root.dist_read(0x304, 4, &mut phys),
        0,
        "active for EL2, pending for root"
    );
    assert_eq!(root.dist_read(0x204, 4, &mut phys), 1 << 5);
    let kicks = root.dist_write(0, 4, 0x12, &mut phys);
    assert!(root.is_on());
    settle_root(&mut root, &mut cpus, kicks);
    assert_eq!(cpus[0].ack(), 37);
}

#[test]
fn virtual_spis_follow_el2s_line() {
    let (mut root, mut phys, mut cpus) = root(1);
    let _ = root.dist_write(0x10c, 4, 1 << 4, &mut phys);
    let kicks = root.set_line(SOFT, true);
    settle_root(&mut root, &mut cpus, kicks);
    assert_eq!(cpus[0].ack(), SOFT);
    let kicks = root.set_line(SOFT, false);
    settle_root(&mut root, &mut cpus, kicks);
    cpus[0].eoi(SOFT);
    assert!(!cpus[0].maintenance() && cpus[0].deactivated.is_empty());
    assert!(root.set_line(37, true).is_empty(), "not a physical one");
}

#[test]
fn a_cpu_that_leaves_loses_nothing() {
    let (mut root, mut phys, mut cpus) = root(2);
    let _ = root.dist_write(0x104, 4, 0b111 << 5, &mut phys);
    for intid in 37..40 {
        let _ = root.dist_write(0x6000 + 8 * intid, 8, 1, &mut phys);
    }
    let (kicks, _) = root.inject_physical(1, 37);
    settle_root(&mut root, &mut cpus, kicks);
    let (kicks, _) = root.inject_physical(1, 27);
    settle_root(&mut root, &mut cpus, kicks);
    phys.routes.clear();
    let kicks = root.park(1, &mut cpus[1], &mut phys);
    assert_eq!(kicks, Kicks::of(0));
    settle_root(&mut root, &mut cpus, kicks);
    assert_eq!(
        phys.routes,
        [(0x6000 + 8 * 37, 0), (0x6000 + 8 * 38, 0), (0x6000 + 8 * 39, 0)]
    );
    assert_eq!(phys.redist_read32(1, SGI + 0x100), 0, "its PPIs are off");
    assert_eq!(
        cpus[1].deactivated,
        [27],
        "the level is signalled again while it is high"
    );
    assert!(cpus[1].valid().is_empty());
    assert_eq!(cpus[0].ack(), 37);
    cpus[0].eoi(37);
    assert_eq!(cpus[0].deactivated, [37]);
    // Read back as written; a new route to it stays where it is physically.
    assert_eq!(root.dist_read(0x6000 + 8 * 38, 8, &mut phys), 1);
    phys.routes.clear();
    let _ = root.dist_write(0x6000 + 8 * 41, 8, 1, &mut phys);
    assert!(phys.routes.is_empty());
    // Its redistributor is not accessible, except for its identity.
    let before = phys.redist.clone();
    let _ = root.redist_write(1, SGI + 0x100, 4, 0xffff_ffff, &mut phys);
    assert_eq!(phys.redist, before);
    assert_eq!(root.redist_read(1, SGI + 0x100, 4, &mut phys), 0);
    assert_eq!(root.redist_read(1, 12, 4, &mut phys), 1);
    // Back again.
    let _ = root.unpark(1, &mut cpus[1], &mut phys);
    assert!(phys.routes.contains(&(0x6000 + 8 * 41, 1)) && phys.routes.contains(&(0x6000 + 8 * 38, 1)));
    assert_eq!(
        phys.redist_read32(1, SGI + 0x100),
        0xffff_0000 & !(1 << 25 | 1 << 26 | 1 << 28)
    );
}

#[test]
fn identity_is_the_hardwares_without_lpis() {
    let (mut root, mut phys, _) = root(2);
    assert_eq!(root.dist_read(4, 4, &mut phys), 8 | 15 << 19 | 1 << 16);
    assert_eq!(
        root.redist_read(0, 8, 8, &mut phys),
        0,
        "no PLPIS, DirectLPI, DPGS"
    );
    assert_eq!(root.redist_read(1, 8, 8, &mut phys), 1 << 32 | 1 << 8 | 1 << 4);
    assert_eq!(root.dist_read(0, 4, &mut phys), 0x52);
    phys.dist.insert(0, 1 << 31 | 0x37);
    assert_eq!(root.dist_read(0, 4, &mut phys), 1 << 31 | 0x52, "RWP shows");
    phys.dist.insert(0xffe8, 0x3b);
    assert_eq!(root.dist_read(0xffe8, 4, &mut phys), 0x3b);
    // LPI registers.
    for offset in [0x70, 0x78, 0xa0, 0xb0, 0xc0] {
        assert!(root.redist_write(0, offset, 8, u64::MAX, &mut phys).is_empty());
        assert_eq!(root.redist_read(0, offset, 8, &mut phys), 0);
        assert!(!phys.redist.contains_key(&(0, offset)));
    }
    let _ = root.redist_write(0, 0, 4, 1, &mut phys);
    assert!(!phys.redist.contains_key(&(0, 0)), "EnableLPIs");
}

#[test]
fn priorities_and_modes_of_reserved_interrupts_are_unchanged() {
    let (mut root, mut phys, _) = root(1);
    phys.redist.insert((0, SGI + 0x418), 0x1111_1111);
    let _ = root.redist_write(0, SGI + 0x418, 4, 0xa0a0_a0a0, &mut phys);
    // 24 and 27 are root's, 25 and 26 are not.
    assert_eq!(phys.redist_read32(0, SGI + 0x418), 0xa011_11a0);
    assert_eq!(root.redist_read(0, SGI + 0x418, 4, &mut phys), 0xa000_00a0);
    phys.dist.insert(0xc08, 2 << 16);
    let _ = root.dist_write(0xc08, 4, 2, &mut phys);
    assert_eq!(phys.dist_read32(0xc08), 2 << 16 | 2);
    assert_eq!(root.dist_read(0xc08, 4, &mut phys), 2);
    let _ = root.redist_write(0, SGI + 0x400, 4, 0xa0a0_a0a0, &mut phys);
    assert!(
        !phys.redist.contains_key(&(0, SGI + 0x400)),
        "SGIs are software's"
    );
}

#[test]
fn clearing_reaches_interrupts_acknowledged_by_el2() {
    let (mut root, mut phys, mut cpus) = root(2);
    let _ = root.dist_write(0x104, 4, 1 << 5, &mut phys);
    // Pending in CPU 1's list register; CPU 0 clears it.
    let _ = root.dist_write(0x6000 + 8 * 37, 8, 1, &mut phys);
    let (kicks, _) = root.inject_physical(1, 37);
    settle_root(&mut root, &mut cpus, kicks);
    let kicks = root.dist_write(0x284, 4, 1 << 5, &mut phys);
    assert_eq!(kicks, Kicks::of(1));
    settle_root(&mut root, &mut cpus, kicks);
    assert_eq!(cpus[1].ack(), SPURIOUS);
    assert_eq!(core::mem::take(&mut cpus[1].deactivated), [37]);
    // Active there; CPU 0 clears that, as a kernel does before it starts the next one (kexec).
    let (kicks, _) = root.inject_physical(1, 37);
    settle_root(&mut root, &mut cpus, kicks);
    assert_eq!(cpus[1].ack(), 37);
    let kicks = root.sync(1, &mut cpus[1]);
    settle_root(&mut root, &mut cpus, kicks);
    let kicks = root.dist_write(0x384, 4, 1 << 5, &mut phys);
    settle_root(&mut root, &mut cpus, kicks);
    assert_eq!(cpus[1].deactivated, [37]);
    assert!(cpus[1].valid().is_empty());
}

#[test]
fn an_interrupt_made_active_by_root_is_physically_active_until_its_deactivation() {
    let (mut root, mut phys, mut cpus) = root(1);
    cpus[0].set_vmcr(crate::vgic::vmcr::VENG1 | crate::vgic::vmcr::VEOIM);
    let kicks = root.dist_write(0x304, 4, 1 << 5, &mut phys);
    assert_eq!(phys.dist_read32(0x304), 1 << 5);
    settle_root(&mut root, &mut cpus, kicks);
    assert_eq!(root.dist_read(0x304, 4, &mut phys), 1 << 5);
    assert!(cpus[0].dir(37));
    assert_eq!(cpus[0].deactivated, [37]);
    // Made active again before EL2 has observed the end of the first.
    phys.dist_write32(0x384, 1 << 5);
    let kicks = root.dist_write(0x304, 4, 1 << 5, &mut phys);
    settle_root(&mut root, &mut cpus, kicks);
    assert!(cpus[0].dir(37));
    assert_eq!(cpus[0].deactivated, [37, 37]);
}
