// hazard 11: stacks in memory that carried data: of signals, contexts, threads; the kernel writes signal frames there
// cflags: -Wno-deprecated-declarations
// expect: elided
#include "common.h"
#include <stdatomic.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>

#define PAGE ((size_t)4096)
#define BLOCK (512 * KIB)
#define STACK (128 * KIB)
static peer p;
static volatile int ran, where_ok;
static u8 *low;
static atomic_int over;

static void note(int sig) {
    u8 here;
    (void)sig;
    ran++;
    where_ok += &here >= low && &here < low + STACK;
}

/* Sends a signal to this thread with the stack pointer at `sp`: the first to write below it is the kernel. */
FN void signal_at(u8 *sp) {
    register long pid __asm__("rdi") = getpid(), tid __asm__("rsi") = syscall(SYS_gettid), sig __asm__("rdx") = SIGUSR2;
    long r = SYS_tgkill;
    __asm__ volatile(
        "mov %%rsp, %%rbx\n\tmov %[sp], %%rsp\n\tsyscall\n\tmov %%rbx, %%rsp"
        : "+a"(r)
        : [sp] "r"(((uintptr_t)sp & ~(uintptr_t)15)), "r"(pid), "r"(tid), "r"(sig)
        : "rbx", "rcx", "r11", "memory");
}

/* On the stack at `low`: frames at its far end, at page borders and within pages. */
static void deep(void) {
    ran = where_ok = 0;
    for (size_t at = 4 * PAGE; at < STACK - 3 * PAGE; at += 5 * PAGE + 328) signal_at(low + at);
    signal_at(low + 4 * PAGE);
}
static void say_deep(const char *name) { say("%s: ran %d, all of them there %d", name, ran, ran && ran == where_ok); }

static void on_own_stack(int sig) {
    (void)sig;
    deep();
}

static u8 *used(u64 seed) {
    u8 *b = malloc(BLOCK);
    GET(&p, seed, b, BLOCK);
    low = (u8 *)(((uintptr_t)b + 128 * KIB) & ~(uintptr_t)15);
    return b;
}
/* What is beside the stack is data still, and what was a stack can be data again. */
static void beside(u8 *b, u64 seed) {
    verify("below", b, low - b, seed, 0);
    u8 *rest = low + STACK;
    verify("above", rest, b + BLOCK - rest, seed, rest - b);
    GET(&p, seed + 1, b, BLOCK);
    SENT(&p, "again", b, BLOCK, pat_hash(seed + 1, 0, BLOCK));
    verify("again", low, STACK, seed + 1, low - b);
    free(b);
}

static void of_signals(int r) {
    u8 *b = used(80 + r);
    stack_t st = {.ss_sp = low, .ss_size = STACK}, off = {.ss_flags = SS_DISABLE};
    struct sigaction sa = {.sa_handler = on_own_stack, .sa_flags = SA_ONSTACK};
    MUST(sigaltstack(&st, NULL) == 0);
    sigaction(SIGUSR1, &sa, NULL);
    raise(SIGUSR1);
    say_deep("sigaltstack");
    raise(SIGUSR1);
    say_deep("sigaltstack");
    MUST(sigaltstack(&off, NULL) == 0);
    beside(b, 80 + r);
}

static ucontext_t back, there;
static void in_context(int a, int b, int c, int d, int e, int f, int g, int h) {
    say("arguments %d", a == 1 && b == 2 && c == 3 && d == 4 && e == 5 && f == 6 && g == 7 && h == 8);
    deep();
}
static void of_contexts(int r) {
    u8 *b = used(100 + r);
    getcontext(&there);
    there.uc_stack.ss_sp = low, there.uc_stack.ss_size = STACK;
    there.uc_link = &back;
    makecontext(&there, (void (*)(void))in_context, 8, 1, 2, 3, 4, 5, 6, 7, 8);
    MUST(swapcontext(&back, &there) == 0);
    say_deep("makecontext");
    beside(b, 100 + r);
}

static void *in_thread(void *arg) {
    deep();
    return arg;
}
static void of_threads(int r) {
    pthread_t t;
    pthread_attr_t attr;
    u8 *b = used(120 + r);
    MUST(pthread_attr_init(&attr) == 0);
    if (r & 1) {
        MUST(pthread_attr_setstackaddr(&attr, low + STACK) == 0);
        MUST(pthread_attr_setstacksize(&attr, STACK) == 0);
    } else {
        MUST(pthread_attr_setstack(&attr, low, STACK) == 0);
    }
    MUST(pthread_create(&t, &attr, in_thread, NULL) == 0);
    MUST(pthread_join(t, NULL) == 0);
    say_deep("pthread_create");
    pthread_attr_destroy(&attr);
    beside(b, 120 + r);
}

static void in_timer(union sigval v) {
    (void)v;
    sigset_t none;
    sigemptyset(&none);
    pthread_sigmask(SIG_SETMASK, &none, NULL);
    deep();
    atomic_store(&over, 1);
}
static void of_timers(int r) {
    timer_t t;
    pthread_attr_t attr;
    struct itimerspec soon = {.it_value = {0, 1000000}};
    struct sigevent e = {.sigev_notify = SIGEV_THREAD, .sigev_notify_function = in_timer};
    u8 *b = used(140 + r);
    MUST(pthread_attr_init(&attr) == 0);
    MUST(pthread_attr_setstack(&attr, low, STACK) == 0);
    e.sigev_notify_attributes = &attr;
    atomic_store(&over, 0);
    MUST(timer_create(CLOCK_MONOTONIC, &e, &t) == 0);
    MUST(timer_settime(t, 0, &soon, NULL) == 0);
    for (int i = 0; !atomic_load(&over) && i < 5000; i++) usleep(1000);
    say_deep("timer_create");
    MUST(timer_delete(t) == 0);
    usleep(100000); /* the thread may still be leaving its stack */
    verify("below", b, low - b, 140 + r, 0);
}

int main(void) {
    p = peer_start(P_TCP);
    struct sigaction sa = {.sa_handler = note, .sa_flags = SA_NODEFER};
    sigaction(SIGUSR2, &sa, NULL);
    for (int r = 0; r < 4; r++) {
        say("round %d", r);
        of_signals(r);
        of_contexts(r);
        of_threads(r);
    }
    of_timers(0);
    peer_stop(&p);
    return finish();
}
