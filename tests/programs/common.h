/* Shared by the hazard programs.
 *
 * A program prints a transcript that must not depend on time, addresses or process ids, checks itself
 * against byte patterns, and ends with finish(). The runner compares transcript, exit status and the
 * files left behind with a run without the library.
 *
 * Ground truth lives where nothing is ever elided: in .bss, written and compared by byte loops or
 * `rep movsb`, never by the libc functions under test. The peer process reads in 8 KiB pieces into
 * .bss, so its hashes are those of the bytes that really crossed the descriptor.
 *
 * take() and give() are always inlined on purpose: each use is a call site of its own, so that what one
 * scenario teaches the library about a site does not switch elision off in the next.
 */
#ifndef ZIO_TEST_COMMON_H
#define ZIO_TEST_COMMON_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define INL static inline __attribute__((always_inline, unused))
#define FN static __attribute__((noinline, unused))
#define KIB ((size_t)1024)
#define MIB (KIB * 1024)
#define ARRAY(a) (sizeof(a) / sizeof((a)[0]))

typedef unsigned char u8;
typedef uint64_t u64;

static int failures;

/* One transcript line, written at once: nothing is lost in a crash, nothing is doubled by a fork. */
__attribute__((format(printf, 1, 2))) FN void say(const char *fmt, ...) {
    int saved = errno;
    char line[1024];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(line, sizeof line - 1, fmt, ap);
    va_end(ap);
    if (n > (int)sizeof line - 2) n = sizeof line - 2;
    line[n++] = '\n';
    for (int done = 0; done < n;) {
        ssize_t k = write(1, line + done, n - done);
        if (k > 0) done += k;
        else if (errno != EINTR) _exit(4);
    }
    errno = saved;
}

#define CHECK(cond)                                                                  \
    do {                                                                             \
        if (!(cond)) {                                                               \
            failures++;                                                              \
            say("FAIL %s:%d: %s (errno %d)", __func__, __LINE__, #cond, errno);      \
        }                                                                            \
    } while (0)

/* Set-up that the test needs and that is not what it tests. */
#define MUST(cond)                                                                   \
    do {                                                                             \
        if (!(cond)) {                                                               \
            say("SETUP %s:%d: %s (errno %d)", __func__, __LINE__, #cond, errno);     \
            _exit(3);                                                                \
        }                                                                            \
    } while (0)

FN int finish(void) {
    say("end, %d failures", failures);
    return failures ? 1 : 0;
}

/* errno if the call failed, else 0: what a transcript says beside a return value. */
INL int err_of(ssize_t r) { return r < 0 ? errno : 0; }

/* Says what a call gives and what errno then is. Not an argument beside the call: those come in any order. */
#define SAY_ERR(fmt, call)                                                           \
    do {                                                                             \
        errno = 0;                                                                   \
        long r_ = (long)(call);                                                      \
        say((fmt), r_, errno);                                                       \
    } while (0)

INL u64 pat_word(u64 seed, u64 w) {
    u64 z = seed * 0xD1342543DE82EF95u + (w + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* Byte i of the endless pattern `seed`: any shift, stale or zero byte shows. */
INL u8 pat(u64 seed, u64 i) { return (u8)(pat_word(seed, i >> 3) >> ((i & 7) * 8)); }

FN void fill(void *p, size_t n, u64 seed, u64 from) {
    volatile u8 *b = p;
    for (size_t i = 0; i < n; i++) b[i] = pat(seed, from + i);
}

#define FNV_START 0xCBF29CE484222325u
INL u64 fnv(u64 h, u8 b) { return (h ^ b) * 0x100000001B3u; }

FN u64 hash(const void *p, size_t n) {
    const volatile u8 *b = p;
    u64 h = FNV_START;
    for (size_t i = 0; i < n; i++) h = fnv(h, b[i]);
    return h;
}

FN u64 pat_hash(u64 seed, u64 from, size_t n) {
    u64 h = FNV_START;
    for (size_t i = 0; i < n; i++) h = fnv(h, pat(seed, from + i));
    return h;
}

/* Copies with one instruction: never a hooked call, and a fault in the middle of a string move. */
FN void raw_copy(void *d, const void *s, size_t n) {
    __asm__ volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n) : : "memory");
}

/* Prints `name ok` or the first wrong byte, and counts it. */
FN int same(const char *name, const void *got, const void *model, size_t n) {
    const volatile u8 *g = got, *m = model;
    for (size_t i = 0; i < n; i++) {
        u8 is = g[i], should = m[i];
        if (is != should) {
            failures++;
            say("FAIL %s: byte %zu of %zu: expected %02x got %02x, then %02x", name, i, n, should, is, g[i]);
            return 0;
        }
    }
    say("%s ok %zu %016lx", name, n, (unsigned long)hash(model, n));
    return 1;
}

FN int verify(const char *name, const void *got, size_t n, u64 seed, u64 from) {
    const volatile u8 *g = got;
    for (size_t i = 0; i < n; i++) {
        u8 is = g[i], should = pat(seed, from + i);
        if (is != should) {
            failures++;
            say("FAIL %s: byte %zu of %zu: expected %02x got %02x, then %02x", name, i, n, should, is, g[i]);
            return 0;
        }
    }
    say("%s ok %zu %016lx", name, n, (unsigned long)pat_hash(seed, from, n));
    return 1;
}

/* Reads until n bytes are there, the stream ends or an error comes; bytes read, or -1 if none. */
INL ssize_t take(int fd, void *buf, size_t n) {
    size_t done = 0;
    while (done < n) {
        ssize_t k = read(fd, (u8 *)buf + done, n - done);
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) return done ? (ssize_t)done : k;
        done += k;
    }
    return done;
}

INL ssize_t take_recv(int fd, void *buf, size_t n, int flags) {
    size_t done = 0;
    while (done < n) {
        ssize_t k = recv(fd, (u8 *)buf + done, n - done, flags);
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) return done ? (ssize_t)done : k;
        done += k;
    }
    return done;
}

