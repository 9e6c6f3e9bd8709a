/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * uaio for C: asynchronous I/O in which nothing blocks the submitter.
 *
 * The calls have the shape of libaio's (io_setup(2), io_submit(2), io_getevents(2), io_cancel(2)) with
 * what that never had: volumes served by a page cache in this process, sync that is asynchronous,
 * lists, waiting for m of n over several contexts.
 *
 * Every call returns a number that is not negative, or the negative of an errno. All may be called from
 * any thread, and none from a signal handler. In the child of a fork() every call is EINVAL, until it
 * runs another program.
 *
 * Signals: the library's threads block all of them but SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP and SIGSYS, so one
 * that is sent to the process goes to a thread of the program's, or waits for its sigwait(3).
 *
 * Memory: an iocb and what it points to belong to the library from uaio_submit() until its event (of several
 * the last) has been taken out by uaio_getevents(), or uaio_destroy() has returned; cancelling does not end that. A
 * null pointer, or one into the kernel's half, is EFAULT; any other bad pointer is EFAULT on a
 * descriptor of the host and on names, and a crash on a volume, as with memcpy(). Names and the structures
 * that say them (uaio_names, uaio_statx, uaio_to, uaio_call) are copied by uaio_submit(); only the
 * struct statx of a UAIO_STATX and the events of a UAIO_EPOLL_WAIT, written when its event is taken out, and
 * the memory of a UAIO_CALL are used later.
 */
#ifndef UAIO_H
#define UAIO_H

#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A context. Never used again for another one: a stale name is EINVAL. */
typedef uint64_t uaio_context_t;

enum uaio_opcode {
    UAIO_PREAD = 0,   /* buf, nbytes, offset */
    UAIO_PWRITE = 1,
    UAIO_FSYNC = 2,
    UAIO_FDSYNC = 3,
    UAIO_POLL = 5,    /* nbytes: POLLIN ...; the result: what is there. Host only. */
    UAIO_NOOP = 6,
    UAIO_PREADV = 7,  /* buf: struct iovec[nbytes] */
    UAIO_PWRITEV = 8,
    UAIO_DISCARD = 16,      /* nbytes, offset: whole blocks. Volumes only. */
    UAIO_WRITE_ZEROES = 17,
    UAIO_SYNC_RANGE = 18,   /* nbytes, offset: stable when done; host: sync_file_range(2), op_flags */
    UAIO_READAHEAD = 19,    /* nbytes, offset: into the cache; host: readahead(2) */
    /* Sockets. */
    UAIO_ACCEPT = 32,       /* op_flags: SOCK_NONBLOCK; the result is the connection, close-on-exec */
    UAIO_CONNECT = 33,      /* buf: struct sockaddr, nbytes long */
    UAIO_SEND = 34,         /* buf, nbytes, op_flags: MSG_... */
    UAIO_RECV = 35,
    UAIO_SENDMSG = 36,      /* buf: struct msghdr, op_flags */
    UAIO_RECVMSG = 37,      /* the same; descriptors that come with it are close-on-exec */
    UAIO_SHUTDOWN = 38,     /* op_flags: SHUT_RD ... */
    /* Waits. */
    UAIO_POLL_MULTISHOT = 40, /* as UAIO_POLL, with an event for each time, UAIO_EVENT_MORE in its res2; the last
                               has it not: after a cancel, a timeout or an error, and when there was no slot
                               for another. Then that has what came, and the iocb may be submitted anew.
                               A notice, a list and what is linked to it wait for the last. */
    UAIO_EPOLL_WAIT = 41,   /* fd: an epoll descriptor; buf: struct epoll_event[nbytes], of which at most 4096
                               are used; the result: how many. Does not wait for nbytes of them. */
    /* Names. fd: the directory that a relative one begins in, or AT_FDCWD, which is the submitter's working
     * directory at uaio_submit(), as the umask is the submitter's then. */
    UAIO_OPENAT = 48,       /* buf: the name, op_flags: O_..., nbytes: the mode; the result is the
                               descriptor, close-on-exec */
    UAIO_CLOSE = 49,        /* fd: a descriptor; it is still open after -ECANCELED, and after -ETIMEDOUT
                               if it had a timeout, and only then */
    UAIO_UNLINKAT = 50,     /* buf: the name, op_flags: AT_REMOVEDIR */
    UAIO_RENAMEAT = 51,     /* buf: struct uaio_names, op_flags: RENAME_... */
    UAIO_LINKAT = 52,       /* buf: struct uaio_names, op_flags: AT_SYMLINK_FOLLOW ... */
    UAIO_SYMLINKAT = 53,    /* buf: struct uaio_names, whose old_path is what it says; fd: not looked at */
    UAIO_MKDIRAT = 54,      /* buf: the name, nbytes: the mode */
    UAIO_STATX = 55,        /* buf: struct uaio_statx, op_flags: AT_... */
    /* Files. fd: the file. */
    UAIO_FALLOCATE = 56,    /* offset, nbytes, op_flags: FALLOC_FL_... */
    UAIO_FTRUNCATE = 57,    /* nbytes: its length afterwards */
    UAIO_FADVISE = 58,      /* offset, nbytes (0: all after it; less than 4 GiB), op_flags: POSIX_FADV_... */
    UAIO_SPLICE = 59,       /* from fd, offset (-1: where it is, and for a pipe), nbytes, op_flags:
                               SPLICE_F_...; buf: struct uaio_to. The result: how many bytes. */
    UAIO_COPY = 60,         /* the same by copy_file_range(2); op_flags: 0 */
    UAIO_CALL = 64,         /* buf: struct uaio_call; the result is what it returns */
};

