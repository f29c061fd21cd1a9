/* What does a plain forwarder reach? One packet a system call, one thread, nothing offloaded: the yardstick of `make bench-udp`.
 *
 *     cc -O2 -o refpump refpump.c && ./refpump DEVICE LOCAL_ADDRESS PEER_ADDRESS PORT MTU
 *
 * Speaks flannel's udp format to one peer: raw IPv4 packets in datagrams, TTL lowered by one on each side. No table and no guard,
 * so that it is rather quicker than a pump that is of use. Wire format: flannel-compat 9.4; device: Documentation/networking/tuntap.rst.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { SHORTEST = 20, TTL = 8, CHECKSUM = 10 };

static uint8_t packet[65536];

static int fail(const char *what)
{
    fprintf(stderr, "refpump: %s: %s\n", what, strerror(errno));
    return 1;
}

/* 0 where the packet is to be dropped: no IPv4, or at the end of its way. RFC 1624: one less in the TTL is 0x0100 more in the checksum. */
static int age(size_t size)
{
    if (size < SHORTEST || packet[0] >> 4 != 4 || packet[TTL] < 2)
        return 0;
    uint32_t sum = (uint32_t)packet[CHECKSUM] << 8 | packet[CHECKSUM + 1];
    sum += 0x0100;
    sum += sum >> 16;
    packet[CHECKSUM] = sum >> 8;
    packet[CHECKSUM + 1] = sum;
    packet[TTL]--;
    return 1;
}

static int open_device(const char *name)
{
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    int device = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    if (device >= 0 && ioctl(device, TUNSETIFF, &request) < 0) {
        close(device);
        return -1;
    }
    return device;
}

int main(int count, char **words)
{
    if (count != 6) {
        fprintf(stderr, "usage: refpump DEVICE LOCAL_ADDRESS PEER_ADDRESS PORT MTU\n");
        return 2;
    }
    struct sockaddr_in local = {.sin_family = AF_INET, .sin_port = htons(atoi(words[4]))}, peer = local;
    size_t mtu = atoi(words[5]);
    if (!inet_aton(words[2], &local.sin_addr) || !inet_aton(words[3], &peer.sin_addr) || mtu > sizeof packet) {
        fprintf(stderr, "refpump: expected two IPv4 addresses, a port and an MTU\n");
        return 2;
    }
    int device = open_device(words[1]);
    if (device < 0)
        return fail(words[1]);
    int wire = socket(AF_INET, SOCK_DGRAM, 0);
    if (wire < 0 || bind(wire, (struct sockaddr *)&local, sizeof local) < 0)
        return fail("socket");

    struct pollfd watched[2] = {{.fd = device, .events = POLLIN}, {.fd = wire, .events = POLLIN}};
    while (poll(watched, 2, -1) > 0 || errno == EINTR) {
        ssize_t out, in;
        do { /* one each way in turn, without asking poll, as long as there is one */
            out = read(device, packet, mtu);
            if (out > 0 && age(out))
                sendto(wire, packet, out, 0, (struct sockaddr *)&peer, sizeof peer);
            in = recv(wire, packet, mtu, MSG_DONTWAIT);
            if (in > 0 && age(in))
                while (write(device, packet, in) < 0 && errno == EAGAIN)
                    ;
        } while (out > 0 || in > 0);
    }
    return fail("poll");
}
