// hazard 12: C++ exceptions thrown by handlers of real faults and by callbacks, past the library's frames
// cflags: -fnon-call-exceptions -fno-delete-null-pointer-checks -Wno-array-bounds
// expect: elided
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <pthread.h>
#include <signal.h>
#include <stdexcept>
#include <string>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

/* common.h is C; this is what is needed of it. */
typedef unsigned char u8;
static int failures;
static const size_t N = 100 * 1024;
static u8 source[N];

__attribute__((format(printf, 1, 2), noinline)) static void say(const char *fmt, ...) {
    char line[512];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(line, sizeof line - 1, fmt, ap);
    va_end(ap);
    line[n++] = '\n';
    if (write(1, line, n) != n) _exit(4);
}

#define MUST(cond)                                                                   \
    do {                                                                             \
        if (!(cond)) {                                                               \
            say("SETUP %s:%d: %s", __func__, __LINE__, #cond);                       \
            _exit(3);                                                                \
        }                                                                            \
    } while (0)

static u8 pat(unsigned seed, size_t i) { return (u8)((i * 2654435761u + seed * 40503u) >> 13); }

__attribute__((noinline)) static void fill(unsigned seed) {
    volatile u8 *s = source;
    for (size_t i = 0; i < N; i++) s[i] = pat(seed, i);
}

__attribute__((noinline)) static void verify(const char *name, const void *p, size_t n, unsigned seed) {
    const volatile u8 *b = (const u8 *)p;
    size_t bad = 0;
    for (size_t i = 0; i < n; i++) bad += b[i] != pat(seed, i);
    if (bad) failures++;
    say("%s%s: %zu bytes, %zu wrong", bad ? "FAIL " : "", name, n, bad);
}

/* Fills a buffer through a socket pair. */
__attribute__((noinline)) static void received(int sv[2], unsigned seed, u8 *to) {
    fill(seed);
    MUST(write(sv[0], source, N) == (ssize_t)N);
    for (size_t at = 0; at < N;) {
        ssize_t k = read(sv[1], to + at, N - at);
        MUST(k > 0);
        at += k;
    }
}

static volatile int unwound;

struct guard_object {
    ~guard_object() { unwound = unwound + 1; }
};
struct fault {
    int sig, code;
};

static void throws(int sig, siginfo_t *si, void *) {
    sigset_t s;
    sigemptyset(&s);
    sigaddset(&s, sig);
    pthread_sigmask(SIG_UNBLOCK, &s, nullptr);
    throw fault{sig, si->si_code};
}

static void install(int sig, int flags) {
    struct sigaction sa = {};
    sa.sa_sigaction = throws;
    sa.sa_flags = SA_SIGINFO | flags;
    MUST(sigaction(sig, &sa, nullptr) == 0);
}

__attribute__((noinline)) static void writes(volatile int *p) {
    guard_object g;
    *p = 1;
}

__attribute__((noinline)) static void faults(const char *name, volatile int *p) {
    try {
        writes(p);
        say("FAIL %s: nothing was thrown", name);
    } catch (const fault &f) {
        say("%s: signal %d code %d, unwound %d", name, f.sig, f.code, unwound);
    }
}

static int compares(const void *a, const void *b) {
    int x = *(const int *)a, y = *(const int *)b;
    if (x == 777) throw std::runtime_error("enough");
    return x < y ? -1 : x > y;
}

static void *thread_main(void *arg) {
    guard_object g;
    for (int i = 0; i < 3; i++) faults("in a thread", (volatile int *)arg);
    pthread_exit(nullptr); /* unwinds too */
}

int main(void) {
    int sv[2];
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, sv) == 0);
    u8 *ro = (u8 *)mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int r = 0; r < 4; r++) {
        say("round %d", r);
        u8 *a = new u8[N], *b = new u8[N];
        received(sv, 10 + r, a);
        memcpy(b, a, N);
        install(SIGSEGV, r & 1 ? SA_ONSTACK : 0);
        stack_t st = {}, off = {};
        u8 *own = (u8 *)mmap(nullptr, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        st.ss_sp = own, st.ss_size = 65536;
        off.ss_flags = SS_DISABLE;
        for (int i = 0; i < 20; i++) faults("null", (volatile int *)8);
        faults("read-only", (volatile int *)(ro + 16));
        if (r & 2) MUST(sigaltstack(&st, nullptr) == 0);
        for (int i = 0; i < 20; i++) faults("null again", (volatile int *)8);
        verify("touched in between", b, N / 2, 10 + r);
        if (r & 2) MUST(sigaltstack(&off, nullptr) == 0);
        pthread_t t;
        pthread_create(&t, nullptr, thread_main, ro);
        pthread_join(t, nullptr);
        say("unwound %d", unwound);
        int *v = new int[30000];
        for (int i = 0; i < 30000; i++) v[i] = i == 20000 ? 777 : (i * 7919) % 30011;
        try {
            qsort(v, 30000, sizeof *v, compares);
            say("FAIL qsort came back");
        } catch (const std::exception &e) {
            say("caught %s", e.what());
        }
        std::string s((const char *)a, N), moved = s + s;
        verify("strings", moved.data() + N, N, 10 + r);
        verify("copy", b, N, 10 + r);
        verify("source", a, N, 10 + r);
        munmap(own, 65536);
        delete[] a;
        delete[] b;
        delete[] v;
    }
    say("end, %d failures", failures);
    return failures ? 1 : 0;
}
