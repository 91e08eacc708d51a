// hazard 2: the destination is written in part, then sent
// expect: elided
#include "common.h"

#define MAX (300 * KIB)
static u8 model[MAX];

/* Writes `len` bytes at `at` into the buffer and the model, by plain stores or a libc call. */
static void patch(u8 *b, size_t at, size_t len, int by_call, u64 seed) {
    u8 tmp[8192];
    MUST(len <= sizeof tmp);
    fill(tmp, len, seed, 0);
    if (by_call) memcpy(b + at, tmp, len);
    else for (size_t i = 0; i < len; i++) ((volatile u8 *)b)[at + i] = tmp[i];
    for (size_t i = 0; i < len; i++) model[at + i] = tmp[i];
}

static void send_parts(peer *p, const char *name, u8 *b, size_t n) {
    /* the same bytes as three iovecs whose borders do not agree with pages or with the patches */
    struct iovec v[3] = {{b, 4095}, {b + 4095, n / 2}, {b + 4095 + n / 2, n - 4095 - n / 2}};
    peer_want(p, n);
    size_t sent = 0;
    while (sent < n) {
        ssize_t k = writev(p->out, v, 3);
        MUST(k > 0);
        sent += k;
        for (int i = 0; i < 3; i++) {
            size_t d = (size_t)k < v[i].iov_len ? (size_t)k : v[i].iov_len;
            v[i].iov_base = (u8 *)v[i].iov_base + d, v[i].iov_len -= d, k -= d;
        }
    }
    judge(name, n, peer_hash(p), hash(model, n));
}

int main(void) {
    static const struct { size_t at, len; } spots[] = {
        {0, 1}, {0, 40}, {4095, 2}, {100000, 1}, {131072, 4096}, {70001, 8192}, {0, 0}, {50000, 16},
    };
    for (int kind = P_UNIX; kind <= P_PIPE; kind++) {
        peer p = peer_start(kind);
        for (int r = 0; r < 16; r++) {
            size_t n = 200 * KIB + 1 + r * 1111;
            u64 seed = 7000 + kind * 100 + r;
            u8 *sbase = malloc(n + 4096), *dbase = malloc(n + 8192);
            MUST(sbase && dbase);
            u8 *s = sbase + 16 + r, *d = dbase + 1234 + 5 * r;
            GET(&p, seed, s, n);
            fill(model, n, seed, 0);
            memcpy(d, s, n);
            patch(d, spots[r % 8].at, spots[r % 8].len, r & 1, seed + 1);
            patch(d, n - 1 - r, 1 + r, r & 2, seed + 2);
            say("%s round %d", peer_names[kind], r);
            SENT(&p, "patched", d, n, hash(model, n));
            patch(d, 8191, 2, 0, seed + 3);
            send_parts(&p, "parts", d, n);
            SENT(&p, "source", s, n, pat_hash(seed, 0, n));
            /* a shorter message over the front of a buffer that has names and patches */
            size_t k = n / 2 + 3;
            GET(&p, seed + 4, d, k);
            fill(model, k, seed + 4, 0);
            send_parts(&p, "front replaced", d, n);
            /* a copy of the middle of the mixture */
            memcpy(s + 5, d + 777, n - 1000);
            SENT(&p, "mixture", s + 5, n - 1000, hash(model + 777, n - 1000));
            same("mixture", s + 5, model + 777, n - 1000);
            same("buffer", d, model, n);
            free(sbase);
            free(dbase);
        }
        peer_stop(&p);
    }
    return finish();
}
