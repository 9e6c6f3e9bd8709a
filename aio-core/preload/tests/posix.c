/* The conformance suite of POSIX AIO: each check is a sentence of the standard (POSIX.1-2017), of the man
 * pages, or of what uaio promises beside them. Each runs in a process of its own, so that one that crashes
 * or hangs fails alone.
 *
 *   posix FOLDER         runs all: a line `ok NAME` or `FAIL NAME: why` each
 *   posix FOLDER NAME…   runs these
 *   posix --without …    the same where io_uring_setup(2) is EPERM, as in many containers
 *   posix --list         NAME: sentence
 */
#define _GNU_SOURCE
#include <aio.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *folder;
static int report;

#define REQUIRE(condition)                                                                             \
    do {                                                                                               \
        if (!(condition)) {                                                                            \
            int because = errno;                                                                       \
            dprintf(report, "line %d: not %s (errno %d)", __LINE__, #condition, because);              \
            _exit(1);                                                                                  \
        }                                                                                              \
    } while (0)

struct check {
    const char *name, *says;
    void (*run)(void);
};
static struct check checks[256];
static int count;
#define CHECK(NAME, SAYS)                                                                              \
    static void NAME(void);                                                                            \
    __attribute__((constructor)) static void add_##NAME(void) {                                        \
        checks[count++] = (struct check){#NAME, SAYS, NAME};                                           \
    }                                                                                                  \
    static void NAME(void)

/* ---- what the checks share ---- */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void pause_ms(int ms) {
    struct timespec t = {ms / 1000, ms % 1000 * 1000000L};
    while (nanosleep(&t, &t) != 0) {
    }
}

/* A new file of `len` bytes, byte i being i * 7 + i / 256. */
static unsigned char byte_at(size_t i) { return (unsigned char)(i * 7 + i / 256); }

static char last_name[PATH_MAX];
static int new_file(size_t len, int flags) {
    static int number;
    snprintf(last_name, sizeof last_name, "%s/posix.%d.%d", folder, (int)getpid(), number++);
    int fd = open(last_name, O_CREAT | O_TRUNC | O_RDWR, 0600);
    REQUIRE(fd >= 0);
    unsigned char *bytes = malloc(len + 1);
    for (size_t i = 0; i < len; i++)
        bytes[i] = byte_at(i);
    REQUIRE(write(fd, bytes, len) == (ssize_t)len);
    free(bytes);
    close(fd);
    fd = open(last_name, flags);
    REQUIRE(fd >= 0);
    unlink(last_name);
    return fd;
}

static struct aiocb block(int fd, void *bytes, size_t len, off_t offset) {
    struct aiocb cb;
    memset(&cb, 0, sizeof cb);
    cb.aio_fildes = fd;
    cb.aio_buf = bytes;
    cb.aio_nbytes = len;
    cb.aio_offset = offset;
    cb.aio_sigevent.sigev_notify = SIGEV_NONE;
    return cb;
}

/* Waits for the end, and is its error. */
static int ended(const struct aiocb *cb) {
    const struct aiocb *list[] = {cb};
    int error;
    while ((error = aio_error(cb)) == EINPROGRESS)
        aio_suspend(list, 1, NULL);
    return error;
}

/* What an operation came to, refused or failed later: its error, or 0; of a refused one too. */
static int outcome(int submitted, struct aiocb *cb) {
    if (submitted != 0)
        return errno;
    int error = ended(cb);
    ssize_t result = aio_return(cb);
    REQUIRE((result == -1) == (error != 0));
    return error;
}

static void make_pipe(int ends[2]) { REQUIRE(pipe(ends) == 0); }

static volatile sig_atomic_t signals;
static volatile siginfo_t last_info;
static void on_signal(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    memcpy((void *)&last_info, info, sizeof *info);
    signals++;
}
static void handle(int number, void (*handler)(int, siginfo_t *, void *)) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = handler;
    action.sa_flags = SA_SIGINFO;
    REQUIRE(sigaction(number, &action, NULL) == 0);
}
static void signal_with(struct sigevent *event, int number, int value) {
    event->sigev_notify = SIGEV_SIGNAL;
    event->sigev_signo = number;
    event->sigev_value.sival_int = value;
}
static void wait_signals(int wanted) {
    for (double end = now() + 2; signals < wanted && now() < end;)
        pause_ms(1);
    REQUIRE(signals == wanted);
}

static atomic_int calls;
static atomic_uintptr_t call_value;
static atomic_int call_thread, call_error;
static atomic_size_t call_stack;
static struct aiocb *call_block;
static void on_call(union sigval value) {
    pthread_attr_t attributes;
    size_t stack = 0;
    if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
        pthread_attr_getstacksize(&attributes, &stack);
        pthread_attr_destroy(&attributes);
    }
    atomic_store(&call_stack, stack);
    atomic_store(&call_value, (uintptr_t)value.sival_ptr);
    atomic_store(&call_thread, (int)syscall(SYS_gettid));
    if (call_block != NULL)
        atomic_store(&call_error, aio_error(call_block));
    atomic_fetch_add(&calls, 1);
}
static void call_with(struct sigevent *event, void *value) {
    event->sigev_notify = SIGEV_THREAD;
    event->sigev_notify_function = on_call;
    event->sigev_notify_attributes = NULL;
    event->sigev_value.sival_ptr = value;
}
static void wait_calls(int wanted) {
    for (double end = now() + 2; atomic_load(&calls) < wanted && now() < end;)
        pause_ms(1);
    REQUIRE(atomic_load(&calls) == wanted);
}

static int later_fd;
static void *write_later(void *ms) {
    pause_ms((int)(intptr_t)ms);
    REQUIRE(write(later_fd, "x", 1) == 1);
    return NULL;
}
static void byte_after(int fd, int ms) {
    pthread_t thread;
    later_fd = fd;
    REQUIRE(pthread_create(&thread, NULL, write_later, (void *)(intptr_t)ms) == 0);
    pthread_detach(thread);
}

/* ---- aio_read ---- */

CHECK(read_is_at_the_offset, "aio_read(3): the data is read starting at the absolute position aio_offset, "
                             "regardless of the file offset") {
    unsigned char bytes[100];
    int fd = new_file(10000, O_RDONLY);
    REQUIRE(lseek(fd, 17, SEEK_SET) == 17);
    struct aiocb cb = block(fd, bytes, sizeof bytes, 5000);
    REQUIRE(aio_read(&cb) == 0);
    REQUIRE(ended(&cb) == 0);
    REQUIRE(aio_return(&cb) == 100);
    for (size_t i = 0; i < 100; i++)
        REQUIRE(bytes[i] == byte_at(5000 + i));
}

CHECK(read_stops_at_the_end, "aio_read: no data transfer past the end-of-file; 0 at the end") {
    unsigned char bytes[100];
    int fd = new_file(1000, O_RDONLY);
    struct aiocb cb = block(fd, bytes, 100, 950);
    REQUIRE(aio_read(&cb) == 0 && ended(&cb) == 0 && aio_return(&cb) == 50);
    cb = block(fd, bytes, 100, 1000);
    REQUIRE(aio_read(&cb) == 0 && ended(&cb) == 0 && aio_return(&cb) == 0);
    cb = block(fd, bytes, 100, 1 << 20);
    REQUIRE(aio_read(&cb) == 0 && ended(&cb) == 0 && aio_return(&cb) == 0);
}

CHECK(read_of_nothing, "read(2): a count of zero returns zero") {
    int fd = new_file(10, O_RDONLY);
    struct aiocb cb = block(fd, NULL, 0, 0);
    REQUIRE(aio_read(&cb) == 0 && ended(&cb) == 0 && aio_return(&cb) == 0);
}

CHECK(read_of_a_bad_descriptor, "aio_read(3), EBADF: aio_fildes is not a valid file descriptor") {
    char byte;
    struct aiocb cb = block(-1, &byte, 1, 0);
    REQUIRE(outcome(aio_read(&cb), &cb) == EBADF);
    cb = block(1000, &byte, 1, 0);
    REQUIRE(outcome(aio_read(&cb), &cb) == EBADF);
    cb = block(INT_MAX, &byte, 1, 0);
    REQUIRE(outcome(aio_read(&cb), &cb) == EBADF);
}

CHECK(read_of_what_is_not_open_for_reading, "aio_read(3), EBADF: not open for reading") {
    char byte;
    struct aiocb cb = block(new_file(10, O_WRONLY), &byte, 1, 0);
    REQUIRE(outcome(aio_read(&cb), &cb) == EBADF);
    cb = block(new_file(10, O_PATH), &byte, 1, 0);
    REQUIRE(outcome(aio_read(&cb), &cb) == EBADF);
}

CHECK(read_at_a_negative_offset, "aio_read(3), EINVAL: aio_offset is invalid") {
    char byte;
    struct aiocb cb = block(new_file(10, O_RDONLY), &byte, 1, -1);
    REQUIRE(outcome(aio_read(&cb), &cb) == EINVAL);
    cb.aio_offset = INT64_MIN;
    REQUIRE(outcome(aio_read(&cb), &cb) == EINVAL);
}

CHECK(read_of_too_many_bytes, "aio_read(3), EINVAL: aio_nbytes is invalid (more than SSIZE_MAX)") {
    char byte;
    struct aiocb cb = block(new_file(10, O_RDONLY), &byte, (size_t)SSIZE_MAX + 1, 0);
    REQUIRE(outcome(aio_read(&cb), &cb) == EINVAL);
    cb.aio_nbytes = SIZE_MAX;
    REQUIRE(outcome(aio_read(&cb), &cb) == EINVAL);
}

CHECK(priority_out_of_range, "aio(7), EINVAL: aio_reqprio was less than 0, or greater than "
                             "sysconf(_SC_AIO_PRIO_DELTA_MAX)") {
    char byte = 0;
    int fd = new_file(10, O_RDWR), most = (int)sysconf(_SC_AIO_PRIO_DELTA_MAX);
    struct aiocb cb = block(fd, &byte, 1, 0);
    cb.aio_reqprio = -1;
    REQUIRE(outcome(aio_read(&cb), &cb) == EINVAL);
    REQUIRE(outcome(aio_write(&cb), &cb) == EINVAL);
    cb.aio_reqprio = most + 1;
    REQUIRE(outcome(aio_read(&cb), &cb) == EINVAL);
    REQUIRE(outcome(aio_write(&cb), &cb) == EINVAL);
    cb.aio_reqprio = most;
    REQUIRE(outcome(aio_read(&cb), &cb) == 0);
}

