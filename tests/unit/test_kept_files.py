"""What was kept on disk, read back as if a stranger had written it: what is no use is set aside, and what is used was judged."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPNetwork

from flannelpy.core.errors import FlannelpyError
from flannelpy.core.model import Lease, LeaseAttrs, parse_subnet_key
from flannelpy.host import state as state_file
from flannelpy.host import subnet_env, view_file
from flannelpy.host.machine import foreign, machine
from flannelpy.host.state import OURS, State
from flannelpy.host.subnet_env import SubnetEnv, SubnetFile, same
from flannelpy.host.view_file import KeptView

PREFIX = "/coreos.com/network"
STATE = State(
    PREFIX,
    {"flannel.1": "02:00:00:00:00:01"},
    "10.5.72.0-24",
    ("10.5.0.0/16", "fd05::/48"),
    ("flannel.1",),
    (8285,),
    "0" * 32,
    "52:54:00:00:00:0a",
    "192.0.2.1",
)
LEASE = Lease(IPNetwork("10.5.72.0/24"), LeaseAttrs.from_json('{"PublicIP": "192.0.2.1"}'), None, 7, 1, 2)
VIEW = KeptView(PREFIX, '{"Network": "10.5.0.0/16"}', LEASE.key, (LEASE,), 9)


def test_what_is_kept_is_read_back_and_is_the_owners_alone(tmp_path: Path) -> None:
    state_file.write(tmp_path, STATE)
    view_file.write(tmp_path, VIEW)
    assert state_file.read(tmp_path, PREFIX) == STATE
    assert view_file.read(tmp_path, PREFIX) == VIEW
    view_file.write(tmp_path, replace(VIEW, config=""), view_file.PROMISED)
    assert view_file.read(tmp_path, PREFIX, view_file.PROMISED) == replace(VIEW, config="")
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("state.json", "cluster.json", "promised.json")} == {0o600}
    assert (state_file.read(tmp_path, "/other"), view_file.read(tmp_path, "/other")) == (State(), None)


@pytest.mark.parametrize("room", [900, 1_500, 5_000, 100_000])
def test_of_more_leases_than_can_be_read_again_the_first_are_kept(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view_file, "LARGEST", room)
    (lease, *_) = VIEW.leases
    data = {"x": "\u202e" * 100}  # six letters each in the file
    others = [
        replace(lease, subnet=IPNetwork((number << 8, 24)), attrs=replace(lease.attrs, backend_data=data)) for number in range(50)
    ]
    view_file.write(tmp_path, replace(VIEW, leases=(lease, *others)))
    assert (tmp_path / view_file.FILE).stat().st_size <= room
    kept = view_file.read(tmp_path, PREFIX)
    assert kept is not None
    assert kept.leases == (lease, *others)[: len(kept.leases)]
    assert len(kept.leases) == 51 or (tmp_path / view_file.FILE).stat().st_size > room - 1_000


def test_a_state_of_the_first_format_is_read(tmp_path: Path) -> None:
    old = {
        "format": 1,
        "prefix": PREFIX,
        "macs": {"flannel.1": "02:00:00:00:00:01"},
        "lease_key": "10.5.72.0-24",
        "networks": ["10.5.0.0/16"],
        "devices": ["flannel.1"],
    }
    (tmp_path / "state.json").write_text(json.dumps(old))
    assert state_file.read(tmp_path, PREFIX).macs == STATE.macs


def changed(**fields: object) -> bytes:
    good = json.loads(json.dumps({"prefix": PREFIX, "macs": {}, "lease_key": "", "networks": [], "devices": [], "fou_ports": []}))
    return json.dumps({**good, **fields}).encode()


BAD_STATES = [
    (b"[" * 200_000, "nested too deeply"),
    (b"", "it is empty"),
    (b"null", "it is of another form"),
    (b"[]", "it is of another form"),
    (b"{}", "'prefix' is missing"),
    (changed()[:-9], "line 1, column"),
    (changed(fou_ports=[1]).replace(b"[1]", b"[1e999]"), "number 1e999 is too large"),
    (changed(fou_ports=[70000]), "70000 is no port"),
    (changed(fou_ports=[True]), "True is no port"),
    (changed(fou_ports={"8285": 1}), "is no list"),
    (changed(macs={"flannel.1": "zz:zz"}), "'zz:zz' is no MAC"),
    (changed(macs={"flannel.1": "03:00:00:00:00:01"}), "is not the MAC of one device"),
    (changed(macs={"flannel.1": "00:00:00:00:00:00"}), "is not the MAC of one device"),
    (changed(macs={"flannel.1": "\x1b]0;pwn\x07"}), "is no MAC"),
    (changed(macs={"../x": "02:00:00:00:00:01"}), "is no interface"),
    (changed(macs=[]), "it is of another form"),
    (changed(devices=["eth0"]), "'eth0' is no device of ours"),
    (changed(devices="flannel.1"), "is no list"),
    (changed(networks=["10.5.0.0/99"]), "is no network"),
    (changed(networks=[7]), "7 is no network"),
    (changed(lease_key="10.5.72.0"), "is not a subnet key"),
    (changed(lease_key=None), "None is no text"),
    (changed(uplink_mac="eth"), "is no hardware address"),
    (changed(address="nowhere"), "is no address"),
    (changed(policies=1), "1 is neither true nor false"),
]


@pytest.mark.parametrize(("data", "said"), BAD_STATES)
def test_a_state_that_is_no_use_is_set_aside_in_one_line(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(data)
    with pytest.raises(FlannelpyError) as caught:
        state_file.read(tmp_path, PREFIX)
    text = str(caught.value)
    assert text.startswith(f"{path}: expected a state file (")
    assert said in text
    assert text.endswith("; set aside as state.json.corrupt")
    assert text.isprintable()
    assert (tmp_path / "state.json.corrupt").read_bytes() == data
    assert state_file.read(tmp_path, PREFIX) == State(), "the next start is a first one"


@pytest.mark.parametrize("what", ["state.json", "cluster.json"])
def test_what_is_no_file_is_set_aside_too(tmp_path: Path, what: str) -> None:
    path = tmp_path / what
    for kind in ("a directory", "a FIFO", "a symbolic link"):
        {"a directory": path.mkdir, "a FIFO": lambda: os.mkfifo(path), "a symbolic link": lambda: path.symlink_to("x")}[kind]()
        with pytest.raises(FlannelpyError) as caught:
            (state_file.read if what == "state.json" else view_file.read)(tmp_path, PREFIX)
        assert str(caught.value).startswith(f"{path} is {kind}; expected a file; set aside as {what}.corrupt")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (["10.5.72.0-24", "{}", 1, 2], "a lease has five parts"),
        (["10.5.72.0", "{}", 1, 2, 3], "is not a subnet key"),
        (["10.5.72.0-24", "[]", 1, 2, 3], "expected a JSON object"),
        (["10.5.72.0-24", None, 1, 2, 3], "it is of another form"),
        ([["10.5.72.0-24"], "{}", 1, 2, 3], "it is of another form"),
        (["10.5.72.0-24", "{}", -1, 2, 3], "-1 is no number of etcd's"),
        (["10.5.72.0-24", "{}", 1, 1 << 63, 3], "is no number of etcd's"),
        (["10.5.72.0-24", "{}", 1, 2.5, 3], "2.5 is no number of etcd's"),
        ("10.5.72.0-24", "a lease has five parts"),
    ],
)
def test_a_view_that_is_no_use_is_set_aside(tmp_path: Path, row: object, said: str) -> None:
    view = {"prefix": PREFIX, "config": "{}", "own": "", "revision": 1, "leases": [row]}
    (tmp_path / "cluster.json").write_text(json.dumps(view))
    with pytest.raises(FlannelpyError) as caught:
        view_file.read(tmp_path, PREFIX)
    assert said in str(caught.value)
    assert (tmp_path / "cluster.json.corrupt").exists()


def test_of_a_view_our_lease_alone_can_be_read_and_the_others_spoil_nothing(tmp_path: Path) -> None:
    own, other, bad = [LEASE.key, LEASE.attrs.to_json(), 7, 1, 2], ["10.5.73.0-24", "{}", 7, 1, 2], ["10.5.72.0", "{}", 1, 2, 3]
    for rows, known in (([own, other], True), ([other, own], True), ([bad, own], True), ([other], False), ([bad], False)):
        fields = {"prefix": PREFIX, "config": "{}", "own": VIEW.own_key, "revision": 1, "leases": rows}
        (tmp_path / "cluster.json").write_text(json.dumps(fields))
        view = view_file.read(tmp_path, PREFIX, own_only=True)
        assert view is not None
        assert (view.own, view.leases) == ((VIEW.own, (VIEW.own,)) if known else (None, ()))


# ---------------------------------------------------------------------------------------------------------- whatever it is

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4))
NAMES = ["prefix", "macs", "lease_key", "networks", "devices", "fou_ports", "machine", "uplink_mac", "address"]
PIECES = st.sampled_from(
    ["10.5.72.0-24", "10.5.0.0/16", "flannel.1", "eth0", "02:00:00:00:00:01", "192.0.2.1", PREFIX, "{}", 1, 8285]
)
LIKELY = st.one_of(VALUES, PIECES, st.lists(PIECES, max_size=3), st.dictionaries(PIECES.map(str), PIECES, max_size=2))


def documents(names: list[str]) -> st.SearchStrategy[bytes]:
    made = st.fixed_dictionaries(dict.fromkeys(names, LIKELY)).map(lambda fields: json.dumps(fields).encode())
    return st.one_of(st.binary(max_size=300), VALUES.map(lambda value: json.dumps(value).encode()), made)


def written(name: str, data: bytes) -> tempfile.TemporaryDirectory[str]:
    place = tempfile.TemporaryDirectory()
    Path(place.name, name).write_bytes(data)
    return place


T = TypeVar("T")


def judged(read: Callable[[Path, str], T], place: Path) -> T | None:
    """What was read; None where it was refused, in one line."""
    said = ""
    try:
        return read(place, PREFIX)
    except FlannelpyError as error:
        said = str(error)
    assert said.isprintable()
    return None


@given(documents(NAMES))
def test_no_state_is_too_odd_and_what_is_used_was_judged(data: bytes) -> None:
    with written("state.json", data) as place:
        state = judged(state_file.read, Path(place)) or State()
    for address in state.macs.values():
        assert re.fullmatch(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}", address)
    assert all(OURS.fullmatch(device) for device in state.devices)
    assert all(0 < port < 65536 for port in state.fou_ports)
    assert [str(IPNetwork(text)) for text in state.networks] == list(state.networks)
    assert not state.lease_key or parse_subnet_key(state.lease_key)


@given(documents(["prefix", "config", "own", "revision", "leases"]))
def test_no_view_is_too_odd(data: bytes) -> None:
    with written("cluster.json", data) as place:
        view = judged(view_file.read, Path(place))
    if view is not None:
        assert view.revision >= 0
        assert all(parse_subnet_key(lease.key)[0] == lease.subnet for lease in view.leases)
        ours = tuple(lease for lease in view.leases if lease.key == view.own_key)
        assert view_file.parse(data, own_only=True) == replace(view, leases=ours)


@given(st.one_of(st.binary(max_size=200), st.binary(max_size=30).map(lambda tail: b"FLANNEL_MTU=" + tail)))
def test_no_subnet_file_is_too_odd(data: bytes) -> None:
    with written("subnet.env", data) as place:
        told = subnet_env.read(Path(place) / "subnet.env")
    assert told.mtu is None or 68 <= told.mtu <= 65535


# ------------------------------------------------------------------------------------------------------- the subnet file kept

ENV = SubnetEnv((IPNetwork("10.5.0.0/16"),), (IPNetwork("10.5.72.0/24"),), 1450, True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ENV.render(), None),
        (None, "is gone"),
        ("", "is empty"),
        ("x", "says no IPv4 subnet, ours is 10.5.72.0/24"),
        (ENV.render().replace("10.5.72.1", "10.9.9.1"), "says 10.9.9.0/24, ours is 10.5.72.0/24"),
        (ENV.render() + "FLANNEL_IPV6_SUBNET=fd00::1/64\n", "says fd00::/64"),
        (ENV.render().replace("1450", "1500"), "says MTU 1500, ours is 1450"),
        (ENV.render().replace("true", "false"), "was changed"),
        (ENV.render() + "# a comment\n", "was changed"),
    ],
)
def test_what_is_wrong_with_a_subnet_file_in_words(text: str | None, said: str | None) -> None:
    assert same(text, ENV) == said


def test_a_subnet_file_is_put_back_whatever_was_done_to_it(tmp_path: Path) -> None:
    path = tmp_path / "run" / "subnet.env"
    file = SubnetFile(path)
    assert (file.put(ENV), file.put(ENV)) == ("is gone", None)

    def replaced_by_another() -> None:
        (tmp_path / "new").write_text("FLANNEL_SUBNET=10.9.9.1/24\n")
        (tmp_path / "new").replace(path)

    def made_a_directory() -> None:
        path.unlink()
        path.mkdir()

    for hand, said in (
        (path.unlink, "is gone"),
        (lambda: path.write_text(""), "is empty"),
        (lambda: path.write_text("#" * 100_000), "was too long"),
        (replaced_by_another, "says 10.9.9.0/24, ours is 10.5.72.0/24"),
        (lambda: path.chmod(0o600), "had mode 600"),
        (lambda: path.write_text(ENV.render().replace("1450", "1451")), "says MTU 1451, ours is 1450"),
        (made_a_directory, "was a directory, set aside as subnet.env.corrupt"),
    ):
        hand()
        assert file.put(ENV) == said
        assert (path.read_text(), path.stat().st_mode & 0o777) == (ENV.render(), 0o644)
        assert file.put(ENV) is None


def test_a_fifo_in_its_place_is_said_and_waited_for_by_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "subnet.env")
    with pytest.raises(FlannelpyError, match="is a FIFO; expected a file"):
        SubnetFile(tmp_path / "subnet.env").put(ENV)


def test_a_stream_is_written_once(capfd: pytest.CaptureFixture[str]) -> None:
    file = SubnetFile(Path("/proc/self/fd/1"))
    assert (file.put(ENV), file.put(ENV)) == ("was not written yet", None)
    assert capfd.readouterr().out == ENV.render()


# --------------------------------------------------------------------------------------------------------- which machine

ID = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("first", "second", "tells"),
    [
        (ID + "\n", None, True),
        (ID.upper(), None, True),
        (None, "01234567-89ab-cdef-0123-456789abcdef\n", True),
        ("uninitialized\n", None, False),
        ("", None, False),
        ("0" * 32, "ffffffff-ffff-ffff-ffff-ffffffffffff", False),
        ("\xff" * 32, None, False),
        (None, None, False),
    ],
)
def test_what_tells_a_machine(tmp_path: Path, first: str | None, second: str | None, tells: bool) -> None:
    sources = (tmp_path / "machine-id", tmp_path / "product_uuid")
    for source, text in zip(sources, (first, second), strict=True):
        if text is not None:
            source.write_text(text)
    told = machine(sources)
    assert bool(told) is tells
    assert ID not in told, "the number itself is nobody's business"
    assert told == machine(sources)


def test_a_machine_that_nothing_tells_is_known_by_its_addresses() -> None:
    state = State(PREFIX, machine="abc", uplink_mac="52:54:00:00:00:0a", address="192.0.2.1")
    assert foreign(state, "", "52:54:00:00:00:0a", "192.0.2.1") == ""
    assert "a cloned image" in foreign(state, "", "52:54:00:00:00:0b", "192.0.2.9")
