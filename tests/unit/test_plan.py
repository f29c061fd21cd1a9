"""Do the steps lead from observed to desired, in an order that the kernel accepts, and touch nothing that is not ours?

The kernel here is a dictionary with the few laws that matter: an ``add`` needs a free key, a ``change`` something to change, an
object needs its device, a route its neighbour, and what lives on a device goes with it.
"""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from flannelpy.core.objects import (
    BOOT_PROTOCOL,
    Address,
    FdbEntry,
    HostState,
    Key,
    Link,
    Neighbour,
    NftTable,
    Object,
    Route,
    Scope,
    Sysctl,
    Vxlan,
)
from flannelpy.core.plan import Step, plan, removable, text

UPLINK = "eth1"
SCOPE = Scope(links=frozenset({"flannel.1", "flannel.2"}), networks=(IPNetwork("10.5.0.0/16"),), uplink=UPLINK)
US, PEER, OTHER = IPAddress("192.0.2.1"), IPAddress("192.0.2.2"), IPAddress("192.0.2.3")
MACS = ("aa:aa:aa:aa:aa:aa", "bb:bb:bb:bb:bb:bb")


def vxlan(name: str = "flannel.1", mtu: int = 1450, port: int = 8472, mac: str = MACS[0]) -> Link:
    return Link(name, "vxlan", mtu, mac, detail=Vxlan(1, UPLINK, US, port))


def peer(third: int, outer: IPAddress, mac: str, dev: str = "flannel.1") -> HostState:
    gateway = IPAddress(f"10.5.{third}.0")
    return HostState.of(
        Neighbour(gateway, mac, dev),
        FdbEntry(mac, outer, dev),
        Route(IPNetwork(f"10.5.{third}.0/24"), gateway, dev, onlink=True),
    )


HOST = HostState.of(
    vxlan(), Address(IPNetwork("10.5.72.0/32"), "flannel.1"), Sysctl("net/ipv4/ip_forward", "1"), NftTable("flannelpy", "a\nb\n")
)


# ---------------------------------------------------------------------------------------------- the dictionary


def device(item: Object) -> str | None:
    if isinstance(item, Sysctl):
        return item.name.split("/")[3] if item.name.count("/") > 3 else None
    return getattr(item, "dev", None)


class Kernel:
    """What there is, by key, and the laws."""

    def __init__(self, state: HostState) -> None:
        self.there: dict[Key, Object] = dict(state.objects)

    def delete_link(self, name: str) -> None:
        self.there = {key: item for key, item in self.there.items() if device(item) != name and key != Key("link", name)}

    def apply(self, step: Step) -> None:
        item = step.item
        if step.op == "remove":
            assert item.key in self.there, f"{step}: there is no such thing"
            if isinstance(item, Link):
                self.delete_link(item.name)
            else:
                del self.there[item.key]
            return
        if step.op == "remake":
            assert isinstance(item, Link)
            assert item.key in self.there
            self.delete_link(item.name)
        elif step.op == "change":
            assert item.key in self.there, f"{step}: nothing to change"
        else:
            assert item.key not in self.there, f"{step}: File exists"
        dev = device(item)
        assert dev in (None, UPLINK) or Key("link", str(dev)) in self.there, f"{step}: Cannot find device"
        self.there[item.key] = item


def after(steps: tuple[Step, ...], observed: HostState) -> HostState:
    kernel = Kernel(observed)
    for step in steps:
        kernel.apply(step)
    return HostState(kernel.there)


# ------------------------------------------------------------------------------------------------- what it reads like


def test_a_first_start_reads_like_a_shell_session() -> None:
    assert text(plan(HOST | peer(9, PEER, MACS[1]), HostState())) == "\n".join(
        [
            "nft add table inet flannelpy (2 lines)",
            "link add flannel.1 address aa:aa:aa:aa:aa:aa mtu 1450 up"
            " type vxlan id 1 dev eth1 local 192.0.2.1 dstport 8472 nolearning",
            "addr add 10.5.72.0/32 dev flannel.1",
            "sysctl add net/ipv4/ip_forward=1",
            "neigh add 10.5.9.0 lladdr bb:bb:bb:bb:bb:bb dev flannel.1 nud permanent",
            "fdb add bb:bb:bb:bb:bb:bb dst 192.0.2.2 dev flannel.1 self permanent",
            "route add 10.5.9.0/24 via 10.5.9.0 dev flannel.1 onlink",
        ]
    )


