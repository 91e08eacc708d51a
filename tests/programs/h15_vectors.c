// hazard 15: calls whose arguments point at more (vectors, headers, control blocks), raw system calls, queues, strings
// cflags: -lrt
// expect: elided
#include "common.h"
#include <aio.h>
#include <mqueue.h>
#include <sys/syscall.h>
#include <sys/xattr.h>

#define N (256 * KIB)
static u8 src[N], back[N];
static int sv[2];
static u8 *buf;
static u64 seed;

#define ELIDE() (fill(src, 200000, ++seed, 0), pass())
#define AT(type, page) ((type *)(buf + 4096 * (page) + 64))

static void pass(void) {
    PASS(sv, src, buf, 100000);
    PASS(sv, src + 100000, buf + 100000, 100000);
}

static void vectors(void) {
    int fd = open("vectors", O_RDWR | O_CREAT | O_TRUNC, 0600);
    ELIDE();
    struct iovec v[2] = {{buf + 100, 30000}, {buf + 50000, 40001}};
    ssize_t k = pwritev2(fd, v, 2, 0, 0);
    say("pwritev2 %zd", k);
    ELIDE();
    k = preadv2(fd, v, 2, 0, 0);
    say("preadv2 %zd", k);
    verify("preadv2", buf + 50000, 40001, seed - 1, 50000);
    verify("around it", buf + 100000, 100000, seed, 100000);
    ELIDE();
    *AT(struct iovec, 40) = (struct iovec){buf + 4096, 20000}; /* the vector itself, next to elided pages */
    struct iovec to = {back, 20000};
    k = process_vm_readv(getpid(), &to, 1, AT(struct iovec, 40), 1, 0);
    say("process_vm_readv %zd", k);
    verify("process_vm_readv", back, 20000, seed, 4096);
    ELIDE();
    fill(back, 20000, 7, 0);
    struct iovec there = {buf + 8192, 20000};
    k = process_vm_writev(getpid(), &to, 1, &there, 1, 0);
    say("process_vm_writev %zd", k);
    verify("process_vm_writev", buf + 8192, 20000, 7, 0);
    ELIDE();
    int p[2];
    MUST(pipe(p) == 0);
    struct iovec part = {buf + 12288, 40000};
    k = vmsplice(p[1], &part, 1, 0);
    say("vmsplice %zd", k);
    MUST(read(p[0], back, 40000) == 40000);
    verify("vmsplice", back, 40000, seed, 12288);
    loff_t *off = AT(loff_t, 45);
    ELIDE();
    k = syscall(SYS_pread64, fd, AT(loff_t, 45), sizeof *off, (loff_t)1 << 40);
    say("raw pread beyond the end %zd", k);
    *AT(loff_t, 30) = 0;
    k = splice(fd, AT(loff_t, 30), p[1], NULL, 5000, 0);
    say("splice %zd at %ld", k, (long)*AT(loff_t, 30));
    MUST(read(p[0], back, 5000) == 5000);
    close(p[0]), close(p[1]), close(fd);
}

static void messages(void) {
    int d[2];
    MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, d) == 0);
    ELIDE();
    struct mmsghdr m[3];
    struct iovec v[3];
    memset(m, 0, sizeof m);
    for (int i = 0; i < 3; i++) {
        v[i] = (struct iovec){buf + 20000 * i + 17, 15000};
        m[i].msg_hdr.msg_iov = &v[i], m[i].msg_hdr.msg_iovlen = 1;
    }
    int k = sendmmsg(d[0], m, 3, 0);
    say("sendmmsg %d", k);
    ELIDE();
    k = recvmmsg(d[1], m, 3, 0, NULL);
    say("recvmmsg %d %u %u", k, m[0].msg_len, m[2].msg_len);
    for (int i = 0; i < 3; i++) verify("datagram", buf + 20000 * i + 17, 15000, seed - 1, 20000 * i + 17);
    ELIDE();
    MUST(send(d[0], src, 9000, 0) == 9000);
    struct iovec one = {buf + 4000, 9000};
    struct msghdr h = {.msg_iov = &one, .msg_iovlen = 1};
    k = syscall(SYS_recvmsg, d[1], &h, 0);
    say("raw recvmsg %d", k);
    verify("raw recvmsg", buf + 4000, 9000, seed, 0);
    MUST(send(d[0], src, 9000, 0) == 9000);
    ELIDE();
    k = syscall(SYS_recvfrom, d[1], buf + 70000, 9000, 0, NULL, NULL);
    say("raw recvfrom %d", k);
    verify("raw recvfrom", buf + 70000, 9000, seed - 1, 0);
    ELIDE();
    k = syscall(SYS_sendto, d[0], buf + 9000, 60000, 0, NULL, 0);
    say("raw sendto %d", k);
    MUST(recv(d[1], back, 60000, 0) == 60000);
    verify("raw sendto", back, 60000, seed, 9000);
    close(d[0]), close(d[1]);
}

