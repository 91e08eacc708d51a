// hazard 5: datagrams bigger and smaller than the buffer, their flags and addresses; EINTR by a timer
// expect: elided
#include "common.h"

#define N (200 * KIB)
static u8 src[N], model[N];

static void unix_datagrams(int type, const char *name) {
    int sv[2];
    MUST(socketpair(AF_UNIX, type, 0, sv) == 0);
    u8 *buf = malloc(N + 5) + 5;
    for (int r = 0; r < 6; r++) {
        size_t n = 60000 + 9001 * r;
        say("%s round %d", name, r);
        fill(src, n, r, 0);
        MUST(send(sv[0], src, n, 0) == (ssize_t)n);
        ssize_t k = recv(sv[1], buf, N, MSG_PEEK | MSG_TRUNC);
        say("peek %zd", k);
        k = recv(sv[1], buf, N, 0);
        say("whole %zd", k);
        verify("whole", buf, n, r, 0);
        /* cut off: the rest of the datagram is gone, and the buffer behind keeps its bytes */
        fill(model, n, r, 0);
        fill(src, n, 100 + r, 0);
        MUST(send(sv[0], src, n, 0) == (ssize_t)n);
        struct iovec v[2] = {{buf, 20000}, {buf + 21000, 17000}};
        struct msghdr m = {.msg_iov = v, .msg_iovlen = 2};
        k = recvmsg(sv[1], &m, (r & 1) ? MSG_TRUNC : 0);
        say("cut %zd truncated %d", k, !!(m.msg_flags & MSG_TRUNC));
        for (int i = 0; i < 20000; i++) model[i] = src[i];
        for (int i = 0; i < 17000; i++) model[21000 + i] = src[20000 + i];
        SAY_ERR("empty %ld errno %d", recv(sv[1], buf, N, MSG_DONTWAIT));
        /* named bytes as one datagram, from several places: one message, never split */
        struct iovec w[5] = {{buf, 20000}, {buf + 50000, 1}, {buf + 21000, 17000}, {buf, 0}, {buf + 40000, 9999}};
        struct msghdr o = {.msg_iov = w, .msg_iovlen = 5};
        k = sendmsg(sv[0], &o, 0);
        say("sendmsg %zd", k);
        u8 *in = malloc(N);
        k = recv(sv[1], in, N, 0);
        say("gathered %zd", k);
        same("one", in, model, 20000);
        same("two", in + 20001, model + 21000, 17000);
        same("three", in + 37001, model + 40000, 9999);
        free(in);
        /* an empty datagram must not disturb anything */
        MUST(send(sv[0], src, 0, 0) == 0);
        say("zero datagram %zd", recv(sv[1], buf, N, 0));
        same("buffer", buf, model, n);
        SAY_ERR("too big %ld errno %d", send(sv[0], map_anon(4 * MIB), 4 * MIB, MSG_DONTWAIT));
    }
    close(sv[0]);
    close(sv[1]);
}

static void udp(void) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}, from;
    socklen_t len = sizeof a;
    int rx = socket(AF_INET, SOCK_DGRAM, 0), tx = socket(AF_INET, SOCK_DGRAM, 0);
    MUST(bind(rx, (void *)&a, len) == 0 && getsockname(rx, (void *)&a, &len) == 0);
    u8 *buf = malloc(N + 9) + 9, *to = malloc(N);
    for (int r = 0; r < 6; r++) {
        say("udp round %d", r);
        size_t n = 60000 - r;
        fill(src, n, 200 + r, 0);
        MUST(sendto(tx, src, n, 0, (void *)&a, sizeof a) == (ssize_t)n);
        len = sizeof from;
        ssize_t k = recvfrom(rx, buf, N, 0, (void *)&from, &len);
        say("recvfrom %zd family %d len %d loopback %d", k, from.sin_family, (int)len, from.sin_addr.s_addr == a.sin_addr.s_addr);
        memcpy(to, buf, n);
        MUST(sendto(tx, to, n, 0, (void *)&a, sizeof a) == (ssize_t)n); /* named bytes */
        k = recvfrom(rx, buf, 20001, MSG_TRUNC, NULL, NULL);
        say("cut %zd", k);
        verify("cut", buf, 20001, 200 + r, 0);
        verify("behind", buf + 20001, n - 20001, 200 + r, 20001);
        verify("copy", to, n, 200 + r, 0);
        SAY_ERR("too long %ld errno %d", sendto(tx, to, 70000, 0, (void *)&a, sizeof a));
        SAY_ERR("empty %ld errno %d", recvfrom(rx, buf, N, MSG_DONTWAIT, NULL, NULL));
    }
    close(rx);
    close(tx);
}

static volatile int ticks;
static void on_alarm(int sig) {
    (void)sig;
    ticks++;
}

static void interrupted(int kind, int restart) {
    peer p = peer_start(kind);
    u8 *buf = malloc(N);
    struct sigaction sa = {.sa_handler = on_alarm, .sa_flags = restart ? SA_RESTART : 0};
    sigaction(SIGALRM, &sa, NULL);
    for (int r = 0; r < 4; r++) {
        GET(&p, 300 + r, buf, N);
        ticks = 0;
        struct itimerval t = {{0, 0}, {0, 20000}};
        if (restart) {
            peer_pause(&p, 60000); /* the data comes after the signal */
            peer_send(&p, 400 + r, 150000);
        }
        setitimer(ITIMER_REAL, &t, NULL);
        ssize_t k = read(p.in, buf, restart ? 1 : N);
        say("read %zd errno %d ticks %d", k, err_of(k), ticks);
        if (restart) {
            k = take(p.in, buf + 1, 149999);
            say("rest %zd", k);
            verify("restarted", buf, 150000, 400 + r, 0);
        } else {
            SENT(&p, "interrupted", buf, N, pat_hash(300 + r, 0, N));
        }
        verify("tail", buf + 150000, N - 150000, 300 + r, 150000);
    }
    free(buf);
    peer_stop(&p);
}

int main(void) {
    unix_datagrams(SOCK_DGRAM, "dgram");
    unix_datagrams(SOCK_SEQPACKET, "seqpacket");
    udp();
    for (int kind = P_UNIX; kind <= P_PIPE; kind++)
        for (int restart = 0; restart < 2; restart++) interrupted(kind, restart);
    return finish();
}
