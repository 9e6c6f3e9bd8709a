//! A context: its ring, how much is in progress, and who waits.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};

use super::inline::Luck;
use super::layout::{IoEvent, header};
use super::ring::Ring;
use crate::futex;
use crate::own::OwnFd;
use crate::serve::Service;
use crate::user::{self, Prober};

/// A context of a program.
#[derive(Debug)]
pub(crate) struct Context {
    id: u32,
    ring: Ring,
    /// Requests that were ever taken.
    claimed: AtomicU64,
    /// Events that were ever shown.
    shown: AtomicU64,
    /// Events that were ever put down; who holds it puts them down.
    tail: Mutex<u64>,
    pub(super) luck: Luck,
    /// Who holds it takes events out. A program that reads the ring by itself does so in one thread.
    pub(super) reader: Mutex<()>,
    /// Threads in a futex wait for `wakes`, and in a poll of `paging`.
    pub(super) waiters: AtomicU32,
    pub(super) pollers: AtomicU32,
    pub(super) wakes: AtomicU32,
    pub(super) paging: OnceLock<OwnFd>,
    dead: AtomicBool,
    /// The eventfd that iocbs named last, by the number that the program has for it, and ours.
    notice: Mutex<Option<(RawFd, Arc<OwnFd>)>>,
}

impl Context {
    fn new(id: u32, events: u32) -> io::Result<Self> {
        Ok(Self {
            id,
            ring: Ring::new(id, events)?,
            claimed: AtomicU64::new(0),
            shown: AtomicU64::new(0),
            tail: Mutex::new(0),
            luck: Luck::default(),
            reader: Mutex::new(()),
            waiters: AtomicU32::new(0),
            pollers: AtomicU32::new(0),
            wakes: AtomicU32::new(0),
            paging: OnceLock::new(),
            dead: AtomicBool::new(false),
            notice: Mutex::new(None),
        })
    }

    /// What the program calls it: the address of its ring, where it was made.
    pub(crate) fn address(&self) -> usize {
        self.ring.user_address()
    }

    /// Requests that can be in progress, or done and not taken out, at a time.
    pub(super) fn capacity(&self) -> u32 {
        self.ring.nr() - 1
    }

    /// Whether io_destroy(2) was called.
    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// Takes room for one more, if there is some.
    pub(super) fn claim(&self) -> bool {
        let mut claimed = self.claimed.load(Ordering::Relaxed);
        loop {
            // The head first: what it is behind has been shown.
            let head = self.ring.head();
            let shown = self.shown.load(Ordering::Acquire);
            let Some(in_progress) = claimed.checked_sub(shown) else {
                // Others have claimed since, and those are done already.
                claimed = self.claimed.load(Ordering::Relaxed);
                continue;
            };
            if in_progress + u64::from(self.unread(head, shown)) >= u64::from(self.capacity()) {
                return false;
            }
            let next = claimed.wrapping_add(1);
            match self.claimed.compare_exchange_weak(
                claimed,
                next,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => claimed = now,
            }
        }
    }

    /// Gives room back that was claimed for a request which was not submitted after all.
    pub(super) fn disclaim(&self) {
        self.claimed.fetch_sub(1, Ordering::AcqRel);
    }

    /// Requests in progress.
    pub(super) fn in_progress(&self) -> u64 {
        let shown = self.shown.load(Ordering::Acquire);
        self.claimed.load(Ordering::Acquire).saturating_sub(shown)
    }

    /// Waits with `wait`, which is given the word to wait on and what it was, until nothing is in progress.
    pub(super) fn wait_until_idle(&self, wait: impl Fn(&AtomicU32, u32)) {
        self.waiters.fetch_add(1, Ordering::Relaxed);
        loop {
            let seen = self.wakes.load(Ordering::Acquire);
            // Pairs with the fence in `wake`.
            fence(Ordering::SeqCst);
            if self.in_progress() == 0 {
                break;
            }
            wait(&self.wakes, seen);
        }
        self.waiters.fetch_sub(1, Ordering::Relaxed);
    }

    fn unread(&self, head: u32, shown: u64) -> u32 {
        let nr = self.ring.nr();
        let tail = (shown % u64::from(nr)) as u32;
        (tail + nr - head) % nr
    }

    /// Events that can be taken out.
    pub(super) fn available(&self) -> u32 {
        let head = self.ring.head();
        self.unread(head, self.shown.load(Ordering::Acquire))
    }

