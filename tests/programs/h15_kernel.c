// hazard 15: system calls that write to, or read from, program memory that is elided or vacant at that moment
// expect: elided
#include "common.h"
#include <dirent.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/random.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/times.h>
#include <sys/utsname.h>
#include <sys/vfs.h>

#define N (128 * KIB)
static u8 src[N];
static int sv[2];
static u8 *buf;
static u64 seed;

/* Fills the whole buffer with names again, so that the next call meets elided pages everywhere. */
#define ELIDE()                                                                      \
    do {                                                                             \
        fill(src, 100000, ++seed, 0);                                                \
        PASS(sv, src, buf, 100000);                                                  \
    } while (0)
/* A place in the middle of the elided bytes; each use another page. */
#define AT(type, page) ((type *)(buf + 4096 * (page) + 64))
/* The bytes of the page around it must still be the received ones. */
static void around(const char *name, int page) {
    verify(name, buf + 4096 * (page + 1), 8192, seed, 4096 * (page + 1));
    verify(name, buf + 4096 * page, 64, seed, 4096 * page);
}

static void results(void) {
    /* Each call is made before its result is looked at: arguments of one say() come in any order. */
    ssize_t k;
    ELIDE();
    k = stat("/", AT(struct stat, 1));
    say("stat %zd dir %d", k, S_ISDIR(AT(struct stat, 1)->st_mode));
    around("stat", 1);
    ELIDE();
    say("fstat %d", fstat(1, AT(struct stat, 2)));
    say("lstat %d", lstat("/proc/self/exe", AT(struct stat, 4)));
    say("fstatat %d", fstatat(AT_FDCWD, "/", AT(struct stat, 6), 0));
    say("statx %d", statx(AT_FDCWD, "/", 0, STATX_BASIC_STATS, AT(struct statx, 8)));
    say("statfs %d", statfs("/", AT(struct statfs, 10)));
    say("statvfs %d", statvfs("/", AT(struct statvfs, 12)));
    say("uname %d", uname(AT(struct utsname, 14)));
    say("getrusage %d", getrusage(RUSAGE_SELF, AT(struct rusage, 16)));
    say("times %d", times(AT(struct tms, 18)) != (clock_t)-1);
    around("times", 18);
    ELIDE();
    say("getcwd %d", getcwd(AT(char, 1), 4096) != NULL);
    say("readlink %d", readlink("/proc/self/exe", AT(char, 3), 4096) > 0);
    say("realpath %d", realpath("/", AT(char, 5)) != NULL);
    say("gethostname %d", gethostname(AT(char, 7), 4000));
    say("getrandom %zd", getrandom(AT(char, 9), 100, 0));
    say("getrlimit %d", getrlimit(RLIMIT_NOFILE, AT(struct rlimit, 11)));
    say("getgroups %d", getgroups(0, AT(gid_t, 13)) >= 0);
    say("gettimeofday %d", gettimeofday(AT(struct timeval, 15), NULL));
    say("clock_gettime %d", clock_gettime(CLOCK_PROCESS_CPUTIME_ID, AT(struct timespec, 17)));
    say("sched_getaffinity %d", sched_getaffinity(0, 128, AT(cpu_set_t, 19)));
    say("getdents %d", syscall(SYS_getdents64, open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC), AT(char, 20), 8000L) > 0);
    say("raw read %ld", syscall(SYS_read, open("/dev/zero", O_RDONLY | O_CLOEXEC), AT(char, 22), 5000L));
}

static void descriptors(void) {
    int ev = eventfd(5, EFD_NONBLOCK), p[2];
    MUST(pipe(p) == 0);
    ELIDE();
    ssize_t k = read(ev, AT(u64, 1), 8);
    say("eventfd %zd %lu", k, (unsigned long)*AT(u64, 1));
    int tf = timerfd_create(CLOCK_MONOTONIC, 0);
    ELIDE();
    struct itimerspec one = {{0, 0}, {0, 1000000}};
    MUST(timerfd_settime(tf, 0, &one, AT(struct itimerspec, 4)) == 0);
    k = read(tf, AT(u64, 6), 8);
    say("timerfd %zd %lu", k, (unsigned long)*AT(u64, 6));
    sigset_t usr;
    sigemptyset(&usr), sigaddset(&usr, SIGUSR2);
    sigprocmask(SIG_BLOCK, &usr, NULL);
    int sf = signalfd(-1, &usr, SFD_NONBLOCK);
    raise(SIGUSR2);
    k = read(sf, AT(char, 8), 4000);
    say("signalfd %zd signo %u", k, AT(struct signalfd_siginfo, 8)->ssi_signo);
    raise(SIGUSR2);
    k = sigwaitinfo(&usr, AT(siginfo_t, 10));
    say("sigwaitinfo %zd code %d", k, AT(siginfo_t, 10)->si_code);
    int in = inotify_init1(IN_NONBLOCK);
    inotify_add_watch(in, ".", IN_CREATE);
    close(open("watched", O_CREAT | O_WRONLY, 0600));
    k = read(in, AT(char, 12), 4000);
    say("inotify %zd %s", k, AT(struct inotify_event, 12)->name);
    unlink("watched");
    int q = msgget(IPC_PRIVATE, 0600);
    struct { long type; char text[200]; } m = {3, "a queued message"};
    MUST(q >= 0 && msgsnd(q, &m, 200, 0) == 0);
    k = msgrcv(q, AT(char, 14), 200, 0, IPC_NOWAIT);
    say("msgrcv %zd %s", k, AT(char, 14) + sizeof(long));
    msgctl(q, IPC_RMID, NULL);
    ELIDE();
    MUST(write(p[1], "x", 1) == 1);
    *AT(struct pollfd, 1) = (struct pollfd){p[0], POLLIN, 0};
    k = poll(AT(struct pollfd, 1), 1, 0);
    say("poll %zd %d", k, AT(struct pollfd, 1)->revents);
    int ep = epoll_create1(0);
    struct epoll_event e = {EPOLLIN, {.u64 = 42}};
    epoll_ctl(ep, EPOLL_CTL_ADD, p[0], &e);
    k = epoll_wait(ep, AT(struct epoll_event, 3), 100, 0);
    say("epoll_wait %zd %lu", k, (unsigned long)AT(struct epoll_event, 3)->data.u64);
    k = epoll_pwait(ep, AT(struct epoll_event, 6), 100, 0, NULL);
    say("epoll_pwait %zd %lu", k, (unsigned long)AT(struct epoll_event, 6)->data.u64);
    fd_set *fs = AT(fd_set, 9);
    FD_ZERO(fs);
    FD_SET(p[0], fs);
    say("select %d", select(p[0] + 1, fs, NULL, NULL, &(struct timeval){0, 0}));
    say("pipe %d", pipe((int *)AT(int, 11)));
    close(AT(int, 11)[0]), close(AT(int, 11)[1]);
    say("socketpair %d", socketpair(AF_UNIX, SOCK_STREAM, 0, AT(int, 13)));
    close(AT(int, 13)[0]), close(AT(int, 13)[1]);
    k = ioctl(p[0], FIONREAD, AT(int, 15));
    say("FIONREAD %zd %d", k, *AT(int, 15));
    close(ev), close(tf), close(sf), close(in), close(ep), close(p[0]), close(p[1]);
}

