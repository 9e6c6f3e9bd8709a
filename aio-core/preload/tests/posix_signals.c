/* aio_error(), aio_return() and aio_suspend() in signal handlers that interrupt every other function, thousands of
 * times; and a thread to which the kernel grants nothing but futex(2) calls them. Run by posix.rs.
 *
 *   posix_signals FOLDER SECONDS     `ok N signals`, or what is wrong
 */
#define _GNU_SOURCE
#include <aio.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define REQUIRE(condition)                                                                             \
    do {                                                                                               \
        if (!(condition)) {                                                                            \
            dprintf(2, "line %d: not %s (errno %d)\n", __LINE__, #condition, errno);                   \
            _exit(1);                                                                                  \
        }                                                                                              \
    } while (0)

enum { MANY = 16 };

static struct aiocb file_blocks[MANY], never;
static char bytes[MANY][64], byte;
static volatile sig_atomic_t live[MANY];
static atomic_int signals, taken;
static int file, ends[2];

static struct aiocb block(int fd, void *at, size_t len, off_t offset) {
    struct aiocb cb;
    memset(&cb, 0, sizeof cb);
    cb.aio_fildes = fd;
    cb.aio_buf = at;
    cb.aio_nbytes = len;
    cb.aio_offset = offset;
    cb.aio_sigevent.sigev_notify = SIGEV_NONE;
    return cb;
}

/* What the handler may say of any block at any time, and it takes the results of those that are over. */
static void on_signal(int number) {
    int before = errno;
    struct timespec none = {0, 0}, short_time = {0, 20000};
    const struct aiocb *waits[] = {&never, NULL, &never};
    (void)number;
    REQUIRE(aio_error(&never) == EINPROGRESS);
    REQUIRE(aio_suspend(waits, 1, &none) == -1 && errno == EAGAIN);
    if (atomic_load(&signals) % 8 == 0)
        REQUIRE(aio_suspend(waits, 3, &short_time) == -1 && (errno == EAGAIN || errno == EINTR));
    for (int i = 0; i < MANY; i++) {
        const struct aiocb *one[] = {&file_blocks[i], &never};
        if (!live[i])
            continue;
        /* Under way, and the reactor ends it whatever this thread is in the middle of. */
        while (aio_suspend(one, 1 + i % 2, NULL) != 0)
            REQUIRE(errno == EINTR);
        /* What was not issued yet when all were to be cancelled is. */
        int error = aio_error(&file_blocks[i]);
        REQUIRE(error == 0 || error == ECANCELED);
        REQUIRE(aio_return(&file_blocks[i]) == (error == 0 ? 64 : -1));
        live[i] = 0;
        atomic_fetch_add(&taken, 1);
    }
    atomic_fetch_add(&signals, 1);
    errno = before;
}

static void *only_futex(void *nothing) {
    struct sock_filter allow[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_futex, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {sizeof allow / sizeof *allow, allow};
    const struct aiocb *waits[] = {&never, &file_blocks[0]};
    struct timespec time = {0, 1000000};
    REQUIRE(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    REQUIRE(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0);
    REQUIRE(aio_suspend(waits, 1, &time) == -1 && errno == EAGAIN);
    REQUIRE(aio_suspend(waits, 2, NULL) == 0);
    REQUIRE(aio_error(&file_blocks[0]) == 0);
    REQUIRE(aio_return(&file_blocks[0]) == 64);
    REQUIRE(aio_error(&file_blocks[0]) == -1 && errno == EINVAL);
    syscall(SYS_exit, 0);
    return nothing;
}

int main(int argc, char **argv) {
    char name[4096];
    REQUIRE(argc == 3);
    snprintf(name, sizeof name, "%s/signals", argv[1]);
    file = open(name, O_CREAT | O_TRUNC | O_RDWR, 0600);
    REQUIRE(file >= 0 && ftruncate(file, 1 << 16) == 0 && pipe(ends) == 0);
    never = block(ends[0], &byte, 1, 0);
    REQUIRE(aio_read(&never) == 0);

    file_blocks[0] = block(file, bytes[0], 64, 0);
    REQUIRE(aio_read(&file_blocks[0]) == 0);
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, only_futex, NULL) == 0 && pthread_join(thread, NULL) == 0);

    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    REQUIRE(sigaction(SIGALRM, &action, NULL) == 0);
    struct sigevent event;
    memset(&event, 0, sizeof event);
    event.sigev_notify = SIGEV_SIGNAL;
    event.sigev_signo = SIGALRM;
    timer_t timer;
    REQUIRE(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
    time_t end = time(NULL) + atoi(argv[2]);
    int submitted = 0;
    for (int at = 0; time(NULL) < end; at = (at + 1) % MANY) {
        if (live[at])
            continue;
        file_blocks[at] = block(file, bytes[at], 64, at * 64);
        /* Once, soon: a handler that comes again and again lets nobody get on. */
        struct itimerspec soon = {{0, 0}, {0, 500 + 997 * submitted % 40000}};
        if (submitted % 3 == 0)
            REQUIRE(timer_settime(timer, 0, &soon, NULL) == 0);
        /* The handler must not see a block before it is a request, nor take it before this has returned. */
        if (at % 4 == 0) {
            struct aiocb *list[] = {&file_blocks[at]};
            file_blocks[at].aio_lio_opcode = LIO_READ;
            REQUIRE(lio_listio(LIO_NOWAIT, list, 1, NULL) == 0);
        } else {
            REQUIRE(aio_read(&file_blocks[at]) == 0);
        }
        live[at] = 1;
        submitted++;
        if (at == 3)
            REQUIRE(aio_cancel(file, NULL) >= 0);
    }
    struct itimerspec off = {{0, 0}, {0, 0}};
    REQUIRE(timer_settime(timer, 0, &off, NULL) == 0);
    for (int i = 0; i < MANY; i++)
        if (live[i]) {
            on_signal(SIGALRM);
            break;
        }
    REQUIRE(submitted == atomic_load(&taken));
    printf("ok %d signals, %d requests\n", atomic_load(&signals), submitted);
    return 0;
}
