"""What does the running agent say is wrong? Its conditions, each with its remedy; it looks at what a single look cannot see."""

from __future__ import annotations

from collections.abc import Iterator

from flannelpy.commands.doctor.about import About
from flannelpy.explain.doctor import FAILED, OK, SKIPPED, WARNING, Finding

_STATES = {"error": FAILED, "warning": WARNING}


def agent(about: About) -> Iterator[Finding]:
    """Whether one runs, whether it is ready, and each condition."""
    status = about.status
    if status is None:
        if about.preflight:
            yield Finding("agent", SKIPPED, "before the first start none runs")
        else:
            yield Finding(
                "agent", WARNING, about.silent, "systemctl start flannelpy; flannelpy doctor --preflight before the first start"
            )
        return
    conditions = [each for each in status.conditions if each.severity in _STATES]
    for each in conditions:
        yield Finding(f"agent: {each.code}", _STATES[each.severity], each.text, each.remedy)
    blocked = {each.text for each in conditions}
    if not status.ready and (why := [text for text in status.why_not if text not in blocked]):
        yield Finding("agent", WARNING, f"not ready: {'; '.join(why)}", "flannelpy status shows what it waits for")
    elif status.ready:
        yield Finding("agent", OK, f"flannelpy {status.version}, process {status.pid}, is ready; {len(status.peers)} peers")
