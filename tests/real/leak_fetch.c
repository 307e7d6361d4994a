/* A program that knows nothing of proxies: leak_fetch HOST PORT */
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int count, char **words)
{
    static const char request[] = "GET /1000 HTTP/1.0\r\n\r\n";
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    char data[4096];
    ssize_t total = 0, size;

    if (count != 3 || getaddrinfo(words[1], words[2], &hints, &found))
        return 2;
    int fd = socket(found->ai_family, SOCK_STREAM, 0);
    if (connect(fd, found->ai_addr, found->ai_addrlen)) {
        perror("connect");
        return 1;
    }
    if (write(fd, request, sizeof request - 1) < 0)
        return 1;
    while ((size = read(fd, data, sizeof data)) > 0)
        total += size;
    return total > 1000 ? 0 : 3;
}
