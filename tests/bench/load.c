/* Load for a SOCKS5 proxy, and the target behind it. measure.py builds and runs it.

   load [-w BYTES] [-b NUMBER]
        MODE CONNECTIONS SECONDS WARMUP PROXY:PORT|direct TARGET-ADDRESS...

   rate    connect, greet, CONNECT, exchange 64 bytes, close; over and over
   trips   64 bytes there and back, over and over, on connections that stay
   down    the target sends as fast as it can; counted where the bytes arrive
   up      the client does; counted where the bytes arrive
   idle    open all, say so with a line, hold them until a line comes, then exchange 64 bytes on each

   -w      the size of a write of a stream; 65536, which is also the most, if not given
   -b      so many more connections are blocked: the target sends until no more goes, before the
           others are opened; the client reads that once they have been measured, and not before

   IPv4. A target process serves each TARGET-ADDRESS on PORTS ports of the kernel's choice, and as
   many client processes share the connections; each process is one epoll loop. What is counted
   lies in shared memory, read after WARMUP and SECONDS later. Every byte is compared with what was
   sent; the pattern of a stream has a prime period, so that what is lost, doubled or out of order
   is seen. One error ends the run.

   In mode rate both ends close as programs do, the client first. In the others they reset (SO_LINGER
   0), and nothing is left behind for the next measurement.

   Prints a line of JSON: count and seconds of the measured time, total of all the time, bytes that
   were sent until then on what is blocked, error.
   Exit status: 0, 1 after an error, 100 for wrong usage. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    MESSAGE = 64,
    CHUNK = 64 << 10,     /* bytes a call of a stream, at most: what many programs use */
    PERIOD = 1000003,     /* of its pattern: a prime */
    PORTS = 4,            /* a target address, and one more for what is blocked */
    MOST_TARGETS = 64,
    MOST_CONNECTIONS = 20000,
    MOST_DESCRIPTORS = 1 << 16,
    OPENING = 16,         /* connections a client process opens at a time when idle */
    BATCH = 64,           /* events a call of epoll_wait */
    TICK = 10,            /* ms, until what the parent wants is noticed */
    GRACE = 5,            /* s for exchanges under way to end */
    PATIENCE = 90,        /* s for idle connections to be opened, and to be held */
    FULL = 500,           /* ms without a byte more: a blocked connection is full */
    MOST_BLOCKED = 256 << 20, /* bytes of each that may be under way then */
};
static const uint64_t MOST_COUNTED = 100000000; /* exchanges of a process; of bytes 1e5 as many */

enum mode { RATE, TRIPS, DOWN, UP, IDLE, MODES };
static const char *const names[MODES] = {"rate", "trips", "down", "up", "idle"};

/* What the processes count, each in a line of its own. */
enum counted {
    DONE,   /* exchanges, or bytes that arrived */
    HELD,   /* idle connections */
    OPENED, /* connections that are blocked */
    PUT,    /* bytes sent on these */
    LATE,   /* and read from them in the end */
    COUNTED
};
struct count {
    _Alignas(64) _Atomic uint64_t of[COUNTED];
};
static struct shared {
    _Atomic int begin, stop, wake, failed;
    _Atomic uint64_t stuck; /* bytes that were on their way on blocked connections */
    char error[160];
    struct count clients[MOST_TARGETS], targets[MOST_TARGETS];
} *shared;

static enum mode mode;
static struct sockaddr_in proxy, targets[MOST_TARGETS][PORTS + 1];
static int direct, workers, connections, blocked, listeners[MOST_TARGETS][PORTS + 1];
static size_t size_of_write = CHUNK;
static unsigned char pattern[PERIOD + CHUNK], chunk[CHUNK];

/* The first error is the one that is told. */
__attribute__((format(printf, 1, 2))) static void fail(const char *format, ...)
{
    if (!atomic_exchange(&shared->failed, 1)) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(shared->error, sizeof shared->error, format, arguments);
        va_end(arguments);
    }
    shared->stop = 1;
}

