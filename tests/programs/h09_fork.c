// hazard 9: fork with live extents: both sides read and write, many generations, fork while a thread copies
// expect: elided
#include "common.h"

#define N (300 * KIB)
static u8 model[N];
static u8 *a, *b;
static u64 seed_a;

/* What a child does with memory that it shares with its parent by copy-on-write. */
static void child_reads(void *arg) {
    (void)arg;
    verify("child reads source", a, N, seed_a, 0);
    verify("child reads copy", b, N, seed_a, 0);
}
static void child_writes(void *arg) {
    (void)arg;
    fill(model, N, seed_a, 0);
    for (size_t i = 100; i < N; i += 5000) b[i] = model[i] = (u8)i;
    memset(b + 50000, 0x44, 100000);
    for (size_t i = 50000; i < 150000; i++) model[i] = 0x44;
    same("child writes", b, model, N);
    verify("its source is untouched", a, N, seed_a, 0);
}
static void child_sends(void *arg) {
    int *sv = arg;
    u8 *c = malloc(N);
    for (size_t at = 0; at < N; at += 60000) {
        size_t n = N - at < 60000 ? N - at : 60000;
        PASS(sv, b + at, c + at, n); /* named in the child too */
    }
    memcpy(a, c, N);
    verify("child sends", a, N, seed_a, 0);
    free(c);
}
static void child_copies_on(void *arg) {
    (void)arg;
    u8 *c = malloc(N + 5);
    memcpy(c + 5, b, N);
    memmove(b, b + 333, N - 333);
    free(a);
    memset(b + N - 333, 0, 333);
    verify("child's new copy", c + 5, N, seed_a, 0);
    verify("child's moved one", b, N - 333, seed_a, 333);
}
static void generations(void *arg) {
    int depth = *(int *)arg + 1;
    b[depth * 1000] ^= 0xFF;
    model[depth * 1000] ^= 0xFF;
    if (depth < 6) in_child("generation", generations, &depth);
    if (depth & 1) free(malloc(N));
    same("generation", b, model, N);
    verify("ancestral source", a, N, seed_a, 0);
}

static void round_of(peer *p, int r) {
    int sv[2], zero = 0;
    unix_pair(sv);
    a = malloc(N + 64), b = (r & 1) ? map_anon(N) : malloc(N + 64);
    MUST(a && b);
    seed_a = 10 + r;
    GET(p, seed_a, a, N);
    memcpy(b, a, N);
    in_child("reads", child_reads, NULL);
    in_child("writes", child_writes, NULL);
    in_child("sends", child_sends, sv);
    in_child("copies on", child_copies_on, NULL);
    fill(model, N, seed_a, 0);
    in_child("generations", generations, &zero);
    fill(model, N, seed_a, 0);
    SENT(p, "parent's copy", b, N, pat_hash(seed_a, 0, N));
    /* the parent overwrites, frees and recycles while a child waits with the old contents */
    int go[2], done[2];
    MUST(pipe(go) == 0 && pipe(done) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        char c;
        MUST(read(go[0], &c, 1) == 1);
        int ok = 1;
        for (size_t i = 0; i < N; i++) ok &= a[i] == pat(seed_a, i) && b[i] == pat(seed_a, i);
        if (!ok) say("FAIL the waiting child sees other bytes");
        _exit(ok ? 0 : 1);
    }
    u64 old = seed_a;
    for (int k = 0; k < 20; k++) { /* whatever cores were free are used again */
        GET(p, 100 + k, a, N);
        memcpy(b, a, N);
        SENT(p, "recycled", b, N, pat_hash(100 + k, 0, N));
    }
    b[77] = 1;
    MUST(write(go[1], "x", 1) == 1);
    int st;
    MUST(waitpid(pid, &st, 0) == pid);
    say("waiting child %d, of seed %d", st, (int)old);
    CHECK(st == 0);
    verify("parent's own", a, N, 119, 0);
    free(a);
    if (r & 1) munmap(b, N);
    else free(b);
    close(sv[0]), close(sv[1]), close(go[0]), close(go[1]), close(done[0]), close(done[1]);
}

static volatile int stop;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static u64 laps;

/* Receives, copies and sends without pause while the main thread forks. */
static void *worker(void *arg) {
    int *sv = arg;
    static u8 src[90000];
    u8 *x = malloc(200000), *y = malloc(200000);
    fill(src, sizeof src, 4242, 0);
    while (!stop) {
        PASS(sv, src, x + 1, sizeof src);
        memcpy(y + 30, x + 1, sizeof src);
        memmove(y, y + 30, sizeof src);
        u8 *z = malloc(100000 + 64 * (laps % 100));
        memcpy(z, y, sizeof src);
        int bad = 0;
        for (size_t i = 0; i < sizeof src; i += 997) bad |= z[i] != src[i];
        free(z);
        pthread_mutex_lock(&lock);
        laps++;
        if (bad) failures++;
        pthread_mutex_unlock(&lock);
    }
    free(x);
    free(y);
    return NULL;
}

static void quiet_reader(void *arg) {
    (void)arg;
    int ok = 1;
    for (size_t i = 0; i < N; i++) ok &= b[i] == pat(seed_a, i);
    u8 *c = malloc(N);
    memcpy(c, a, N);
    b[5000]++;
    for (size_t i = 0; i < N; i++) ok &= c[i] == pat(seed_a, i);
    free(c);
    _exit(ok ? 0 : 9);
}

static void fork_while_copying(peer *p) {
    int sv[2][2];
    pthread_t t[2];
    a = malloc(N), b = malloc(N);
    seed_a = 77;
    GET(p, seed_a, a, N);
    memcpy(b, a, N);
    for (int i = 0; i < 2; i++) unix_pair(sv[i]), pthread_create(&t[i], NULL, worker, sv[i]);
    for (int i = 0; i < 30; i++) in_child("forked beside copies", quiet_reader, NULL);
    stop = 1;
    for (int i = 0; i < 2; i++) pthread_join(t[i], NULL);
    CHECK(laps > 0);
    SENT(p, "parent's copy", b, N, pat_hash(seed_a, 0, N));
    verify("parent's copy", b, N, seed_a, 0);
}

int main(void) {
    peer p = peer_start(P_TCP);
    for (int r = 0; r < 4; r++) {
        say("round %d", r);
        round_of(&p, r);
    }
    fork_while_copying(&p);
    peer_stop(&p);
    return finish();
}
