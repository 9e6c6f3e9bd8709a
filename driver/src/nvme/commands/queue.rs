//! A queue for the I/O commands that a block device does not have, on a namespace of any format.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::block::IoQueue;
use crate::nvme::NvmeController;
use crate::nvme::controller::Created;
use crate::nvme::info::NamespaceInfo;
use crate::nvme::namespace::NamespaceState;
use crate::nvme::queue::raw::{Fuse, Pointers};
use crate::nvme::queue::{NvmeQueue, QueueTarget};
use crate::nvme::spec::identify::{IdentifyController, IdentifyNamespace};
use crate::nvme::transfer::Transfer;
use crate::request::Refusal;
use crate::slots::Token;

use super::{Command, CommandError};

/// The largest block, without metadata, that commands are made for.
const BLOCK_MAX_BYTES: u64 = 64 << 10;

/// The memory of a command, owned by it until its completion gives it back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Buffer {
    /// None.
    #[default]
    None,
    /// The controller writes so many bytes.
    In(usize),
    /// The controller reads these.
    Out(Vec<u8>),
}

impl Buffer {
    fn len_bytes(&self) -> usize {
        match self {
            Self::None => 0,
            Self::In(len) => *len,
            Self::Out(bytes) => bytes.len(),
        }
    }
}

/// An I/O command with its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoCommand {
    /// The command; its namespace is the queue's, its timeout the controller's.
    pub command: Command,
    /// Its data.
    pub data: Buffer,
    /// Its metadata, when that has a buffer of its own.
    pub metadata: Buffer,
}

impl IoCommand {
    /// A command without memory.
    pub const fn new(command: Command) -> Self {
        Self { command, data: Buffer::None, metadata: Buffer::None }
    }
}

/// What an I/O command came to.
#[derive(Debug)]
#[must_use = "it says whether the command was done"]
pub struct Answer {
    /// The name that [`CommandQueue::submit`] gave.
    pub token: Token,
    /// Dwords 0 and 1 of the completion, or why it failed.
    pub result: Result<u64, CommandError>,
    /// What the controller wrote, for [`Buffer::In`]; undefined after a failure.
    pub data: Vec<u8>,
    /// The same of the metadata.
    pub metadata: Vec<u8>,
}

/// A command in flight.
#[derive(Debug)]
struct Held {
    name: String,
    may_change: bool,
    data: Option<Transfer>,
    metadata: Option<Transfer>,
    data_in: usize,
    metadata_in: usize,
}

/// A queue pair for any I/O commands of one namespace.
///
/// The families' calls wait for their answer; [`submit`](CommandQueue::submit),
/// [`commit`](CommandQueue::commit) and [`poll`](CommandQueue::poll) do not. Unlike a block device's
/// queue it allocates for each command, copies its data, and serves formats with metadata. Dropping it
/// drains it.
#[derive(Debug)]
pub struct CommandQueue {
    queue: NvmeQueue,
    held: BTreeMap<u64, Held>,
    next: u64,
    id: IdentifyNamespace,
    controller_id: IdentifyController,
    nsid: u32,
    controller: Arc<NvmeController>,
    /// Behind the queue, which is dropped first.
    #[expect(dead_code, reason = "it counts by living")]
    open: Open,
}

/// The namespace, kept from being taken away.
#[derive(Debug)]
struct Open {
    state: Arc<NamespaceState>,
    controller: Arc<NvmeController>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.controller.put_namespace(&self.state);
    }
}

