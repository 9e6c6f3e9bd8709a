//! Memory that devices read and write: one pool of frames, mapped once.
//!
//! A pool is one mapping, made of hugepages where there are some and of ordinary pages where not.
//! It is mapped for the IOMMU once and registered with io_uring once; its `vm-memory` address *is*
//! the IOVA. It is given out as frames of [`FRAME_SIZE`] bytes ([`DmaBuf`]) and, at start, as
//! contiguous regions for rings ([`DmaRegion`]).
//!
//! The pool stays mapped for the device for as long as it lives, and the device is not trusted: a
//! frame may change under our hands. So nothing here gives out `&[u8]`: frames are copied in and out
//! through volatile slices, or looked at as atomics.
#![expect(
    unsafe_code,
    reason = "reference counts that keep a mapping alive; madvise; atomics over mapped memory"
)]

use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

mod frame_set;

pub use frame_set::FrameSet;

use vm_memory::{GuestAddress, GuestMemoryRegion, GuestRegionMmap, MmapRegion, VolatileSlice};

use crate::error::DeviceError;
use crate::prefetch;

/// Size of a frame in bytes: the page of the cache, the memory page of NVMe (CC.MPS = 0), and the
/// smallest page of the IOMMU.
pub const FRAME_SIZE: usize = 4096;

const HUGE_PAGE_SIZE: usize = 2 << 20;
/// More handles of a frame than this end the process. Half of what the count holds: the other half is for
/// threads that add one before the first of them has ended it.
const HANDLES_MAX: u32 = u32::MAX / 2;
const WORDS_PER_FRAME: usize = FRAME_SIZE / 8;

/// An I/O virtual address: where a device finds the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Iova(pub u64);

/// How a pool is to be made.
#[derive(Clone, Copy, Debug)]
pub struct PoolOptions {
    /// How many frames, at least 1.
    pub frames: usize,
    /// The IOVA of the first byte, 4096-aligned. A device that maps the pool checks it against its
    /// own aperture. The default, 4 GiB, is above the interrupt window of x86 and inside the 39 bits
    /// of the smallest Intel IOMMU.
    pub iova: Iova,
    /// Whether to try hugepages first. Without any, ordinary pages are taken silently.
    pub hugepages: bool,
    /// The NUMA node that the memory should be of: that of the drive
    /// ([`vfio::numa_node`](crate::vfio::numa_node)). When it has no more, another node's is taken.
    pub numa_node: Option<u32>,
}

impl PoolOptions {
    /// `frames` frames at the default address, in hugepages if there are some, of any node.
    pub fn frames(frames: usize) -> Self {
        Self { frames, iova: Iova(4 << 30), hugepages: true, numa_node: None }
    }
}

/// Which frames are free, as a bitmap with a hint. Only control paths and start-up take it: whoever
/// moves data takes the frames it needs when it starts and keeps them.
struct FreeMap {
    /// A set bit is a free frame.
    words: Vec<u64>,
    free: usize,
    hint: usize,
}

impl FreeMap {
    fn new(frames: usize) -> Self {
        let mut words = vec![u64::MAX; frames.div_ceil(64)];
        if !frames.is_multiple_of(64) {
            words[frames / 64] = (1 << (frames % 64)) - 1;
        }
        Self { words, free: frames, hint: 0 }
    }

    fn is_free(&self, index: usize) -> bool {
        self.words[index / 64] >> (index % 64) & 1 == 1
    }

    fn take_one(&mut self) -> Option<usize> {
        if self.free == 0 {
            return None;
        }
        let count = self.words.len();
        let word = (self.hint..count).chain(0..self.hint).find(|&word| self.words[word] != 0)?;
        self.hint = word;
        let index = word * 64 + self.words[word].trailing_zeros() as usize;
        self.take(index);
        Some(index)
    }

    /// First fit from the end, so that rings stay away from the frames.
    fn take_run(&mut self, frames: usize) -> Option<usize> {
        let mut run = 0;
        for index in (0..self.words.len() * 64).rev() {
            run = if self.is_free(index) { run + 1 } else { 0 };
            if run == frames {
                (index..index + frames).for_each(|index| self.take(index));
                return Some(index);
            }
        }
        None
    }

    fn take(&mut self, index: usize) {
        self.words[index / 64] &= !(1 << (index % 64));
        self.free -= 1;
    }

