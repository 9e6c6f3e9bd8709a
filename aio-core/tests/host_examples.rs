//! The examples on the host do what they say.

#[expect(dead_code, reason = "an example has a `main` of its own")]
#[path = "../examples/epoll_and_disk.rs"]
mod epoll_and_disk;
#[expect(dead_code, reason = "an example has a `main` of its own")]
#[path = "../examples/udp_echo.rs"]
mod udp_echo;

use std::io::Write;
use std::net::UdpSocket;
use std::time::Duration;

#[test]
fn every_datagram_comes_back_to_whom_it_is_from() {
    const EACH: u64 = 500;
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    std::thread::scope(|scope| {
        let server = scope.spawn(|| udp_echo::serve(server, 3 * EACH).unwrap());
        for client in 0..3u64 {
            scope.spawn(move || {
                let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                socket.connect(address).unwrap();
                for at in 0..EACH {
                    // Each client has datagrams of its own, of all lengths, the empty one too.
                    let byte = (client * 70 + at % 70) as u8;
                    let sent = vec![byte; (at * 37 % 2000) as usize];
                    socket.send(&sent).unwrap();
                    let mut got = vec![0; 3000];
                    let len = socket.recv(&mut got).unwrap();
                    assert!(got[..len] == sent, "client {client}, datagram {at}");
                }
            });
        }
        assert_eq!(server.join().unwrap(), 3 * EACH);
    });
}

#[test]
fn a_file_is_read_whole_while_an_epoll_descriptor_delivers_its_events() {
    let len = 20_000_001u64;
    let path = std::env::temp_dir().join(format!("uaio-epoll-{}", std::process::id()));
    let bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
    let mut file = std::fs::File::options();
    let mut file = file.read(true).write(true).create_new(true).open(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    file.write_all(&bytes).unwrap();
    let mut told = Vec::new();
    let tick = Duration::from_micros(100);
    let read = epoll_and_disk::run(file, tick, &mut |bytes| told.push(bytes)).unwrap();
    assert_eq!((read.bytes, read.sum), (len, bytes.iter().map(|byte| u64::from(*byte)).sum()));
    assert!(read.ticks >= told.len() as u64 && !told.is_empty(), "{} ticks", read.ticks);
    assert!(told.is_sorted() && told.iter().all(|so_far| *so_far <= len));
}
