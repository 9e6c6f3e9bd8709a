//! Addresses of sockets, and messages with addresses and control data.
#![expect(
    unsafe_code,
    reason = "the kernel's structures are made of zeroes and of their own bytes; descriptors come in them"
)]

use std::mem::{size_of, zeroed};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::memory::Descriptor;

/// An address of a socket of any family, in the kernel's form.
#[derive(Clone, Copy)]
pub struct SocketAddress {
    pub(super) storage: libc::sockaddr_storage,
    pub(super) len: libc::socklen_t,
}

/// A path that does not fit an address of a Unix socket (107 bytes, unix(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the path of a Unix socket is {len_bytes} bytes long, of at most 107, or has a zero in it")]
pub struct PathUnfit {
    /// How long it is.
    pub len_bytes: usize,
}

impl SocketAddress {
    /// Room for an address that the kernel will say.
    pub fn empty() -> Self {
        // SAFETY: a structure of numbers, for which zero is a value.
        let storage = unsafe { zeroed() };
        Self { storage, len: size_of::<libc::sockaddr_storage>() as libc::socklen_t }
    }

    /// The address of a Unix socket by its path.
    ///
    /// # Errors
    ///
    /// When the path is too long, or has a zero in it.
    pub fn unix(path: &Path) -> Result<Self, PathUnfit> {
        let bytes = path.as_os_str().as_bytes();
        // SAFETY: a structure of numbers, for which zero is a value.
        let mut address: libc::sockaddr_un = unsafe { zeroed() };
        if bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
            return Err(PathUnfit { len_bytes: bytes.len() });
        }
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        for (to, from) in address.sun_path.iter_mut().zip(bytes) {
            *to = *from as libc::c_char;
        }
        let len = std::mem::offset_of!(libc::sockaddr_un, sun_path) + bytes.len() + 1;
        Ok(Self::of(address, len))
    }

    /// An address in the kernel's form, its family first; `None` when it is too short for that, or longer
    /// than any.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let len = bytes.len();
        let room = size_of::<libc::sockaddr_storage>();
        if !(size_of::<libc::sa_family_t>()..=room).contains(&len) {
            return None;
        }
        let mut this = Self { len: len as libc::socklen_t, ..Self::empty() };
        let to = (&raw mut this.storage).cast::<u8>();
        // SAFETY: as many bytes as fit, as was asked above, into a structure of numbers.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, len) };
        Some(this)
    }

    /// The address of the Internet's that it is, if it is one.
    pub fn to_inet(&self) -> Option<SocketAddr> {
        let len = self.len as usize;
        match i32::from(self.storage.ss_family) {
            libc::AF_INET if len >= size_of::<libc::sockaddr_in>() => {
                // SAFETY: the storage is larger than the structure and aligned for every family.
                let address = unsafe { &*(&raw const self.storage).cast::<libc::sockaddr_in>() };
                let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
                Some(SocketAddrV4::new(ip, u16::from_be(address.sin_port)).into())
            }
            libc::AF_INET6 if len >= size_of::<libc::sockaddr_in6>() => {
                // SAFETY: as above.
                let address = unsafe { &*(&raw const self.storage).cast::<libc::sockaddr_in6>() };
                let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
                let port = u16::from_be(address.sin6_port);
                let (flow, scope) = (address.sin6_flowinfo, address.sin6_scope_id);
                Some(SocketAddrV6::new(ip, port, flow, scope).into())
            }
            _ => None,
        }
    }

    /// Its family (`AF_INET` …), 0 while nothing was said.
    pub fn family(&self) -> i32 {
        i32::from(self.storage.ss_family)
    }

    fn of<T: Copy>(address: T, len: usize) -> Self {
        const { assert!(size_of::<T>() <= size_of::<libc::sockaddr_storage>()) };
        let mut this = Self { len: len as libc::socklen_t, ..Self::empty() };
        let at = (&raw mut this.storage).cast::<T>();
        // SAFETY: the storage is large enough (above) and aligned for every family.
        unsafe { at.write(address) };
        this
    }
}

impl From<SocketAddr> for SocketAddress {
    fn from(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(v4) => {
                let address = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from(*v4.ip()).to_be() },
                    sin_zero: [0; 8],
                };
                Self::of(address, size_of::<libc::sockaddr_in>())
            }
            SocketAddr::V6(v6) => {
                let address = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                    sin6_scope_id: v6.scope_id(),
                };
                Self::of(address, size_of::<libc::sockaddr_in6>())
            }
        }
    }
}

impl std::fmt::Debug for SocketAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.to_inet() {
            Some(address) => address.fmt(f),
            None => f
                .debug_struct("SocketAddress")
                .field("family", &self.family())
                .field("len_bytes", &self.len)
                .finish(),
        }
    }
}

/// `struct cmsghdr`: a length, a level and a type.
const CONTROL_HEAD: usize = size_of::<usize>() + 2 * size_of::<i32>();
/// What the next one begins at a multiple of.
const CONTROL_ALIGN: usize = size_of::<usize>();