def test_a_new_peer_is_three_steps_and_its_route_comes_last() -> None:
    assert text(plan(HOST | peer(9, PEER, MACS[1]), HOST)) == "\n".join(
        [
            "neigh add 10.5.9.0 lladdr bb:bb:bb:bb:bb:bb dev flannel.1 nud permanent",
            "fdb add bb:bb:bb:bb:bb:bb dst 192.0.2.2 dev flannel.1 self permanent",
            "route add 10.5.9.0/24 via 10.5.9.0 dev flannel.1 onlink",
        ]
    )


def test_a_peer_that_went_is_three_steps_and_its_route_goes_first() -> None:
    assert text(plan(HOST, HOST | peer(9, PEER, MACS[1]), SCOPE)) == "\n".join(
        [
            "route del 10.5.9.0/24 via 10.5.9.0 dev flannel.1 onlink",
            "fdb del bb:bb:bb:bb:bb:bb dst 192.0.2.2 dev flannel.1 self permanent",
            "neigh del 10.5.9.0 lladdr bb:bb:bb:bb:bb:bb dev flannel.1 nud permanent",
        ]
    )


def test_a_peer_with_a_new_mac_is_never_without_one() -> None:
    assert text(plan(HOST | peer(9, PEER, "cc:cc:cc:cc:cc:cc"), HOST | peer(9, PEER, MACS[1]), SCOPE)) == "\n".join(
        [
            "neigh replace 10.5.9.0 lladdr cc:cc:cc:cc:cc:cc dev flannel.1 nud permanent",
            "fdb add cc:cc:cc:cc:cc:cc dst 192.0.2.2 dev flannel.1 self permanent",
            "fdb del bb:bb:bb:bb:bb:bb dst 192.0.2.2 dev flannel.1 self permanent",
        ]
    )


def test_a_peer_that_moved_is_one_step() -> None:
    steps = plan(HOST | peer(9, OTHER, MACS[1]), HOST | peer(9, PEER, MACS[1]), SCOPE)
    assert text(steps) == "fdb replace bb:bb:bb:bb:bb:bb dst 192.0.2.3 dev flannel.1 self permanent"
    assert steps[0].before == FdbEntry(MACS[1], PEER, "flannel.1")


def test_another_mtu_is_a_change_in_place() -> None:
    desired = HostState.of(vxlan(mtu=1400))
    assert [step.op for step in plan(desired, HostState.of(vxlan()))] == ["change"]


def test_a_device_that_is_remade_gets_back_everything_that_was_on_it() -> None:
    observed = HOST | peer(9, PEER, MACS[1])
    desired = HostState.of(*(vxlan(port=4789) if isinstance(item, Link) else item for item in observed))
    steps = plan(desired, observed, SCOPE)
    assert [str(step).split(" flannel.1")[0] for step in steps] == [
        "link remake",
        "addr add 10.5.72.0/32 dev",
        "neigh add 10.5.9.0 lladdr bb:bb:bb:bb:bb:bb dev",
        "fdb add bb:bb:bb:bb:bb:bb dst 192.0.2.2 dev",
        "route add 10.5.9.0/24 via 10.5.9.0 dev",
    ]
    assert after(steps, observed) == desired


def test_a_route_that_leaves_a_remade_device_is_added_for_it_went_with_the_device() -> None:
    net = IPNetwork("10.5.9.0/24")
    observed = HostState.of(vxlan(), Route(net, IPAddress("10.5.9.0"), "flannel.1", onlink=True))
    desired = HostState.of(vxlan(port=4789), Route(net, PEER, UPLINK))
    steps = plan(desired, observed, SCOPE)
    assert [step.op for step in steps] == ["remake", "add"]
    assert after(steps, observed) == desired


def test_cleaning_up_is_deleting_the_device_and_what_stands_apart() -> None:
    observed = HOST | peer(9, PEER, MACS[1]) | HostState.of(Route(IPNetwork("10.5.7.0/24"), PEER, UPLINK))
    assert [step.key for step in plan(HostState(), observed, SCOPE)] == [
        Key("route", "10.5.7.0/24"),
        Key("link", "flannel.1"),
        Key("nft", "flannelpy"),  # it guards until there is nothing left to guard
    ]


