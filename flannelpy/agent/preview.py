"""What has a running agent still to do? Its desired state against a fresh look at the kernel; nothing is done."""

from __future__ import annotations

from flannelpy.agent.network import Network
from flannelpy.core.plan import Plan, plan
from flannelpy.kernel import Kernel


async def of_running(kernel: Kernel, network: Network | None) -> tuple[Plan, tuple[str, ...]]:
    """What a running agent has still to do, by a fresh look at the kernel. Raises KernelError."""
    if network is None or not network.reconciler.fragments.has_target:
        return (), ("the agent has no config, uplink or lease yet: flannelpy status says why",)
    fragments = network.reconciler.fragments
    steps = plan(fragments.desired.state, await kernel.observe(fragments.scope), fragments.scope)
    if network.steering.phase.may_sweep:
        return steps, ()
    kept = tuple(step for step in steps if step.op != "remove")
    return kept, (
        f"nothing is removed before {network.context.settings.registry_name} has confirmed lease and peers",
    ) if kept != steps else ()
