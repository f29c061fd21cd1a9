"""/etc/default/flannelpy as systemd reads it: a command must not understand another password, pattern or endpoint than the agent.

Each expectation is what systemd 252 makes of the same text (``load_env_file`` of its library).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from flannelpy.commands.located import told_by_defaults
from flannelpy.commands.setup import chosen
from flannelpy.core.uplink import HostFacts
from flannelpy.host import defaults
from flannelpy.host.docker_unit import command_line


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param("A=pa#ss", {"A": "pa#ss"}, id="a # in a value is a part of it"),
        pytest.param("A=x # y", {"A": "x # y"}, id="also behind a blank"),
        pytest.param("A='x y' # c", {"A": "x y# c"}, id="and behind a quoted piece"),
        pytest.param("A=\"x\"'y' z", {"A": "xyz"}, id="pieces"),
        pytest.param("A = x y \t", {"A": "x y"}, id="blanks around"),
        pytest.param("A=x\\ \nB=1", {"A": "x ", "B": "1"}, id="an escaped blank stays"),
        pytest.param(r'A="eth\d"', {"A": r"eth\d"}, id="a backslash that escapes nothing stays in quotes"),
        pytest.param(r'A="\"\\\$\`"', {"A": r'"\$`'}, id="what a shell would obey"),
        pytest.param(r"A='\$'", {"A": r"\$"}, id="nothing in single quotes"),
        pytest.param(r"A=10\.1", {"A": "10.1"}, id="without quotes any letter"),
        pytest.param("A=https://a,\\\nhttps://b\nB=1", {"A": "https://a,https://b", "B": "1"}, id="goes on"),
        pytest.param('A="--iface eth0 \\\n --ip-masq"', {"A": "--iface eth0  --ip-masq"}, id="goes on in quotes"),
        pytest.param('A="x\ny"\nB=1', {"A": "x\ny", "B": "1"}, id="quotes over lines"),
        pytest.param('A="x', {"A": "x"}, id="quotes without an end"),
        pytest.param("A=x\\", {"A": "x"}, id="a backslash at the very end"),
        pytest.param("A=x \\", {"A": "x "}, id="and the blank before it"),
        pytest.param("#A=1 \\\nB=2\n;C=3\nD=4", {"D": "4"}, id="a comment goes on, too"),
        pytest.param("export A=1\nB: 2\n=C=3\n9=4\nD", {}, id="no names"),
        pytest.param("\u00a0A=1\n\x0cB=2\n C=3", {"C": "3"}, id="other white space, as pages have it, is a part of the name"),
        pytest.param("A=1\nA=", {"A": ""}, id="the last one counts"),
        pytest.param("A=1\r\nB=2\r\n", {"A": "1", "B": "2"}, id="ends of lines of others"),
        pytest.param("A=\u2028x\x0by\nB=1", {"A": "\u2028x\x0by", "B": "1"}, id="what is no end of a line"),
    ],
)
def test_it_is_read_as_by_systemd(tmp_path: Path, text: str, found: dict[str, str]) -> None:
    path = tmp_path / "flannelpy"
    path.write_bytes(text.encode())
    assert defaults.read(path) == found


def test_an_endless_line_is_read_at_once() -> None:
    assert defaults.variables("A=" + " " * 100_000 + "b" + "\\" * 100_000 + "'" * 100_000)["A"].startswith("b")


def test_setup_reads_what_the_service_reads() -> None:
    text = 'FLANNELPY_OPTIONS="--iface eth0 \\\n  --ip-masq"\nFLANNELPY_ETCD_USERNAME=u\nFLANNELPY_ETCD_PASSWORD=pa#ss\n'
    options = chosen({}, {}, text, HostFacts((), ()))
    assert options == told_by_defaults(defaults.variables(text))
    assert options == {"iface": ["eth0"], "ip-masq": ["true"], "etcd-username": ["u"], "etcd-password": ["pa#ss"]}


def test_dockers_variables_are_read_so_too(tmp_path: Path) -> None:
    unit, file = tmp_path / "etc/systemd/system/docker.service", tmp_path / "etc/default/docker"
    unit.parent.mkdir(parents=True)
    file.parent.mkdir(parents=True)
    unit.write_text("[Service]\nEnvironmentFile=/etc/default/docker\nExecStart=dockerd $DOCKER_OPTS\n")
    file.write_text('DOCKER_OPTS="--label=a#b \\\n--mtu=1400"\n')
    assert command_line(tmp_path) == ["--label=a#b", "--mtu=1400"]