CHECK(opcode_is_ignored, "aio_read(3), aio_write(3): the field aio_lio_opcode is ignored") {
    char byte = 'z';
    int fd = new_file(10, O_RDWR);
    struct aiocb cb = block(fd, &byte, 1, 3);
    cb.aio_lio_opcode = LIO_READ;
    REQUIRE(outcome(aio_write(&cb), &cb) == 0);
    byte = 0;
    cb.aio_lio_opcode = LIO_NOP;
    REQUIRE(outcome(aio_read(&cb), &cb) == 0);
    REQUIRE(byte == 'z');
    cb.aio_lio_opcode = 77;
    REQUIRE(outcome(aio_read(&cb), &cb) == 0);
}

CHECK(memory_that_is_not_there, "read(2), EFAULT: buf is outside your accessible address space") {
    struct aiocb cb = block(new_file(10, O_RDWR), (void *)16, 5, 0);
    REQUIRE(outcome(aio_read(&cb), &cb) == EFAULT);
    REQUIRE(outcome(aio_write(&cb), &cb) == EFAULT);
    cb.aio_buf = (void *)UINTPTR_MAX;
    REQUIRE(outcome(aio_read(&cb), &cb) == EFAULT);
}

CHECK(read_of_a_directory, "read(2), EISDIR: fd refers to a directory") {
    char byte;
    struct aiocb cb = block(open(folder, O_RDONLY | O_DIRECTORY), &byte, 1, 0);
    REQUIRE(outcome(aio_read(&cb), &cb) == EISDIR);
}

CHECK(read_of_a_pipe_ignores_the_offset, "aio_read: on a file that cannot seek the offset does not count") {
    int ends[2];
    char bytes[8];
    make_pipe(ends);
    struct aiocb cb = block(ends[0], bytes, sizeof bytes, 4096);
    REQUIRE(aio_read(&cb) == 0);
    REQUIRE(write(ends[1], "hello", 5) == 5);
    REQUIRE(ended(&cb) == 0);
    REQUIRE(aio_return(&cb) == 5 && memcmp(bytes, "hello", 5) == 0);
}

CHECK(many_reads_of_one_file, "aio_read: many requests on one file are each done, right") {
    enum { MANY = 300, LEN = 64 };
    static unsigned char bytes[MANY][LEN];
    static struct aiocb cbs[MANY];
    int fd = new_file(1 << 20, O_RDONLY);
    for (int i = 0; i < MANY; i++) {
        cbs[i] = block(fd, bytes[i], LEN, (off_t)((i * 7919) % (1 << 20)));
        REQUIRE(aio_read(&cbs[i]) == 0);
    }
    for (int i = 0; i < MANY; i++) {
        REQUIRE(ended(&cbs[i]) == 0);
        size_t from = (size_t)cbs[i].aio_offset;
        size_t wanted = (1 << 20) - from < LEN ? (1 << 20) - from : LEN;
        REQUIRE(aio_return(&cbs[i]) == (ssize_t)wanted);
        for (size_t j = 0; j < wanted; j++)
            REQUIRE(bytes[i][j] == byte_at(from + j));
    }
}

CHECK(a_pipe_is_read_in_order, "XSH 2.8.2 and glibc's practice: reads of one pipe get its bytes in the order of "
                               "the calls") {
    enum { MANY = 50 };
    struct aiocb cbs[MANY];
    char bytes[MANY], all[MANY];
    int ends[2];
    make_pipe(ends);
    for (int i = 0; i < MANY; i++) {
        cbs[i] = block(ends[0], &bytes[i], 1, 0);
        REQUIRE(aio_read(&cbs[i]) == 0);
        all[i] = (char)i;
    }
    REQUIRE(write(ends[1], all, MANY) == MANY);
    for (int i = 0; i < MANY; i++)
        REQUIRE(ended(&cbs[i]) == 0 && aio_return(&cbs[i]) == 1 && bytes[i] == i);
}

CHECK(a_pipe_is_written_in_order, "glibc's practice: writes to one socket go out in the order of the calls") {
    enum { MANY = 50 };
    struct aiocb cbs[MANY];
    char bytes[MANY], all[MANY];
    int ends[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    for (int i = 0; i < MANY; i++) {
        bytes[i] = (char)i;
        cbs[i] = block(ends[0], &bytes[i], 1, 0);
        REQUIRE(aio_write(&cbs[i]) == 0);
    }
    for (int i = 0; i < MANY; i++)
        REQUIRE(ended(&cbs[i]) == 0 && aio_return(&cbs[i]) == 1);
    REQUIRE(read(ends[1], all, MANY) == MANY);
    REQUIRE(memcmp(all, bytes, MANY) == 0);
}

CHECK(directions_do_not_wait_for_each_other,
      "uaio: a read that waits on a socket does not hold up a write to it") {
    int ends[2];
    char in = 0, out = 'q', seen = 0;
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    struct aiocb reading = block(ends[0], &in, 1, 0), writing = block(ends[0], &out, 1, 0);
    REQUIRE(aio_read(&reading) == 0);
    REQUIRE(aio_write(&writing) == 0);
    REQUIRE(ended(&writing) == 0 && aio_return(&writing) == 1);
    REQUIRE(read(ends[1], &seen, 1) == 1 && seen == 'q');
    REQUIRE(write(ends[1], "r", 1) == 1);
    REQUIRE(ended(&reading) == 0 && aio_return(&reading) == 1 && in == 'r');
}

CHECK(waiting_pipes_hold_up_no_file, "uaio: reads that wait on pipes, however many, do not hold up a file") {
    enum { MANY = 100 };
    struct aiocb waits[MANY];
    char bytes[MANY], byte;
    for (int i = 0; i < MANY; i++) {
        int ends[2];
        make_pipe(ends);
        waits[i] = block(ends[0], &bytes[i], 1, 0);
        REQUIRE(aio_read(&waits[i]) == 0);
    }
    struct aiocb cb = block(new_file(10, O_RDONLY), &byte, 1, 3);
    REQUIRE(aio_read(&cb) == 0);
    REQUIRE(ended(&cb) == 0 && aio_return(&cb) == 1);
    REQUIRE((unsigned char)byte == byte_at(3));
}

CHECK(a_pipe_that_does_not_wait, "read(2), EAGAIN: O_NONBLOCK, and the read would block") {
    int ends[2];
    char byte;
    REQUIRE(pipe2(ends, O_NONBLOCK) == 0);
    struct aiocb cb = block(ends[0], &byte, 1, 0);
    REQUIRE(outcome(aio_read(&cb), &cb) == EAGAIN);
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) == 0);
    cb = block(ends[0], &byte, 1, 0);
    REQUIRE(outcome(aio_read(&cb), &cb) == EAGAIN);
    REQUIRE(write(ends[1], "x", 1) == 1);
    REQUIRE(outcome(aio_read(&cb), &cb) == 0 && byte == 'x');
}

CHECK(a_device_that_does_not_wait, "read(2), EAGAIN: O_NONBLOCK, of an eventfd, a timerfd, inotify") {
    uint64_t word = 7;
    int fds[] = {eventfd(0, EFD_NONBLOCK), timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), inotify_init1(IN_NONBLOCK)};
    for (int i = 0; i < 3; i++) {
        struct aiocb cb = block(fds[i], &word, 8, 0);
        REQUIRE(fds[i] >= 0);
        REQUIRE(outcome(aio_read(&cb), &cb) == EAGAIN);
        cb.aio_lio_opcode = LIO_READ;
        struct aiocb *list[] = {&cb};
        REQUIRE(lio_listio(LIO_WAIT, list, 1, NULL) == -1 && errno == EIO && aio_error(&cb) == EAGAIN);
    }
    struct aiocb cb = block(fds[0], &word, 8, 0);
    REQUIRE(outcome(aio_write(&cb), &cb) == 0);
    word = 0;
    REQUIRE(outcome(aio_read(&cb), &cb) == 0 && word == 7);
}

CHECK(devices, "aio_read, aio_write: of devices that have no end, and no bytes") {
    char bytes[100] = "x";
    struct aiocb cb = block(open("/dev/zero", O_RDWR), bytes, 100, 10);
    REQUIRE(aio_read(&cb) == 0 && ended(&cb) == 0 && aio_return(&cb) == 100 && bytes[0] == 0);
    REQUIRE(aio_write(&cb) == 0 && ended(&cb) == 0 && aio_return(&cb) == 100);
    cb = block(open("/dev/null", O_RDWR), bytes, 100, 10);
    REQUIRE(aio_read(&cb) == 0 && ended(&cb) == 0 && aio_return(&cb) == 0);
    REQUIRE(aio_write(&cb) == 0 && ended(&cb) == 0 && aio_return(&cb) == 100);
}

/* ---- aio_write ---- */

CHECK(write_is_at_the_offset, "aio_write(3): the data is written starting at the absolute position aio_offset") {
    char bytes[] = "written", seen[8] = "";
    int fd = new_file(1000, O_RDWR);
    struct aiocb cb = block(fd, bytes, 7, 500);
    REQUIRE(aio_write(&cb) == 0);
    REQUIRE(ended(&cb) == 0 && aio_return(&cb) == 7);
    REQUIRE(pread(fd, seen, 7, 500) == 7 && memcmp(seen, bytes, 7) == 0);
    unsigned char before;
    REQUIRE(pread(fd, &before, 1, 499) == 1 && before == byte_at(499));
}

CHECK(append_is_in_the_order_of_the_calls, "aio_write(3): if O_APPEND is set, data is written at the end of the "
                                           "file in the same order as aio_write() calls are made") {
    enum { MANY = 500 };
    static struct aiocb cbs[MANY];
    static uint32_t words[MANY], seen[MANY];
    int fd = new_file(0, O_RDWR | O_APPEND);
    for (uint32_t i = 0; i < MANY; i++) {
        words[i] = i;
        cbs[i] = block(fd, &words[i], 4, (off_t)(i % 3) * 100);
        REQUIRE(aio_write(&cbs[i]) == 0);
    }
    for (int i = 0; i < MANY; i++)
        REQUIRE(ended(&cbs[i]) == 0 && aio_return(&cbs[i]) == 4);
    REQUIRE(pread(fd, seen, sizeof seen, 0) == sizeof seen);
    REQUIRE(memcmp(seen, words, sizeof seen) == 0);
}

