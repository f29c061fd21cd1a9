"""Who may write into etcd, does he get a peer's packets, or packets in as that peer, by keys that claim its subnet?

c1 10.1.1.2 - h1 192.168.50.11 ==+== 192.168.50.12 h2 - c2 10.1.2.2        vxlan and udp in turn; etcd apart
                                 x 192.168.50.66 writes keys around 10.1.1.0/24, and has 10.1.77.0/24 of its own
"""

from __future__ import annotations

import json

import pytest

from netns_lab.lab import Lab
from tests.lab.agent_support import (  # noqa: F401
    SUBNETS,
    lab_name,
    losing_nothing,
    mac,
    no_probes,
    no_traceback,
    put_leased,
    settled_overlay,
    until,
)
from tests.lab.host_support import told, until_nothing_is_wrong
from tests.lab.test_guard import COUNT, SENDER, forged, make_stranger, unheard, vxlan

CLAIMS = ("10.1.1.0-24&fd00:1::-64", "10.1.1.5-24", "10.1.1.0-25", "10.1.1.128-25", "10.1.1.2-31", "10.1.1.2-32", "10.1.0.0-23")
OWN = "10.1.77.0-24"
PORTS = {"vxlan": 8472, "udp": 8285}
BACKENDS = [pytest.param(each, marks=pytest.mark.topology(hosts=3, backend=each, agent_options=())) for each in PORTS]

pytestmark = [pytest.mark.usefixtures("no_probes"), pytest.mark.timeout(300)]


def lease(backend: str) -> str:
    value: dict[str, object] = {"PublicIP": "192.168.50.66"}
    if backend == "vxlan":
        value |= {"BackendType": "vxlan", "BackendData": {"VNI": 1, "VtepMAC": "02:00:00:00:00:66"}}
    return json.dumps(value)


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_key_that_claims_a_peers_subnet_gets_nothing_in_and_nothing_out(overlay: Lab, backend: str) -> None:
    lab, two, stranger = overlay, overlay.host(2), await make_stranger(overlay)
    vtep = await mac(two) if backend == "vxlan" else ""

    async def let_in(source: str) -> int:
        inner = forged(source, "10.1.2.2")
        data = vxlan(vtep, inner) if backend == "vxlan" else inner
        words = (SENDER, str(PORTS[backend]), "", "192.168.50.12", data.hex())
        return await unheard(lab, "10.1.2.2", lambda: stranger.exec("python3", "-c", *words))

    async def claims_of(*names: str) -> bool:
        """The stranger is a peer of h2's by these keys, and by no other."""
        seen[:] = [(peer["key"], peer["state"]) for peer in (await told(two))["peers"] if peer["PublicIP"] == "192.168.50.66"]
        return [key for key, state in seen if state == "in-sync"] == list(names)

    async def forgotten() -> bool:
        """Of a peer that leaves what was let in is let in for some seconds more."""
        return await claims_of() and not seen

    seen: list[tuple[str, str]] = []
    assert [await let_in(source) for source in ("10.1.1.2", "10.1.77.2")] == [0, 0]
    async with losing_nothing(lab, "c1", "c2"):
        for name in CLAIMS:
            put_leased(lab, f"{SUBNETS}/{name}", lease(backend))
        put_leased(lab, f"{SUBNETS}/{OWN}", lease(backend))
        await until(lambda: claims_of(OWN), 30, "the stranger is a peer by its own key", lambda: seen)
        assert [await let_in(source) for source in ("10.1.1.2", "10.1.1.130", "10.1.0.2")] == [0, 0, 0]
        assert await let_in("10.1.77.2") == COUNT
        for name in (*CLAIMS, OWN):
            lab.etcd.delete(f"{SUBNETS}/{name}")
        await until(forgotten, 30, "the stranger is nobody again", lambda: seen)
        assert [await let_in(source) for source in ("10.1.1.2", "10.1.1.130", "10.1.77.2")] == [0, 0, 0]
    await until_nothing_is_wrong(two)
    for way in (("c1", "c2"), ("c2", "c1")):
        assert (await lab.ping(*way)).ok, way
