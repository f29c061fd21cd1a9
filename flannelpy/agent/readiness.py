"""Why is the agent not ready? What is wrong, or how far its start has come; asked from the first moment on."""

from __future__ import annotations

from flannelpy.agent.network import Network
from flannelpy.core.health import Health
from flannelpy.registry.health import AUTH, REFUSED, TLS

REGISTRY = "registry-"
"""What the codes of conditions begin with under which the registry is not as it should be."""


def why_not(network: Network | None, health: Health) -> tuple[str, ...]:
    """What keeps the agent from being ready: what is wrong, or else the step of the start that is under way."""
    wrong = tuple(active.text for active in health if active.condition.unready and active.ended is None)
    if wrong:
        return wrong
    if refused := tuple(active.text for active in health if active.condition.code in (TLS, AUTH, REFUSED) and active.ended is None):
        return refused  # it answers, and waiting for it would mend nothing
    if any(active.condition.code.startswith(REGISTRY) for active in health):
        return (f"waiting for {health.registry}",)
    if network is None or network.steering.carriage is None:
        return ("waiting for the network config",)
    return ("waiting for a lease" if network.steering.lease is None else "waiting for the kernel to take everything",)
