//! What could not be written: which pages, how often it was tried, and how it failed.

use std::ops::Range;

use uaio_driver::IoError;

use super::Shard;

/// What became of a page's writebacks, in a byte: how many have failed since it was last clean, and
/// whether the last one did and has not been tried again since.
#[derive(Clone, Copy, Debug, Default)]
struct Trouble(u8);

impl Trouble {
    const FAILED: u8 = 0x80;

    fn failed(self) -> bool {
        self.0 & Self::FAILED != 0
    }

    fn set_failed(&mut self, failed: bool) {
        self.0 = self.attempts() | if failed { Self::FAILED } else { 0 };
    }

    fn attempts(self) -> u8 {
        self.0 & !Self::FAILED
    }

    /// One more; what is more than fits makes no difference.
    fn count(&mut self) {
        let more = (self.attempts() + 1).min(0x7f);
        self.0 = self.0 & Self::FAILED | more;
    }

    /// It is clean: says how many had failed.
    fn forget(&mut self) -> u8 {
        std::mem::take(self).attempts()
    }
}

/// The troubles of a shard's pages.
#[derive(Default)]
pub(super) struct Troubles {
    /// By slot, like the records; beside them because a hit does not look at it.
    troubles: Vec<Trouble>,
    /// Pages whose last writeback failed, and that are not to be tried again yet.
    failed: usize,
    /// Pages whose writebacks have failed and not succeeded since.
    troubled: usize,
    /// How the last of them failed.
    error: Option<IoError>,
}

impl Troubles {
    /// None, of so many slots.
    pub(super) fn new(slots: usize) -> Self {
        Self { troubles: vec![Trouble::default(); slots], ..Self::default() }
    }

    /// For so many slots from now on; those that go have no page.
    pub(super) fn resize(&mut self, slots: usize) {
        self.troubles.reserve_exact(slots.saturating_sub(self.troubles.len()));
        self.troubles.resize(slots, Trouble::default());
        self.troubles.shrink_to_fit();
    }

    /// A page has got another slot.
    pub(super) fn moved(&mut self, from: u32, to: u32) {
        self.troubles.swap(from as usize, to as usize);
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.troubles.capacity() * size_of::<Trouble>()
    }

    /// The page in a slot holds nothing any more that the device does not have.
    pub(super) fn forget(&mut self, slot: u32) {
        let trouble = &mut self.troubles[slot as usize];
        self.failed -= usize::from(trouble.failed());
        let attempts = trouble.forget();
        self.troubled -= usize::from(attempts > 0);
    }
}

impl Shard {
    /// Writing the page has failed.
    pub(crate) fn failed(&mut self, slot: u32, error: IoError) {
        let troubles = &mut self.troubles;
        troubles.error = Some(error);
        let trouble = &mut troubles.troubles[slot as usize];
        if !trouble.failed() {
            trouble.set_failed(true);
            troubles.troubled += usize::from(trouble.attempts() == 0);
            trouble.count();
            troubles.failed += 1;
        }
    }

    /// Failed pages are to be tried again, those that have failed as often as `due` says.
    pub(crate) fn retry_failed(&mut self, due: impl Fn(u8) -> bool) {
        if self.troubles.failed == 0 {
            return;
        }
        for trouble in
            self.troubles.troubles.iter_mut().filter(|it| it.failed() && due(it.attempts()))
        {
            trouble.set_failed(false);
            self.troubles.failed -= 1;
        }
    }

    /// Failed pages of these are to be tried again.
    pub(crate) fn retry_failed_of(&mut self, pages: &Range<u64>) {
        if self.troubles.failed == 0 {
            return;
        }
        for (slot, trouble) in (0..).zip(self.troubles.troubles.iter_mut()) {
            let key = self.records[slot].key.0;
            if trouble.failed() && pages.contains(&key) {
                trouble.set_failed(false);
                self.troubles.failed -= 1;
            }
        }
    }

    /// How many writebacks of the page have failed since it was last clean.
    pub(crate) fn attempts(&self, slot: u32) -> u8 {
        self.troubles.troubles[slot as usize].attempts()
    }

    pub(crate) fn is_failed(&self, slot: u32) -> bool {
        self.troubles.troubles[slot as usize].failed()
    }

    /// Number of pages whose writebacks have failed and not succeeded since, when there are some, and how
    /// the last of them failed.
    pub(crate) fn trouble(&self) -> Option<(usize, IoError)> {
        let Troubles { troubled, error, .. } = self.troubles;
        error.filter(|_| troubled > 0).map(|error| (troubled, error))
    }

    /// Number of pages whose last writeback failed.
    pub(crate) fn failed_len(&self) -> usize {
        self.troubles.failed
    }
}
