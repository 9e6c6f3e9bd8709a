//! What the tests of the C face share: a context with a volume, iocbs, a read that does not end.
#![allow(dead_code, clippy::allow_attributes, reason = "each test program uses a part of it")]

use std::ffi::{CString, c_void};
use std::ptr::{null, null_mut};
use std::time::Duration;

use uaio::exports::{uaio_destroy, uaio_getevents, uaio_open, uaio_setup, uaio_submit};
use uaio::layout::{F_VOLUME, UaioEvent, UaioIocb, opcode};

/// A context with a volume of 1 MiB, number 1; destroyed at the end.
pub(crate) struct Set(pub(crate) u64);

impl Set {
    pub(crate) fn up(events: u32) -> Self {
        let mut context = 0;
        assert_eq!(uaio_setup(events, &raw mut context), 0);
        let url = CString::new("ram:1M").unwrap();
        assert_eq!(uaio_open(context, url.as_ptr(), 0, 1 << 20), 1);
        Self(context)
    }

    pub(crate) fn submit(&self, iocbs: &mut [*mut UaioIocb]) -> i32 {
        uaio_submit(self.0, iocbs.len() as i64, iocbs.as_mut_ptr())
    }

    pub(crate) fn events(
        &self,
        min: i64,
        max: usize,
        timeout: Option<Duration>,
    ) -> Result<Vec<UaioEvent>, i32> {
        let mut events = vec![UaioEvent { data: 0, obj: null_mut(), res: 0, res2: 0 }; max];
        let timeout = timeout.map(timespec);
        let timeout = timeout.as_ref().map_or(null(), std::ptr::from_ref);
        match uaio_getevents(self.0, min, max as i64, events.as_mut_ptr(), timeout) {
            count @ 0.. => Ok(events.drain(..count as usize).collect()),
            errno => Err(-errno),
        }
    }

    pub(crate) fn data(&self, min: i64, max: usize) -> Vec<u64> {
        let events = self.events(min, max, Some(Duration::from_secs(20))).unwrap();
        let mut data: Vec<u64> = events.iter().map(|event| event.data).collect();
        data.sort_unstable();
        data
    }
}

impl Drop for Set {
    fn drop(&mut self) {
        uaio_destroy(self.0);
    }
}

pub(crate) fn timespec(duration: Duration) -> libc::timespec {
    libc::timespec { tv_sec: duration.as_secs() as i64, tv_nsec: duration.subsec_nanos().into() }
}

pub(crate) fn iocb(data: u64, opcode: u16) -> UaioIocb {
    UaioIocb {
        data,
        opcode,
        priority: 0,
        fd: 1,
        buf: null_mut(),
        nbytes: 0,
        offset: 0,
        flags: 0,
        resfd: 0,
        timeout_ms: 0,
        status: 0,
        key: 0,
        notify: null(),
        op_flags: 0,
        reserved: 0,
    }
}

pub(crate) fn noop(data: u64) -> UaioIocb {
    iocb(data, opcode::NOOP)
}

/// A read of the volume.
pub(crate) fn read(data: u64, buffer: &mut [u8]) -> UaioIocb {
    let buf = buffer.as_mut_ptr().cast::<c_void>();
    UaioIocb { buf, nbytes: buffer.len() as u64, flags: F_VOLUME, ..iocb(data, opcode::PREAD) }
}

/// A pipe, and a read of it that waits for something to be written.
pub(crate) struct Endless {
    pub(crate) ends: [i32; 2],
    pub(crate) byte: Box<[u8; 1]>,
}

impl Endless {
    pub(crate) fn new() -> Self {
        use std::os::fd::IntoRawFd;
        let (read, write) = std::io::pipe().unwrap();
        Self { ends: [read.into_raw_fd(), write.into_raw_fd()], byte: Box::new([0]) }
    }

    pub(crate) fn read(&mut self, data: u64) -> UaioIocb {
        let buf = self.byte.as_mut_ptr().cast::<c_void>();
        UaioIocb { fd: self.ends[0], buf, nbytes: 1, ..iocb(data, opcode::PREAD) }
    }

    pub(crate) fn end(&self) {
        let link = format!("/proc/self/fd/{}", self.ends[1]);
        std::fs::write(link, b"x").unwrap();
    }
}

pub(crate) const NOT_MAPPED: *mut UaioIocb =
    std::ptr::without_provenance_mut(0xffff_8000_0000_0000);
