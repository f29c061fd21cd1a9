"""Does ``flannelpy doctor`` find what is wrong with a host, with an agent and without, and nothing where all is well?

c1 - h1 ==== vxlan ==== h2 - c2         the command as a person types it on h1
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from netns_lab.host import Host
from netns_lab.lab import PREFIX, Lab
from tests.lab.agent_support import (  # noqa: F401
    lab_name,
    no_traceback,
    put_leased,
    settled_overlay,
    shell,
    until,
)
from tests.lab.host_support import until_condition, until_nothing_is_wrong, until_they_meet

BACKENDS = [pytest.param(backend, marks=pytest.mark.topology(hosts=2, backend=backend)) for backend in ("vxlan", "host-gw", "udp")]
MISSING_AGENT = 4


async def doctor(host: Host, *options: str) -> tuple[int, dict[str, Any]]:
    """Its exit code and its document."""
    program = host.agent_words()[: -len(host.agent_options())][:-3]
    files = (f"--subnet-file={host.subnet_file}", f"--state-dir={host.state_dir}", f"--run-dir={host.run_dir}")
    began = time.monotonic()
    outcome = await host.attempt(*program, "doctor", "--json", *files, *host.agent_options(), *options)
    print(f"doctor on {host.name}: exit code {outcome.code} after {time.monotonic() - began:.1f} s")
    assert outcome.code in (0, 3, 4), (outcome.code, outcome.stdout, outcome.stderr)
    return outcome.code, json.loads(outcome.stdout)


def wrong(document: dict[str, Any]) -> dict[str, str]:
    """What has failed or wants a look, by its name: state, what was found, what to do."""
    return {
        check["name"]: f"{check['state']}: {check['said']} -> {check['remedy']}"
        for check in document["checks"]
        if check["state"] in ("failed", "warning")
    }


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_host_that_is_well_has_nothing_wrong(overlay: Lab, backend: str) -> None:
    await until_they_meet(overlay, backend)
    await until_nothing_is_wrong(*overlay.hosts)
    for host in overlay.hosts:
        code, document = await doctor(host)
        assert (wrong(document), code, document["schema"]) == ({}, 0, 1)
    one = overlay.host(1)
    await one.agent.stop()
    code, document = await doctor(one)
    assert (list(wrong(document)), code) == (["agent"], MISSING_AGENT)
    code, document = await doctor(one, "--preflight")
    assert (wrong(document), code) == ({}, 0)


@asynccontextmanager
async def bound(host: Host, port: int) -> AsyncIterator[None]:
    """A program of the host is bound to a UDP port."""
    listen = f"import socket,time; s=socket.socket(2,2); s.bind(('0.0.0.0',{port})); print(flush=True); time.sleep(600)"
    await host.exec("sh", "-c", f'python3 -c "{listen}" >/dev/null 2>&1 & echo $! > {host.directory}/holder.pid')

    async def there() -> bool:
        return bool(await shell(host, f"ss -Hlun 'sport = :{port}'"))

    try:
        await until(there, 10, f"port {port} is bound")
        yield
    finally:
        await host.exec("sh", "-c", f"kill $(cat {host.directory}/holder.pid)")


@pytest.mark.topology(hosts=2)
async def test_a_port_that_is_taken_is_named_before_the_start_and_after(lab: Lab) -> None:
    one = lab.host(1)
    await lab.host(2).start_agent()
    async with bound(one, 8472):
        code, document = await doctor(one, "--preflight")
        assert code == 3
        assert "UDP port 8472 is taken by process" in wrong(document)["port"]
        assert "(python3)" in wrong(document)["port"]
        one.launch_agent()
        text = await until_condition(one, "kernel-refused")
        assert "UDP port 8472, which flannel.1 needs, is taken by another program (process" in text
        assert "(python3) has it: ss -lunp 'sport = :8472')" in text
        code, document = await doctor(one)
        assert (code, "(python3) has it" in wrong(document)["agent: kernel-refused"]) == (3, True)
    await until_nothing_is_wrong(*lab.hosts, timeout_s=45)


@pytest.mark.topology(hosts=2)
async def test_a_peer_of_another_vni_is_named(overlay: Lab) -> None:
    one, key = overlay.host(1), f"{PREFIX}/subnets/10.1.99.0-24"
    data = {"VNI": 7, "VtepMAC": "02:00:00:00:00:99"}
    value = {"PublicIP": "192.168.50.99", "PublicIPv6": None, "BackendType": "vxlan", "BackendData": data}
    put_leased(overlay, key, json.dumps(value))
    assert "VNI 7: expected ours, 1" in await until_condition(one, "peer-unreadable")
    code, document = await doctor(one)
    assert code == MISSING_AGENT
    assert "VNI 7: expected ours, 1" in wrong(document)["agent: peer-unreadable"]
    overlay.etcd.delete(key)
    await until_nothing_is_wrong(one)
    assert (await doctor(one))[0] == 0


@pytest.mark.topology(hosts=2)
async def test_a_host_before_its_first_start(lab: Lab) -> None:
    one = lab.host(1)
    assert (await doctor(one, "--preflight"))[0] == 0
    await shell(one, "sysctl -qw net.ipv4.ip_forward=0")
    code, document = await doctor(one, "--preflight")
    assert (code, list(wrong(document))) == (4, ["forwarding"])
    await shell(one, "ip link set eth1 down; ip addr flush dev eth1")
    code, document = await doctor(one, "--preflight")
    assert code == 3
    assert set(wrong(document)) >= {"forwarding", "uplink"}


@pytest.mark.topology(hosts=2)
async def test_an_etcd_that_is_gone_is_named_by_its_url(overlay: Lab) -> None:
    one = overlay.host(1)
    (url,) = overlay.etcd.urls if len(overlay.etcd.urls) == 1 else overlay.etcd.urls[:1]
    assert url
    overlay.etcd.kill()
    await until_condition(one, "registry-unreachable")
    code, document = await doctor(one)
    assert code == 3
    failed = [text for name, text in wrong(document).items() if name.startswith("etcd http") and text.startswith("failed")]
    assert any("onnection refused" in text and "endpoint health" in text for text in failed), wrong(document)
    overlay.etcd.restart()
    await until_nothing_is_wrong(*overlay.hosts)
    assert (await doctor(one))[0] == 0


@pytest.mark.topology(hosts=2)
async def test_facts_of_the_host_are_found_without_an_agent_too(overlay: Lab) -> None:
    one = overlay.host(1)
    await one.agent.stop()
    low = next(iter(overlay.host(2).subnet.subnet(25)))
    await shell(
        one, "ip addr flush dev docker0 scope global; ip addr add 10.1.77.1/24 dev docker0; sysctl -qw net.ipv4.ip_forward=0"
    )
    await shell(one, f"ip route add {low} dev eth1; nft 'add table inet hard'")
    await shell(one, "nft 'add chain inet hard forward { type filter hook forward priority 0; policy drop; }'")
    code, document = await doctor(one)
    found = wrong(document)
    assert code == 3
    assert "docker0 has 10.1.77.1/24, this host's subnet is" in found["bridge"]
    assert "sysctl -w net.ipv4.ip_forward=1" in found["forwarding"]
    assert f"ip route del {low} dev eth1" in found["routes"]
    assert "nft insert rule inet hard forward" in found["firewall"]
    await shell(one, f"nft delete table inet hard; ip route del {low} dev eth1; sysctl -qw net.ipv4.ip_forward=1")
    await one.start_agent()
    await overlay.connect_containers()
    await until_nothing_is_wrong(*overlay.hosts)
    assert (await doctor(one))[0] == 0
