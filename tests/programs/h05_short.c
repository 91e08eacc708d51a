// hazard 5: short reads and writes on streams: EAGAIN, MSG_PEEK, MSG_WAITALL, MSG_TRUNC, timeouts, zero length
// expect: elided
#include "common.h"

#define N (256 * KIB)
static u8 src[N], model[N];
static u8 *buf;

/* Puts 100000 known bytes into buf through the pair and into the model: what later calls must not harm. */
#define REFRESH(sv, seed)                                                            \
    do {                                                                             \
        fill(src, 100000, (seed), 0);                                                \
        PASS(sv, src, buf, 100000);                                                  \
        fill(model, 100000, (seed), 0);                                              \
    } while (0)
#define INTACT(name, sv)                                                             \
    do {                                                                             \
        static u8 back[100000];                                                      \
        MUST(give((sv)[0], buf, 100000) == 100000);                                  \
        for (size_t i = 0; i < 100000; i += 8000) MUST(take((sv)[1], back + i, i + 8000 < 100000 ? 8000 : 100000 - i) > 0); \
        same(name, back, model, 100000);                                             \
    } while (0)

static void put(int fd, size_t n, u64 seed) {
    fill(src, n, seed, 0);
    MUST(give(fd, src, n) == (ssize_t)n);
}

static void again_and_short(int sv[2], int r) {
    REFRESH(sv, 10 + r);
    ssize_t k = recv(sv[1], buf, N, MSG_DONTWAIT);
    say("recv of nothing %zd errno %d", k, err_of(k));
    INTACT("after EAGAIN", sv);
    put(sv[0], 40001, 20 + r);
    wait_unread(sv[1], 40001);
    k = recv(sv[1], buf, N, MSG_DONTWAIT);
    say("short recv %zd", k);
    fill(model, 40001, 20 + r, 0);
    INTACT("after a short recv", sv);
    put(sv[0], 9, 30 + r);
    wait_unread(sv[1], 9);
    k = read(sv[1], buf + 50000, N - 50000);
    say("tiny read %zd", k);
    fill(model + 50000, 9, 30 + r, 0);
    INTACT("after a tiny read", sv);
}

static void peek(int sv[2], int r) {
    put(sv[0], 90000, 40 + r);
    wait_unread(sv[1], 90000);
    ssize_t k = recv(sv[1], buf + 1, 90000, MSG_PEEK);
    say("peek %zd", k);
    if (r & 1) verify("peeked", buf + 1, 90000, 40 + r, 0);
    k = recv(sv[1], buf + 7, 70000, MSG_PEEK);
    say("peek %zd", k);
    k = recv(sv[1], buf, 90000, MSG_WAITALL);
    say("recv %zd", k);
    fill(model, 90000, 40 + r, 0);
    model[90000] = pat(40 + r, 89999); /* the first peek lay one byte further */
    INTACT("after peeks", sv);
}

static void waitall(int kind, int r) {
    peer p = peer_start(kind);
    peer_send_slow(&p, 50 + r, 200000, 70000, 15000);
    ssize_t k = recv(p.in, buf, 200000, MSG_WAITALL);
    say("waitall %zd", k);
    SENT(&p, "waitall", buf, 200000, pat_hash(50 + r, 0, 200000));
    /* a timeout in the middle: what has come is returned */
    struct timeval tv = {0, 60000};
    MUST(setsockopt(p.in, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv) == 0);
    peer_send_slow(&p, 60 + r, 50000, 0, 0);
    k = recv(p.in, buf + 3, 150000, MSG_WAITALL);
    say("waitall with a timeout %zd", k);
    k = recv(p.in, buf + 3, 150000, 0);
    say("recv after a timeout %zd errno %d", k, err_of(k));
    SENT(&p, "timeout", buf + 3, 50000, pat_hash(60 + r, 0, 50000));
    verify("behind the timeout", buf + 100000, 100000, 50 + r, 100000);
    /* the peer goes away in the middle */
    peer_send(&p, 70 + r, 65537);
    struct order quit = {'Q', 0, 0, 0, 0};
    give(p.ctl, &quit, sizeof quit);
    k = recv(p.in, buf, N, MSG_WAITALL);
    say("waitall until the end %zd", k);
    k = recv(p.in, buf, N, MSG_WAITALL);
    say("recv at the end %zd", k);
    k = read(p.in, buf, N);
    say("read at the end %zd", k);
    verify("until the end", buf, 65537, 70 + r, 0);
    peer_stop(&p);
}

static void vectors(int sv[2], int r) {
    static const size_t len[6] = {20000, 0, 33333, 1, 16384, 40000};
    struct iovec v[6];
    size_t at = r;
    REFRESH(sv, 80 + r);
    put(sv[0], 95001, 90 + r);
    wait_unread(sv[1], 95001);
    for (int i = 0; i < 6; i++) v[i] = (struct iovec){buf + at, len[i]}, at += len[i] + 100;
    struct msghdr m = {.msg_iov = v, .msg_iovlen = 6};
    ssize_t k = (r & 1) ? recvmsg(sv[1], &m, MSG_DONTWAIT) : readv(sv[1], v, 6);
    say("vector %zd flags %x controllen %zu", k, m.msg_flags, m.msg_controllen);
    at = r;
    for (size_t i = 0, from = 0; i < 6; from += len[i], at += len[i] + 100, i++) {
        size_t n = from + len[i] > 95001 ? 95001 - from : len[i];
        for (size_t j = 0; j < n && at + j < 100000; j++) model[at + j] = pat(90 + r, from + j);
        verify("piece", v[i].iov_base, n, 90 + r, from);
    }
    INTACT("after vectors", sv);
}

