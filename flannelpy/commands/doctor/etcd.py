"""Does each endpoint of etcd answer, trust us, let us read and write, and have its clock and its space in order?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from flannelpy.commands.doctor.about import About
from flannelpy.explain.doctor import FAILED, OK, SKIPPED, WARNING, Finding

CONNECT_S = 2.0
SLOW_S = 0.1
"""An answer in more than this wants a look: etcd's own election timeout is 1 s."""
CLOCK_S = 10.0
"""A clock may differ so much; certificates and logs are all that depend on it."""
SOON = timedelta(days=14)


async def etcd(about: About) -> AsyncIterator[Finding]:
    """Every endpoint, all at once."""
    each = await asyncio.gather(*(_endpoint(about, url) for url in about.settings.endpoint.urls))
    others = any(finding.state == OK and finding.name.endswith(": read") for findings in each for finding in findings)
    for findings in each:
        for finding in findings:
            bearable = others and finding.state == FAILED and finding.name.endswith(": connection")
            yield replace(finding, state=WARNING) if bearable else finding  # the agent goes on with another


async def _endpoint(about: About, url: str) -> list[Finding]:
    from flannelpy.registry.etcd import examine

    endpoint, name = about.settings.endpoint, f"etcd {url}"
    reached = await examine.connect(url, CONNECT_S)
    if reached.wrong:
        remedy = (
            f"named by {about.etcd_by}: is etcd up there, and is --etcd-endpoints right? "
            f"ETCDCTL_ENDPOINTS={url} etcdctl endpoint health"
        )
        return [Finding(f"{name}: connection", FAILED, reached.wrong, remedy)]
    found = [Finding(f"{name}: connection", OK, f"answers in {reached.took_s * 1000:.1f} ms")]
    found += await _certificates(about, url, name)
    read = await examine.read(endpoint, url)
    if read.wrong:
        found.append(Finding(f"{name}: read", *_refused(about, url, read.wrong)))
        found.append(Finding(f"{name}: write", SKIPPED, "it cannot even be read"))
    else:
        slow = read.took_s > SLOW_S
        remedy = "look at etcd's disk and the way to it: etcdctl check perf" if slow else ""
        said = f"{endpoint.prefix} can be read, in {read.took_s * 1000:.1f} ms"
        found.append(Finding(f"{name}: read", WARNING if slow else OK, said, remedy))
        write = await examine.write(endpoint, url)
        if write.wrong:
            remedy = f"etcdctl role grant-permission ROLE readwrite --prefix=true {endpoint.prefix}"
            found.append(Finding(f"{name}: write", FAILED, write.wrong, remedy))
        else:
            found.append(Finding(f"{name}: write", OK, f"{endpoint.prefix} may be written"))
    return found + await _told(about, url, name)


def _refused(about: About, url: str, wrong: str) -> tuple[str, str, str]:
    endpoint = about.settings.endpoint
    given = endpoint.cafile or endpoint.certfile or endpoint.username
    if about.etcd_by != "the options" and not given and (url.startswith("https") or "user" in wrong):
        return (
            SKIPPED,
            f"the agent's credentials are not known here: {wrong}",
            "give --etcd-cafile, --etcd-username and so on here, too",
        )
    return (
        FAILED,
        wrong,
        "check --etcd-cafile, --etcd-certfile, --etcd-keyfile, --etcd-username, and the scheme of --etcd-endpoints",
    )


async def _certificates(about: About, url: str, name: str) -> list[Finding]:
    from flannelpy.registry.etcd import examine

    now, found = datetime.now(UTC), []
    for whose, validity in (await examine.certificates(about.settings.endpoint, url)).items():
        if validity is None:
            found.append(
                Finding(f"{name}: TLS", WARNING, f"{whose} could not be read", "openssl s_client -connect HOST:PORT; openssl x509")
            )
        elif fault := validity.fault(now):
            found.append(Finding(f"{name}: TLS", FAILED, f"{whose} {fault}", "renew it, or set this host's clock: timedatectl"))
        elif validity.end - now < SOON:
            found.append(Finding(f"{name}: TLS", WARNING, f"{whose} ends at {validity.end:%Y-%m-%d %H:%M UTC}", "renew it"))
        else:
            found.append(Finding(f"{name}: TLS", OK, f"{whose} counts from {validity.begin:%Y-%m-%d} to {validity.end:%Y-%m-%d}"))
    return found


async def _told(about: About, url: str, name: str) -> list[Finding]:
    from flannelpy.registry.etcd import examine

    told = await examine.told(about.settings.endpoint, url)
    found = []
    if told.version is None:
        found.append(Finding(f"{name}: version", SKIPPED, "it does not say"))
    else:
        old = told.version.startswith(("2.", "3.0.", "3.1.", "3.2."))
        remedy = "flannelpy needs etcd 3.3 or later" if old else ""
        found.append(Finding(f"{name}: version", FAILED if old else OK, f"etcd {told.version}", remedy))
    if told.healthy is False:
        remedy = "etcdctl alarm list; after NOSPACE: etcdctl compact, etcdctl defrag, etcdctl alarm disarm"
        found.append(Finding(f"{name}: health", FAILED, f"it says that it is not healthy: {told.reason or 'no reason'}", remedy))
    elif told.healthy:
        found.append(Finding(f"{name}: health", OK, "healthy, no alarm"))
    if told.ahead_s is not None:
        apart = abs(told.ahead_s)
        said = (
            f"{apart:.0f} s {'ahead of' if told.ahead_s > 0 else 'behind'} this host's"
            if apart > 1
            else "the same as this host's, to a second"
        )
        wrong = apart > CLOCK_S
        found.append(Finding(f"{name}: clock", WARNING if wrong else OK, f"etcd's clock is {said}", "timedatectl" if wrong else ""))
    return found