static uint64_t sum(enum counted what)
{
    uint64_t total = 0;
    for (int i = 0; i < workers; i++)
        total += shared->clients[i].of[what] + shared->targets[i].of[what];
    return total;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static int again(void)
{
    return errno == EAGAIN || errno == EINTR;
}

static void watch(int poller, int operation, int fd, uint32_t events, uint64_t data)
{
    struct epoll_event event = {.events = events, .data.u64 = data};
    if (epoll_ctl(poller, operation, fd, &event) < 0)
        fail("epoll_ctl: %s", strerror(errno));
}

static void hang_up(int fd)
{
    struct linger linger = {.l_onoff = 1, .l_linger = 0};
    if (mode != RATE || shared->stop)
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    close(fd);
}

/* Streams */

static void make_pattern(void)
{
    uint64_t x = 88172645463325252u; /* xorshift */
    for (int i = 0; i < PERIOD; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        pattern[i] = x >> 32;
    }
    memcpy(pattern + PERIOD, pattern, CHUNK);
}

/* Send once, or read and compare once; 0 at the end of the stream, -1 on an error. */
static ssize_t stream_out(int fd, uint64_t *position)
{
    ssize_t n = send(fd, pattern + *position % PERIOD, size_of_write, MSG_NOSIGNAL);
    if (n > 0)
        *position += n;
    return n < 0 && again() ? 1 : n;
}

static ssize_t stream_in(int fd, uint64_t *position, _Atomic uint64_t *count)
{
    ssize_t n = recv(fd, chunk, CHUNK, 0);
    if (n <= 0)
        return n < 0 && again() ? 1 : n;
    if (memcmp(chunk, pattern + *position % PERIOD, n))
        fail("the stream is not what was sent, near byte %llu", (unsigned long long)*position);
    *position += n;
    *count += n;
    return n;
}

/* The target: echoes, sends or counts until its peer is gone */

static void echo(int fd)
{
    ssize_t n = recv(fd, chunk, CHUNK, 0);
    if (n > 0 && send(fd, chunk, n, MSG_NOSIGNAL) != n && errno != ECONNRESET && errno != EPIPE)
        fail("target: the echo does not fit: %s", strerror(errno));
    else if (n == 0 || (n < 0 && !again()))
        hang_up(fd);
}

/* Send to one that is not read. */
static ssize_t stuff(int fd, uint64_t *position, struct count *count)
{
    uint64_t before = *position;
    ssize_t n = stream_out(fd, position);
    count->of[PUT] += *position - before;
    if (*position > MOST_BLOCKED && !shared->stop)
        fail("a blocked connection took %llu bytes, and takes more", (unsigned long long)*position);
    return n;
}

static void serve(int worker)
{
    static uint64_t position[MOST_DESCRIPTORS];
    static char listens[MOST_DESCRIPTORS], stuffs[MOST_DESCRIPTORS];
    struct count *count = &shared->targets[worker];
    struct epoll_event events[BATCH];
    int poller = epoll_create1(0);

    for (int i = 0; i <= PORTS; i++) {
        int fd = listeners[worker][i];
        listens[fd] = 1;
        stuffs[fd] = i == PORTS;
        watch(poller, EPOLL_CTL_ADD, fd, EPOLLIN, fd);
    }
    for (;;) {
        int n = epoll_wait(poller, events, BATCH, -1);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.u64;
            if (listens[fd]) {
                int client = accept4(fd, NULL, NULL, SOCK_NONBLOCK);
                if (client >= MOST_DESCRIPTORS || (client < 0 && errno != ECONNABORTED && !again()))
                    fail("target: accept: %s", strerror(errno));
                else if (client >= 0) {
                    uint32_t way = mode == DOWN || stuffs[fd] ? EPOLLOUT : EPOLLIN;
                    position[client] = 0;
                    stuffs[client] = stuffs[fd];
                    watch(poller, EPOLL_CTL_ADD, client, way, client);
                }
            } else if (stuffs[fd]) {
                if (stuff(fd, &position[fd], count) < 0)
                    hang_up(fd);
            } else if (mode == DOWN) {
                if (stream_out(fd, &position[fd]) < 0)
                    hang_up(fd);
            } else if (mode == UP) {
                if (stream_in(fd, &position[fd], &count->of[DONE]) <= 0)
                    hang_up(fd);
            } else
                echo(fd);
        }
    }
}

/* The client: a connection goes down this list as far as its mode asks */

enum stage { CLOSED, GREET, GREETED, REQUEST, REPLY, ASK, ANSWER, HOLDING, STREAM, BLOCKED };
static const char *const stages[] = {"closed",      "connect",      "greeting", "request",
                                     "SOCKS reply", "sending",      "answer",   "holding",
                                     "stream",      "blocked"};
struct client {
    int fd, number, is_blocked;
    enum stage stage;
    size_t have;                /* bytes of what is being read */
    uint64_t sequence;          /* messages exchanged, of all of this client's connections */
    uint64_t position;          /* in the stream */
    struct sockaddr_in target;
    unsigned char in[4 + 1 + 255 + 2];
};
static int poller, me, opening; /* this process's */
static struct count *count;

