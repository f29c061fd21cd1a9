"""Does Prometheus read an agent, and do the alerts and the dashboard that are shipped ask for what there is? With the real one.

h1 ==== vxlan 1, or udp ==== h2         etcd 192.168.50.5; Prometheus and its questions run on h1
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlencode

import pytest
from prometheus_client.parser import text_string_to_metric_families

from netns_lab.etcd import SIGCONT, SIGSTOP
from netns_lab.host import Host
from netns_lab.lab import Lab
from tests.lab.agent_support import lab_name, no_traceback, until  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "packaging" / "prometheus"
PROMETHEUS = ROOT / ".venv" / "prometheus" / "usr" / "bin"
real = pytest.mark.skipif(
    not os.access(PROMETHEUS / "promtool", os.X_OK), reason=f"no promtool in {PROMETHEUS}: make prometheus fetches it"
)

READ = "import sys, urllib.request as r; sys.stdout.buffer.write(r.urlopen(sys.argv[1], timeout=10).read())"


async def page(host: Host, url: str) -> str:
    """What is answered inside the host's namespace."""
    outcome = await host.attempt(sys.executable, "-c", READ, url)
    assert outcome.code == 0, outcome.stderr[-300:]
    return outcome.stdout


async def read(host: Host) -> dict[tuple[str, ...], float]:
    """(name, label values by name) -> value."""
    families = text_string_to_metric_families(await page(host, "http://127.0.0.1:8080/metrics"))
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


@pytest.mark.topology(hosts=2)
async def test_a_browser_sees_whom_this_host_reaches_and_what_has_happened(lab: Lab) -> None:
    one, two = lab.hosts
    await one.start_agent("--healthz-port=8080")
    await two.start_agent()
    seen = [""]

    async def told() -> bool:
        seen[0] = await page(one, "http://127.0.0.1:8080/")
        reached = re.search(r"\d ms(, \d+% lost)?</text>", seen[0])  # a first request may come before the other host is there
        return reached is not None and str(two.subnet) in seen[0] and f"peer {two.subnet}" in seen[0]

    await until(told, 40, "the peer on the page", lambda: seen[0][-3000:])
    assert seen[0].startswith("<!DOCTYPE html>")
    assert ">ready</span>" in seen[0]


@pytest.mark.topology(hosts=2)
@pytest.mark.parametrize("backend", ["vxlan", "host-gw", "udp"])
async def test_an_agent_tells_what_it_carries(lab: Lab, backend: str) -> None:
    await lab.put_config({"Network": "10.1.0.0/16", "Backend": {"Type": backend}})
    one, two = lab.hosts
    await one.start_agent("--healthz-port=8080", *(("--udp-engine=pump",) if backend == "udp" else ()))
    await two.start_agent()
    await lab.connect_containers()

    async def joined() -> bool:
        return (await read(one))["flannelpy_peers", "in-sync"] == 1

    await until(joined, 30, "the peer")
    await one.containers[0].exec("ping", "-c", "3", "-i", "0.1", str(two.containers[0].address))
    found = await read(one)
    assert found["flannelpy_ready",] == found["flannelpy_registry_up",] == found["flannelpy_lease_state", "held"] == 1
    assert found["flannelpy_mtu_bytes",] == int(one.subnet_env()["FLANNEL_MTU"])
    assert sum(value for name, value in found.items() if name[0] == "flannelpy_conditions") == 0
    assert found["flannelpy_kernel_steps_total", "route", "add", "done"] >= 1
    assert found["flannelpy_convergence_seconds_count",] >= 1
    assert (("flannelpy_pump_packets_total", "outbound") in found) == (backend == "udp")
    if backend == "udp":
        assert found["flannelpy_pump_packets_total", "outbound"] >= 3
    own = one.subnet_env()["FLANNEL_SUBNET"].rpartition(".")[0]
    routes = [line.split() for line in (await one.exec("ip", "-4", "route")).splitlines() if line.startswith("10.1.")]
    await one.exec("ip", "route", "del", next(route[0] for route in routes if not route[0].startswith(own)))

    async def repaired() -> bool:
        return (await read(one))["flannelpy_kernel_repairs_total",] == 1

    await until(repaired, 30, "the repair")


