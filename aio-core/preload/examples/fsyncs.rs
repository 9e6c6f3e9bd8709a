//! Sixteen writers that each write 4 KiB at a random place of a file and have it synced, again and again: how many syncs
//! a second Linux AIO does by `IOCB_CMD_FSYNC`, or io_uring. Run by `cargo ci bench libaio`, with the preload library and
//! without; it makes its system calls by `syscall(2)`, as programs do that go without libaio.
//!
//! `fsyncs libaio|io_uring FILE`
#![expect(unsafe_code, reason = "iocbs and entries of a ring take addresses")]

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, types};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const DEPTH: usize = 16;
const BLOCK: usize = 4096;
const TIME: Duration = Duration::from_secs(2);

/// `struct iocb` of `linux/aio_abi.h`, little endian.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    reqprio: i16,
    fildes: u32,
    buf: u64,
    nbytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    resfd: u32,
}
const _: () = assert!(size_of::<Iocb>() == 64);

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    obj: u64,
    res: i64,
    res2: i64,
}

const PWRITE: u16 = 1;
const FSYNC: u16 = 2;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(engine), Some(path)) = (args.next(), args.next()) else {
        return Err("usage: fsyncs libaio|io_uring FILE".into());
    };
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let syncs = match engine.as_str() {
        "libaio" => by_aio(&file)?,
        "io_uring" => by_ring(&file)?,
        _ => return Err(format!("no engine {engine}").into()),
    };
    println!("{:.1}", syncs as f64 / TIME.as_secs_f64());
    Ok(())
}

/// Where the blocks go that are written one after the other.
struct Places {
    state: u64,
    blocks: u64,
}

impl Places {
    fn new(file: &File) -> Result<Self> {
        let blocks = file.metadata()?.len() / BLOCK as u64;
        if blocks == 0 {
            return Err("the file is too small".into());
        }
        Ok(Self { state: 1, blocks })
    }

    fn next(&mut self) -> u64 {
        // The constants of MMIX.
        self.state = self.state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.state >> 33) % self.blocks * BLOCK as u64
    }
}

/// What a system call returned.
fn checked(returned: i64) -> Result<usize> {
    usize::try_from(returned).map_err(|_| std::io::Error::last_os_error().into())
}

fn by_aio(file: &File) -> Result<u64> {
    let mut places = Places::new(file)?;
    let block = [7_u8; BLOCK];
    let mut context = 0_u64;
    // SAFETY: the context is a word of ours.
    checked(unsafe { libc::syscall(libc::SYS_io_setup, DEPTH as i64, &raw mut context) })?;
    let write = |places: &mut Places, slot: usize| Iocb {
        data: slot as u64,
        opcode: PWRITE,
        fildes: file.as_raw_fd() as u32,
        buf: block.as_ptr() as u64,
        nbytes: BLOCK as u64,
        offset: places.next() as i64,
        ..Iocb::default()
    };
    let mut iocbs: Vec<Iocb> = (0..DEPTH).map(|slot| write(&mut places, slot)).collect();
    let mut ready: Vec<*mut Iocb> = iocbs.iter_mut().map(std::ptr::from_mut).collect();
    let mut events = [Event::default(); DEPTH];
    let (mut syncs, mut in_flight, started) = (0, 0, Instant::now());
    while in_flight > 0 || !ready.is_empty() {
        while !ready.is_empty() {
            let (count, list) = (ready.len() as i64, ready.as_mut_ptr());
            // SAFETY: the list has that many iocbs, which stay where they are until their events, as the block does.
            let taken =
                checked(unsafe { libc::syscall(libc::SYS_io_submit, context, count, list) })?;
            in_flight += taken;
            ready.drain(..taken);
        }
        let (list, most) = (events.as_mut_ptr(), DEPTH as i64);
        let forever = std::ptr::null_mut::<libc::timespec>();
        // SAFETY: there is room for that many events.
        let got = checked(unsafe {
            libc::syscall(libc::SYS_io_getevents, context, 1_i64, most, list, forever)
        })?;
        in_flight -= got;
        let going_on = started.elapsed() < TIME;
        for event in &events[..got] {
            let slot = event.data as usize;
            match iocbs[slot].opcode {
                PWRITE if event.res == BLOCK as i64 => {
                    let sync = Iocb {
                        data: slot as u64,
                        opcode: FSYNC,
                        fildes: file.as_raw_fd() as u32,
                        ..Iocb::default()
                    };
                    iocbs[slot] = sync;
                }
                FSYNC if event.res == 0 => {
                    syncs += u64::from(going_on);
                    iocbs[slot] = write(&mut places, slot);
                }
                _ => return Err(format!("a request ended with {}", event.res).into()),
            }
            if going_on {
                ready.push(&raw mut iocbs[slot]);
            }
        }
    }
    // SAFETY: nothing is in flight.
    checked(unsafe { libc::syscall(libc::SYS_io_destroy, context) })?;
    Ok(syncs)
}

fn by_ring(file: &File) -> Result<u64> {
    let mut places = Places::new(file)?;
    let block = [7_u8; BLOCK];
    let fd = types::Fd(file.as_raw_fd());
    let mut ring = IoUring::new(DEPTH as u32)?;
    // What each slot does next; its last bit of user data says what it did.
    let mut ready: Vec<(usize, bool)> = (0..DEPTH).map(|slot| (slot, false)).collect();
    let (mut syncs, mut in_flight, started) = (0, 0, Instant::now());
    while in_flight > 0 || !ready.is_empty() {
        for (slot, sync) in ready.drain(..) {
            let entry = if sync {
                opcode::Fsync::new(fd).build()
            } else {
                opcode::Write::new(fd, block.as_ptr(), BLOCK as u32).offset(places.next()).build()
            };
            // SAFETY: the block stays where it is until all is done.
            unsafe {
                ring.submission().push(&entry.user_data((slot * 2 + usize::from(sync)) as u64))
            }?;
            in_flight += 1;
        }
        ring.submit_and_wait(1)?;
        let going_on = started.elapsed() < TIME;
        for entry in ring.completion() {
            let (slot, sync) = (entry.user_data() as usize / 2, entry.user_data() % 2 == 1);
            if entry.result() != if sync { 0 } else { BLOCK as i32 } {
                return Err(format!("a request ended with {}", entry.result()).into());
            }
            in_flight -= 1;
            syncs += u64::from(sync && going_on);
            if going_on {
                ready.push((slot, !sync));
            }
        }
    }
    Ok(syncs)
}
