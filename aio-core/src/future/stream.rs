//! The events of a context as a stream.

use std::pin::Pin;
use std::task::{Context as Task, Poll};

use futures_core::Stream;

use crate::context::Context;
use crate::event::Event;

/// The events of a context, one after the other, for a task that waits for all of them.
///
/// It does not end. Whoever has the context may submit meanwhile, get events too, or have another
/// stream: each event goes to one of them. It needs a reactor with a thread.
///
/// # Example
///
/// ```
/// # use futures_util::StreamExt;
/// # async fn example(context: &uaio_core::Context) {
/// let mut events = context.events();
/// while context.outstanding() > 0 {
///     let event = events.next().await.expect("it does not end");
///     println!("{}: {:?}", event.user_data, event.result);
/// }
/// # }
/// ```
#[derive(Debug)]
#[must_use = "nothing comes out before it is polled"]
pub struct EventStream<'a> {
    context: &'a Context,
    /// Its entry on the context's queue.
    id: u64,
}

impl Context {
    /// The events as a stream.
    pub fn events(&self) -> EventStream<'_> {
        EventStream { context: self, id: self.queue().name() }
    }
}

impl Stream for EventStream<'_> {
    type Item = Event;

    fn poll_next(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Option<Event>> {
        let queue = self.context.queue();
        let mut next = None;
        if queue.take(1, |event| next = Some(event)) == 0 {
            queue.wait_task(self.id, task.waker());
            // Again: what came in between did not see the entry.
            if queue.take(1, |event| next = Some(event)) > 0 {
                queue.leave(self.id);
            }
        }
        next.map_or(Poll::Pending, |event| Poll::Ready(Some(event)))
    }
}

impl Drop for EventStream<'_> {
    fn drop(&mut self) {
        self.context.queue().leave(self.id);
    }
}
