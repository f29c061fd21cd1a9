"""What does ``flannelpy doctor`` do? Every check at once, each with a deadline and by itself; then a table, or JSON."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import click

from flannelpy import __version__
from flannelpy.commands.aside import aside
from flannelpy.commands.doctor import etcd, files, host, kernel, kube, others, ports
from flannelpy.commands.doctor.about import About, knowing
from flannelpy.commands.doctor.agent import agent
from flannelpy.commands.doctor.firewall import firewall
from flannelpy.core.errors import FlannelpyError
from flannelpy.core.foreign import LINE, printable
from flannelpy.explain.doctor import SKIPPED, Finding, exit_code, to_json
from flannelpy.options import Given

Check = Callable[[About], AsyncIterator[Finding] | Iterator[Finding]]
"""One that is no coroutine may wait for a disk, and runs in a thread of its own."""

DEADLINE_S = 8.0
"""For each check; what it had found until then is told."""

CHECKS: dict[str, Check] = {
    "agent": agent,
    "forwarding": host.forwarding,
    "firewall": firewall,
    "incoming": ports.incoming,
    "reverse path filter": host.reverse_path,
    "uplink": host.uplink,
    "bridge": host.bridges,
    "routes": host.routes,
    "port": ports.port,
    "etcd": etcd.etcd,
    "kernel": kernel.features,
    "capabilities": kernel.capabilities,
    "directories": files.directories,
    "secrets": files.secrets,
    "subnet file": files.subnet_file,
    "docker": others.docker,
    "cni": others.cni,
    "other agents": others.agents,
}


def examine(given: Given, *, preflight: bool, as_json: bool) -> int:
    """Print what is wrong with this host; the exit code by the worst. Raises UsageError."""
    import uvloop

    findings = uvloop.run(diagnose(given, preflight=preflight))
    if as_json:
        click.echo(to_json(findings, __version__))
    else:
        from flannelpy.commands.doctor.page import show

        show(findings)
    return exit_code(findings)


async def diagnose(given: Given, *, preflight: bool) -> list[Finding]:
    """What all checks find on this host. Raises UsageError."""
    async with knowing(given, preflight=preflight) as about:
        return await findings_of(about, checks_for(about))


def checks_for(about: About) -> dict[str, Check]:
    """All of them; the registry's are those of the one that there is."""
    if about.settings.kube is None:
        return CHECKS
    return {("Kubernetes" if name == "etcd" else name): (kube.kube if name == "etcd" else check) for name, check in CHECKS.items()}


async def findings_of(about: About, checks: dict[str, Check], deadline_s: float = DEADLINE_S) -> list[Finding]:
    """What the checks find, in their order; none of them can stop or delay another. Never raises but CancelledError."""
    gathered: Sequence[list[Finding]] = await asyncio.gather(
        *(_findings(name, check, about, deadline_s) for name, check in checks.items())
    )
    return [_printable(finding) for findings in gathered for finding in findings]


async def _findings(name: str, check: Check, about: About, deadline_s: float) -> list[Finding]:
    found: list[Finding] = []
    try:
        async with asyncio.timeout(deadline_s):
            if inspect.isasyncgenfunction(check):
                async for finding in check(about):
                    found.append(finding)  # noqa: PERF401 - what was found before a failure stays
            else:
                await aside(lambda: found.extend(check(about)), "check")  # type: ignore[arg-type]
    except TimeoutError:
        found.append(Finding(name, SKIPPED, f"not done within {deadline_s:g} s"))
    except FlannelpyError as error:
        found.append(Finding(name, SKIPPED, f"cannot be looked at: {error}"))
    except Exception as error:  # noqa: BLE001 - the edge of a check: whatever it is, the others go on
        found.append(Finding(name, SKIPPED, f"the check itself failed: {type(error).__name__}: {error}", "please report it"))
    return found


def _printable(finding: Finding) -> Finding:
    return Finding(*(printable(text, LINE) for text in (finding.name, finding.state, finding.said, finding.remedy)))
