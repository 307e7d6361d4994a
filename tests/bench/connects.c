/* connects ADDRESS PORT COUNT: at each line of standard input connects so many times, one after the
   other, and prints the median of what socket(2) and connect(2) took together, in ns.

   What a program is run under, to have it go through a proxy, is loaded once, and then measured in
   turn with others. */

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static int fail(const char *what)
{
	perror(what);
	return 1;
}

static double now(void)
{
	struct timespec at;
	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1e9 + at.tv_nsec;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	struct sockaddr_in to = { .sin_family = AF_INET };
	char line[16];
	if (argc != 4 || inet_pton(AF_INET, argv[1], &to.sin_addr) != 1)
		return 2;
	to.sin_port = htons(atoi(argv[2]));
	int count = atoi(argv[3]);
	double *took = calloc(count, sizeof *took);
	if (count < 1 || !took)
		return 2;
	while (fgets(line, sizeof line, stdin)) {
		for (int i = 0; i < count; i++) {
			char byte;
			double since = now();
			int fd = socket(AF_INET, SOCK_STREAM, 0);
			if (fd < 0)
				return fail("socket");
			if (connect(fd, (struct sockaddr *)&to, sizeof to))
				return fail("connect");
			took[i] = now() - since;
			/* It is the target that has answered, and not somebody before it. */
			if (read(fd, &byte, 1) != 1 || byte != 'x')
				return fail("read");
			close(fd);
		}
		qsort(took, count, sizeof *took, compare);
		printf("%.0f\n", took[count / 2]);
		fflush(stdout);
	}
	return 0;
}