CHECK(write_to_what_is_not_open_for_writing, "aio_write(3), EBADF: not a valid file descriptor open for writing") {
    char byte = 0;
    struct aiocb cb = block(new_file(10, O_RDONLY), &byte, 1, 0);
    REQUIRE(outcome(aio_write(&cb), &cb) == EBADF);
    cb = block(-1, &byte, 1, 0);
    REQUIRE(outcome(aio_write(&cb), &cb) == EBADF);
}

CHECK(write_at_a_negative_offset, "aio_write(3), EINVAL: aio_offset is invalid") {
    char byte = 0;
    struct aiocb cb = block(new_file(10, O_RDWR), &byte, 1, -5);
    REQUIRE(outcome(aio_write(&cb), &cb) == EINVAL);
}

CHECK(append_takes_any_offset, "aio_write: EINVAL for a negative aio_offset only when O_APPEND is not set") {
    char byte = 'e', seen[12];
    int fd = new_file(10, O_RDWR | O_APPEND);
    struct aiocb cb = block(fd, &byte, 1, -1);
    REQUIRE(outcome(aio_write(&cb), &cb) == 0);
    REQUIRE(pread(fd, seen, 12, 0) == 11 && seen[10] == 'e');
}

CHECK(write_beyond_the_largest_file, "aio_write(3), EFBIG: the starting position is at or beyond the maximum offset") {
    char byte = 0;
    struct aiocb cb = block(new_file(10, O_RDWR), &byte, 1, INT64_MAX - 1);
    int error = outcome(aio_write(&cb), &cb);
    REQUIRE(error == EFBIG);
}

