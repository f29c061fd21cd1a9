/* What does a pump cost that moves one packet per system call? The plainest one, to take a ratio from; nothing else uses it.
 * A TUN device on one side, a UDP socket on the other, no offload, one thread; a hop of TTL is taken on each side, as flannel does.
 * packet_pump DEVICE LOCAL PEER PORT MTU */
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { SMALLEST = 20, LARGEST = 65535 };

/* One hop less, and the header's checksum with it (RFC 1624). False for a packet that has none left, or is not IPv4. */
static int take_hop(unsigned char *packet) {
    unsigned sum = (packet[10] << 8 | packet[11]) + 0x100;
    if (packet[0] >> 4 != 4 || packet[8] < 2)
        return 0;
    sum = (sum & 0xffff) + (sum >> 16);
    packet[8]--;
    packet[10] = sum >> 8;
    packet[11] = sum & 0xff;
    return 1;
}

static int open_device(const char *name) {
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
    int device = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    return device < 0 || ioctl(device, TUNSETIFF, &request) ? -1 : device;
}

int main(int count, char **words) {
    static unsigned char packet[LARGEST];
    if (count != 6) {
        fputs("usage: packet_pump DEVICE LOCAL PEER PORT MTU\n", stderr);
        return 2;
    }
    int mtu = atoi(words[5]), device = open_device(words[1]), wire = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in local = {.sin_family = AF_INET, .sin_port = htons(atoi(words[4]))}, peer = local;
    inet_aton(words[2], &local.sin_addr);
    inet_aton(words[3], &peer.sin_addr);
    if (device < 0 || bind(wire, (struct sockaddr *)&local, sizeof local) || connect(wire, (struct sockaddr *)&peer, sizeof peer)) {
        perror("packet_pump");
        return 1;
    }
    struct pollfd both[] = {{device, POLLIN, 0}, {wire, POLLIN, 0}};
    while (poll(both, 2, -1) > 0)
        for (int way = 0; way < 2; way++)
            if (both[way].revents) {
                ssize_t size = read(both[way].fd, packet, mtu);
                if (size >= SMALLEST && take_hop(packet) && write(both[!way].fd, packet, size) < 0)
                    continue; /* full: dropped, as a wire would */
            }
    return 1;
}