enum uaio_iocb_flags {
    UAIO_F_VOLUME = 1, /* fd is a volume of this context, not a descriptor of the host */
    UAIO_F_RESFD = 2,  /* resfd, an eventfd, goes up by one after the event is there */
    UAIO_F_NOTIFY = 4, /* notify says how its event is told, in the place of resfd */
    UAIO_F_LINK = 8,   /* the next iocb of this uaio_submit() begins when this one has done all that it
                          was asked to; otherwise it, and those linked to it, are -ECANCELED. They are
                          taken together or not at all, cancelled together, and over together. */
};

/* As ioprio_set(2): orders what waits for the same volume or for the host. A read or write of a descriptor has it at the
 * disk, too: RT as the highest level of BE, which needs no privilege. */
enum uaio_priority { UAIO_PRIO_DEFAULT = 0, UAIO_PRIO_RT = 1, UAIO_PRIO_BE = 2, UAIO_PRIO_IDLE = 3 };

enum uaio_notify_kind {
    UAIO_NOTIFY_NONE = 0,
    UAIO_NOTIFY_SIGNAL = 1,   /* signo with value, SI_ASYNCIO, to the process, or to tid if not 0 */
    UAIO_NOTIFY_FUNCTION = 2, /* function(value), on a thread of the library's, which blocks signals; so do the
                                 threads and programs that it starts, unless it unblocks them */
    UAIO_NOTIFY_EVENTFD = 3,  /* fd, an eventfd, goes up by one */
};

/* How somebody is told (struct sigevent). Read when it is submitted. */
struct uaio_notify {
    int32_t kind;
    int32_t signo;
    int32_t tid;
    int32_t fd;
    void *value;
    void (*function)(void *value);
};

/* Set all of it; zeroes are what is usual. */
struct uaio_iocb {
    uint64_t data;       /* comes back in the event */
    uint16_t opcode;
    int16_t priority;
    int32_t fd;
    void *buf;
    uint64_t nbytes;
    int64_t offset;
    uint32_t flags;
    int32_t resfd;
    uint32_t timeout_ms; /* past it it is cancelled, and its result is -ETIMEDOUT; 0: none */
    int32_t status;      /* out: 0, or why uaio_listio() did not take it */
    uint64_t key;        /* the library's own */
    const struct uaio_notify *notify;
    uint32_t op_flags;   /* RWF_..., MSG_... and so on: host only */
    uint32_t reserved;   /* 0 */
};

struct statx;

/* Two names, for UAIO_RENAMEAT and its like. */
struct uaio_names {
    const char *old_path; /* begins in fd of the iocb */
    const char *new_path;
    int32_t new_fd;       /* the directory that new_path begins in, or AT_FDCWD */
    uint32_t reserved;    /* 0 */
};

/* For UAIO_STATX. */
struct uaio_statx {
    const char *path;     /* with AT_EMPTY_PATH "": fd itself */
    struct statx *status; /* out */
    uint32_t mask;        /* STATX_BASIC_STATS ... */
    uint32_t reserved;    /* 0 */
};

/* Where the bytes go, for UAIO_SPLICE and UAIO_COPY. */
struct uaio_to {
    int64_t offset;       /* -1: where the descriptor is, and for a pipe */
    int32_t fd;
    uint32_t reserved;    /* 0 */
};

/* A system call, with its arguments as syscall(2) has them; those behind its last are not looked at. It is
 * made by another thread, with the submitter's working directory and umask, and if the credentials of
 * that thread are still those of who called uaio_setup(), or uaio_refresh_credentials() since (else -EPERM).
 *
 * Files: f-, l- and plain getxattr setxattr listxattr removexattr, fchmod fchmodat fchown fchownat
 * utimensat truncate mknodat readlinkat faccessat faccessat2 statfs fstatfs fstat newfstatat getdents64
 * lseek flock sync syncfs sendfile (with a null offset) tee umount2. Sockets: socket bind listen. Others:
 * memfd_create pidfd_open inotify_init1 inotify_add_watch inotify_rm_watch waitid (with a null rusage)
 * getrandom uname sysinfo clock_gettime.
 *
 * EINVAL: it is one of the opcodes above, or must have a null pointer there. EOPNOTSUPP: it makes no sense
 * on another thread (exit, fork, chdir). ENOSYS: none of these. */
struct uaio_call {
    int64_t number;       /* SYS_fchmod ... */
    uint64_t arguments[6];
};

struct uaio_event {
    uint64_t data;
    struct uaio_iocb *obj;
    int64_t res;         /* bytes, or the negative of an errno */
    int64_t res2;        /* 0, or UAIO_EVENT_MORE */
};