INL ssize_t give(int fd, const void *buf, size_t n) {
    size_t done = 0;
    while (done < n) {
        ssize_t k = write(fd, (const u8 *)buf + done, n - done);
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) return done ? (ssize_t)done : k;
        done += k;
    }
    return done;
}

FN void tcp_pair(int sv[2]) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    int l = socket(AF_INET, SOCK_STREAM, 0), one = 1, room = 1 << 20;
    /* Buffers of a fixed size: 100 KiB fit whether or not somebody reads. */
    setsockopt(l, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    MUST(l >= 0 && bind(l, (void *)&a, len) == 0 && listen(l, 1) == 0);
    MUST(getsockname(l, (void *)&a, &len) == 0);
    sv[0] = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(sv[0], SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    MUST(connect(sv[0], (void *)&a, len) == 0);
    sv[1] = accept(l, NULL, NULL);
    MUST(sv[1] >= 0);
    close(l);
    setsockopt(sv[0], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(sv[1], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

FN void unix_pair(int sv[2]) { MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, sv) == 0); }

FN void big_pipe(int p[2]) {
    MUST(pipe(p) == 0);
    MUST(fcntl(p[0], F_SETPIPE_SZ, 1 << 20) >= 1 << 20);
}

/* Waits until fd holds at least n unread bytes, so that one receive has a foreseeable result. */
FN void wait_unread(int fd, int n) {
    for (int i = 0; i < 5000; i++) {
        int have = 0;
        if (ioctl(fd, FIONREAD, &have) == 0 && have >= n) return;
        usleep(1000);
    }
    MUST(!"data arrived");
}

/* The peer: a process that sends patterns and hashes what it is sent, by orders on a socket. */
typedef struct {
    int in;   /* we read the peer's data here */
    int out;  /* we write to the peer here */
    int ctl;
    pid_t pid;
} peer;
struct order {
    u64 op, seed, len, chunk, pause_us;
};
enum { P_UNIX, P_TCP, P_PIPE };
static const char *const peer_names[] = {"unix", "tcp", "pipe"};
static u8 peer_mem[4 << 20];

FN void peer_serve(int in, int out, int ctl) {
    struct order o;
    while (take(ctl, &o, sizeof o) == sizeof o) {
        if (o.op == 'S') {
            MUST(o.len <= sizeof peer_mem);
            fill(peer_mem, o.len, o.seed, 0);
            u64 step = o.chunk ? o.chunk : o.len;
            for (u64 at = 0; at < o.len; at += step) {
                if (at && o.pause_us) usleep(o.pause_us);
                u64 k = o.len - at < step ? o.len - at : step;
                if (give(out, peer_mem + at, k) != (ssize_t)k) break;
            }
        } else if (o.op == 'H') {
            u64 h = FNV_START, left = o.len;
            while (left) {
                ssize_t k = read(in, peer_mem, left < 8192 ? left : 8192);
                if (k < 0 && errno == EINTR) continue;
                if (k <= 0) break;
                for (ssize_t i = 0; i < k; i++) h = fnv(h, peer_mem[i]);
                left -= k;
            }
            u64 reply[2] = {h, o.len - left};
            give(ctl, reply, sizeof reply);
        } else if (o.op == 'P') {
            usleep(o.pause_us);
        } else {
            break;
        }
    }
}

FN peer peer_start(int kind) {
    int a[2], b[2], c[2];
    unix_pair(c);
    if (kind == P_PIPE) {
        int p[2], q[2];
        big_pipe(p);
        big_pipe(q);
        a[0] = p[0], b[0] = p[1]; /* peer writes b[0] */
        b[1] = q[0], a[1] = q[1]; /* peer reads b[1] */
    } else {
        int s[2];
        (kind == P_TCP ? tcp_pair : unix_pair)(s);
        a[0] = a[1] = s[0];
        b[0] = b[1] = s[1];
    }
    pid_t pid = fork();
    MUST(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        signal(SIGALRM, SIG_IGN);
        signal(SIGPIPE, SIG_IGN);
        close(a[0]);
        if (a[1] != a[0]) close(a[1]);
        close(c[0]);
        peer_serve(b[1], b[0], c[1]);
        _exit(0);
    }
    close(b[0]);
    if (b[1] != b[0]) close(b[1]);
    close(c[1]);
    return (peer){a[0], a[1], c[0], pid};
}

FN void peer_order(peer *p, struct order o) { MUST(give(p->ctl, &o, sizeof o) == sizeof o); }
/* The peer will send `len` bytes of pattern `seed`. */
FN void peer_send(peer *p, u64 seed, u64 len) { peer_order(p, (struct order){'S', seed, len, 0, 0}); }
FN void peer_send_slow(peer *p, u64 seed, u64 len, u64 chunk, u64 pause_us) {
    peer_order(p, (struct order){'S', seed, len, chunk, pause_us});
}
FN void peer_pause(peer *p, u64 us) { peer_order(p, (struct order){'P', 0, 0, 0, us}); }
/* The peer will read `len` bytes; peer_hash() then gives their hash. */
FN void peer_want(peer *p, u64 len) { peer_order(p, (struct order){'H', 0, len, 0, 0}); }
FN u64 peer_hash(peer *p) {
    u64 reply[2];
    MUST(take(p->ctl, reply, sizeof reply) == sizeof reply);
    return reply[0];
}
FN void peer_stop(peer *p) {
    struct order o = {'Q', 0, 0, 0, 0};
    send(p->ctl, &o, sizeof o, MSG_NOSIGNAL); /* it may be gone already */
    close(p->in);
    if (p->out != p->in) close(p->out);
    close(p->ctl);
    MUST(waitpid(p->pid, NULL, 0) == p->pid);
}

FN void judge(const char *name, size_t n, u64 got, u64 want) {
    if (got != want) {
        failures++;
        say("FAIL %s: %zu bytes sent: expected %016lx got %016lx", name, n, (unsigned long)want, (unsigned long)got);
    } else {
        say("%s sent %zu %016lx", name, n, (unsigned long)got);
    }
}

/* Sends the buffer and lets the peer say what arrived. */
#define SENT(p, name, buf, n, want)                                                  \
    do {                                                                             \
        peer_want((p), (n));                                                         \
        MUST(give((p)->out, (buf), (n)) == (ssize_t)(n));                            \
        judge((name), (n), peer_hash(p), (want));                                    \
    } while (0)

/* Receives n bytes of pattern `seed` into buf. */
#define GET(p, seed, buf, n)                                                         \
    do {                                                                             \
        peer_send((p), (seed), (n));                                                 \
        MUST(take((p)->in, (buf), (n)) == (ssize_t)(n));                             \
    } while (0)

/* Through a socket pair of our own: at most about 100 KiB, which the socket's buffer holds. */
#define PASS(sv, src, dst, n)                                                        \
    do {                                                                             \
        MUST(give((sv)[0], (src), (n)) == (ssize_t)(n));                             \
        MUST(take((sv)[1], (dst), (n)) == (ssize_t)(n));                             \
    } while (0)

/* Private anonymous memory, as a program maps it for itself. */
FN u8 *map_anon(size_t n) {
    u8 *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(p != MAP_FAILED);
    return p;
}

/* Runs f(arg) in a forked child and says how it ended. */
FN void in_child(const char *name, void (*f)(void *), void *arg) {
    pid_t pid = fork();
    MUST(pid >= 0);
    if (pid == 0) {
        struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        f(arg);
        _exit(failures ? 1 : 0);
    }
    int st = 0;
    MUST(waitpid(pid, &st, 0) == pid);
    if (WIFSIGNALED(st)) say("%s: child killed by signal %d", name, WTERMSIG(st));
    else say("%s: child exited %d", name, WEXITSTATUS(st));
}
#endif
