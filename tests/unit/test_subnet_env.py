"""subnet.env: the text that Docker and CNI read, how it gets onto the disk, and what is read back."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPNetwork

from flannelpy.core.errors import FlannelpyError
from flannelpy.host import subnet_env
from flannelpy.host.files import read_file
from flannelpy.host.subnet_env import Previous, SubnetEnv, SubnetFile, parse, read, write

V4 = SubnetEnv((IPNetwork("10.42.0.0/16"),), (IPNetwork("10.42.3.0/24"),), 1450, True)
DUAL = SubnetEnv(
    (IPNetwork("10.42.0.0/16"), IPNetwork("2001:cafe:42::/56")),
    (IPNetwork("10.42.3.0/24"), IPNetwork("2001:cafe:42::/64")),
    1450,
    False,
)
TEXT = "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"


@pytest.fixture
def tight_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def test_conformance_text_v4() -> None:
    assert V4.render() == TEXT


def test_conformance_text_dual() -> None:
    assert DUAL.render().splitlines() == [
        "FLANNEL_NETWORK=10.42.0.0/16",
        "FLANNEL_SUBNET=10.42.3.1/24",
        "FLANNEL_IPV6_NETWORK=2001:cafe:42::/56",
        "FLANNEL_IPV6_SUBNET=2001:cafe:42::1/64",
        "FLANNEL_MTU=1450",
        "FLANNEL_IPMASQ=false",
    ]


def test_text_v6_only() -> None:
    only = SubnetEnv((IPNetwork("fc00::/48"),), (IPNetwork("fc00:0:0:1::/64"),), 1430, False)
    assert only.render().splitlines()[:2] == ["FLANNEL_IPV6_NETWORK=fc00::/48", "FLANNEL_IPV6_SUBNET=fc00:0:0:1::1/64"]


# ---------------------------------------------------------------------------------------------------------------- writing


@pytest.mark.usefixtures("tight_umask")
def test_everybody_can_read_it_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "run" / "flannel" / "subnet.env"
    assert write(path, V4) is True
    assert path.read_text() == TEXT
    assert path.stat().st_mode & 0o777 == 0o644
    assert [part.stat().st_mode & 0o777 for part in (path.parent, path.parent.parent)] == [0o755, 0o755]
    assert [entry.name for entry in path.parent.iterdir()] == ["subnet.env"]


def test_what_is_so_already_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    write(path, V4)
    before = path.stat()
    assert write(path, V4) is False
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    path.chmod(0o600)
    assert write(path, V4) is True
    assert path.stat().st_mode & 0o777 == 0o644


SPOILT = (
    "",
    "FLANNEL_SUBNET=10.9.1.1/24\n",
    V4.render().replace("10.", "11.", 1),  # as long as what stood there
    V4.render() + "#",
)


@pytest.mark.parametrize("looks", [0, 1, 2])
@pytest.mark.parametrize("spoilt", SPOILT)
@pytest.mark.parametrize("in_place", [True, False])
def test_whatever_is_written_over_it_is_seen_at_the_next_look(tmp_path: Path, looks: int, spoilt: str, in_place: bool) -> None:
    """Also right after it was written: on older kernels within one tick of the clock that files get their time from."""
    path = tmp_path / "subnet.env"
    file = SubnetFile(path)
    for _ in range(50):
        file.put(V4)
        for _ in range(looks):
            assert file.put(V4) is None
        if not in_place:
            path.unlink()
        path.write_text(spoilt)
        assert file.put(V4) is not None
        assert path.read_text() == V4.render()


@pytest.mark.parametrize("spoilt", SPOILT)
@pytest.mark.parametrize("when", ["_look", "write"])
def test_what_is_written_over_it_while_it_is_looked_at_is_seen_at_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoilt: str, when: str
) -> None:
    path, real = tmp_path / "subnet.env", {"_look": SubnetFile._look, "write": write}[when]

    def then_spoilt(*given: Any) -> Any:
        done = real(*given)
        path.write_text(spoilt)
        return done

    file = SubnetFile(path)
    file.put(V4)
    path.write_text("")
    with monkeypatch.context() as patched:
        patched.setattr(*((SubnetFile, "_look") if when == "_look" else (subnet_env, "write")), then_spoilt)
        file.put(V4)
    file.put(V4)
    assert path.read_text() == V4.render()
    path.write_text("")
    assert file.put(V4) == "is empty"


def test_one_that_goes_while_it_is_looked_at_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "subnet.env"
    file = SubnetFile(path)
    file.put(V4)

    def read_and_remove(path: Path, limit: int) -> bytes:
        data = read_file(path, limit)
        path.unlink()
        return data

    with monkeypatch.context() as patched:
        patched.setattr(subnet_env, "read_file", read_and_remove)
        assert file.put(V4) == "is gone"
    assert path.read_text() == V4.render()


def test_a_file_at_rest_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = tmp_path / "subnet.env", subnet_env.read_file
    read_at: list[Path] = []
    monkeypatch.setattr(subnet_env, "read_file", lambda path, most: (read_at.append(path), read(path, most))[1])
    monkeypatch.setattr(subnet_env, "AT_REST_S", -1.0)
    file = SubnetFile(path)
    for _ in range(10):
        file.put(V4)
    assert len(read_at) == 2  # there was none; then what was written


def test_a_reader_of_the_old_file_keeps_the_old_text(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    write(path, V4)
    with path.open() as reader:
        assert write(path, DUAL) is True
        assert reader.read() == TEXT
    assert path.read_text() == DUAL.render()


def test_half_a_file_left_by_a_crash_is_in_nobodys_way(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    (tmp_path / ".subnet.env.new").write_text("FLANNEL_NETW" * 100)
    write(path, V4)
    assert path.read_text() == TEXT
    assert [entry.name for entry in tmp_path.iterdir()] == ["subnet.env"]


def test_a_directory_that_cannot_be_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "subnet.env"
    with pytest.raises(FlannelpyError) as caught:
        write(path, V4)
    assert str(caught.value) == f"{path}: cannot be written: Not a directory"


# ----------------------------------------------------------------------------------------------------------- reading back


def test_conformance_what_was_written_is_read_back_masked(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    write(path, DUAL)
    assert read(path) == Previous(
        network=IPNetwork("10.42.0.0/16"),
        subnet=IPNetwork("10.42.3.0/24"),
        network6=IPNetwork("2001:cafe:42::/56"),
        subnet6=IPNetwork("2001:cafe:42::/64"),
        bridge=IPNetwork("10.42.3.1/24"),
        bridge6=IPNetwork("2001:cafe:42::1/64"),
        mtu=1450,
        ipmasq=False,
    )


def test_conformance_no_file_is_nothing_known(tmp_path: Path) -> None:
    assert read(tmp_path / "none") == Previous()


def test_a_file_that_cannot_be_read_is_nothing_known_with_a_reason(tmp_path: Path) -> None:
    assert read(tmp_path) == Previous(skipped=(f"{tmp_path} is a directory; expected a file",))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00FLANNEL_SUBNET=\x80\n")
    assert read(tmp_path / "binary").subnet is None


@pytest.mark.parametrize(("lead", "good", "version"), [("FLANNEL_", "10.5.3.1/24", 4), ("FLANNEL_IPV6_", "fd00::1/64", 6)])
def test_conformance_invalid_elements_are_skipped(lead: str, good: str, version: int) -> None:
    found = parse(f"{lead}SUBNET=nonsense,{good}, 10.5.3/24\n")
    assert (found.subnet if version == 4 else found.subnet6) == IPNetwork(good).cidr
    assert found.skipped[0] == f"{lead}SUBNET 'nonsense': expected an IPv{version} network; passed over"
    assert len(found.skipped) == 2


@pytest.mark.parametrize(
    "value", ["nonsense", "10.5.3.1", "fd00::1/64", "10.5.3.1/33", "10.5.3.1/255.255.255.0", "10.5.3.1/-1", "", ","]
)
def test_conformance_only_invalid_elements_are_nothing(value: str) -> None:
    assert parse(f"FLANNEL_SUBNET={value}\n").subnet is None


def test_conformance_two_valid_elements_are_nothing() -> None:
    found = parse("FLANNEL_SUBNET=10.5.3.1/24,10.5.4.1/24\n")
    assert found == Previous(skipped=("FLANNEL_SUBNET holds 2 networks: expected one; passed over",))


@pytest.mark.parametrize(
    "line",
    [
        "FLANNEL_SUBNET=10.5.3.1/24",
        'FLANNEL_SUBNET="10.5.3.1/24"',
        "FLANNEL_SUBNET='10.5.3.1/24'",
        "export FLANNEL_SUBNET=10.5.3.1/24",
        "  FLANNEL_SUBNET = 10.5.3.1/24  # ours",
        "FLANNEL_SUBNET=10.5.3.1/24\r",
        "FLANNEL_SUBNET=10.9.9.1/24\nFLANNEL_SUBNET=10.5.3.1/24",
    ],
)
def test_dotenv_syntax(line: str) -> None:
    assert parse(f"# a comment\n\n{line}\n").subnet == IPNetwork("10.5.3.0/24")


@pytest.mark.parametrize("blank", [" ", "\t", "\u00a0", '"', "'", "\\", "#", "=", "export "])
@pytest.mark.parametrize("lead", ["A=a", "A=", 'A="x"', "", "export A"])
@pytest.mark.parametrize("end", ["", "b", "!", '"'])
def test_a_line_without_end_is_read_at_once(blank: str, lead: str, end: str) -> None:
    """The agent's loop stands still meanwhile."""
    began = time.process_time()
    parse(lead + blank * (subnet_env.LARGEST // len(blank)) + end)
    assert time.process_time() - began < 1.0


@given(st.text(max_size=200))
def test_no_text_is_too_odd(text: str) -> None:
    parse(text)
    parse(f"FLANNEL_SUBNET={text}")
