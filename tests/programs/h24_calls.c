// hazard 24: healing while other threads, or what a handler interrupted, are about to pass the pages to the kernel
// expect: elided healed
#include "heal.h"

#include <sys/syscall.h>

/* A thread that sends a page of a source now and then, as long as it is told to. */
struct sender {
    int pipe[2], sock[2];
    const u8 *page;
    atomic_int stop, started;
    int kind, sent, errors;
    FILE *f;
};

enum { KINDS = 6 };
static int by_socket(int kind) { return kind == 1 || kind == 3; }

static ssize_t send_as(struct sender *s, int kind, const u8 *at, size_t n) {
    struct iovec v[2] = {{(void *)at, n / 2}, {(u8 *)at + n / 2, n - n / 2}};
    struct msghdr m = {.msg_iov = v, .msg_iovlen = 2};
    switch (kind) {
    case 0: return write(s->pipe[1], at, n);
    case 1: return send(s->sock[0], at, n, 0);
    case 2: return writev(s->pipe[1], v, 2);
    case 3: return sendmsg(s->sock[0], &m, 0);
    case 4: return fwrite(at, 1, n, s->f);
    default: return syscall(SYS_write, s->pipe[1], at, n);
    }
}

static void sender_open(struct sender *s, const u8 *page, int kind) {
    *s = (struct sender){.page = page, .kind = kind};
    big_pipe(s->pipe);
    unix_pair(s->sock);
    s->f = fdopen(dup(s->pipe[1]), "w");
    MUST(s->f && setvbuf(s->f, NULL, _IONBF, 0) == 0);
}

static void sender_close(struct sender *s) {
    fclose(s->f);
    for (int i = 0; i < 2; i++) close(s->pipe[i]), close(s->sock[i]);
}

/* Fills a pipe or socket with pages; how many it took. */
static int fill_up(int out) {
    static u8 junk[PAGE];
    int n = 0;
    MUST(fcntl(out, F_SETFL, O_NONBLOCK) == 0);
    while (write(out, junk, PAGE) == (ssize_t)PAGE) n++;
    MUST(fcntl(out, F_SETFL, 0) == 0);
    return n;
}

static void *send_often(void *arg) {
    struct sender *s = arg;
    for (int i = 0; !atomic_load(&s->stop); i++) {
        nap(i % 4 ? 150 : 1000);
        if (send_as(s, i % KINDS, areas[i % AREAS].page, PAGE) == (ssize_t)PAGE) s->sent++;
        else s->errors++;
    }
    return NULL;
}

static void *read_often(void *arg) {
    static u8 got[PAGE];
    struct sender *s = arg;
    struct pollfd fds[2] = {{s->pipe[0], POLLIN, 0}, {s->sock[1], POLLIN, 0}};
    while (poll(fds, 2, 10) > 0 || !atomic_load(&s->stop)) {
        for (int i = 0; i < 2; i++) {
            if (!(fds[i].revents & POLLIN)) continue;
            MUST(take(fds[i].fd, got, PAGE) == (ssize_t)PAGE);
            int k = 0;
            while (k < AREAS - 1 && got[0] != areas[k].page_truth[0]) k++;
            check_bytes("sent page", got, areas[k].page_truth, PAGE);
        }
    }
    return NULL;
}

/* Threads sleep, and wake to send pages of the sources, while those are copied. */
static void senders(peer *p) {
    int errors = 0, sent = 0;
    for (int r = 0; r < 10; r++) {
        struct sender s;
        pthread_t t[3] = {sleeper_start()};
        areas_new(p, 200 + AREAS * r);
        sender_open(&s, NULL, 0);
        MUST(pthread_create(&t[1], NULL, send_often, &s) == 0);
        MUST(pthread_create(&t[2], NULL, read_often, &s) == 0);
        for (int i = 0; i < 600; i++) {
            struct area *a = &areas[i % AREAS];
            touch(a->page + i % PAGE);
            burst(dst, a->slice, SLICE);
            if (i % 16 == 3) check_bytes("copy", dst, a->slice_truth, SLICE);
        }
        atomic_store(&s.stop, 1);
        pthread_join(t[1], NULL);
        pthread_join(t[2], NULL);
        sleeper_end(t[0]);
        sent += s.sent, errors += s.errors;
        sender_close(&s);
        areas_end("senders");
    }
    CHECK(sent > 0);
    say("senders: errors %d", errors);
    failures += errors;
}

