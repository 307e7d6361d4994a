/* A program that tries to deceive whoever answers its calls: leak_hostile HOW HOST

   It repeats one call, while another thread changes what the call is about. Port 7100 is where
   that must not get to; what is let through is for loopback, or for a unix socket that is not
   there. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static struct sockaddr_in far_away = {.sin_family = AF_INET}, near;
static volatile int goes_on = 1;
static union { struct sockaddr_in in; struct sockaddr_un un; struct sockaddr sa; } shared;
static struct msghdr header;
static struct iovec part = {"this goes past the proxy", 24};
static int number, others[2];

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void *flip_address(void *_)
{
    while (goes_on) {
        *(volatile uint32_t *)&shared.in.sin_addr.s_addr = near.sin_addr.s_addr;
        *(volatile uint32_t *)&shared.in.sin_addr.s_addr = far_away.sin_addr.s_addr;
    }
    return _;
}

static void *flip_family(void *_)
{
    while (goes_on) {
        *(volatile uint16_t *)&shared.in.sin_family = AF_UNSPEC;
        *(volatile uint16_t *)&shared.in.sin_family = AF_INET;
    }
    return _;
}

static void *flip_port(void *_)
{
    while (goes_on) {
        *(volatile uint16_t *)&shared.in.sin_port = htons(53);
        *(volatile uint16_t *)&shared.in.sin_port = far_away.sin_port;
    }
    return _;
}

static void *flip_name(void *_)
{
    while (goes_on) {
        *(void *volatile *)&header.msg_name = NULL;
        *(void *volatile *)&header.msg_name = &far_away;
    }
    return _;
}

static void *flip_descriptor(void *_)
{
    while (goes_on) {
        dup2(others[0], number);
        dup2(others[1], number);
    }
    return _;
}

static void repeat(void *(*flip)(void *), void (*call)(void))
{
    pthread_t thread;
    double start = now();
    pthread_create(&thread, NULL, flip, NULL);
    for (int count = 0; (count < 20000 || now() < start + 0.5) && now() < start + 2; count++)
        call();
    goes_on = 0;
    pthread_join(thread, NULL);
}

static void call_connect(void)
{
    connect(number, &shared.sa, sizeof shared.in);
}

static void call_connect_and_write(void)
{
    int fd = socket(AF_INET, SOCK_DGRAM, 0); /* which has no address of its own yet */
    connect(fd, &shared.sa, sizeof shared.in);
    write(fd, part.iov_base, part.iov_len);
    close(fd);
}

static void call_connect_anew(void)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    connect(fd, &shared.sa, sizeof shared.in);
    close(fd);
}

static void call_sendto(void)
{
    sendto(number, part.iov_base, part.iov_len, MSG_DONTWAIT, &shared.sa, sizeof shared.in);
}

static void call_sendmsg(void)
{
    sendmsg(number, &header, MSG_DONTWAIT);
}

static void by_io_uring(void)
{
    struct io_uring_params of = {0};
    int ring = syscall(SYS_io_uring_setup, 4, &of);
    if (ring < 0) {
        perror("io_uring_setup");
        return;
    }
    char *queue = mmap(NULL, of.sq_off.array + of.sq_entries * 4, PROT_READ | PROT_WRITE,
                       MAP_SHARED, ring, IORING_OFF_SQ_RING);
    struct io_uring_sqe *entries = mmap(NULL, of.sq_entries * sizeof *entries,
                                        PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
    entries[0] = (struct io_uring_sqe){
        .opcode = IORING_OP_CONNECT,
        .fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0),
        .addr = (unsigned long)&far_away,
        .off = sizeof far_away,
    };
    header.msg_name = &far_away;
    entries[1] = (struct io_uring_sqe){
        .opcode = IORING_OP_SENDMSG, .fd = number, .addr = (unsigned long)&header, .len = 1};
    for (unsigned place = 0; place < 2; place++)
        ((unsigned *)(queue + of.sq_off.array))[place] = place;
    __atomic_store_n((unsigned *)(queue + of.sq_off.tail), 2, __ATOMIC_RELEASE);
    syscall(SYS_io_uring_enter, ring, 2, 2, IORING_ENTER_GETEVENTS, NULL, 0);
}