@real
@pytest.mark.topology(hosts=1, containers=0)
async def test_promtool_takes_the_page_and_the_alerts(lab: Lab) -> None:
    one = lab.host(1)
    await one.start_agent("--healthz-port=8080")
    outcome = await one.attempt(
        str(PROMETHEUS / "promtool"), "check", "metrics", stdin=await page(one, "http://127.0.0.1:8080/metrics")
    )
    assert (outcome.code, outcome.stdout, outcome.stderr) == (0, "", "")
    outcome = await one.attempt(str(PROMETHEUS / "promtool"), "check", "rules", str(SHIPPED / "alerts.yml"))
    assert outcome.code == 0, outcome.stderr


@real
async def test_an_alert_fires_for_the_host_that_it_names_and_for_no_other() -> None:
    words = [str(PROMETHEUS / "promtool"), "test", "rules", str(Path(__file__).with_name("alerts.yml"))]
    done = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
    said, _ = await done.communicate()
    assert done.returncode == 0, said.decode()


@real
@pytest.mark.topology(hosts=1, containers=0)
async def test_prometheus_answers_every_question_and_an_alert_fires(lab: Lab) -> None:
    """The dashboard's and the alerts' expressions; then etcd goes away, which is one alert."""
    one = lab.host(1)
    await one.start_agent("--healthz-port=8080")
    async with prometheus(one):

        async def ask(expression: str) -> list[dict[str, object]]:
            answer = json.loads(await page(one, f"http://127.0.0.1:9090/api/v1/query?{urlencode({'query': expression})}"))
            assert answer["status"] == "success", expression
            result: list[dict[str, object]] = answer["data"]["result"]
            return result

        async def scraped() -> bool:
            return bool(await ask("flannelpy_ready == 1"))

        await until(scraped, 60, "the first scrape")
        panels = json.loads((SHIPPED / "dashboard.json").read_text())["panels"]
        for expression in (target["expr"] for panel in panels for target in panel["targets"]):
            await ask(expression.replace("$instance", ".+"))
        assert await ask('sum(flannelpy_conditions{instance=~".+"}) == 0')
        lab.etcd.signal(0, SIGSTOP)
        try:

            async def told() -> bool:
                alerts = json.loads(await page(one, "http://127.0.0.1:9090/api/v1/alerts"))["data"]["alerts"]
                return any(alert["labels"]["alertname"] == "FlannelpyRegistryAway" for alert in alerts)

            await until(told, 90, "the alert")
        finally:
            lab.etcd.signal(0, SIGCONT)


@asynccontextmanager
async def prometheus(host: Host) -> AsyncIterator[None]:
    """A server that reads this host's agent every second, with the alerts that are shipped."""
    folder = host.directory / "prometheus"
    folder.mkdir()
    alerts = re.sub(r"for: \d+m", "for: 1s", (SHIPPED / "alerts.yml").read_text())
    (folder / "alerts.yml").write_text(alerts)
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\nrule_files: [alerts.yml]\n"
        "scrape_configs:\n  - job_name: flannelpy\n    static_configs: [{targets: ['127.0.0.1:8080']}]\n"
    )
    words = [str(PROMETHEUS / "prometheus"), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    server = host.namespace.spawn(
        "prometheus", [*words, "--web.listen-address=127.0.0.1:9090"], log=folder / "server.log", lasting=False
    )
    try:

        async def up() -> bool:
            assert server.exit_code is None, (folder / "server.log").read_text()[-500:]
            return (await host.attempt(sys.executable, "-c", READ, "http://127.0.0.1:9090/-/ready")).code == 0

        await until(up, 60, "Prometheus")
        yield
    finally:
        await asyncio.shield(server.stop(within_s=10))
