/* Looks a name up, and connects to it; for musl, whose resolver is not glibc's. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int count, char **words)
{
	struct addrinfo wanted = {.ai_socktype = SOCK_STREAM}, *found, *one;
	char text[64];

	if (count != 3 || getaddrinfo(words[1], words[2], &wanted, &found))
		return 2;
	for (one = found; one; one = one->ai_next) {
		getnameinfo(one->ai_addr, one->ai_addrlen, text, sizeof text, 0, 0, NI_NUMERICHOST);
		puts(text);
	}
	fflush(stdout);
	for (one = found; one; one = one->ai_next) {
		int fd = socket(one->ai_family, SOCK_STREAM, 0);
		long size;
		if (connect(fd, one->ai_addr, one->ai_addrlen))
			continue;
		while ((size = read(fd, text, sizeof text)) > 0)
			write(1, text, size);
		return 0;
	}
	return 1;
}
