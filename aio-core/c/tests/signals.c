/* A program that waits for its signals with sigwait(3) gets them, also when it blocks them only after it has made a
 * context: the library's threads take none. Run by c_face.rs; a thread of the library's that took one would end this
 * program, which has no handler. Prints what is wrong and exits with 1. */
#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
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

static int called;

static void on_call(void *value)
{
    (void)value;
    __atomic_store_n(&called, 1, __ATOMIC_SEQ_CST);
}

/* The signals that a thread blocks, as bits from signal 1 on. */
static unsigned long long blocked(const char *thread)
{
    char name[300], line[200];
    unsigned long long mask = 0;
    snprintf(name, sizeof name, "/proc/self/task/%s/status", thread);
    FILE *status = fopen(name, "r");
    IS(status != NULL, 1);
    while (fgets(line, sizeof line, status) && sscanf(line, "SigBlk: %llx", &mask) != 1)
        ;
    fclose(status);
    return mask;
}

int main(void)
{
    sigset_t before, after, usr1;
    IS(pthread_sigmask(SIG_SETMASK, NULL, &before), 0);
    uaio_context_t c;
    IS(uaio_setup(8, &c), 0);
    int volume = uaio_open(c, "ram:1M", 0, 1 << 20);
    IS(volume, 1);
    IS(pthread_sigmask(SIG_SETMASK, NULL, &after), 0);
    for (int signo = 1; signo < 32; signo++)
        IS(sigismember(&after, signo), sigismember(&before, signo));

    /* Every thread has worked: the one that serves, the one that calls back, and one for system calls. */
    char in[64];
    struct uaio_call call = {.number = SYS_getrandom};
    struct uaio_notify notify = {.kind = UAIO_NOTIFY_FUNCTION, .function = on_call};
    struct uaio_iocb read = {
        .opcode = UAIO_PREAD, .fd = volume, .buf = in, .nbytes = sizeof in, .flags = UAIO_F_VOLUME | UAIO_F_NOTIFY,
        .notify = &notify,
    };
    call.arguments[0] = (uint64_t)(uintptr_t)in;
    call.arguments[1] = sizeof in;
    struct uaio_iocb random = {.opcode = UAIO_CALL, .fd = -1, .buf = &call};
    struct uaio_iocb *list[2] = {&read, &random};
    IS(uaio_submit(c, 2, list), 2);
    struct uaio_event events[2];
    IS(uaio_getevents(c, 2, 2, events, NULL), 2);
    IS(events[0].res, sizeof in);
    IS(events[1].res, sizeof in);
    for (int i = 0; i < 5000 && !__atomic_load_n(&called, __ATOMIC_SEQ_CST); i++)
        usleep(1000);
    IS(called, 1);

    /* Too late for threads that have inherited the mask. */
    IS(sigemptyset(&usr1), 0);
    IS(sigaddset(&usr1, SIGUSR1), 0);
    IS(pthread_sigmask(SIG_BLOCK, &usr1, NULL), 0);
    for (int i = 0; i < 100; i++) {
        struct timespec a_while = {10, 0};
        IS(kill(getpid(), SIGUSR1), 0);
        IS(sigtimedwait(&usr1, NULL, &a_while), SIGUSR1);
    }

    /* What tells a handler of a fault of theirs reaches it. */
    char own[32];
    int threads = 0;
    snprintf(own, sizeof own, "%d", (int)getpid());
    DIR *tasks = opendir("/proc/self/task");
    IS(tasks != NULL, 1);
    for (struct dirent *task; (task = readdir(tasks)) != NULL;) {
        char name[300], comm[32] = "";
        if (task->d_name[0] == '.' || strcmp(task->d_name, own) == 0)
            continue;
        snprintf(name, sizeof name, "/proc/self/task/%s/comm", task->d_name);
        FILE *file = fopen(name, "r");
        if (!file || !fgets(comm, sizeof comm, file))
            comm[0] = 0;
        if (file)
            fclose(file);
        /* Those of the kernel's (iou-...) take none but SIGKILL and SIGSTOP. */
        if (strcmp(comm, "uaio\n") != 0 && strcmp(comm, "uaio-notify\n") != 0)
            continue;
        threads++;
        unsigned long long mask = blocked(task->d_name);
        for (int signo = 1; signo < 32; signo++) {
            int fault = signo == SIGSEGV || signo == SIGBUS || signo == SIGFPE || signo == SIGILL ||
                        signo == SIGTRAP || signo == SIGSYS;
            if (signo != SIGKILL && signo != SIGSTOP)
                IS(mask >> (signo - 1) & 1, !fault);
        }
    }
    closedir(tasks);
    IS(threads, 2);
    IS(uaio_destroy(c), 0);
    puts("ok");
    return 0;
}
