/* Many requests of every kind, from two threads; each result is compared. Run by posix.rs, also under valgrind.
 *
 *   posix_many FOLDER COUNT     `ok COUNT`, or what is wrong
 */
#define _GNU_SOURCE
#include <aio.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define REQUIRE(condition)                                                                             \
    do {                                                                                               \
        if (!(condition)) {                                                                            \
            dprintf(2, "line %d: not %s (errno %d)\n", __LINE__, #condition, errno);                   \
            _exit(1);                                                                                  \
        }                                                                                              \
    } while (0)

enum { MANY = 32, LEN = 64, BLOCKS = 1024 };

static const char *folder;
static int most;
static atomic_int done, called;

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

static int ended(struct aiocb *cb) {
    const struct aiocb *list[] = {cb, cb};
    while (aio_error(cb) == EINPROGRESS)
        aio_suspend(list, 1 + (int)(cb->aio_offset / LEN % 2), NULL);
    return aio_error(cb);
}

static void on_call(union sigval value) { atomic_fetch_add(&called, value.sival_int); }

/* A round: blocks written, read back, and compared; a pipe read, of which one read is cancelled. */
static int round_of(int file, int *ends, unsigned int number) {
    static __thread struct aiocb cbs[MANY];
    static __thread unsigned char bytes[MANY][LEN];
    struct aiocb *list[MANY];
    int calls = 0;
    for (int i = 0; i < MANY; i++) {
        int at = (int)((number * 31 + (unsigned int)i) % BLOCKS);
        memset(bytes[i], (int)(number + (unsigned int)i), LEN);
        cbs[i] = block(file, bytes[i], LEN, (off_t)at * LEN);
        cbs[i].aio_lio_opcode = LIO_WRITE;
        list[i] = &cbs[i];
    }
    if (number % 64 == 0) {
        cbs[0].aio_sigevent.sigev_notify = SIGEV_THREAD;
        cbs[0].aio_sigevent.sigev_notify_function = on_call;
        cbs[0].aio_sigevent.sigev_value.sival_int = 1;
        calls = 1;
    }
    if (number % 2 == 0) {
        REQUIRE(lio_listio(LIO_WAIT, list, MANY, NULL) == 0);
    } else {
        for (int i = 0; i < MANY; i++)
            REQUIRE(aio_write(&cbs[i]) == 0);
    }
    struct aiocb sync = block(file, NULL, 0, 0);
    int syncs = number % 64 == 1;
    if (syncs) {
        REQUIRE(aio_fsync(O_DSYNC, &sync) == 0);
        REQUIRE(ended(&sync) == 0 && aio_return(&sync) == 0);
    }
    for (int i = 0; i < MANY; i++) {
        REQUIRE(ended(&cbs[i]) == 0);
        REQUIRE(aio_return(&cbs[i]) == LEN);
        cbs[i].aio_sigevent.sigev_notify = SIGEV_NONE;
        /* Set, because valgrind does not see what the kernel writes for io_uring. */
        memset(bytes[i], 0, LEN);
        REQUIRE(aio_read(&cbs[i]) == 0);
    }
    for (int i = 0; i < MANY; i++) {
        REQUIRE(ended(&cbs[i]) == 0);
        REQUIRE(aio_return(&cbs[i]) == LEN);
        REQUIRE(bytes[i][0] == (unsigned char)(number + (unsigned int)i) && bytes[i][LEN - 1] == bytes[i][0]);
    }
    char in[2] = "";
    struct aiocb first = block(ends[0], &in[0], 1, 0), second = block(ends[0], &in[1], 1, 0);
    REQUIRE(aio_read(&first) == 0);
    REQUIRE(aio_read(&second) == 0);
    REQUIRE(aio_cancel(ends[0], &second) == AIO_CANCELED);
    REQUIRE(aio_error(&second) == ECANCELED && aio_return(&second) == -1);
    REQUIRE(write(ends[1], "x", 1) == 1);
    REQUIRE(ended(&first) == 0 && aio_return(&first) == 1 && in[0] == 'x');
    atomic_fetch_sub(&called, calls);
    return 2 * MANY + 2 + syncs;
}

static void *rounds(void *seed) {
    char name[4096];
    int ends[2];
    snprintf(name, sizeof name, "%s/many.%d", folder, (int)(long)seed);
    int file = open(name, O_CREAT | O_TRUNC | O_RDWR, 0600);
    REQUIRE(file >= 0 && ftruncate(file, BLOCKS * LEN) == 0 && pipe(ends) == 0);
    for (unsigned int number = (unsigned int)(long)seed; atomic_load(&done) < most; number++)
        atomic_fetch_add(&done, round_of(file, ends, number));
    close(file);
    close(ends[0]);
    close(ends[1]);
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t threads[2];
    REQUIRE(argc == 3);
    folder = argv[1];
    most = atoi(argv[2]);
    for (long i = 0; i < 2; i++)
        REQUIRE(pthread_create(&threads[i], NULL, rounds, (void *)(i * 1000)) == 0);
    for (int i = 0; i < 2; i++)
        REQUIRE(pthread_join(threads[i], NULL) == 0);
    for (int i = 0; i < 2000 && atomic_load(&called) != 0; i++)
        usleep(1000);
    REQUIRE(atomic_load(&called) == 0);
    printf("ok %d\n", most);
    return 0;
}