    fn put(&mut self, index: usize) {
        assert!(!self.is_free(index), "frame {index} was freed twice");
        self.words[index / 64] |= 1 << (index % 64);
        self.free += 1;
    }
}

struct PoolInner {
    region: GuestRegionMmap,
    /// First byte of the mapping; constant, kept beside the region to save the look-ups.
    base: NonNull<u8>,
    huge: bool,
    frames: usize,
    /// References to each frame; 0 for one that is free.
    references: Box<[AtomicU32]>,
    free: Mutex<FreeMap>,
}

// SAFETY: `base` points into the mapping that `region` owns, which lives as long as `self` and is
// only reached through volatile accesses and atomics.
unsafe impl Send for PoolInner {}
// SAFETY: as for Send; every field is `Sync` but `base`, which is constant.
unsafe impl Sync for PoolInner {}

/// A pool of frames. Cloning it is another handle to the same memory; the memory goes when the last
/// handle, frame and region are gone.
#[derive(Clone)]
pub struct DmaPool {
    inner: Arc<PoolInner>,
}

impl DmaPool {
    /// Maps the memory: hugepages if asked for and there, ordinary pages if not. The mapping is not
    /// inherited by a forked child (`MADV_DONTFORK`).
    ///
    /// # Errors
    ///
    /// [`DeviceError::Invalid`] for no frames or a bad address, [`DeviceError::NoMemory`].
    pub fn new(options: PoolOptions) -> Result<Self, DeviceError> {
        let PoolOptions { frames, iova, hugepages, numa_node } = options;
        if frames == 0 || frames > u32::MAX as usize / 2 {
            return Err(DeviceError::Invalid(format!("a pool of {frames} frames is not possible")));
        }
        if !iova.0.is_multiple_of(FRAME_SIZE as u64) {
            return Err(DeviceError::Invalid(format!("IOVA {:#x} is not 4096-aligned", iova.0)));
        }
        let len_bytes = frames * FRAME_SIZE;
        // Whole hugepages: Linux (6.7 and later) then lays the mapping on the boundary of one, and io_uring,
        // which wants all of a buffer in folios of one size, takes the pool as hugepages and not as so many
        // pieces of 4 KiB. What is beyond the last frame is never touched.
        let mapped_bytes = match len_bytes {
            HUGE_PAGE_SIZE.. => len_bytes.next_multiple_of(HUGE_PAGE_SIZE),
            _ => len_bytes,
        };
        let (region, huge) = map(mapped_bytes, hugepages)
            .map_err(|source| DeviceError::NoMemory { bytes: len_bytes as u64, source })?;
        let base = NonNull::new(region.as_ptr()).expect("a mapping is never at address zero");
        advise(base, mapped_bytes, libc::MADV_DONTFORK)
            .map_err(|source| DeviceError::Os { what: "madvise(MADV_DONTFORK)".into(), source })?;
        if let Some(node) = numa_node {
            prefer_node(base, mapped_bytes, node).map_err(|source| DeviceError::Os {
                what: format!("mbind to node {node}"),
                source,
            })?;
        }
        if !huge {
            // Advice only: a kernel without transparent hugepages says EINVAL and nothing is lost.
            let _ = advise(base, mapped_bytes, libc::MADV_HUGEPAGE);
        }
        let region = GuestRegionMmap::new(region, GuestAddress(iova.0))
            .ok_or_else(|| DeviceError::Invalid(format!("IOVA {:#x} is too high", iova.0)))?;
        Ok(Self {
            inner: Arc::new(PoolInner {
                region,
                base,
                huge,
                frames,
                references: (0..frames).map(|_| AtomicU32::new(0)).collect(),
                free: Mutex::new(FreeMap::new(frames)),
            }),
        })
    }

    /// Takes one frame; `None` when all are taken. Its contents are whatever the last owner left.
    pub fn take(&self) -> Option<DmaBuf> {
        let index = self.lock().take_one()?;
        self.inner.references[index].store(1, Ordering::Relaxed);
        // A live frame holds one strong reference to the pool, whatever the number of its handles.
        let pool = Arc::into_raw(Arc::clone(&self.inner)).cast_mut();
        let pool = NonNull::new(pool).expect("an Arc is never null");
        Some(DmaBuf { pool, index: index as u32 })
    }

