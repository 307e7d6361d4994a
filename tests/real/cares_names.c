/* Looks a name up by c-ares, which drops answers that come from elsewhere than it has asked. */
#include <arpa/inet.h>
#include <ares.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/select.h>

static int result = 3;

static void on_answer(void *argument, int status, int timeouts, struct hostent *host)
{
	char text[64];

	result = status;
	if (status != ARES_SUCCESS)
		return;
	for (char **one = host->h_addr_list; *one; one++)
		puts(inet_ntop(host->h_addrtype, *one, text, sizeof text));
}

int main(int count, char **words)
{
	ares_channel channel;
	struct ares_options options = {.timeout = 2000, .tries = 2};

	ares_library_init(ARES_LIB_INIT_ALL);
	ares_init_options(&channel, &options, ARES_OPT_TIMEOUTMS | ARES_OPT_TRIES);
	ares_gethostbyname(channel, words[1], count > 2 ? AF_INET6 : AF_INET, on_answer, 0);
	for (;;) {
		fd_set readers, writers;
		struct timeval most, *limit;
		FD_ZERO(&readers);
		FD_ZERO(&writers);
		int number = ares_fds(channel, &readers, &writers);
		if (!number)
			return result;
		limit = ares_timeout(channel, 0, &most);
		select(number, &readers, &writers, 0, limit);
		ares_process(channel, &readers, &writers);
	}
}