/// The descriptors in control data that the kernel gave.
fn rights(mut control: &[u8]) -> Vec<RawFd> {
    let mut found = Vec::new();
    while let Some((head, rest)) = control.split_at_checked(CONTROL_HEAD) {
        let (len, kind) = head.split_at(size_of::<usize>());
        let len = len.try_into().map_or(0, usize::from_ne_bytes);
        let Some(data) = len.checked_sub(CONTROL_HEAD).and_then(|len| rest.get(..len)) else {
            break;
        };
        let wanted = [libc::SOL_SOCKET.to_ne_bytes(), libc::SCM_RIGHTS.to_ne_bytes()].concat();
        if kind == wanted {
            let numbers = data.as_chunks().0.iter();
            found.extend(numbers.map(|number| RawFd::from_ne_bytes(*number)));
        }
        control = control.get(len.next_multiple_of(CONTROL_ALIGN)..).unwrap_or_default();
    }
    found
}

/// A message as sendmsg(2) and recvmsg(2) have it: buffers, an address, control data.
pub struct Message {
    /// What is sent, or received into; one datagram, or a run of bytes of a stream.
    pub buffers: Vec<Vec<u8>>,
    /// Whom it goes to, or came from. `None` sends to whom the socket is connected to.
    pub address: Option<SocketAddress>,
    /// Of a received message: the descriptors that came with it, ours from then on and close-on-exec.
    /// They are closed with this unless they are taken out.
    pub descriptors: Vec<OwnedFd>,
    /// Control data in the form of cmsg(3): sent as it is, or received into as far as it is long.
    control: Vec<u8>,
    /// `control` is the caller's and may be sent: not room, nor what was received, which names
    /// descriptors that are ours to close.
    sends_control: bool,
    /// Of a received message: the bytes of `control` that there are.
    control_len: usize,
    /// What `control` names.
    lent: Vec<Descriptor>,
    /// The kernel's form of it, if somebody else has that.
    raw: Option<usize>,
    /// Of a received message: `MSG_TRUNC`, `MSG_CTRUNC` and others (recvmsg(2)).
    pub flags: i32,
    header: libc::msghdr,
    iovecs: Vec<libc::iovec>,
}

// SAFETY: the addresses in `header` and `iovecs` are of this message's own heap memory, filled in
// anew for each operation, and tied to no thread; whoever made a raw one vouched for its memory.
unsafe impl Send for Message {}

impl Message {
    /// A message of these buffers, to whom the socket is connected to, or from whom it does not say.
    pub fn new(buffers: Vec<Vec<u8>>) -> Self {
        let iovecs = Vec::with_capacity(buffers.len());
        // SAFETY: a structure of numbers and addresses, for which zero is a value.
        let header = unsafe { zeroed() };
        Self {
            buffers,
            address: None,
            descriptors: Vec::new(),
            control: Vec::new(),
            sends_control: false,
            control_len: 0,
            lent: Vec::new(),
            raw: None,
            flags: 0,
            header,
            iovecs,
        }
    }

    /// A message in the kernel's form, with all that it points to. Descriptors that come with it are the
    /// caller's, in its control data.
    ///
    /// # Safety
    ///
    /// The header, and the memory that it points to, are the operation's alone until its answer, or until
    /// its engine was dropped, and may be written if it receives. Descriptors in its control data are
    /// open and the caller's to send.
    pub unsafe fn raw(header: *mut libc::msghdr) -> Self {
        Self { raw: Some(header.expose_provenance()), ..Self::new(Vec::new()) }
    }

    /// The same to this address.
    #[must_use]
    pub fn to(mut self, address: impl Into<SocketAddress>) -> Self {
        self.address = Some(address.into());
        self
    }

    /// The same that says whom it came from.
    #[must_use]
    pub fn from_anybody(mut self) -> Self {
        self.address = Some(SocketAddress::empty());
        self
    }

    /// The same with these descriptors (`SCM_RIGHTS`, unix(7), which says how many): whoever receives it
    /// has names of its own for what they are. In the place of other control data.
    #[must_use]
    pub fn with_descriptors(mut self, descriptors: Vec<Descriptor>) -> Self {
        let len = CONTROL_HEAD + size_of::<RawFd>() * descriptors.len();
        let mut control = Vec::with_capacity(len.next_multiple_of(CONTROL_ALIGN));
        control.extend(len.to_ne_bytes());
        control.extend(libc::SOL_SOCKET.to_ne_bytes());
        control.extend(libc::SCM_RIGHTS.to_ne_bytes());
        for descriptor in &descriptors {
            control.extend(descriptor.as_raw_fd().to_ne_bytes());
        }
        control.resize(len.next_multiple_of(CONTROL_ALIGN), 0);
        (self.control, self.lent, self.sends_control) = (control, descriptors, true);
        self
    }

