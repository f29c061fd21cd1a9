"""``flannelpy lease``: what is shown, what is written to a real etcd, and what is refused with one line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from netaddr import IPAddress, IPNetwork

from flannelpy.commands import leases, leases_text
from flannelpy.commands.reservations import Subnets, release, reserve
from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import ConflictError, FlannelpyError, UsageError
from flannelpy.core.model import NO_ADDRESS, Lease, LeaseAttrs
from flannelpy.host.state import State
from flannelpy.host.state import write as write_state
from flannelpy.registry.memory import MemoryRegistry, MemoryStore
from netns_lab.etcd import Etcd

from .test_cli import Outcome, Person

PREFIX = "/coreos.com/network"
NETWORK = '{"Network":"10.5.0.0/16","SubnetMax":"10.5.99.0","Backend":{"Type":"vxlan"}}'
DUAL = '{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}'


@pytest.fixture(scope="module")
def started() -> Iterator[Etcd]:
    with Etcd() as running:
        yield running


@pytest.fixture
def etcd(started: Etcd) -> Iterator[Etcd]:
    started.put(f"{PREFIX}/config", NETWORK)
    yield started
    started.ctl("del", "--prefix", PREFIX)


class Operator(Person):
    """Types ``flannelpy lease`` at this etcd; its host has told nothing unless ``subnet_file`` says so."""

    urls = ""
    subnet_file = Path()

    def leases(self, *words: str) -> Outcome:
        return self.types("lease", *words, FLANNELPY_ETCD_ENDPOINTS=self.urls, FLANNELPY_SUBNET_FILE=str(self.subnet_file))

    def shown(self) -> list[str]:
        said = self.leases("list")
        assert (said.code, said.err) == (0, "")
        return [" ".join(line.split()) for line in said.out.splitlines()]


@pytest.fixture
def operator(etcd: Etcd, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Operator:
    person = Operator(monkeypatch, capsys)
    person.urls = ",".join(etcd.urls)
    person.subnet_file = tmp_path / "subnet.env"
    return person


def vxlan(address: str, mac: str = "02:00:00:00:00:01", backend: str = "vxlan") -> str:
    data = f'"BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}'
    return f'{{"PublicIP":"{address}","PublicIPv6":null,"BackendType":"{backend}",{data}}}'


def put(etcd: Etcd, subnet: str, value: str, *, ttl_s: int = 86_400) -> int:
    """What a node does; the id of its etcd lease, 0 for none."""
    words: list[str] = []
    lease = 0
    if ttl_s:
        lease = int(etcd.ctl("lease", "grant", str(ttl_s)).split()[1], 16)
        words = [f"--lease={lease:x}"]
    etcd.ctl("put", *words, "--", key(subnet), value)
    return lease


def key(subnet: str) -> str:
    return f"{PREFIX}/subnets/{subnet.replace('/', '-')}"


def record(etcd: Etcd, subnet: str) -> dict[str, int]:
    found = json.loads(etcd.ctl("get", "-w", "json", key(subnet))).get("kvs", [{}])
    return {name: value for name, value in found[0].items() if isinstance(value, int)}


# ------------------------------------------------------------------------------------------------------------------ list


def test_an_empty_registry_is_one_line(operator: Operator) -> None:
    assert operator.leases("list") == Outcome(0, "no leases; 10.5.0.0/16: 99 of 99 subnets are free\n", "")


def test_no_config_and_no_leases_is_one_line(operator: Operator, etcd: Etcd) -> None:
    etcd.delete(f"{PREFIX}/config")
    said = operator.leases("list")
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith(f"flannelpy: no leases, and no network: the config at {PREFIX}/config is missing: expected JSON")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("whom", "found"),
    [
        ("10.5.3.7", ["10.5.3.0/24"]),
        ("10.5.3.0/24", ["10.5.3.0/24"]),
        ("10.5.0.0/16", ["10.5.3.0/24", "10.5.20.0/24"]),
        ("192.0.2.20", ["10.5.20.0/24"]),
        ("192.0.2.0/24", ["10.5.3.0/24", "10.5.20.0/24"]),
    ],
)
def test_an_address_or_a_subnet_says_who_has_it(operator: Operator, etcd: Etcd, whom: str, found: list[str]) -> None:
    put(etcd, "10.5.20.0/24", vxlan("192.0.2.20", "02:00:00:00:00:20"))
    put(etcd, "10.5.3.0/24", vxlan("192.0.2.3", "02:00:00:00:00:03"))
    said = operator.leases("list", whom)
    assert (said.code, said.err) == (0, "")
    assert [line.split()[0] for line in said.out.splitlines()[1:]] == found


def test_who_has_what_nobody_has(operator: Operator, etcd: Etcd) -> None:
    put(etcd, "10.5.3.0/24", vxlan("192.0.2.3"))
    nobody = "flannelpy: 10.5.4.7: nobody has it; flannelpy lease list shows all\n"
    assert operator.leases("list", "10.5.4.7") == Outcome(1, "", nobody)
    nobody = "flannelpy: h1: nobody calls himself so; flannelpy lease list shows all\n"
    assert operator.leases("list", "h1") == Outcome(1, "", nobody)


@pytest.mark.parametrize("whom", ["10.5.9.300", "10.5.9.0/33", "h_1", "h1.", "-h", "h" * 64, "a\x1b[2J", ""])
def test_what_is_neither_address_nor_name_is_wrong_usage(operator: Operator, whom: str) -> None:
    said = operator.leases("list", "--", whom)
    expected = ": expected an address or a subnet, like 10.5.9.7 or 10.5.9.0/24, or a host's name\n"
    assert (said.code, said.out, said.err.endswith(expected), said.err.count("\n")) == (2, "", True, 1)


def called(etcd: Etcd, subnet: str, name: str) -> None:
    """What a host says beside its lease, which is there."""
    address = json.loads(etcd.ctl("get", "--print-value-only", key(subnet)))["PublicIP"]
    value = json.dumps({"PublicIP": address, "Hostname": name, "Carriers": {}})
    etcd.put(f"{PREFIX}/flannelpy/hosts/{subnet.replace('/', '-')}", value)


@pytest.mark.parametrize(("whom", "found"), [("h2", ["10.5.3.0/24", "10.5.4.0/24"]), ("H3", ["10.5.20.0/24"])])
def test_a_name_that_one_host_has_says_who_it_is(operator: Operator, etcd: Etcd, whom: str, found: list[str]) -> None:
    for subnet, address, name in (("10.5.3.0/24", 3, "h2"), ("10.5.4.0/24", 3, "h2"), ("10.5.20.0/24", 20, "h3")):
        put(etcd, subnet, vxlan(f"192.0.2.{address}", f"02:00:00:00:00:{subnet.split('.')[2]:>02}"))
        called(etcd, subnet, name)
    said = operator.leases("list", whom)
    assert (said.code, said.err) == (0, "")
    assert [line.split()[1] for line in said.out.splitlines()[1:]] == found
    assert [row["subnet"] for row in json.loads(operator.leases("list", whom, "--json").out)["leases"]] == found


def test_a_name_of_several_hosts_is_nobodys(operator: Operator, etcd: Etcd) -> None:
    for number in (3, 20):
        put(etcd, f"10.5.{number}.0/24", vxlan(f"192.0.2.{number}", f"02:00:00:00:00:{number:02}"))
        called(etcd, f"10.5.{number}.0/24", "h2")
    said = "flannelpy: 'h2': 2 hosts call themselves so: expected one of their addresses, 192.0.2.3, 192.0.2.20\n"
    assert operator.leases("list", "h2") == Outcome(2, "", said)


def test_a_bad_config_leaves_the_leases_unjudged(operator: Operator, etcd: Etcd) -> None:
    etcd.put(f"{PREFIX}/config", "{")
    put(etcd, "10.5.9.0/24", vxlan("192.0.2.9"))
    said = operator.leases("list")
    assert said.code == 0
    assert "10.5.9.0/24" in said.out
    assert said.err.startswith(f"flannelpy: warning: the config at {PREFIX}/config: ")
    assert said.err.endswith("; the leases are shown as they are\n")


def test_the_table_shows_who_holds_what_until_when(operator: Operator, etcd: Etcd) -> None:
    put(etcd, "10.5.20.0/24", vxlan("192.0.2.20", "02:00:00:00:00:20"))
    put(etcd, "10.5.3.0/24", vxlan("192.0.2.3", "02:00:00:00:00:03"), ttl_s=3 * 3600 + 60)
    put(etcd, "10.5.7.0/24", '{"PublicIP":"192.0.2.7"}', ttl_s=0)
    operator.subnet_file.write_text("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.20.1/24\n")
    head, *lines = operator.shown()
    assert head == "subnet PublicIP backend data lease created"
    created = [str(record(etcd, subnet)["create_revision"]) for subnet in ("10.5.3.0/24", "10.5.7.0/24", "10.5.20.0/24")]
    assert lines == [
        f"10.5.3.0/24 192.0.2.3 vxlan VNI 1, 02:00:00:00:00:03 3 h {created[0]}",
        f"10.5.7.0/24 192.0.2.7 waits for its host reservation {created[1]}",
        f"10.5.20.0/24 192.0.2.20 vxlan VNI 1, 02:00:00:00:00:20 23 h 59 min {created[2]} this host",
        "10.5.0.0/16: 96 of 99 subnets are free",
    ]


def test_what_is_wrong_is_said_beside_it(operator: Operator, etcd: Etcd) -> None:
    put(etcd, "10.5.8.0/23", vxlan("192.0.2.8"))
    put(etcd, "10.5.9.0/24", vxlan("192.0.2.9"))
    put(etcd, "10.7.1.0/24", vxlan("192.0.2.10"))
    put(etcd, "10.5.30.0/24", vxlan("192.0.2.30", backend="host-gw"))
    put(etcd, "10.5.40.0/24", vxlan("192.0.2.40", "02:00:00:00:00:40"))
    put(etcd, "10.5.41.0/24", vxlan("192.0.2.40", "02:00:00:00:00:41"))
    put(etcd, "10.5.45.0/24", vxlan("192.0.2.45"))
    put(etcd, "10.5.46.0/24", vxlan("192.0.2.46", "no MAC"))
    put(etcd, "10.5.50.0/24", "\x1b[2Jno")
    etcd.put(f"{PREFIX}/subnets/oops", vxlan("192.0.2.50"))
    said = {line.split()[0]: line for line in operator.shown()}
    assert not said["10.5.8.0/23"].endswith("older")
    assert said["10.5.9.0/24"].endswith("overlaps the older lease 10.5.8.0/23 at 192.0.2.8")
    assert said["10.7.1.0/24"].endswith("lies outside the network 10.5.0.0/16")
    assert said["10.5.30.0/24"].endswith("its backend is host-gw, ours is vxlan")
    assert said["10.5.40.0/24"].endswith("192.0.2.40 holds 10.5.41.0/24 too")
    assert said["10.5.45.0/24"].endswith("has the identity 02:00:00:00:00:01 of the older lease 10.5.8.0/23 at 192.0.2.8")
    assert "BackendData.VtepMAC" in said["10.5.46.0/24"]
    assert said["10.5.41.0/24"].endswith("192.0.2.40 holds 10.5.40.0/24 too")
    assert "value of '10.5.50.0-24': not JSON" in said["10.5.50.0-24"]
    assert "'oops' is not a subnet key: expected a form like" in said["oops"]
    # 8.0/23 takes two, 9.0/24 one of them; 10.7.1.0/24 takes none of the pool's, what cannot be read neither
    assert operator.shown()[-1] == "10.5.0.0/16: 92 of 99 subnets are free"


def test_json_is_for_programs(operator: Operator, etcd: Etcd) -> None:
    put(etcd, "10.5.9.0/24", vxlan("192.0.2.9"))
    put(etcd, "10.5.10.0/24", vxlan("192.0.2.10"), ttl_s=0)
    etcd.put(f"{PREFIX}/subnets/oops", "1")
    said = operator.leases("list", "--json")
    assert (said.code, said.err) == (0, "")
    told = json.loads(said.out)
    assert told["pools"] == [{"network": "10.5.0.0/16", "subnetLen": 24, "free": 97, "total": 99}]
    first, second = told["leases"]
    assert 86_000 < first.pop("secondsLeft") <= 86_400
    assert first == {
        "key": "10.5.9.0-24",
        "subnet": "10.5.9.0/24",
        "subnet6": None,
        **json.loads(vxlan("192.0.2.9")),
        "reservation": False,
        "createRevision": record(etcd, "10.5.9.0/24")["create_revision"],
        "modRevision": record(etcd, "10.5.9.0/24")["mod_revision"],
        "thisHost": False,
        "wrong": [],
    }
    assert (second["reservation"], second["secondsLeft"]) == (True, None)
    assert [bad["key"] for bad in told["malformed"]] == ["oops"]


async def test_the_times_are_asked_for_at_once_and_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(MemoryRegistry):
        open = most = 0

        async def remaining(self, lease: Lease) -> float:
            self.open += 1
            self.most = max(self.most, self.open)
            if lease.subnet == IPNetwork("10.5.7.0/24"):
                await asyncio.Event().wait()
            await asyncio.sleep(0)
            self.open -= 1
            return await super().remaining(lease)

    monkeypatch.setattr(leases, "ASKED_WITHIN_S", 0.2)
    monkeypatch.setattr(leases, "ASKED_AT_ONCE", 8)
    registry = Slow(MemoryStore())
    for number in range(40):
        await registry.create(IPNetwork(f"10.5.{number}.0/24"), LeaseAttrs(IPAddress("192.0.2.9")), ttl_s=60)
    left = await leases.ask_time_left(registry, (await registry.snapshot()).leases)
    assert len(left) == 39
    assert set(left.values()) == {60.0}
    assert registry.most == 8
    registry.down = True
    assert (
        await leases.ask_time_left(registry, [Lease(IPNetwork("10.5.1.0/24"), LeaseAttrs(IPAddress("192.0.2.9")), None, 7)]) == {}
    )


def test_data_are_told_in_short() -> None:
    assert leases_text.in_short({"VNI": 1, "VtepMAC": "aa", "More": [1, {"x": None}]}) == 'VNI 1, aa, More [1,{"x":null}]'
    assert leases_text.in_short("x" * 100) == "x" * 57 + "..."


# --------------------------------------------------------------------------------------------------------------- reserve


def test_a_free_subnet_is_reserved_with_the_smallest_value(operator: Operator, etcd: Etcd) -> None:
    said = operator.leases("reserve", "10.5.9.0/24", "--public-ip", "192.0.2.9")
    assert said == Outcome(0, "reserved 10.5.9.0/24 for 192.0.2.9; it does not expire\n", "")
    assert etcd.get(key("10.5.9.0/24")) == '{"PublicIP":"192.0.2.9","PublicIPv6":null}'
    assert "lease" not in record(etcd, "10.5.9.0/24")
    again = operator.leases("reserve", "10.5.9.0/24")
    assert again == Outcome(0, "10.5.9.0/24 is reserved for 192.0.2.9 already\n", "")


def test_a_leased_subnet_is_pinned_to_its_holder(operator: Operator, etcd: Etcd) -> None:
    put(etcd, "10.5.9.0/24", vxlan("192.0.2.9"))
    said = operator.leases("reserve", "10.5.9.0/24")
    assert said == Outcome(0, "10.5.9.0/24 stays with 192.0.2.9: its lease is a reservation now and does not expire\n", "")
    assert etcd.get(key("10.5.9.0/24")) == vxlan("192.0.2.9")
    assert "lease" not in record(etcd, "10.5.9.0/24")


def test_a_leased_subnet_is_not_taken_from_its_holder(operator: Operator, etcd: Etcd) -> None:
    lease = put(etcd, "10.5.9.0/24", vxlan("192.0.2.9"))
    said = operator.leases("reserve", "10.5.9.0/24", "--public-ip=192.0.2.77")
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("flannelpy: 10.5.9.0/24 is held by 192.0.2.9, not 192.0.2.77; nothing was written")
    assert record(etcd, "10.5.9.0/24")["lease"] == lease


def test_a_host_that_holds_another_lease_is_told_of(operator: Operator, etcd: Etcd) -> None:
    put(etcd, "10.5.4.0/24", vxlan("192.0.2.9"))
    said = operator.leases("reserve", "10.5.9.0/24", "--public-ip=192.0.2.9")
    assert said.code == 0
    assert said.out.splitlines()[1] == "192.0.2.9 holds 10.5.4.0/24 now; its agent takes the reserved one when it is restarted"
    second = operator.leases("reserve", "10.5.10.0/24", "--public-ip=192.0.2.9")
    assert (second.code, second.out) == (1, "")
    assert "192.0.2.9 has a reservation already, 10.5.9.0/24; nothing was written" in second.err
    assert operator.leases("reserve", "10.5.4.0/24").code == 1, "pinning is a second reservation too"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("10.5.9.0/24",), 2, "--public-ip: expected the address of the host that 10.5.9.0/24 is for, because nobody holds it"),
        (("10.5.9.0",), 2, "SUBNET '10.5.9.0': expected a form like 10.5.9.0/24 or fd00:5::/64"),
        (("10.5.9.0/33", "--public-ip=192.0.2.9"), 2, "SUBNET '10.5.9.0/33': expected a form like 10.5.9.0/24 or fd00:5::/64"),
        (("10.5.9.0/24,10.5.8.0/24",), 2, "SUBNET '10.5.9.0/24,10.5.8.0/24': expected one subnet, or one of each family"),
        (("10.5.9.0/24", "--public-ip=x"), 2, "--public-ip 'x': expected an IPv4 address"),
        (("10.5.9.0/24", "--public-ip=224.0.0.1"), 2, "--public-ip '224.0.0.1': expected an address of one host"),
        ((), 2, "Missing argument 'SUBNET'"),
        (("10.5.9.0/25",), 1, "10.5.9.0/25: expected a /24, the SubnetLen of this network; nothing was written"),
        (("10.6.9.0/24",), 1, "10.6.9.0/24: lies outside the network 10.5.0.0/16; nothing was written"),
        (("10.5.9.7/24",), 1, "10.5.9.7/24: has host bits: expected 10.5.9.0/24; nothing was written"),
        (
            ("10.5.200.0/24",),
            1,
            "10.5.200.0/24: expected one from 10.5.1.0 to 10.5.99.0 (SubnetMin to SubnetMax); nothing was written",
        ),
        (("fd00:5::/64",), 1, "fd00:5::/64: expected an IPv4 subnet with it, like 10.5.1.0/24; nothing was written"),
        (("10.5.9.0/24,fd00:5::/64",), 1, "fd00:5::/64: the network has no IPv6 subnets; nothing was written"),
    ],
)
def test_what_cannot_be_reserved_is_one_line(operator: Operator, etcd: Etcd, words: tuple[str, ...], code: int, said: str) -> None:
    assert operator.leases("reserve", *words) == Outcome(code, "", f"flannelpy: {said}\n")
    assert etcd.keys(f"{PREFIX}/subnets") == []


def test_the_environment_does_not_say_whose_the_reservation_is(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLANNELPY_PUBLIC_IP", "192.0.2.1")
    assert operator.leases("reserve", "10.5.9.0/24").code == 2


def test_an_overlap_is_refused(operator: Operator, etcd: Etcd) -> None:
    put(etcd, "10.5.8.0/23", vxlan("192.0.2.8"))
    said = operator.leases("reserve", "10.5.9.0/24", "--public-ip=192.0.2.9")
    assert said == Outcome(1, "", "flannelpy: 10.5.9.0/24 overlaps the lease 10.5.8.0/23 at 192.0.2.8; nothing was written\n")


def test_without_a_config_nothing_is_reserved(operator: Operator, etcd: Etcd) -> None:
    etcd.delete(f"{PREFIX}/config")
    said = operator.leases("reserve", "10.5.9.0/24", "--public-ip=192.0.2.9")
    assert said == Outcome(1, "", f"flannelpy: no config at {PREFIX}/config; flannelpy config put FILE writes one\n")


async def test_who_moves_meanwhile_is_not_written_over() -> None:
    """The lease is renewed between the listing and the write."""

    class Moving(MemoryRegistry):
        async def renew(self, lease: Lease, attrs: LeaseAttrs, *, ttl_s: int = 60) -> Lease:
            self.store.put(self.keys.lease(lease.key), attrs.to_json())
            return await super().renew(lease, attrs, ttl_s=ttl_s)

        async def release(self, lease: Lease) -> None:
            raise ConflictError("moved")

    registry = Moving(MemoryStore())
    await registry.put_config(NETWORK)
    await registry.create(IPNetwork("10.5.9.0/24"), LeaseAttrs(IPAddress("192.0.2.9")), ttl_s=60)
    with pytest.raises(FlannelpyError, match="somebody changed it meanwhile; nothing was written, try again"):
        await reserve(registry, Subnets.parse("10.5.9.0/24"), None, "config")
    with pytest.raises(FlannelpyError, match="somebody changed it meanwhile"):
        await release(registry, Subnets.parse("10.5.9.0/24"), None, "config")


async def test_both_families_are_one_key() -> None:
    registry = MemoryRegistry(MemoryStore())
    await registry.put_config(DUAL)
    wanted = Subnets.parse("10.5.9.0/24,fd00:5:0:9::/64")
    host = LeaseAttrs(IPAddress("192.0.2.9"))
    assert await reserve(registry, wanted, host, "config") == [
        "reserved 10.5.9.0/24,fd00:5:0:9::/64 for 192.0.2.9; it does not expire"
    ]
    (made,) = (await registry.snapshot()).leases
    assert made.key == "10.5.9.0-24&fd00:5:0:9::-64"
    assert Subnets.parse(made.key) == wanted
    with pytest.raises(FlannelpyError, match="expected an IPv6 subnet with it"):
        await reserve(registry, Subnets.parse("10.5.10.0/24"), host, "config")
    assert (await release(registry, Subnets.parse("fd00:5:0:9::/64"), None, "config"))[0].startswith("released 10.5.9.0/24,fd00:5")
    assert (await registry.snapshot()).leases == ()


V6_ALONE = '{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}'
SIX, NINE = IPAddress("2001:db8::9"), IPAddress("192.0.2.9")


@pytest.mark.parametrize(
    ("config", "wanted", "host", "kept"),
    [
        (NETWORK, "10.5.9.0/24", LeaseAttrs(NO_ADDRESS, SIX), "--public-ip: expected the host's IPv4 address"),
        (DUAL, "10.5.9.0/24,fd00:5:0:9::/64", LeaseAttrs(NO_ADDRESS, SIX), "--public-ip: expected the host's IPv4 address"),
        (DUAL, "10.5.9.0/24,fd00:5:0:9::/64", LeaseAttrs(NINE, SIX), LeaseAttrs(NINE, SIX)),
        (V6_ALONE, "fd00:5:0:9::/64", LeaseAttrs(NINE), "--public-ipv6: expected the host's IPv6 address"),
        (V6_ALONE, "fd00:5:0:9::/64", LeaseAttrs(NINE, SIX), LeaseAttrs(NO_ADDRESS, SIX)),
    ],
)
async def test_a_reservation_is_one_that_the_hosts_agent_knows(
    config: str, wanted: str, host: LeaseAttrs, kept: LeaseAttrs | str
) -> None:
    registry = MemoryRegistry(MemoryStore())
    await registry.put_config(config)
    if isinstance(kept, str):
        with pytest.raises(UsageError, match=kept):
            await reserve(registry, Subnets.parse(wanted), host, "config")
        assert (await registry.snapshot()).leases == ()
        return
    await reserve(registry, Subnets.parse(wanted), host, "config")
    assert [lease.attrs for lease in (await registry.snapshot()).leases] == [kept]
    again = await reserve(registry, Subnets.parse(wanted), host, "config")
    assert again[0].endswith("already")


@pytest.mark.parametrize("text", ["", ",", "x/24", "10.5.9.0/-1", "10.5.9/24", "10.5.9.0/24/24", "10.5.9.0/ 24", "::1"])
def test_what_is_no_subnet_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError, match="expected a form like"):
        Subnets.parse(text)


# --------------------------------------------------------------------------------------------------------------- release


def test_a_named_lease_is_released_and_its_etcd_lease_is_left_to_end(operator: Operator, etcd: Etcd) -> None:
    lease = put(etcd, "10.5.9.0/24", vxlan("192.0.2.9"))
    said = operator.leases("release", "10.5.9.0/24")
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines() == [
        "released 10.5.9.0/24; it was leased by 192.0.2.9",
        "an agent that still runs at 192.0.2.9 takes it again at once: stop it first, or stop it with --release-on-exit",
    ]
    assert etcd.keys(f"{PREFIX}/subnets") == []
    assert f"{lease:x}" in etcd.ctl("lease", "list")  # which tells every agent that the key was deleted and has not expired


def test_without_a_name_it_is_this_hosts(operator: Operator, etcd: Etcd) -> None:
    put(etcd, "10.5.9.0/24", vxlan("192.0.2.9"))
    put(etcd, "10.5.10.0/24", vxlan("192.0.2.10"), ttl_s=0)
    operator.subnet_file.write_text("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.10.1/24\n")
    said = operator.leases("release")
    assert said.out.startswith("released 10.5.10.0/24; it was reserved for 192.0.2.10\n")
    assert etcd.keys(f"{PREFIX}/subnets") == [key("10.5.9.0/24")]


@pytest.mark.parametrize(
    ("kept", "released"),
    [
        ({"address": "192.0.2.10"}, True),
        ({"address": "192.0.2.66"}, False),
        ({"address": "192.0.2.66", "prefix": "/another"}, True),
        ({"address": ""}, True),
        (None, True),
    ],
)
def test_without_a_name_another_hosts_lease_stays(
    operator: Operator, etcd: Etcd, tmp_path: Path, kept: dict[str, str] | None, released: bool
) -> None:
    """The subnet file is an old one; what the agent has published last tells, where that was kept."""
    put(etcd, "10.5.10.0/24", vxlan("192.0.2.10"))
    operator.subnet_file.write_text("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.10.1/24\n")
    if kept is not None:
        write_state(tmp_path, State(**{"prefix": PREFIX, **kept}))
    said = operator.leases("release", f"--state-dir={tmp_path}", f"--etcd-prefix={PREFIX}")
    assert etcd.keys(f"{PREFIX}/subnets") == ([] if released else [key("10.5.10.0/24")])
    assert said.code == (0 if released else 1)
    if not released:
        assert said.err == (
            f"flannelpy: {operator.subnet_file}: 10.5.10.0/24 at 192.0.2.10 is another host's by now, this one last published "
            "192.0.2.66; name the SUBNET to release it\n"
        )
        assert operator.leases("release", "10.5.10.0/24").code == 0


def test_a_subnet_file_of_another_network_releases_nothing(operator: Operator, etcd: Etcd) -> None:
    put(etcd, "10.5.9.0/24", vxlan("192.0.2.9"))
    operator.subnet_file.write_text("FLANNEL_NETWORK=10.0.0.0/8\nFLANNEL_SUBNET=10.5.9.1/24\n")
    said = operator.leases("release")
    assert (said.code, said.out) == (1, "")
    assert "it is of the network 10.0.0.0/8, the one in etcd is 10.5.0.0/16; name the SUBNET to release" in said.err
    assert etcd.keys(f"{PREFIX}/subnets") == [key("10.5.9.0/24")]


def test_without_a_subnet_file_the_subnet_has_to_be_named(operator: Operator) -> None:
    said = operator.leases("release")
    assert (said.code, said.out) == (1, "")
    assert said.err.endswith("subnet.env names no subnet of this host; name the one to release: flannelpy lease release SUBNET\n")


def test_a_subnet_that_nobody_holds(operator: Operator, etcd: Etcd) -> None:
    assert operator.leases("release", "10.5.9.0/24") == Outcome(
        1, "", "flannelpy: 10.5.9.0/24: no such lease, there is none at all\n"
    )
    put(etcd, "10.5.8.0/24", vxlan("192.0.2.8"))
    put(etcd, "10.5.90.0/24", vxlan("192.0.2.90"))
    said = operator.leases("release", "10.5.9.0/24")
    nearest = "the nearest is 10.5.8.0/24 at 192.0.2.8; flannelpy lease list shows all"
    assert said == Outcome(1, "", f"flannelpy: 10.5.9.0/24: no such lease; {nearest}\n")
    said = operator.leases("release", "10.5.90.0/25")
    assert said == Outcome(1, "", "flannelpy: 10.5.90.0/25: no such lease; 10.5.90.0/24 at 192.0.2.90 overlaps it\n")


def test_a_lease_that_cannot_be_read_can_be_deleted(operator: Operator, etcd: Etcd) -> None:
    put(etcd, "10.5.9.0/24", "nonsense")
    refused = operator.leases("reserve", "10.5.9.0/24", "--public-ip=192.0.2.9")
    assert refused.code == 1
    assert refused.err.endswith("; flannelpy lease release 10.5.9.0/24 deletes it\n")
    said = operator.leases("release", "10.5.9.0/24")
    assert said == Outcome(0, "deleted 10.5.9.0/24, whose value could not be read\n", "")
    assert etcd.keys(f"{PREFIX}/subnets") == []


@pytest.mark.parametrize("words", [("list",), ("reserve", "10.5.9.0/24"), ("release", "10.5.9.0/24")])
def test_an_etcd_that_is_not_there_is_one_line(operator: Operator, words: tuple[str, ...]) -> None:
    operator.urls = "http://127.0.0.1:1"
    said = operator.leases(*words)
    assert (said.code, said.out, said.err.count("\n")) == (1, "", 1)


def test_each_family_has_its_own_room() -> None:
    taken = Lease(IPNetwork("10.5.9.0/24"), LeaseAttrs(IPAddress("192.0.2.9")), IPNetwork("fd00:5:0:9::/64"), 1, 2, 2)
    listing = leases.put_together(leases.Snapshot((taken,), 2), {}, NetworkConfig.parse(DUAL), None, [])
    assert [str(room) for room in listing.rooms] == [
        "10.5.0.0/16: 254 of 255 subnets are free",
        "fd00:5::/48: 65,534 of 65,535 subnets are free",
    ]