CHECK(write_beyond_the_limit, "write(2), EFBIG: a file size that exceeds the process's file size limit") {
    char byte = 0;
    struct rlimit limit = {100, 100};
    int fd = new_file(10, O_RDWR);
    signal(SIGXFSZ, SIG_IGN);
    REQUIRE(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    struct aiocb cb = block(fd, &byte, 1, 100);
    REQUIRE(outcome(aio_write(&cb), &cb) == EFBIG);
}

CHECK(write_to_a_full_device, "write(2), ENOSPC: the device has no room for the data") {
    char byte = 0;
    struct aiocb cb = block(open("/dev/full", O_WRONLY), &byte, 1, 0);
    REQUIRE(outcome(aio_write(&cb), &cb) == ENOSPC);
}

CHECK(write_to_a_pipe_that_nobody_reads, "write(2), EPIPE: the reading end is closed") {
    char byte = 0;
    int ends[2];
    signal(SIGPIPE, SIG_IGN);
    make_pipe(ends);
    close(ends[0]);
    struct aiocb cb = block(ends[1], &byte, 1, 0);
    REQUIRE(outcome(aio_write(&cb), &cb) == EPIPE);
}

static int drained_fd;
static void *drain(void *total) {
    char bytes[65536];
    ssize_t len;
    while ((len = read(drained_fd, bytes, sizeof bytes)) > 0) {
        for (ssize_t i = 0; i < len; i++)
            REQUIRE((unsigned char)bytes[i] == byte_at(*(size_t *)total + (size_t)i));
        *(size_t *)total += (size_t)len;
    }
    return NULL;
}

CHECK(write_of_much_to_a_pipe, "write(2), pipe(7): where it may wait, a write goes on until all is written") {
    enum { LEN = 3 << 20 };
    unsigned char *bytes = malloc(LEN);
    for (size_t i = 0; i < LEN; i++)
        bytes[i] = byte_at(i);
    for (int kind = 0; kind < 2; kind++) {
        int ends[2];
        size_t total = 0;
        pthread_t thread;
        REQUIRE((kind == 0 ? pipe(ends) : socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) == 0);
        drained_fd = ends[0];
        struct aiocb cb = block(ends[1], bytes, LEN, 0);
        REQUIRE(aio_write(&cb) == 0);
        pause_ms(20);
        REQUIRE(aio_error(&cb) == EINPROGRESS);
        REQUIRE(pthread_create(&thread, NULL, drain, &total) == 0);
        REQUIRE(ended(&cb) == 0 && aio_return(&cb) == LEN);
        close(ends[1]);
        REQUIRE(pthread_join(thread, NULL) == 0 && total == LEN);
    }
}

CHECK(write_that_was_begun_is_cancelled, "uaio: of a write that moved a part before it was cancelled, the part is the "
                                         "result, as of write(2) when it is interrupted") {
    static char bytes[1 << 20];
    int ends[2];
    make_pipe(ends);
    struct aiocb cb = block(ends[1], bytes, sizeof bytes, 0);
    REQUIRE(aio_write(&cb) == 0);
    pause_ms(20);
    REQUIRE(aio_cancel(ends[1], &cb) == AIO_ALLDONE);
    REQUIRE(aio_error(&cb) == 0);
    REQUIRE(aio_return(&cb) == 65536);
}

CHECK(close_behind_a_sync, "close(2): does not wait for what waits on a pipe") {
    for (int kind = 0; kind < 2; kind++) {
        int ends[2];
        char byte;
        REQUIRE((kind == 0 ? pipe(ends) : socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) == 0);
        struct aiocb cb = block(ends[0], &byte, 1, 0), next = cb, sync = block(ends[0], NULL, 0, 0);
        REQUIRE(aio_read(&cb) == 0 && aio_read(&next) == 0);
        int queued = aio_fsync(O_SYNC, &sync);
        double start = now();
        REQUIRE(close(ends[0]) == 0);
        REQUIRE(now() - start < 0.5);
        REQUIRE(queued != 0 || ended(&sync) == EINVAL);
    }
}

CHECK(close_behind_a_sync_of_a_file, "close(2), aio_fsync: what was queued is made stable, of the file that it was") {
    for (int round = 0; round < 50; round++) {
        int fd = new_file(5000, O_RDWR), ends[2];
        struct aiocb sync = block(fd, NULL, 0, 0);
        REQUIRE(aio_fsync(round % 2 ? O_SYNC : O_DSYNC, &sync) == 0);
        REQUIRE(close(fd) == 0);
        /* A sync of what gets its number would fail. */
        make_pipe(ends);
        REQUIRE(ends[0] == fd || ends[1] == fd);
        REQUIRE(ended(&sync) == 0 && aio_return(&sync) == 0);
        close(ends[0]);
        close(ends[1]);
    }
}

static void *cancel_it(void *cb) { return (void *)(intptr_t)aio_cancel(((struct aiocb *)cb)->aio_fildes, cb); }
CHECK(cancel_by_two_threads, "aio_cancel(3): AIO_CANCELED, or AIO_ALLDONE of one that was cancelled before") {
    int ends[2];
    char byte;
    make_pipe(ends);
    for (int round = 0; round < 200; round++) {
        pthread_t thread;
        void *other;
        struct aiocb cb = block(ends[0], &byte, 1, 0);
        REQUIRE(aio_read(&cb) == 0);
        REQUIRE(pthread_create(&thread, NULL, cancel_it, &cb) == 0);
        int own = aio_cancel(ends[0], &cb);
        REQUIRE(pthread_join(thread, &other) == 0);
        REQUIRE(own == AIO_CANCELED || own == AIO_ALLDONE);
        REQUIRE((int)(intptr_t)other == AIO_CANCELED || (int)(intptr_t)other == AIO_ALLDONE);
        REQUIRE(aio_error(&cb) == ECANCELED);
    }
}

CHECK(close_behind_appends, "close(2): what was queued on a file is done all the same") {
    enum { MANY = 1000 };
    static struct aiocb cbs[MANY];
    static char byte;
    struct stat status;
    int fd = new_file(0, O_RDWR | O_APPEND), kept = dup(fd);
    for (int i = 0; i < MANY; i++) {
        cbs[i] = block(fd, &byte, 1, 0);
        REQUIRE(aio_write(&cbs[i]) == 0);
    }
    REQUIRE(close(fd) == 0);
    for (int i = 0; i < MANY; i++)
        REQUIRE(ended(&cbs[i]) == 0);
    REQUIRE(fstat(kept, &status) == 0 && status.st_size == MANY);
}

/* ---- aio_fsync ---- */

CHECK(fsync_of_both_kinds, "aio_fsync(3): if op is O_SYNC, as by fsync(2); if O_DSYNC, as by fdatasync(2)") {
    struct aiocb cb = block(new_file(10, O_RDWR), NULL, 0, 0);
    REQUIRE(aio_fsync(O_SYNC, &cb) == 0);
    REQUIRE(ended(&cb) == 0 && aio_return(&cb) == 0);
    REQUIRE(aio_fsync(O_DSYNC, &cb) == 0);
    REQUIRE(ended(&cb) == 0 && aio_return(&cb) == 0);
}

CHECK(fsync_of_another_kind, "aio_fsync(3), EINVAL: op is not O_SYNC or O_DSYNC") {
    struct aiocb cb = block(new_file(10, O_RDWR), NULL, 0, 0);
    REQUIRE(aio_fsync(0, &cb) == -1 && errno == EINVAL);
    REQUIRE(aio_fsync(O_RDWR, &cb) == -1 && errno == EINVAL);
}

CHECK(fsync_of_a_bad_descriptor, "aio_fsync(3), EBADF: aio_fildes is not a valid file descriptor") {
    struct aiocb cb = block(-1, NULL, 0, 0);
    REQUIRE(aio_fsync(O_SYNC, &cb) == -1 && errno == EBADF);
    cb.aio_fildes = 1000;
    REQUIRE(aio_fsync(O_DSYNC, &cb) == -1 && errno == EBADF);
}

CHECK(fsync_of_what_is_open_for_reading, "aio_fsync(3), EBADF: not open for writing (POSIX.1-2017 and fsync(2) "
                                         "let it be: either)") {
    struct aiocb cb = block(new_file(10, O_RDONLY), NULL, 0, 0);
    int error = outcome(aio_fsync(O_SYNC, &cb), &cb);
    REQUIRE(error == 0 || error == EBADF);
}

CHECK(fsync_of_a_pipe, "aio_fsync(3), EINVAL: synchronized I/O is not supported for this file") {
    int ends[2];
    make_pipe(ends);
    struct aiocb cb = block(ends[1], NULL, 0, 0);
    REQUIRE(outcome(aio_fsync(O_SYNC, &cb), &cb) == EINVAL);
}

CHECK(fsync_looks_at_no_other_field, "aio_fsync(3): all other fields are ignored") {
    struct aiocb cb = block(new_file(10, O_RDWR), (void *)1, SIZE_MAX, -1);
    cb.aio_reqprio = -1;
    cb.aio_lio_opcode = 1234;
    REQUIRE(aio_fsync(O_DSYNC, &cb) == 0);
    REQUIRE(ended(&cb) == 0 && aio_return(&cb) == 0);
}

CHECK(fsync_covers_what_was_queued, "aio_fsync: all I/O operations queued at the time of the call are forced to "
                                    "completion before it") {
    enum { MANY = 64, LEN = 1 << 16 };
    static struct aiocb cbs[MANY];
    static char bytes[LEN];
    int fd = new_file(0, O_RDWR);
    for (int round = 0; round < 5; round++) {
        for (int i = 0; i < MANY; i++) {
            cbs[i] = block(fd, bytes, LEN, (off_t)i * LEN);
            REQUIRE(aio_write(&cbs[i]) == 0);
        }
        struct aiocb sync = block(fd, NULL, 0, 0);
        REQUIRE(aio_fsync(O_DSYNC, &sync) == 0);
        REQUIRE(ended(&sync) == 0 && aio_return(&sync) == 0);
        for (int i = 0; i < MANY; i++)
            REQUIRE(aio_error(&cbs[i]) == 0 && aio_return(&cbs[i]) == LEN);
    }
}

/* ---- aio_error, aio_return ---- */

CHECK(error_of_what_is_under_way, "aio_error(3): EINPROGRESS if the request has not been completed yet") {
    int ends[2];
    char byte;
    make_pipe(ends);
    struct aiocb cb = block(ends[0], &byte, 1, 0);
    REQUIRE(aio_read(&cb) == 0);
    REQUIRE(aio_error(&cb) == EINPROGRESS);
    pause_ms(20);
    REQUIRE(aio_error(&cb) == EINPROGRESS);
    REQUIRE(write(ends[1], "x", 1) == 1);
    REQUIRE(ended(&cb) == 0 && aio_return(&cb) == 1);
}

CHECK(return_of_a_failure_sets_errno, "aio_return(3): on error, -1 is returned, and errno is set") {
    char byte = 0;
    struct aiocb cb = block(open("/dev/full", O_WRONLY), &byte, 1, 0);
    REQUIRE(aio_write(&cb) == 0);
    REQUIRE(ended(&cb) == ENOSPC);
    errno = 0;
    REQUIRE(aio_return(&cb) == -1);
    REQUIRE(errno == ENOSPC);
}

CHECK(error_may_be_asked_again, "aio_error: asking does not retrieve the status") {
    char byte;
    struct aiocb cb = block(new_file(10, O_RDONLY), &byte, 1, 0);
    REQUIRE(aio_read(&cb) == 0);
    REQUIRE(ended(&cb) == 0);
    REQUIRE(aio_error(&cb) == 0 && aio_error(&cb) == 0);
    REQUIRE(aio_return(&cb) == 1);
}

CHECK(return_twice, "aio_return(3), EINVAL: no request of which the return status has not been retrieved yet") {
    char byte;
    struct aiocb cb = block(new_file(10, O_RDONLY), &byte, 1, 0);
    REQUIRE(aio_read(&cb) == 0);
    REQUIRE(ended(&cb) == 0 && aio_return(&cb) == 1);
    errno = 0;
    REQUIRE(aio_return(&cb) == -1 && errno == EINVAL);
}

CHECK(error_after_return, "aio_error(3), EINVAL: no request of which the return status has not been retrieved yet") {
    char byte;
    struct aiocb cb = block(new_file(10, O_RDONLY), &byte, 1, 0);
    REQUIRE(aio_read(&cb) == 0);
    REQUIRE(ended(&cb) == 0 && aio_return(&cb) == 1);
    errno = 0;
    int error = aio_error(&cb);
    REQUIRE(error == EINVAL || (error == -1 && errno == EINVAL));
}

CHECK(error_of_what_was_never_submitted, "aio_error(3), aio_return(3), EINVAL: aiocbp does not point at a control "
                                         "block for an asynchronous I/O request") {
    struct aiocb cb = block(0, NULL, 0, 0);
    int error = aio_error(&cb);
    REQUIRE(error == EINVAL || (error == -1 && errno == EINVAL));
    REQUIRE(aio_return(&cb) == -1 && errno == EINVAL);
    memset(&cb, 0xa5, sizeof cb);
    error = aio_error(&cb);
    REQUIRE(error == EINVAL || (error == -1 && errno == EINVAL));
}

CHECK(a_block_is_used_again, "aio(7): a control block may be used again once its operation is over") {
    unsigned char byte;
    int fd = new_file(1000, O_RDONLY);
    struct aiocb cb = block(fd, &byte, 1, 0);
    for (size_t i = 0; i < 1000; i++) {
        cb.aio_offset = (off_t)i;
        REQUIRE(aio_read(&cb) == 0);
        REQUIRE(ended(&cb) == 0 && aio_return(&cb) == 1);
        REQUIRE(byte == byte_at(i));
    }
}

CHECK(a_block_is_used_again_without_return, "glibc's practice: a block may be submitted again though nobody asked "
                                            "what came of it") {
    unsigned char byte;
    int fd = new_file(1000, O_RDONLY);
    struct aiocb cb = block(fd, &byte, 1, 0);
    for (size_t i = 0; i < 100; i++) {
        cb.aio_offset = (off_t)i;
        REQUIRE(aio_read(&cb) == 0);
        REQUIRE(ended(&cb) == 0);
        REQUIRE(byte == byte_at(i));
    }
}

/* ---- aio_suspend ---- */

CHECK(suspend_on_what_is_done, "aio_suspend(3): if one or more have already completed, it returns immediately") {
    int ends[2];
    char bytes[2];
    make_pipe(ends);
    struct aiocb done = block(new_file(10, O_RDONLY), &bytes[0], 1, 0), waits = block(ends[0], &bytes[1], 1, 0);
    REQUIRE(aio_read(&done) == 0 && aio_read(&waits) == 0);
    REQUIRE(ended(&done) == 0);
    const struct aiocb *list[] = {&waits, &done};
    REQUIRE(aio_suspend(list, 2, NULL) == 0);
}

CHECK(suspend_until_the_time_is_up, "aio_suspend(3), EAGAIN: the call timed out before any had completed") {
    int ends[2];
    char byte;
    make_pipe(ends);
    struct aiocb cb = block(ends[0], &byte, 1, 0);
    const struct aiocb *list[] = {&cb, NULL};
    struct timespec time = {0, 50000000};
    REQUIRE(aio_read(&cb) == 0);
    for (int entries = 1; entries <= 2; entries++) {
        double start = now();
        REQUIRE(aio_suspend(list, entries, &time) == -1 && errno == EAGAIN);
        REQUIRE(now() - start >= 0.049);
        REQUIRE(now() - start < 1);
    }
}

CHECK(suspend_for_no_time, "aio_suspend(3): a zero time interval polls") {
    int ends[2];
    char byte;
    make_pipe(ends);
    struct aiocb cb = block(ends[0], &byte, 1, 0);
    const struct aiocb *list[] = {&cb};
    struct timespec time = {0, 0};
    REQUIRE(aio_read(&cb) == 0);
    REQUIRE(aio_suspend(list, 1, &time) == -1 && errno == EAGAIN);
    REQUIRE(write(ends[1], "x", 1) == 1);
    REQUIRE(ended(&cb) == 0);
    REQUIRE(aio_suspend(list, 1, &time) == 0);
}

static void on_alarm(int number, siginfo_t *info, void *context) { (void)number, (void)info, (void)context; }

static void interrupt_after(int ms) {
    timer_t timer;
    struct sigevent event;
    memset(&event, 0, sizeof event);
    event.sigev_notify = SIGEV_SIGNAL;
    event.sigev_signo = SIGUSR1;
    handle(SIGUSR1, on_alarm);
    struct itimerspec at = {{0, 0}, {0, ms * 1000000L}};
    REQUIRE(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0 && timer_settime(timer, 0, &at, NULL) == 0);
}

CHECK(suspend_is_interrupted, "aio_suspend(3), EINTR: the call was ended by a signal") {
    int ends[2];
    char byte;
    make_pipe(ends);
    struct aiocb cb = block(ends[0], &byte, 1, 0), other = block(ends[0], &byte, 1, 0);
    const struct aiocb *list[] = {&cb, &other};
    REQUIRE(aio_read(&cb) == 0 && aio_read(&other) == 0);
    for (int entries = 1; entries <= 2; entries++) {
        interrupt_after(30);
        REQUIRE(aio_suspend(list, entries, NULL) == -1 && errno == EINTR);
    }
}

CHECK(suspend_is_woken, "aio_suspend(3): suspends until one or more of the requests has completed") {
    enum { MANY = 40 };
    struct aiocb cbs[MANY];
    const struct aiocb *list[MANY];
    int ends[MANY][2];
    char bytes[MANY];
    for (int i = 0; i < MANY; i++) {
        make_pipe(ends[i]);
        cbs[i] = block(ends[i][0], &bytes[i], 1, 0);
        list[i] = &cbs[i];
        if (i < 10)
            REQUIRE(aio_read(&cbs[i]) == 0);
    }
    byte_after(ends[0][1], 30);
    REQUIRE(aio_suspend(list, 1, NULL) == 0 && aio_error(&cbs[0]) == 0);
    byte_after(ends[7][1], 30);
    REQUIRE(aio_suspend(list + 1, 9, NULL) == 0 && aio_error(&cbs[7]) == 0);
}

CHECK(suspend_ignores_null_entries, "aio_suspend(3): each item must be either NULL (and then is ignored), or a pointer") {
    int ends[2];
    char byte;
    make_pipe(ends);
    struct aiocb cb = block(ends[0], &byte, 1, 0);
    const struct aiocb *list[] = {NULL, &cb, NULL};
    struct timespec time = {0, 20000000};
    REQUIRE(aio_read(&cb) == 0);
    REQUIRE(aio_suspend(list, 3, &time) == -1 && errno == EAGAIN);
    byte_after(ends[1], 20);
    REQUIRE(aio_suspend(list, 3, NULL) == 0);
    const struct aiocb *none[] = {NULL, NULL};
    REQUIRE(aio_suspend(none, 2, &time) == -1 && errno == EAGAIN);
}

CHECK(suspend_on_less_than_nothing, "glibc's practice, EINVAL: nitems is negative") {
    const struct aiocb *list[] = {NULL};
    REQUIRE(aio_suspend(list, -1, NULL) == -1 && errno == EINVAL);
}

static void *suspend_thread(void *cb) {
    const struct aiocb *list[] = {cb, NULL};
    for (;;)
        if (aio_suspend(list, call_block == NULL ? 1 : 2, NULL) == 0)
            return (void *)1;
}

CHECK(suspend_for_a_time_that_is_none, "uaio: EINVAL for a time below zero or with a billion nanoseconds, as of nanosleep(2)") {
    int ends[2];
    char byte;
    make_pipe(ends);
    struct aiocb cb = block(ends[0], &byte, 1, 0);
    const struct aiocb *list[] = {&cb};
    REQUIRE(aio_read(&cb) == 0);
    REQUIRE(aio_suspend(list, 1, &(struct timespec){0, 1000000000}) == -1 && errno == EINVAL);
    REQUIRE(aio_suspend(list, 1, &(struct timespec){-1, 0}) == -1 && errno == EINVAL);
}

CHECK(suspend_is_a_cancellation_point, "XSH 2.9.5.2: cancellation points shall occur in aio_suspend()") {
    int ends[2];
    char byte;
    make_pipe(ends);
    struct aiocb cb = block(ends[0], &byte, 1, 0);
    REQUIRE(aio_read(&cb) == 0);
    for (int entries = 1; entries <= 2; entries++) {
        pthread_t thread;
        void *result;
        call_block = entries == 1 ? NULL : &cb;
        REQUIRE(pthread_create(&thread, NULL, suspend_thread, &cb) == 0);
        pause_ms(30);
        REQUIRE(pthread_cancel(thread) == 0 && pthread_join(thread, &result) == 0);
        REQUIRE(result == PTHREAD_CANCELED);
    }
    REQUIRE(write(ends[1], "x", 1) == 1);
    REQUIRE(ended(&cb) == 0 && aio_return(&cb) == 1);
}

CHECK(suspend_of_several_threads_on_one, "aio_suspend: all threads that wait for one request go on") {
    int ends[2];
    char byte;
    make_pipe(ends);
    struct aiocb cb = block(ends[0], &byte, 1, 0);
    pthread_t threads[8];
    REQUIRE(aio_read(&cb) == 0);
    for (int i = 0; i < 8; i++)
        REQUIRE(pthread_create(&threads[i], NULL, suspend_thread, &cb) == 0);
    pause_ms(30);
    REQUIRE(write(ends[1], "x", 1) == 1);
    for (int i = 0; i < 8; i++)
        REQUIRE(pthread_join(threads[i], NULL) == 0);
}

/* ---- aio_cancel ---- */

CHECK(cancel_of_what_is_queued, "aio_cancel(3): the return status is set to -1, the error status to ECANCELED; "
                                "AIO_CANCELED: all were cancelled") {
    int ends[2];
    char bytes[2];
    make_pipe(ends);
    struct aiocb first = block(ends[0], &bytes[0], 1, 0), second = block(ends[0], &bytes[1], 1, 0);
    REQUIRE(aio_read(&first) == 0);
    pause_ms(20);
    REQUIRE(aio_read(&second) == 0);
    REQUIRE(aio_cancel(ends[0], &second) == AIO_CANCELED);
    REQUIRE(aio_error(&second) == ECANCELED);
    REQUIRE(aio_return(&second) == -1);
    REQUIRE(aio_error(&first) == EINPROGRESS);
    REQUIRE(write(ends[1], "xy", 2) == 2);
    REQUIRE(ended(&first) == 0 && aio_return(&first) == 1);
    REQUIRE(read(ends[0], bytes, 2) == 1 && bytes[0] == 'y');
}

CHECK(cancel_of_what_waits, "uaio: a read that waits for bytes of a pipe is cancelled though it is under way") {
    int ends[2];
    char byte;
    make_pipe(ends);
    struct aiocb cb = block(ends[0], &byte, 1, 0);
    REQUIRE(aio_read(&cb) == 0);
    pause_ms(20);
    REQUIRE(aio_cancel(ends[0], &cb) == AIO_CANCELED);
    REQUIRE(aio_error(&cb) == ECANCELED && aio_return(&cb) == -1);
}

CHECK(cancel_of_all, "aio_cancel(3): if aiocbp is NULL, all such requests are canceled") {
    enum { MANY = 20 };
    int ends[2], others[2];
    char bytes[MANY], other;
    struct aiocb cbs[MANY];
    make_pipe(ends);
    make_pipe(others);
    struct aiocb kept = block(others[0], &other, 1, 0);
    REQUIRE(aio_read(&kept) == 0);
    for (int i = 0; i < MANY; i++) {
        cbs[i] = block(ends[0], &bytes[i], 1, 0);
        REQUIRE(aio_read(&cbs[i]) == 0);
    }
    pause_ms(20);
    int answer = aio_cancel(ends[0], NULL);
    REQUIRE(answer == AIO_CANCELED || answer == AIO_NOTCANCELED);
    for (int i = 0; i < MANY; i++) {
        int error = aio_error(&cbs[i]);
        REQUIRE(error == ECANCELED || (i == 0 && answer == AIO_NOTCANCELED && error == EINPROGRESS));
    }
    REQUIRE(aio_error(&kept) == EINPROGRESS);
}

CHECK(cancel_of_what_is_done, "aio_cancel(3), AIO_ALLDONE: all requests had already been completed") {
    char byte;
    int fd = new_file(10, O_RDONLY);
    struct aiocb cb = block(fd, &byte, 1, 0);
    REQUIRE(aio_cancel(fd, NULL) == AIO_ALLDONE);
    REQUIRE(aio_read(&cb) == 0 && ended(&cb) == 0);
    REQUIRE(aio_cancel(fd, &cb) == AIO_ALLDONE);
    REQUIRE(aio_cancel(fd, NULL) == AIO_ALLDONE);
    REQUIRE(aio_error(&cb) == 0 && aio_return(&cb) == 1);
}

CHECK(cancel_on_a_bad_descriptor, "aio_cancel(3), EBADF: fd is not a valid file descriptor") {
    REQUIRE(aio_cancel(-1, NULL) == -1 && errno == EBADF);
    REQUIRE(aio_cancel(1000, NULL) == -1 && errno == EBADF);
    struct aiocb cb = block(-1, NULL, 0, 0);
    REQUIRE(aio_cancel(-1, &cb) == -1 && errno == EBADF);
}

CHECK(cancel_notifies, "aio_cancel(3): normal asynchronous notification occurs for canceled requests") {
    int ends[2];
    char bytes[2];
    make_pipe(ends);
    struct aiocb first = block(ends[0], &bytes[0], 1, 0), second = block(ends[0], &bytes[1], 1, 0);
    handle(SIGRTMIN, on_signal);
    signal_with(&second.aio_sigevent, SIGRTMIN, 7);
    REQUIRE(aio_read(&first) == 0 && aio_read(&second) == 0);
    REQUIRE(aio_cancel(ends[0], &second) == AIO_CANCELED);
    wait_signals(1);
    REQUIRE(last_info.si_code == SI_ASYNCIO && last_info.si_value.sival_int == 7);
}

CHECK(cancel_races_with_completion, "aio_cancel(3): a request is either cancelled or done, and says which") {
    static struct aiocb cbs[64];
    static unsigned char bytes[64][512];
    int fd = new_file(1 << 16, O_RDONLY);
    for (int round = 0; round < 50; round++) {
        for (int i = 0; i < 64; i++) {
            cbs[i] = block(fd, bytes[i], 512, (i * 512));
            REQUIRE(aio_read(&cbs[i]) == 0);
        }
        for (int i = 0; i < 64; i++) {
            int answer = aio_cancel(fd, &cbs[i]);
            REQUIRE(answer >= 0);
            int error = aio_error(&cbs[i]);
            REQUIRE(answer != AIO_CANCELED || error == ECANCELED);
            REQUIRE(answer != AIO_ALLDONE || error != EINPROGRESS);
            error = ended(&cbs[i]);
            REQUIRE(error == 0 || error == ECANCELED);
            REQUIRE(aio_return(&cbs[i]) == (error == 0 ? 512 : -1));
        }
    }
}

/* ---- lio_listio ---- */

CHECK(list_waits_for_all, "lio_listio(3), LIO_WAIT: the call blocks until all operations are complete") {
    enum { MANY = 64 };
    static struct aiocb cbs[MANY];
    struct aiocb *list[MANY];
    static unsigned char bytes[MANY][512];
    int fd = new_file(1 << 16, O_RDWR);
    for (int i = 0; i < MANY; i++) {
        cbs[i] = block(fd, bytes[i], 512, i * 512);
        cbs[i].aio_lio_opcode = i % 2 == 0 ? LIO_READ : LIO_WRITE;
        memset(bytes[i], i, 512);
        list[i] = &cbs[i];
    }
    REQUIRE(lio_listio(LIO_WAIT, list, MANY, NULL) == 0);
    for (int i = 0; i < MANY; i++) {
        REQUIRE(aio_error(&cbs[i]) == 0 && aio_return(&cbs[i]) == 512);
        unsigned char seen[512];
        REQUIRE(pread(fd, seen, 512, i * 512) == 512);
        REQUIRE(memcmp(seen, bytes[i], 512) == 0);
        REQUIRE(seen[100] == (i % 2 == 0 ? byte_at((size_t)i * 512 + 100) : i));
    }
}

CHECK(list_ignores_null_and_nop, "lio_listio(3): NULL elements are ignored; LIO_NOP: ignore this element") {
    unsigned char byte = 1, other = 2;
    struct aiocb cb = block(new_file(10, O_RDONLY), &byte, 1, 4), nop = block(-1, &other, 1, 0);
    cb.aio_lio_opcode = LIO_READ;
    nop.aio_lio_opcode = LIO_NOP;
    struct aiocb *list[] = {NULL, &nop, &cb, NULL};
    REQUIRE(lio_listio(LIO_WAIT, list, 4, NULL) == 0);
    REQUIRE(aio_return(&cb) == 1 && byte == byte_at(4));
    REQUIRE(other == 2);
    struct aiocb *nothing[] = {NULL, &nop};
    REQUIRE(lio_listio(LIO_WAIT, nothing, 2, NULL) == 0);
    REQUIRE(lio_listio(LIO_WAIT, nothing, 0, NULL) == 0);
}

CHECK(list_of_another_mode, "lio_listio(3), EINVAL: mode is invalid, or nitems exceeds the limit or is negative") {
    struct aiocb *list[] = {NULL};
    REQUIRE(lio_listio(2, list, 1, NULL) == -1 && errno == EINVAL);
    REQUIRE(lio_listio(-1, list, 1, NULL) == -1 && errno == EINVAL);
}

CHECK(list_of_less_than_nothing, "lio_listio(3), EINVAL: nitems is not a number of items") {
    struct aiocb *list[] = {NULL};
    REQUIRE(lio_listio(LIO_WAIT, list, -1, NULL) == -1 && errno == EINVAL);
}

CHECK(list_with_a_failure, "lio_listio(3), EIO: one of more of the operations specified failed; aio_error() of each "
                           "says which") {
    char bytes[3] = {0};
    struct aiocb good = block(new_file(10, O_RDONLY), &bytes[0], 1, 4);
    struct aiocb bad = block(open("/dev/full", O_WRONLY), &bytes[1], 1, 0);
    good.aio_lio_opcode = LIO_READ;
    bad.aio_lio_opcode = LIO_WRITE;
    struct aiocb *list[] = {&bad, &good};
    REQUIRE(lio_listio(LIO_WAIT, list, 2, NULL) == -1);
    REQUIRE(errno == EIO);
    REQUIRE(aio_error(&bad) == ENOSPC && aio_return(&bad) == -1);
    REQUIRE(aio_error(&good) == 0 && aio_return(&good) == 1);
}

CHECK(list_with_a_refusal, "lio_listio: requests that cannot be queued leave the others be; EIO, and the error status "
                           "of each says why") {
    char bytes[3];
    struct aiocb good = block(new_file(10, O_RDONLY), &bytes[0], 1, 4), bad = block(-1, &bytes[1], 1, 0),
                 odd = block(good.aio_fildes, &bytes[2], 1, 0);
    good.aio_lio_opcode = bad.aio_lio_opcode = odd.aio_lio_opcode = LIO_READ;
    odd.aio_reqprio = -1;
    struct aiocb *list[] = {&bad, &good, &odd};
    REQUIRE(lio_listio(LIO_WAIT, list, 3, NULL) == -1);
    REQUIRE(errno == EIO);
    REQUIRE(aio_error(&bad) == EBADF && aio_return(&bad) == -1);
    REQUIRE(aio_error(&good) == 0 && aio_return(&good) == 1);
    REQUIRE(aio_error(&odd) == EINVAL && aio_return(&odd) == -1);
}

CHECK(list_with_an_unknown_opcode, "lio_listio: an operation that is not one fails alone, with EINVAL") {
    char bytes[2];
    struct aiocb good = block(new_file(10, O_RDONLY), &bytes[0], 1, 4), bad = good;
    good.aio_lio_opcode = LIO_READ;
    bad.aio_lio_opcode = 55;
    struct aiocb *list[] = {&bad, &good};
    REQUIRE(lio_listio(LIO_WAIT, list, 2, NULL) == -1 && errno == EIO);
    REQUIRE(aio_error(&bad) == EINVAL);
    REQUIRE(aio_error(&good) == 0 && aio_return(&good) == 1);
}

CHECK(list_notifies_when_all_are_done, "lio_listio(3), LIO_NOWAIT: if sevp is not NULL, it tells when all operations "
                                       "complete") {
    int ends[2][2];
    char bytes[2];
    make_pipe(ends[0]);
    make_pipe(ends[1]);
    struct aiocb cbs[2];
    struct aiocb *list[2];
    struct sigevent event;
    memset(&event, 0, sizeof event);
    for (int i = 0; i < 2; i++) {
        cbs[i] = block(ends[i][0], &bytes[i], 1, 0);
        cbs[i].aio_lio_opcode = LIO_READ;
        list[i] = &cbs[i];
    }
    handle(SIGRTMIN, on_signal);
    signal_with(&event, SIGRTMIN, 4711);
    REQUIRE(lio_listio(LIO_NOWAIT, list, 2, &event) == 0);
    REQUIRE(write(ends[1][1], "x", 1) == 1);
    REQUIRE(ended(&cbs[1]) == 0);
    pause_ms(20);
    REQUIRE(signals == 0);
    REQUIRE(write(ends[0][1], "x", 1) == 1);
    wait_signals(1);
    REQUIRE(last_info.si_code == SI_ASYNCIO && last_info.si_value.sival_int == 4711);
    REQUIRE(aio_error(&cbs[0]) == 0 && aio_error(&cbs[1]) == 0);
}

CHECK(list_of_nothing_notifies, "glibc's practice: a list without an operation is complete at once, and tells so") {
    struct aiocb *list[] = {NULL};
    struct sigevent event;
    memset(&event, 0, sizeof event);
    handle(SIGRTMIN, on_signal);
    signal_with(&event, SIGRTMIN, 5);
    REQUIRE(lio_listio(LIO_NOWAIT, list, 1, &event) == 0);
    wait_signals(1);
}

CHECK(list_notifies_by_thread, "lio_listio(3): sevp may ask for a thread") {
    char byte;
    struct aiocb cb = block(new_file(10, O_RDONLY), &byte, 1, 4);
    cb.aio_lio_opcode = LIO_READ;
    struct aiocb *list[] = {&cb};
    struct sigevent event;
    memset(&event, 0, sizeof event);
    call_with(&event, &cb);
    call_block = &cb;
    REQUIRE(lio_listio(LIO_NOWAIT, list, 1, &event) == 0);
    wait_calls(1);
    REQUIRE(atomic_load(&call_value) == (uintptr_t)&cb && atomic_load(&call_error) == 0);
}

CHECK(list_without_notification, "lio_listio(3), LIO_NOWAIT: if sevp is NULL, no notification occurs") {
    char byte;
    struct aiocb cb = block(new_file(10, O_RDONLY), &byte, 1, 4);
    cb.aio_lio_opcode = LIO_READ;
    struct aiocb *list[] = {&cb};
    REQUIRE(lio_listio(LIO_NOWAIT, list, 1, NULL) == 0);
    REQUIRE(ended(&cb) == 0 && aio_return(&cb) == 1);
}

CHECK(list_that_waits_ignores_sigevent, "lio_listio(3), LIO_WAIT: the sevp argument is ignored") {
    char byte;
    struct aiocb cb = block(new_file(10, O_RDONLY), &byte, 1, 4);
    cb.aio_lio_opcode = LIO_READ;
    struct aiocb *list[] = {&cb};
    struct sigevent event;
    memset(&event, 0, sizeof event);
    handle(SIGRTMIN, on_signal);
    signal_with(&event, SIGRTMIN, 5);
    REQUIRE(lio_listio(LIO_WAIT, list, 1, &event) == 0);
    pause_ms(20);
    REQUIRE(signals == 0);
    event.sigev_notify = 99;
    REQUIRE(lio_listio(LIO_WAIT, list, 1, &event) == 0);
}

CHECK(each_of_a_list_notifies, "lio_listio: the aio_sigevent of each operation counts as with aio_read()") {
    char bytes[5];
    struct aiocb cbs[5];
    struct aiocb *list[5];
    int fd = new_file(10, O_RDONLY);
    handle(SIGRTMIN, on_signal);
    for (int i = 0; i < 5; i++) {
        cbs[i] = block(fd, &bytes[i], 1, i);
        cbs[i].aio_lio_opcode = LIO_READ;
        signal_with(&cbs[i].aio_sigevent, SIGRTMIN, i);
        list[i] = &cbs[i];
    }
    REQUIRE(lio_listio(LIO_NOWAIT, list, 5, NULL) == 0);
    wait_signals(5);
}

CHECK(list_is_interrupted, "lio_listio(3), EINTR: mode was LIO_WAIT and a signal was caught before all had completed; "
                           "the operations go on") {
    int ends[2];
    char byte;
    make_pipe(ends);
    struct aiocb cb = block(ends[0], &byte, 1, 0);
    cb.aio_lio_opcode = LIO_READ;
    struct aiocb *list[] = {&cb};
    interrupt_after(30);
    REQUIRE(lio_listio(LIO_WAIT, list, 1, NULL) == -1 && errno == EINTR);
    REQUIRE(aio_error(&cb) == EINPROGRESS);
    REQUIRE(write(ends[1], "x", 1) == 1);
    REQUIRE(ended(&cb) == 0 && aio_return(&cb) == 1);
}

CHECK(list_is_long, "lio_listio(3): AIO_LISTIO_MAX operations and more in one call") {
    enum { MANY = 5000 };
    static struct aiocb cbs[MANY];
    static struct aiocb *list[MANY];
    static unsigned char bytes[MANY];
    int fd = new_file(MANY, O_RDONLY);
    for (int i = 0; i < MANY; i++) {
        cbs[i] = block(fd, &bytes[i], 1, i);
        cbs[i].aio_lio_opcode = LIO_READ;
        list[i] = &cbs[i];
    }
    REQUIRE(lio_listio(LIO_WAIT, list, MANY, NULL) == 0);
    for (size_t i = 0; i < MANY; i++)
        REQUIRE(aio_return(&cbs[i]) == 1 && bytes[i] == byte_at(i));
}

/* ---- notification ---- */

CHECK(signal_has_code_and_value, "sigevent(7), SIGEV_SIGNAL; sigaction(2), SI_ASYNCIO: si_code, si_value, si_pid") {
    char byte;
    struct aiocb cb = block(new_file(10, O_RDONLY), &byte, 1, 0);
    handle(SIGUSR2, on_signal);
    signal_with(&cb.aio_sigevent, SIGUSR2, 0);
    cb.aio_sigevent.sigev_value.sival_ptr = &cb;
    REQUIRE(aio_read(&cb) == 0);
    wait_signals(1);
    REQUIRE(last_info.si_signo == SIGUSR2);
    REQUIRE(last_info.si_code == SI_ASYNCIO);
    REQUIRE(last_info.si_value.sival_ptr == &cb);
    REQUIRE(last_info.si_pid == getpid() && last_info.si_uid == getuid());
    REQUIRE(aio_error(&cb) == 0 && aio_return(&cb) == 1);
}

static atomic_uint seen_values;
static void on_queued(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    struct aiocb *cb = info->si_value.sival_ptr;
    if (aio_error(cb) == 0 && aio_return(cb) == 1)
        atomic_fetch_or(&seen_values, 1u << cb->aio_offset);
    signals++;
}

CHECK(queued_signals_each_come, "XSH 2.4.2: a queued signal for each; in the handler the operation is over, and "
                                "aio_error() and aio_return() may be called") {
    char bytes[20];
    struct aiocb cbs[20];
    int fd = new_file(100, O_RDONLY);
    handle(SIGRTMIN + 2, on_queued);
    for (int i = 0; i < 20; i++) {
        cbs[i] = block(fd, &bytes[i], 1, i);
        signal_with(&cbs[i].aio_sigevent, SIGRTMIN + 2, 0);
        cbs[i].aio_sigevent.sigev_value.sival_ptr = &cbs[i];
        REQUIRE(aio_read(&cbs[i]) == 0);
    }
    wait_signals(20);
    REQUIRE(atomic_load(&seen_values) == (1u << 20) - 1);
}

CHECK(no_signal_when_none_is_asked_for, "sigevent(7), SIGEV_NONE: don't do anything when the event occurs") {
    char byte;
    struct aiocb cb = block(new_file(10, O_RDONLY), &byte, 1, 0);
    handle(SIGUSR2, on_signal);
    cb.aio_sigevent.sigev_signo = SIGUSR2;
    REQUIRE(aio_read(&cb) == 0);
    REQUIRE(ended(&cb) == 0);
    pause_ms(20);
    REQUIRE(signals == 0);
}

CHECK(signal_zero_is_none, "glibc's practice: a block of zeros asks for signal 0, which is none") {
    char byte;
    struct aiocb cb;
    memset(&cb, 0, sizeof cb);
    cb.aio_fildes = new_file(10, O_RDONLY);
    cb.aio_buf = &byte;
    cb.aio_nbytes = 1;
    REQUIRE(aio_read(&cb) == 0);
    REQUIRE(ended(&cb) == 0 && aio_return(&cb) == 1);
}

CHECK(a_thread_is_called, "sigevent(7), SIGEV_THREAD: notify by invoking sigev_notify_function as if it were the start "
                          "function of a new thread; sigev_value is its argument") {
    char byte;
    struct aiocb cb = block(new_file(10, O_RDONLY), &byte, 1, 0);
    call_with(&cb.aio_sigevent, &cb);
    call_block = &cb;
    REQUIRE(aio_read(&cb) == 0);
    wait_calls(1);
    REQUIRE(atomic_load(&call_value) == (uintptr_t)&cb);
    REQUIRE(atomic_load(&call_error) == 0);
    REQUIRE(atomic_load(&call_thread) != getpid());
    REQUIRE(aio_return(&cb) == 1);
}

CHECK(a_thread_has_its_attributes, "sigevent(7): sigev_notify_attributes defines attributes for the new thread") {
    char byte;
    pthread_attr_t attributes;
    struct aiocb cb = block(new_file(10, O_RDONLY), &byte, 1, 0);
    REQUIRE(pthread_attr_init(&attributes) == 0);
    REQUIRE(pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED) == 0);
    /* More than a thread has by itself, and perhaps more yet: the C library takes one that it has. */
    REQUIRE(pthread_attr_setstacksize(&attributes, 24 << 20) == 0);
    call_with(&cb.aio_sigevent, NULL);
    cb.aio_sigevent.sigev_notify_attributes = &attributes;
    REQUIRE(aio_read(&cb) == 0);
    wait_calls(1);
    REQUIRE(atomic_load(&call_stack) >= 24 << 20);
}

