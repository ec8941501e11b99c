//! Delivery through the list registers: levels, edges, hardware interrupts, overflow, eviction, migration.

extern crate std;
use super::{settle, sgi_to, zone};
use crate::vgic::fake::{FakeCpu, SPURIOUS};
use crate::vgic::{Kicks, SgiRegister, SgiRequest, Vgic};
use std::vec::Vec;

fn set_line(gic: &mut Vgic, cpus: &mut [FakeCpu], intid: u32, high: bool) {
    let kicks = gic.set_line(intid, high);
    settle(gic, cpus, kicks);
}

fn service(gic: &mut Vgic, cpus: &mut [FakeCpu], vcpu: usize) {
    let kicks = gic.sync(vcpu, &mut cpus[vcpu]);
    settle(gic, cpus, kicks);
}

#[test]
fn a_virtio_interrupt_needs_no_maintenance_interrupt() {
    let (mut gic, mut cpus) = zone(1, 4);
    for _ in 0..20 {
        set_line(&mut gic, &mut cpus, 48, true);
        assert_eq!(cpus[0].ack(), 48);
        // The driver reads InterruptStatus (no exit) and writes InterruptACK: the line drops on this CPU.
        set_line(&mut gic, &mut cpus, 48, false);
        cpus[0].eoi(48);
        assert!(!cpus[0].maintenance());
        assert_eq!(cpus[0].ack(), SPURIOUS);
    }
}

#[test]
fn a_line_that_stays_high_is_delivered_again() {
    let (mut gic, mut cpus) = zone(1, 4);
    set_line(&mut gic, &mut cpus, 33, true);
    for _ in 0..3 {
        assert_eq!(cpus[0].ack(), 33);
        assert_eq!(cpus[0].ack(), SPURIOUS);
        cpus[0].eoi(33);
        assert!(cpus[0].maintenance());
        service(&mut gic, &mut cpus, 0);
        assert!(!cpus[0].maintenance());
    }
    // Dropped before it was acknowledged: not pending any more.
    set_line(&mut gic, &mut cpus, 33, false);
    assert_eq!(cpus[0].ack(), SPURIOUS);
    assert!(cpus[0].valid().is_empty());
}

#[test]
fn a_line_raised_again_while_active_is_active_and_pending() {
    let (mut gic, mut cpus) = zone(1, 4);
    set_line(&mut gic, &mut cpus, 33, true);
    assert_eq!(cpus[0].ack(), 33);
    set_line(&mut gic, &mut cpus, 33, false);
    set_line(&mut gic, &mut cpus, 33, true);
    let lr = cpus[0].find(33).unwrap();
    assert!(lr.active() && lr.pending());
    cpus[0].eoi(33);
    assert!(!cpus[0].maintenance());
    assert_eq!(cpus[0].ack(), 33);
    set_line(&mut gic, &mut cpus, 33, false);
    cpus[0].eoi(33);
    assert!(!cpus[0].maintenance());
    assert_eq!(cpus[0].ack(), SPURIOUS);
}

#[test]
fn an_edge_is_delivered_once_and_a_second_one_while_active_again() {
    let (mut gic, mut cpus) = zone(1, 4);
    let _ = gic.dist_write(0xc0c, 4, 2 << (2 * (60 - 48)));
    set_line(&mut gic, &mut cpus, 60, true);
    set_line(&mut gic, &mut cpus, 60, false);
    set_line(&mut gic, &mut cpus, 60, true);
    assert_eq!(cpus[0].ack(), 60);
    set_line(&mut gic, &mut cpus, 60, false);
    set_line(&mut gic, &mut cpus, 60, true);
    assert_eq!(cpus[0].ack(), SPURIOUS, "active");
    cpus[0].eoi(60);
    assert_eq!(cpus[0].ack(), 60);
    cpus[0].eoi(60);
    service(&mut gic, &mut cpus, 0);
    assert_eq!(cpus[0].ack(), SPURIOUS);
}

#[test]
fn a_hardware_ppi_is_deactivated_by_the_guest() {
    let (mut gic, mut cpus) = zone(2, 4);
    for round in 0..3 {
        let kicks = gic.inject_physical(1, 27);
        assert_eq!(kicks, Kicks::of(1));
        settle(&mut gic, &mut cpus, kicks);
        assert!(cpus[1].find(27).unwrap().hw());
        assert_eq!(cpus[0].ack(), SPURIOUS);
        assert_eq!(cpus[1].ack(), 27);
        assert!(cpus[1].deactivated.is_empty(), "round {round}");
        cpus[1].eoi(27);
        // By the hardware alone: no maintenance interrupt, no exit. It may fire again at once, unknown to the
        // model.
        assert_eq!(core::mem::take(&mut cpus[1].deactivated), [27]);
        assert!(!cpus[1].maintenance());
    }
}

