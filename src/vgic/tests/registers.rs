//! The registers a zone sees, one by one.

use alloc::vec::Vec;

use super::{settle, zone};
use crate::vgic::{Kicks, Vgic};

/// Every offset; but Miri is slow.
const STEP: usize = if cfg!(miri) { 263 } else { 1 };

#[test]
fn identification() {
    let (mut gic, _) = zone(2, 4);
    assert_eq!(
        gic.dist_read(0x0004, 4) & 0x1f,
        3,
        "ITLinesNumber: 128 interrupts"
    );
    assert_eq!(gic.dist_read(0x0004, 4) >> 17 & 1, 0, "LPIS");
    assert_eq!(gic.dist_read(0x0004, 4) >> 19 & 0x1f, 9, "IDbits");
    assert_eq!(gic.dist_read(0xffe8, 4), 0x3b, "PIDR2: GICv3");
    assert_eq!(gic.dist_read(0xfff0, 4), 0x0d);
    assert_eq!(gic.dist_read(0xfffc, 4), 0xb1);
    assert_eq!(gic.redist_read(1, 0xffe8, 4), 0x3b);
    assert_ne!(gic.dist_read(0x0008, 4), 0);
    assert_eq!(gic.dist_read(0x0000, 4), 0x53, "DS, ARE, both groups");
    let _ = gic.dist_write(0, 4, 0xffff_fffd);
    assert_eq!(gic.dist_read(0x0000, 4), 0x51);
}

#[test]
fn redistributor_typer() {
    let mut gic = Vgic::new(&[0x0000_0100, 0x0102_0304], 32).unwrap();
    assert_eq!(gic.redist_read(0, 8, 8), 0x0000_0100 << 32);
    assert_eq!(gic.redist_read(1, 8, 8), 0x0102_0304 << 32 | 1 << 8 | 1 << 4);
    assert_eq!(gic.redist_read(1, 8, 4), 1 << 8 | 1 << 4);
    assert_eq!(gic.redist_read(1, 12, 4), 0x0102_0304);
    assert_eq!(gic.redist_read(2, 8, 8), 0, "no such CPU");
}

#[test]
fn waker() {
    let (mut gic, _) = zone(1, 4);
    let _ = gic.redist_write(0, 0x14, 4, 2);
    assert_eq!(gic.redist_read(0, 0x14, 4), 6);
    let _ = gic.redist_write(0, 0x14, 4, 0);
    assert_eq!(gic.redist_read(0, 0x14, 4), 0);
}

#[test]
fn priorities_by_byte_and_word() {
    // What kvm-unit-tests' test_priorities does.
    let (mut gic, _) = zone(1, 4);
    let _ = gic.dist_write(0x420, 4, 0xffff_ffff);
    assert_eq!(gic.dist_read(0x420, 4), 0xf8f8_f8f8, "five bits");
    let _ = gic.dist_write(0x420, 4, 0);
    assert_eq!(gic.dist_read(0x420, 4), 0);
    let _ = gic.dist_write(0x420, 4, 0x1020_3040);
    let _ = gic.dist_write(0x421, 1, 0xc0);
    assert_eq!(gic.dist_read(0x420, 4), 0x1020_c040);
    assert_eq!(gic.dist_read(0x421, 1), 0xc0);
    assert_eq!(gic.dist_read(0x422, 2), 0, "no halfwords");
    let _ = gic.dist_write(0x422, 2, 0);
    assert_eq!(gic.dist_read(0x420, 4), 0x1020_c040);
    // Past the last SPI.
    let _ = gic.dist_write(0x480, 4, 0xffff_ffff);
    assert_eq!(gic.dist_read(0x480, 4), 0);
    let _ = gic.redist_write(0, 0x1_0404, 4, 0x1122_3344);
    assert_eq!(gic.redist_read(0, 0x1_0406, 1), 0x20);
    assert_eq!(
        gic.dist_read(0x404, 4),
        0,
        "SGIs and PPIs are not the distributor's"
    );
}

#[test]
fn routers() {
    let (mut gic, _) = zone(2, 4);
    let at = 0x6000 + 8 * 40;
    let _ = gic.dist_write(at, 8, u64::MAX);
    assert_eq!(gic.dist_read(at, 8), 0xff_80ff_ffff);
    let _ = gic.dist_write(at, 4, 1);
    assert_eq!(gic.dist_read(at, 8), 0xff_0000_0001);
    let _ = gic.dist_write(at + 4, 4, 0);
    assert_eq!((gic.dist_read(at, 8), gic.dist_read(at + 4, 4)), (1, 0));
    assert_eq!(gic.dist_read(at, 1), 0);
    assert_eq!(gic.dist_read(0x6000, 8), 0, "no routers for SGIs");
}

