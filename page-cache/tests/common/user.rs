//! One owner of a lane, stepped by hand, and what came of its operations.

use std::sync::Arc;
use std::time::Duration;

use uaio_driver::block::PollsAnyway;
use uaio_driver::{IoResult, Token, Wake};
use uaio_page_cache::{
    Buffer, Cache, Cancelled, Finished, Flusher, Handle, Lane, OpKind, Operation,
};

/// The flusher of a cache, turned by whoever has it, with a queue of so many requests.
pub fn flusher(cache: &Arc<Cache>, depth: u16) -> Flusher {
    Flusher::new(Arc::clone(cache), depth, Arc::new(PollsAnyway)).unwrap()
}

/// A lane, its handle, and what is finished and was not asked for yet.
pub struct User {
    lane: Option<Lane>,
    handle: Arc<Handle>,
    pub finished: Vec<(u64, IoResult, Vec<u8>)>,
}

impl Drop for User {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Whoever was forgotten would be waited for.
            std::mem::forget(self.lane.take());
        }
    }
}

impl User {
    /// With so many operations, turned by whoever has it.
    pub fn new(cache: &Arc<Cache>, operations: usize) -> Self {
        Self::rung(cache, operations, Arc::new(PollsAnyway))
    }

    /// The same, with a bell.
    pub fn rung(cache: &Arc<Cache>, operations: usize, wake: Arc<dyn Wake>) -> Self {
        let lane = Lane::new(Arc::clone(cache), operations, 4, wake).unwrap();
        Self { lane: Some(lane), handle: cache.open(), finished: Vec::new() }
    }

    pub fn lane(&mut self) -> &mut Lane {
        self.lane.as_mut().unwrap()
    }

    pub fn start(&mut self, id: u64, kind: OpKind, offset: u64, bytes: Vec<u8>) {
        let len = bytes.len() as u64;
        self.start_with(id, kind, offset, len, Buffer::Bytes(bytes));
    }

    pub fn start_with(&mut self, id: u64, kind: OpKind, offset: u64, len: u64, buffer: Buffer) {
        let (token, handle) = (Token::from_u64(id), Arc::clone(&self.handle));
        let operation = Operation { token, kind, offset, len, buffer, handle };
        assert!(self.lane().start(operation).is_ok());
        self.collect();
    }

    pub fn cancel(&mut self, id: u64) -> Cancelled {
        let outcome = self.lane().cancel(Token::from_u64(id));
        self.collect();
        outcome
    }

    pub fn turn(&mut self) {
        self.lane().turn();
        self.collect();
    }

    fn collect(&mut self) {
        while let Some(Finished { token, result, buffer }) = self.lane().pop_finished() {
            let id = token.to_u64();
            assert!(self.finished.iter().all(|(known, ..)| *known != id), "{id} answered twice");
            let bytes = if let Buffer::Bytes(bytes) = buffer { bytes } else { Vec::new() };
            self.finished.push((id, result, bytes));
        }
    }

    pub fn result(&self, id: u64) -> Option<IoResult> {
        self.finished.iter().find(|(known, ..)| *known == id).map(|(_, result, _)| *result)
    }

    /// Turns the lane and the flusher until an operation is finished; its result and bytes.
    pub fn wait(&mut self, id: u64, flusher: &mut Flusher) -> (IoResult, Vec<u8>) {
        for _ in 0..10_000 {
            if let Some(at) = self.finished.iter().position(|(known, ..)| *known == id) {
                let (_, result, bytes) = self.finished.remove(at);
                return (result, bytes);
            }
            self.turn();
            flusher.turn(Duration::ZERO);
        }
        panic!("operation {id} hung: {:?}", self.lane().cache().stats());
    }
}