#[test]
fn a_disabled_hardware_ppi_waits_without_storming() {
    let (mut gic, mut cpus) = zone(1, 4);
    let kicks = gic.inject_physical(0, 27);
    settle(&mut gic, &mut cpus, kicks);
    // Disabled while in a list register: unloaded, still physically active.
    let kicks = gic.redist_write(0, 0x1_0180, 4, 1 << 27);
    settle(&mut gic, &mut cpus, kicks);
    assert_eq!(cpus[0].ack(), SPURIOUS);
    assert!(cpus[0].deactivated.is_empty());
    assert_eq!(gic.redist_read(0, 0x1_0200, 4), 1 << 27);
    let kicks = gic.redist_write(0, 0x1_0100, 4, 1 << 27);
    settle(&mut gic, &mut cpus, kicks);
    assert_eq!(cpus[0].ack(), 27);
    cpus[0].eoi(27);
    assert_eq!(cpus[0].deactivated, [27]);
}

#[test]
fn clearing_a_pending_hardware_ppi_deactivates_it() {
    let (mut gic, mut cpus) = zone(1, 4);
    let kicks = gic.inject_physical(0, 27);
    settle(&mut gic, &mut cpus, kicks);
    let kicks = gic.redist_write(0, 0x1_0280, 4, 1 << 27);
    settle(&mut gic, &mut cpus, kicks);
    assert_eq!(cpus[0].ack(), SPURIOUS);
    assert_eq!(core::mem::take(&mut cpus[0].deactivated), [27]);
    // The same while it is disabled.
    let _ = gic.redist_write(0, 0x1_0180, 4, 1 << 27);
    let kicks = gic.inject_physical(0, 27);
    settle(&mut gic, &mut cpus, kicks);
    let kicks = gic.redist_write(0, 0x1_0280, 4, 1 << 27);
    settle(&mut gic, &mut cpus, kicks);
    assert_eq!(cpus[0].deactivated, [27]);
}

#[test]
fn overflow_is_delivered_in_order_of_priority() {
    let (mut gic, mut cpus) = zone(1, 4);
    for intid in 40..60 {
        let _ = gic.dist_write(0x400 + intid, 1, u64::from(0xf0 - 8 * (intid - 40)));
        set_line(&mut gic, &mut cpus, intid, true);
    }
    let mut taken = Vec::new();
    while taken.len() < 20 {
        let intid = cpus[0].ack();
        if cpus[0].maintenance() {
            service(&mut gic, &mut cpus, 0);
        }
        assert_ne!(intid, SPURIOUS, "lost after {taken:?}");
        set_line(&mut gic, &mut cpus, intid, false);
        cpus[0].eoi(intid);
        taken.push(intid);
    }
    assert_eq!(taken, (40..60).rev().collect::<Vec<_>>());
    assert_eq!(cpus[0].ack(), SPURIOUS);
    service(&mut gic, &mut cpus, 0);
    assert!(!cpus[0].maintenance());
}

#[test]
fn a_more_urgent_one_evicts() {
    let (mut gic, mut cpus) = zone(1, 4);
    for intid in 40..50 {
        set_line(&mut gic, &mut cpus, intid, true);
    }
    let _ = gic.dist_write(0x400 + 90, 1, 0x10);
    set_line(&mut gic, &mut cpus, 90, true);
    assert_eq!(cpus[0].ack(), 90);
}

#[test]
fn active_interrupts_are_evicted_and_ended_by_eoicount() {
    // Nested five deep on two list registers.
    let (mut gic, mut cpus) = zone(1, 2);
    for (n, intid) in (40..45).enumerate() {
        let _ = gic.dist_write(0x400 + intid, 1, 0xa0 - 0x10 * n as u64);
        set_line(&mut gic, &mut cpus, intid, true);
        assert_eq!(cpus[0].ack(), intid);
    }
    service(&mut gic, &mut cpus, 0);
    assert_eq!(gic.dist_read(0x304, 4), 0b11111 << 8);
    for intid in (40..45).rev() {
        set_line(&mut gic, &mut cpus, intid, false);
        cpus[0].eoi(intid);
        if cpus[0].maintenance() {
            service(&mut gic, &mut cpus, 0);
        }
    }
    service(&mut gic, &mut cpus, 0);
    assert_eq!(gic.dist_read(0x304, 4), 0);
    assert!(cpus[0].valid().is_empty() && !cpus[0].maintenance());
}