static void asynchronous(void) {
    int fd = open("asynchronous", O_RDWR | O_CREAT | O_TRUNC, 0600);
    ELIDE();
    struct aiocb cb = {.aio_fildes = fd, .aio_buf = buf + 5000, .aio_nbytes = 100000};
    MUST(aio_write(&cb) == 0);
    const struct aiocb *list[1] = {&cb};
    while (aio_error(&cb) == EINPROGRESS) aio_suspend(list, 1, NULL);
    say("aio_write %zd", aio_return(&cb));
    ELIDE();
    MUST(aio_read(&cb) == 0);
    while (aio_error(&cb) == EINPROGRESS) aio_suspend(list, 1, NULL);
    say("aio_read %zd", aio_return(&cb));
    verify("aio_read", buf + 5000, 100000, seed - 1, 5000);
    close(fd);
    mqd_t q;
    struct mq_attr a = {.mq_maxmsg = 2, .mq_msgsize = 8000};
    char name[64];
    snprintf(name, sizeof name, "/zio-h15-%d", (int)getpid());
    q = mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, &a);
    if (q == (mqd_t)-1) return; /* no queues on this system, with or without the library */
    mq_unlink(name);
    ELIDE();
    MUST(mq_send(q, (char *)buf + 30000, 8000, 1) == 0);
    ELIDE();
    ssize_t k = mq_receive(q, (char *)buf + 60000, 8000, NULL);
    say("mq_receive %zd", k);
    verify("mq_receive", buf + 60000, 8000, seed - 1, 30000);
    mq_close(q);
}

/* A name that lies across the border of two pages, and one that ends just before an elided page. */
static void names(void) {
    static const char name[] = "a-name-across-pages";
    fill(src, 200000, ++seed, 0);
    for (size_t i = 0; i < sizeof name; i++) src[4096 * 5 - 7 + i] = name[i], src[4096 * 9 - sizeof name + i] = name[i];
    pass();
    int fd = open((char *)buf + 4096 * 5 - 7, O_CREAT | O_WRONLY, 0600);
    say("open across %d", fd >= 0);
    close(fd);
    say("access %d", access((char *)buf + 4096 * 9 - sizeof name, F_OK));
    char *before = (char *)buf + 4096 * 20 - sizeof name; /* written by the program, so resident; its neighbour is not */
    for (size_t i = 0; i < sizeof name; i++) before[i] = name[i];
    say("access %d", access(before, F_OK));
    say("unlink %d", unlink(before));
    char *volatile nowhere = (char *)16;
    int zeros = open("/dev/zero", O_RDONLY);
    SAY_ERR("open of nothing %ld errno %d", open(nowhere, O_RDONLY));
    SAY_ERR("stat into nothing %ld errno %d", stat("/", (struct stat *)nowhere));
    SAY_ERR("recvmmsg of nothing %ld errno %d", recvmmsg(sv[0], (struct mmsghdr *)nowhere, 2, MSG_DONTWAIT, NULL));
    SAY_ERR("preadv2 of nothing %ld errno %d", preadv2(sv[0], (struct iovec *)nowhere, 2, -1, 0));
    SAY_ERR("getsockopt into nothing %ld errno %d", getsockopt(sv[0], SOL_SOCKET, SO_TYPE, nowhere, (socklen_t *)nowhere));
    SAY_ERR("poll of nothing %ld errno %d", poll((struct pollfd *)nowhere, 2, 0));
    SAY_ERR("raw read into nothing %ld errno %d", syscall(SYS_read, zeros, nowhere, 10));
    SAY_ERR("ioctl into nothing %ld errno %d", ioctl(sv[0], FIONREAD, nowhere));
    close(zeros);
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    fd = open("locked", O_CREAT | O_RDWR, 0600);
    ELIDE();
    *AT(struct flock, 12) = l;
    say("lock %d", fcntl(fd, F_SETLK, AT(struct flock, 12)));
    say("flags %d", fcntl(fd, F_GETFL) & O_ACCMODE);
    close(fd);
    void *m = (void *)syscall(SYS_mmap, NULL, N, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(m != MAP_FAILED);
    PASS(sv, src, m, 100000);
    verify("raw mmap", m, 100000, seed, 0);
    PASS(sv, src, m, 100000);
    say("raw munmap %ld", syscall(SYS_munmap, m, N));
    SAY_ERR("write of unmapped %ld errno %d", write(sv[0], m, 5000));
}

int main(void) {
    unix_pair(sv);
    buf = malloc(N);
    for (int r = 0; r < 4; r++) {
        say("round %d", r);
        vectors();
        messages();
        asynchronous();
        names();
    }
    return finish();
}