    /// Takes `frames` frames that follow each other in memory and in IOVA, zeroed: for rings, at
    /// start. `None` when there is no such run.
    pub fn take_region(&self, frames: usize) -> Option<DmaRegion> {
        if frames == 0 {
            return None;
        }
        let first = self.lock().take_run(frames)?;
        let region = DmaRegion { pool: self.clone(), first, frames };
        region.words().iter().for_each(|word| word.store(0, Ordering::Relaxed));
        Some(region)
    }

    /// How many frames the pool has.
    pub fn frames(&self) -> usize {
        self.inner.frames
    }

    /// How many frames are free.
    pub fn free_frames(&self) -> usize {
        self.lock().free
    }

    /// Size in bytes.
    pub fn len_bytes(&self) -> usize {
        self.inner.frames * FRAME_SIZE
    }

    /// The IOVA of the first byte.
    pub fn iova(&self) -> Iova {
        Iova(self.inner.region.start_addr().0)
    }

    /// The first byte in this process: for mapping it (VFIO) and registering it (io_uring), in the
    /// modules that may.
    pub fn as_ptr(&self) -> *mut u8 {
        self.inner.base.as_ptr()
    }

    /// Whether it lies in hugepages.
    pub fn is_huge(&self) -> bool {
        self.inner.huge
    }

    /// Whether two handles are of one pool.
    pub fn same_as(&self, other: &DmaPool) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Whether `frame` is of this pool.
    #[inline]
    pub fn owns(&self, frame: &DmaBuf) -> bool {
        std::ptr::eq(Arc::as_ptr(&self.inner), frame.pool.as_ptr())
    }

    /// The pool's mark, to compare frames with.
    pub fn mark(&self) -> PoolMark {
        PoolMark(Arc::as_ptr(&self.inner))
    }

    /// Tells the processor that the frame of this number is about to be read: its first lines and its
    /// reference count are fetched side by side, while the caller goes on. Worth it before whatever would make the
    /// loads after it wait: another miss, an atomic operation. A hint: it changes nothing, may do nothing,
    /// and any number will do.
    #[inline]
    pub fn prefetch(&self, index: u32) {
        /// The hardware's own prefetcher takes over where these end.
        const LINES: usize = 16;
        prefetch(self.inner.references.as_ptr().wrapping_add(index as usize));
        let first = self.as_ptr().wrapping_add(index as usize * FRAME_SIZE).cast_const();
        for line in 0..LINES {
            prefetch(first.wrapping_add(line * 64));
        }
    }

