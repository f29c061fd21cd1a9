"""Why did the kernel refuse a step, and is it worth a word?"""

from __future__ import annotations

import errno

from flannelpy.core.errors import KernelError
from flannelpy.core.objects import Route, Sysctl
from flannelpy.core.plan import Step
from flannelpy.kernel import Kernel, Result


async def explain(kernel: Kernel, failed: Result) -> str:
    """The kernel's reason; and where a route of somebody else is in the way, which. Raises KernelError."""
    item, error = failed.step.item, failed.error
    if isinstance(item, Route) and error is not None and error.code == errno.EEXIST:
        theirs = await kernel.route_at(item.dst)
        if theirs is not None:
            return f"{theirs} is there and is not ours"
    return str(error)


def is_moot(step: Step, error: KernelError) -> bool:
    """A setting that this kernel does not have (IPv6 switched off) is not worth a word."""
    return isinstance(step.item, Sysctl) and error.code == errno.ENOENT
