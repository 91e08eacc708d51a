// hazard 6: more pieces than one call can carry, messages over IOV_MAX segments, offsets over 4 GiB
// expect: elided
#include "common.h"
#include <sys/uio.h>

#define BIG (8 * MIB)
static u8 model[BIG];
static struct iovec v[2048];

/* Sends all of v[0..count) whatever the partial results; total bytes sent. */
static size_t give_v(int fd, struct iovec *w, int count) {
    size_t total = 0;
    while (count) {
        ssize_t k = writev(fd, w, count > 1024 ? 1024 : count);
        MUST(k >= 0);
        total += k;
        while (count && (size_t)k >= w->iov_len) k -= w->iov_len, w++, count--;
        if (count) w->iov_base = (u8 *)w->iov_base + k, w->iov_len -= k;
    }
    return total;
}

/* A buffer in which every other page is resident and every other one named: some 2000 pieces. */
static void checkered(int kind) {
    peer p = peer_start(kind);
    u8 *base = malloc(BIG + 100), *b = base + 77;
    MUST(base);
    for (size_t at = 0, i = 0; at < BIG; at += 4 * MIB, i++) {
        GET(&p, 10 + i, b + at, 4 * MIB);
        fill(model + at, 4 * MIB, 10 + i, 0);
    }
    for (size_t at = 3000; at < BIG; at += 8192) b[at] = model[at] = 0x33;
    SENT(&p, "checkered", b, BIG, hash(model, BIG));
    /* and as 2000 iovecs of odd lengths */
    int count = 0;
    size_t at = 0;
    while (count < 2000) v[count] = (struct iovec){b + at, 3000 + 7 * (count % 300)}, at += v[count++].iov_len;
    peer_want(&p, at);
    say("vectors carried %zu", give_v(p.out, v, count));
    judge("vectors", at, peer_hash(&p), hash(model, at));
    /* copies of the mixture: as a whole, and shifted by a little */
    u8 *c = malloc(BIG + 100);
    memcpy(c + 13, b, BIG);
    SENT(&p, "copied", c + 13, BIG, hash(model, BIG));
    memmove(c, c + 13, BIG);
    SENT(&p, "moved", c, BIG, hash(model, BIG));
    same("moved", c, model, BIG);
    free(c);
    free(base);
    peer_stop(&p);
}

/* Thousands of names, each of another message, and of small ones beside. */
static void patchwork(int kind) {
    peer p = peer_start(kind);
    size_t piece = 9001, msg = 40000, n = 0;
    u8 *in = malloc(msg), *b = malloc(BIG);
    MUST(in && b);
    for (int r = 0; n + 4 * piece < 6 * MIB; r++) {
        GET(&p, 1000 + r, in, msg);
        for (int k = 0; k < 4; k++) {
            size_t from = 100 * k + (r % 50);
            memcpy(b + n, in + from, piece - 40 * k);
            for (size_t i = 0; i < piece - 40 * k; i++) model[n + i] = pat(1000 + r, from + i);
            n += piece - 40 * k;
        }
    }
    SENT(&p, "patchwork", b, n, hash(model, n));
    say("gather %d pieces", (int)(n / piece));
    for (int i = 0; i < 1024; i++) v[i] = (struct iovec){b + i * (n / 1024), n / 1024};
    peer_want(&p, 1024 * (n / 1024));
    struct msghdr m = {.msg_iov = v, .msg_iovlen = 1024};
    ssize_t k = sendmsg(p.out, &m, MSG_DONTWAIT); /* as much as fits */
    if (kind == P_PIPE) say("sendmsg %zd errno %d", k, errno);
    size_t done = k > 0 ? k : 0, all = 1024 * (n / 1024);
    MUST(give(p.out, b + done, all - done) == (ssize_t)(all - done));
    judge("sendmsg", all, peer_hash(&p), hash(model, all));
    same("patchwork", b, model, n);
    free(in);
    free(b);
    peer_stop(&p);
}

static void limits(void) {
    int sv[2];
    unix_pair(sv);
    peer p = peer_start(P_UNIX);
    u8 *b = malloc(MIB), *c = malloc(MIB);
    GET(&p, 5, b, MIB);
    for (int i = 0; i < 2048; i++) v[i] = (struct iovec){b + 20 * i, 20};
    struct msghdr m = {.msg_iov = v, .msg_iovlen = 1025};
    ssize_t k;
    k = sendmsg(sv[0], &m, MSG_DONTWAIT), say("sendmsg 1025: %zd errno %d", k, err_of(k));
    k = writev(sv[0], v, 1025), say("writev 1025: %zd errno %d", k, err_of(k));
    k = readv(sv[1], v, 1025), say("readv 1025: %zd errno %d", k, err_of(k));
    k = recvmsg(sv[1], &m, MSG_DONTWAIT), say("recvmsg 1025: %zd errno %d", k, err_of(k));
    volatile int negative = -1;
    k = writev(sv[0], v, negative), say("writev -1: %zd errno %d", k, err_of(k));
    v[1].iov_len = (size_t)SSIZE_MAX;
    k = writev(sv[0], v, 2), say("writev of too much: %zd errno %d", k, err_of(k));
    v[1].iov_len = 20;
    k = writev(sv[0], v, 1024), say("writev 1024: %zd", k);
    k = recv(sv[1], c, MIB, 0), say("recv %zd", k);
    verify("1024", c, 20480, 5, 0);
    m.msg_iovlen = 1024;
    for (int i = 0; i < 1024; i++) v[i].iov_base = c + 100 * (i % 1000), v[i].iov_len = 90;
    MUST(give(sv[0], b, 90000) == 90000);
    k = recvmsg(sv[1], &m, 0), say("recvmsg 1024: %zd", k);
    verify("first piece", c, 90, 5, 0);
    verify("last piece", c + 99900, 90, 5, 999 * 90);
    close(sv[0]);
    close(sv[1]);
    peer_stop(&p);
    free(b);
    free(c);
}

/* Offsets beyond 4 GiB in a sparse file. The runner reads what is left: nothing. */
static void far_offsets(void) {
    peer p = peer_start(P_TCP);
    u8 *b = malloc(300 * KIB), *c = malloc(300 * KIB);
    int fd = open("sparse", O_RDWR | O_CREAT | O_EXCL, 0600);
    MUST(fd >= 0 && b && c);
    unlink("sparse");
    for (int r = 0; r < 3; r++) {
        off_t at = ((off_t)5 << 30) + 12345 + (off_t)r * MIB;
        GET(&p, 60 + r, b + r, 250 * KIB);
        say("pwrite %zd", pwrite(fd, b + r, 250 * KIB, at));
        say("pread %zd", pread(fd, c + 2 * r, 250 * KIB, at));
        verify("far", c + 2 * r, 250 * KIB, 60 + r, 0);
        say("lseek %d", lseek(fd, at, SEEK_SET) == at);
        struct iovec w[2] = {{b, 100000}, {b + 120000, 100000}};
        say("preadv %zd", preadv(fd, w, 2, at));
        verify("vector", b + 120000, 100000, 60 + r, 100000);
    }
    close(fd);
    peer_stop(&p);
}

int main(void) {
    for (int kind = P_UNIX; kind <= P_PIPE; kind++) {
        say("%s", peer_names[kind]);
        checkered(kind);
        patchwork(kind);
    }
    limits();
    far_offsets();
    return finish();
}
