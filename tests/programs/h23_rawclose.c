// hazard 23: zio's descriptor is closed by a system call that no hook sees, and its number used for something else
// expect: elided
// skip: sigbus
/* In sigbus mode the registration is all that tells an elided page from a missing one: it dies with the descriptor. */
#include "common.h"
#include <dirent.h>
#include <sys/syscall.h>

#define N (250 * KIB)
#define FROM 880
#define TO 1000
static ino_t inodes[TO];
static peer p;

FN long raw(long n, long a, long b, long c, long d) {
    register long r10 __asm__("r10") = d;
    long r = n;
    __asm__ volatile("syscall" : "+a"(r) : "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
    return r;
}

/* Descriptors that the program did not open; a process needs one at most. */
static int extra(void) {
    int n = 0;
    char name[300], to[64];
    DIR *d = opendir("/proc/self/fd");
    MUST(d != NULL);
    for (struct dirent *e; (e = readdir(d));) {
        snprintf(name, sizeof name, "/proc/self/fd/%s", e->d_name);
        ssize_t k = readlink(name, to, sizeof to - 1);
        to[k < 0 ? 0 : k] = 0;
        n += strcmp(to, "anon_inode:[userfaultfd]") == 0;
    }
    closedir(d);
    return n;
}

static void close_raw(void) { MUST(raw(SYS_close_range, FROM, ~0U, 0, 0) == 0); }

/* Files of the program's on all numbers around, each different. */
static void reuse(int by_hook) {
    for (int fd = FROM; fd < TO; fd++) {
        struct stat st;
        int made = fd % 3 == 0   ? memfd_create("x", 0)
                   : fd % 3 == 1 ? socket(AF_UNIX, SOCK_STREAM, 0)
                                 : open("/proc/self/exe", O_PATH);
        MUST(made >= 0 && made < FROM);
        if (by_hook) MUST(dup2(made, fd) == fd);
        else MUST(raw(SYS_dup2, made, fd, 0, 0) == fd);
        MUST(raw(SYS_close, made, 0, 0, 0) == 0);
        MUST(fstat(fd, &st) == 0);
        inodes[fd] = st.st_ino;
    }
}
static void still_there(const char *name) {
    int wrong = 0, refused = 0;
    for (int fd = FROM; fd < TO; fd++) {
        struct stat st;
        wrong += fstat(fd, &st) != 0 || st.st_ino != inodes[fd];
    }
    for (int fd = FROM; fd < TO; fd++) refused += close(fd) != 0;
    say("%s: wrong files %d, not closed %d", name, wrong, refused);
    failures += wrong + refused;
}

static void rounds(int how) {
    u8 *a = malloc(N), *b = malloc(N);
    GET(&p, how, a, N);
    memcpy(b, a, N);
    close_raw();
    if (how & 1) reuse(how & 2);
    verify("touched", a, N / 2, how, 0);
    verify("touched", b, N, how, 0);
    if (how & 1) still_there("reused");
    CHECK(extra() <= 1);
    for (int i = 0; i < 3; i++) {
        GET(&p, how + 10 + i, a, N);
        memcpy(b, a, N);
        SENT(&p, "again", b, N, pat_hash(how + 10 + i, 0, N));
    }
    verify("again", b, N, how + 12, 0);
    CHECK(extra() <= 1);
    /* A child by a call that no hook sees, and one whose inherited number means something else. */
    for (int raw_fork = 0; raw_fork < 2; raw_fork++) {
        GET(&p, 40, a, N);
        pid_t pid = raw_fork ? raw(SYS_clone, SIGCHLD, 0, 0, 0) : fork();
        MUST(pid >= 0);
        if (pid == 0) {
            if (raw_fork) close_raw(), reuse(0);
            verify("child", a, N, 40, 0);
            if (raw_fork) still_there("child");
            CHECK(extra() <= 1);
            _exit(failures);
        }
        int st;
        MUST(waitpid(pid, &st, 0) == pid);
        say("child %x", st);
    }
    SENT(&p, "parent", a, N, pat_hash(40, 0, N));
    free(a);
    free(b);
}

int main(void) {
    p = peer_start(P_TCP);
    for (int how = 0; how < 4; how++) {
        say("how %d", how);
        rounds(how);
    }
    peer_stop(&p);
    return finish();
}
