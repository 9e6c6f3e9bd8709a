//! As whom an operation is done.
//!
//! io_uring keeps credentials as a *personality*: those of the thread that registered it, by number.
//! What io_uring cannot do, a worker does, as itself: it compares first, and if the two are not the
//! same the operation gets EPERM.
#![expect(unsafe_code, reason = "asks the kernel for the identity of this thread")]

use std::io;
use std::sync::Arc;

/// Credentials of the thread that took them, for requests of one engine. They stay what they were
/// whatever the thread becomes; to follow it, take them anew.
#[derive(Clone, Debug)]
pub struct Credentials(Arc<Taken>);

#[derive(Debug)]
struct Taken {
    engine: u64,
    personality: u16,
    identity: Identity,
}

impl Credentials {
    pub(super) fn new(engine: u64, personality: u16) -> io::Result<Self> {
        let identity = Identity::of_this_thread()?;
        Ok(Self(Arc::new(Taken { engine, personality, identity })))
    }

    pub(crate) fn engine(&self) -> u64 {
        self.0.engine
    }

    pub(super) fn personality(&self) -> u16 {
        self.0.personality
    }

    /// Whether this thread is that one: the same ids, groups and capabilities. What a security
    /// module adds is not looked at.
    pub(super) fn are_of_this_thread(&self) -> bool {
        Identity::of_this_thread().is_ok_and(|identity| identity == self.0.identity)
    }

    /// Whether nobody else holds them.
    pub(super) fn is_last(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Identity {
    users: [libc::uid_t; 4],
    groups: [libc::gid_t; 4],
    more_groups: Vec<libc::gid_t>,
    /// Effective, permitted, inheritable; low and high halves.
    capabilities: [[u32; 3]; 2],
}

/// `struct __user_cap_header_struct` of linux/capability.h.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

/// `_LINUX_CAPABILITY_VERSION_3`: 64 bits each, in two halves.
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

impl Identity {
    fn of_this_thread() -> io::Result<Self> {
        let mut users = [0; 4];
        let [real, effective, saved, file] = &mut users;
        // SAFETY: three addresses of words of ours.
        let result = unsafe { libc::getresuid(real, effective, saved) };
        check(result.into())?;
        // SAFETY: an id that is none changes nothing, and the one in force is returned.
        *file = unsafe { libc::setfsuid(libc::uid_t::MAX) } as libc::uid_t;
        let mut groups = [0; 4];
        let [real, effective, saved, file] = &mut groups;
        // SAFETY: three addresses of words of ours.
        let result = unsafe { libc::getresgid(real, effective, saved) };
        check(result.into())?;
        // SAFETY: as for the user.
        *file = unsafe { libc::setfsgid(libc::gid_t::MAX) } as libc::gid_t;
        Ok(Self { users, groups, more_groups: more_groups()?, capabilities: capabilities()? })
    }
}

fn more_groups() -> io::Result<Vec<libc::gid_t>> {
    loop {
        // SAFETY: with room for none the kernel only says how many there are.
        let count = check(unsafe { libc::getgroups(0, std::ptr::null_mut()) }.into())?;
        let mut groups = vec![0; count as usize];
        // SAFETY: the vector has room for as many as are said.
        let got = unsafe { libc::getgroups(count as i32, groups.as_mut_ptr()) };
        match check(got.into()) {
            Ok(got) => {
                groups.truncate(got as usize);
                return Ok(groups);
            }
            // More groups since it was asked how many.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(error),
        }
    }
}

fn capabilities() -> io::Result<[[u32; 3]; 2]> {
    let mut header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let mut sets = [[0u32; 3]; 2];
    // SAFETY: the header is the kernel's structure, and version 3 writes two sets of three words.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) };
    check(result)?;
    Ok(sets)
}

fn check(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_system_user_is_another_identity() {
        let ours = Credentials::new(0, 0).unwrap();
        assert!(ours.are_of_this_thread());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert!(ours.are_of_this_thread());
                // SAFETY: the id of this thread alone, which ends here.
                unsafe { libc::setfsuid(65_534) };
                // Without the right to become somebody else it stays who it was.
                // SAFETY: changes nothing.
                let became = unsafe { libc::setfsuid(libc::uid_t::MAX) } == 65_534;
                assert_eq!(ours.are_of_this_thread(), !became);
            });
        });
    }
}
