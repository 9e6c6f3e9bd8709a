//! POSIX AIO: aio_read(3) and its kin.

mod exports;

/// Where the result of a control block goes.
#[derive(Debug)]
pub(crate) struct Landing {
    address: usize,
}

impl Landing {
    /// The control block's address.
    pub(crate) fn address(&self) -> usize {
        self.address
    }
}

/// What is to be told after results were put down: signals, threads, lists, waiters.
#[derive(Debug, Default)]
pub(crate) struct Batch {}

impl Batch {
    /// Puts a result into its control block.
    pub(crate) fn land(&mut self, _landing: Landing, _result: i64) {}

    /// Tells whoever waits.
    pub(crate) fn tell(&mut self) {}
}