/* More events of this iocb are to come. */
enum uaio_event_flags { UAIO_EVENT_MORE = 1 };

/* Makes a context for nr_events commands and events, with a thread that serves it.
 * EINVAL: nr_events is 0 or more than 65536. EAGAIN: no thread, or 1024 contexts. EFAULT.
 * ENOSYS, EPERM, EACCES: there is no io_uring to be had here. */
int uaio_setup(unsigned nr_events, uaio_context_t *context);

/* Cancels what can be cancelled, waits for the rest (a descriptor that one opens then is closed), throws the events away, writes what the caches of
 * its volumes hold, and closes them. -EIO and the like: not all of that could be made stable.
 * Whoever waits in uaio_getevents() gets what it has by then, or EINVAL, before this returns. Functions of
 * UAIO_NOTIFY_FUNCTION that wait are called before this returns, but when it is called in one of them: those
 * behind that one are not called. */
int uaio_destroy(uaio_context_t context);

/* What is submitted from now on is done on the host with the credentials (user, groups, capabilities) of the
 * calling thread. Until then, whatever setuid(2) is called, it is done with those of who called uaio_setup().
 * ENOMEM, EBUSY: the kernel keeps no more; they stay what they were. May wait for a turn of the library's
 * thread. */
int uaio_refresh_credentials(uaio_context_t context);

/* How a volume is to be opened. */
enum uaio_open_flags {
    UAIO_O_DIRECT = 1, /* leave nothing in the cache; whole blocks */
    UAIO_O_DSYNC = 2,  /* a write is stable when its event is there */
};

/* Opens "file:PATH[,size=1G]", "ram:SIZE" or "nvme:0000:00:04.0[/NAMESPACE]" behind a page cache of
 * cache_bytes bytes (0: 64 MiB) in this process, and gives its number. The context closes it.
 * EINVAL: not such a name, or cache_bytes less than 64 KiB or more than 1 TiB; else what the device
 * said. */
int uaio_open(uaio_context_t context, const char *url, unsigned flags, uint64_t cache_bytes);

/* The size of a volume in bytes. EBADF: no volume of this context. */
int64_t uaio_size(uaio_context_t context, int volume);

/* Submits in order until one is refused; says how many it took, or why not the first: EAGAIN (no slot),
 * EINVAL, EBADF, EFAULT, ENAMETOOLONG, EOPNOTSUPP, ENOSYS. The devices see them together. Never blocks. */
int uaio_submit(uaio_context_t context, long nr, struct uaio_iocb **iocbs);

/* Takes events out: at least min_nr, at most nr, unless timeout (NULL: none) is over first.
 * When as many are there it takes no lock, and makes no system call but to copy what UAIO_STATX and
 * UAIO_EPOLL_WAIT have brought. */
int uaio_getevents(uaio_context_t context, long min_nr, long nr, struct uaio_event *events,
                   const struct timespec *timeout);

enum uaio_cancel_result {
    UAIO_CANCELED = 0,    /* its event is there, with -ECANCELED */
    UAIO_NOTCANCELED = 1, /* the device is at it; its event comes and says how it went */
    UAIO_ALLDONE = 2,     /* its event is there, and says how it went */
};

/* Cancels one. EINVAL: not submitted here, or its event has been taken out. */
int uaio_cancel(uaio_context_t context, struct uaio_iocb *iocb);

/* Cancels all that was submitted to this context on fd, a descriptor of the host or with UAIO_F_VOLUME in flags a
 * volume, and is not over; of two descriptors the one that bytes are from, no UAIO_CLOSE, and nothing that is on names. What is
 * linked behind it ends with it. Says how many there were, a chain as one; each has its event, which says whether it was cancelled or
 * how it went. EBADF: fd is not open and nothing is on it, or no such volume. EINVAL: other flags. */
int uaio_cancel_fd(uaio_context_t context, int fd, unsigned flags);

/* The same of all that was submitted to this context. */
int uaio_cancel_all(uaio_context_t context);

struct uaio_wait {
    uaio_context_t context;
    struct uaio_iocb *iocb;
};

/* Waits until `need` of the list are over: their events are there, or have been taken out. 1 is
 * aio_suspend(3). An entry whose iocb is NULL is ignored. EAGAIN: timeout is over. EINVAL: need is more
 * than there are, or no such context. */
int uaio_suspend(const struct uaio_wait *list, long nr, long need, const struct timespec *timeout);

enum uaio_list_mode { UAIO_LIST_WAIT = 0, UAIO_LIST_NOWAIT = 1 };

/* Submits a list as lio_listio(3): NULL and what is refused stop nothing else; status says why (EINVAL of
 * one with UAIO_F_LINK: each goes by itself), where it can be written. Says how many were taken. WAIT returns when all those are over; NOWAIT at once, and notify (NULL: none) is
 * given once when they are. */
int uaio_listio(uaio_context_t context, int mode, struct uaio_iocb **list, long nr,
                const struct uaio_notify *notify);

#ifdef __cplusplus
}
#endif

#endif
