// hazard 4: chained copies, each buffer sent
// expect: elided
#include "common.h"

#define LINKS 12

static void run(int kind, size_t n, int per_message, int rounds) {
    u8 *base[LINKS], *b[LINKS];
    peer p = peer_start(kind);
    for (int i = 0; i < LINKS; i++) base[i] = NULL;
    for (int r = 0; r < rounds; r++) {
        for (int i = 0; i < LINKS; i++) {
            if (!base[i]) base[i] = malloc(n + 4096);
            MUST(base[i]);
            b[i] = base[i] + (i * 331 + r) % 4096;
        }
        u64 seed = n + 16 * r + kind, h = pat_hash(seed, 0, n);
        GET(&p, seed, b[0], n);
        for (int i = 1; i < LINKS; i++) memcpy(b[i], b[i - 1], n);
        for (int i = 0; i < LINKS; i++) SENT(&p, "link", b[(i * 5) % LINKS], n, h);
        if (r == rounds - 1) {
            verify("first", b[0], n, seed, 0);
            verify("last", b[LINKS - 1], n, seed, 0);
            SENT(&p, "read, then sent", b[LINKS - 1], n, h);
        }
        if (per_message)
            for (int i = 0; i < LINKS; i++) free(base[(i * 7) % LINKS]), base[(i * 7) % LINKS] = NULL;
    }
    for (int i = 0; i < LINKS; i++) free(base[i]);
    peer_stop(&p);
}

/* A chain in which the message moves through a ring of buffers, and older messages stay alive. */
static void generations(void) {
    enum { KEEP = 24 };
    size_t n = 96 * KIB + 5;
    u8 *kept[KEEP] = {0}, *in = malloc(n);
    peer p = peer_start(P_TCP);
    for (int r = 0; r < 3 * KEEP; r++) {
        GET(&p, 5000 + r, in, n);
        free(kept[r % KEEP]);
        kept[r % KEEP] = malloc(n);
        memcpy(kept[r % KEEP], in, n);
    }
    for (int r = 0; r < KEEP; r++) SENT(&p, "kept", kept[r], n, pat_hash(5000 + 2 * KEEP + r, 0, n));
    for (int r = 0; r < KEEP; r++) verify("kept", kept[r], n, 5000 + 2 * KEEP + r, 0), free(kept[r]);
    free(in);
    peer_stop(&p);
}

int main(void) {
    for (int kind = P_UNIX; kind <= P_PIPE; kind++) {
        run(kind, 64 * KIB, 0, 5);
        run(kind, 300001, 1, 4);
    }
    run(P_TCP, MIB + 3, 0, 3);
    generations();
    return finish();
}