#[test]
fn with_split_eoi_evicted_active_interrupts_end_by_trap() {
    let (mut gic, mut cpus) = zone(1, 2);
    cpus[0].set_vmcr(super::super::vmcr::VENG1 | super::super::vmcr::VEOIM);
    for intid in 40..46 {
        set_line(&mut gic, &mut cpus, intid, true);
    }
    for intid in 40..46 {
        assert_eq!(cpus[0].ack(), intid);
        set_line(&mut gic, &mut cpus, intid, false);
        cpus[0].eoi(intid);
        if cpus[0].maintenance() {
            service(&mut gic, &mut cpus, 0);
        }
    }
    let mut traps = 0;
    for intid in 40..46 {
        if !cpus[0].dir(intid) {
            traps += 1;
            let kicks = gic.deactivate(0, intid, &mut cpus[0]);
            settle(&mut gic, &mut cpus, kicks);
        }
    }
    assert!(traps > 0);
    service(&mut gic, &mut cpus, 0);
    assert_eq!(gic.dist_read(0x304, 4), 0);
    assert!(cpus[0].valid().is_empty());
}

#[test]
fn sgis_reach_only_their_targets_in_this_zone() {
    // torture d6
    let (mut gic, mut cpus) = zone(3, 4);
    let kicks = gic.send_sgi(0, &sgi_to(5, 2));
    assert_eq!(kicks, Kicks::of(2));
    settle(&mut gic, &mut cpus, kicks);
    assert_eq!(
        (cpus[0].ack(), cpus[1].ack(), cpus[2].ack()),
        (SPURIOUS, SPURIOUS, 5)
    );
    cpus[2].eoi(5);
    let all = gic.send_sgi(1, &SgiRequest::decode(SgiRegister::Sgi1r, 1 << 40 | 3 << 24));
    assert_eq!(all, Kicks::of(0) | Kicks::of(2));
    for affinity in (0..0x1_0000u64).step_by(if cfg!(miri) { 251 } else { 1 }) {
        let value = (affinity >> 8) << 16 | (affinity & 0xf0) << 40 | 1 << (affinity & 0xf) | 1 << 24;
        let kicks = gic.send_sgi(0, &SgiRequest::decode(SgiRegister::Sgi1r, value));
        assert_eq!(kicks.is_empty(), affinity > 2, "{affinity:#x}");
    }
    // SGI0R does not reach an SGI of group 1, and does one of group 0.
    let request = SgiRequest::decode(SgiRegister::Sgi0r, 9 << 24 | 2);
    assert!(gic.send_sgi(0, &request).is_empty());
    let _ = gic.redist_write(1, 0x1_0080, 4, !(1 << 9));
    assert_eq!(gic.send_sgi(0, &request), Kicks::of(1));
}

#[test]
fn a_pending_spi_follows_its_route() {
    let (mut gic, mut cpus) = zone(2, 4);
    set_line(&mut gic, &mut cpus, 70, true);
    assert!(cpus[0].find(70).is_some());
    let kicks = gic.dist_write(0x6000 + 8 * 70, 8, 1);
    assert_eq!(kicks, Kicks::of(0), "its list register is CPU 0's");
    settle(&mut gic, &mut cpus, kicks);
    assert_eq!((cpus[0].ack(), cpus[1].ack()), (SPURIOUS, 70));
    // While it is active on CPU 1, routed back to 0: the level is high, so it is delivered there when CPU 1
    // ends it.
    let kicks = gic.dist_write(0x6000 + 8 * 70, 4, 0);
    settle(&mut gic, &mut cpus, kicks);
    assert_eq!(cpus[0].ack(), SPURIOUS);
    cpus[1].eoi(70);
    assert!(cpus[1].maintenance());
    service(&mut gic, &mut cpus, 1);
    assert_eq!(cpus[0].ack(), 70);
}

#[test]
fn a_flush_without_changes_accesses_no_register() {
    let (mut gic, mut cpus) = zone(1, 4);
    set_line(&mut gic, &mut cpus, 40, true);
    cpus[0].accesses.set(0);
    assert!(gic.flush(0, &mut cpus[0]).is_empty());
    assert_eq!(cpus[0].accesses.get(), 0);
}

