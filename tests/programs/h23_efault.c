// hazard 23: destinations and sources that are unmapped, read-only or partly so: EFAULT and counts as plain
// expect: elided
#include "common.h"

#define PAGE ((size_t)4096)
#define AREA (64 * PAGE)
#define N (100 * KIB)
static u8 src[N], model[AREA];
static u8 *good, *area; /* area: 30 good pages, 4 bad ones, 30 good ones */
static int sv[2], kind;

enum { HOLE, READ_ONLY, NO_ACCESS, KINDS_OF_BAD };
static const char *const bad_names[] = {"hole", "read-only", "no access"};

static void open_pair(void) {
    if (kind == P_PIPE) {
        int p[2];
        big_pipe(p);
        sv[0] = p[1], sv[1] = p[0];
    } else {
        (kind == P_TCP ? tcp_pair : unix_pair)(sv);
    }
}

/* A fresh area with names in its good parts. */
static void lay_out(int bad, u64 seed) {
    area = map_anon(AREA);
    fill(src, N, seed, 0);
    PASS(sv, src, area, 30 * PAGE - 20000);
    PASS(sv, src, area + 34 * PAGE, 80000);
    if (bad == HOLE) munmap(area + 30 * PAGE, 4 * PAGE);
    else mprotect(area + 30 * PAGE, 4 * PAGE, bad == READ_ONLY ? PROT_READ : PROT_NONE);
}
static void say_area(const char *name) {
    say("%s: area %016lx %016lx", name, (unsigned long)hash(area, 30 * PAGE), (unsigned long)hash(area + 34 * PAGE, 30 * PAGE));
}

/* What is left unread in the pair, and that it is the right bytes. */
static void rest(const char *name) {
    int left = 0;
    MUST(ioctl(sv[1], FIONREAD, &left) == 0);
    MUST(left == 0 || take(sv[1], good, left) == left);
    say("%s: %d left, %016lx", name, left, (unsigned long)hash(good, left));
}

static void receive(int bad, int r) {
    static const struct { size_t at, len; } to[] = {
        {30 * PAGE, PAGE * 4}, {31 * PAGE + 5, 3 * PAGE}, {20 * PAGE + 9, N - 4}, {10 * PAGE, N}, {33 * PAGE, N},
    };
    for (size_t i = 0; i < ARRAY(to); i++) {
        lay_out(bad, 10 * r + i);
        fill(src, N, 500 + 10 * r + i, 0);
        MUST(give(sv[0], src, N) == (ssize_t)N);
        wait_unread(sv[1], N);
        errno = 0;
        ssize_t k = (i & 1) || kind == P_PIPE ? read(sv[1], area + to[i].at, to[i].len)
                                              : recv(sv[1], area + to[i].at, to[i].len, MSG_DONTWAIT);
        say("into %zu+%zu: %zd errno %d", to[i].at / PAGE, to[i].len, k, err_of(k));
        rest("after it");
        say_area("after it");
        munmap(area, AREA);
    }
    lay_out(bad, 90 + r);
    MUST(give(sv[0], src, N) == (ssize_t)N);
    wait_unread(sv[1], N);
    struct iovec v[4] = {{area + 3, 20000}, {area + 40 * PAGE, 30000}, {area + 31 * PAGE, 5000}, {good, 40000}};
    ssize_t k = readv(sv[1], v, 4);
    say("readv %zd errno %d", k, err_of(k));
    rest("after readv");
    say_area("after readv");
    munmap(area, AREA);
}

static void transmit(int bad, int r) {
    static const struct { size_t at, len; } from[] = {{30 * PAGE, 4 * PAGE}, {25 * PAGE + 7, 8 * PAGE}, {2 * PAGE, N}, {33 * PAGE + 1, 20 * PAGE}};
    for (size_t i = 0; i < ARRAY(from); i++) {
        lay_out(bad, 200 + 10 * r + i);
        errno = 0;
        ssize_t k = (i & 1) || kind == P_PIPE ? write(sv[0], area + from[i].at, from[i].len)
                                              : send(sv[0], area + from[i].at, from[i].len, MSG_DONTWAIT);
        say("from %zu+%zu: %zd errno %d", from[i].at / PAGE, from[i].len, k, err_of(k));
        if (k > 0) wait_unread(sv[1], k);
        rest("sent");
        say_area("after it");
        munmap(area, AREA);
    }
}