#ifdef __x86_64__
static void as_i386(void)
{
    struct { struct sockaddr_in to; char data[24]; unsigned arguments[6]; } *low;
    low = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    low->to = far_away;
    memcpy(low->data, part.iov_base, 24);
    unsigned arguments[] = {socket(AF_INET, SOCK_DGRAM, 0), (unsigned)(unsigned long)low->data, 24,
                            0, (unsigned)(unsigned long)&low->to, sizeof low->to};
    memcpy(low->arguments, arguments, sizeof arguments);
    long result;
    __asm__ volatile("int $0x80" : "=a"(result)
                     : "a"(102), "b"(11), "c"(low->arguments) : "memory", "r8", "r9", "r10", "r11");
    printf("socketcall: %ld\n", result);
    __asm__ volatile("int $0x80" : "=a"(result)
                     : "a"(369), "b"(arguments[0]), "c"(arguments[1]), "d"(24), "S"(0),
                       "D"(arguments[4]) : "memory", "r8", "r9", "r10", "r11");
    printf("sendto: %ld\n", result);
}

static struct { struct sockaddr_in to; unsigned arguments[6]; } *low;

static void *flip_argument(void *_)
{
    while (goes_on) {
        *(volatile unsigned *)&low->arguments[4] = 0;
        *(volatile unsigned *)&low->arguments[4] = (unsigned)(unsigned long)&low->to;
    }
    return _;
}

static void call_socketcall(void)
{
    long result;
    __asm__ volatile("int $0x80" : "=a"(result)
                     : "a"(102), "b"(11), "c"(low->arguments) : "memory", "r8", "r9", "r10", "r11");
}

static void as_i386_again(void)
{
    low = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    low->to = far_away;
    low->arguments[0] = number;
    low->arguments[1] = (unsigned)(unsigned long)&low->to; /* whatever there is */
    low->arguments[2] = low->arguments[5] = sizeof low->to;
    repeat(flip_argument, call_socketcall);
}

static void as_x32(void)
{
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    long result = syscall(0x40000000 + SYS_sendto, fd, part.iov_base, part.iov_len, 0, &far_away,
                          sizeof far_away);
    printf("sendto: %ld %d\n", result, errno);
}
#endif

int main(int count, char **words)
{
    const char *how = count > 2 ? words[1] : "";
    int datagrams = socket(AF_INET, SOCK_DGRAM, 0);
    int streams = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);

    inet_pton(AF_INET, count > 2 ? words[2] : "127.0.0.1", &far_away.sin_addr);
    far_away.sin_port = htons(7100);
    near = far_away;
    near.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    shared.in = far_away;
    header = (struct msghdr){.msg_name = NULL, .msg_namelen = sizeof far_away, .msg_iov = &part,
                             .msg_iovlen = 1};
    number = datagrams;
    if (!strcmp(how, "connect-address"))
        repeat(flip_address, call_connect_anew);
    else if (!strcmp(how, "connect-datagram-address"))
        repeat(flip_address, call_connect_and_write);
    else if (!strcmp(how, "connect-family"))
        repeat(flip_family, call_connect_anew);
    else if (!strcmp(how, "sendto-address"))
        repeat(flip_address, call_sendto);
    else if (!strcmp(how, "sendto-port"))
        repeat(flip_port, call_sendto);
    else if (!strcmp(how, "sendmsg-name"))
        repeat(flip_name, call_sendmsg);
    else if (!strncmp(how, "descriptor-", 11)) {
        int is_stream = !strncmp(how, "descriptor-connect", 18);
        if (!strcmp(how, "descriptor-connect-mptcp"))
            streams = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 262);
        others[0] = socket(AF_UNIX, is_stream ? SOCK_STREAM : SOCK_DGRAM, 0);
        others[1] = is_stream ? streams : datagrams;
        number = dup(others[0]);
        header.msg_name = &far_away;
        if (is_stream)
            repeat(flip_descriptor, call_connect);
        else if (!strcmp(how, "descriptor-of-datagrams")) {
            repeat(flip_descriptor, call_connect);
            write(datagrams, part.iov_base, part.iov_len);
        }
        else if (!strcmp(how, "descriptor-sendto"))
            repeat(flip_descriptor, call_sendto);
        else
            repeat(flip_descriptor, call_sendmsg);
    } else if (!strcmp(how, "io-uring"))
        by_io_uring();
#ifdef __x86_64__
    else if (!strcmp(how, "i386"))
        as_i386();
    else if (!strcmp(how, "i386-argument"))
        as_i386_again();
    else if (!strcmp(how, "x32"))
        as_x32();
#endif
    else
        return 100;
    return 0;
}