static void broken(struct client *c, const char *what)
{
    fail("%s: %s", stages[c->stage], what);
}

static void message(const struct client *c, unsigned char *out)
{
    uint64_t word = ((uint64_t)c->number << 40) + c->sequence;
    for (int i = 0; i < MESSAGE / 8; i++, out += 8) {
        word = word * 6364136223846793005u + 1442695040888963407u;
        memcpy(out, &word, 8);
    }
}

static void open_client(struct client *c)
{
    const struct sockaddr_in *first = direct ? &c->target : &proxy;
    uint64_t turn = c->number + c->sequence; /* each process in turn, and then its next port */
    c->target = targets[turn % workers][c->is_blocked ? PORTS : turn / workers % PORTS];
    c->have = c->position = 0;
    c->stage = direct ? ASK : GREET;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0)
        return broken(c, strerror(errno));
    if (connect(c->fd, (const struct sockaddr *)first, sizeof *first) < 0 && errno != EINPROGRESS)
        return broken(c, strerror(errno));
    watch(poller, EPOLL_CTL_ADD, c->fd, EPOLLIN | EPOLLOUT | EPOLLET, (uintptr_t)c);
}

static void close_client(struct client *c)
{
    hang_up(c->fd);
    c->stage = CLOSED;
}

/* Send all: what is sent before a stream is small. 0 while the connection is being made. */
static int put(struct client *c, const void *data, size_t size)
{
    ssize_t n = send(c->fd, data, size, MSG_NOSIGNAL);
    if (n < 0 && again())
        return 0;
    if (n != (ssize_t)size)
        return broken(c, n < 0 ? strerror(errno) : "a short send"), 0;
    c->stage++;
    c->have = 0;
    return 1;
}

/* Read on to `want` bytes and not one further. */
static int get(struct client *c, size_t want)
{
    while (c->have < want) {
        ssize_t n = recv(c->fd, c->in + c->have, want - c->have, 0);
        if (n < 0 && again())
            return 0;
        if (n <= 0)
            return broken(c, n ? strerror(errno) : "the connection has ended"), 0;
        c->have += n;
    }
    return 1;
}

/* One message has come back: what next? */
static int exchanged(struct client *c)
{
    c->sequence++;
    if ((mode != IDLE || shared->wake) && ++count->of[DONE] >= MOST_COUNTED)
        shared->stop = 1;
    if (mode == TRIPS && !shared->stop)
        return c->stage = ASK, 1;
    if (mode == IDLE && !shared->wake) {
        c->stage = HOLDING;
        c->have = 0;
        opening--;
        count->of[HELD]++;
        return 0;
    }
    close_client(c);
    if (mode == RATE && !shared->stop)
        open_client(c);
    return 0;
}

/* Read one that was blocked. */
static void unblock(struct client *c)
{
    c->stage = STREAM;
    watch(poller, EPOLL_CTL_MOD, c->fd, EPOLLIN, (uintptr_t)c);
}

/* Do what can be done without waiting. */
static void advance(struct client *c)
{
    unsigned char out[MESSAGE], request[10] = {5, 1, 0, 1};
    _Atomic uint64_t *arrived;
    size_t want;
    int sends = mode == UP && !c->is_blocked;

    while (!shared->failed)
        switch (c->stage) {
        case GREET:
            if (!put(c, "\5\1\0", 3))
                return;
            break;
        case GREETED:
            if (!get(c, 2))
                return;
            if (memcmp(c->in, "\5\0", 2))
                return broken(c, "not accepted");
            c->stage = REQUEST;
            break;
        case REQUEST:
            memcpy(request + 4, &c->target.sin_addr, 4);
            memcpy(request + 8, &c->target.sin_port, 2);
            if (!put(c, request, sizeof request))
                return;
            break;
        case REPLY:
            if (!get(c, 5))
                return;
            if (memcmp(c->in, "\5\0\0", 3))
                return fail("SOCKS reply %d", c->in[1]);
            want = c->in[3] == 1 ? 10 : c->in[3] == 4 ? 22 : 7 + (size_t)c->in[4];
            if (!get(c, want))
                return;
            c->stage = ASK;
            break;
        case ASK:
            if (c->is_blocked) {
                c->stage = BLOCKED;
                watch(poller, EPOLL_CTL_MOD, c->fd, EPOLLRDHUP, (uintptr_t)c);
                count->of[OPENED]++;
                return;
            }
            if (mode == UP || mode == DOWN) { /* one call an event, so that streams take turns */
                c->stage = STREAM;
                watch(poller, EPOLL_CTL_MOD, c->fd, sends ? EPOLLOUT : EPOLLIN, (uintptr_t)c);
                return;
            }
            message(c, out);
            if (!put(c, out, sizeof out))
                return;
            break;
        case ANSWER:
            if (!get(c, MESSAGE))
                return;
            message(c, out);
            if (memcmp(c->in, out, MESSAGE))
                return broken(c, "not what was sent");
            if (!exchanged(c))
                return;
            break;
        case HOLDING: /* nothing may come now but the end */
            if (get(c, 1))
                broken(c, "bytes that nobody sent");
            return;
        case STREAM:
            arrived = &count->of[c->is_blocked ? LATE : DONE];
            if ((sends ? stream_out(c->fd, &c->position)
                       : stream_in(c->fd, &c->position, arrived)) <= 0)
                broken(c, "cut off");
            if (mode == DOWN && count->of[DONE] / 100000 >= MOST_COUNTED)
                shared->stop = 1;
            return;
        case BLOCKED: /* no other event is watched for */
            return broken(c, "the connection has ended");
        case CLOSED:
            return;
        }
}

