"""What does a person read who gives the agent something wrong? One line, and an exit code or a wait; never a traceback.

h1 192.168.50.11 ==== etcd 192.168.50.5         real processes, inside h1
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from netns_lab.etcd import Etcd, Tls, make_certificates
from netns_lab.host import AgentSettings, Host
from netns_lab.lab import PREFIX, Lab
from netns_lab.namespaces import Outcome, open_socket
from tests.lab.agent_support import (  # noqa: F401
    Log,
    Vtep,
    lab_name,
    no_traceback,
    put_leased,
    shell,
    until,
    until_programmed,
    until_said,
)
from tests.lab.host_support import told, until_condition, until_nothing_is_wrong

pytestmark = pytest.mark.topology(hosts=1, containers=0, agent_options=())


def complaint(outcome: Outcome) -> str:
    """The only line that is not the version."""
    assert "Traceback" not in outcome.stderr + outcome.stdout
    lines = [line for line in (outcome.stdout + outcome.stderr).splitlines() if not re.search(r"flannelpy \d+\.\d+\.\d+$", line)]
    assert len(lines) == 1, lines
    return lines[0]


# ----------------------------------------------------------------------------------------------- said at once, exit 1 or 2

WRONG = [
    pytest.param(("--nonsense",), ("--nonsense",), id="unknown flag"),
    pytest.param(("nonsense",), ("nonsense",), id="unknown command"),
    pytest.param(("--iface",), ("--iface",), id="no value"),
    pytest.param(("--etcd-endpoints=etcd:2379",), ("--etcd-endpoints", "etcd:2379", "http://"), id="no scheme"),
    pytest.param(("--etcd-endpoints=http://etcd:99999",), ("--etcd-endpoints", "99999"), id="port"),
    pytest.param(("--etcd-endpoints=",), ("--etcd-endpoints",), id="no endpoint"),
    pytest.param(("--public-ip=192.168.50.300",), ("--public-ip", "192.168.50.300"), id="address"),
    pytest.param(("--public-ip=fd00::1",), ("--public-ip", "fd00::1"), id="other family"),
    pytest.param(("--iface-can-reach=oops",), ("--iface-can-reach", "oops"), id="can-reach"),
    pytest.param(("--iface-regex=(",), ("--iface-regex", "("), id="regex"),
    pytest.param(("--subnet-lease-renew-margin=0",), ("--subnet-lease-renew-margin", "0", "1439"), id="margin too small"),
    pytest.param(("--subnet-lease-renew-margin=1440",), ("--subnet-lease-renew-margin", "1440", "1439"), id="margin too large"),
    pytest.param(("--subnet-lease-renew-margin=ten",), ("--subnet-lease-renew-margin", "ten"), id="margin no number"),
    pytest.param(("--healthz-port=70000",), ("--healthz-port", "70000"), id="healthz port"),
    pytest.param(("--healthz-ip=oops",), ("--healthz-ip", "oops"), id="healthz address"),
    pytest.param(("--ip-masq=perhaps",), ("--ip-masq", "perhaps"), id="no boolean"),
    pytest.param(("--log-level=loud",), ("--log-level", "loud", "debug"), id="log level"),
    pytest.param(("--etcd-certfile=/nowhere.pem",), ("--etcd-certfile",), id="certificate without key"),
    pytest.param(("--etcd-cafile=/nowhere.pem",), ("/nowhere.pem",), id="no such CA file"),
    pytest.param(("--etcd-password-file=/nowhere",), ("/nowhere",), id="no such password file"),
]


async def test_a_wrong_command_line_is_exit_2_and_names_what_was_expected(lab: Lab) -> None:
    faults = []
    for case in WRONG:
        options, words = case.values
        outcome = await lab.host(1).attempt(*lab.program, *options, timeout_s=5)
        said = outcome.stdout + outcome.stderr
        told = [line for line in said.splitlines() if all(word in line for word in words)]
        if outcome.code != 2 or len(told) != 1 or "Traceback" in said or len(said.splitlines()) > 4:
            faults.append(f"{case.id}: exit {outcome.code}: {said}")
    assert not faults, "\n".join(faults)


async def test_the_environment_counts_and_is_named_where_it_is_wrong(lab: Lab) -> None:
    one = lab.host(1)
    for name in ("FLANNELPY_PUBLIC_IP", "FLANNELD_PUBLIC_IP"):
        outcome = await one.attempt("env", f"{name}=192.168.50.300", *lab.program, timeout_s=5)
        assert outcome.code == 2
        assert "192.168.50.300" in outcome.stderr + outcome.stdout
        assert name in outcome.stderr + outcome.stdout


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--iface=eth9",), ("eth9", "eth0", "eth1")),
        (("--iface=192.168.99.1",), ("192.168.99.1",)),
        (("--iface-regex=wlan.*",), ("wlan.*",)),
        (("--iface-can-reach=2001:db8::1",), ("2001:db8::1",)),
    ],
)
async def test_no_usable_interface_is_waited_for_and_what_was_looked_at_is_listed(
    lab: Lab, option: tuple[str, ...], words: tuple[str, ...]
) -> None:
    one = lab.host(1)
    agent = one.launch_agent(program=[word for word in one.agent_words(*option) if word != "--iface=eth1"])
    line = await until_said(Log.of(one), "error:", "no uplink to send from")
    for word in words:
        assert word in line
    assert agent.running
    assert "READY" not in agent.said


async def test_not_root_is_exit_1_and_one_line(lab: Lab) -> None:
    one = lab.host(1)
    for directory in (one.state_dir, one.run_dir):
        directory.mkdir(exist_ok=True)
        directory.chmod(0o777)
    one.directory.chmod(0o777)
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
    outcome = await one.attempt(*nobody, *one.agent_words(), timeout_s=10)
    assert outcome.code == 1, outcome
    line = complaint(outcome)
    assert "root" in line or "CAP_NET_ADMIN" in line


# --------------------------------------------------------------------------------------------------- etcd: waited for


@asynccontextmanager
async def etcd_on_h1(lab: Lab, tls: Tls | None = None) -> AsyncIterator[tuple[Host, Etcd]]:
    """Another etcd, on h1 itself."""
    one = lab.host(1)
    with Etcd(netns=one.namespace.name, address=str(one.address), tls=tls, below=lab.directory) as etcd:
        etcd.put(f"{PREFIX}/config", '{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}')
        one.settings = AgentSettings(lab.program, etcd.urls[0], PREFIX, (), False)
        yield one, etcd
        if one.agent.running:
            await one.agent.stop()


async def waits(host: Host, *words: str, within_s: float = 8.0) -> str:
    """The one line that says what it waits for; it is not ready and runs on."""
    log = Log.of(host)
    await until(lambda: log.path.exists(), 2, "a log")
    line = await until_said(log, *words, timeout_s=within_s)
    assert host.agent.running
    assert "READY" not in host.agent.said
    return line


async def test_etcd_refuses_then_starts(lab: Lab) -> None:
    one = lab.host(1)
    one.settings = AgentSettings(lab.program, "http://192.168.50.5:2390", PREFIX, (), False)
    one.launch_agent()
    line = await waits(one, "192.168.50.5:2390", "refused")
    assert "warning" in line or "error" in line
    assert len(Log.of(one).begun("2390")) == 1
    await one.agent.stop()


async def test_tls_to_a_plain_port_and_plain_to_a_tls_port(lab: Lab, tmp_path: Path) -> None:
    tls = make_certificates(tmp_path, names=("192.168.50.11",))
    async with etcd_on_h1(lab) as (one, etcd):
        one.launch_agent(f"--etcd-endpoints={etcd.urls[0].replace('http:', 'https:')}", f"--etcd-cafile={tls.ca}")
        line = await waits(one, "TLS")
        assert "192.168.50.11:2379" in line
        await one.agent.stop()
    async with etcd_on_h1(lab, tls) as (one, etcd):
        again = Log.from_now(one)
        one.launch_agent(f"--etcd-endpoints={etcd.urls[0].replace('https:', 'http:')}")
        line = await until_said(again, "192.168.50.11:2379")
        assert "warning" in line or "error" in line
        assert "READY" not in one.agent.said
        await one.agent.stop()


async def test_a_wrong_ca_is_said_and_the_right_one_works(lab: Lab, tmp_path: Path) -> None:
    tls = make_certificates(tmp_path, names=("192.168.50.11",))
    async with etcd_on_h1(lab, tls) as (one, _):
        one.launch_agent(f"--etcd-cafile={tls.other_ca}")
        line = await waits(one, "TLS")
        assert "certificate" in line.lower()
        assert len(Log.of(one).begun("TLS")) == 1
        await one.agent.stop()
        # A CA alone is enough (flanneld demands a client certificate, field-problems F22).
        await one.start_agent(f"--etcd-cafile={tls.ca}", within_s=5)


async def test_a_client_certificate_that_is_missing_is_said(lab: Lab, tmp_path: Path) -> None:
    tls = make_certificates(tmp_path, mutual=True, names=("192.168.50.11",))
    async with etcd_on_h1(lab, tls) as (one, _):
        one.launch_agent(f"--etcd-cafile={tls.ca}")
        await waits(one, "192.168.50.11:2379")
        await one.agent.stop()
        await one.start_agent(
            f"--etcd-cafile={tls.ca}", f"--etcd-certfile={tls.client_cert}", f"--etcd-keyfile={tls.client_key}", within_s=5
        )


async def test_a_wrong_password_is_said_and_goes_on_when_it_is_set_right(lab: Lab, tmp_path: Path) -> None:
    async with etcd_on_h1(lab) as (one, etcd):
        etcd.enable_auth("right", user="flannel", prefix=PREFIX)
        secret = tmp_path / "password"
        secret.write_text("wrong\n")
        secret.chmod(0o600)
        one.launch_agent("--etcd-username=flannel", f"--etcd-password-file={secret}")
        line = await waits(one, "refuses us")
        assert "flannel" in line
        assert len(Log.of(one).begun("refuses us")) == 1
        # Mended in etcd, not here: the agent goes on by itself.
        etcd.ctl("user", "passwd", "flannel", "--interactive=false", stdin="wrong\n")
        await one.agent.ready(within_s=8)
        assert "right" not in Log.of(one).text
        assert "wrong" not in Log.of(one).text


async def test_no_password_where_one_is_needed(lab: Lab) -> None:
    async with etcd_on_h1(lab) as (one, etcd):
        etcd.enable_auth("right", user="flannel", prefix=PREFIX)
        one.launch_agent()
        line = await waits(one, "refuses us")
        assert "--etcd-username" in line or "user" in line
        etcd.disable_auth()
        await one.agent.ready(within_s=8)


async def test_a_role_that_may_not_touch_the_prefix(lab: Lab) -> None:
    async with etcd_on_h1(lab) as (one, etcd):
        etcd.enable_auth("right", user="flannel", prefix="/elsewhere")
        one.launch_agent("--etcd-username=flannel", "--etcd-password=right")
        await waits(one, "refuses us", "flannel", "role")
        etcd.ctl("role", "grant-permission", "flannel", "readwrite", "--prefix=true", PREFIX)
        await one.agent.ready(within_s=8)
        # Nobody reads the password in the log or in the list of processes' environment; the command line is the person's own.
        assert "right" not in Log.of(one).text


# --------------------------------------------------------------------------------------------- the host: said, and waited for


async def test_a_udp_port_that_is_taken_is_said_and_used_when_it_is_free(lab: Lab) -> None:
    lab.etcd.put(f"{PREFIX}/config", '{"Network":"10.1.0.0/16","Backend":{"Type":"udp"}}')
    one = lab.host(1)
    blocker = open_socket(one.namespace.path, socket.AF_INET, socket.SOCK_DGRAM)
    blocker.bind((str(one.address), 8285))
    try:
        one.launch_agent()
        line = await waits(one, "8285")
        assert "error:" in line
        assert "taken" in line
    finally:
        blocker.close()
    await one.agent.ready(within_s=10)
    assert len(Log.of(one).begun("8285")) == 1
    assert [line for line in Log.of(one).lines("8285") if "resolved: " in line]


async def test_a_subnet_file_that_cannot_be_written_is_said_and_written_when_it_can(lab: Lab) -> None:
    one = lab.host(1)
    in_the_way = one.directory / "in-the-way"
    in_the_way.write_text("a file where a directory is wanted")
    env = in_the_way / "subnet.env"
    one.launch_agent(f"--subnet-file={env}")
    line = await waits(one, "error:", str(env))
    assert "trying again" in line
    start = time.monotonic()
    in_the_way.unlink()
    in_the_way.mkdir()
    await one.agent.ready(within_s=10)
    assert "FLANNEL_SUBNET=" in env.read_text()
    assert time.monotonic() - start < 10
    assert len(Log.of(one).begun(str(env), "error:")) == 1


async def test_a_subnet_file_that_goes_or_changes_is_written_again_at_the_next_start(lab: Lab) -> None:
    one = lab.host(1)
    await one.start_agent()
    text = one.subnet_file.read_bytes()
    one.subnet_file.write_bytes(b"\xff\xfe nonsense = \x00\n")
    await one.agent.restart()
    assert one.subnet_file.read_bytes() == text  # the subnet is ours by the key


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe\x00", b"FLANNEL_SUBNET=oops\nFLANNEL_NETWORK=10.1.0.0/99\n", b"FLANNEL_SUBNET\n" * 5000],
    ids=["empty", "no text", "no subnet", "long"],
)
async def test_a_broken_subnet_file_of_before_is_passed_over(lab: Lab, content: bytes) -> None:
    one = lab.host(1)
    one.subnet_file.write_bytes(content)
    await one.start_agent(within_s=5)
    assert "FLANNEL_SUBNET=10.1." in one.subnet_file.read_text()


@pytest.mark.parametrize("how", ["a file is in the way", "garbage in it"])
async def test_a_state_directory_that_cannot_be_used_is_a_warning(lab: Lab, how: str) -> None:
    one = lab.host(1)
    if how == "a file is in the way":
        path = one.directory / "in-the-way"
        path.write_text("")
        await one.start_agent(f"--state-dir={path / 'state'}", within_s=5)
        assert len(Log.of(one).begun("state directory", "warning:")) == 1
    else:
        await one.start_agent(within_s=5)
        await one.agent.stop()
        files = [path for path in one.state_dir.rglob("*") if path.is_file()]
        assert files
        for path in files:
            path.write_bytes(b"\xff\x00 garbage {")
        subnet = one.subnet
        await one.start_agent(within_s=5)
        assert one.subnet == subnet
    peer = Vtep("10.1.77.0/24", "192.168.50.77", "02:00:00:00:00:77")
    put_leased(lab, peer.key, peer.value)
    await until_programmed(one, peer)


async def test_a_run_directory_that_cannot_be_used_is_one_line(lab: Lab) -> None:
    one = lab.host(1)
    path = one.directory / "in-the-way"
    path.write_text("")
    outcome = await one.attempt(*one.agent_words(f"--run-dir={path / 'run'}"), timeout_s=5)
    assert outcome.code == 1
    assert str(path) in complaint(outcome)


async def test_a_healthz_port_that_is_taken_costs_the_pages_until_it_is_free(lab: Lab) -> None:
    one = lab.host(1)
    blocker = open_socket(one.namespace.path, socket.AF_INET, socket.SOCK_STREAM)
    blocker.bind(("0.0.0.0", 8080))
    blocker.listen()
    try:
        await one.start_agent("--healthz-port=8080")
        words = await until_condition(one, "healthz-unavailable")
        assert "cannot listen on 127.0.0.1:8080: another program listens there" in words
        assert (await told(one))["ready"] is True
    finally:
        blocker.close()
    await until_nothing_is_wrong(one)
    assert "200" in await one.exec(
        "bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8080; printf 'GET /healthz HTTP/1.0\\r\\n\\r\\n' >&3; head -1 <&3"
    )


async def test_a_healthz_ip_that_the_host_does_not_have_yet_is_waited_for(lab: Lab) -> None:
    one = lab.host(1)
    await one.start_agent("--healthz-port=8080", "--healthz-ip=192.168.50.211")
    assert "this host has no such address" in await until_condition(one, "healthz-unavailable")
    await one.exec("ip", "addr", "add", "192.168.50.211/32", "dev", "eth1")
    await until_nothing_is_wrong(one)


async def test_secrets_are_not_logged(lab: Lab) -> None:
    one = lab.host(1)
    one.launch_agent("--etcd-username=u", "--etcd-password=hunter2", "--log-level=debug")
    await until(lambda: len(Log.of(one).text.splitlines()) >= 3, 8, "it says something")
    assert "hunter2" not in Log.of(one).text
    await one.agent.stop()