#[test]
fn enables_pendings_actives() {
    let (mut gic, mut cpus) = zone(1, 4);
    let _ = gic.dist_write(0x184, 4, 0xff);
    assert_eq!(gic.dist_read(0x104, 4), 0xffff_ff00);
    assert_eq!(gic.dist_read(0x184, 4), 0xffff_ff00);
    let _ = gic.dist_write(0x204, 4, 1 << 20 | 1);
    assert_eq!(gic.dist_read(0x284, 4), 1 << 20 | 1);
    settle(&mut gic, &mut cpus, Kicks::of(0));
    assert_eq!(
        gic.dist_read(0x204, 4),
        1 << 20 | 1,
        "pending in a list register, too"
    );
    assert_eq!(cpus[0].ack(), 52);
    let _ = gic.sync(0, &mut cpus[0]);
    assert_eq!((gic.dist_read(0x204, 4), gic.dist_read(0x304, 4)), (1, 1 << 20));
    let kicks = gic.dist_write(0x384, 4, 1 << 20);
    assert_eq!(gic.dist_read(0x304, 4), 0);
    settle(&mut gic, &mut cpus, kicks);
    assert!(cpus[0].valid().is_empty());
    let kicks = gic.dist_write(0x304, 4, 1 << 3);
    settle(&mut gic, &mut cpus, kicks);
    assert!(cpus[0].find(35).unwrap().active());
}

#[test]
fn sgi_configuration_is_fixed() {
    let (mut gic, _) = zone(1, 4);
    let _ = gic.redist_write(0, 0x1_0c00, 4, 0);
    assert_eq!(gic.redist_read(0, 0x1_0c00, 4), 0xaaaa_aaaa);
    let _ = gic.redist_write(0, 0x1_0c04, 4, 0xffff_ffff);
    assert_eq!(gic.redist_read(0, 0x1_0c04, 4), 0xaaaa_aaaa);
    let _ = gic.dist_write(0xc08, 4, 0x8000_0002);
    assert_eq!(gic.dist_read(0xc08, 4), 0x8000_0002);
}

#[test]
fn undefined_registers_read_zero_and_ignore_writes() {
    // torture g2
    let (mut gic, _) = zone(2, 4);
    let before = dump(&mut gic);
    for width in [1, 2, 4, 8, 16] {
        for offset in (0..0x1_0000).step_by(STEP) {
            let known = match offset {
                0..0x0c | 0x40..0x4c => true,
                0x84..0x90 | 0x104..0x110 | 0x184..0x190 | 0x204..0x210 | 0x284..0x290 => {
                    width == 4 && offset % 4 == 0
                }
                0x304..0x310 | 0x384..0x390 | 0xc08..0xc20 => width == 4 && offset % 4 == 0,
                0x420..0x480 => width == 1 || width == 4 && offset % 4 == 0,
                0x6100..0x6400 => (width == 4 || width == 8) && offset % width == 0,
                0xffd0.. => true,
                _ => false,
            };
            if !known {
                assert_eq!(gic.dist_read(offset, width), 0, "{offset:#x} {width}");
                assert!(gic.dist_write(offset, width, u64::MAX).is_empty());
            }
        }
    }
    for offset in (0x1_0000u32..0x2_0000).chain(0x20..0xffd0).step_by(STEP) {
        let sgi = offset.wrapping_sub(0x1_0000);
        let single = [0x80, 0x100, 0x180, 0x200, 0x280, 0x300, 0x380, 0xc00, 0xc04];
        let known = single.contains(&sgi) || (0x400..0x420).contains(&sgi);
        if !known {
            for width in [1, 2, 4, 8] {
                assert_eq!(gic.redist_read(0, offset, width), 0, "{offset:#x} {width}");
                assert!(gic.redist_write(0, offset, width, u64::MAX).is_empty());
            }
        }
    }
    assert!(gic.redist_write(7, 0x1_0100, 4, 1).is_empty());
    assert_eq!(dump(&mut gic), before);
}

fn dump(gic: &mut Vgic) -> Vec<u64> {
    let mut all: Vec<u64> = (0..0x1_0000)
        .step_by(4)
        .map(|offset| gic.dist_read(offset, 4))
        .collect();
    for vcpu in 0..2 {
        all.extend(
            (0..0x2_0000)
                .step_by(4)
                .map(|offset| gic.redist_read(vcpu, offset, 4)),
        );
    }
    all
}

#[test]
fn messages() {
    let (mut gic, mut cpus) = zone(1, 4);
    let _ = gic.dist_write(0xc08, 4, 2);
    let kicks = gic.dist_write(0x40, 4, 32) | gic.dist_write(0x40, 2, 33);
    settle(&mut gic, &mut cpus, kicks);
    assert_eq!(gic.dist_read(0x204, 4), 0b11);
    let kicks = gic.dist_write(0x48, 4, 32) | gic.dist_write(0x48, 4, 33);
    settle(&mut gic, &mut cpus, kicks);
    assert_eq!(gic.dist_read(0x204, 4), 0);
    assert!(gic.dist_write(0x40, 4, 5).is_empty(), "SPIs only");
    assert!(gic.dist_write(0x40, 4, 1019).is_empty(), "existing ones");
}

#[test]
fn invalid_configurations_are_refused() {
    use crate::vgic::VgicError;
    assert_eq!(Vgic::new(&[], 32).unwrap_err(), VgicError::CpuCount(0));
    assert_eq!(Vgic::new(&[0; 65], 32).unwrap_err(), VgicError::CpuCount(65));
    assert_eq!(Vgic::new(&[0], 33).unwrap_err(), VgicError::SpiCount(33));
    assert_eq!(Vgic::new(&[0], 992).unwrap_err(), VgicError::SpiCount(992));
    let mut gic = Vgic::new(&[0], 988).unwrap();
    assert_eq!(gic.dist_read(4, 4) & 0x1f, 31);
    let _ = gic.dist_write(0x100 + 4 * 31, 4, u64::MAX);
    assert_eq!(gic.dist_read(0x100 + 4 * 31, 4), 0x0fff_ffff);
}
