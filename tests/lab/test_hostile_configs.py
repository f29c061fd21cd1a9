"""Does any network config that is written under running agents ever cost a packet? Is it refused by name, and the former one kept?

c1 10.1.1.2 - h1 ==== vxlan, host-gw, udp in turn ==== h2 - c2 10.1.2.2        etcd: sixty configs, then the good one
"""

from __future__ import annotations

import pytest

from netns_lab.lab import PREFIX, Lab
from tests.lab import hostile_support as hostile
from tests.lab.agent_support import Log, lab_name, losing_nothing, no_traceback, routes, settled_overlay, until  # noqa: F401
from tests.lab.host_support import BACKENDS, conditions, lives, memory_mb, told, until_nothing_is_wrong

CONFIG = f"{PREFIX}/config"
LOG_BYTES = 200_000
MEMORY_MB = 300

pytestmark = pytest.mark.timeout(400)


def put(lab: Lab, text: str | None) -> None:
    if text is None:
        lab.etcd.delete(CONFIG)
    else:
        lab.etcd.put(CONFIG, text)


@pytest.mark.parametrize("backend", BACKENDS)
async def test_hostile_configs_are_refused_by_name_and_cost_nothing(overlay: Lab, backend: str) -> None:
    one, good = overlay.host(1), overlay.etcd.get(CONFIG)
    await until_nothing_is_wrong(*overlay.hosts)
    before, kernel, log = lives(overlay.hosts), sorted(await routes(one)), Log.from_now(one)
    bad = hostile.configs(backend)
    assert len(bad) >= 40
    async with losing_nothing(overlay, "c1", "c2"):
        for name, (text, word) in bad.items():
            put(overlay, text)
            if not word:
                continue  # nothing to be said of it: that the next one is told shows that it was read
            seen: dict[str, str] = {}

            async def refused(word: str = word, seen: dict[str, str] = seen) -> bool:
                seen.clear()
                seen.update(await conditions(one))
                return word in seen.get("config-changed", "")

            await until(refused, 30, f"{name} is refused", lambda seen=seen: (seen, log.text[-1000:]))
            document = await told(one)
            assert (document["ready"], document["backend"]["type"]) == (True, backend), name
        put(overlay, good)
        await until_nothing_is_wrong(*overlay.hosts)
        assert sorted(await routes(one)) == kernel
    assert lives(overlay.hosts) == before
    most_mb, written = memory_mb(one), len(log.text.encode())
    print(f"{backend}: {len(bad)} configs, {written:,} bytes of log, at most {most_mb:.0f} MB")
    assert (written < LOG_BYTES, most_mb < MEMORY_MB) == (True, True)
    assert "\x1b" not in log.text