    /// The same with room for so many bytes of control data to be received. Nothing of it is sent, before
    /// or after: a message that was received into goes out without control data until it is given some.
    #[must_use]
    pub fn with_control_room(mut self, len_bytes: usize) -> Self {
        (self.control, self.sends_control) = (vec![0; len_bytes], false);
        self
    }

    /// The same with control data in the form of cmsg(3).
    ///
    /// # Safety
    ///
    /// Descriptors that it names (`SCM_RIGHTS`) are open, and the caller's to send, until the operation's
    /// answer.
    #[must_use]
    pub unsafe fn with_control(mut self, control: Vec<u8>) -> Self {
        (self.control, self.sends_control) = (control, true);
        self
    }

    /// Of a received message: its control data, in the form of cmsg(3). Descriptors in it are those of
    /// [`descriptors`](Message::descriptors).
    pub fn control(&self) -> &[u8] {
        &self.control[..self.control_len]
    }

    /// Whether all memory that the kernel gets addresses of is its own.
    pub(super) fn is_owned(&self) -> bool {
        self.raw.is_none()
    }

    /// The kernel's form of it. `receive`: there is room for an address, whatever it says now.
    pub(super) fn header(&mut self, receive: bool) -> *mut libc::msghdr {
        if let Some(raw) = self.raw {
            return std::ptr::with_exposed_provenance_mut(raw);
        }
        self.iovecs.clear();
        self.iovecs.extend(self.buffers.iter_mut().map(|buffer| libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        }));
        self.header.msg_iov = self.iovecs.as_mut_ptr();
        self.header.msg_iovlen = self.iovecs.len();
        (self.header.msg_name, self.header.msg_namelen) = match &mut self.address {
            None => (std::ptr::null_mut(), 0),
            Some(address) => {
                if receive {
                    address.len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
                }
                ((&raw mut address.storage).cast(), address.len)
            }
        };
        // From here on the kernel may write to it.
        self.sends_control &= !receive;
        let given = (receive || self.sends_control) && !self.control.is_empty();
        (self.header.msg_control, self.header.msg_controllen) = match given {
            false => (std::ptr::null_mut(), 0),
            true => (self.control.as_mut_ptr().cast(), self.control.len()),
        };
        self.header.msg_flags = 0;
        &raw mut self.header
    }

    /// Takes over what the kernel said of a received message. Its lengths may be those of what there
    /// was, more than there is room for.
    pub(super) fn received(&mut self) {
        if self.raw.is_some() {
            return;
        }
        if let Some(address) = &mut self.address {
            let room = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            address.len = self.header.msg_namelen.min(room);
        }
        self.control_len = self.header.msg_controllen.min(self.control.len());
        // The kernel says that it heeded it.
        self.flags = self.header.msg_flags & !libc::MSG_CMSG_CLOEXEC;
        for number in rights(&self.control[..self.control_len]) {
            // SAFETY: the kernel has just made this descriptor for us, and says it once.
            self.descriptors.push(unsafe { OwnedFd::from_raw_fd(number) });
        }
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Message")
            .field("buffers", &self.buffers.len())
            .field("address", &self.address)
            .field("control_len", &self.control_len)
            .field("descriptors", &self.descriptors)
            .field("flags", &self.flags)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_internet_address_survives_the_kernels_form() {
        for text in ["127.0.0.1:7", "[::1]:65535", "[fe80::1%3]:80"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(SocketAddress::from(address).to_inet(), Some(address));
        }
        assert_eq!(SocketAddress::empty().to_inet(), None);
    }

    #[test]
    fn control_data_of_any_bytes_names_what_is_in_it_and_nothing_else() {
        let fd = || Descriptor::new(std::io::pipe().unwrap().0);
        let (one, two) = (fd(), fd());
        let numbers = [one.as_raw_fd(), two.as_raw_fd()];
        let message = Message::new(Vec::new()).with_descriptors(vec![one, two]);
        assert_eq!(rights(&message.control), numbers);
        // Behind another one.
        let mut control = 20usize.to_ne_bytes().to_vec();
        control.extend([0; 16]);
        control.extend(&message.control);
        assert_eq!(rights(&control), numbers);
        for cut in 0..message.control.len() - 4 {
            assert!(rights(&message.control[..cut]).is_empty(), "{cut}");
        }
        for len in [0, 1, 15, 16, usize::MAX] {
            control[..8].copy_from_slice(&len.to_ne_bytes());
            let _ = rights(&control);
        }
    }

    #[test]
    fn a_path_that_does_not_fit_is_refused() {
        assert!(SocketAddress::unix(Path::new(&"x".repeat(107))).is_ok());
        let error = SocketAddress::unix(Path::new(&"x".repeat(108))).unwrap_err();
        assert_eq!(error, PathUnfit { len_bytes: 108 });
        assert!(SocketAddress::unix(Path::new("a\0b")).is_err());
    }
}
