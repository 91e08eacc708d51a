// hazard 11: the program's own SIGSEGV and SIGBUS handlers, real faults, fatal ones, raised signals
// expect: elided
#include "common.h"

#define N (128 * KIB)
#define PAGE ((size_t)4096)
static sigjmp_buf jump;
static siginfo_t seen;
static volatile int count;
static u8 *region;
static size_t region_len;

static void note_and_jump(int sig, siginfo_t *si, void *uc) {
    (void)sig, (void)uc;
    seen = *si;
    count++;
    siglongjmp(jump, 1);
}
static void unprotect(int sig, siginfo_t *si, void *uc) {
    (void)sig, (void)uc;
    seen = *si;
    if (++count > 1000) _exit(6);
    u8 *page = (u8 *)((uintptr_t)si->si_addr & ~(PAGE - 1));
    if (page < region || page >= region + region_len) _exit(7);
    mprotect(page, PAGE, PROT_READ | PROT_WRITE);
}
static void note(int sig, siginfo_t *si, void *uc) {
    (void)sig, (void)uc;
    seen = *si;
    count++;
}
static void install(int sig, void (*f)(int, siginfo_t *, void *), int flags) {
    struct sigaction sa = {.sa_sigaction = f, .sa_flags = SA_SIGINFO | flags};
    MUST(sigaction(sig, &sa, NULL) == 0);
}

/* A write barrier as garbage collectors have it: protect, catch, unprotect, go on. */
static void barrier(peer *p, int r) {
    region_len = N;
    region = map_anon(N);
    install(SIGSEGV, unprotect, (r & 1) ? SA_NODEFER : 0);
    GET(p, 10 + r, region, N);
    u8 *copy = malloc(N);
    memcpy(copy, region, N);
    MUST(mprotect(region, N, r & 2 ? PROT_NONE : PROT_READ) == 0);
    count = 0;
    for (size_t i = 10; i < N; i += 3 * PAGE) {
        ((volatile u8 *)region)[i]++;
        say("caught %d code %d at %ld", count, seen.si_code, (long)((u8 *)seen.si_addr - region));
    }
    MUST(mprotect(region, N, PROT_READ | PROT_WRITE) == 0);
    for (size_t i = 10; i < N; i += 3 * PAGE) region[i]--;
    SENT(p, "behind a barrier", region, N, pat_hash(10 + r, 0, N));
    verify("behind a barrier", region, N, 10 + r, 0);
    verify("copy", copy, N, 10 + r, 0);
    free(copy);
    munmap(region, N);
}

