/* What uaio.h says, sentence by sentence. Run by c_face.rs; prints what is wrong and exits with 1. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>
#include "uaio.h"

#define IS(value, wanted)                                                                     \
    do {                                                                                      \
        long long is = (long long)(value), want = (long long)(wanted);                        \
        if (is != want) {                                                                     \
            fprintf(stderr, "line %d: %s is %lld, not %lld\n", __LINE__, #value, is, want);    \
            exit(1);                                                                          \
        }                                                                                     \
    } while (0)

static const struct timespec no_time = {0, 0}, a_while = {10, 0};
static void *const kernel = (void *)0xffff800000000000;

static int submit(uaio_context_t c, struct uaio_iocb *iocb)
{
    return uaio_submit(c, 1, &iocb);
}

/* Submits one and waits for its event. */
static int64_t done(uaio_context_t c, struct uaio_iocb iocb)
{
    struct uaio_event event = {0};
    int answer = submit(c, &iocb);
    if (answer < 0)
        return answer;
    IS(uaio_getevents(c, 1, 1, &event, &a_while), 1);
    IS(event.obj == &iocb, 1);
    IS(event.data, iocb.data);
    IS(event.res2, 0);
    return event.res;
}

static struct uaio_iocb on(int volume, int opcode, void *buf, uint64_t nbytes, int64_t offset)
{
    struct uaio_iocb iocb = {
        .data = 77, .opcode = (uint16_t)opcode, .fd = volume, .buf = buf, .nbytes = nbytes,
        .offset = offset, .flags = UAIO_F_VOLUME,
    };
    return iocb;
}

static struct uaio_iocb at(int fd, int opcode, void *buf, uint64_t nbytes, int64_t offset)
{
    struct uaio_iocb iocb = on(fd, opcode, buf, nbytes, offset);
    iocb.flags = 0;
    return iocb;
}

static void setup_and_names(void)
{
    uaio_context_t c = 0;
    IS(uaio_setup(0, &c), -EINVAL);
    IS(uaio_setup(65537, &c), -EINVAL);
    IS(uaio_setup(8, NULL), -EFAULT);
    IS(uaio_setup(8, kernel), -EFAULT);
    IS(uaio_destroy(12345), -EINVAL);
    IS(uaio_setup(8, &c), 0);
    IS(uaio_open(c, "nowhere:1", 0, 0), -EINVAL);
    IS(uaio_open(c, NULL, 0, 0), -EFAULT);
    IS(uaio_open(c, "ram:1M", 4, 0), -EINVAL);
    IS(uaio_open(c, "ram:1M", 0, 1), -EINVAL);
    IS(uaio_open(c, "file:/nonexistent/file", 0, 0), -ENOENT);
    IS(uaio_size(c, 1), -EBADF);
    IS(uaio_size(c, -1), -EBADF);
    IS(uaio_open(c, "ram:1M", 0, 1 << 20), 1);
    IS(uaio_open(c, "ram:2M", 0, 1 << 20), 2);
    IS(uaio_size(c, 1), 1 << 20);
    IS(uaio_size(c, 2), 2 << 20);
    IS(uaio_destroy(c), 0);
    struct uaio_event event;
    struct uaio_iocb iocb = at(0, UAIO_NOOP, NULL, 0, 0);
    IS(uaio_destroy(c), -EINVAL);
    IS(uaio_getevents(c, 0, 1, &event, &no_time), -EINVAL);
    IS(submit(c, &iocb), -EINVAL);
    IS(uaio_cancel(c, &iocb), -EINVAL);
    IS(uaio_size(c, 1), -EINVAL);
}

