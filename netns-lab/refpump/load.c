/* How many small datagrams come through? The load of `make bench-udp`: 64 a system call at either end, so that what is measured is
 * what lies between them. iperf3 takes a system call or two a datagram, and half of the processor time that there is.
 *
 *     cc -O2 -o load load.c && ./load receive PORT & ./load send ADDRESS PORT BYTES SECONDS
 *
 * The receiver ends when nothing came for half a second after the first datagram, and prints how many came and from the first to the
 * last in how many seconds, as JSON. sendmmsg(2), recvmmsg(2).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { AT_ONCE = 64, LONGEST = 65507, QUIET_MS = 500, FIRST_MS = 30000 };

static char room[AT_ONCE][2048];
static char payload[LONGEST];
static struct mmsghdr messages[AT_ONCE];
static struct iovec parts[AT_ONCE];

static int fail(const char *what)
{
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    return 1;
}

static double now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec / 1e9;
}

static int receive(int port)
{
    int sock = socket(AF_INET, SOCK_DGRAM, 0), room_bytes = 4 << 20;
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(port)};
    if (sock < 0 || bind(sock, (struct sockaddr *)&here, sizeof here) < 0)
        return fail("socket");
    if (setsockopt(sock, SOL_SOCKET, SO_RCVBUFFORCE, &room_bytes, sizeof room_bytes) < 0)
        setsockopt(sock, SOL_SOCKET, SO_RCVBUF, &room_bytes, sizeof room_bytes);
    for (int at = 0; at < AT_ONCE; at++) {
        parts[at] = (struct iovec){room[at], sizeof room[at]};
        messages[at].msg_hdr = (struct msghdr){.msg_iov = &parts[at], .msg_iovlen = 1};
    }
    struct pollfd watched = {.fd = sock, .events = POLLIN};
    unsigned long packets = 0;
    double first = 0, last = 0;
    while (poll(&watched, 1, packets ? QUIET_MS : FIRST_MS) > 0) {
        int got = recvmmsg(sock, messages, AT_ONCE, MSG_DONTWAIT, NULL);
        if (got <= 0)
            continue;
        last = now();
        if (!packets)
            first = last;
        packets += got;
    }
    printf("{\"packets\": %lu, \"seconds\": %.6f}\n", packets, last - first);
    return 0;
}

static int send_for(const char *address, int port, size_t bytes, double seconds)
{
    int sock = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons(port)};
    if (!inet_aton(address, &there.sin_addr) || sock < 0 || connect(sock, (struct sockaddr *)&there, sizeof there) < 0)
        return fail(address);
    for (int at = 0; at < AT_ONCE; at++) {
        parts[at] = (struct iovec){payload, bytes};
        messages[at].msg_hdr = (struct msghdr){.msg_iov = &parts[at], .msg_iovlen = 1};
    }
    unsigned long packets = 0;
    for (double end = now() + seconds; now() < end;) {
        int sent = sendmmsg(sock, messages, AT_ONCE, 0);
        packets += sent > 0 ? sent : 0; /* what a full queue refuses is lost, as on any wire */
    }
    printf("{\"packets\": %lu}\n", packets);
    return 0;
}

int main(int count, char **words)
{
    if (count == 3 && !strcmp(words[1], "receive"))
        return receive(atoi(words[2]));
    if (count == 6 && !strcmp(words[1], "send") && atoi(words[4]) > 0 && atoi(words[4]) <= LONGEST)
        return send_for(words[2], atoi(words[3]), atoi(words[4]), atof(words[5]));
    fprintf(stderr, "usage: load receive PORT | load send ADDRESS PORT BYTES SECONDS\n");
    return 2;
}