#[test]
fn a_disabled_group_does_not_block_the_other() {
    let (mut gic, mut cpus) = zone(1, 2);
    cpus[0].set_vmcr(super::super::vmcr::VENG1);
    // Six of group 0 at the top priority, then one of group 1.
    let _ = gic.dist_write(0x084, 4, !0x3f);
    for intid in 32..38 {
        let _ = gic.dist_write(0x400 + intid, 1, 0);
        set_line(&mut gic, &mut cpus, intid, true);
    }
    set_line(&mut gic, &mut cpus, 50, true);
    assert!(!cpus[0].maintenance());
    assert_eq!(cpus[0].ack(), 50);
    set_line(&mut gic, &mut cpus, 50, false);
    cpus[0].eoi(50);
    // The guest enables group 0.
    cpus[0].set_vmcr(super::super::vmcr::VENG1 | super::super::vmcr::VENG0);
    for intid in 32..38 {
        if cpus[0].maintenance() {
            service(&mut gic, &mut cpus, 0);
        }
        assert_eq!(cpus[0].ack(), intid);
        set_line(&mut gic, &mut cpus, intid, false);
        cpus[0].eoi(intid);
    }
    service(&mut gic, &mut cpus, 0);
    assert!(!cpus[0].maintenance());
}

#[test]
fn parking_keeps_pending_interrupts_and_returns_physical_ones() {
    let (mut gic, mut cpus) = zone(2, 4);
    let kicks = gic.inject_physical(1, 27) | gic.send_sgi(0, &sgi_to(1, 1));
    settle(&mut gic, &mut cpus, kicks);
    let _ = gic.dist_write(0x6000 + 8 * 40, 8, 1);
    set_line(&mut gic, &mut cpus, 40, true);
    let kicks = gic.park(1, &mut cpus[1]);
    settle(&mut gic, &mut cpus, kicks);
    assert!(cpus[1].valid().is_empty());
    assert_eq!(cpus[1].deactivated, [27]);
    assert!(gic.send_sgi(0, &sgi_to(2, 1)).is_empty(), "no CPU to kick");
    let mut cpu = FakeCpu::new(4);
    let _ = gic.unpark(1, &mut cpu);
    let mut taken = [
        cpu.ack(),
        {
            cpu.eoi(1);
            cpu.ack()
        },
        {
            cpu.eoi(2);
            cpu.ack()
        },
    ];
    taken.sort();
    assert_eq!(taken, [1, 2, 40]);
}

#[test]
fn a_guest_that_polls_its_timer_sees_the_line() {
    // As kvm-unit-tests' timer test checks: pending while the timer's condition holds, disabled or masked.
    let (mut gic, mut cpus) = zone(1, 4);
    let pending = |gic: &mut Vgic, cpu: &mut FakeCpu| {
        let _ = gic.sync(0, cpu);
        gic.redist_read(0, 0x1_0200, 4) >> 27 & 1 != 0
    };
    for enabled in [false, true] {
        let _ = gic.redist_write(0, 0x1_0180, 4, u64::from(!enabled) << 27);
        cpus[0].low.clear();
        let kicks = gic.inject_physical(0, 27);
        settle(&mut gic, &mut cpus, kicks);
        assert!(pending(&mut gic, &mut cpus[0]));
        cpus[0].low.push(27);
        assert!(!pending(&mut gic, &mut cpus[0]));
        assert_eq!(
            core::mem::take(&mut cpus[0].deactivated),
            [27],
            "so that it can come again"
        );
        assert_eq!(cpus[0].ack(), SPURIOUS);
        let _ = gic.redist_write(0, 0x1_0100, 4, 1 << 27);
    }
    // Once acknowledged it stays active, whatever the line does.
    cpus[0].low.clear();
    let kicks = gic.inject_physical(0, 27);
    settle(&mut gic, &mut cpus, kicks);
    assert_eq!(cpus[0].ack(), 27);
    cpus[0].low.push(27);
    assert!(!pending(&mut gic, &mut cpus[0]));
    assert_eq!(gic.redist_read(0, 0x1_0300, 4), 1 << 27);
    cpus[0].eoi(27);
    assert_eq!(cpus[0].deactivated, [27]);
}