static void on_count(union sigval value) {
    sigset_t set;
    pthread_sigmask(SIG_SETMASK, NULL, &set);
    if (!sigismember(&set, SIGUSR1))
        atomic_fetch_add(&calls, value.sival_int);
}
CHECK(many_threads_are_called, "sigevent(7), SIGEV_THREAD: each of many requests is told once, by a thread that takes "
                               "signals") {
    enum { MANY = 200 };
    static char bytes[MANY];
    static struct aiocb cbs[MANY];
    int fd = new_file(1000, O_RDONLY);
    for (int i = 0; i < MANY; i++) {
        cbs[i] = block(fd, &bytes[i], 1, i);
        cbs[i].aio_sigevent.sigev_notify = SIGEV_THREAD;
        cbs[i].aio_sigevent.sigev_notify_function = on_count;
        cbs[i].aio_sigevent.sigev_value.sival_int = 1;
        REQUIRE(aio_read(&cbs[i]) == 0);
    }
    wait_calls(MANY);
}

static atomic_int signalled_thread;
static void on_thread_signal(int number, siginfo_t *info, void *context) {
    (void)number, (void)info, (void)context;
    atomic_store(&signalled_thread, (int)syscall(SYS_gettid));
}
static atomic_int other_thread;
static void *wait_in_thread(void *nothing) {
    atomic_store(&other_thread, (int)syscall(SYS_gettid));
    for (double end = now() + 2; atomic_load(&signalled_thread) == 0 && now() < end;)
        pause_ms(1);
    return nothing;
}
CHECK(a_thread_is_signalled, "sigevent(7), SIGEV_THREAD_ID (Linux-specific): the signal goes to this thread") {
    char byte;
    pthread_t thread;
    handle(SIGUSR2, on_thread_signal);
    REQUIRE(pthread_create(&thread, NULL, wait_in_thread, NULL) == 0);
    while (atomic_load(&other_thread) == 0)
        pause_ms(1);
    struct aiocb cb = block(new_file(10, O_RDONLY), &byte, 1, 0);
    cb.aio_sigevent.sigev_notify = SIGEV_THREAD_ID;
    cb.aio_sigevent.sigev_signo = SIGUSR2;
    cb.aio_sigevent._sigev_un._tid = atomic_load(&other_thread);
    REQUIRE(aio_read(&cb) == 0);
    REQUIRE(pthread_join(thread, NULL) == 0);
    REQUIRE(atomic_load(&signalled_thread) == atomic_load(&other_thread));
}