/* How many of a number of connections are this process's. */
static int share(int number)
{
    return (number - me + workers - 1) / workers;
}

static void load(void)
{
    int mine = share(connections), opened = 0, woken = 0, full = share(blocked), unblocked = 0;
    struct client *clients = calloc(mine, sizeof *clients);
    struct client *stuffed = calloc(full, sizeof *stuffed);
    struct epoll_event events[BATCH];
    double deadline = 0;

    poller = epoll_create1(0);
    for (int i = 0; i < full; i++) {
        stuffed[i].is_blocked = 1;
        stuffed[i].number = me + i * workers;
        open_client(&stuffed[i]);
    }
    for (;;) {
        while (shared->begin && opened < mine && (mode != IDLE || opening < OPENING) &&
               !shared->stop) {
            clients[opened].number = me + opened * workers;
            opening++;
            open_client(&clients[opened++]);
        }
        if (shared->wake && !woken++)
            for (int i = 0; i < mine; i++) {
                clients[i].stage = ASK;
                advance(&clients[i]);
            }
        int n = epoll_wait(poller, events, BATCH, TICK);
        for (int i = 0; i < n; i++)
            advance((struct client *)(uintptr_t)events[i].data.u64);

        /* At the end each exchange that is under way must come to its own, no stream starve, and
           all of what was stuck arrive. */
        if (!shared->stop)
            continue;
        if (!unblocked++)
            for (int i = 0; i < full; i++)
                unblock(&stuffed[i]);
        struct client *left = NULL;
        for (int i = 0; i < opened + full && !shared->failed; i++) {
            struct client *c = i < opened ? &clients[i] : &stuffed[i - opened];
            int is_waiting = c->is_blocked ? sum(LATE) < shared->stuck : !c->position;
            if (c->stage != CLOSED && (c->stage != STREAM || is_waiting))
                left = c;
        }
        if (!left)
            _exit(0);
        if (!deadline)
            deadline = now() + GRACE;
        if (now() > deadline) {
            broken(left, "stalled");
            _exit(0);
        }
    }
}

/* The parent: starts them, reads the clock and the counts, stops them */

static const struct timespec moment = {.tv_nsec = 1000000};

/* Wait until so many are counted (0: for the time alone), it is over, or something failed. */
static void wait_for(double seconds, enum counted what, uint64_t number)
{
    for (double end = now() + seconds; now() < end && !shared->stop;) {
        if (number && sum(what) >= number)
            return;
        nanosleep(&moment, NULL);
    }
    if (number && sum(what) < number)
        fail("only %llu of %llu were %s in %g s", (unsigned long long)sum(what),
             (unsigned long long)number, what == DONE ? "answered" : "opened", seconds);
}

/* Wait until no more goes on those that are blocked. Nothing but time tells that. */
static void wait_until_full(void)
{
    double since = now(), end = since + PATIENCE;
    uint64_t is, was = 0;

    for (; !shared->stop && (!was || now() - since < FULL / 1e3); nanosleep(&moment, NULL)) {
        if ((is = sum(PUT)) != was)
            was = is, since = now();
        if (now() > end)
            fail("%d blocked, and not full in %d s", blocked, PATIENCE);
    }
}

static void usage(void)
{
    fputs("usage: load [-w BYTES] [-b NUMBER] rate|trips|down|up|idle CONNECTIONS SECONDS WARMUP "
          "PROXY:PORT|direct TARGET-ADDRESS...\n", stderr);
    exit(100);
}

