//! How C is told: `struct uaio_notify`, of one iocb or of a list.
#![expect(unsafe_code, reason = "a function of the caller's goes to another thread")]

use std::ffi::c_void;

use uaio_core::{Notify, Signal};

use crate::Errno;
use crate::layout::UaioNotify;
use crate::state::State;
use crate::user;

/// The caller's function and its argument.
struct Function(extern "C" fn(*mut c_void), *mut c_void);

// SAFETY: `uaio.h` says that it is called on another thread; the value is only passed on.
unsafe impl Send for Function {}

impl Function {
    fn call(self) {
        (self.0)(self.1);
    }
}

/// The notice; NULL for none.
pub(crate) fn notice(state: &State, notify: *const UaioNotify) -> Result<Notify, Errno> {
    if notify.is_null() {
        return Ok(Notify::None);
    }
    let UaioNotify { kind, signo, tid, fd, value, function } = user::read(notify, 0)?;
    let signal =
        |signal: std::io::Result<Signal>| signal.map(Notify::Signal).map_err(|_| Errno::INVAL);
    match kind {
        0 => Ok(Notify::None),
        1 if tid == 0 => signal(Signal::to_process(signo, value.expose_provenance())),
        1 => signal(Signal::to_thread(tid, signo, value.expose_provenance())),
        2 => {
            let function = Function(function.ok_or(Errno::FAULT)?, value);
            Ok(Notify::callback(&state.callbacks, move || function.call()))
        }
        3 => Ok(Notify::Descriptor(state.eventfd(fd)?)),
        _ => Err(Errno::INVAL),
    }
}
