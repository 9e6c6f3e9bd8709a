//! Names that have several versions, or a version that a program asks for.
//!
//! A version of a symbol is given where the symbol is defined, in assembly; so each of these is a jump. The other names of
//! libaio have one version, which the version script of the link gives (`versions.map`).
#![expect(unsafe_code, reason = "assembly that defines symbols")]

/// Defines `$name@$version` (or `@@`, for the one that is linked with today) as a jump to `$to`.
macro_rules! version {
    ($alias:literal, $versioned:literal, $to:literal) => {
        #[cfg(target_arch = "x86_64")]
        std::arch::global_asm!(
            concat!(".globl ", $alias),
            concat!(".type ", $alias, ", @function"),
            concat!($alias, ":"),
            concat!("jmp ", $to, "@PLT"),
            concat!(".size ", $alias, ", . - ", $alias),
            concat!(".symver ", $alias, ", ", $versioned, ", remove"),
        );
        #[cfg(target_arch = "aarch64")]
        std::arch::global_asm!(
            concat!(".globl ", $alias),
            concat!(".type ", $alias, ", %function"),
            concat!($alias, ":"),
            concat!("b ", $to),
            concat!(".size ", $alias, ", . - ", $alias),
            concat!(".symver ", $alias, ", ", $versioned, ", remove"),
        );
    };
}

version!("uaio_v_cancel_new", "io_cancel@@LIBAIO_0.4", "uaio_io_cancel");
version!("uaio_v_cancel_old", "io_cancel@LIBAIO_0.1", "uaio_io_cancel_old");
version!("uaio_v_getevents_new", "io_getevents@@LIBAIO_0.4", "uaio_io_getevents");
version!("uaio_v_getevents_old", "io_getevents@LIBAIO_0.1", "uaio_io_getevents_old");
version!("uaio_v_queue_wait_new", "io_queue_wait@@LIBAIO_0.4", "uaio_io_queue_wait");
version!("uaio_v_queue_wait_old", "io_queue_wait@LIBAIO_0.1", "uaio_io_queue_wait");
