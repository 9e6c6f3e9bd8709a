//! A UDP echo server that does nothing but submit and get events: no thread a client, no socket that
//! must not block, no loop around `poll`.
//!
//! `udp_echo [ADDRESS [COUNT]]`: on ADDRESS (127.0.0.1:0, any free port), until COUNT datagrams were
//! echoed (for ever). It prints where it listens.

use std::error::Error;
use std::net::UdpSocket;
use std::sync::Arc;

use uaio_core::host::{Descriptor, Message};
use uaio_core::{Context, ContextOptions, Event, Host, HostOptions, Iocb, Reactor, ops};
use uaio_driver::SystemClock;

/// Datagrams on their way at once: each is received, sent back, and received again.
const IN_FLIGHT: usize = 64;
/// The longest datagram there is (udp(7)).
const DATAGRAM_MAX: usize = 65_507;

/// What the word of an iocb says.
const RECEIVED: u64 = 0;
const SENT: u64 = 1;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let count = arguments.next().map_or(Ok(u64::MAX), |count| count.parse())?;
    let socket = UdpSocket::bind(address)?;
    println!("listening on {}", socket.local_addr()?);
    let echoed = serve(socket, count)?;
    println!("echoed {echoed} datagrams");
    Ok(())
}

/// Echoes so many datagrams, and says how many.
pub(crate) fn serve(socket: UdpSocket, count: u64) -> Result<u64, Box<dyn Error>> {
    let reactor = Reactor::new(Arc::new(SystemClock::new()))?;
    let host = reactor.attach_host(HostOptions::default())?;
    // No thread turns the reactor: whoever waits for events does.
    let context = reactor.context(ContextOptions::events(IN_FLIGHT))?;
    let socket = Descriptor::new(socket);

    for _ in 0..IN_FLIGHT {
        let message = Box::new(Message::new(vec![vec![0; DATAGRAM_MAX]]).from_anybody());
        receive(&context, &host, &socket, message)?;
    }
    let (mut echoed, mut events) = (0, Vec::with_capacity(IN_FLIGHT));
    while echoed < count {
        context.get_events(1, IN_FLIGHT, &mut events, None)?;
        for Event { user_data, result, buffers, .. } in events.drain(..) {
            let message = buffers.into_host().and_then(|op| op.into_message());
            let mut message = message.ok_or("an answer without its message")?;
            match (user_data, result) {
                (RECEIVED, Ok(len)) => {
                    // Back it goes, to whom it is from, without a copy.
                    message.buffers[0].truncate(len);
                    let send = ops::sendmsg(&socket, message);
                    context
                        .submit(Iocb::host(&host, send).with_user_data(SENT))
                        .map_err(|refused| refused.reason)?;
                    continue;
                }
                (SENT, Ok(_)) => echoed += 1,
                // A client that is gone (ECONNREFUSED), or a datagram that did not get through: UDP
                // promises nothing, and the next one may do better.
                (_, Err(error)) => eprintln!("udp_echo: {error}"),
                (other, Ok(_)) => return Err(format!("an answer to {other}").into()),
            }
            message.buffers[0].resize(DATAGRAM_MAX, 0);
            receive(&context, &host, &socket, message)?;
        }
    }
    Ok(echoed)
}

fn receive(
    context: &Context,
    host: &Host,
    socket: &Descriptor,
    message: Box<Message>,
) -> Result<(), Box<dyn Error>> {
    let receive = Iocb::host(host, ops::recvmsg(socket, message)).with_user_data(RECEIVED);
    context.submit(receive).map_err(|refused| refused.reason)?;
    Ok(())
}