static void zero_and_trunc(int sv[2], int r, int tcp) {
    REFRESH(sv, 100 + r);
    put(sv[0], 80000, 110 + r);
    wait_unread(sv[1], 80000);
    say("zero recv %zd read %zd readv %zd", recv(sv[1], buf, 0, 0), read(sv[1], buf, 0), readv(sv[1], NULL, 0));
    if (tcp) {
        ssize_t k = recv(sv[1], buf, 50000, MSG_TRUNC); /* discards, writes nothing */
        say("MSG_TRUNC %zd", k);
        k = recv(sv[1], NULL, 10000, MSG_TRUNC);
        say("MSG_TRUNC null %zd", k);
        k = recv(sv[1], buf, 20000, MSG_WAITALL);
        say("rest %zd", k);
        for (int i = 0; i < 20000; i++) model[i] = pat(110 + r, 60000 + i);
    } else {
        say("rest %zd", take(sv[1], buf, 80000));
        fill(model, 80000, 110 + r, 0);
    }
    INTACT("after MSG_TRUNC", sv);
    SAY_ERR("bad descriptor %ld errno %d", recv(-1, buf, N, 0));
    SAY_ERR("not a socket %ld errno %d", recv(open("/dev/null", O_RDONLY | O_CLOEXEC), buf, N, 0));
    INTACT("after errors", sv);
}

/* A non-blocking send of much more than fits, drained by the peer, and sends that must fail. */
static void sends(int kind) {
    size_t n = 3 * MIB + 17;
    u8 *big = malloc(n + 1);
    peer p = peer_start(kind);
    MUST(big);
    GET(&p, 130, big + 1, n);
    fcntl(p.out, F_SETFL, O_NONBLOCK);
    size_t done = 0, again = 0;
    ssize_t k;
    while ((k = write(p.out, big + 1 + done, n - done)) > 0) done += k;
    say("full after some %d errno %d", done > 0 && done < n, err_of(k));
    peer_want(&p, n);
    while (done < n) {
        k = (again & 1) ? send(p.out, big + 1 + done, n - done, MSG_NOSIGNAL) : write(p.out, big + 1 + done, n - done);
        if (k > 0) done += k;
        else MUST(errno == EAGAIN);
        struct pollfd f = {p.out, POLLOUT, 0};
        poll(&f, 1, 1000);
        again++;
    }
    judge("non-blocking", n, peer_hash(&p), pat_hash(130, 0, n));
    peer_stop(&p);
    free(big);
}

static void pipes(int r) {
    int q[2];
    MUST(pipe2(q, O_NONBLOCK) == 0);
    put(q[1], 65536, 140 + r);
    say("pipe read %zd", read(q[0], buf + 11, N - 11));
    SAY_ERR("pipe empty %ld errno %d", read(q[0], buf, N));
    say("pipe write %zd", write(q[1], buf + 11, 65536 + 0 * r));
    SAY_ERR("pipe full %ld errno %d", write(q[1], buf, N));
    say("pipe read %zd", read(q[0], buf + 100011, 30000));
    say("pipe read %zd", read(q[0], buf + 130011, N - 130011));
    verify("pipe", buf + 100011, 65536, 140 + r, 0);
    MUST(fcntl(q[1], F_SETPIPE_SZ, 16384) == 16384);
    say("small pipe %zd", write(q[1], buf + 11, 65536));
    close(q[1]);
    say("pipe read %zd", read(q[0], buf + 1, N - 1));
    say("pipe end %zd", read(q[0], buf, N));
    verify("small pipe", buf + 1, 16384, 140 + r, 0);
    close(q[0]);
    MUST(pipe(q) == 0);
    close(q[0]);
    signal(SIGPIPE, SIG_IGN);
    SAY_ERR("broken pipe %ld errno %d", write(q[1], buf + 1, N - 1));
    close(q[1]);
}

int main(void) {
    buf = malloc(N + 3) + 3;
    for (int kind = P_UNIX; kind <= P_TCP; kind++) {
        int sv[2];
        (kind == P_TCP ? tcp_pair : unix_pair)(sv);
        for (int r = 0; r < 4; r++) {
            say("%s round %d", peer_names[kind], r);
            again_and_short(sv, r);
            peek(sv, r);
            vectors(sv, r);
            zero_and_trunc(sv, r, kind == P_TCP);
            waitall(kind, r);
        }
        close(sv[0]);
        close(sv[1]);
        sends(kind);
    }
    for (int r = 0; r < 4; r++) pipes(r);
    return finish();
}
