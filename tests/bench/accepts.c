/* The ends of connections for preload.py:
 *
 *     accepts listen PORT      accept, write a byte and close, again and again
 *     accepts receive PATH     the same for what is passed to a path
 *     accepts pass PORT PATH   accept, and pass to a path, again and again
 *     accepts come PORT COUNT  connect, read a byte and reset; print the microseconds for each
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static struct sockaddr_in at(const char *port)
{
    struct sockaddr_in name = { .sin_family = AF_INET, .sin_port = htons(atoi(port)) };
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return name;
}

static void serve(int fd)
{
    if (fd < 0)
        err(1, "accept");
    if (write(fd, "x", 1) != 1)
        warn("write");
    close(fd);
}

static void ready(void)
{
    puts("ready");
    fflush(stdout);
}

static int listener_at(const char *port)
{
    struct sockaddr_in name = at(port);
    int sock = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(sock, (void *)&name, sizeof name) || listen(sock, 1000))
        err(1, "listen");
    ready();
    return sock;
}

static void listen_at(const char *port)
{
    int sock = listener_at(port);
    for (;;) {
        struct sockaddr_in peer;
        socklen_t length = sizeof peer;
        serve(accept4(sock, (void *)&peer, &length, SOCK_CLOEXEC));
    }
}

static struct sockaddr_un path_of(const char *path)
{
    struct sockaddr_un name = { .sun_family = AF_UNIX };
    strncpy(name.sun_path, path, sizeof name.sun_path - 1);
    return name;
}

static void pass(const char *port, const char *path)
{
    struct sockaddr_un name = path_of(path);
    int sock = listener_at(port), sender = socket(AF_UNIX, SOCK_DGRAM, 0);
    for (;;) {
        char control[CMSG_SPACE(sizeof(int))];
        struct iovec part = { "", 1 };
        struct msghdr message = { .msg_name = &name, .msg_namelen = sizeof name,
                                  .msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
                                  .msg_controllen = sizeof control };
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        int fd = accept4(sock, NULL, NULL, SOCK_CLOEXEC);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(head), &fd, sizeof fd);
        if (fd < 0 || sendmsg(sender, &message, 0) != 1)
            err(1, "sendmsg");
        close(fd);
    }
}

static void receive_at(const char *path)
{
    struct sockaddr_un name = path_of(path);
    int sock = socket(AF_UNIX, SOCK_DGRAM, 0);
    if (bind(sock, (void *)&name, sizeof name))
        err(1, "bind");
    ready();
    for (;;) {
        char byte, control[CMSG_SPACE(sizeof(int))];
        struct iovec part = { &byte, 1 };
        struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
                                  .msg_controllen = sizeof control };
        int fd;
        if (recvmsg(sock, &message, MSG_CMSG_CLOEXEC) < 0 || !CMSG_FIRSTHDR(&message))
            err(1, "recvmsg");
        memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
        serve(fd);
    }
}

static void come(const char *port, int count)
{
    struct sockaddr_in name = at(port);
    struct linger reset = { 1, 0 };
    struct timespec from, to;
    clock_gettime(CLOCK_MONOTONIC, &from);
    for (int i = 0; i < count; i++) {
        char byte;
        int sock = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(sock, (void *)&name, sizeof name) || read(sock, &byte, 1) != 1)
            err(1, "connect");
        setsockopt(sock, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        close(sock);
    }
    clock_gettime(CLOCK_MONOTONIC, &to);
    printf("%.2f\n", ((to.tv_sec - from.tv_sec) * 1e6 + (to.tv_nsec - from.tv_nsec) / 1e3) / count);
}

int main(int count, char **words)
{
    if (count == 3 && !strcmp(words[1], "listen"))
        listen_at(words[2]);
    else if (count == 3 && !strcmp(words[1], "receive"))
        receive_at(words[2]);
    else if (count == 4 && !strcmp(words[1], "pass"))
        pass(words[2], words[3]);
    else if (count == 4 && !strcmp(words[1], "come"))
        come(words[2], atoi(words[3]));
    else
        errx(100, "listen PORT, receive PATH, pass PORT PATH or come PORT COUNT");
    return 0;
}
