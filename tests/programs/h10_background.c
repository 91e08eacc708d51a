// hazard 10: threads that libc makes by itself: timers, queues, asynchronous IO and names that notify by a thread
// cflags: -lrt
// expect: elided
#include "common.h"
#include <aio.h>
#include <mqueue.h>
#include <netdb.h>
#include <stdatomic.h>

#define N (256 * KIB)
#define PAGE ((size_t)4096)
#define ROUNDS 400
static u8 *data, *copy;
static peer p;
static atomic_int started, stop, over;
static volatile u64 lost, stores;

/* Stores to a page in the middle of elided data, and looks whether each store is still there. */
static void writer(union sigval v) {
    volatile u64 *at = v.sival_ptr;
    u64 n = 0;
    atomic_store(&started, 1);
    while (!atomic_load(&stop)) {
        *at = ++n;
        for (int i = 0; i < 20; i++) lost += *at != n;
    }
    stores = n;
    atomic_store(&over, 1);
}

static struct sigevent event(void) {
    struct sigevent e = {.sigev_notify = SIGEV_THREAD, .sigev_notify_function = writer};
    e.sigev_value.sival_ptr = data + N / 2;
    return e;
}

/* The copies of one thread, while the thread that libc made stores into their source. */
static void judge_stores(const char *name) {
    for (int i = 0; !atomic_load(&started) && i < 5000; i++) usleep(1000);
    MUST(atomic_load(&started));
    for (int i = 0; i < ROUNDS; i++) {
        memcpy(copy, data, N);
        for (volatile int w = 0; w < 2000; w++) {
        }
    }
    atomic_store(&stop, 1);
    for (int i = 0; !atomic_load(&over) && i < 5000; i++) usleep(1000);
    int bad = 0;
    for (size_t i = 0; i < N / 2; i += 777) bad += copy[i] != pat(70, i);
    say("%s: lost %lu, stored %d, other bytes wrong %d", name, (unsigned long)lost, stores > 0, bad);
    failures += lost != 0 || bad;
}

static void fresh(void) {
    data = malloc(N), copy = malloc(N);
    GET(&p, 70, data, N);
    memcpy(copy, data, N);
}

static void by_timer(void *arg) {
    (void)arg;
    timer_t t;
    struct itimerspec soon = {.it_value = {0, 1000000}};
    fresh();
    struct sigevent e = event();
    MUST(timer_create(CLOCK_MONOTONIC, &e, &t) == 0);
    MUST(timer_settime(t, 0, &soon, NULL) == 0);
    judge_stores("timer_create");
}

/* A timer's thread runs with every signal blocked; it touches elided memory all the same. */
static void reader(union sigval v) {
    sigset_t now;
    int bad = 0;
    pthread_sigmask(SIG_BLOCK, NULL, &now);
    for (size_t i = 0; i < N; i += 500) bad += ((volatile u8 *)data)[i] != pat(70, i);
    say("timer %d: bad %d, blocked %d %d %d", v.sival_int, bad, sigismember(&now, SIGSEGV),
        sigismember(&now, SIGBUS), sigismember(&now, SIGUSR1));
    atomic_store(&over, 1);
}
static void timers(void *arg) {
    (void)arg;
    for (int i = 0; i < 6; i++) {
        timer_t t;
        struct itimerspec soon = {.it_value = {0, 1000000}};
        struct sigevent e = {.sigev_notify = SIGEV_THREAD, .sigev_notify_function = reader};
        e.sigev_value.sival_int = i / 2;
        fresh();
        atomic_store(&over, 0);
        MUST(timer_create(CLOCK_MONOTONIC, &e, &t) == 0);
        MUST(timer_settime(t, 0, &soon, NULL) == 0);
        for (int w = 0; !atomic_load(&over) && w < 5000; w++) usleep(1000);
        MUST(timer_delete(t) == 0);
        free(data);
        free(copy);
    }
}
/* More callbacks than are remembered. */
static void many(void *arg) {
    (void)arg;
    for (int i = 0; i < 1100; i++) {
        timer_t t;
        struct sigevent e = {.sigev_notify = SIGEV_THREAD, .sigev_notify_function = reader};
        e.sigev_value.sival_int = i;
        MUST(timer_create(CLOCK_MONOTONIC, &e, &t) == 0);
        MUST(timer_delete(t) == 0);
    }
    timers(NULL);
}

