// hazard 12: threads cancelled in receives, sends and waits; pthread_exit; masks that new threads inherit
// expect: elided
#include "common.h"

#define N (256 * KIB)
static int cleanups;
static u8 *data;
static u64 seed;

struct job {
    int fd, started;
    u8 *buf;
};

static void cleanup(void *arg) {
    struct job *j = arg;
    cleanups++;
    j->buf[N - 1] = 7; /* it may be elided */
}

/* Blocks in a receive through cores, for good. */
static void *receiver(void *arg) {
    struct job *j = arg;
    pthread_cleanup_push(cleanup, j);
    MUST(take(j->fd, j->buf, 100 * KIB) == 100 * KIB);
    __atomic_store_n(&j->started, 1, __ATOMIC_RELEASE);
    ssize_t k = read(j->fd, j->buf, N);
    say("FAIL the read came back with %zd", k);
    pthread_cleanup_pop(1);
    return NULL;
}

/* Blocks in a send of named bytes that nobody takes. */
static void *sender(void *arg) {
    struct job *j = arg;
    u8 *copy = malloc(N);
    memcpy(copy, data, N);
    pthread_cleanup_push(cleanup, j);
    pthread_cleanup_push(free, copy);
    __atomic_store_n(&j->started, 1, __ATOMIC_RELEASE);
    for (;;) write(j->fd, copy, N);
    pthread_cleanup_pop(1);
    pthread_cleanup_pop(1);
    return NULL;
}

static void *sleeper(void *arg) {
    struct job *j = arg;
    struct timespec t = {100, 0};
    sigset_t none;
    sigemptyset(&none);
    pthread_cleanup_push(cleanup, j);
    memcpy(j->buf, data, N);
    __atomic_store_n(&j->started, 1, __ATOMIC_RELEASE);
    ppoll(NULL, 0, &t, &none);
    pthread_cleanup_pop(1);
    return NULL;
}

/* Is cancelled wherever it happens to be. */
static void *asynchronous(void *arg) {
    struct job *j = arg;
    pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
    pthread_cleanup_push(cleanup, j);
    __atomic_store_n(&j->started, 1, __ATOMIC_RELEASE);
    for (volatile u64 x = 0;; x++) {}
    pthread_cleanup_pop(1);
    return NULL;
}

static void *quitter(void *arg) {
    struct job *j = arg;
    pthread_cleanup_push(cleanup, j);
    memcpy(j->buf, data, N);
    pthread_exit(j);
    pthread_cleanup_pop(1);
    return NULL;
}

static void cancelled(const char *name, void *(*f)(void *), int fd) {
    struct job j = {fd, 0, malloc(N)};
    pthread_t t;
    void *how = NULL;
    MUST(pthread_create(&t, NULL, f, &j) == 0);
    if (f != quitter) {
        while (!__atomic_load_n(&j.started, __ATOMIC_ACQUIRE)) usleep(200);
        usleep(2000);
        pthread_cancel(t);
    }
    pthread_join(t, &how);
    say("%s: %s, cleanups %d, wrote %d", name, how == PTHREAD_CANCELED ? "cancelled" : how == &j ? "exited" : "returned",
        cleanups, j.buf[N - 1]);
    free(j.buf);
}

/* A thread that takes over whatever a cancelled one left. */
static void *successor(void *arg) {
    int *sv = arg;
    u8 *a = malloc(N), *b = malloc(N);
    static u8 src[90000];
    fill(src, sizeof src, 4711, 0);
    for (int i = 0; i < 5; i++) {
        PASS(sv, src, a + 3, sizeof src);
        memcpy(b, a + 3, sizeof src);
    }
    verify("successor", b, sizeof src, 4711, 0);
    free(a);
    free(b);
    return NULL;
}

static void *says_mask(void *arg) {
    sigset_t now;
    pthread_sigmask(SIG_SETMASK, NULL, &now);
    int bad = 0;
    for (size_t i = 0; i < N; i += 4000) bad += ((volatile u8 *)data)[i] != pat(seed, i);
    say("%s: blocked %d %d %d, bad %d", (char *)arg, sigismember(&now, SIGSEGV), sigismember(&now, SIGBUS),
        sigismember(&now, SIGUSR1), bad);
    return arg;
}

static void inherited(void) {
    sigset_t s, old;
    pthread_t t[100];
    void *r;
    sigfillset(&s);
    pthread_sigmask(SIG_SETMASK, &s, &old);
    pthread_create(&t[0], NULL, says_mask, "all blocked");
    pthread_join(t[0], &r);
    CHECK(!strcmp(r, "all blocked"));
    sigemptyset(&s), sigaddset(&s, SIGBUS);
    pthread_sigmask(SIG_SETMASK, &s, NULL);
    pthread_create(&t[0], NULL, says_mask, "one blocked");
    pthread_join(t[0], &r);
    /* a mask of its own */
    pthread_attr_t a;
    pthread_attr_init(&a);
    sigfillset(&s), sigdelset(&s, SIGSEGV), sigdelset(&s, SIGBUS);
    pthread_attr_setsigmask_np(&a, &s);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_create(&t[0], &a, says_mask, "by attribute");
    pthread_join(t[0], &r);
    pthread_create(&t[0], NULL, says_mask, "none blocked");
    pthread_join(t[0], &r);
}

int main(void) {
    peer p = peer_start(P_TCP);
    static u8 src[100 * KIB];
    data = malloc(N);
    fill(src, sizeof src, 5, 0);
    for (int r = 0; r < 6; r++) {
        int sv[2], out[2];
        say("round %d", r);
        unix_pair(sv);
        unix_pair(out);
        seed = 10 + r;
#define FRESH() GET(&p, seed, data, N)
        FRESH();
        MUST(give(sv[0], src, sizeof src) == sizeof src);
        cancelled("receiver", receiver, sv[1]);
        FRESH();
        cancelled("sender", sender, out[0]);
        cancelled("sleeper", sleeper, -1);
        cancelled("asynchronous", asynchronous, -1);
        FRESH();
        cancelled("quitter", quitter, -1);
        pthread_t t;
        pthread_create(&t, NULL, successor, sv);
        pthread_join(t, NULL);
        FRESH();
        inherited();
        SENT(&p, "data", data, N, pat_hash(seed, 0, N));
        close(sv[0]), close(sv[1]), close(out[0]), close(out[1]);
    }
    free(data);
    peer_stop(&p);
    return finish();
}