static void volumes(uaio_context_t c, int v)
{
    static char out[8192], in[8192];
    for (size_t i = 0; i < sizeof out; i++)
        out[i] = (char)(i * 7);
    IS(done(c, on(v, UAIO_PWRITE, out, sizeof out, 100)), sizeof out);
    IS(done(c, on(v, UAIO_PREAD, in, sizeof in, 100)), sizeof in);
    IS(memcmp(in, out, sizeof in), 0);
    struct iovec parts[3] = {{in, 5}, {in + 10, 0}, {in + 20, 3}};
    memset(in, 1, sizeof in);
    IS(done(c, on(v, UAIO_PREADV, parts, 3, 101)), 8);
    IS(memcmp(in, out + 1, 5), 0);
    IS(memcmp(in + 20, out + 6, 3), 0);
    IS(in[5], 1);
    IS(in[23], 1);
    IS(done(c, on(v, UAIO_PWRITEV, parts, 3, 0)), 8);
    IS(done(c, on(v, UAIO_FSYNC, NULL, 0, 0)), 0);
    IS(done(c, on(v, UAIO_FDSYNC, NULL, 0, 0)), 0);
    IS(done(c, on(v, UAIO_WRITE_ZEROES, NULL, 4096, 0)), 4096);
    IS(done(c, on(v, UAIO_DISCARD, NULL, 4096, 4096)), 4096);
    IS(done(c, on(v, UAIO_DISCARD, NULL, 5, 0)), -EINVAL);
    IS(done(c, on(v, UAIO_PREAD, in, 10, 0)), 10);
    IS(in[0], 0);
    /* The end. */
    int64_t size = uaio_size(c, v);
    IS(done(c, on(v, UAIO_PREAD, in, 100, size - 4)), 4);
    IS(done(c, on(v, UAIO_PREAD, in, 100, size)), 0);
    IS(done(c, on(v, UAIO_PWRITE, in, 100, size - 4)), 4);
    IS(done(c, on(v, UAIO_PWRITE, in, 100, size)), -ENOSPC);
    IS(done(c, on(v, UAIO_PWRITE, in, 0, 0)), 0);
    /* What is not possible. */
    IS(done(c, on(v, UAIO_PREAD, in, 1, -1)), -EINVAL);
    IS(done(c, on(v, UAIO_PREAD, in, UINT64_MAX, 0)), -EINVAL);
    IS(done(c, on(v, UAIO_PREAD, in, INT64_MAX, 1)), -EFAULT);
    IS(done(c, on(v, UAIO_PREAD, NULL, 1, 0)), -EFAULT);
    IS(done(c, on(v, UAIO_PWRITE, kernel, 1, 0)), -EFAULT);
    IS(done(c, on(v, UAIO_PREADV, NULL, 1, 0)), -EFAULT);
    IS(done(c, on(v, UAIO_PREADV, parts, 1025, 0)), -EINVAL);
    IS(done(c, on(v, UAIO_POLL, NULL, POLLIN, 0)), -EOPNOTSUPP);
    IS(done(c, on(v, 99, NULL, 0, 0)), -EINVAL);
    IS(done(c, on(9, UAIO_PREAD, in, 1, 0)), -EBADF);
    struct uaio_iocb odd = on(v, UAIO_PREAD, in, 1, 0);
    odd.flags |= 64;
    IS(done(c, odd), -EINVAL);
    odd = on(v, UAIO_PREAD, in, 1, 0);
    odd.priority = 9;
    IS(done(c, odd), -EINVAL);
    int direct = uaio_open(c, "ram:1M", UAIO_O_DIRECT, 1 << 20);
    IS(direct > 0, 1);
    IS(done(c, on(direct, UAIO_PWRITE, in, 100, 0)), -EINVAL);
    IS(done(c, on(direct, UAIO_PWRITE, in, 512, 512)), 512);
}

static void host(uaio_context_t c)
{
    char name[] = "/tmp/uaio-c-XXXXXX", in[100];
    int fd = mkstemp(name);
    IS(fd >= 0, 1);
    unlink(name);
    IS(done(c, at(fd, UAIO_PWRITE, "hello", 5, 3)), 5);
    IS(done(c, at(fd, UAIO_FSYNC, NULL, 0, 0)), 0);
    IS(done(c, at(fd, UAIO_PREAD, in, 100, 0)), 8);
    IS(memcmp(in, "\0\0\0hello", 8), 0);
    struct iovec parts[2] = {{in, 1}, {in + 50, 50}};
    IS(done(c, at(fd, UAIO_PREADV, parts, 2, 3)), 5);
    IS(memcmp(in + 50, "ello", 4), 0);
    IS(done(c, at(fd, UAIO_PREAD, in, 10, -1)), -EINVAL);
    IS(done(c, at(fd, UAIO_PREAD, NULL, 10, 0)), -EFAULT);
    /* Not mapped: the kernel says so, and nothing crashes. */
    IS(done(c, at(fd, UAIO_PREAD, (void *)4096, 8, 0)), -EFAULT);
    IS(done(c, at(fd, UAIO_DISCARD, NULL, 4096, 0)), -EOPNOTSUPP);
    close(fd);
    IS(done(c, at(fd, UAIO_PREAD, in, 10, 0)), -EBADF);
    IS(done(c, at(-1, UAIO_FSYNC, NULL, 0, 0)), -EBADF);
    IS(done(c, at(0, UAIO_NOOP, NULL, 0, 0)), 0);
    int pipes[2];
    IS(pipe(pipes), 0);
    IS(done(c, at(pipes[1], UAIO_PWRITE, "abc", 3, 0)), 3);
    IS(done(c, at(pipes[0], UAIO_POLL, NULL, POLLIN, 0)), POLLIN);
    IS(done(c, at(pipes[0], UAIO_PREAD, in, 10, 0)), 3);
    IS(uaio_cancel_fd(c, pipes[0], 0), 0);
    IS(uaio_cancel_fd(c, 1, UAIO_F_VOLUME), 0);
    IS(uaio_cancel_all(c), 0);
    /* Cancelled while it waits; then its event is there. */
    struct uaio_event event;
    struct uaio_iocb wait = at(pipes[0], UAIO_PREAD, in, 10, 0);
    IS(submit(c, &wait), 1);
    IS(uaio_getevents(c, 1, 1, &event, &no_time), 0);
    int cancelled = uaio_cancel(c, &wait);
    IS(cancelled == UAIO_CANCELED || cancelled == UAIO_NOTCANCELED, 1);
    IS(uaio_getevents(c, 1, 1, &event, &a_while), 1);
    IS(event.res, -ECANCELED);
    IS(uaio_cancel(c, &wait), -EINVAL);
    wait.timeout_ms = 10;
    IS(done(c, wait), -ETIMEDOUT);
    close(pipes[0]);
    close(pipes[1]);
}