# -------------------------------------------------------------------------------------------------- what is not ours


def test_a_route_of_somebody_else_is_never_removed() -> None:
    boot = Route(IPNetwork("10.5.9.0/24"), PEER, UPLINK, proto=BOOT_PROTOCOL)
    static = Route(IPNetwork("10.5.8.0/24"), PEER, "docker0", proto=4)
    assert plan(HostState(), HostState.of(boot, static), SCOPE) == ()
    assert plan(HostState(), HostState.of(boot, static), None) == ()


def test_a_route_that_flanneld_left_on_our_device_is_removed_and_a_desired_one_adopted() -> None:
    left = Route(IPNetwork("10.5.9.0/24"), IPAddress("10.5.9.0"), "flannel.1", onlink=True, proto=BOOT_PROTOCOL)
    assert [step.op for step in plan(HostState.of(vxlan()), HostState.of(vxlan(), left), SCOPE)] == ["remove"]
    assert plan(HostState.of(vxlan()), HostState.of(vxlan(), left), None) == ()
    desired = HostState.of(vxlan(), Route(left.dst, left.via, left.dev, onlink=True))
    assert text(plan(desired, HostState.of(vxlan(), left), SCOPE)) == "route replace 10.5.9.0/24 via 10.5.9.0 dev flannel.1 onlink"


def test_a_setting_is_never_undone() -> None:
    assert not removable(Sysctl("net/ipv4/ip_forward", "1"), SCOPE)


# ------------------------------------------------------------------------------------------------------- any two states

LINKS = st.builds(
    vxlan,
    st.sampled_from(["flannel.1", "flannel.2"]),
    st.sampled_from([1400, 1450]),
    st.sampled_from([8472, 4789]),
    st.sampled_from(MACS),
)
DEVICES = st.sampled_from(["flannel.1", "flannel.2", UPLINK])
NETS = st.integers(1, 4).map(lambda third: IPNetwork(f"10.5.{third}.0/24"))
ROUTES = st.builds(Route, NETS, st.sampled_from([PEER, OTHER]), DEVICES, st.booleans())
FOREIGN = st.builds(Route, NETS, st.sampled_from([PEER, OTHER]), DEVICES, proto=st.sampled_from([BOOT_PROTOCOL, 4]))
REST = st.one_of(
    st.builds(Address, st.sampled_from([IPNetwork("10.5.72.0/32"), IPNetwork("10.5.73.0/32")]), DEVICES),
    st.builds(Neighbour, st.sampled_from([IPAddress("10.5.1.0"), IPAddress("10.5.2.0")]), st.sampled_from(MACS), DEVICES),
    st.builds(FdbEntry, st.sampled_from(MACS), st.sampled_from([PEER, OTHER]), DEVICES),
    st.builds(NftTable, st.just("flannelpy"), st.sampled_from(["a\n", "b\n"])),
    st.builds(
        Sysctl,
        st.sampled_from(["net/ipv4/ip_forward", "net/ipv6/conf/flannel.1/accept_ra", "net/ipv6/conf/flannel.2/accept_ra"]),
        st.sampled_from("01"),
    ),
)


def consistent(links: list[Object], rest: list[Object]) -> HostState:
    """What can be: one object a key, and nothing on a device that is not there."""
    found: dict[Key, Object] = {item.key: item for item in links}
    for item in rest:
        dev = device(item)
        if dev in (None, UPLINK) or Key("link", str(dev)) in found:
            found.setdefault(item.key, item)
    return HostState(found)


DESIRED = st.builds(consistent, st.lists(LINKS, max_size=2), st.lists(ROUTES | REST, max_size=10))
OBSERVED = st.builds(consistent, st.lists(LINKS, max_size=2), st.lists(ROUTES | FOREIGN | REST, max_size=10))


