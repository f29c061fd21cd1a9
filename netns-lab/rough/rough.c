/* What does a bad cable do? Carries frames between two devices, both ways, and loses, moves and doubles some of them.
 *
 *     cc -O2 -o rough rough.c && ./rough LEFT RIGHT COUNTS SEED LOSS REORDERING DUPLICATION
 *
 * The last three are shares, 0.01 for one in a hundred. A moved frame is overtaken by up to eight that came after it, or waits two
 * milliseconds where too few come. The same seed makes the same choices, frame by frame in each direction. COUNTS is a file that holds,
 * at any time, seven 64-bit numbers for each direction, left to right first. The devices must give frames as they are on a wire, so
 * their offloads have to be off. packet(7).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 64, LONGEST = 9216, WAITING = 32, FARTHEST = 8, PATIENCE_MS = 2 };

struct counts {
    uint64_t seen, lost, moved, doubled, sent;
    uint64_t refused; /* a device did not take it, or it came longer than a wire carries */
    uint64_t overrun; /* came faster than it was read; the kernel dropped it */
};

struct waiting {
    int size, to_go, overtaken;
    double since_ms;
    uint8_t frame[LONGEST];
};

struct direction {
    int from, to, held;
    uint64_t random;
    struct counts *counts;
    struct waiting waiting[WAITING];
    uint8_t frames[BATCH][LONGEST];
};

static struct direction both[2];
static double loss, reordering, duplication;

static int fail(const char *what)
{
    fprintf(stderr, "rough: %s: %s\n", what, strerror(errno));
    return 1;
}

static double now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1e3 + now.tv_nsec / 1e6;
}

/* splitmix64 (Steele, Lea, Flood 2014). */
static uint64_t draw(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static int happens(struct direction *way, double share)
{
    return (draw(&way->random) >> 11) * 0x1p-53 < share;
}

/* ENOBUFS: the device's queue is full, as a cable that is overrun. */
static void put(struct direction *way, const uint8_t *frame, int size)
{
    ssize_t done;
    do
        done = send(way->to, frame, size, 0);
    while (done < 0 && errno == EINTR);
    if (done == size)
        way->counts->sent++;
    else
        way->counts->refused++;
}

static void release(struct direction *way, struct waiting *one)
{
    way->counts->moved += one->overtaken > 0;
    put(way, one->frame, one->size);
    one->size = 0;
    way->held--;
}

/* A frame goes by: who waited for it goes after it. */
static void pass(struct direction *way, const uint8_t *frame, int size)
{
    put(way, frame, size);
    for (int i = 0; way->held && i < WAITING; i++) {
        struct waiting *one = &way->waiting[i];
        if (!one->size)
            continue;
        one->overtaken++;
        if (--one->to_go == 0)
            release(way, one);
    }
}

static void hold_or_pass(struct direction *way, const uint8_t *frame, int size)
{
    int far = 1 + draw(&way->random) % FARTHEST;
    if (happens(way, reordering))
        for (int i = 0; i < WAITING; i++)
            if (!way->waiting[i].size) {
                struct waiting *one = &way->waiting[i];
                one->size = size, one->to_go = far, one->overtaken = 0, one->since_ms = now_ms();
                memcpy(one->frame, frame, size);
                way->held++;
                return;
            }
    pass(way, frame, size);
}

static void carry(struct direction *way)
{
    struct mmsghdr messages[BATCH];
    struct iovec pieces[BATCH];
    memset(messages, 0, sizeof messages);
    for (int i = 0; i < BATCH; i++) {
        pieces[i] = (struct iovec){way->frames[i], LONGEST};
        messages[i].msg_hdr.msg_iov = &pieces[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    int count = recvmmsg(way->from, messages, BATCH, MSG_DONTWAIT, NULL);
    for (int i = 0; i < count; i++) {
        int lost = happens(way, loss), doubled = happens(way, duplication), size = messages[i].msg_len;
        way->counts->seen++;
        if (messages[i].msg_hdr.msg_flags & MSG_TRUNC) {
            way->counts->refused++;
            continue;
        }
        way->counts->lost += lost;
        if (lost)
            continue;
        hold_or_pass(way, way->frames[i], size);
        way->counts->doubled += doubled;
        if (doubled)
            hold_or_pass(way, way->frames[i], size);
    }
    struct tpacket_stats stats;
    socklen_t size = sizeof stats;
    if (getsockopt(way->from, SOL_PACKET, PACKET_STATISTICS, &stats, &size) == 0)
        way->counts->overrun += stats.tp_drops;
}

/* Those that nobody has overtaken for long enough. */
static void give_up_waiting(struct direction *way)
{
    double before = now_ms() - PATIENCE_MS;
    for (int i = 0; way->held && i < WAITING; i++)
        if (way->waiting[i].size && way->waiting[i].since_ms <= before)
            release(way, &way->waiting[i]);
}

/* All frames that arrive at a device, none that we send there ourselves. */
static int open_device(const char *name)
{
    int one = 1, room = 64 << 20;
    struct sockaddr_ll at = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = if_nametoindex(name)};
    int made = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    if (made < 0 || !at.sll_ifindex || setsockopt(made, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof one) < 0 ||
        setsockopt(made, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room) < 0 || bind(made, (struct sockaddr *)&at, sizeof at) < 0)
        return -1;
    return made;
}

int main(int count, char **words)
{
    if (count != 8) {
        fprintf(stderr, "usage: rough LEFT RIGHT COUNTS SEED LOSS REORDERING DUPLICATION\n");
        return 2;
    }
    loss = atof(words[5]), reordering = atof(words[6]), duplication = atof(words[7]);
    int left = open_device(words[1]), right = left < 0 ? -1 : open_device(words[2]);
    if (right < 0)
        return fail(left < 0 ? words[1] : words[2]);
    int file = open(words[3], O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (file < 0 || ftruncate(file, 2 * sizeof(struct counts)) < 0)
        return fail(words[3]);
    struct counts *counts = mmap(NULL, 2 * sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (counts == MAP_FAILED)
        return fail(words[3]);
    uint64_t seed = strtoull(words[4], NULL, 10);
    for (int i = 0; i < 2; i++) {
        both[i].from = i ? right : left, both[i].to = i ? left : right, both[i].counts = &counts[i];
        both[i].random = seed + i, both[i].random = draw(&both[i].random); /* apart, also for seeds that follow one another */
    }
    printf("carrying\n");
    fflush(stdout);
    struct pollfd ends[2] = {{left, POLLIN, 0}, {right, POLLIN, 0}};
    for (;;) {
        if (poll(ends, 2, both[0].held || both[1].held ? 1 : -1) < 0 && errno != EINTR)
            return fail("poll");
        for (int i = 0; i < 2; i++) {
            if (ends[i].revents & (POLLERR | POLLNVAL))
                return fail(words[1 + i]);
            if (ends[i].revents & POLLIN)
                carry(&both[i]);
            give_up_waiting(&both[i]);
        }
    }
}