static void *send_once(void *arg) {
    struct sender *s = arg;
    atomic_store(&s->started, 1);
    errno = 0;
    s->sent = send_as(s, s->kind, s->page, PAGE) == (ssize_t)PAGE;
    s->errors = s->sent ? 0 : errno;
    return NULL;
}

static atomic_int handler_waits, handler_may_end;

static void waiting_handler(int sig) {
    (void)sig;
    atomic_store(&handler_waits, 1);
    while (!atomic_load(&handler_may_end)) nap(3000);
}

/* A call that waits for room before it reads the page; or a handler that interrupts it waits, and afterwards the kernel
 * makes the call again by itself. */
static void blocked(peer *p, int interrupt) {
    static u8 got[PAGE];
    struct sigaction act = {.sa_handler = waiting_handler, .sa_flags = SA_RESTART};
    MUST(sigaction(SIGUSR1, &act, NULL) == 0);
    pthread_t quiet_one = sleeper_start();
    for (int r = 0; r < 2 * KINDS; r++) {
        if (r % AREAS == 0) areas_new(p, 300 + r);
        struct area *a = &areas[r % AREAS];
        struct sender s;
        pthread_t t;
        sender_open(&s, a->page, r % KINDS);
        int in = by_socket(s.kind) ? s.sock[1] : s.pipe[0], out = by_socket(s.kind) ? s.sock[0] : s.pipe[1];
        int junk = fill_up(out);
        MUST(pthread_create(&t, NULL, send_once, &s) == 0);
        await(&s.started);
        nap(4000);
        if (interrupt) {
            atomic_store(&handler_waits, 0);
            atomic_store(&handler_may_end, 0);
            pthread_kill(t, SIGUSR1);
            await(&handler_waits);
            nap(500);
        }
        for (int i = 0; i < 4; i++) burst(dst, a->slice, SLICE), nap(100);
        atomic_store(&handler_may_end, 1);
        if (interrupt) nap(4000);
        while (junk--) MUST(take(in, got, PAGE) == (ssize_t)PAGE);
        struct pollfd more = {in, POLLIN, 0};
        int came = poll(&more, 1, 500) == 1 && take(in, got, PAGE) == (ssize_t)PAGE;
        CHECK(came);
        if (came) check_bytes("blocked page", got, a->page_truth, PAGE);
        pthread_join(t, NULL);
        say("blocked %d interrupted %d kind %d: %d, errno %d", r, interrupt, s.kind, s.sent, s.errors);
        CHECK(s.sent);
        burst(dst, a->slice, SLICE); /* now it heals */
        check_bytes("blocked copy", dst, a->slice_truth, SLICE);
        sender_close(&s);
        if (r % AREAS == AREAS - 1) areas_end("blocked");
    }
    sleeper_end(quiet_one);
}

static void interrupted(peer *p) { blocked(p, 1); }
static void waiting(peer *p) { blocked(p, 0); }

/* The handler copies what the call that it interrupted has yet to read. No other thread is there to look at. */
static struct {
    int in, left;
    const struct area *area;
} interrupted_call;

static void copying_handler(int sig) {
    static u8 junk[PAGE];
    (void)sig;
    for (int i = 0; i < 2; i++) burst(dst, interrupted_call.area->slice, SLICE);
    while (interrupted_call.left-- > 0) MUST(take(interrupted_call.in, junk, PAGE) == (ssize_t)PAGE);
}