#[test]
fn a_read_waits_for_the_vcpus_that_must_sync() {
    let (mut gic, mut cpus) = zone(3, 4);
    let _ = gic.dist_write(0x6000 + 8 * 40, 8, 2);
    assert!(gic.await_dist_read(0, 0x304, 4).is_empty(), "in no list register");
    set_line(&mut gic, &mut cpus, 40, true);
    assert_eq!(cpus[2].ack(), 40);
    assert_eq!(gic.dist_read(0x304, 4), 0, "CPU 2 has not synced");
    for _ in 0..3 {
        assert_eq!(gic.await_dist_read(0, 0x304, 4), Kicks::of(2));
    }
    let _ = gic.flush(2, &mut cpus[2]);
    assert!(gic.await_dist_read(0, 0x304, 4).is_empty());
    assert_eq!(gic.dist_read(0x304, 4), 1 << 8);
    // CPU 2 itself need not wait, and other registers wait for none.
    assert!(gic.await_dist_read(2, 0x304, 4).is_empty());
    assert!(gic.await_dist_read(0, 0x104, 4).is_empty());
    // A private one, read from another CPU; that CPU may leave meanwhile.
    let kicks = gic.send_sgi(0, &sgi_to(3, 1));
    settle(&mut gic, &mut cpus, kicks);
    assert_eq!(gic.await_redist_read(0, 1, 0x1_0200, 4), Kicks::of(1));
    let _ = gic.park(1, &mut cpus[1]);
    assert!(gic.await_redist_read(0, 1, 0x1_0200, 4).is_empty());
    assert_eq!(gic.redist_read(0, 0x1_0200, 4), 0);
    assert_eq!(gic.redist_read(1, 0x1_0200, 4), 1 << 3);
}

#[test]
fn a_cpu_that_could_not_park_loses_only_its_own_interrupts() {
    let (mut gic, mut cpus) = zone(2, 4);
    for intid in 40..50 {
        set_line(&mut gic, &mut cpus, intid, true);
    }
    let kicks = gic.inject_physical(0, 27);
    settle(&mut gic, &mut cpus, kicks);
    cpus[0] = FakeCpu::new(4);
    let _ = gic.unpark(0, &mut cpus[0]);
    for intid in 40..50 {
        assert_eq!(cpus[0].ack(), intid);
        set_line(&mut gic, &mut cpus, intid, false);
        cpus[0].eoi(intid);
        if cpus[0].maintenance() {
            service(&mut gic, &mut cpus, 0);
        }
    }
    assert_eq!(cpus[0].ack(), SPURIOUS);
}

#[test]
fn waiting_interrupts_precede_the_pending_half_of_an_active_and_pending_one() {
    // Split EOI, two list registers: 50 is active and pending, more urgent ones wait. Its deactivation must
    // not let it be delivered before them.
    let (mut gic, mut cpus) = zone(1, 2);
    cpus[0].set_vmcr(super::super::vmcr::VENG1 | super::super::vmcr::VEOIM);
    for (intid, priority) in [(50, 0x78), (51, 0x70), (52, 0x68)] {
        let _ = gic.dist_write(0xc0c, 4, 0xaaaa_aaaa);
        let _ = gic.dist_write(0x400 + intid, 1, priority);
    }
    let pulse = |gic: &mut Vgic, cpus: &mut [FakeCpu], intid: u32| {
        set_line(gic, cpus, intid, true);
        set_line(gic, cpus, intid, false);
    };
    pulse(&mut gic, &mut cpus, 50);
    assert_eq!(cpus[0].ack(), 50);
    cpus[0].eoi(50);
    for intid in [50, 51, 52] {
        pulse(&mut gic, &mut cpus, intid);
    }
    let mut taken = std::vec::Vec::new();
    let mut to_end = 50;
    while to_end != SPURIOUS {
        if !cpus[0].dir(to_end) {
            let kicks = gic.deactivate(0, to_end, &mut cpus[0]);
            settle(&mut gic, &mut cpus, kicks);
        }
        if cpus[0].maintenance() {
            service(&mut gic, &mut cpus, 0);
        }
        to_end = cpus[0].ack();
        if cpus[0].maintenance() {
            service(&mut gic, &mut cpus, 0);
        }
        cpus[0].eoi(to_end);
        taken.push(to_end);
    }
    assert_eq!(taken, [52, 51, 50, SPURIOUS]);
}

#[test]
fn a_group_disabled_while_active_and_pending_does_not_hide_waiting_interrupts() {
    let (mut gic, mut cpus) = zone(1, 2);
    // 43 of group 0, top priority; two of group 1.
    let _ = gic.dist_write(0x084, 4, !(1 << 11));
    let _ = gic.dist_write(0x400 + 43, 1, 0);
    let _ = gic.dist_write(0xc0c, 4, 0xaaaa_aaaa);
    for intid in [43, 50, 51] {
        set_line(&mut gic, &mut cpus, intid, true);
    }
    assert_eq!(cpus[0].ack(), 43);
    // Group 0 off, in the handler; the line is still high.
    cpus[0].set_vmcr(super::super::vmcr::VENG1);
    if cpus[0].maintenance() {
        service(&mut gic, &mut cpus, 0);
    }
    cpus[0].eoi(43);
    for intid in [50, 51] {
        if cpus[0].maintenance() {
            service(&mut gic, &mut cpus, 0);
        }
        assert_eq!(cpus[0].ack(), intid);
        cpus[0].eoi(intid);
    }
}