static void addresses(void) {
    int t[2];
    tcp_pair(t);
    ELIDE();
    socklen_t *len = AT(socklen_t, 2);
    *len = 4;
    ssize_t k = getsockopt(t[0], SOL_SOCKET, SO_TYPE, AT(int, 4), len);
    say("getsockopt %zd %d", k, *AT(int, 4));
    *len = 128;
    k = getsockname(t[0], AT(struct sockaddr, 6), len);
    say("getsockname %zd %d", k, AT(struct sockaddr, 6)->sa_family);
    *len = 128;
    k = getpeername(t[0], AT(struct sockaddr, 8), len);
    say("getpeername %zd %d", k, AT(struct sockaddr, 8)->sa_family);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int l = socket(AF_INET, SOCK_STREAM, 0), c = socket(AF_INET, SOCK_STREAM, 0);
    socklen_t n = sizeof a;
    MUST(bind(l, (void *)&a, n) == 0 && listen(l, 1) == 0 && getsockname(l, (void *)&a, &n) == 0);
    *AT(struct sockaddr_in, 10) = a;
    say("connect %d", connect(c, (void *)AT(char, 10), sizeof a));
    *len = 128;
    int s = accept(l, AT(struct sockaddr, 12), len);
    say("accept %d %d", s >= 0, AT(struct sockaddr, 12)->sa_family);
    close(l), close(c), close(s), close(t[0]), close(t[1]);
    /* waiting for a child: the status must not be lost */
    pid_t pid = fork();
    if (pid == 0) _exit(7);
    k = waitpid(pid, AT(int, 14), 0);
    say("waitpid %d status %x", k == pid, *AT(int, 14));
    if ((pid = fork()) == 0) _exit(8);
    k = waitid(P_PID, pid, AT(siginfo_t, 16), WEXITED);
    say("waitid %zd status %d", k, AT(siginfo_t, 16)->si_status);
    if ((pid = fork()) == 0) _exit(9);
    k = wait4(pid, AT(int, 18), 0, AT(struct rusage, 20));
    say("wait4 %d status %x", k == pid, *AT(int, 18));
}

/* Strings and structures that the kernel reads from received bytes. */
static void arguments(void) {
    fill(src, 100000, ++seed, 0);
    static const struct { int page; const char *text; } s[] = {
        {1, "received-name"}, {3, "renamed"}, {5, "/"}, {7, "received-dir"}, {9, "linked"}, {11, "/proc/self/exe"},
    };
    for (size_t i = 0; i < ARRAY(s); i++)
        for (size_t k = 0; k <= strlen(s[i].text); k++) src[4096 * s[i].page + 64 + k] = s[i].text[k];
    *(struct timespec *)(src + 4096 * 13 + 64) = (struct timespec){0, 1000};
    *(struct rlimit *)(src + 4096 * 15 + 64) = (struct rlimit){0, 0};
    PASS(sv, src, buf, 100000);
    int fd = open(AT(char, 1), O_CREAT | O_WRONLY, 0600);
    say("open %d", fd >= 0);
    close(fd);
    say("access %d", access("received-name", F_OK));
    say("rename %d", rename(AT(char, 1), AT(char, 3)));
    say("chdir %d", chdir(AT(char, 5)));
    say("nanosleep %d", nanosleep(AT(struct timespec, 13), NULL));
    say("setrlimit %d", setrlimit(RLIMIT_CORE, AT(struct rlimit, 15)));
    say("readlink %d", readlink(AT(char, 11), AT(char, 17), 4096) > 0);
}

int main(void) {
    unix_pair(sv);
    buf = malloc(N);
    int home = open(".", O_RDONLY | O_DIRECTORY);
    for (int r = 0; r < 4; r++) {
        say("round %d", r);
        results();
        descriptors();
        addresses();
        arguments();
        MUST(fchdir(home) == 0);
        say("renamed is there %d", unlink("renamed"));
    }
    return finish();
}
