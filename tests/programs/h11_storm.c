// hazard 11: a storm of timer signals whose handler copies and sends; jumps out of blocking receives
// expect: elided
#include "common.h"

#define N (64 * KIB)
static u8 *h_src, *h_copy, *h_back; /* the handler's own buffers: elided ones */
static int h_pair[2];
static volatile int ticks, bad, busy;

static void on_tick(int sig) {
    (void)sig;
    int saved = errno;
    ticks++;
    if (busy) bad++; /* SIGALRM is blocked while it is handled */
    busy = 1;
    memcpy(h_copy + 5, h_src, N);
    if (send(h_pair[0], h_copy + 5, N, MSG_DONTWAIT) != (ssize_t)N) bad++;
    if (recv(h_pair[1], h_back, 2 * N, MSG_DONTWAIT) != (ssize_t)N) bad++;
    for (size_t i = ticks % 64; i < N; i += 64) bad += h_back[i] != pat(1, i);
    busy = 0;
    errno = saved;
}

static void storm(int kind, int flags) {
    peer p = peer_start(kind);
    struct sigaction sa = {.sa_handler = on_tick, .sa_flags = flags};
    sigaction(SIGALRM, &sa, NULL);
    struct itimerval t = {{0, 700}, {0, 700}}, off = {{0, 0}, {0, 0}};
    int before = ticks;
    setitimer(ITIMER_REAL, &t, NULL);
    for (int r = 0; r < 120 || (ticks < before + 100 && r < 3000); r++) {
        size_t n = 100000 + 311 * (r % 100);
        u8 *a = malloc(n + 64), *b = malloc(n + 64);
        MUST(a && b);
        errno = 0;
        peer_send(&p, r % 200, n);
        if (take(p.in, a + 1, n) != (ssize_t)n) failures++;
        memcpy(b + 33, a + 1, n);
        memmove(b, b + 33, n);
        if (r % 4 == 0) b[n / 2] ^= 0;
        peer_want(&p, n);
        MUST(give(p.out, b, n) == (ssize_t)n);
        u64 got = peer_hash(&p), want = pat_hash(r % 200, 0, n);
        if (got != want) {
            failures++;
            say("FAIL round %d: expected %016lx got %016lx", r, (unsigned long)want, (unsigned long)got);
        }
        a = realloc(a, n / 3);
        if (a[7] != pat(r % 200, 6)) failures++;
        free(a);
        free(b);
    }
    setitimer(ITIMER_REAL, &off, NULL);
    CHECK(ticks >= before + 50);
    say("%s storm over: bad %d", peer_names[kind], bad);
    failures += bad;
    peer_stop(&p);
}

static sigjmp_buf away;
static void on_jump(int sig) {
    (void)sig;
    siglongjmp(away, 1);
}

/* Out of a receive that has nothing yet, and out of one that has got a part already. */
static void jumps(int kind) {
    peer p = peer_start(kind);
    struct sigaction sa = {.sa_handler = on_jump};
    sigaction(SIGALRM, &sa, NULL);
    struct itimerval t = {{0, 0}, {0, 15000}};
    static u8 *a, *b;
    static int r;
    a = malloc(300000), b = malloc(300000);
    for (r = 0; r < 12; r++) {
        GET(&p, 50 + r, a + 3, 200000);
        if (sigsetjmp(away, 1) == 0) {
            setitimer(ITIMER_REAL, &t, NULL);
            ssize_t k = read(p.in, a + 3, 200000);
            say("FAIL the read came back with %zd", k);
            failures++;
        }
        memcpy(b + 1, a + 3, 200000);
        SENT(&p, "after a jump", b + 1, 200000, pat_hash(50 + r, 0, 200000));
        if (kind == P_PIPE) continue; /* no way to wait for the rest there */
        /* the peer sends a part, and the call waits for all: what has come is in the buffer */
        MUST(give(p.ctl, &(struct order){'S', 80 + r, 60000, 0, 0}, sizeof(struct order)) > 0);
        wait_unread(p.in, 60000);
        if (sigsetjmp(away, 1) == 0) {
            setitimer(ITIMER_REAL, &t, NULL);
            ssize_t k = recv(p.in, a + 3, 200000, MSG_WAITALL);
            say("FAIL the recv came back with %zd", k);
            failures++;
        }
        verify("part", a + 3, 60000, 80 + r, 0);
        verify("behind", a + 60003, 140000, 50 + r, 60000);
    }
    free(a);
    free(b);
    peer_stop(&p);
}

int main(void) {
    peer p = peer_start(P_UNIX);
    h_src = malloc(N), h_copy = malloc(N + 5), h_back = malloc(2 * N);
    GET(&p, 1, h_src, N);
    unix_pair(h_pair);
    for (int kind = P_UNIX; kind <= P_PIPE; kind++) {
        storm(kind, SA_RESTART);
        jumps(kind);
    }
    storm(P_UNIX, 0); /* calls come back with EINTR, which take() and give() repeat */
    verify("handler's source", h_src, N, 1, 0);
    peer_stop(&p);
    return finish();
}