static void waiting(uaio_context_t c, int v)
{
    char in[64];
    struct uaio_event events[8];
    struct timespec wrong = {0, 1000000000};
    IS(uaio_getevents(c, 2, 1, events, NULL), -EINVAL);
    IS(uaio_getevents(c, -1, 1, events, NULL), -EINVAL);
    IS(uaio_getevents(c, 0, 1, NULL, NULL), -EFAULT);
    IS(uaio_getevents(c, 1, 1, events, &wrong), -EINVAL);
    IS(uaio_getevents(c, 0, 8, events, NULL), 0);
    struct timespec soon = {0, 1000000};
    IS(uaio_getevents(c, 1, 8, events, &soon), 0);
    /* Over two contexts: m of n. */
    uaio_context_t other;
    IS(uaio_setup(4, &other), 0);
    int pipes[2];
    IS(pipe(pipes), 0);
    struct uaio_iocb first = on(v, UAIO_PREAD, in, 8, 0);
    struct uaio_iocb second = at(0, UAIO_NOOP, NULL, 0, 0);
    struct uaio_iocb never = at(pipes[0], UAIO_PREAD, in + 8, 8, 0);
    IS(submit(c, &first), 1);
    IS(submit(other, &second), 1);
    IS(submit(other, &never), 1);
    struct uaio_wait list[3] = {{other, &never}, {c, &first}, {other, &second}};
    IS(uaio_suspend(list, 3, 2, &a_while), 0);
    IS(uaio_suspend(list, 3, 3, &soon), -EAGAIN);
    IS(uaio_suspend(list, 3, 4, &soon), -EINVAL);
    IS(uaio_suspend(NULL, 3, 1, &soon), -EFAULT);
    IS(write(pipes[1], "x", 1), 1);
    IS(uaio_suspend(list, 3, 3, &a_while), 0);
    IS(uaio_getevents(c, 1, 1, events, NULL), 1);
    IS(uaio_getevents(other, 2, 8, events, NULL), 2);
    /* Destroyed with one that would never end: cancelled. */
    IS(submit(other, &never), 1);
    IS(uaio_destroy(other), 0);
    close(pipes[0]);
    close(pipes[1]);
}

static volatile sig_atomic_t signalled;
static volatile int called;

static void on_signal(int signo, siginfo_t *info, void *context)
{
    (void)context;
    signalled = signo == SIGUSR1 && info->si_code == SI_ASYNCIO ? info->si_value.sival_int : -1;
}

static void on_call(void *value)
{
    __atomic_store_n(&called, (int)(intptr_t)value, __ATOMIC_SEQ_CST);
}

