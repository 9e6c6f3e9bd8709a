//! SGL descriptors as a controller walks them, from the text of Base 2.0c §4.1.2.

use crate::dma::DmaPool;
use crate::nvme::spec::Status;

use super::prp;

const BYTES: usize = 16;

/// How many segments are followed: a list may go in circles.
const SEGMENTS_MAX: usize = 16;

/// The pieces (IOVA, length) of `len_bytes` bytes that the descriptor of a command, in two words,
/// describes. Descriptors that bring fewer bytes, or more, are wrong.
///
/// # Errors
///
/// The status that the command fails with.
pub fn walk(
    pool: &DmaPool,
    low: u64,
    high: u64,
    len_bytes: usize,
) -> Result<Vec<(u64, usize)>, Status> {
    let mut pieces = Vec::new();
    let mut descriptors = vec![(low, high)];
    let mut last = false;
    for _ in 0..SEGMENTS_MAX {
        let count = descriptors.len();
        let mut next = None;
        for (index, (address, word)) in descriptors.iter().copied().enumerate() {
            let len = word as u32 as usize;
            // Reserved, and the subtypes that name no address of the host.
            if word >> 32 & 0x00ff_ffff != 0 || word >> 56 & 0xf != 0 {
                return Err(Status::SGL_TYPE_INVALID);
            }
            match word >> 60 {
                0 => pieces.push((address, len)),
                // Segments come last, and not in a last segment.
                kind @ (2 | 3) if index + 1 == count && !last => next = Some((address, len, kind)),
                2 | 3 => return Err(Status::SGL_SEGMENT_INVALID),
                _ => return Err(Status::SGL_TYPE_INVALID),
            }
        }
        let Some((address, len, kind)) = next else {
            let total: usize = pieces.iter().map(|&(_, len)| len).sum();
            return if total == len_bytes { Ok(pieces) } else { Err(Status::SGL_LENGTH_INVALID) };
        };
        if len == 0 || !len.is_multiple_of(BYTES) {
            return Err(Status::SGL_SEGMENT_INVALID);
        }
        last = kind == 3;
        let mut bytes = vec![0; len];
        prp::read(pool, address, &mut bytes)?;
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
        descriptors =
            bytes.chunks_exact(BYTES).map(|it| (word(&it[..8]), word(&it[8..]))).collect();
    }
    Err(Status::SGL_SEGMENT_INVALID)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::PoolOptions;

    #[test]
    fn each_wrong_descriptor_is_refused_with_its_status() {
        let pool = DmaPool::new(PoolOptions::frames(1)).unwrap();
        let at = pool.iova().0;
        let put = |words: &[u64]| {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            prp::write(&pool, at, &bytes).unwrap();
        };
        let segment = |kind: u64, descriptors: u64| kind << 60 | (descriptors * 16);
        assert_eq!(walk(&pool, at, 512, 512), Ok(vec![(at, 512)]));
        assert_eq!(walk(&pool, at, 512, 513), Err(Status::SGL_LENGTH_INVALID));
        assert_eq!(walk(&pool, at, 1 << 56 | 512, 512), Err(Status::SGL_TYPE_INVALID));
        assert_eq!(walk(&pool, at, 1 << 32 | 512, 512), Err(Status::SGL_TYPE_INVALID));
        assert_eq!(walk(&pool, at, 4 << 60 | 512, 512), Err(Status::SGL_TYPE_INVALID));
        assert_eq!(walk(&pool, at, 3 << 60 | 15, 512), Err(Status::SGL_SEGMENT_INVALID));
        assert_eq!(walk(&pool, at, 3 << 60, 512), Err(Status::SGL_SEGMENT_INVALID));
        assert_eq!(walk(&pool, 0, segment(3, 1), 512), Err(Status::DATA_TRANSFER_ERROR));
        put(&[at, 512, at + 512, 512]);
        assert_eq!(walk(&pool, at, segment(3, 2), 1024), Ok(vec![(at, 512), (at + 512, 512)]));
        put(&[at, segment(2, 1)]);
        assert_eq!(
            walk(&pool, at, segment(2, 1), 512),
            Err(Status::SGL_SEGMENT_INVALID),
            "a circle"
        );
        assert_eq!(walk(&pool, at, segment(3, 1), 512), Err(Status::SGL_SEGMENT_INVALID), "last");
        put(&[at, segment(3, 1), at, 512]);
        assert_eq!(walk(&pool, at, segment(2, 2), 512), Err(Status::SGL_SEGMENT_INVALID), "first");
    }
}