static void handlers(peer *p) {
    static u8 got[PAGE];
    struct sigaction act = {.sa_handler = copying_handler, .sa_flags = SA_RESTART};
    MUST(sigaction(SIGALRM, &act, NULL) == 0);
    areas_new(p, 500);
    for (int r = 0; r < KINDS; r++) {
        struct area *a = &areas[r % AREAS];
        struct sender s;
        sender_open(&s, a->page, r);
        interrupted_call.area = a;
        interrupted_call.in = by_socket(r) ? s.sock[1] : s.pipe[0];
        interrupted_call.left = fill_up(by_socket(r) ? s.sock[0] : s.pipe[1]);
        touch(a->page);
        setitimer(ITIMER_REAL, &(struct itimerval){.it_value.tv_usec = 5000}, NULL);
        SAY_ERR("sent %ld, errno %d", send_as(&s, r, a->page, PAGE));
        struct pollfd more = {interrupted_call.in, POLLIN, 0};
        int came = poll(&more, 1, 500) == 1 && take(interrupted_call.in, got, PAGE) == (ssize_t)PAGE;
        CHECK(came);
        if (came) check_bytes("interrupted page", got, a->page_truth, PAGE);
        burst(dst, a->slice, SLICE);
        check_bytes("handler's copy", dst, a->slice_truth, SLICE);
        sender_close(&s);
    }
    areas_end("handlers");
}

/* A thread waits for a stream's lock inside libc, with a page of the source in hand. */
static struct {
    FILE *f;
    const u8 *page;
    int kind, result, error;
    atomic_int held, free_it, writes;
} sio;

static void *lock_holder(void *arg) {
    flockfile(sio.f);
    atomic_store(&sio.held, 1);
    while (!atomic_load(&sio.free_it)) nap(3000);
    funlockfile(sio.f);
    return arg;
}

static void *stream_writer(void *arg) {
    atomic_store(&sio.writes, 1);
    switch (sio.kind) {
    case 0: sio.result = fwrite(sio.page, 1, PAGE, sio.f) == PAGE; break;
    case 1: sio.result = fputs((const char *)sio.page, sio.f) >= 0; break;
    case 2: sio.result = fwrite(sio.page, PAGE / 2, 2, sio.f) == 2; break;
    default: sio.result = fprintf(sio.f, "%s", (const char *)sio.page) == (int)PAGE - 1; break;
    }
    sio.error = ferror(sio.f);
    return arg;
}

static void streams(peer *p) {
    static u8 got[PAGE];
    for (int r = 0; r < 12; r++) {
        pthread_t t[2];
        char name[20];
        if (r % AREAS == 0) areas_new(p, 800 + r);
        struct area *a = &areas[r % AREAS];
        snprintf(name, sizeof name, "stream-%d", r);
        for (size_t i = 0; i < PAGE; i++) a->page_truth[i] = a->page[i] = i < PAGE - 1 ? 'a' + (i + r) % 26 : 0;
        memset(&sio, 0, sizeof sio);
        sio.f = fopen(name, "w+");
        MUST(sio.f && setvbuf(sio.f, NULL, _IONBF, 0) == 0);
        sio.page = a->page, sio.kind = (r + r / AREAS) % 4;
        MUST(pthread_create(&t[0], NULL, lock_holder, NULL) == 0);
        await(&sio.held);
        MUST(pthread_create(&t[1], NULL, stream_writer, NULL) == 0);
        await(&sio.writes);
        nap(4000);
        for (int i = 0; i < 4; i++) burst(dst, a->slice, SLICE), nap(100);
        atomic_store(&sio.free_it, 1);
        for (int i = 0; i < 8; i++) burst(dst, a->slice, SLICE);
        pthread_join(t[0], NULL);
        pthread_join(t[1], NULL);
        say("stream %d kind %d: %d, error %d", r, sio.kind, sio.result, sio.error);
        CHECK(sio.result && !sio.error);
        say("file %zd", pread(fileno(sio.f), got, PAGE, 0));
        check_bytes("file", got, a->page_truth, sio.kind & 1 ? PAGE - 1 : PAGE);
        fclose(sio.f);
        burst(dst, a->slice, SLICE);
        check_bytes("streams' copy", dst, a->slice_truth, SLICE);
        if (r % AREAS == AREAS - 1) areas_end("streams");
    }
}

int main(int argc, char **argv) {
    static const struct scenario all[] = {{"waiting", waiting}, {"interrupted", interrupted}, {"handlers", handlers},
                                          {"streams", streams}, {"senders", senders}};
    return run_all(all, ARRAY(all), argc, argv);
}