static void lists_and_notices(uaio_context_t c, int v)
{
    char in[8];
    struct uaio_event events[8];
    struct uaio_iocb good = on(v, UAIO_PREAD, in, 8, 0), bad = on(v, 99, NULL, 0, 0);
    struct uaio_iocb last = at(0, UAIO_NOOP, NULL, 0, 0);
    struct uaio_iocb *list[4] = {&good, &bad, NULL, &last};
    IS(uaio_listio(c, 7, list, 4, NULL), -EINVAL);
    IS(uaio_listio(c, UAIO_LIST_WAIT, NULL, 4, NULL), -EFAULT);
    IS(uaio_listio(c, UAIO_LIST_WAIT, list, 4, NULL), 2);
    IS(good.status, 0);
    IS(bad.status, -EINVAL);
    IS(uaio_getevents(c, 2, 8, events, &no_time), 2);

    int efd = eventfd(0, EFD_CLOEXEC);
    struct uaio_notify notify = {.kind = UAIO_NOTIFY_EVENTFD, .fd = efd};
    IS(uaio_listio(c, UAIO_LIST_NOWAIT, list, 4, &notify), 2);
    uint64_t count = 0;
    IS(read(efd, &count, 8), 8);
    IS(count, 1);
    IS(uaio_getevents(c, 2, 8, events, &no_time), 2);

    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
    IS(sigaction(SIGUSR1, &action, NULL), 0);
    notify = (struct uaio_notify){.kind = UAIO_NOTIFY_SIGNAL, .signo = SIGUSR1, .value = (void *)42};
    IS(uaio_listio(c, UAIO_LIST_NOWAIT, list, 4, &notify), 2);
    IS(uaio_getevents(c, 2, 8, events, &a_while), 2);
    for (int i = 0; i < 2000 && !signalled; i++)
        usleep(1000);
    IS(signalled, 42);
    notify.signo = 1000;
    IS(uaio_listio(c, UAIO_LIST_NOWAIT, list, 4, &notify), -EINVAL);

    notify = (struct uaio_notify){
        .kind = UAIO_NOTIFY_FUNCTION, .function = on_call, .value = (void *)43};
    IS(uaio_listio(c, UAIO_LIST_NOWAIT, list, 4, &notify), 2);
    for (int i = 0; i < 2000 && !__atomic_load_n(&called, __ATOMIC_SEQ_CST); i++)
        usleep(1000);
    IS(called, 43);
    IS(uaio_getevents(c, 2, 8, events, &a_while), 2);
    notify.function = NULL;
    IS(uaio_listio(c, UAIO_LIST_NOWAIT, list, 4, &notify), -EFAULT);
    notify = (struct uaio_notify){.kind = 9};
    IS(uaio_listio(c, UAIO_LIST_NOWAIT, list, 4, &notify), -EINVAL);

    struct uaio_iocb counted = on(v, UAIO_PREAD, in, 8, 0);
    counted.flags |= UAIO_F_RESFD;
    counted.resfd = efd;
    IS(done(c, counted), 8);
    IS(read(efd, &count, 8), 8);
    IS(count, 1);
    counted.resfd = 0x7fff;
    IS(done(c, counted), -EBADF);
    int plain = open("/dev/null", O_RDWR);
    counted.resfd = plain;
    IS(done(c, counted), -EINVAL);
    close(plain);
    close(efd);
}

static void limits(void)
{
    uaio_context_t c;
    IS(uaio_setup(2, &c), 0);
    struct uaio_iocb iocbs[3], *list[3];
    for (int i = 0; i < 3; i++) {
        iocbs[i] = at(0, UAIO_NOOP, NULL, 0, 0);
        iocbs[i].data = (uint64_t)i;
        list[i] = &iocbs[i];
    }
    /* Over the limit it says how many went in, and loses none. */
    IS(uaio_submit(c, 3, list), 2);
    IS(uaio_submit(c, 1, list + 2), -EAGAIN);
    IS(uaio_submit(c, 0, list), 0);
    IS(uaio_submit(c, -1, list), -EINVAL);
    IS(uaio_submit(c, 1, NULL), -EFAULT);
    struct uaio_iocb *nothing[1] = {NULL};
    IS(uaio_submit(c, 1, nothing), -EFAULT);
    struct uaio_event events[3];
    IS(uaio_getevents(c, 2, 3, events, &a_while), 2);
    IS(events[0].data + events[1].data, 1);
    IS(uaio_submit(c, 1, list + 2), 1);
    IS(uaio_getevents(c, 1, 3, events, &a_while), 1);
    IS(events[0].data, 2);
    IS(uaio_destroy(c), 0);
}

int main(void)
{
    setup_and_names();
    uaio_context_t c;
    IS(uaio_setup(8, &c), 0);
    int v = uaio_open(c, "ram:4M", 0, 1 << 20);
    IS(v, 1);
    volumes(c, v);
    host(c);
    waiting(c, v);
    lists_and_notices(c, v);
    limits();
    IS(uaio_destroy(c), 0);
    puts("ok");
    return 0;
}
