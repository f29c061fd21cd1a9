"""Do the commands know their host where packaging's unit runs, as a user of its own, and is all of it gone after a cleanup?

h1 (systemd is PID 1; options in /etc/default/flannelpy) ==== h2        etcd apart
"""

from __future__ import annotations

import pytest

from netns_lab.booted import Booted, missing
from netns_lab.lab import Lab
from tests.lab.agent_support import lab_name, routes, until  # noqa: F401

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

UNIT = "flannelpy.service"
TRACES = """
ip -d link | grep flannel; ip route | grep 'proto 102'; nft list ruleset | grep flannelpy
ls -d /run/flannelpy /run/flannel /run/flannelpy-claims /run/docker_opts.env /var/lib/flannelpy 2>/dev/null
"""


async def typed(systemd: Booted, *words: str) -> tuple[int, list[str], str]:
    """What root types there: exit code, what is printed, what is said beside."""
    outcome = await systemd.attempt("flannelpy", *words)
    return outcome.code, outcome.stdout.splitlines(), outcome.stderr


async def traces(systemd: Booted) -> list[str]:
    return (await systemd.attempt("sh", "-c", TRACES)).stdout.splitlines()


@pytest.mark.topology(hosts=2)
async def test_the_commands_need_no_options_and_leave_nothing(lab: Lab) -> None:
    one = lab.host(1)
    systemd = await lab.install(1)
    before = await traces(systemd)
    await systemd.exec("systemctl", "start", UNIT)
    await lab.host(2).start_agent()
    await until(lambda: routes(one, "proto 102"), 20, "a route to the other")
    own, other = str(one.subnet), str(lab.host(2).subnet)
    key = one.lease_key

    code, out, err = await typed(systemd, "lease", "list", other.split("/")[0][:-1] + "7")
    assert (code, err) == (0, f"flannelpy: etcd {one.settings.endpoints}: as the agent at /run/flannelpy/agent.sock has it\n")  # type: ignore[union-attr]
    assert (other in "".join(out), own in "".join(out)) == (True, False)
    code, out, err = await typed(systemd, "config", "get")
    assert (code, '"Network"' in "".join(out)) == (0, True), err
    code, out, err = await typed(systemd, "lease", "list", "10.99.0.1")
    assert (code, out) == (1, [])
    assert "10.99.0.1: nobody has it" in err
    code, out, err = await typed(systemd, "plan")
    assert (code, out) == (0, ["nothing to do"]), err
    code, out, err = await typed(systemd, "cleanup", "--yes")
    assert (code, out) == (1, [])
    assert "stop it first" in err

    await systemd.exec("systemctl", "disable", "--now", UNIT)
    code, out, err = await typed(systemd, "lease", "list", own)
    assert code == 0
    assert err.startswith(f"flannelpy: etcd {one.settings.endpoints}: from /etc/default/flannelpy\n")  # type: ignore[union-attr]
    code, out, err = await typed(systemd, "plan")
    assert code == 0, err
    assert [line for line in out if line != "nothing to do" and not line.startswith("nft replace table inet flannelpy")] == []
    code, out, err = await typed(systemd, "cleanup", "--yes", "--state", "--release-lease")
    assert code == 0, err
    assert f"released {own}" in out
    assert "rm /run/docker_opts.env" in out
    assert lab.etcd.get(key) is None
    assert await traces(systemd) == before
    assert await typed(systemd, "cleanup", "--yes", "--state") == (0, ["nothing to do: no agent has left anything here"], "")
    # And it comes again, as on the first day.
    await systemd.exec("systemctl", "start", UNIT)
    await until(lambda: routes(one, "proto 102"), 20, "a route to the other")