    /// The memory as a `vm-memory` region whose guest address is the IOVA: what a device model sees.
    pub fn region(&self) -> &GuestRegionMmap {
        &self.inner.region
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, FreeMap> {
        // The map is consistent between any two statements that can panic.
        self.inner.free.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl fmt::Debug for DmaPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaPool")
            .field("frames", &self.frames())
            .field("iova", &self.iova())
            .field("huge", &self.is_huge())
            .finish()
    }
}

fn map(len_bytes: usize, hugepages: bool) -> io::Result<(MmapRegion, bool)> {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    if hugepages && len_bytes.is_multiple_of(HUGE_PAGE_SIZE) {
        // Without MAP_NORESERVE: the hugepages are reserved now or the call fails now.
        if let Ok(region) = MmapRegion::build(None, len_bytes, prot, flags | libc::MAP_HUGETLB) {
            return Ok((region, true));
        }
    }
    match MmapRegion::build(None, len_bytes, prot, flags) {
        Ok(region) => Ok((region, false)),
        Err(vm_memory::mmap::MmapRegionError::Mmap(error)) => Err(error),
        Err(other) => Err(io::Error::other(other.to_string())),
    }
}

fn advise(base: NonNull<u8>, len_bytes: usize, advice: libc::c_int) -> io::Result<()> {
    // SAFETY: the range is exactly one mapping that the caller owns; neither advice used here
    // (DONTFORK, HUGEPAGE) changes its contents.
    match unsafe { libc::madvise(base.as_ptr().cast(), len_bytes, advice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has the pages of a mapping come from a NUMA node, as long as it has some (mbind(2), MPOL_PREFERRED).
fn prefer_node(base: NonNull<u8>, len_bytes: usize, node: u32) -> io::Result<()> {
    /// As many nodes as the mask has bits, which is as many as Linux has on any machine.
    const NODES: u32 = 1024;
    if node >= NODES {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut mask = [0u64; NODES as usize / 64];
    mask[node as usize / 64] = 1 << (node % 64);
    // The kernel reads one bit fewer than it is told (mm/mempolicy.c, get_nodes).
    let max_node = libc::c_ulong::from(NODES + 1);
    // SAFETY: the range is exactly one mapping that the caller owns, of which only where its pages will
    // come from changes; the mask is readable for `max_node - 1` bits.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            base.as_ptr(),
            len_bytes,
            libc::MPOL_PREFERRED,
            mask.as_ptr(),
            max_node,
            0,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Tells the frames of one pool from those of others: [`DmaPool::owns`] in one comparison, for data
/// paths. Means something while the pool lives; whoever keeps one keeps a handle of the pool beside it.
#[derive(Clone, Copy)]
pub struct PoolMark(*const PoolInner);

// SAFETY: the address is only compared.
unsafe impl Send for PoolMark {}
// SAFETY: as above.
unsafe impl Sync for PoolMark {}

impl PoolMark {
    /// Whether `frame` is of the pool.
    #[inline]
    pub fn owns(self, frame: &DmaBuf) -> bool {
        std::ptr::eq(self.0, frame.pool.as_ptr())
    }
}

impl fmt::Debug for PoolMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PoolMark")
    }
}

/// A handle to one frame of a pool.
///
/// There may be several handles to a frame ([`share`](DmaBuf::share)): a page under writeback shares
/// its frame with the request, a reader pins the frame it copies from. The rule is by ownership, not
/// by lock: a frame is written by nobody but its only handle, or by the device that a read request
/// hands it to. Breaking the rule tears data, but is not undefined: all accesses are volatile.
///
/// # Invariants
///
/// `index` is below the number of frames, the frame's reference count is at least 1 while a handle
/// lives, and a live frame holds one strong reference to the pool.
///
/// 12 bytes, 2-aligned: whoever caches has one for each page.
#[repr(C, packed(2))]
pub struct DmaBuf {
    pool: NonNull<PoolInner>,
    index: u32,
}

// SAFETY: a handle is a counted reference to a frame of a pool that is Send and Sync.
unsafe impl Send for DmaBuf {}
// SAFETY: as for Send; `&DmaBuf` gives volatile and atomic access only.
unsafe impl Sync for DmaBuf {}

impl DmaBuf {
    #[inline]
    fn pool(&self) -> &PoolInner {
        // SAFETY: by the type's invariant this frame holds a strong reference to the pool.
        unsafe { { self.pool }.as_ref() }
    }

    #[inline]
    fn references(&self) -> &AtomicU32 {
        &self.pool().references[self.index as usize]
    }

    /// One more handle to the same frame.
    #[must_use]
    #[inline]
    pub fn share(&self) -> DmaBuf {
        // Relaxed: like Arc's, the new handle comes from one that is alive.
        let handles = self.references().fetch_add(1, Ordering::Relaxed);
        if handles > HANDLES_MAX {
            // Only handles that were forgotten, billions of them, come to this: like Arc, rather end than
            // let the count wrap to a frame that looks free. Not a panic, which can be caught.
            std::process::abort();
        }
        DmaBuf { pool: self.pool, index: self.index }
    }

    /// Whether this is not the only handle. A `false` stays true until this handle is shared; a
    /// `true` may be old.
    #[inline]
    pub fn is_shared(&self) -> bool {
        // At least Acquire: pairs with `release`, so what the other handle's owner read from the
        // frame happened before we write it. SeqCst, here and there, because a cache decides by it
        // whether to wait, against a thread that gives its handle up and then looks who waits.
        self.references().load(Ordering::SeqCst) != 1
    }

    /// Gives this handle up. The last one of a frame is returned as its only handle, exactly once
    /// however many threads race: whoever keeps frames of its own puts it back where it belongs.
    #[must_use = "the last handle is the frame: dropping it returns the frame to the pool"]
    #[inline]
    pub fn release(self) -> Option<DmaBuf> {
        // At least AcqRel: every access through the other handles happens before the frame is used
        // again. SeqCst: see `is_shared`.
        if self.references().fetch_sub(1, Ordering::SeqCst) == 1 {
            self.references().store(1, Ordering::Relaxed);
            return Some(self);
        }
        std::mem::forget(self);
        None
    }

    /// The frame's number in its pool.
    #[inline]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Where a device finds the frame.
    #[inline]
    pub fn iova(&self) -> Iova {
        Iova(self.pool().region.start_addr().0 + self.index as u64 * FRAME_SIZE as u64)
    }

    /// The frame's first byte in this process, for system calls that take an address, in the modules
    /// that may. Valid for [`FRAME_SIZE`] bytes while a handle lives.
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        // SAFETY: INVARIANT index < frames, so the offset stays inside the mapping.
        unsafe { self.pool().base.as_ptr().add(self.index as usize * FRAME_SIZE) }
    }

    /// The frame as a volatile slice of [`FRAME_SIZE`] bytes.
    #[inline]
    pub fn slice(&self) -> VolatileSlice<'_> {
        // SAFETY: the pointer is valid for FRAME_SIZE bytes for as long as `self` is borrowed.
        unsafe { VolatileSlice::new(self.as_ptr(), FRAME_SIZE) }
    }

    /// The frame as little words that may change at any time, without a copy.
    #[inline]
    pub fn words(&self) -> &[AtomicU64; WORDS_PER_FRAME] {
        // SAFETY: the frame is 4096-aligned, readable and writable, FRAME_SIZE bytes long and alive
        // while `self` is borrowed; the memory is only reached atomically, volatilely or by a device.
        unsafe { &*self.as_ptr().cast() }
    }

    /// Copies out of the frame, from `offset` on.
    ///
    /// # Panics
    ///
    /// When the range is outside the frame.
    #[inline]
    pub fn read(&self, offset: usize, out: &mut [u8]) {
        assert!(offset <= FRAME_SIZE && out.len() <= FRAME_SIZE - offset, "outside the frame");
        self.part(offset, out.len()).copy_to(out);
    }

    /// Copies into the frame, from `offset` on.
    ///
    /// # Panics
    ///
    /// When the range is outside the frame.
    #[inline]
    pub fn write(&self, offset: usize, data: &[u8]) {
        assert!(offset <= FRAME_SIZE && data.len() <= FRAME_SIZE - offset, "outside the frame");
        self.part(offset, data.len()).copy_from(data);
    }

    /// Copies `len_bytes` of another frame into this one.
    ///
    /// # Panics
    ///
    /// When a range is outside its frame.
    #[inline]
    pub fn copy_from(&self, offset: usize, from: &DmaBuf, from_offset: usize, len_bytes: usize) {
        from.part(from_offset, len_bytes).copy_to_volatile_slice(self.part(offset, len_bytes));
    }

    /// Fills a part with zeroes.
    ///
    /// # Panics
    ///
    /// When the range is outside the frame.
    pub fn zero(&self, offset: usize, len_bytes: usize) {
        const ZEROES: [u8; FRAME_SIZE] = [0; FRAME_SIZE];
        self.write(offset, &ZEROES[..len_bytes]);
    }

    #[inline]
    fn part(&self, offset: usize, len_bytes: usize) -> VolatileSlice<'_> {
        self.slice().subslice(offset, len_bytes).expect("a range outside the frame")
    }
}

impl Drop for DmaBuf {
    fn drop(&mut self) {
        if self.references().fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        // SAFETY: INVARIANT a live frame holds one strong reference, made by `take` with
        // `Arc::into_raw`; the frame ends here, so it is taken back exactly once.
        let inner = unsafe { Arc::from_raw(self.pool.as_ptr()) };
        DmaPool { inner }.lock().put(self.index as usize);
    }
}

impl fmt::Debug for DmaBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaBuf({})", self.index())
    }
}