static void by_queue(void *arg) {
    (void)arg;
    char name[64];
    struct mq_attr a = {.mq_maxmsg = 2, .mq_msgsize = 64};
    snprintf(name, sizeof name, "/zio-background-%d", getpid());
    mqd_t q = mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, &a);
    MUST(q != (mqd_t)-1);
    mq_unlink(name);
    fresh();
    struct sigevent e = event();
    MUST(mq_notify(q, &e) == 0);
    MUST(mq_send(q, "x", 1, 0) == 0);
    judge_stores("mq_notify");
}

static void by_aio(void *arg) {
    const char *name = arg;
    static char buf[10] = "0123456789";
    int fd = open("file", O_RDWR | O_CREAT, 0600);
    fresh();
    struct aiocb cb = {.aio_fildes = fd, .aio_buf = buf, .aio_nbytes = 10, .aio_sigevent = event()};
    MUST((!strcmp(name, "aio_read") ? aio_read(&cb)
          : !strcmp(name, "aio_write") ? aio_write(&cb)
                                       : aio_fsync(O_SYNC, &cb)) == 0);
    judge_stores(name);
    close(fd);
}

static void by_list(void *arg) {
    (void)arg;
    static char buf[10] = "0123456789";
    int fd = open("file", O_RDWR | O_CREAT, 0600);
    fresh();
    struct sigevent e = event();
    struct aiocb cb = {.aio_fildes = fd, .aio_buf = buf, .aio_nbytes = 10, .aio_lio_opcode = LIO_WRITE};
    struct aiocb *list[2] = {NULL, &cb};
    cb.aio_sigevent.sigev_notify = SIGEV_NONE;
    MUST(lio_listio(LIO_NOWAIT, list, 2, &e) == 0);
    judge_stores("lio_listio");
    close(fd);
}

static void by_name(void *arg) {
    (void)arg;
    fresh();
    struct sigevent e = event();
    static const struct addrinfo numeric = {.ai_flags = AI_NUMERICHOST};
    static struct gaicb one = {.ar_name = "127.0.0.1", .ar_request = &numeric};
    struct gaicb *list[1] = {&one};
    MUST(getaddrinfo_a(GAI_NOWAIT, list, 1, &e) == 0);
    judge_stores("getaddrinfo_a");
    say("address %d", gai_error(&one) == 0 && one.ar_result != NULL);
}

static void nothing(union sigval v) {
    (void)v;
    atomic_store(&over, 1);
}

/* What libc's threads look at, with every signal blocked, lies in memory that carried data: each thing near the start
 * of a page that nobody else touches, and from the second round on across that start. */
