"""ipsec: what it publishes and wants of the kernel, and how charon is told, kept up and ended. With a kernel: tests/kernels."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from netaddr import IPAddress, IPNetwork

from backends.ipsec import Ipsec, charon, datapath, vici
from backends.ipsec.datapath import CharonDatapath
from backends.ipsec.terms import Own, connection, fingerprint, name, shared
from flannelpy import plugins
from flannelpy.commands.leftovers import Known, Places
from flannelpy.commands.litter import litter
from flannelpy.core.backend import Enclosed, Local, NoFdStore, Uplink
from flannelpy.core.config import NetworkConfig
from flannelpy.core.dialect import lines as typed
from flannelpy.core.errors import BackendError, ConfigError
from flannelpy.core.model import NO_ADDRESS, Lease, LeaseAttrs
from flannelpy.core.moving import beside
from flannelpy.core.objects import HostState, Scope
from flannelpy.core.plan import plan, text
from flannelpy.host.state import State
from flannelpy.registry.memory import MemoryStore

from . import fake_charon
from .agents import HostInMemory, until

PSK = "k3y-" * 24
CONFIG = NetworkConfig.parse(json.dumps({"Network": "10.5.0.0/16", "Backend": {"Type": "ipsec", "PSK": PSK}}))
US, PUBLIC = IPAddress("192.0.2.1"), IPAddress("203.0.113.1")
OWN = Lease(IPNetwork("10.5.72.0/24"), LeaseAttrs(US, backend_type="ipsec"))


def local(mtu: int = 1500, public: IPAddress | None = US, run_dir: str = "", interface: str = "eth1") -> Local:
    return Local(CONFIG, Uplink(interface, 2, mtu, US, public_ip=public), OWN, run_dir=run_dir)


def peer(number: int = 9, at: str = "") -> Lease:
    attrs = LeaseAttrs(IPAddress(at or f"192.0.2.{number}"), backend_type="ipsec")
    return Lease(IPNetwork(f"10.5.{number}.0/24"), attrs)


def backend(**options: object) -> Ipsec:
    return Ipsec.from_options({"PSK": PSK, **options})


def lines(state: HostState) -> list[str]:
    return [f"{item.noun} {item}" for item in state]


# ----------------------------------------------------------------------------------------------------- what is desired


def test_what_is_published_byte_for_byte() -> None:
    found = plugins.load(CONFIG)
    assert found.name == "ipsec"
    assert found.attrs(local()).to_json() == '{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"ipsec"}'
    assert '"PublicIP":"203.0.113.1"' in found.attrs(local(public=PUBLIC)).to_json()
    with pytest.raises(ConfigError, match="has no IPv4 address: expected one, for ipsec"):
        found.attrs(local(public=None))


def test_a_peer_is_three_policies_and_a_route() -> None:
    assert lines(backend().path(peer(), local()).state) == [
        "xfrm src 10.5.72.0/24 dst 10.5.9.0/24 dir out tmpl src 192.0.2.1 dst 192.0.2.9 proto esp reqid 11 mode tunnel",
        "xfrm src 10.5.9.0/24 dst 10.5.72.0/24 dir in tmpl src 192.0.2.9 dst 192.0.2.1 proto esp reqid 11 mode tunnel",
        "xfrm src 10.5.9.0/24 dst 10.5.72.0/24 dir fwd tmpl src 192.0.2.9 dst 192.0.2.1 proto esp reqid 11 mode tunnel",
        "route 10.5.9.0/24 dev eth1 scope link",
    ]
    assert lines(backend().host(local())) == []
    nowhere = Local(CONFIG, Uplink("uplink", 0, 1500))  # of whoever only reads the leases
    assert lines(backend().path(peer(), nowhere).state) == []
    for nobody in (replace(peer(), attrs=LeaseAttrs(NO_ADDRESS)), replace(peer(), subnet=IPNetwork("0.0.0.0/0"))):
        assert lines(backend().path(nobody, local()).state) == []


def test_behind_nat_packets_leave_with_the_interfaces_address() -> None:
    assert "tmpl src 192.0.2.1 dst 192.0.2.9" in lines(backend().path(peer(), local(public=PUBLIC)).state)[0]


def test_policies_come_before_the_route_and_go_after_it() -> None:
    state = backend().path(peer(), local()).state
    words = [line.split()[0] for line in text(plan(state, HostState())).splitlines()]
    assert words == ["xfrm"] * 3 + ["route"]
    scope = Scope(networks=CONFIG.networks, uplink="eth1", policies=True)
    assert [line.split()[0] for line in text(plan(HostState(), state, scope)).splitlines()] == ["route"] + ["xfrm"] * 3
    assert typed(plan(HostState(), state, scope))[-1].startswith("ip xfrm policy delete src 10.5.")


@pytest.mark.parametrize(("options", "uplink", "mtu"), [({}, 1500, 1423), ({"UDPEncap": True}, 1500, 1415), ({}, 9000, 8923)])
def test_the_mtu_is_flannels(options: dict[str, object], uplink: int, mtu: int) -> None:
    assert backend(**options).mtu(local(uplink)) == mtu
    assert backend(**options).path(peer(), local(uplink)).mtu == mtu


def test_an_uplink_that_leaves_nothing_is_refused() -> None:
    assert backend().mtu(local(145)) == 68
    with pytest.raises(ConfigError, match="MTU 144 of the underlay leaves 67 bytes for IPv4: at least 68 are needed"):
        backend().mtu(local(144))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, r"Backend\.PSK is missing: expected 96 characters or more"),
        ({"PSK": ""}, r"Backend\.PSK is missing: expected 96 characters or more"),
        ({"PSK": "x" * 95}, r"PSK .*96 characters or more \(openssl rand -hex 48\)"),
        ({"PSK": 5}, "PSK"),
        ({"PSK": PSK, "UDPEncap": "yes"}, "UDPEncap"),
        (
            {"PSK": PSK, "ESPProposal": "aes 128"},
            "ESPProposal .*one proposal of strongSwan, such as aes128gcm16-sha256-prfsha256-ecp256",
        ),
        ({"PSK": PSK, "ESPProposal": "aes256;x"}, "ESPProposal"),
        ({"PSK": PSK, "ESPProposal": ["aes256"]}, "ESPProposal"),
    ],
)
def test_an_option_that_cannot_be_is_refused_and_no_key_is_shown(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        Ipsec.from_options(options)
    assert "xxx" not in str(caught.value)
    assert PSK not in str(caught.value)


def test_the_key_is_shown_nowhere() -> None:
    found, here = backend(), local()
    assert PSK not in repr(found.terms)
    assert PSK not in repr(vars(found)) + repr(found.attrs(here)) + repr(found.path(peer(), here)) + repr(CONFIG)
    assert PSK not in json.dumps(connection(Own.of(here), peer(), found.terms))
    assert PSK not in charon.configuration(Path("/run/flannelpy/ipsec"), "eth1")


def test_two_bytes_of_a_letter_count_twice_as_in_flannel() -> None:
    assert Ipsec.from_options({"PSK": "ü" * 48}).terms.psk.reveal() == "ü" * 48


def test_ipv6_is_leased_and_no_more() -> None:
    dual = NetworkConfig.parse(
        json.dumps(
            {"Network": "10.5.0.0/16", "IPv6Network": "fd00::/48", "EnableIPv6": True, "Backend": {"Type": "ipsec", "PSK": PSK}}
        )
    )
    assert plugins.lease_only(dual, plugins.load(dual)) == {6: "ipsec carries IPv4 only: its IPv6 subnets are no more than leased"}
    six = replace(peer(), subnet6=IPNetwork("fd00:0:0:9::/64"))
    assert lines(backend().path(six, local()).state) == lines(backend().path(peer(), local()).state)


def test_its_policies_take_all_packets_so_that_no_other_carrier_stands_beside_it() -> None:
    assert not isinstance(backend(), Enclosed)
    other = plugins.load(NetworkConfig.parse('{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}'))
    assert not beside(backend(), other)
    assert not beside(other, backend())


# ------------------------------------------------------------------------------------------------------ what charon is told


def test_a_connection_is_flannels() -> None:
    own, terms = Own.of(local()), backend().terms
    assert connection(own, peer(), terms) == {
        "flannel-10.5.9.0-24-192.0.2.9": {
            "version": "2",
            "local_addrs": ["192.0.2.1"],
            "remote_addrs": ["192.0.2.9"],
            "proposals": ["aes256-sha256-modp4096"],
            "keyingtries": "0",
            "encap": "no",
            "local": {"auth": "psk"},
            "remote": {"auth": "psk"},
            "children": {
                "flannel-10.5.9.0-24-192.0.2.9": {
                    "mode": "tunnel",
                    "local_ts": ["10.5.72.0/24"],
                    "remote_ts": ["10.5.9.0/24"],
                    "esp_proposals": ["aes128gcm16-sha256-prfsha256-ecp256"],
                    "start_action": "start",
                    "close_action": "trap",
                    "dpd_action": "restart",
                    "rekey_time": "1h",
                    "reqid": "11",
                    "policies": "no",
                }
            },
        }
    }
    assert shared("192.0.2.9", terms) == {"id": "flannel-192.0.2.9", "type": "IKE", "data": PSK, "owners": ["192.0.2.9"]}


def test_options_reach_the_connection() -> None:
    terms = backend(UDPEncap=True, ESPProposal="aes256gcm16-modp2048").terms
    (found,) = connection(Own.of(local()), peer(), terms).values()
    assert found["encap"] == "yes"
    assert found["children"][name(peer())]["esp_proposals"] == ["aes256gcm16-modp2048"]


def test_behind_nat_a_host_is_known_by_its_public_address() -> None:
    (found,) = connection(Own.of(local(public=PUBLIC)), peer(), backend().terms).values()
    assert (found["local_addrs"], found["local"]) == (["192.0.2.1"], {"auth": "psk", "id": "203.0.113.1"})


def test_a_name_says_subnet_and_address() -> None:
    assert (
        len({name(peer(9)), name(peer(10)), name(peer(9, at="192.0.2.10")), name(replace(peer(), subnet=IPNetwork("10.5.9.0/25")))})
        == 4
    )


def test_a_fingerprint_is_of_all_terms_and_tells_none() -> None:
    own, terms = Own.of(local()), backend().terms
    salt = b"salt"
    found = {
        fingerprint(own, terms, salt),
        fingerprint(own, terms, b"sea salt"),
        fingerprint(own, backend(PSK=PSK + "x").terms, salt),
        fingerprint(own, backend(UDPEncap=True).terms, salt),
        fingerprint(own, backend(ESPProposal="aes256").terms, salt),
        fingerprint(Own.of(local(public=PUBLIC)), terms, salt),
        fingerprint(Own.of(local(interface="eth2")), terms, salt),
    }
    assert len(found) == 7
    assert PSK not in "".join(found)


# ------------------------------------------------------------------------------------------------------------ supervision


class Place:
    """A run directory, and the charon that is on PATH."""

    def __init__(self, folder: Path) -> None:
        self.programs, self.run_dir = folder / "bin", folder / "run"
        self.own = self.run_dir / "ipsec"
        self.programs.mkdir()
        self.own.mkdir(parents=True)
        program = self.programs / "charon"
        program.write_text(f"#!{sys.executable}\n{Path(fake_charon.__file__).read_text()}")
        program.chmod(0o755)

    def say(self, file: str, text: str = "yes") -> None:
        (self.own / file).write_text(text)

    def unsay(self, file: str) -> None:
        (self.own / file).unlink()

    @property
    def notes(self) -> list[tuple[str, Any]]:
        path = self.own / "notes"
        return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []

    def told(self, command: str) -> list[Any]:
        return [message for said, message in self.notes if said == command]

    @property
    def names(self) -> list[str]:
        """Of connections, as they were loaded."""
        return [each for message in self.told("load-conn") for each in message]

    @property
    def pid(self) -> int | None:
        return vici.listener(self.own / "charon.vici")


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    found = Place(tmp_path_factory.mktemp("c"))
    monkeypatch.setenv("PATH", f"{found.programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(charon, "IKE_PLACES", ())
    monkeypatch.setattr(charon, "PID_FILE", found.run_dir / "charon.pid")
    monkeypatch.setattr(datapath, "LOOK_S", 0.05)
    yield found
    if (left := found.pid) is not None:
        os.kill(left, signal.SIGKILL)


def made(place: Place, **options: object) -> CharonDatapath:
    return backend(**options).datapath(local(run_dir=str(place.run_dir)))


@asynccontextmanager
async def running(found: CharonDatapath, *numbers: int) -> AsyncIterator[asyncio.Task[None]]:
    """Open, with these peers, and running; closed in the end."""
    await found.open(NoFdStore())
    found.update({str(number): peer(number) for number in numbers})
    task = asyncio.create_task(found.run())
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, BackendError):
            await task
        await found.close()


async def until_told(place: Place, command: str, count: int) -> None:
    await until(lambda: len(place.told(command)) >= count)


async def test_charon_is_told_of_each_peer_and_of_what_changes(place: Place) -> None:
    found = made(place)
    place.say("up", "*")
    async with running(found, 9, 10):
        await until_told(place, "load-conn", 2)
        assert place.told("load-shared")[0]["data"] == PSK
        assert sorted(each["owners"][0] for each in place.told("load-shared")) == ["192.0.2.1", "192.0.2.10", "192.0.2.9"]
        assert place.told("load-conn")[0] == connection(Own.of(local()), peer(9), backend().terms)
        found.update({"10": None})
        await until_told(place, "unload-shared", 1)
        assert place.told("unload-conn") == [{"name": name(peer(10))}]
        assert [each["ike"] for each in place.told("terminate")] == [name(peer(10))]
        assert place.told("unload-shared") == [{"id": "flannel-192.0.2.10"}]
        found.update({"9": peer(9, at="192.0.2.77")})
        await until(lambda: place.names[-1] == name(peer(9, at="192.0.2.77")))
        assert place.told("unload-conn")[-1] == {"name": name(peer(9))}
        found.update({"9": peer(9, at="192.0.2.77")})  # nothing new
        found.update({"11": peer(11)})
        await until(lambda: place.names[-1] == name(peer(11)))
        assert len(place.names) == 4
    assert place.pid is None


@pytest.mark.parametrize("order", [("new", "9"), ("9", "new")])
async def test_a_subnet_under_another_key_keeps_its_tunnel(place: Place, order: tuple[str, str]) -> None:
    """The network gets IPv6, and the peer another key for the subnet that it has."""
    found = made(place)
    place.say("up", "*")
    async with running(found, 9):
        await until_told(place, "load-conn", 1)
        found.update({key: peer(9) if key == "new" else None for key in order})
        found.update({"10": peer(10)})
        await until_told(place, "load-conn", 2)
        assert place.names == [name(peer(9)), name(peer(10))]
        assert not place.told("unload-conn")
        found.update({"new": None})
        await until_told(place, "unload-conn", 1)
        assert place.told("unload-conn") == [{"name": name(peer(9))}]


async def test_its_directory_is_ours_alone_and_its_environment_bare(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLANNELPY_ETCD_PASSWORD", "secret")
    async with running(made(place), 9):
        await until_told(place, "load-conn", 1)
        environment = json.loads((place.own / "environment").read_text())
        assert environment["STRONGSWAN_CONF"] == str(place.own / "strongswan.conf")
        assert "secret" not in environment.values()
        assert place.own.stat().st_mode & 0o777 == 0o700
        assert (place.own / "terms").stat().st_mode & 0o777 == 0o600
        conf = (place.own / "strongswan.conf").read_text()
        for line in ("install_routes = no", 'interfaces_use = "eth1"', f"socket = unix://{place.own}/charon.vici"):
            assert line in conf
        commands = [await asyncio.to_thread(Path(f"/proc/{place.pid}/{part}").read_bytes) for part in ("cmdline", "environ")]
        files = [path.read_bytes() for path in place.own.iterdir() if path.is_file() and path.name != "notes"]
        assert not any(PSK.encode() in found for found in (*commands, *files))


async def test_one_that_dies_is_an_error_and_the_next_is_told_all(place: Place) -> None:
    found = made(place)
    async with running(found, 9) as task:
        await until_told(place, "load-conn", 1)
        first = place.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        with pytest.raises(BackendError, match=r"^charon was killed by signal 9$"):
            await task
        await found.close()
        await found.open(NoFdStore())
        again = asyncio.create_task(found.run())
        await until_told(place, "load-conn", 2)
        assert place.names == [name(peer(9))] * 2
        assert place.pid not in (None, first)
        again.cancel()
        await asyncio.gather(again, return_exceptions=True)


async def test_one_that_was_left_running_goes_on(place: Place) -> None:
    place.say("up", "*")
    killed = made(place)
    await killed.open(NoFdStore())
    killed.update({"9": peer(9), "10": peer(10)})
    task = asyncio.create_task(killed.run())
    await until_told(place, "load-conn", 2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    pid = place.pid  # its agent was killed: nobody has closed it
    async with running(made(place), 9, 11):
        await until_told(place, "unload-conn", 1)
        await until_told(place, "load-conn", 3)
        assert place.pid == pid
        assert place.told("unload-conn") == [{"name": name(peer(10))}]
        assert place.names[2:] == [name(peer(11))]
        assert pid is not None
        os.kill(pid, signal.SIGKILL)  # it is watched as a child of ours is
        await until(lambda: task.done())
    assert killed._charon is not None
    await killed.close()


@pytest.mark.parametrize("options", [{"PSK": PSK + "x"}, {"UDPEncap": True}])
async def test_one_with_other_terms_is_ended_gently_and_replaced(place: Place, options: dict[str, object]) -> None:
    before = made(place)
    await before.open(NoFdStore())
    pid = place.pid
    async with running(made(place, **options), 9):
        await until_told(place, "load-conn", 1)
        assert place.pid not in (None, pid)
        assert (place.own / "ended").read_text() == "gently"
    await before.close()


async def test_at_the_agents_end_keys_stay_and_for_another_backend_they_go(place: Place) -> None:
    async with running(made(place)):
        pass
    assert place.pid is None
    assert not (place.own / "ended").exists()
    found = made(place)
    async with running(found):
        found.retire()
    assert place.pid is None
    assert (place.own / "ended").read_text() == "gently"


async def test_a_peer_without_a_tunnel_is_told_of_and_begun_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datapath, "PATIENCE_S", 0.1)
    monkeypatch.setattr(datapath, "BEGIN_AGAIN_S", 0.1)
    monkeypatch.setattr(datapath, "CALM_S", 0.0)
    refused: dict[str, str] = {}

    def listen(now: Any) -> None:
        refused.clear()
        refused.update(now)

    found = made(place)
    found.listen(listen)
    place.say("up", name(peer(10)))
    async with running(found, 9, 10):
        await until(lambda: refused)
        assert refused == {"9": f"{peer(9)}: no tunnel: 192.0.2.9 does not answer at UDP 500 and 4500; it is tried again"}
        assert place.told("initiate") == []  # it is at it
        place.say("state", "none")
        await until_told(place, "initiate", 2)
        assert place.told("initiate")[0] == {"child": name(peer(9)), "ike": name(peer(9)), "timeout": "-1", "init-limits": "no"}
        await until(lambda: "expected one PSK and one ESPProposal" in refused.get("9", ""))
        place.say("state", "ESTABLISHED")
        await until(lambda: "esp4 in the kernels" in refused.get("9", ""))
        place.say("up", "*")
        await until(lambda: not refused)
        place.say("up", name(peer(10)))
        await until(lambda: refused)
        found.update({"9": None})
        await until(lambda: not refused)


async def test_where_all_is_well_they_are_not_listed_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    found = made(place)
    place.say("up", "*")
    async with running(found, 9, 10):
        await until(lambda: found._calm)
        listed = len(place.told("list-sas"))
        await until_told(place, "stats", len(place.told("stats")) + 4)
        assert len(place.told("list-sas")) == listed
        place.say("up", name(peer(9)))
        place.say("state", "none")  # one IKE_SA less
        await until_told(place, "list-sas", listed + 2)
        place.say("up", "*")
        await until(lambda: found._calm)
        listed = len(place.told("list-sas"))
        monkeypatch.setattr(datapath, "CALM_S", 0.0)
        await until_told(place, "list-sas", listed + 2)


async def test_a_refusal_is_of_one_peer(place: Place) -> None:
    refused: dict[str, str] = {}
    found = made(place)
    found.listen(lambda now: refused.update(now))
    place.say("refuse", "load-conn")
    place.say("up", "*")
    async with running(found, 9) as task:
        await until(lambda: refused)
        assert "charon refuses load-conn flannel-10.5.9.0-24-192.0.2.9" in refused["9"]
        assert "invalid value for: esp_proposals" in refused["9"]
        place.say("refuse", "nothing")
        await until_told(place, "load-conn", 2)
        assert not task.done()


async def test_one_that_does_not_answer_is_given_up(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    found = made(place)
    async with running(found, 9) as task:
        await until_told(place, "load-conn", 1)
        place.say("hang")
        monkeypatch.setattr(vici, "DEADLINE_S", 0.3)
        with pytest.raises(BackendError, match=r"charon (does not answer to|cannot be asked)"):
            await task
    assert place.pid is None


async def test_what_is_missing_is_named_with_its_package(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.say("mute")
    with pytest.raises(BackendError, match=r"charon opens no VICI socket \(apt-get install strongswan-charon strongswan-swanctl "):
        await made(place).open(NoFdStore())
    place.unsay("mute")
    place.say("fail")
    with pytest.raises(
        BackendError, match="charon has ended as it began: could not open IPv4 socket, IPv4 disabled; initialization failed"
    ):
        await made(place).open(NoFdStore())
    shutil.rmtree(place.programs)
    with pytest.raises(BackendError, match="IKE daemon, is not installed: apt-get install strongswan-charon strongswan-swanctl"):
        await made(place).open(NoFdStore())
    monkeypatch.setitem(sys.modules, "vici", None)
    with pytest.raises(BackendError, match=r"the Python package vici is not installed: pip install 'flannelpy\[ipsec\]'"):
        await made(place).open(NoFdStore())
    assert place.pid is None


async def test_a_charon_of_somebody_elses_is_left_alone(place: Place) -> None:
    other = await asyncio.create_subprocess_exec(
        place.programs / "charon", env={**os.environ, "STRONGSWAN_CONF": str(_elsewhere(place))}
    )
    try:
        await until(lambda: vici.listener(place.run_dir / "else" / "charon.vici") is not None)
        charon.PID_FILE.write_text(f"{other.pid}\n")
        with pytest.raises(BackendError, match=rf"another charon runs on this host, process {other.pid}; it has UDP 500 and 4500"):
            await made(place).open(NoFdStore())
        assert other.returncode is None
    finally:
        other.kill()
        await other.wait()
    async with running(made(place)):  # its number is nobody's now
        assert place.pid is not None


def _elsewhere(place: Place) -> Path:
    path = place.run_dir / "else" / "strongswan.conf"
    path.parent.mkdir()
    path.write_text(f"socket = unix://{path.parent}/charon.vici\n")
    return path


async def test_a_number_that_somebody_else_has_by_now_is_in_nobodys_way(place: Place) -> None:
    charon.PID_FILE.write_text(f"{os.getpid()}\n")
    async with running(made(place)):
        assert place.pid is not None


def test_a_directory_that_is_not_ours_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "ipsec").symlink_to(tmp_path)
    with pytest.raises(BackendError, match="expected a directory of our own"):
        charon.place(str(tmp_path))
    with pytest.raises(BackendError, match="expected a shorter one, for a socket's path has at most 107 bytes"):
        charon.place(f"/{'x' * 100}")


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("", ""),
        ("2026-11-29T13:26:23 00[JOB] spawning 16 worker threads\n", ": spawning 16 worker threads"),
        (
            "00[LIB] plugin 'ccm': failed to load - ccm_plugin_create not found and no plugin file available\n"
            "00[NET] unable to bind socket: Address already in use\n00[JOB] spawning\n",
            ": unable to bind socket: Address already in use",
        ),
        (
            "00[LIB] plugin 'vici': failed to load - x and no plugin file available\n",
            ": plugin 'vici': failed to load - x and no plugin file",
        ),
    ],
)
def test_the_log_says_why(tmp_path: Path, log: str, said: str) -> None:
    (tmp_path / "charon.log").write_text(log)
    assert charon.last_words(tmp_path / "charon.log").startswith(said)
    assert bool(charon.last_words(tmp_path / "charon.log")) == bool(said)
    assert charon.last_words(tmp_path / "none.log") == ""


async def test_cleanup_ends_one_that_was_left_running(place: Place) -> None:
    left = made(place)
    await left.open(NoFdStore())
    known, places = (
        Known("/coreos.com/network", State()),
        Places(place.run_dir, place.run_dir, place.run_dir / "subnet.env", claims=place.run_dir / "claims"),
    )
    pieces = litter(places, known, with_state=False)
    assert pieces[0].text == f"kill {place.pid} (charon, which serves {place.own}/charon.vici)"
    await asyncio.to_thread(lambda: [piece.do() for piece in pieces])
    assert place.pid is None
    assert (place.own / "ended").read_text() == "gently"
    assert not (place.own / "strongswan.conf").exists()
    await left.close()


# ----------------------------------------------------------------------------------------------------- a whole agent


async def test_an_agent_keeps_tunnels_and_policies_and_says_what_is_wrong(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    host = HostInMemory(MemoryStore(), tmp_path, run_dir=place.run_dir)
    host.put_config({"Network": "10.5.0.0/16", "SubnetMin": "10.5.200.0", "Backend": {"Type": "ipsec", "PSK": PSK}})
    place.say("up", "*")
    host.put_peer("10.5.9.0-24", peer(9).attrs.to_json())
    async with host.run():
        await until(host.settings.subnet_file.exists)
        await until(lambda: place.names)
        assert "FLANNEL_MTU=1423" in host.settings.subnet_file.read_text()
        policies = [key for key in host.kernel.planted() if key.kind == "xfrm"]
        assert len(policies) == 3
        host.kernel.take(policies[0])  # another hand's
        await until(lambda: policies[0] in host.kernel.planted())
        assert place.pid is not None
        os.kill(place.pid, signal.SIGKILL)
        await until(lambda: len(place.names) == 2)
        host.delete("10.5.9.0-24")
        await until(lambda: not [key for key in host.kernel.planted() if key.kind == "xfrm"])
        await until(lambda: place.told("unload-conn"))
    assert place.pid is None
    assert "charon was killed by signal 9" in caplog.text
    assert PSK not in caplog.text
    assert '"policies": true' in (host.settings.state_dir / "state.json").read_text()
