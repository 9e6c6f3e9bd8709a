//! Scopes: many commands at once on memory that is borrowed from the caller.

use std::cell::RefCell;

use uaio_driver::DeviceError;

use crate::call::CallError;
use crate::context::{Context, ContextOptions};
use crate::event::Event;
use crate::iocb::Iocb;
use crate::reactor::Reactor;
use crate::refusal::{Refusal, Refused};
use crate::volume::Handle;

/// Takes commands whose memory is borrowed; see [`Reactor::scope`].
#[derive(Debug)]
pub struct Scope<'env> {
    context: Context,
    commands: RefCell<Commands<'env>>,
}

/// The commands of a scope, by number.
#[derive(Debug, Default)]
struct Commands<'env> {
    results: Vec<Result<usize, CallError>>,
    /// Where the bytes of a read go.
    lent: Vec<Option<&'env mut [u8]>>,
    /// Memory of commands that are over.
    spare: Vec<Vec<u8>>,
    /// How many were taken whose event has not been taken in.
    left: usize,
}

impl Reactor {
    /// Has many commands done at once on memory of the caller's, at most `depth` of them in
    /// progress, and returns when all are done: their results in the order of the calls. Blocks, as
    /// the synchronous calls do, and like those on a reactor with a thread and without.
    ///
    /// A borrow ends only when the call does, whatever the closure does with what it is given, so
    /// this needs no promise of the caller's; [`AsyncContext`](crate::AsyncContext) could not be made
    /// so. A command goes through memory that the scope keeps and uses again, so its bytes are copied
    /// twice: between the cache or the device and that, and between that and the caller's.
    ///
    /// # Errors
    ///
    /// As [`Reactor::context`]. What becomes of the commands is in the results.
    ///
    /// # Example
    ///
    /// ```
    /// # fn example(reactor: &uaio_core::Reactor, handle: &uaio_core::Handle) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut block = vec![0; 1 << 20];
    /// let ((), results) = reactor.scope(16, |scope| {
    ///     for (number, part) in block.chunks_mut(1 << 16).enumerate() {
    ///         scope.pread(handle, (number as u64) << 16, part);
    ///     }
    /// })?;
    /// for result in results {
    ///     result?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn scope<'env, R>(
        &self,
        depth: usize,
        lend: impl FnOnce(&Scope<'env>) -> R,
    ) -> Result<(R, Vec<Result<usize, CallError>>), DeviceError> {
        let context = self.context(ContextOptions::events(depth))?;
        let scope = Scope { context, commands: RefCell::default() };
        let value = lend(&scope);
        scope.settle_all();
        Ok((value, scope.commands.into_inner().results))
    }
}

impl<'env> Scope<'env> {
    /// Fills `out` from byte `offset` on. Its bytes are there when the scope has ended, as many as
    /// the result says. Waits while as many are in progress as the scope is deep.
    pub fn pread(&self, handle: &Handle, offset: u64, out: &'env mut [u8]) {
        let mut memory = self.commands.borrow_mut().spare.pop().unwrap_or_default();
        memory.resize(out.len(), 0);
        self.submit(Iocb::pread(handle, offset, memory), Some(out));
    }

    /// Writes `data` from byte `offset` on; it is not needed longer than the call. Waits as
    /// [`pread`](Scope::pread).
    pub fn pwrite(&self, handle: &Handle, offset: u64, data: &[u8]) {
        let mut memory = self.commands.borrow_mut().spare.pop().unwrap_or_default();
        memory.clear();
        memory.extend_from_slice(data);
        self.submit(Iocb::pwrite(handle, offset, memory), None);
    }

    /// Makes stable every write on the volume, those of this scope before it too: it waits for them
    /// first.
    pub fn fsync(&self, handle: &Handle) {
        self.settle_all();
        self.submit(Iocb::fsync(handle), None);
    }

    fn submit(&self, iocb: Iocb, out: Option<&'env mut [u8]>) {
        let number = {
            let mut commands = self.commands.borrow_mut();
            commands.results.push(Ok(0));
            commands.lent.push(out);
            commands.results.len() - 1
        };
        let mut iocb = iocb.with_user_data(number as u64);
        loop {
            match self.context.submit(iocb) {
                Ok(_) => {
                    self.commands.borrow_mut().left += 1;
                    return;
                }
                Err(Refused { iocb: back, reason: Refusal::NoSlot }) => {
                    self.settle(1);
                    iocb = back;
                }
                Err(Refused { iocb: back, reason: Refusal::Busy }) => {
                    // Behind commands of others if none is ours: turning, if nobody does, makes room.
                    if self.settle(0) == 0 && !self.context.shared().try_turn() {
                        self.context.shared().clock().sleep(std::time::Duration::from_micros(50));
                    }
                    iocb = back;
                }
                Err(Refused { reason, .. }) => {
                    self.commands.borrow_mut().results[number] = Err(reason.into());
                    return;
                }
            }
        }
    }

    /// Takes in what is finished, until that is all that was submitted.
    fn settle_all(&self) {
        // Those that were answered at once have their events already, so none may be left to wait for.
        while self.commands.borrow().left > 0 {
            self.settle(1);
        }
    }

    /// Takes in what is finished, waiting until there were `min` events; says how many there were.
    fn settle(&self, min: usize) -> usize {
        let mut events = Vec::new();
        let taken = self.context.get_events(min, self.context.slots(), &mut events, None);
        let mut commands = self.commands.borrow_mut();
        commands.left -= events.len();
        for Event { user_data, result, buffers, .. } in events {
            let number = user_data as usize;
            let memory = buffers.into_bytes();
            if let (Ok(len), Some(out)) = (result, commands.lent[number].take()) {
                out[..len].copy_from_slice(&memory[..len]);
            }
            commands.results[number] = result.map_err(CallError::Io);
            commands.spare.push(memory);
        }
        taken.unwrap_or(0)
    }
}