CHECK(an_unknown_notification, "sigevent(7): sigev_notify is one of its values; EINVAL for another, and nothing is "
                               "queued") {
    char byte = 'k';
    struct aiocb cb = block(new_file(10, O_RDONLY), &byte, 1, 0);
    cb.aio_sigevent.sigev_notify = 99;
    REQUIRE(aio_read(&cb) == -1 && errno == EINVAL);
    cb.aio_sigevent.sigev_notify = SIGEV_SIGNAL;
    cb.aio_sigevent.sigev_signo = 65;
    REQUIRE(aio_read(&cb) == -1 && errno == EINVAL);
    cb.aio_sigevent.sigev_signo = -1;
    REQUIRE(aio_read(&cb) == -1 && errno == EINVAL);
    pause_ms(20);
    REQUIRE(byte == 'k');
    struct aiocb *list[] = {NULL};
    REQUIRE(lio_listio(LIO_NOWAIT, list, 1, &cb.aio_sigevent) == -1 && errno == EINVAL);
}

CHECK(a_thread_without_a_function, "uaio: SIGEV_THREAD with no function is refused with EINVAL, not called") {
    char byte;
    struct aiocb cb = block(new_file(10, O_RDONLY), &byte, 1, 0);
    call_with(&cb.aio_sigevent, NULL);
    cb.aio_sigevent.sigev_notify_function = NULL;
    REQUIRE(aio_read(&cb) == -1 && errno == EINVAL);
    pause_ms(20);
}