impl NvmeController {
    /// Opens a queue of `depth` for any I/O commands of an active namespace.
    ///
    /// # Errors
    ///
    /// [`CommandError::Invalid`] when there is no such namespace, it is being taken away, or the depth is
    /// out of range; [`CommandError::Unsupported`] for blocks or guards that commands are not made for;
    /// [`DeviceError::NoMoreQueues`](crate::DeviceError::NoMoreQueues); those of
    /// [`admin`](NvmeController::admin).
    pub fn command_queue(
        self: &Arc<Self>,
        nsid: u32,
        depth: u16,
    ) -> Result<CommandQueue, CommandError> {
        let name = &self.identify().name;
        let most = self.identify().depth_max;
        if depth == 0 || depth > most {
            let what = format!("a queue depth of {depth} is not possible: take 1 to {most}");
            return Err(CommandError::invalid(name, what));
        }
        let controller_id = self.identify_controller()?;
        let active = self.namespace_ids(false)?;
        if !active.contains(&nsid) {
            let there: Vec<_> = active.iter().map(u32::to_string).collect();
            let what = format!("no namespace {nsid} is attached; there are: {}", there.join(", "));
            return Err(CommandError::invalid(name, what));
        }
        let id = self.identify_namespace(nsid)?;
        let Some(info) = NamespaceInfo::new(nsid, &id) else {
            return Err(CommandError::invalid(
                name,
                format_args!("namespace {nsid} has no blocks"),
            ));
        };
        if !(512..=BLOCK_MAX_BYTES).contains(&info.block_size) {
            let bytes = info.block_size;
            let what = format!(
                "namespace {nsid} is formatted with blocks of {bytes} bytes; this driver takes 512 to \
                 {BLOCK_MAX_BYTES}"
            );
            return Err(CommandError::unsupported(name, what));
        }
        self.check_guard(&id, nsid)?;
        let state = self
            .put_open(&info, false)
            .map_err(|why| CommandError::invalid(name, format_args!("namespace {nsid} {why}")))?;
        let open = Open { state, controller: Arc::clone(self) };
        let Created { qid, vector, memory, serving } = self.create_queue(depth)?;
        let target = QueueTarget::raw(self, &info, &open.state);
        let queue = NvmeQueue::new(Arc::clone(self), qid, vector, depth, memory, target, serving);
        let controller = Arc::clone(self);
        Ok(CommandQueue {
            queue,
            held: BTreeMap::new(),
            next: 0,
            id,
            controller_id,
            nsid,
            controller,
            open,
        })
    }

    /// Refuses protection information with guards of 32 and 64 bits, whose tuples have 16 bytes.
    fn check_guard(&self, id: &IdentifyNamespace, nsid: u32) -> Result<(), CommandError> {
        if id.dps & 0b111 == 0 {
            return Ok(());
        }
        let guards = match self.identify_namespace_nvm(nsid) {
            Ok(nvm) => nvm.elbaf[usize::from(id.format_index()) % nvm.elbaf.len()] >> 7 & 0b11,
            // One that does not know the question has none of them.
            Err(CommandError::Status { .. }) => 0,
            Err(error) => return Err(error),
        };
        if guards == 0 {
            return Ok(());
        }
        let what = format!("namespace {nsid} has guards of more than 16 bits");
        Err(CommandError::unsupported(&self.identify().name, what))
    }
}

impl CommandQueue {
    /// The namespace as it was when the queue was opened.
    pub const fn namespace(&self) -> &IdentifyNamespace {
        &self.id
    }

    /// The controller as it was when the queue was opened.
    pub const fn controller_id(&self) -> &IdentifyController {
        &self.controller_id
    }

    /// The controller.
    pub const fn controller(&self) -> &Arc<NvmeController> {
        &self.controller
    }

    /// The namespace's identifier.
    pub const fn nsid(&self) -> u32 {
        self.nsid
    }

    /// What the namespace is called in messages.
    pub fn name(&self) -> String {
        format!("{}/{}", self.controller.identify().name, self.nsid)
    }

    /// How many commands are in flight.
    pub fn in_flight(&self) -> usize {
        self.held.len()
    }

    /// Takes a command, for the next commit, and names it. Does not block.
    ///
    /// # Errors
    ///
    /// [`CommandError::Invalid`] when the queue is full, the memory is larger than one command carries
    /// or metadata is larger than a page run the pool has;
    /// [`CommandError::Device`] when the controller has failed or the pool has no memory.
    pub fn submit(&mut self, io: IoCommand) -> Result<Token, CommandError> {
        self.submit_as(io, Fuse::None)
    }

    /// Takes two commands that the controller does as one (Base 2.0c §3.4.2): the second only when the
    /// first succeeds.
    ///
    /// # Errors
    ///
    /// As [`submit`](CommandQueue::submit); neither is sent then.
    pub fn submit_fused(
        &mut self,
        first: IoCommand,
        second: IoCommand,
    ) -> Result<[Token; 2], CommandError> {
        // Either both or none may reach the ring: room and memory for both are found first.
        if self.queue.depth() - self.queue.in_flight() < 2 {
            return Err(self.refused(Refusal::Full));
        }
        let second = self.prepare(second)?;
        let first = self.submit_as(first, Fuse::First)?;
        let second = self.put(second, Fuse::Second)?;
        Ok([first, second])
    }