const _: () = assert!(size_of::<Option<DmaBuf>>() == 12);

/// Frames that follow each other in memory and in IOVA: the rings of a queue pair, PRP lists.
/// Goes back to the pool when dropped; whoever drops it has made sure the device is done with it.
pub struct DmaRegion {
    pool: DmaPool,
    first: usize,
    frames: usize,
}

impl DmaRegion {
    /// Where a device finds the first byte.
    pub fn iova(&self) -> Iova {
        Iova(self.pool.iova().0 + (self.first * FRAME_SIZE) as u64)
    }

    /// Size in bytes.
    pub fn len_bytes(&self) -> usize {
        self.frames * FRAME_SIZE
    }

    /// The region as 64-bit words that the device may change at any time. Values are in the
    /// machine's byte order; device structures are little-endian.
    #[inline]
    pub fn words(&self) -> &[AtomicU64] {
        let base = self.pool.as_ptr();
        // SAFETY: `first` is a frame of the pool, so the offset stays inside its mapping.
        let start = unsafe { base.add(self.first * FRAME_SIZE) }.cast::<AtomicU64>();
        // SAFETY: the frames are taken for this region, 4096-aligned, and mapped while `self.pool`
        // lives; the memory is only reached atomically, volatilely or by a device.
        unsafe { std::slice::from_raw_parts(start, self.len_bytes() / 8) }
    }

