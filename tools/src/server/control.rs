//! The control socket's server: a few threads that answer one question a connection.
//!
//! The threads are made at start, so that answering needs no new thread when memory is short, and
//! are bounded, so that many clients cannot take the machine. A client that says nothing, too much
//! or rubbish holds one of them for [`PEER_TIMEOUT`] at most.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::exit::{Exit, Failure};
use crate::protocol::{self, Answer, Command, Outcome, Request, Response};

/// How many questions can be answered at once.
const THREADS: usize = 4;

/// How long a client may take to say its line, and to take the answer.
const PEER_TIMEOUT: Duration = Duration::from_secs(5);

/// Who knows the answers. Called from several threads, none of which serves a queue.
pub(crate) trait Answers: Send + Sync + 'static {
    /// Prepares a thread that is about to answer.
    fn prepare_thread(&self) {}

    /// Answers one question, within its own deadline.
    fn answer(&self, command: Command) -> Result<Answer, Failure>;

    /// Called when the answer to `command` has been sent, or cannot be.
    fn answered(&self, _command: Command) {}
}

/// Binds the socket, for its owner alone, and starts the threads. They end with the process.
///
/// # Errors
///
/// When the socket cannot be made. One that nobody listens on is replaced; one with a listener is
/// somebody else's server.
pub(crate) fn listen(path: &Path, answers: Arc<dyn Answers>) -> Result<(), Failure> {
    listen_with(path, answers, PEER_TIMEOUT)
}

fn listen_with(path: &Path, answers: Arc<dyn Answers>, timeout: Duration) -> Result<(), Failure> {
    use std::os::unix::fs::PermissionsExt;

    if crate::record::is_stale_socket(path) {
        let _ = std::fs::remove_file(path);
    }
    let failed = |error| Failure::os(format!("bind {}", path.display()), error);
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    let listener = Arc::new(listener);
    for number in 0..THREADS {
        let (listener, answers) = (Arc::clone(&listener), Arc::clone(&answers));
        std::thread::Builder::new()
            .name(format!("control-{number}"))
            .spawn(move || {
                answers.prepare_thread();
                loop {
                    match listener.accept() {
                        Ok((stream, _)) => serve_one(&stream, answers.as_ref(), timeout),
                        // No descriptors or no memory: passing, and not worth spinning for.
                        Err(_) => std::thread::sleep(Duration::from_millis(100)),
                    }
                }
            })
            .map_err(|error| Failure::os("start a thread", error))?;
    }
    Ok(())
}

fn serve_one(stream: &UnixStream, answers: &dyn Answers, timeout: Duration) {
    let deadline = Instant::now() + timeout;
    let (command, result) =
        match protocol::receive::<Request>(stream, protocol::REQUEST_MAX_BYTES, deadline) {
            // Somebody only looked whether we are there.
            Ok(None) => return,
            Ok(Some(Request { version: protocol::VERSION, command })) => {
                (Some(command), answers.answer(command))
            }
            Ok(Some(Request { version, .. })) => (None, Err(other_version(version))),
            Err(error) => {
                let what = format!("the request is not understood: {error}");
                (None, Err(Failure::new(Exit::Usage, what, "send one line of JSON")))
            }
        };
    let result = match result {
        Ok(answer) => Outcome::Ok(answer),
        Err(failure) => Outcome::Error(failure),
    };
    let response = Response { version: protocol::VERSION, result };
    // Whether the client still listens is its own affair; what it asked for has been done.
    let _ = protocol::send(stream, &response, Instant::now() + timeout);
    if let Some(command) = command {
        answers.answered(command);
    }
}

