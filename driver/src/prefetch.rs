//! Hints to the processor about what is read soon.
#![expect(unsafe_code, reason = "the instruction is reached by an intrinsic")]

/// Has the processor fetch the cache line at an address while the caller goes on. A hint: it changes nothing, may
/// do nothing, and any address will do. Worth it a few hundred instructions before the line is read, when it is hardly
/// in the cache.
#[inline]
pub fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch does not access memory and cannot fault, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