    fn submit_as(&mut self, io: IoCommand, fuse: Fuse) -> Result<Token, CommandError> {
        let prepared = self.prepare(io)?;
        self.put(prepared, fuse)
    }

    /// Memory for a command, filled.
    fn prepare(&self, io: IoCommand) -> Result<(Command, Held), CommandError> {
        let IoCommand { mut command, data, metadata } = io;
        command.nsid = self.nsid;
        let input = |buffer: &Buffer| match buffer {
            Buffer::In(len) => *len,
            Buffer::None | Buffer::Out(_) => 0,
        };
        let (data_in, metadata_in) = (input(&data), input(&metadata));
        let held = Held {
            name: command.opcode.io_name(),
            may_change: command.may_change(),
            data: self.filled(data)?,
            metadata: self.filled(metadata)?,
            data_in,
            metadata_in,
        };
        Ok((command, held))
    }

    fn filled(&self, buffer: Buffer) -> Result<Option<Transfer>, CommandError> {
        let transfer = self.controller.transfer(buffer.len_bytes())?;
        if let (Buffer::Out(bytes), Some(transfer)) = (&buffer, &transfer) {
            transfer.fill(bytes);
        }
        Ok(transfer)
    }

    fn put(&mut self, (command, held): (Command, Held), fuse: Fuse) -> Result<Token, CommandError> {
        let (prp1, prp2) = held.data.as_ref().map_or((0, 0), Transfer::prps);
        // The metadata is contiguous, as a pointer that is no SGL wants it.
        let mptr = held.metadata.as_ref().map_or(0, Transfer::iova);
        let token = Token::from_u64(self.next);
        self.queue
            .submit_raw(token, &command, fuse, Pointers { prp1, prp2, mptr })
            .map_err(|refusal| self.refused(refusal))?;
        self.held.insert(self.next, held);
        self.next += 1;
        Ok(token)
    }

    fn refused(&self, refusal: Refusal) -> CommandError {
        match self.controller.trouble() {
            Some(error) => error.into(),
            None => CommandError::invalid(&self.name(), refusal),
        }
    }

    /// Makes everything submitted visible to the controller.
    pub fn commit(&mut self) {
        self.queue.commit();
    }

    /// The next answer; `None` when there is none yet. Does not block.
    pub fn poll(&mut self) -> Option<Answer> {
        let completion = self.queue.poll_raw()?;
        let mut held = self.held.remove(&completion.token.to_u64())?;
        let result = match completion.answer {
            Ok(status) if status.to_result().is_ok() => Ok(completion.value),
            Ok(status) => {
                Err(CommandError::Status { device: self.name(), command: held.name, status })
            }
            Err(error) => Err(CommandError::Ended {
                device: self.name(),
                command: held.name,
                reason: error.to_string(),
                may_have_been_done: held.may_change,
            }),
        };
        let (mut data, mut metadata) = (vec![0; held.data_in], vec![0; held.metadata_in]);
        for (transfer, bytes) in [(&mut held.data, &mut data), (&mut held.metadata, &mut metadata)]
        {
            let Some(transfer) = transfer else { continue };
            if completion.lost {
                transfer.leak();
            } else {
                transfer.copy_out(bytes);
            }
        }
        Some(Answer { token: completion.token, result, data, metadata })
    }

    /// Sends one command and waits for its answer: dwords 0 and 1, data and metadata. Answers of
    /// commands submitted before stay for [`poll`](CommandQueue::poll), so there may be none.
    ///
    /// # Errors
    ///
    /// As [`submit`](CommandQueue::submit), and what the controller answers.
    ///
    /// # Panics
    ///
    /// When commands are in flight.
    pub fn execute(&mut self, io: IoCommand) -> Result<(u64, Vec<u8>, Vec<u8>), CommandError> {
        assert_eq!(self.in_flight(), 0, "commands are in flight");
        self.submit(io)?;
        self.commit();
        let Answer { result, data, metadata, .. } = self.wait();
        Ok((result?, data, metadata))
    }

    /// Waits for the next answer of the commands in flight; bounded by their deadline.
    pub(super) fn wait(&mut self) -> Answer {
        loop {
            if let Some(answer) = self.poll() {
                return answer;
            }
            self.controller.parts().clock.sleep(Duration::from_micros(20));
        }
    }
}

impl Drop for CommandQueue {
    fn drop(&mut self) {
        self.commit();
        // Each is answered within its deadline, by the controller or by its failure.
        while !self.held.is_empty() {
            let _ = self.wait();
        }
    }
}