fn other_version(version: u32) -> Failure {
    Failure::new(
        Exit::Unsupported,
        format!("the client speaks version {version}, this server version {}", protocol::VERSION),
        "use the aioctl that the server was started with",
    )
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    struct Echo;

    impl Answers for Echo {
        fn answer(&self, command: Command) -> Result<Answer, Failure> {
            match command {
                Command::Flush { .. } => Ok(Answer::Done),
                _ => Err(Failure::new(Exit::InUse, "in use", "wait")),
            }
        }
    }

    struct Running {
        _directory: tempfile::TempDir,
        path: std::path::PathBuf,
    }

    fn running(timeout_ms: u64) -> Running {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("0.sock");
        listen_with(&path, Arc::new(Echo), Duration::from_millis(timeout_ms)).expect("a server");
        Running { _directory: directory, path }
    }

    impl Running {
        fn connect(&self) -> UnixStream {
            let stream = UnixStream::connect(&self.path).expect("a connection");
            stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
            stream
        }

        fn ask(&self, command: Command) -> Result<Answer, Failure> {
            protocol::ask(&self.connect(), command, "its log")
        }

        fn says(&self, bytes: &[u8]) -> String {
            let mut stream = self.connect();
            // The server may refuse a long line before it has all come in.
            let _ = stream.write_all(bytes);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer);
            answer
        }

        fn serves(&self) -> bool {
            self.ask(Command::Flush { range: None, deadline_ms: 1 }) == Ok(Answer::Done)
        }
    }

    #[test]
    fn a_question_gets_its_answer_and_a_failure_arrives_whole() {
        let server = running(5000);
        assert!(server.serves());
        assert_eq!(server.ask(Command::Info), Err(Failure::new(Exit::InUse, "in use", "wait")));
    }

    #[test]
    fn the_socket_is_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let server = running(5000);
        let mode = std::fs::metadata(&server.path).expect("a socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn what_is_not_a_request_is_refused_and_the_server_serves_on() {
        let server = running(5000);
        let not_understood = [
            b"\n".to_vec(),
            b"{}\n".to_vec(),
            b"hello\n".to_vec(),
            b"{\"version\":1,\"command\":\"reboot\"}\n".to_vec(),
            b"{\"version\":1,\"command\":{\"delete\":{\"force\":true}}}\n".to_vec(),
            b"{\"version\":1,\"command\":\"info\"}".to_vec(),
            vec![b'['; protocol::REQUEST_MAX_BYTES / 2],
            vec![0xff; 100],
        ];
        for bytes in not_understood {
            let answer = server.says(&bytes);
            assert!(answer.contains("not understood"), "{answer} to {bytes:?}");
        }
        // Nesting as deep as a line allows must not overflow a stack.
        let deep = [vec![b'['; protocol::REQUEST_MAX_BYTES - 2], vec![b'\n']].concat();
        assert!(server.says(&deep).contains("not understood"));
        assert!(server.says(b"{\"version\":9,\"command\":\"info\"}\n").contains("version 9"));
        server.says(&vec![b'x'; 4 << 20]);
        assert_eq!(server.says(b""), "");
        assert!(server.serves());
    }

    #[test]
    fn clients_that_say_nothing_or_drip_cannot_keep_others_out() {
        let server = running(300);
        let silent: Vec<UnixStream> = (0..2 * THREADS).map(|_| server.connect()).collect();
        let dripping = server.connect();
        let start = Instant::now();
        let drip = std::thread::spawn(move || {
            // Each byte would renew a timeout that is counted from the last one.
            while start.elapsed() < Duration::from_secs(10) && (&dripping).write(b" ").is_ok() {
                std::thread::sleep(Duration::from_millis(50));
            }
            start.elapsed()
        });
        assert!(server.serves());
        assert!(
            drip.join().expect("a thread") < Duration::from_secs(9),
            "the drip was not cut off"
        );
        drop(silent);
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("0.sock");
        drop(UnixListener::bind(&path).expect("a socket"));
        listen(&path, Arc::new(Echo)).expect("a server in place of the stale socket");
        let failure = listen(&path, Arc::new(Echo)).expect_err("a second server on one socket");
        assert!(failure.what.contains("0.sock"), "{failure}");
    }
}
