"""The contract of a kernel where a device changes: in place where it can be, anew only where its successor can be made."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest
from netaddr import IPAddress

from flannelpy.core.objects import HostState, Link, Vxlan
from flannelpy.core.plan import Step, plan

from .kernel_support import ADDRESS, HOST, LINK, SCOPE, SYSCTL, Host, RealHost, code, hear, ip, peer


async def reach(host: Host, desired: HostState) -> list[str]:
    """Apply the plan; what it says, and what was refused. The next plan must be empty where nothing was."""
    steps = plan(desired, await host.kernel.observe(SCOPE), SCOPE)
    refused = [str(result.error) for result in await host.kernel.apply(steps) if result.error]
    if not refused:
        assert plan(desired, await host.kernel.observe(SCOPE), SCOPE) == ()
    return [step.op for step in steps if isinstance(step.item, Link)] + refused


def with_link(**changes: object) -> HostState:
    assert LINK.detail is not None
    return HostState.of(replace(LINK, detail=replace(LINK.detail, **changes)), ADDRESS, SYSCTL) | peer(9)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"local": IPAddress("192.0.2.77")},
        {"dev": "br7"},
        {"learning": True},
        {"local": IPAddress("192.0.2.77"), "dev": "br7", "learning": True},
    ],
    ids=str,
)
async def test_source_lower_device_and_learning_change_in_place(host: Host, changes: dict[str, object]) -> None:
    host.add_interface("br7")
    await reach(host, HOST | peer(9))
    notices = host.kernel.notices(SCOPE)
    assert await reach(host, with_link(**changes)) == ["change"]
    changed = next(iter(with_link(**changes)))
    heard = await hear(notices, lambda heard: heard.objects.get(LINK.key) == changed)
    assert not heard.resync  # the device was never gone, and so all that lives on it is there
    assert (await host.kernel.observe(SCOPE)).objects == with_link(**changes).objects
    if "dev" in changes:
        host.remove_interface("br7")  # which takes the device along
        assert LINK.key not in await host.kernel.observe(SCOPE)


@pytest.mark.parametrize("changes", [{"vni": 7}, {"port": 4789}, {"gbp": True}], ids=str)
async def test_what_no_kernel_changes_is_made_anew(host: Host, changes: dict[str, object]) -> None:
    await reach(host, HOST | peer(9))
    assert await reach(host, with_link(**changes)) == ["remake"]


async def test_a_renamed_lower_device_is_no_difference(host: Host) -> None:
    await reach(host, HOST | peer(9))
    host.set_down("eth1")
    host.rename_interface("eth1", "ens3")
    observed = await host.kernel.observe(SCOPE)
    assert observed.get(LINK.key) == LINK
    assert await reach(host, with_link(dev="ens3")) == ["change"]
    assert (await host.kernel.observe(SCOPE)).get(LINK.key) == next(iter(with_link(dev="ens3")))


async def test_a_lower_device_that_is_not_there_costs_nothing(host: Host) -> None:
    await reach(host, HOST | peer(9))
    assert await reach(host, with_link(dev="gone0")) == ["change", "the underlay device gone0 is not there"]
    assert await reach(host, with_link(dev="gone0", vni=7)) == ["remake", "the underlay device gone0 is not there"]
    assert (await host.kernel.observe(SCOPE)).objects == (HOST | peer(9)).objects


async def test_a_vni_that_another_device_has_costs_nothing(host: Host) -> None:
    await reach(host, HOST | peer(9))
    other = Link("other0", "vxlan", 1450, "02:00:00:00:00:77", detail=Vxlan(7, "eth1", IPAddress("192.0.2.1")))
    assert [result.error for result in await host.kernel.apply([Step("add", other)])] == [None]
    refusal = "other0 is a device of the same kind with the same VNI 7 and port 8472"
    assert await reach(host, with_link(vni=7)) == ["remake", refusal]
    assert (await host.kernel.observe(SCOPE)).objects == (HOST | peer(9)).objects
    assert await reach(host, with_link(vni=8)) == ["remake"]  # on the port that both share


async def test_a_port_that_a_program_has_costs_nothing_and_is_taken_once_it_is_free(host: Host) -> None:
    await reach(host, HOST | peer(9))
    host.take_port(4789)
    refusal = "UDP port 4789, which flannel.1 needs, is taken by another program"
    assert await reach(host, with_link(port=4789)) == ["remake", refusal]
    assert (await host.kernel.observe(SCOPE)).objects == (HOST | peer(9)).objects
    host.give_port(4789)
    assert await reach(host, with_link(port=4789)) == ["remake"]


async def test_a_device_whose_port_is_taken_is_not_even_tried(host: Host) -> None:
    host.take_port(8472)
    notices = host.kernel.notices(SCOPE)
    results = await host.kernel.apply([Step("add", LINK)])
    assert code(results) == errno.EADDRINUSE
    host.give_port(8472)
    assert [result.error for result in await host.kernel.apply([Step("add", LINK)])] == [None]
    heard = await hear(notices, lambda heard: heard.objects.get(LINK.key) == LINK)
    assert not heard.resync  # no device came and went


async def test_a_kernel_that_refuses_a_change_in_place_gets_the_device_made_anew(
    real: RealHost,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from flannelpy.kernel.drivers.library import new_link
    from flannelpy.kernel.drivers.vxlan import VxlanDriver
    from flannelpy.kernel.netlink import NetlinkKernel

    def refused(_driver: VxlanDriver, sequence: int, vxlan: Vxlan, _lower: int, index: int) -> bytes:
        data = [("IFLA_VXLAN_ID", vxlan.vni), ("IFLA_VXLAN_PORT", vxlan.port)]  # a port is never changed
        info = {"attrs": [("IFLA_INFO_KIND", "vxlan"), ("IFLA_INFO_DATA", {"attrs": data})]}
        return new_link(sequence, 5, index, None, [("IFLA_LINKINFO", info)])

    await reach(real, HOST | peer(9))
    monkeypatch.setattr(VxlanDriver, "change", refused)
    assert isinstance(real.kernel, NetlinkKernel)
    wanted = with_link(local=IPAddress("192.0.2.77"))
    results = await real.kernel.apply(plan(wanted, await real.kernel.observe(SCOPE), SCOPE))
    assert [result.error for result in results] == [None]
    assert (await real.kernel.observe(SCOPE)).get(LINK.key) == next(iter(wanted))
    await reach(real, wanted)  # what went along with the old one
    assert (await real.kernel.observe(SCOPE)).objects == wanted.objects


async def test_somebody_elses_device_of_our_name_stays_until_ours_can_be_made(real: RealHost) -> None:
    ip("link add flannel.1 type bridge")
    assert (await reach(real, with_link(dev="gone0")))[:2] == ["remake", "the underlay device gone0 is not there"]
    facts = await real.kernel.facts()
    assert "flannel.1" in {interface.name for interface in facts.interfaces}
    assert await reach(real, HOST | peer(9)) == ["remake"]
