/* A load of datagrams for a SOCKS5 proxy, and the target behind it. udp.py builds and runs it.

   datagrams [-w BYTES] echo|idle ASSOCIATIONS SECONDS WARMUP PROXY:PORT|direct TARGET-ADDRESS

   echo    datagrams there and back, as many under way on each association as fit into a socket
   idle    a datagram there and back on each, say so with a line, hold them until a line comes, and
           then another one on each

   -w      the bytes of payload; 64 if not given

   IPv4. The target is one process, which sends back what it gets; the client is another one. What
   comes back is compared with what was sent. What has not come back after a while is lost: that is
   counted, and as much sent again, for datagrams may be lost. Ends of a connection are errors.

   Prints a line of JSON: count and seconds of the measured time, total of all the time, lost of all
   the time, error. Exit status: 0, 1 after an error, 100 for wrong usage. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum {
    HEADER = 10,
    LONGEST = 65507 - HEADER,
    SHORTEST = 16,             /* a sequence number and an association */
    MOST_ASSOCIATIONS = 10000,
    UNDER_WAY = 64 << 10,      /* bytes of an association */
    MOST_UNDER_WAY = 32,       /* datagrams of it */
    BATCH = 32,                /* datagrams a call */
    PATIENCE = 60,             /* s for idle ones to be held */
};
static const double LOST = 0.1; /* s after which what is under way is so */

struct association {
    int tcp, udp, under_way;
    uint64_t next, first; /* the numbers of what is sent next, and of the first not given up */
    double heard;
};

static int direct, size = 64, associations, window;
static unsigned char head[HEADER] = {0, 0, 0, 1}, pattern[LONGEST];
static struct sockaddr_in proxy, target;
static struct association *all;
static uint64_t done, lost, measured;
static double took;
static pid_t echo; /* the target */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void end(const char *error)
{
    printf("{\"count\": %llu, \"seconds\": %.6f, \"total\": %llu, \"lost\": %llu, "
           "\"error\": \"%s\"}\n", (unsigned long long)measured, took, (unsigned long long)done,
           (unsigned long long)lost, error);
    if (echo > 0)
        kill(echo, SIGKILL);
    exit(*error != 0);
}

static void expect(int holds, const char *what)
{
    char text[160];
    if (!holds) {
        snprintf(text, sizeof text, "%s: %s", what, strerror(errno));
        end(text);
    }
}

/* The target: all that comes goes back to where it came from. */
static void serve(int fd)
{
    static unsigned char data[BATCH][1 << 16];
    struct sockaddr_in from[BATCH];
    struct mmsghdr messages[BATCH];
    struct iovec pieces[BATCH];

    for (;;) {
        for (int i = 0; i < BATCH; i++) {
            pieces[i] = (struct iovec){data[i], sizeof data[i]};
            messages[i].msg_hdr = (struct msghdr){.msg_name = &from[i], .msg_namelen = sizeof *from,
                                                  .msg_iov = &pieces[i], .msg_iovlen = 1};
        }
        int n = recvmmsg(fd, messages, BATCH, MSG_WAITFORONE, NULL);
        for (int i = 0; i < n; i++)
            pieces[i].iov_len = messages[i].msg_len;
        for (int sent = 0, count; sent < n; sent += count > 0 ? count : 1)
            count = sendmmsg(fd, messages + sent, n - sent, 0);
    }
}

static void get(int fd, unsigned char *answer, int length)
{
    expect(recv(fd, answer, length, MSG_WAITALL) == length, "an answer of the proxy");
}

static void open_association(struct association *a)
{
    const unsigned char request[] = {5, 3, 0, 1, 0, 0, 0, 0, 0, 0};
    unsigned char answer[10];
    struct sockaddr_in to = target;

    a->udp = socket(AF_INET, SOCK_DGRAM, 0);
    expect(a->udp >= 0, "socket");
    if (!direct) {
        to = proxy;
        a->tcp = socket(AF_INET, SOCK_STREAM, 0);
        expect(connect(a->tcp, (struct sockaddr *)&proxy, sizeof proxy) == 0, "connect");
        expect(send(a->tcp, "\5\1\0", 3, MSG_NOSIGNAL) == 3, "greeting");
        get(a->tcp, answer, 2);
        expect(send(a->tcp, request, 10, MSG_NOSIGNAL) == 10, "request");
        get(a->tcp, answer, 10);
        if (answer[1] || answer[3] != 1)
            end("the proxy has refused");
        memcpy(&to.sin_addr, answer + 4, 4);
        memcpy(&to.sin_port, answer + 8, 2);
    }
    expect(connect(a->udp, (struct sockaddr *)&to, sizeof to) == 0, "connect");
}

static void put(struct association *a, int number)
{
    struct mmsghdr messages[MOST_UNDER_WAY];
    struct iovec pieces[MOST_UNDER_WAY][3];
    uint64_t marks[MOST_UNDER_WAY][2];
    int n = window - a->under_way;

    for (int i = 0; i < n; i++) {
        marks[i][0] = a->next + i;
        marks[i][1] = number;
        pieces[i][0] = (struct iovec){head, direct ? 0 : HEADER};
        pieces[i][1] = (struct iovec){marks[i], SHORTEST};
        pieces[i][2] = (struct iovec){pattern, size - SHORTEST};
        messages[i].msg_hdr = (struct msghdr){.msg_iov = pieces[i], .msg_iovlen = 3};
    }
    int sent = n ? sendmmsg(a->udp, messages, n, MSG_DONTWAIT) : 0;
    expect(sent >= 0 || errno == EAGAIN || errno == ECONNREFUSED, "send");
    if (sent > 0) {
        a->next += sent;
        a->under_way += sent;
    }
}

