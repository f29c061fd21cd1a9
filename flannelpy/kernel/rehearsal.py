"""Could the kernel do this? Asked by doing it, in an empty network namespace that is gone afterwards; never by its version.

A thread of our own unshares its network namespace and ends with it (unshare(2), network_namespaces(7)); modules that the kernel
needs are loaded on the way. That takes CAP_SYS_ADMIN. Without it the steps are tried here and undone at once.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from flannelpy.core.errors import KernelError
from flannelpy.core.plan import Step
from flannelpy.kernel import Kernel, Result

CLONE_NEWNET = 0x40000000

DEADLINE_S = 10.0
"""How long a rehearsal may take, in seconds."""

THERE = frozenset({errno.EEXIST, errno.EADDRINUSE, errno.EALREADY})
"""How the kernel says that there is such a thing already: it can make one."""


async def rehearse(make_kernel: Callable[[], Kernel], steps: Sequence[Step], deadline_s: float = DEADLINE_S) -> Sequence[Result]:
    """See ``Kernel.rehearse``. ``make_kernel`` gives one for the namespace of the thread that calls it.

    Raises KernelError where the rehearsal itself fails, or does not end in time (a module that does not finish loading).
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Sequence[Result]] = loop.create_future()

    def tell(results: Sequence[Result] | KernelError) -> None:
        if done.done():
            return
        if isinstance(results, KernelError):
            done.set_exception(results)
        else:
            done.set_result(results)

    def work() -> None:
        results: Sequence[Result] | KernelError
        try:
            fresh = ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) == 0
            results = asyncio.run(_rehearse(make_kernel(), steps, undo=not fresh))
        except (KernelError, OSError) as error:
            refusal = error if isinstance(error, KernelError) else KernelError(str(error.strerror), error.errno or 0)
            results = [Result(step, refusal) for step in steps]
        except BaseException as error:  # noqa: BLE001 - the edge of a thread: whatever it is, somebody waits for it
            results = KernelError(f"the rehearsal failed: {type(error).__name__}: {error}")
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(tell, results)

    threading.Thread(target=work, name="rehearsal", daemon=True).start()
    try:
        async with asyncio.timeout(deadline_s):
            return await done
    except TimeoutError:
        tried = ", ".join(map(str, steps))
        raise KernelError(f"whether the kernel can do this was not clear in {deadline_s:g} s: {tried}", errno.ETIMEDOUT) from None


async def _rehearse(kernel: Kernel, steps: Sequence[Step], undo: bool) -> Sequence[Result]:
    try:
        return await rehearse_here(kernel, steps, undo)
    finally:
        await kernel.close()


async def rehearse_here(kernel: Kernel, steps: Sequence[Step], undo: bool) -> Sequence[Result]:
    """The same in the namespace of ``kernel``; with ``undo``, what was made is removed again."""
    results = await kernel.apply(steps)
    if undo:
        made = [result.step.item for result in results if result.error is None]
        await kernel.apply([Step("remove", item, item) for item in reversed(made)])
    return [Result(result.step) if result.error and result.error.code in THERE else result for result in results]
