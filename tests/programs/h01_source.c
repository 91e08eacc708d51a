// hazard 1: the source is overwritten after the copy: whole, in part, one byte, by every means
// expect: elided
#include "common.h"

#define MAX (600 * KIB)
static u8 model_a[MAX];

static void overwrite(peer *p, int how, u8 *a, u8 *other, size_t n, u64 seed) {
    switch (how) {
    case 0: memset(a, 0xEE, n); for (size_t i = 0; i < n; i++) model_a[i] = 0xEE; break;
    case 1: for (size_t i = 0; i < n; i++) ((volatile u8 *)a)[i] = model_a[i] = (u8)(i * 7); break;
    case 2: for (size_t i = n / 3; i < n / 3 + 10000; i++) ((volatile u8 *)a)[i] ^= 0x5A, model_a[i] ^= 0x5A; break;
    case 3: a[n / 2] ^= 1, model_a[n / 2] ^= 1; break;
    case 4: GET(p, seed + 50, a, n); fill(model_a, n, seed + 50, 0); break;
    case 5: GET(p, seed + 51, other, n); memcpy(a, other, n); fill(model_a, n, seed + 51, 0); break;
    case 6: memset(a + 5000, 0, n - 9001); for (size_t i = 5000; i < n - 4001; i++) model_a[i] = 0; break;
    case 7: a[0] = a[n - 1] = 9; model_a[0] = model_a[n - 1] = 9; break;
    case 8: raw_copy(a + 4097, model_a, 20000); for (size_t i = 0; i < 20000; i++) model_a[4097 + i] = pat(seed, i); break;
    case 9: memcpy(a + 1, "replaced", 8); for (int i = 0; i < 8; i++) model_a[1 + i] = "replaced"[i]; break;
    case 10: memmove(a, a + 20001, n - 20001); for (size_t i = 0; i < n - 20001; i++) model_a[i] = model_a[i + 20001]; break;
    }
}

static void round_of(peer *p, int how, int r, size_t n) {
    u8 *base[4], *b[4];
    static const size_t skew[4] = {13, 1000, 4090, 24};
    for (int i = 0; i < 4; i++) {
        base[i] = malloc(n + 8192);
        MUST(base[i]);
        b[i] = base[i] + skew[i] + r;
    }
    u64 seed = 1000 * n + 100 * r + how, h = pat_hash(seed, 0, n);
    GET(p, seed, b[0], n);
    memcpy(b[1], b[0], n);
    memcpy(b[2], b[1], n);
    fill(model_a, n, seed, 0);
    overwrite(p, how, b[0], b[3], n, seed);
    SENT(p, "copy of copy", b[2], n, h);
    SENT(p, "copy", b[1], n, h);
    SENT(p, "source", b[0], n, hash(model_a, n));
    same("source", b[0], model_a, n);
    /* now the middle link changes, the last must not */
    if (how & 1) b[1][n / 2]++;
    else memset(b[1], how, n);
    SENT(p, "last", b[2], n, h);
    verify("last", b[2], n, seed, 0);
    for (int i = 0; i < 4; i++) free(base[i]);
}

int main(void) {
    static const size_t sizes[] = {64 * KIB, 256 * KIB + 7, 500001};
    for (int kind = P_UNIX; kind <= P_PIPE; kind++) {
        peer p = peer_start(kind);
        for (int r = 0; r < 2; r++)
            for (int how = 0; how <= 10; how++) {
                size_t n = sizes[(how + r + kind) % 3];
                say("%s round %d overwrite %d size %zu", peer_names[kind], r, how, n);
                round_of(&p, how, r, n);
            }
        peer_stop(&p);
    }
    return finish();
}
