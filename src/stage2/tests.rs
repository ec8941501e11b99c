use super::fake::FakeFrames;
use super::{Access, MapError, Stage2};
use crate::addr::{Ipa, Pa};

const GIB: u64 = 1 << 30;
const MIB2: u64 = 2 << 20;

#[test]
#[cfg_attr(miri, ignore = "safe code alone; minutes there")]
fn uses_the_largest_blocks() {
    let mut frames = FakeFrames::default();
    let mut tree = Stage2::new(&mut frames, 40).unwrap();
    assert_eq!(frames.used, 2);
    tree.map(&mut frames, Ipa(0), Pa(0), 512 * GIB, Access::Device)
        .unwrap();
    assert_eq!(frames.used, 2, "1 GiB blocks need no further table");
    tree.map(
        &mut frames,
        Ipa(600 * GIB),
        Pa(3 * GIB),
        GIB + MIB2 + 4096,
        Access::Ram,
    )
    .unwrap();
    assert_eq!(frames.used, 4);
    let (pa, entry) = tree.translate(&frames, Ipa(600 * GIB + GIB + MIB2 + 12)).unwrap();
    assert_eq!(pa, Pa(3 * GIB + GIB + MIB2 + 12));
    assert_eq!(entry & 3, 3);
    assert_eq!(tree.translate(&frames, Ipa(600 * GIB + GIB + MIB2 + 4096)), None);
    tree.destroy(&mut frames);
    assert_eq!(frames.used, 0);
}

#[test]
fn refuses_overlap_and_rolls_back() {
    let mut frames = FakeFrames::default();
    let mut tree = Stage2::new(&mut frames, 40).unwrap();
    tree.map(&mut frames, Ipa(GIB + 2 * MIB2), Pa(0), 4096, Access::Ram)
        .unwrap();
    let error = tree
        .map(&mut frames, Ipa(GIB), Pa(GIB), GIB, Access::Ram)
        .unwrap_err();
    assert_eq!(error, MapError::Overlap(Ipa(GIB + 2 * MIB2)));
    assert_eq!(tree.translate(&frames, Ipa(GIB)), None);
    assert!(tree.translate(&frames, Ipa(GIB + 2 * MIB2)).is_some());
}

// torture d3
#[test]
#[cfg_attr(miri, ignore = "safe code alone; minutes there")]
fn every_allocation_failing_leaves_nothing_mapped() {
    for budget in 0..4 {
        let mut frames = FakeFrames::default();
        frames.budget = Some(budget);
        let Some(mut tree) = Stage2::new(&mut frames, 40) else {
            assert_eq!((budget, frames.used), (0, 0));
            continue;
        };
        let result = tree.map(&mut frames, Ipa(GIB - 4096), Pa(0), 8192, Access::Ram);
        if budget < 5 {
            assert_eq!(result, Err(MapError::OutOfMemory), "budget {budget}");
            assert_eq!(tree.translate(&frames, Ipa(GIB - 4096)), None);
        }
        tree.destroy(&mut frames);
        assert_eq!(frames.used, 0);
    }
}

#[test]
fn refuses_bad_ranges() {
    let mut frames = FakeFrames::default();
    let mut tree = Stage2::new(&mut frames, 40).unwrap();
    let map = |tree: &mut Stage2, frames: &mut FakeFrames, ipa, pa, len| {
        tree.map(frames, Ipa(ipa), Pa(pa), len, Access::Ram)
    };
    assert_eq!(
        map(&mut tree, &mut frames, 1, 0, 4096),
        Err(MapError::Misaligned(Ipa(1)))
    );
    assert_eq!(
        map(&mut tree, &mut frames, 0, 0, 0),
        Err(MapError::Misaligned(Ipa(0)))
    );
    assert_eq!(
        map(&mut tree, &mut frames, 0, 8, 4096),
        Err(MapError::Misaligned(Ipa(0)))
    );
    let end = 1 << 40;
    assert_eq!(
        map(&mut tree, &mut frames, end, 0, 4096),
        Err(MapError::OutOfRange(Ipa(end)))
    );
    assert_eq!(
        map(&mut tree, &mut frames, u64::MAX - 4095, 0, 8192),
        Err(MapError::OutOfRange(Ipa(u64::MAX - 4095)))
    );
    assert!(Stage2::new(&mut frames, 30).is_none());
    assert!(Stage2::new(&mut frames, 48).is_none());
}

#[test]
fn unmap_and_map_again() {
    let mut frames = FakeFrames::default();
    let mut tree = Stage2::new(&mut frames, 36).unwrap();
    tree.map(&mut frames, Ipa(GIB), Pa(0), 3 * MIB2, Access::Ram)
        .unwrap();
    tree.unmap(&mut frames, Ipa(GIB + MIB2), MIB2);
    assert!(tree.translate(&frames, Ipa(GIB)).is_some());
    assert_eq!(tree.translate(&frames, Ipa(GIB + MIB2)), None);
    assert!(tree.translate(&frames, Ipa(GIB + 2 * MIB2)).is_some());
    tree.map(
        &mut frames,
        Ipa(GIB + MIB2),
        Pa(64 * GIB - MIB2),
        MIB2,
        Access::DeviceReadOnly,
    )
    .unwrap();
}

#[test]
fn dismantling_frees_a_bounded_part_each_time() {
    let mut frames = FakeFrames::default();
    let mut tree = Stage2::new(&mut frames, 40).unwrap();
    let root = frames.used;
    for gib in [0, 1, 7, 600] {
        let at = gib * GIB + MIB2;
        let pages = (Ipa(at), Pa(at), 0x3000, Access::Device);
        tree.map(&mut frames, pages.0, pages.1, pages.2, pages.3).unwrap();
        tree.map(&mut frames, Ipa(at + MIB2), Pa(at), MIB2, Access::Ram)
            .unwrap();
    }
    // For each a table of blocks and one of pages.
    for parts in (0..4).rev() {
        assert!(tree.dismantle(&mut frames));
        assert_eq!(frames.used, root + 2 * parts);
        assert_eq!(tree.translate(&frames, Ipa(MIB2)), None);
    }
    assert!(!tree.dismantle(&mut frames));
    tree.destroy(&mut frames);
    assert_eq!(frames.used, 0);
}
