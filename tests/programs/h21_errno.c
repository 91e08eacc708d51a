// hazard 21: errno is what it was after every call that succeeds, and what it should be after one that fails
// cflags: -Wno-unused-result -Wno-unused-value
// expect: elided
#include "common.h"
#include <malloc.h>
#include <sys/epoll.h>

#define N (100 * KIB)
static u8 src[N];
static int changed;

/* Runs a call with a known errno and says so when the call succeeded and changed it. */
#define KEEPS(call)                                                                  \
    do {                                                                             \
        errno = 77;                                                                  \
        call;                                                               \
        if (errno != 77) {                                                           \
            int is = errno;                                                          \
            changed++;                                                               \
            say("FAIL round %d: errno %d after %s", round_no, is, #call);            \
        }                                                                            \
    } while (0)
#define FAILS(call)                                                                  \
    do {                                                                             \
        errno = 77;                                                                  \
        long r_ = (long)(call);                                                      \
        say("%s: %ld errno %d", #call, r_, errno);                                   \
    } while (0)

static int round_no;
static volatile size_t too_much = (size_t)-4097;

int main(void) {
    int sv[2], dg[2];
    unix_pair(sv);
    MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, dg) == 0);
    int fd = open("file", O_RDWR | O_CREAT | O_TRUNC, 0600);
    int ep = epoll_create1(0);
    struct epoll_event ev = {.events = EPOLLIN};
    epoll_ctl(ep, EPOLL_CTL_ADD, sv[1], &ev);
    for (round_no = 0; round_no < 6; round_no++) {
        u8 *a, *b, *c;
        struct iovec v[2];
        struct msghdr m = {.msg_iov = v, .msg_iovlen = 2};
        fill(src, N, round_no, 0);
#define LOAD() MUST(give(sv[0], src, N) == (ssize_t)N)
#define VEC(x) (v[0] = (struct iovec){(x), N / 2}, v[1] = (struct iovec){(x) + N / 2, N - N / 2}, v)
        KEEPS(a = malloc(N));
        KEEPS(b = calloc(2, N));
        KEEPS(c = realloc(NULL, N));
        LOAD();
        KEEPS(read(sv[1], a, N));
        KEEPS(memcpy(b, a, N));
        KEEPS(memmove(b + 5, b, N));
        KEEPS(memset(a, 3, N));
        LOAD();
        KEEPS(recv(sv[1], a, N, 0));
        KEEPS(b[N / 2]++); /* a touch */
        KEEPS(write(sv[0], a, N));
        KEEPS(recvfrom(sv[1], b, N, 0, NULL, NULL));
        KEEPS(send(sv[0], b, N, 0));
        KEEPS(readv(sv[1], VEC(c), 2));
        KEEPS(writev(sv[0], VEC(c), 2));
        (void)VEC(a);
        KEEPS(recvmsg(sv[1], &m, 0));
        KEEPS(sendmsg(sv[0], &m, 0));
        KEEPS(recv(sv[1], b, N, MSG_PEEK));
        KEEPS(recv(sv[1], b, N, MSG_WAITALL));
        KEEPS(sendto(dg[0], b, N, 0, NULL, 0));
        KEEPS(recv(dg[1], c, N, 0));
        KEEPS(pwrite(fd, c, N, 0));
        KEEPS(pread(fd, a, N, 0));
        KEEPS(pwritev(fd, VEC(a), 2, 7));
        KEEPS(preadv(fd, VEC(b), 2, 7));
        KEEPS(epoll_wait(ep, &ev, 1, 0));
        FILE *f = fopen("stream", "w+");
        KEEPS(fwrite(b, 1, N, f));
        KEEPS(fflush(f));
        rewind(f);
        KEEPS(fread(a, 1, N, f));
        verify("fread", a, N, round_no, 0);
        KEEPS(fclose(f));
        KEEPS(a = realloc(a, 3 * N));
        KEEPS(a = realloc(a, N / 2));
        KEEPS(malloc_usable_size(a));
        KEEPS(free(a));
        u8 *map;
        KEEPS(map = map_anon(N));
        LOAD();
        KEEPS(read(sv[1], map, N));
        KEEPS(mprotect(map, N, PROT_READ));
        KEEPS(mprotect(map, N, PROT_READ | PROT_WRITE));
        KEEPS(map = mremap(map, N, 2 * N, MREMAP_MAYMOVE));
        KEEPS(madvise(map, N, MADV_DONTNEED));
        KEEPS(munmap(map, 2 * N));
        struct sigaction sa;
        sigset_t set;
        KEEPS(sigaction(SIGSEGV, NULL, &sa));
        KEEPS(signal(SIGUSR1, SIG_IGN));
        KEEPS(sigprocmask(SIG_BLOCK, NULL, &set));
        KEEPS(sigaltstack(NULL, &(stack_t){0}));
        pid_t pid;
        KEEPS(pid = fork());
        if (pid == 0) _exit(0);
        KEEPS(waitpid(pid, NULL, 0));
        free(b);
        free(c);
        a = malloc(N);
        FAILS(read(-1, a, N));
        FAILS(write(-1, a, N));
        FAILS(recv(fd, a, N, 0));
        FAILS(send(fd, a, N, 0));
        FAILS(recv(sv[1], a, N, MSG_DONTWAIT));
        FAILS(pread(fd, a, N, -1));
        FAILS(pread(sv[1], a, N, 0));
        FAILS(read(ep, a, N));
        FAILS(munmap(a + 1, N));
        FAILS(mprotect((void *)0x1000, 4096, PROT_READ));
        FAILS(madvise((void *)0x1000, 4096, MADV_DONTNEED));
        FAILS(malloc(too_much) != NULL);
        FAILS(calloc(too_much, too_much) != NULL);
        FAILS(fopen("/nonexistent", "r") != NULL);
        free(a);
    }
    failures += changed;
    return finish();
}