#define AREA (40 * PAGE)
#define BYTES (3 * PAGE)
enum { ATTR = 1, NAME = 7, HINTS = 9, LOOKUP = 13, CONTROL = 19, EVENT = 25, DATA = 31 };
static void in_elided(void *arg) {
    (void)arg;
    static u8 image[AREA];
    int pipe_[2], fd = open("elided", O_RDWR | O_CREAT | O_TRUNC, 0600);
    big_pipe(pipe_);
    for (u64 r = 0; r < 4; r++) {
        u8 *area = map_anon(AREA);
#define THERE(type, page) ((type *)(area + (page) * PAGE - 24 * (r / 2)))
#define HERE(type, page) ((type *)(image + (page) * PAGE - 24 * (r / 2)))
        memset(image, 0, sizeof image);
        fill(HERE(u8, DATA), BYTES, r, 0);
        MUST(pthread_attr_init(HERE(pthread_attr_t, ATTR)) == 0);
        strcpy(HERE(char, NAME), "127.0.0.1");
        HERE(struct addrinfo, HINTS)->ai_flags = AI_NUMERICHOST;
        *HERE(struct gaicb, LOOKUP) =
            (struct gaicb){.ar_name = THERE(char, NAME), .ar_request = THERE(struct addrinfo, HINTS)};
        struct sigevent e = {.sigev_notify = SIGEV_THREAD, .sigev_notify_function = nothing};
        e.sigev_notify_attributes = THERE(pthread_attr_t, ATTR);
        *HERE(struct sigevent, EVENT) = e;
        *HERE(struct aiocb, CONTROL) = (struct aiocb){
            .aio_fildes = fd, .aio_buf = THERE(u8, DATA), .aio_nbytes = BYTES, .aio_sigevent = e,
            .aio_lio_opcode = LIO_WRITE,
        };
        struct gaicb *names[1] = {THERE(struct gaicb, LOOKUP)};
        struct aiocb *controls[1] = {THERE(struct aiocb, CONTROL)};
        MUST(give(pipe_[1], image, AREA) == AREA);
        MUST(take(pipe_[0], area, AREA) == AREA);
        atomic_store(&over, 0);
        if (r & 1) {
            MUST(getaddrinfo_a(GAI_NOWAIT, names, 1, THERE(struct sigevent, EVENT)) == 0);
            for (int i = 0; !atomic_load(&over) && i < 5000; i++) usleep(1000);
            say("name: notified %d error %d", atomic_load(&over), gai_error(names[0]));
        } else {
            MUST((r ? lio_listio(LIO_NOWAIT, controls, 1, NULL) : aio_write(controls[0])) == 0);
            for (int i = 0; !atomic_load(&over) && i < 5000; i++) usleep(1000);
            say("aio: notified %d error %d, %zd bytes", atomic_load(&over), aio_error(controls[0]),
                aio_return(controls[0]));
        }
        verify("bytes", THERE(u8, DATA), BYTES, r, 0);
        MUST(munmap(area, AREA) == 0);
    }
    timer_t *t;
    u8 *area = map_anon(AREA);
    struct sigevent none = {.sigev_notify = SIGEV_NONE};
    memcpy(image + 8 * PAGE, &none, sizeof none);
    MUST(give(pipe_[1], image, AREA) == AREA);
    MUST(take(pipe_[0], area, AREA) == AREA);
    t = (void *)(area + 20 * PAGE);
    SAY_ERR("timer_create %ld errno %d", timer_create(CLOCK_MONOTONIC, (void *)(area + 8 * PAGE), t));
    SAY_ERR("timer_delete %ld errno %d", timer_delete(*t));
    close(fd), close(pipe_[0]), close(pipe_[1]);
}

static const struct {
    const char *name;
    void (*f)(void *);
} ways[] = {
    {"timer_create", by_timer}, {"mq_notify", by_queue}, {"aio_read", by_aio},       {"aio_write", by_aio},
    {"aio_fsync", by_aio},      {"lio_listio", by_list}, {"getaddrinfo_a", by_name}, {"elided", in_elided},
    {"timers", timers},         {"many", many},
};

/* A process has no second thread until its own first one of these calls: each way is a program of its own. */
static void exec_way(void *arg) {
    char *args[] = {"background", arg, NULL};
    execv("/proc/self/exe", args);
}

int main(int argc, char **argv) {
    p = peer_start(P_TCP);
    for (size_t i = 0; i < ARRAY(ways); i++) {
        if (argc == 1) in_child(ways[i].name, exec_way, (void *)ways[i].name);
        else if (!strcmp(argv[1], ways[i].name)) ways[i].f((void *)ways[i].name);
    }
    if (argc == 1) {
        fresh();
        SENT(&p, "parent", copy, N, pat_hash(70, 0, N));
    }
    peer_stop(&p);
    return finish();
}
