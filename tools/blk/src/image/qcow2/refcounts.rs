//! Refcounts as a refcount block has them.

/// Raises each refcount of `block` to what `least` has, if that is higher. Both are the same part of a block,
/// in whole bytes and whole refcounts of `1 << order` bits, big-endian; narrow ones are packed from the least
/// significant bit on.
pub fn raise(block: &mut [u8], least: &[u8], order: u32) {
    if order < 3 {
        let (width, count) = (1 << order, 8 >> order);
        let mask = (1_u8 << width) - 1;
        for (byte, least) in block.iter_mut().zip(least) {
            *byte = (0..count).fold(0, |raised, number| {
                let shift = number * width;
                raised | ((*byte >> shift & mask).max(*least >> shift & mask) << shift)
            });
        }
        return;
    }
    // Big-endian numbers of one length compare as their bytes do.
    let bytes = 1 << (order - 3);
    for (count, least) in block.chunks_exact_mut(bytes).zip(least.chunks_exact(bytes)) {
        if *count < *least {
            count.copy_from_slice(least);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::raise;

    #[test]
    fn refcounts_of_every_width_are_raised() {
        let raised = |block: &[u8], least: &[u8], order| {
            let mut block = block.to_vec();
            raise(&mut block, least, order);
            block
        };
        assert_eq!(raised(&[0b1010_0001], &[0b0110_0000], 0), [0b1110_0001]);
        assert_eq!(raised(&[0b11_00_10_01], &[0b01_01_11_00], 1), [0b11_01_11_01]);
        assert_eq!(raised(&[0x1f], &[0x2e], 2), [0x2f]);
        assert_eq!(raised(&[1, 7], &[2, 6], 3), [2, 7]);
        assert_eq!(raised(&[1, 0, 0, 255], &[0, 255, 1, 0], 4), [1, 0, 1, 0]);
        assert_eq!(raised(&[0, 0, 0, 1], &[0, 0, 0, 2], 5), [0, 0, 0, 2]);
        assert_eq!(
            raised(&[1, 0, 0, 0, 0, 0, 0, 0], &[0, 9, 9, 9, 9, 9, 9, 9], 6),
            [1, 0, 0, 0, 0, 0, 0, 0]
        );
    }
}