@given(DESIRED, OBSERVED)
@settings(max_examples=500)
def test_applied_it_is_as_desired_and_there_is_nothing_left_to_do(desired: HostState, observed: HostState) -> None:
    reached = after(plan(desired, observed, SCOPE), observed)
    assert reached.only(desired.objects) == desired
    extra = [item for item in reached if item.key not in desired]
    assert not [item for item in extra if removable(item, SCOPE)]
    assert plan(desired, reached, SCOPE) == ()


@given(DESIRED, OBSERVED)
@settings(max_examples=300)
def test_what_is_not_ours_is_still_there(desired: HostState, observed: HostState) -> None:
    reached = after(plan(desired, observed, SCOPE), observed)
    for item in observed:
        if isinstance(item, Route) and item.proto != 102 and item.dev == UPLINK and item.key not in desired:
            assert reached.get(item.key) == item


@given(DESIRED, OBSERVED, st.integers())
def test_it_does_not_matter_in_which_order_the_objects_come(desired: HostState, observed: HostState, seed: int) -> None:
    def shuffled(state: HostState) -> HostState:
        items = list(state)
        Random(seed).shuffle(items)
        return HostState.of(*items)

    steps, others = plan(desired, observed, SCOPE), plan(shuffled(desired), shuffled(observed), SCOPE)
    assert {str(step) for step in steps} == {str(step) for step in others}
    assert after(others, shuffled(observed)) == after(steps, observed)


@given(DESIRED, OBSERVED)
def test_everything_is_added_before_anything_is_removed(desired: HostState, observed: HostState) -> None:
    """But for addresses: those of a device change among themselves, new before old, before any route is looked at."""
    steps = plan(desired, observed, SCOPE)
    for kinds in ({"addr"}, {"link", "sysctl", "neigh", "fdb", "route", "nft"}):
        removals = [step.op == "remove" for step in steps if step.item.noun in kinds]
        assert removals == sorted(removals)


def test_an_old_address_goes_before_a_route_comes_that_needs_it_gone() -> None:
    """Another host has our old subnet now: a route via an address of our own is refused (EINVAL)."""
    old, new = (Address(IPNetwork(f"10.5.{number}.0/32"), "flannel.1") for number in (9, 10))
    theirs = Route(IPNetwork("10.5.9.0/24"), via=IPAddress("10.5.9.0"), dev="flannel.1", onlink=True)
    steps = plan(HostState.of(vxlan(), new, theirs), HostState.of(vxlan(), old), SCOPE)
    assert [f"{step.item.noun} {step.op}" for step in steps] == ["addr add", "addr remove", "route add"]


@given(DESIRED, OBSERVED)
def test_the_part_for_some_keys_is_the_plan_for_them(desired: HostState, observed: HostState) -> None:
    """Work proportional to the change: where no device is remade or removed, the parts add up to the whole."""
    links = [item for item in (*desired, *observed) if isinstance(item, Link)]
    if any(desired.get(link.key) != observed.get(link.key) for link in links):
        return
    keys = {*desired.objects, *observed.objects}
    whole = {str(step) for step in plan(desired, observed, SCOPE)}
    parts = {str(step) for key in keys for step in plan(desired.only([key]), observed.only([key]), SCOPE)}
    assert whole == parts


@settings(deadline=None)
@given(st.sampled_from(["bridge", "veth", "dummy", "macvlan", "vlan", "bond", "", "wlan", "vxlan", "ipip", "tun"]), st.booleans())
def test_a_device_of_a_kind_that_no_backend_makes_is_somebody_elses(kind: str, wanted: bool) -> None:
    """Whatever a state file says of its name; and so is what lives on it. One that stands where ours has to be is made anew."""
    there = Link("flannel.2", kind, 1500)
    on_it = (
        Address(IPNetwork("10.5.0.1/32"), "flannel.2"),
        Neighbour(PEER, MACS[1], "flannel.2"),
        Route(IPNetwork("10.5.7.0/24"), dev="flannel.2"),
    )
    steps = plan(HostState.of(vxlan("flannel.2")) if wanted else HostState(), HostState.of(there, *on_it), SCOPE)
    removed = {step.key for step in steps if step.op == "remove"}
    if wanted:
        assert [step.op for step in steps if step.key == there.key] == ["remake"]
    elif kind in ("vxlan", "ipip", "tun"):
        assert removed == {there.key}  # what lives on it goes with it
    else:
        assert steps == ()