    /// The region as 32-bit words, as [`words`](DmaRegion::words).
    #[inline]
    pub fn half_words(&self) -> &[AtomicU32] {
        let words = self.words();
        // SAFETY: the same memory, of the same length, as words of half the size and alignment; it is
        // only reached atomically or by a device, by words of one size by whoever uses the region.
        unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len() * 2) }
    }

    /// Gives the frames up for ever, so that dropping the region does not return them: for a device
    /// that will not let go of them. The region is empty afterwards.
    pub fn leak(&mut self) {
        self.frames = 0;
    }
}

/// A power-of-two number of records of `WORDS` 64-bit words in a region: a ring, whose indexes wrap by
/// a mask, so that no index is outside and none has to be checked.
///
/// # Invariants
///
/// `mask + 1` records from `base` on lie in the region, mapped while `region` lives.
pub struct DmaRing<const WORDS: usize> {
    base: NonNull<[AtomicU64; WORDS]>,
    mask: u32,
    region: DmaRegion,
}

// SAFETY: `base` points into what `region` keeps mapped, which is Send and only reached atomically.
unsafe impl<const WORDS: usize> Send for DmaRing<WORDS> {}
// SAFETY: as for Send; `&DmaRing` gives atomics only.
unsafe impl<const WORDS: usize> Sync for DmaRing<WORDS> {}

impl<const WORDS: usize> DmaRing<WORDS> {
    /// A ring of `records` in `region`.
    ///
    /// # Panics
    ///
    /// When `records` is no power of two, or the region is too small.
    pub fn new(region: DmaRegion, records: usize) -> Self {
        assert!(records.is_power_of_two(), "{records} records");
        assert!(records * WORDS * 8 <= region.len_bytes(), "{records} records in {region:?}");
        let base = NonNull::from(&region.words()[0]).cast();
        Self { base, mask: (records - 1) as u32, region }
    }

    /// The record that `index` wraps to.
    #[inline]
    pub fn at(&self, index: u32) -> &[AtomicU64; WORDS] {
        // SAFETY: INVARIANT the masked index is that of a record in the region.
        let record = unsafe { self.base.add((index & self.mask) as usize) };
        // SAFETY: it is aligned for words, mapped while `self` is borrowed, and only reached atomically
        // or by a device.
        unsafe { record.as_ref() }
    }

    /// The number of records, less one.
    #[inline]
    pub fn mask(&self) -> u32 {
        self.mask
    }

    /// All records.
    #[inline]
    pub fn records(&self) -> &[[AtomicU64; WORDS]] {
        // SAFETY: INVARIANT so many records are in the region, mapped while `self` is borrowed.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.mask as usize + 1) }
    }

    /// Where a device finds the first record.
    pub fn iova(&self) -> Iova {
        self.region.iova()
    }

    /// Gives the frames up for ever: see [`DmaRegion::leak`].
    pub fn leak(&mut self) {
        self.region.leak();
    }
}

impl<const WORDS: usize> fmt::Debug for DmaRing<WORDS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaRing({} in {:?})", self.mask + 1, self.region)
    }
}

impl Drop for DmaRegion {
    fn drop(&mut self) {
        let mut free = self.pool.lock();
        (self.first..self.first + self.frames).for_each(|index| free.put(index));
    }
}

