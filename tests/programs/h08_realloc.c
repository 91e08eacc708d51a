// hazard 8: realloc that grows, shrinks and moves named buffers
// cflags: -Wno-use-after-free
// expect: elided
#include "common.h"

#define MAX (3 * MIB)
static u8 model[MAX];

static void grow_and_shrink(peer *p, int r) {
    static const size_t sizes[] = {300000, 90000, 400001, 20000, MIB + 1, 70000, 2 * MIB, 131072, 65537};
    size_t n = 100000, named = n;
    u8 *b = malloc(n), *wall = NULL;
    MUST(b);
    GET(p, 10 + r, b, n);
    fill(model, n, 10 + r, 0);
    for (size_t i = 0; i < ARRAY(sizes); i++) {
        if (i & 1) wall = malloc(50000); /* so that growing in place is not always possible */
        size_t m = sizes[(i + r) % ARRAY(sizes)];
        u8 *c = (i & 2) ? reallocarray(b, m, 1) : realloc(b, m);
        MUST(c);
        b = c;
        if (m < named) named = m;
        SENT(p, "kept", b, named, hash(model, named));
        if (m > named) { /* the new part is ours to fill */
            size_t extra = m - named > 120000 ? 120000 : m - named;
            GET(p, 100 + 10 * r + i, b + named, extra);
            fill(model + named, extra, 100 + 10 * r + i, 0);
            named += extra;
        }
        if (i == 4) b[named / 2] = model[named / 2] = 0x77;
        free(wall);
        wall = NULL;
        n = m;
    }
    same("at the end", b, model, named);
    u8 *same_size = realloc(b, n);
    SENT(p, "same size", same_size, named, hash(model, named));
    free(same_size);
}

/* Many small buffers that grow: realloc moves them through the heap, past freed memory with names. */
static void many(peer *p) {
    enum { COUNT = 40 };
    u8 *b[COUNT];
    for (int i = 0; i < COUNT; i++) {
        MUST((b[i] = malloc(30000)) != NULL);
        GET(p, 500 + i, b[i], 30000);
    }
    for (int i = 0; i < COUNT; i += 2) {
        u8 *c = realloc(b[i], 60000 + 100 * i);
        MUST(c);
        memcpy((b[i] = c) + 30000, b[i + 1], 30000);
    }
    for (int i = 1; i < COUNT; i += 2) {
        u8 *c = realloc(b[i], 17000);
        MUST(c);
        b[i] = c;
    }
    for (int i = 0; i < COUNT; i++) {
        if (i & 1) {
            SENT(p, "shrunk", b[i], 17000, pat_hash(500 + i, 0, 17000));
        } else {
            verify("grown, first", b[i], 30000, 500 + i, 0);
            verify("grown, second", b[i] + 30000, 30000, 501 + i, 0);
        }
    }
    for (int i = 0; i < COUNT; i++) free(b[(i * 7) % COUNT]);
}

static void odd_cases(peer *p) {
    u8 *b = realloc(NULL, 100000);
    MUST(b);
    GET(p, 700, b, 100000);
    errno = 0;
    volatile size_t absurd = (size_t)1 << 62;
    u8 *c = realloc(b, absurd);
    say("absurd realloc %d errno %d", c != NULL, errno);
    errno = 0;
    c = reallocarray(b, absurd, 8);
    say("overflowing reallocarray %d errno %d", c != NULL, errno);
    SENT(p, "still there", b, 100000, pat_hash(700, 0, 100000));
    verify("still there", b, 100000, 700, 0);
    GET(p, 701, b, 100000);
    c = realloc(b, 0);
    say("realloc to 0 gives null: %d", c == NULL);
    for (int i = 0; i < 300; i++) {
        /* a buffer that doubles while it is being read into, as programs do */
        if (i % 50) continue;
        size_t cap = 16384, n = 0;
        u8 *d = malloc(cap);
        peer_send(p, 800 + i, MIB);
        while (n < MIB) {
            if (n == cap) MUST((d = realloc(d, cap *= 2)) != NULL);
            ssize_t k = read(p->in, d + n, cap - n);
            MUST(k > 0);
            n += k;
        }
        SENT(p, "doubled", d, n, pat_hash(800 + i, 0, n));
        free(d);
    }
}

int main(void) {
    for (int kind = P_UNIX; kind <= P_TCP; kind++) {
        peer p = peer_start(kind);
        for (int r = 0; r < 9; r++) {
            say("%s round %d", peer_names[kind], r);
            grow_and_shrink(&p, r);
        }
        many(&p);
        odd_cases(&p);
        peer_stop(&p);
    }
    return finish();
}