/* Take what has come back; how much that is of what was not given up. */
static int take(struct association *a, int number)
{
    static unsigned char data[BATCH][1 << 16];
    struct mmsghdr messages[BATCH];
    struct iovec pieces[BATCH];
    int came = 0, skip = direct ? 0 : HEADER;
    uint64_t marks[2];

    for (int i = 0; i < BATCH; i++) {
        pieces[i] = (struct iovec){data[i], sizeof data[i]};
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &pieces[i], .msg_iovlen = 1};
    }
    int n = recvmmsg(a->udp, messages, BATCH, MSG_DONTWAIT, NULL);
    for (int i = 0; i < n; i++) {
        memcpy(marks, data[i] + skip, SHORTEST);
        if ((int)messages[i].msg_len != size + skip || memcmp(data[i], head, skip) ||
            marks[1] != (uint64_t)number || marks[0] >= a->next ||
            memcmp(data[i] + skip + SHORTEST, pattern, size - SHORTEST))
            end("a datagram is not what was sent");
        came += marks[0] >= a->first;
    }
    a->under_way -= came;
    done += came;
    a->heard = now();
    return came;
}

/* Run for so long, or until so many have come back if that is no 0; those from `first` on begin. */
static void run(int poller, int first, double seconds, uint64_t wanted)
{
    struct epoll_event events[BATCH];
    double until = now() + seconds;
    wanted += done;

    for (int i = first; i < associations; i++) {
        all[i].heard = now();
        put(&all[i], i);
    }
    for (double time; (time = now()) < until;) {
        int n = epoll_wait(poller, events, BATCH, 10);
        for (int i = 0; i < n; i++) {
            int number = events[i].data.u32 / 2;
            if (events[i].data.u32 % 2)
                end("an association has ended");
            take(&all[number], number);
            if (wanted == done)
                return;
            if (window > 1)
                put(&all[number], number);
        }
        for (int i = 0; i < associations; i++)
            if (all[i].under_way && time - all[i].heard > LOST) {
                lost += all[i].under_way;
                all[i].under_way = 0;
                all[i].first = all[i].next;
                all[i].heard = time;
                put(&all[i], i);
            }
    }
}

static void usage(void)
{
    fputs("usage: datagrams [-w BYTES] echo|idle ASSOCIATIONS SECONDS WARMUP PROXY:PORT|direct "
          "TARGET-ADDRESS\n", stderr);
    exit(100);
}

int main(int argc, char **argv)
{
    struct rlimit files;
    socklen_t length = sizeof target;
    int fd, idle, poller = epoll_create1(0);

    for (int option; (option = getopt(argc, argv, "+w:")) != -1;)
        if (option != 'w' || (size = atoi(optarg)) < SHORTEST || size > LONGEST)
            usage();
    argv += optind;
    if (argc - optind != 6 || (strcmp(argv[0], "echo") && strcmp(argv[0], "idle")))
        usage();
    idle = !strcmp(argv[0], "idle");
    int number = associations = atoi(argv[1]);
    double seconds = atof(argv[2]), warmup = atof(argv[3]);
    direct = !strcmp(argv[4], "direct");
    char *port = strrchr(argv[4], ':');
    if (associations < 1 || associations > MOST_ASSOCIATIONS || seconds <= 0 || seconds > 600 ||
        warmup < 0 || warmup > 60 || (!direct && !port))
        usage();
    proxy.sin_family = target.sin_family = AF_INET;
    if (!direct) {
        *port++ = 0;
        proxy.sin_port = htons(atoi(port));
        if (inet_pton(AF_INET, argv[4], &proxy.sin_addr) != 1)
            usage();
    }
    if (inet_pton(AF_INET, argv[5], &target.sin_addr) != 1)
        usage();
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    for (int i = 0; i < LONGEST; i++)
        pattern[i] = i * 7 + i / 251;
    fd = socket(AF_INET, SOCK_DGRAM, 0);
    int room = 4 << 20; /* what is lost is to be the proxy's loss */
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    expect(bind(fd, (struct sockaddr *)&target, sizeof target) == 0 &&
           getsockname(fd, (struct sockaddr *)&target, &length) == 0, "bind");
    memcpy(head + 4, &target.sin_addr, 4);
    memcpy(head + 8, &target.sin_port, 2);
    echo = fork();
    expect(echo >= 0, "fork");
    if (!echo) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        serve(fd);
    }

    window = idle ? 1 : UNDER_WAY / size;
    window = window < 1 ? 1 : window > MOST_UNDER_WAY ? MOST_UNDER_WAY : window;
    all = calloc(associations, sizeof *all);
    for (int i = 0; i < number; i++) {
        open_association(&all[i]);
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = 2 * i};
        epoll_ctl(poller, EPOLL_CTL_ADD, all[i].udp, &event);
        event.data.u32++;
        if (!direct)
            epoll_ctl(poller, EPOLL_CTL_ADD, all[i].tcp, &event);
        if (idle) /* one by one, or what comes back would be too much at once */
            associations = i + 1, run(poller, i, seconds, 1);
    }
    if (idle) {
        struct pollfd line = {.fd = 0, .events = POLLIN};
        expect(done == (uint64_t)associations, "not all have been answered");
        puts("open");
        fflush(stdout);
        poll(&line, 1, PATIENCE * 1000);
    } else
        run(poller, 0, warmup, 0);
    uint64_t before = done;
    double began = now();
    run(poller, 0, seconds, idle ? associations : 0);
    measured = done - before;
    took = now() - began;
    end(!measured ? "nothing came back" : idle && measured < (uint64_t)associations ?
        "not all have been answered again" : "");
}
