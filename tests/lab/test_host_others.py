"""What do programs cost that take every interface of a host for theirs to configure? A DHCP client, a network manager, a VPN.

c1 - h1 ==== vxlan 1 ==== h2 - c2         etcd apart; on h1 somebody sets up flannel.1 as if it were a network card
"""

from __future__ import annotations

import pytest

from netns_lab.lab import Lab
from tests.lab.agent_support import Log, lab_name, losing_nothing, no_traceback, settled_overlay, shell, until  # noqa: F401
from tests.lab.host_support import WITHIN_S, lives, until_nothing_is_wrong, until_they_meet

DHCP_CLIENT = [
    "ip addr add 169.254.77.7/16 dev flannel.1",
    "ip route add default dev flannel.1 scope link src 169.254.77.7 metric 1000",  # in nobody's way, and not ours
    "ip route add 0.0.0.0/1 dev flannel.1 scope link src 169.254.77.7",
]
"""As dhcpcd leaves an interface on which no server answers: a link-local address, and a way out by it that is narrower than any."""

MANAGER = ["ip link set flannel.1 down", "ip addr flush dev flannel.1", "ip link set flannel.1 mtu 1400 up"]
"""As a network manager does with a device that it has found and then lets go of."""


@pytest.mark.topology(hosts=2)
async def test_what_a_dhcp_client_does_to_our_device_takes_no_packet_away(overlay: Lab) -> None:
    one = overlay.host(1)
    before = lives(overlay.hosts)
    ours = await shell(one, "ip route show proto 102")
    for _ in range(2):  # it tries again
        async with losing_nothing(overlay, "c1", "c2"):
            for line in DHCP_CLIENT:
                await one.exec("sh", "-c", line)

            async def gone() -> bool:
                return not await shell(one, "ip route show 0.0.0.0/1 dev flannel.1")

            await until(gone, WITHIN_S, "its way out is gone", lambda: Log.of(one).text[-1500:])
        await one.exec("sh", "-c", "ip addr del 169.254.77.7/16 dev flannel.1; ip route del default metric 1000 || :")
    assert await shell(one, "ip route show proto 102") == ours
    assert [line for line in await shell(one, "ip route show default") if "dev eth0" in line]
    assert "dev eth0" in (await shell(one, "ip route get 203.0.113.1"))[0]
    await until_nothing_is_wrong(*overlay.hosts)
    assert lives(overlay.hosts) == before


@pytest.mark.topology(hosts=2)
async def test_a_device_that_a_manager_let_go_of_is_ours_again(overlay: Lab) -> None:
    one = overlay.host(1)
    before, ours = lives(overlay.hosts), await shell(one, "ip route show proto 102")
    for _ in range(3):
        await one.exec("sh", "-c", "; ".join(MANAGER))
        await until_they_meet(overlay, "after a manager was at it")

        async def as_before() -> bool:
            device = await shell(one, "ip -o link show flannel.1; ip -o -4 addr show flannel.1; ip route show proto 102")
            return "mtu 1450" in device[0] and len([line for line in device if " inet " in line]) == 1 and device[2:] == ours

        await until(as_before, WITHIN_S, "it is as before", lambda: Log.of(one).text[-1500:])
    await until_nothing_is_wrong(*overlay.hosts)
    assert lives(overlay.hosts) == before