static void headers(void) {
    struct msghdr m = {.msg_iov = (void *)16, .msg_iovlen = 2};
    void *volatile nowhere = (void *)16;
    lay_out(HOLE, 700);
    MUST(give(sv[0], src, N) == (ssize_t)N);
    wait_unread(sv[1], N);
    ssize_t k;
    if (kind != P_PIPE) {
        k = recvmsg(sv[1], &m, MSG_DONTWAIT), say("recvmsg with bad iovecs %zd errno %d", k, err_of(k));
        k = recvmsg(sv[1], nowhere, MSG_DONTWAIT), say("recvmsg of nothing %zd errno %d", k, err_of(k));
        k = sendmsg(sv[0], &m, MSG_DONTWAIT), say("sendmsg with bad iovecs %zd errno %d", k, err_of(k));
        k = send(sv[0], nowhere, N, MSG_DONTWAIT), say("send of nothing %zd errno %d", k, err_of(k));
    }
    k = readv(sv[1], nowhere, 2), say("readv with bad iovecs %zd errno %d", k, err_of(k));
    k = writev(sv[0], nowhere, 2), say("writev with bad iovecs %zd errno %d", k, err_of(k));
    k = read(sv[1], nowhere, N), say("read into nothing %zd errno %d", k, err_of(k));
    k = read(sv[1], (void *)(uintptr_t)-4096, N), say("read into the kernel %zd errno %d", k, err_of(k));
    volatile size_t huge = (size_t)-1;
    k = read(sv[1], area, huge), say("read of everything %zd errno %d", k, err_of(k));
    /* a length far beyond the memory is fine as long as the data is not */
    volatile size_t large = (size_t)1 << 30;
    k = read(sv[1], area, large), say("read of 1 GiB: %zd errno %d", k, err_of(k));
    rest("at last");
    MUST(give(sv[0], src, 50000) == 50000);
    wait_unread(sv[1], 50000);
    k = read(sv[1], area + 5, large), say("read of 1 GiB that gets little: %zd errno %d", k, err_of(k));
    same("little", area + 5, src, 50000);
    say_area("after headers");
    munmap(area, AREA);
}

static sigjmp_buf jump;
static siginfo_t seen;
static volatile int expected;
static void on_segv(int sig, siginfo_t *si, void *uc) {
    (void)uc;
    if (!expected) { /* a call that should say EFAULT, for one */
        say("FAIL signal %d out of the blue, code %d", sig, si->si_code);
        _exit(5);
    }
    seen = *si;
    siglongjmp(jump, 1);
}

static void copies(int bad, int r) {
    lay_out(bad, 800 + r);
    MUST(give(sv[0], src, N) == (ssize_t)N && take(sv[1], good, N) == (ssize_t)N);
    static const size_t to[] = {30 * PAGE, 25 * PAGE + 3, 33 * PAGE + 8};
    expected = 1;
    for (size_t i = 0; i < 3; i++) {
        volatile int came = 0;
        if (!sigsetjmp(jump, 1)) memcpy(area + to[i], good, 20 * PAGE), came = 1;
        size_t at = (u8 *)seen.si_addr - area;
        say("memcpy into it: came back %d code %d in the bad part %d", came, seen.si_code, at >= 30 * PAGE && at < 34 * PAGE);
        if (!sigsetjmp(jump, 1)) memmove(area + to[i] - 1, area + to[i], 20 * PAGE), came = 1;
        say("memmove in it: came back %d code %d", came, seen.si_code);
        if (bad == READ_ONLY) continue;
        if (!sigsetjmp(jump, 1)) memcpy(model, area + to[i], 20 * PAGE), came = 1;
        say("memcpy from it: came back %d code %d", came, seen.si_code);
    }
    expected = 0;
    verify("source", good, N, 800 + r, 0);
    munmap(area, AREA);
}

static void datagrams(int r) {
    int d[2];
    MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, d) == 0);
    lay_out(HOLE, 900 + r);
    for (int i = 0; i < 2; i++) {
        MUST(send(d[0], src, 60000, 0) == 60000 && send(d[0], src, 100, 0) == 100);
        ssize_t k = recv(d[1], area + (i ? 30 : 25) * PAGE, 60000, MSG_DONTWAIT);
        say("datagram into a hole %zd errno %d", k, err_of(k));
        k = recv(d[1], good, N, MSG_DONTWAIT);
        say("the next %zd", k);
        k = send(d[0], area + 25 * PAGE, 60000, MSG_DONTWAIT);
        say("datagram from a hole %zd errno %d", k, err_of(k));
        while ((k = recv(d[1], good, N, MSG_DONTWAIT)) > 0) say("left over %zd", k);
    }
    close(d[0]), close(d[1]);
    munmap(area, AREA);
}

int main(void) {
    struct sigaction sa = {.sa_sigaction = on_segv, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &sa, NULL);
    good = malloc(2 * N);
    for (kind = P_UNIX; kind <= P_PIPE; kind++) {
        open_pair();
        for (int bad = 0; bad < KINDS_OF_BAD; bad++)
            for (int r = 0; r < 2; r++) {
                say("%s %s round %d", peer_names[kind], bad_names[bad], r);
                if (bad != NO_ACCESS) receive(bad, r);
                if (bad == HOLE) transmit(bad, r);
                copies(bad, r);
            }
        headers();
        datagrams(kind);
        close(sv[0]), close(sv[1]);
    }
    return finish();
}
