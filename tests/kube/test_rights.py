"""Is every right of the shipped ClusterRole needed, and does the agent say which one is missing? One after the other is taken away.

c1 - h1 ==== vxlan ==== h2 - c2        kube-apiserver and etcd apart
"""

from __future__ import annotations

import shutil
from functools import partial

import pytest

from netns_lab.host import Host
from tests.kube.cluster import PATIENCE_S, ROLE, Cluster, conditions, missing
from tests.kube.posted import PREFIX, Nodes, holds, routed
from tests.lab.agent_support import until

MISSING = missing("kube-apiserver")
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)


async def refused(host: Host, verb: str, resource: str) -> bool:
    """Whether its agent says that it may not do this."""
    found = (await host.status()).get("conditions", ())
    return any(each["code"] == "registry-auth" and f'cannot {verb} resource "{resource}"' in each["text"] for each in found)


async def served(cluster: Cluster, host: Host) -> bool:
    """Whether its node says what its peers need, and that pods may come."""
    node = await cluster.node(host.name)
    return f"{PREFIX}public-ip" in node["metadata"]["annotations"] and conditions(node).get("NetworkUnavailable") == "False"


async def is_ready(host: Host) -> bool:
    """Whether its agent says so."""
    return bool((await host.status()).get("ready"))


async def test_without_any_one_of_its_rights_an_agent_says_so_and_waits_for_it(api_server: Cluster) -> None:
    nodes, (one, two, _) = await Nodes.of(api_server, "vxlan"), api_server.lab.hosts
    for host in (one, two):
        await nodes.add(host)
    for count, (verb, resource) in enumerate(sorted(ROLE)):
        await api_server.grant(ROLE - {(verb, resource)})
        for host in (one, two):
            await nodes.make_anew(host)
            shutil.rmtree(host.state_dir, ignore_errors=True)  # with what it has kept an agent is up without any right
            host.subnet_file.unlink(missing_ok=True)
        nodes.launch(one, two)
        for host in (one, two):
            await until(partial(refused, host, verb, resource), PATIENCE_S, f"an agent that may not {verb} {resource}, and says so")
        if verb == "watch":  # what was listed is carried; what comes later is not heard
            for host in (one, two):
                await until(partial(is_ready, host), PATIENCE_S, "an agent that is ready without a watch")
        else:
            assert [await is_ready(host) for host in (one, two)] == [False, False], verb
            assert [await served(api_server, host) for host in (one, two)] == [False, False], verb
        await api_server.grant(ROLE)
        for host in (one, two):
            await until(partial(served, api_server, host), PATIENCE_S, f"a node that is served, as its agent may {verb} again")
            await until(partial(_at_rest, host), PATIENCE_S, f"an agent that may {verb} again, and says so")
        for host, other in ((one, two), (two, one)):
            await until(partial(routed, host, other), PATIENCE_S, "a route to the other node")
        if not count:
            await nodes.connect(one, two)
        await nodes.meet(one, two)
        for host in (one, two):
            await host.agent.stop()
    assert api_server.asked() == ROLE


async def _at_rest(host: Host) -> bool:
    return await is_ready(host) and not await holds(host, "registry-auth")


async def test_a_role_that_comes_after_the_agents_is_waited_for(api_server: Cluster) -> None:
    nodes, (one, two, _) = await Nodes.of(api_server, "vxlan"), api_server.lab.hosts
    await api_server.grant(())
    for host in (one, two):
        await nodes.add(host)
    nodes.launch(one, two)
    for host in (one, two):
        await until(partial(holds, host, "registry-auth"), PATIENCE_S, "an agent that is refused")
    await api_server.grant(ROLE)
    await nodes.connect(one, two)
    await nodes.meet(one, two)
