// hazard 10: threads: own buffers, one shared buffer, many readers of the same elided pages
// expect: elided
#include "common.h"

#define N (256 * KIB)
#define THREADS 4

struct own {
    peer p;
    int id, bad;
    u64 sum;
};

/* Each thread has its own peer and buffers; the allocator's arenas and the map are shared. */
static void *own_buffers(void *arg) {
    struct own *o = arg;
    o->sum = FNV_START;
    for (int r = 0; r < 25; r++) {
        size_t n = 40000 + 9973 * ((r + o->id) % 20);
        u64 seed = 1000 * o->id + r, want = pat_hash(seed, 0, n);
        u8 *a = malloc(n + 64), *b = malloc(n + 4096), *c;
        GET(&o->p, seed, a + 9, n);
        memcpy(b + 100 * o->id, a + 9, n);
        if (r % 3 == 0) memset(a, 0, n);
        free(a);
        c = malloc(n + 1);
        memcpy(c + 1, b + 100 * o->id, n);
        peer_want(&o->p, n);
        MUST(give(o->p.out, c + 1, n) == (ssize_t)n);
        u64 h = peer_hash(&o->p);
        o->bad += h != want;
        if (r % 5 == 0) o->bad += hash(b + 100 * o->id, n) != want;
        o->sum = (o->sum ^ h) * 0x100000001B3u;
        b = realloc(b, n / 2 + 500);
        o->bad += b[100 * o->id] != pat(seed, 0);
        free(b);
        free(c);
    }
    return NULL;
}

static void separate(void) {
    struct own o[THREADS];
    pthread_t t[THREADS];
    for (int i = 0; i < THREADS; i++) o[i] = (struct own){peer_start(i % 3), i, 0, 0};
    for (int i = 0; i < THREADS; i++) pthread_create(&t[i], NULL, own_buffers, &o[i]);
    for (int i = 0; i < THREADS; i++) {
        pthread_join(t[i], NULL);
        say("thread %d: bad %d, %016lx", i, o[i].bad, (unsigned long)o[i].sum);
        failures += o[i].bad;
        peer_stop(&o[i].p);
    }
}

/* One slot: the receiver fills it, the sender copies it out and sends the copy, while it is refilled. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turn = PTHREAD_COND_INITIALIZER;
static u8 *slot;
static int full;
enum { MESSAGES = 60 };

static void *refill(void *arg) {
    peer *p = arg;
    for (int r = 0; r < MESSAGES; r++) {
        peer_send(p, 500 + r, N);
        pthread_mutex_lock(&lock);
        while (full) pthread_cond_wait(&turn, &lock);
        MUST(take(p->in, slot, N) == (ssize_t)N);
        full = 1;
        pthread_cond_broadcast(&turn);
        pthread_mutex_unlock(&lock);
    }
    return NULL;
}

static void shared_slot(void) {
    peer in = peer_start(P_TCP), out = peer_start(P_UNIX);
    pthread_t t;
    u8 *mine = malloc(N + 3) + 3;
    slot = malloc(N + 8) + 8;
    pthread_create(&t, NULL, refill, &in);
    for (int r = 0; r < MESSAGES; r++) {
        pthread_mutex_lock(&lock);
        while (!full) pthread_cond_wait(&turn, &lock);
        memcpy(mine, slot, N);
        if (r % 7 == 3) slot[N / 2] = 0;
        full = 0;
        pthread_cond_broadcast(&turn);
        pthread_mutex_unlock(&lock);
        SENT(&out, "slot", mine, N, pat_hash(500 + r, 0, N));
    }
    pthread_join(t, NULL);
    verify("last slot", mine, N, 500 + MESSAGES - 1, 0);
    peer_stop(&in);
    peer_stop(&out);
}

/* Readers and copiers that meet on the same elided pages at once: right bytes, never zeros. */
static pthread_barrier_t gate;
static u8 *common;
static u64 hashes[6];
enum { ROUNDS = 40 };

static void *meet(void *arg) {
    int id = (int)(intptr_t)arg;
    u8 *own = malloc(N);
    for (int r = 0; r < ROUNDS; r++) {
        pthread_barrier_wait(&gate);
        if (id % 3 == 2) {
            memcpy(own, common, N);
            hashes[id] = hash(own, N);
        } else if (id % 3 == 1) {
            u64 h = FNV_START; /* backwards, so that readers meet in the middle */
            for (size_t i = N; i-- > 0;) h = fnv(h, ((volatile u8 *)common)[i]);
            hashes[id] = h;
        } else {
            hashes[id] = hash(common, N);
        }
        pthread_barrier_wait(&gate);
    }
    free(own);
    return NULL;
}

static void meeting(void) {
    peer p = peer_start(P_UNIX);
    pthread_t t[6];
    int bad = 0;
    u64 first = 0;
    pthread_barrier_init(&gate, NULL, 7);
    for (intptr_t i = 0; i < 6; i++) pthread_create(&t[i], NULL, meet, (void *)i);
    for (int r = 0; r < ROUNDS; r++) {
        u8 *in = malloc(N + 5);
        u64 back = FNV_START, want = pat_hash(700 + r, 0, N);
        for (size_t i = N; i-- > 0;) back = fnv(back, pat(700 + r, i));
        GET(&p, 700 + r, in + 5, N);
        common = malloc(N);
        memcpy(common, in + 5, N);
        pthread_barrier_wait(&gate);
        pthread_barrier_wait(&gate);
        for (int i = 0; i < 6; i++) bad += hashes[i] != (i % 3 == 1 ? back : want);
        first ^= hashes[0];
        free(in);
        free(common);
    }
    for (int i = 0; i < 6; i++) pthread_join(t[i], NULL);
    say("meeting: bad %d, %016lx", bad, (unsigned long)first);
    failures += bad;
    peer_stop(&p);
}

/* Neighbouring bytes of one elided page, written by two threads at once: no store may be lost. */
static void *stores(void *arg) {
    int id = (int)(intptr_t)arg;
    for (int r = 0; r < ROUNDS; r++) {
        pthread_barrier_wait(&gate);
        for (size_t i = id; i < N; i += 128) ((volatile u8 *)common)[i] = (u8)(id + r);
        pthread_barrier_wait(&gate);
    }
    return NULL;
}

static void lost_stores(void) {
    peer p = peer_start(P_TCP);
    pthread_t t[2];
    int bad = 0;
    pthread_barrier_init(&gate, NULL, 3);
    for (intptr_t i = 0; i < 2; i++) pthread_create(&t[i], NULL, stores, (void *)i);
    for (int r = 0; r < ROUNDS; r++) {
        common = malloc(N);
        GET(&p, 900 + r, common, N);
        pthread_barrier_wait(&gate);
        pthread_barrier_wait(&gate);
        for (size_t i = 0; i < N; i++) bad += common[i] != (i % 128 < 2 ? (u8)(i % 128 + r) : pat(900 + r, i));
        free(common);
    }
    for (int i = 0; i < 2; i++) pthread_join(t[i], NULL);
    say("stores lost: %d", bad);
    failures += bad;
    peer_stop(&p);
}

int main(void) {
    for (int r = 0; r < 3; r++) separate();
    shared_slot();
    meeting();
    lost_stores();
    return finish();
}