/* ---- processes, threads, descriptors ---- */

static int status_of(pid_t child) {
    int status;
    double end = now() + 2;
    while (waitpid(child, &status, WNOHANG) == 0) {
        if (now() > end) {
            kill(child, SIGKILL);
            waitpid(child, &status, 0);
            return -1;
        }
        pause_ms(1);
    }
    return status;
}

CHECK(a_child_has_asynchronous_io_of_its_own, "fork(2): the child can use the interfaces, whatever the parent did") {
    char byte;
    int fd = new_file(10, O_RDONLY);
    struct aiocb cb = block(fd, &byte, 1, 0);
    REQUIRE(aio_read(&cb) == 0 && ended(&cb) == 0 && aio_return(&cb) == 1);
    for (int i = 0; i < 3; i++) {
        pid_t child = fork();
        if (child == 0) {
            struct aiocb own = block(fd, &byte, 1, 2);
            _exit(!(aio_read(&own) == 0 && ended(&own) == 0 && aio_return(&own) == 1
                    && (unsigned char)byte == byte_at(2)));
        }
        REQUIRE(status_of(child) == 0);
    }
    REQUIRE(aio_read(&cb) == 0 && ended(&cb) == 0 && aio_return(&cb) == 1);
}

CHECK(a_child_inherits_no_request, "fork(2): the child does not inherit outstanding asynchronous I/O operations") {
    char byte;
    int ends[2];
    make_pipe(ends);
    struct aiocb cb = block(ends[0], &byte, 1, 0);
    REQUIRE(aio_read(&cb) == 0);
    pid_t child = fork();
    if (child == 0) {
        const struct aiocb *list[] = {&cb};
        errno = 0;
        bool none = (aio_error(&cb) == -1 && errno == EINVAL) || aio_error(&cb) == EINVAL;
        bool returns = aio_suspend(list, 1, NULL) == 0;
        bool cancels = aio_cancel(ends[0], NULL) == AIO_ALLDONE && aio_cancel(ends[0], &cb) == AIO_ALLDONE;
        _exit(!(none && returns && cancels));
    }
    REQUIRE(status_of(child) == 0);
    REQUIRE(aio_error(&cb) == EINPROGRESS);
    REQUIRE(write(ends[1], "x", 1) == 1);
    REQUIRE(ended(&cb) == 0 && aio_return(&cb) == 1 && byte == 'x');
}

