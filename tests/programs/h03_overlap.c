// hazard 3: overlapping memmove, both ways, chained
// expect: elided
#include "common.h"

#define SIZE (400 * KIB)
static u8 model[SIZE];
static u8 copy[SIZE];

static void model_move(size_t to, size_t from, size_t n) {
    for (size_t i = 0; i < n; i++) copy[i] = model[from + i];
    for (size_t i = 0; i < n; i++) model[to + i] = copy[i];
}

static const size_t shifts[] = {1, 29, 4095, 4096, 4097, 16384, 65537, 100000};

static void chain(peer *p, int kind, int r) {
    size_t n = SIZE - 97 * r;
    u8 *base = (r & 1) ? map_anon(SIZE + 8192) : malloc(SIZE + 8192), *b = base + 61 * (r + 1);
    u64 seed = 300 + 10 * kind + r;
    MUST(base);
    GET(p, seed, b, n);
    fill(model, n, seed, 0);
    for (size_t i = 0; i < ARRAY(shifts); i++) {
        size_t s = shifts[(i + r) % ARRAY(shifts)];
        memmove(b, b + s, n - s); /* drop a header */
        model_move(0, s, n - s);
        if (r != 2) SENT(p, "down", b, n, hash(model, n));
        memmove(b + s, b, n - s); /* make room for one */
        model_move(s, 0, n - s);
        if (r != 2) SENT(p, "up", b, n, hash(model, n));
        if (r == 3) b[s] ^= 0xFF, model[s] ^= 0xFF; /* a resident page amid the names */
    }
    memmove(b, b, n); /* onto itself */
    SENT(p, "chained", b, n, hash(model, n));
    same("chained", b, model, n);
    if (r & 1) munmap(base, SIZE + 8192);
    else free(base);
}

/* What Redis does: receive behind a header, drop the header, use the value; the buffer stays in use. */
static void header_drop(peer *p) {
    size_t n = 256 * KIB + 29;
    u8 *b = malloc(n + 64);
    MUST(b);
    for (int r = 0; r < 12; r++) {
        GET(p, 900 + r, b, n);
        memmove(b, b + 29, n - 29);
        b[n - 29] = 0;
        SENT(p, "value", b, n - 28, fnv(pat_hash(900 + r, 29, n - 29), 0));
    }
    verify("value", b, n - 29, 911, 29);
    free(b);
}

int main(void) {
    for (int kind = P_UNIX; kind <= P_PIPE; kind++) {
        peer p = peer_start(kind);
        for (int r = 0; r < 5; r++) {
            say("%s round %d", peer_names[kind], r);
            chain(&p, kind, r);
        }
        header_drop(&p);
        peer_stop(&p);
    }
    return finish();
}