static void real_faults(peer *p, int r) {
    u8 *b = malloc(N);
    GET(p, 30 + r, b, N);
    install(SIGSEGV, note_and_jump, 0);
    install(SIGBUS, note_and_jump, 0);
    if (!sigsetjmp(jump, 1)) *(volatile int *)16 = 1;
    say("null: signal %d code %d address %p", seen.si_signo, seen.si_code, seen.si_addr);
    if (!sigsetjmp(jump, 1)) say("%d", *(volatile u8 *)0x7000000000001000);
    say("unmapped: signal %d code %d address %p", seen.si_signo, seen.si_code, seen.si_addr);
    if (!sigsetjmp(jump, 1)) say("%d", *(volatile u8 *)0xdead000000000000);
    say("not canonical: signal %d code %d address %p", seen.si_signo, seen.si_code, seen.si_addr);
    u8 *ro = mmap(NULL, N, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!sigsetjmp(jump, 1)) memcpy(ro + 5, b, N - 5);
    say("memcpy to read-only: code %d inside %d", seen.si_code, (u8 *)seen.si_addr >= ro && (u8 *)seen.si_addr < ro + N);
    if (!sigsetjmp(jump, 1)) memset(ro, 1, N);
    say("memset to read-only: code %d", seen.si_code);
    munmap(ro, N);
    int fd = open("short", O_RDWR | O_CREAT | O_TRUNC, 0600);
    MUST(fd >= 0 && ftruncate(fd, 10 * PAGE) == 0);
    u8 *m = mmap(NULL, 10 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    MUST(m != MAP_FAILED);
    memcpy(m, b, 10 * PAGE);
    MUST(ftruncate(fd, 4 * PAGE) == 0);
    close(fd);
    if (!sigsetjmp(jump, 1)) m[6 * PAGE + 9] = 1;
    say("truncated: signal %d code %d at %ld", seen.si_signo, seen.si_code, (long)((u8 *)seen.si_addr - m));
    if (!sigsetjmp(jump, 1)) memcpy(b, m, 10 * PAGE);
    say("memcpy from truncated: signal %d code %d", seen.si_signo, seen.si_code);
    verify("first pages", m, 4 * PAGE, 30 + r, 0);
    munmap(m, 10 * PAGE);
    verify("rest", b + 10 * PAGE, N - 10 * PAGE, 30 + r, 10 * PAGE);
    free(b);
}

static void raised(peer *p, int r) {
    u8 *b = malloc(N);
    GET(p, 50 + r, b, N);
    static const int sigs[] = {SIGSEGV, SIGBUS, SIGUSR1};
    for (int i = 0; i < 3; i++) {
        int s = sigs[i];
        install(s, note, 0);
        raise(s);
        say("raise %d: signo %d code %d", count, seen.si_signo, seen.si_code);
        kill(getpid(), s);
        say("kill: signo %d code %d pid %d", seen.si_signo, seen.si_code, seen.si_pid == getpid());
        sigqueue(getpid(), s, (union sigval){.sival_int = 77});
        say("sigqueue: signo %d code %d value %d", seen.si_signo, seen.si_code, seen.si_value.sival_int);
        /* blocked: it waits, whatever elided data is touched meanwhile */
        sigset_t set, old, pending;
        sigfillset(&set);
        int before = count;
        sigprocmask(SIG_SETMASK, &set, &old);
        raise(s);
        sigpending(&pending);
        say("blocked: member %d pending %d ran %d", sigismember(&set, s), sigismember(&pending, s), count - before);
        verify("with all blocked", b + i * 40000, 40000, 50 + r, i * 40000);
        sigprocmask(SIG_BLOCK, NULL, &set);
        say("mask says %d, ran %d", sigismember(&set, s), count - before);
        sigprocmask(SIG_SETMASK, &old, NULL);
        say("unblocked: ran %d code %d", count - before, seen.si_code);
    }
    free(b);
}

static void dies_of_null(void *arg) {
    (void)arg;
    signal(SIGSEGV, SIG_DFL);
    *(volatile int *)8 = 1;
}
static void dies_ignored(void *arg) {
    (void)arg;
    signal(SIGSEGV, SIG_IGN); /* a real fault kills all the same */
    raise(SIGSEGV);
    say("an ignored raise is ignored");
    *(volatile int *)8 = 1;
}
static void dies_blocked(void *arg) {
    (void)arg;
    sigset_t s;
    install(SIGSEGV, note_and_jump, 0);
    sigemptyset(&s), sigaddset(&s, SIGSEGV), sigprocmask(SIG_BLOCK, &s, NULL);
    if (!sigsetjmp(jump, 0)) *(volatile int *)8 = 1;
    say("FAIL a blocked fault was handled");
}
static void dies_second_time(void *arg) {
    (void)arg;
    install(SIGSEGV, note, SA_RESETHAND);
    count = 0;
    raise(SIGSEGV);
    say("first raise: %d", count);
    raise(SIGSEGV);
    say("FAIL the second raise came back");
}
static void dies_in_handler(int sig) {
    (void)sig;
    *(volatile int *)24 = 1;
}
static void dies_nested(void *arg) {
    (void)arg;
    signal(SIGSEGV, dies_in_handler);
    *(volatile int *)8 = 1;
}
static void dies_by_bus(void *arg) {
    (void)arg;
    signal(SIGBUS, SIG_DFL);
    raise(SIGBUS);
}
static void dies_by_abort(void *arg) {
    *(volatile u8 *)arg += 1;
    abort();
}

int main(void) {
    peer p = peer_start(P_TCP);
    for (int r = 0; r < 4; r++) {
        say("round %d", r);
        barrier(&p, r);
        real_faults(&p, r);
        raised(&p, r);
        u8 *b = malloc(N);
        GET(&p, 90 + r, b, N);
        in_child("null", dies_of_null, NULL);
        in_child("ignored", dies_ignored, NULL);
        in_child("blocked", dies_blocked, NULL);
        in_child("resethand", dies_second_time, NULL);
        in_child("nested", dies_nested, NULL);
        in_child("bus", dies_by_bus, NULL);
        in_child("abort", dies_by_abort, b);
        verify("at the end", b, N, 90 + r, 0);
        free(b);
    }
    peer_stop(&p);
    return finish();
}
