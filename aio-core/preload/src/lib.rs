//! libaio and POSIX AIO for programs as they are: `LD_PRELOAD=libuaio_preload.so PROGRAM`, or the same library in place
//! of `libaio.so.1`.

mod end;
mod files;
mod futex;
mod libaio;
mod number;
mod own;
mod posix;
mod real;
mod serve;
mod user;
mod versions;

/// How many requests this library has served in this process.
#[expect(unsafe_code, reason = "a symbol is exported by its name")]
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub extern "C" fn uaio_preload_requests() -> u64 {
    serve::process::running().map_or(0, |service| service.counters.requests())
}