impl fmt::Debug for DmaRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaRegion({:?}, {} frames)", self.iova(), self.frames)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(frames: usize) -> DmaPool {
        DmaPool::new(PoolOptions::frames(frames)).unwrap()
    }

    #[test]
    fn every_frame_is_given_once_and_comes_back() {
        let pool = pool(130);
        let mut frames: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        let mut indexes: Vec<_> = frames.iter().map(DmaBuf::index).collect();
        indexes.sort_unstable();
        assert_eq!(indexes, (0..130).collect::<Vec<_>>());
        assert_eq!(pool.free_frames(), 0);
        let last = frames.pop().unwrap();
        let index = last.index();
        drop(last);
        assert_eq!(pool.take().unwrap().index(), index);
        drop(frames);
        assert_eq!(pool.free_frames(), 130);
    }

    #[test]
    fn a_frame_outlives_the_last_pool_handle() {
        let frame = pool(1).take().unwrap();
        frame.write(0, b"still here");
        let mut out = [0; 10];
        frame.read(0, &mut out);
        assert_eq!(&out, b"still here");
    }

    #[test]
    fn release_returns_the_frame_to_exactly_one_of_many() {
        let pool = pool(1);
        for _ in 0..200 {
            let first = pool.take().unwrap();
            let handles: Vec<_> = (0..3).map(|_| first.share()).chain([first.share()]).collect();
            let threads: Vec<_> = handles
                .into_iter()
                .map(|handle| std::thread::spawn(move || handle.release().is_some()))
                .collect();
            let mut last = usize::from(first.release().is_some());
            last += threads.into_iter().map(|t| usize::from(t.join().unwrap())).sum::<usize>();
            assert_eq!(last, 1);
            assert_eq!(pool.free_frames(), 1);
        }
    }

    #[test]
    fn regions_are_contiguous_zeroed_and_apart_from_frames() {
        let pool = pool(8);
        let dirty = pool.take().unwrap();
        dirty.write(0, &[0xff; FRAME_SIZE]);
        drop(dirty);
        let region = pool.take_region(8).unwrap();
        assert_eq!(region.iova(), pool.iova());
        assert!(region.words().iter().all(|word| word.load(Ordering::Relaxed) == 0));
        assert!(pool.take().is_none());
        assert!(pool.take_region(1).is_none());
        drop(region);
        assert_eq!(pool.free_frames(), 8);
    }

    #[test]
    fn an_index_of_a_ring_wraps_to_a_record_of_it() {
        let pool = pool(2);
        let ring = DmaRing::<8>::new(pool.take_region(2).unwrap(), 128);
        assert_eq!((ring.mask(), ring.records().len()), (127, 128));
        ring.at(127)[7].store(7, Ordering::Relaxed);
        for index in [127, 255, u32::MAX] {
            assert_eq!(ring.at(index)[7].load(Ordering::Relaxed), 7, "{index}");
        }
        assert_eq!(ring.records()[127][7].load(Ordering::Relaxed), 7);
        assert_eq!(ring.iova(), pool.iova());
        drop(ring);
        assert_eq!(pool.free_frames(), 2);
    }

    #[test]
    fn iova_follows_the_frame() {
        let options = PoolOptions { iova: Iova(0x10_0000), ..PoolOptions::frames(4) };
        let pool = DmaPool::new(options).unwrap();
        let frame = pool.take().unwrap();
        assert_eq!(frame.iova(), Iova(0x10_0000 + u64::from(frame.index()) * 4096));
        assert!(pool.owns(&frame) && pool.mark().owns(&frame));
        let other = super::tests::pool(1);
        assert!(!other.owns(&frame) && !other.mark().owns(&frame));
    }

    /// Node 0 is on every machine; that its memory is used shows only on one with several.
    #[test]
    fn a_pool_of_a_node_is_there_and_one_of_no_node_is_refused() {
        let of =
            |node| DmaPool::new(PoolOptions { numa_node: Some(node), ..PoolOptions::frames(1) });
        match of(0) {
            Ok(pool) => assert!(pool.take().is_some()),
            // A kernel without NUMA has no such call, a container may forbid it.
            Err(error) => {
                let DeviceError::Os { source, .. } = &error else { panic!("{error}") };
                assert!(
                    matches!(source.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)),
                    "{error}"
                );
            }
        }
        let error = of(1024).unwrap_err().to_string();
        assert!(error.starts_with("mbind to node 1024: "), "{error}");
    }

    #[test]
    fn bad_options_are_refused() {
        assert!(DmaPool::new(PoolOptions::frames(0)).is_err());
        let odd = PoolOptions { iova: Iova(0x123), ..PoolOptions::frames(1) };
        assert_eq!(DmaPool::new(odd).unwrap_err().to_string(), "IOVA 0x123 is not 4096-aligned");
    }
}