    /// Puts an event down and shows it.
    pub(crate) fn publish(&self, event: IoEvent) {
        let nr = u64::from(self.ring.nr());
        let mut tail = self.tail.lock();
        self.ring.put((*tail % nr) as u32, event);
        *tail += 1;
        // Before the program can see it and move the head past it.
        self.shown.store(*tail, Ordering::Release);
        self.ring.set_tail((*tail % nr) as u32);
    }

    /// Wakes whoever waits for events, after some were shown.
    pub(crate) fn wake(&self) {
        // Pairs with the fence of who is about to wait: he sees the events, or we see him.
        fence(Ordering::SeqCst);
        if self.waiters.load(Ordering::Relaxed) > 0 {
            self.wakes.fetch_add(1, Ordering::Release);
            futex::wake(&self.wakes);
        }
        if self.pollers.load(Ordering::Relaxed) > 0
            && let Some(eventfd) = self.paging.get()
        {
            super::tell(eventfd, 1);
        }
    }

    /// The first event that is not taken out, with `reader` held.
    pub(super) fn first(&self) -> IoEvent {
        self.ring.get(self.ring.head())
    }

    /// Takes it out.
    pub(super) fn advance(&self) {
        self.ring.set_head(self.ring.head() + 1);
    }

    /// Our descriptor for the eventfd that the program has as `fd`.
    pub(super) fn notice(&self, service: &Service, fd: RawFd) -> Result<Arc<OwnFd>, i32> {
        let mut notice = self.notice.lock();
        if let Some((number, own)) = &*notice
            && *number == fd
        {
            return Ok(Arc::clone(own));
        }
        let own = Arc::new(crate::number::eventfd(fd)?);
        // Whoever closes the number tells us, as long as it is held.
        service.guard.hold(fd);
        if let Some((old, _)) = notice.replace((fd, Arc::clone(&own))) {
            service.guard.release(old);
        }
        Ok(own)
    }

    /// The number is about to mean something else, or nothing; or all numbers are.
    fn forget_notice(&self, service: &Service, fd: Option<RawFd>) {
        let mut notice = self.notice.lock();
        let gone = notice.take_if(|(number, _)| fd.is_none_or(|fd| fd == *number));
        if let Some((number, _)) = gone {
            service.guard.release(number);
        }
    }

    /// Ends it: nobody finds it any more, and who waits for events of it is told.
    pub(super) fn bury(&self, service: &Service) {
        self.dead.store(true, Ordering::Release);
        self.wake();
        self.forget_notice(service, None);
    }

    /// Takes the program's ring away, which is here by now.
    pub(super) fn unmap(&self, address: usize) {
        self.ring.unmap_user(address);
    }
}

/// The contexts of a process.
#[derive(Debug, Default)]
pub(crate) struct Contexts {
    all: RwLock<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: u32,
    by_address: BTreeMap<usize, Arc<Context>>,
}

impl Contexts {
    /// A new one, with room for so many events.
    pub(super) fn add(&self, events: u32) -> io::Result<Arc<Context>> {
        let id = {
            let mut table = self.all.write();
            table.next = table.next.wrapping_add(1);
            table.next
        };
        let context = Arc::new(Context::new(id, events)?);
        self.all.write().by_address.insert(context.address(), Arc::clone(&context));
        Ok(context)
    }

    /// The context that a program calls so.
    pub(super) fn find(&self, address: usize) -> Option<Arc<Context>> {
        let table = self.all.read();
        if let Some(context) = table.by_address.get(&address) {
            return Some(Arc::clone(context));
        }
        // A ring that the program has moved (mremap(2)) says itself which it is.
        let mut prober = Prober::reading();
        let word = |prober: &mut Prober, at: usize| {
            user::read::<u64>(prober, address.wrapping_add(4 * at)).ok().map(|word| word as u32)
        };
        if table.by_address.is_empty()
            || !address.is_multiple_of(4096)
            || word(&mut prober, header::MAGIC)? != super::layout::RING_MAGIC
        {
            return None;
        }
        let id = word(&mut prober, header::ID)?;
        table.by_address.values().find(|context| context.id == id).cloned()
    }

    /// Takes one out, so that one thread destroys it.
    pub(super) fn remove(&self, context: &Context) -> bool {
        self.all.write().by_address.remove(&context.address()).is_some()
    }

    /// A number that may be an eventfd's is about to be closed.
    pub(crate) fn forget_notice(&self, service: &Service, fd: RawFd) {
        for context in self.all.read().by_address.values() {
            context.forget_notice(service, Some(fd));
        }
    }
}