CHECK(a_program_is_executed_with_requests_under_way, "exec(3): outstanding asynchronous I/O may be cancelled; the program "
                                                     "runs") {
    char byte;
    int ends[2];
    pid_t child = fork();
    if (child == 0) {
        make_pipe(ends);
        struct aiocb cb = block(ends[0], &byte, 1, 0);
        REQUIRE(aio_read(&cb) == 0);
        unsetenv("LD_PRELOAD");
        execl("/bin/sh", "sh", "-c", "exit 7", NULL);
        _exit(1);
    }
    int status = status_of(child);
    REQUIRE(WIFEXITED(status) && WEXITSTATUS(status) == 7);
}

CHECK(exit_does_not_wait_for_a_pipe, "exit(3): a write to a pipe that nobody reads does not hold it up") {
    static char bytes[1 << 20];
    pid_t child = fork();
    if (child == 0) {
        int ends[2];
        make_pipe(ends);
        struct aiocb cb = block(ends[1], bytes, sizeof bytes, 0);
        REQUIRE(aio_write(&cb) == 0);
        exit(7);
    }
    double start = now();
    int status = status_of(child);
    REQUIRE(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    REQUIRE(now() - start < 0.5);
}

CHECK(exit_with_requests_under_way, "_exit(2): outstanding asynchronous I/O is cancelled or completes; the process ends") {
    char byte;
    int ends[2];
    for (int how = 0; how < 3; how++) {
        pid_t child = fork();
        if (child == 0) {
            make_pipe(ends);
            static struct aiocb cbs[100];
            static char bytes[100][4096];
            int fd = new_file(1 << 19, O_RDWR);
            struct aiocb cb = block(ends[0], &byte, 1, 0);
            REQUIRE(aio_read(&cb) == 0);
            for (int i = 0; i < 100; i++) {
                cbs[i] = block(fd, bytes[i], 4096, i * 4096);
                REQUIRE(aio_write(&cbs[i]) == 0);
            }
            if (how == 0)
                exit(7);
            if (how == 1)
                _exit(7);
            quick_exit(7);
        }
        int status = status_of(child);
        REQUIRE(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    }
}

static struct aiocb thread_block;
static char thread_byte;
static void *submit_and_end(void *fd) {
    thread_block = block((int)(intptr_t)fd, &thread_byte, 1, 0);
    REQUIRE(aio_read(&thread_block) == 0);
    return NULL;
}
CHECK(a_thread_that_ends_leaves_its_requests, "aio_read: a request outlives the thread that made it") {
    int ends[2];
    pthread_t thread;
    make_pipe(ends);
    REQUIRE(pthread_create(&thread, NULL, submit_and_end, (void *)(intptr_t)ends[0]) == 0);
    REQUIRE(pthread_join(thread, NULL) == 0);
    pause_ms(20);
    REQUIRE(write(ends[1], "x", 1) == 1);
    REQUIRE(ended(&thread_block) == 0 && aio_return(&thread_block) == 1 && thread_byte == 'x');
}

static int shared_fd;
static void *read_much(void *seed) {
    unsigned int number = (unsigned int)(uintptr_t)seed;
    for (int i = 0; i < 300; i++) {
        unsigned char bytes[4][16];
        struct aiocb cbs[4];
        for (int j = 0; j < 4; j++) {
            number = number * 1103515245 + 12345;
            cbs[j] = block(shared_fd, bytes[j], 16, (off_t)(number >> 8) % 60000);
            REQUIRE(aio_read(&cbs[j]) == 0);
        }
        for (int j = 0; j < 4; j++) {
            REQUIRE(ended(&cbs[j]) == 0 && aio_return(&cbs[j]) == 16);
            for (size_t k = 0; k < 16; k++)
                REQUIRE(bytes[j][k] == byte_at((size_t)cbs[j].aio_offset + k));
        }
    }
    return NULL;
}
CHECK(many_threads_at_once, "aio_read(3): MT-Safe, and so the others") {
    pthread_t threads[8];
    shared_fd = new_file(1 << 16, O_RDONLY);
    for (uintptr_t i = 0; i < 8; i++)
        REQUIRE(pthread_create(&threads[i], NULL, read_much, (void *)(i + 1)) == 0);
    for (int i = 0; i < 8; i++)
        REQUIRE(pthread_join(threads[i], NULL) == 0);
}

CHECK(a_number_that_came_to_mean_another_file, "close(2): an operation that is not cancelled completes as if the close had "
                                               "not yet occurred; nothing is written to what is opened under its number") {
    enum { MANY = 400 };
    static struct aiocb cbs[MANY];
    static char bytes[MANY];
    struct stat status;
    for (int round = 0; round < 3; round++) {
        int flags = round == 0 ? O_RDWR | O_APPEND : O_RDWR;
        int fd = new_file(0, flags), kept = dup(fd), other = new_file(0, O_RDWR);
        for (int i = 0; i < MANY; i++) {
            cbs[i] = block(fd, &bytes[i], 1, i);
            REQUIRE(aio_write(&cbs[i]) == 0);
        }
        if (round < 2) {
            REQUIRE(dup2(other, fd) == fd);
        } else {
            REQUIRE(close(fd) == 0);
            REQUIRE(dup(other) == fd);
        }
        int written = 0;
        for (int i = 0; i < MANY; i++) {
            int error = ended(&cbs[i]);
            REQUIRE(error == 0 || error == ECANCELED);
            written += error == 0;
        }
        REQUIRE(fstat(other, &status) == 0 && status.st_size == 0);
        REQUIRE(fstat(kept, &status) == 0);
        REQUIRE(status.st_size == written || (round > 0 && status.st_size >= written));
    }
}

CHECK(init_is_taken, "aio_init(3): hints, which change no result") {
    char byte;
    struct aioinit hints = {.aio_threads = 3, .aio_num = 10, .aio_idle_time = 1};
    aio_init(&hints);
    struct aiocb cb = block(new_file(10, O_RDONLY), &byte, 1, 0);
    REQUIRE(aio_read(&cb) == 0 && ended(&cb) == 0 && aio_return(&cb) == 1);
}

CHECK(names_with_64, "glibc: the names with 64 do the same") {
    char byte = 0;
    struct aiocb64 cb;
    memset(&cb, 0, sizeof cb);
    cb.aio_fildes = new_file(10, O_RDWR);
    cb.aio_buf = &byte;
    cb.aio_nbytes = 1;
    cb.aio_offset = 5;
    cb.aio_sigevent.sigev_notify = SIGEV_NONE;
    const struct aiocb64 *wait[] = {&cb};
    struct aiocb64 *list[] = {&cb};
    REQUIRE(aio_read64(&cb) == 0);
    while (aio_error64(&cb) == EINPROGRESS)
        REQUIRE(aio_suspend64(wait, 1, NULL) == 0);
    REQUIRE(aio_return64(&cb) == 1 && (unsigned char)byte == byte_at(5));
    REQUIRE(aio_write64(&cb) == 0);
    REQUIRE(aio_suspend64(wait, 1, NULL) == 0 && aio_return64(&cb) == 1);
    REQUIRE(aio_fsync64(O_SYNC, &cb) == 0);
    REQUIRE(aio_suspend64(wait, 1, NULL) == 0 && aio_return64(&cb) == 0);
    REQUIRE(aio_cancel64(cb.aio_fildes, &cb) == AIO_ALLDONE);
    cb.aio_lio_opcode = LIO_READ;
    REQUIRE(lio_listio64(LIO_WAIT, list, 1, NULL) == 0 && aio_return64(&cb) == 1);
}

/* ---- running them ---- */

static int run(const struct check *check) {
    int ends[2];
    char why[400] = "";
    int status;
    if (pipe(ends) != 0)
        return 1;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        report = ends[1];
        setpgid(0, 0);
        alarm(2);
        check->run();
        _exit(0);
    }
    close(ends[1]);
    waitpid(child, &status, 0);
    /* Children that it left. */
    kill(-child, SIGKILL);
    /* One of them may have it open yet: no waiting for the end. */
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    ssize_t len = read(ends[0], why, sizeof why - 1);
    close(ends[0]);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
        printf("ok %s\n", check->name);
        return 0;
    }
    if (len <= 0)
        snprintf(why, sizeof why, WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM ? "hangs" : "ended with status %#x",
                 (unsigned int)status);
    printf("FAIL %s: %s\n", check->name, why);
    return 1;
}

static int forbid_io_uring(void) {
    struct sock_filter forbid[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {sizeof forbid / sizeof *forbid, forbid};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

int main(int argc, char **argv) {
    int failed = 0;
    if (argc > 2 && strcmp(argv[1], "--without") == 0) {
        if (!forbid_io_uring())
            return 3;
        argc--, argv++;
    }
    if (argc == 2 && strcmp(argv[1], "--list") == 0) {
        for (int i = 0; i < count; i++)
            printf("%s: %s\n", checks[i].name, checks[i].says);
        return 0;
    }
    if (argc < 2) {
        fprintf(stderr, "usage: posix FOLDER [NAME…] | --list\n");
        return 2;
    }
    folder = argv[1];
    for (int i = 0; i < count; i++) {
        bool wanted = argc == 2;
        for (int j = 2; j < argc; j++)
            wanted |= strcmp(argv[j], checks[i].name) == 0;
        if (wanted)
            failed += run(&checks[i]);
    }
    printf("%d checks, %d failed\n", count, failed);
    return 0;
}
