"""Is etcd blamed for what it did? It answers and refuses, cannot be trusted, or does not answer: three things to an operator."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from flannelpy.commands.status_table import table
from flannelpy.core.errors import (
    RegistryAuthError,
    RegistryError,
    RegistryRefusedError,
    RegistryTlsError,
    RegistryUnavailableError,
)
from flannelpy.explain.status import Status
from flannelpy.registry.memory import MemoryRegistry, MemoryStore

from .agents import VXLAN, HostInMemory, until

CALLS = ("config", "snapshot", "create", "renew", "keep_alive", "remaining", "outliving")


class Refusing(MemoryRegistry):
    """Answers every call with ``error``, while there is one."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.error: RegistryError | None = None
        for name in CALLS:
            setattr(self, name, self._answer(name))

    def _answer(self, name: str) -> object:
        call = getattr(MemoryRegistry, name)

        async def answer(*words: object, **named: object) -> object:
            if self.error is not None:
                raise self.error
            return await call(self, *words, **named)

        return answer


ANSWERS = [
    (RegistryAuthError("http://etcd:2379: wrong user name or password"), "registry-auth", True),
    (RegistryTlsError("https://etcd:2379: the certificate is not signed by --etcd-cafile"), "registry-tls", True),
    (RegistryRefusedError("http://etcd:2379: etcd's database is corrupt"), "registry-refused", True),
    (
        RegistryUnavailableError("http://etcd:2379: connection refused; expected etcd to answer there"),
        "registry-unreachable",
        False,
    ),
]


@pytest.mark.parametrize(("error", "code", "reached"), ANSWERS, ids=[code for _, code, _ in ANSWERS])
async def test_what_etcd_did_is_said_and_nothing_else(tmp_path: Path, error: RegistryError, code: str, reached: bool) -> None:
    host = HostInMemory(MemoryStore(), tmp_path)
    host.put_config(VXLAN)
    host.registry = registry = Refusing(host.store)
    registry.error = error
    async with host.run(ready=False):
        await until(lambda: any(each.startswith(code) for each in host.conditions()))
        assert host.agent is not None
        status = host.agent.status()
        assert {each.code for each in status.conditions} == {code}
        assert status.etcd.reachable is reached
        assert (status.etcd.unreachable_since is None) is reached
        assert not status.ready
        assert read(status, "etcd").count(f"{code}, see below") == (0 if reached else 1)
        assert "no answer" not in read(status, "etcd")
        assert read(status, "ready") == ("no: " + (f"{code}, see below" if reached else "waiting for etcd"))
        assert status.why_not == ((status.conditions[0].text,) if reached else ("waiting for etcd",))
        assert str(error).partition(": ")[2].partition(";")[0] in read(status, "conditions")
        registry.error = None
        await until(lambda: host.ready and host.conditions() == {})


def read(status: Status, heading: str) -> str:
    """The line of this heading, as a person reads it."""
    console = Console(width=400, file=io.StringIO(), record=True)
    console.print(table(status, datetime.now(UTC)))
    lines = console.export_text().splitlines()
    (at,) = (number for number, line in enumerate(lines) if line.startswith(heading))
    return lines[at].removeprefix(heading).strip()