static int listen_on(struct sockaddr_in *target, const char *address)
{
    socklen_t size = sizeof *target;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    target->sin_family = AF_INET;
    if (inet_pton(AF_INET, address, &target->sin_addr) != 1 || fd < 0 ||
        bind(fd, (struct sockaddr *)target, size) < 0 || listen(fd, 4096) < 0 ||
        getsockname(fd, (struct sockaddr *)target, &size) < 0) {
        fprintf(stderr, "load: listen on %s: %s\n", address, strerror(errno));
        exit(1);
    }
    return fd;
}

/* The options; what is left of argv begins with MODE. */
static char **options(int argc, char **argv)
{
    for (int option; (option = getopt(argc, argv, "+w:b:")) != -1;) {
        char *end = NULL;
        long number = optarg ? strtol(optarg, &end, 10) : 0;
        if (option == '?' || end == optarg || *end || number < 1)
            usage();
        if (option == 'w' && number <= CHUNK)
            size_of_write = number;
        else if (option == 'b' && number <= MOST_CONNECTIONS)
            blocked = number;
        else
            usage();
    }
    return argv + optind;
}

static pid_t start(void)
{
    pid_t pid = fork();
    if (pid < 0)
        fail("fork: %s", strerror(errno));
    if (!pid)
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    return pid;
}

int main(int argc, char **argv)
{
    pid_t children[2 * MOST_TARGETS];
    struct rlimit files;

    argv = options(argc, argv);
    argc -= optind;
    if (argc < 6 || argc > 5 + MOST_TARGETS)
        usage();
    for (mode = 0; mode < MODES && strcmp(argv[0], names[mode]); mode++)
        ;
    connections = atoi(argv[1]);
    double seconds = atof(argv[2]), warmup = atof(argv[3]);
    if (mode == MODES || connections < 1 || connections > MOST_CONNECTIONS || seconds <= 0 ||
        seconds > 600 || warmup < 0 || warmup > 60)
        usage();
    direct = !strcmp(argv[4], "direct");
    char *port = strrchr(argv[4], ':');
    if (!direct && port) {
        *port++ = 0;
        proxy.sin_family = AF_INET;
        proxy.sin_port = htons(atoi(port));
    }
    if (!direct && (!port || inet_pton(AF_INET, argv[4], &proxy.sin_addr) != 1))
        usage();

    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max < MOST_DESCRIPTORS ? files.rlim_max : MOST_DESCRIPTORS;
    setrlimit(RLIMIT_NOFILE, &files);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        return perror("load: mmap"), 1;
    make_pattern();
    workers = argc - 5;
    for (int i = 0; i < workers; i++)
        for (int j = 0; j <= PORTS; j++)
            listeners[i][j] = listen_on(&targets[i][j], argv[5 + i]);
    for (int i = 0; i < workers; i++)
        if (!(children[workers + i] = start()))
            serve(i);
    for (me = 0; me < workers; me++) {
        count = &shared->clients[me];
        if (!(children[me] = start()))
            load();
    }

    if (blocked) {
        wait_for(PATIENCE, OPENED, blocked);
        wait_until_full();
    }
    shared->begin = 1;
    if (mode == IDLE) {
        struct pollfd line = {.fd = 0, .events = POLLIN};
        wait_for(PATIENCE, HELD, connections);
        if (!shared->failed) {
            puts("open");
            fflush(stdout);
            poll(&line, 1, PATIENCE * 1000);
        }
    } else
        wait_for(warmup, DONE, 0);
    uint64_t before = sum(DONE);
    double began = now();
    shared->wake = mode == IDLE;
    wait_for(seconds, DONE, mode == IDLE ? connections : 0);
    uint64_t counted = sum(DONE) - before;
    double took = now() - began;
    shared->stuck = sum(PUT);
    shared->stop = 1;

    for (int i = 0, status; i < workers; i++) /* they end within GRACE */
        if (children[i] > 0 && waitpid(children[i], &status, 0) > 0 && status)
            fail("a client process ended with status %d", status);
    uint64_t total = sum(DONE);
    for (int i = workers; i < 2 * workers; i++)
        if (children[i] > 0)
            kill(children[i], SIGKILL);
    if (!counted)
        fail("nothing came through");
    printf("{\"count\": %llu, \"seconds\": %.6f, \"total\": %llu, \"blocked\": %llu, "
           "\"error\": \"%s\"}\n", (unsigned long long)counted, took, (unsigned long long)total,
           (unsigned long long)shared->stuck, shared->error);
    return shared->failed;
}
