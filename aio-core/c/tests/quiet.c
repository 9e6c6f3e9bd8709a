/* uaio_getevents() makes no system call when events are there: a thread that may make none but read, write and
 * exit (seccomp(2), strict mode) takes them out. Run by c_face.rs; the kernel ends a thread that makes another
 * one, and this program says so and exits with 1. */
#include <fcntl.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "uaio.h"

enum { MANY = 64 };

static uaio_context_t c;
static struct uaio_event events[MANY];
static char bytes[MANY][64];
static int volume, first, second;

static int submit_and_wait(void)
{
    static struct uaio_iocb iocbs[MANY];
    struct uaio_iocb *list[MANY];
    struct uaio_wait waits[MANY];
    for (int i = 0; i < MANY; i++) {
        iocbs[i] = (struct uaio_iocb){.data = (uint64_t)i, .opcode = UAIO_NOOP};
        if (i % 2) {
            iocbs[i] = (struct uaio_iocb){
                .data = (uint64_t)i, .opcode = UAIO_PREAD, .fd = volume, .buf = bytes[i], .nbytes = 64,
                .offset = 64 * i, .flags = UAIO_F_VOLUME,
            };
        }
        list[i] = &iocbs[i];
        waits[i] = (struct uaio_wait){c, &iocbs[i]};
    }
    return uaio_submit(c, MANY, list) == MANY && uaio_suspend(waits, MANY, MANY, NULL) == 0;
}

static void *take(void *unused)
{
    (void)unused;
    /* The first time is for what a thread does once: find the context, have an arena of malloc. */
    if (!submit_and_wait() || uaio_getevents(c, MANY, MANY, events, NULL) != MANY)
        return NULL;
    first = submit_and_wait();
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) != 0) {
        second = MANY;
        return NULL;
    }
    int half = uaio_getevents(c, 1, MANY / 2, events, NULL);
    second = half + uaio_getevents(c, MANY / 2, MANY, events, NULL);
    syscall(SYS_exit, 0);
    return NULL;
}

int main(void)
{
    pthread_t thread;
    if (uaio_setup(MANY, &c) != 0 || (volume = uaio_open(c, "ram:1M", 0, 1 << 20)) < 0)
        return 2;
    if (pthread_create(&thread, NULL, take, NULL) != 0 || pthread_join(thread, NULL) != 0)
        return 3;
    if (!first || second != MANY) {
        fprintf(stderr, "%d events were taken out of %d, before the thread was ended\n", second, MANY);
        return 1;
    }
    puts("ok");
    return 0;
}
