//! The whole driver against the controller model: right answers, and each wrong one by name.

mod admin_commands;
mod bring_up;
mod data_path;
mod io_commands;
mod ladder;
mod lies;
mod namespaces;
mod passing;
mod races;
mod teardown;

use std::sync::Arc;

use crate::block::{BlockDevice, IoQueue, QueueOptions};
use crate::dma::{DmaPool, PoolOptions};
use crate::error::{DeviceError, IoResult};
use crate::request::{Completion, Lba, Op, Request, SgList};
use crate::slots::Token;

use super::model::{Model, ModelClock, ModelOptions};
use super::{ControllerOptions, NvmeController, NvmeNamespace};

/// A driver over a model, on a clock that only the test moves.
struct Rig {
    pool: DmaPool,
    model: Arc<Model>,
    clock: Arc<ModelClock>,
    controller: Arc<NvmeController>,
}

impl Rig {
    fn new(options: ModelOptions) -> Self {
        Self::try_new(options).unwrap()
    }

    fn try_new(options: ModelOptions) -> Result<Self, DeviceError> {
        Self::driven(options, ControllerOptions { shadow_doorbells: true, ..Default::default() })
    }

    fn driven(options: ModelOptions, how: ControllerOptions) -> Result<Self, DeviceError> {
        let pool = DmaPool::new(PoolOptions::frames(2048)).unwrap();
        let model = Model::new(options, pool.clone());
        let clock = ModelClock::new();
        let controller = NvmeController::start(model.clone(), pool.clone(), how, clock.clone())?;
        Ok(Self { pool, model, clock, controller })
    }

    fn namespace(&self) -> Arc<NvmeNamespace> {
        self.controller.namespace(1).unwrap()
    }

    fn read(&self, token: u64) -> Request {
        Request::read(Token::from_u64(token), Lba(token % 8 * 8), 8, self.frames(1))
    }

    fn write(&self, lba: u64, byte: u8, fua: bool) -> Request {
        let data = self.frames(1);
        data.copy_from_slice(0, &[byte; 4096]);
        Request::write(Token::from_u64(lba), Lba(lba), 8, data, fua)
    }

    fn frames(&self, count: usize) -> SgList {
        SgList::new((0..count).map(|_| self.pool.take().unwrap()).collect())
    }
}

fn start(
    model: &Arc<Model>,
    pool: &DmaPool,
    clock: &Arc<ModelClock>,
) -> Result<Arc<NvmeController>, DeviceError> {
    let options = ControllerOptions { shadow_doorbells: true, ..Default::default() };
    NvmeController::start(model.clone(), pool.clone(), options, clock.clone())
}

fn open(namespace: &NvmeNamespace, depth: u16) -> Box<dyn IoQueue> {
    namespace.open_queue(QueueOptions::polled(depth)).unwrap()
}

/// Submits and commits.
fn send(queue: &mut dyn IoQueue, requests: impl IntoIterator<Item = Request>) {
    requests.into_iter().for_each(|request| queue.submit(request).unwrap());
    queue.commit();
}

/// Polls until all is answered; each token once.
fn drain(queue: &mut dyn IoQueue) -> Vec<Completion> {
    let (mut out, mut polls) = (Vec::new(), 0);
    while queue.in_flight() > 0 {
        queue.poll(16, &mut out);
        polls += 1;
        assert!(polls < 10_000, "{} of the requests are never answered", queue.in_flight());
    }
    let mut tokens: Vec<_> = out.iter().map(|completion| completion.token).collect();
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(tokens.len(), out.len(), "a request was answered twice");
    out
}

/// Sends one request and gives its answer.
fn one(queue: &mut dyn IoQueue, request: Request) -> (IoResult, SgList) {
    send(queue, [request]);
    let mut out = drain(queue);
    assert_eq!(out.len(), 1);
    let Completion { result, data, .. } = out.remove(0);
    (result, data)
}

fn flush() -> Request {
    Request::flush(Token::from_u64(999))
}

fn discard(lba: u64, blocks: u32) -> Request {
    Request::on_blocks(Token::from_u64(lba), Op::Discard, Lba(lba), blocks)
}
