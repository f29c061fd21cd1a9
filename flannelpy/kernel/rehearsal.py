"""Could the kernel do this? Asked by doing it, in an empty network namespace that is gone afterwards; never by its version.

A thread of our own unshares its network namespace and ends with it (unshare(2), network_namespaces(7)); modules that the kernel
needs are loaded on the way. That takes CAP_SYS_ADMIN. Without it the steps are tried here and undone at once.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeVar, cast

from flannelpy.core.errors import KernelError
from flannelpy.core.objects import Link, Wireguard, WireguardDevice
from flannelpy.core.plan import Step
from flannelpy.core.secret import Secret
from flannelpy.kernel import Kernel, Result

CLONE_NEWNET = 0x40000000

DEADLINE_S = 10.0
"""How long a rehearsal may take, in seconds."""

THERE = frozenset({errno.EEXIST, errno.EADDRINUSE, errno.EALREADY})
"""How the kernel says that there is such a thing already: it can make one."""


TRIAL_DEVICE = "flannelpy-wg"
"""Nobody's name."""


class FailedError(KernelError):
    """The rehearsal itself failed, or did not end: it says nothing of what was tried."""


K = TypeVar("K", bound=Kernel)
T = TypeVar("T")


async def rehearse(make_kernel: Callable[[], Kernel], steps: Sequence[Step], deadline_s: float = DEADLINE_S) -> Sequence[Result]:
    """See ``Kernel.rehearse``. ``make_kernel`` gives one for the namespace of the thread that calls it.

    Raises KernelError where the rehearsal itself fails, or does not end in time (a module that does not finish loading).
    """

    async def work(kernel: Kernel, fresh: bool) -> Sequence[Result]:
        return await rehearse_here(kernel, steps, undo=not fresh)

    try:
        return await in_empty_namespace(make_kernel, work, ", ".join(map(str, steps)), deadline_s)
    except FailedError:
        raise
    except KernelError as refusal:
        return [Result(step, refusal) for step in steps]


async def in_empty_namespace(
    make_kernel: Callable[[], K], work: Callable[[K, bool], Awaitable[T]], what: str, deadline_s: float = DEADLINE_S
) -> T:
    """What ``work`` returns for a kernel that is empty; told False where it is this host's after all, and what it makes is to go.

    ``what`` is tried. Raises KernelError, and FailedError.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, failed: KernelError | None) -> None:
        if done.done():
            return
        if failed is not None:
            done.set_exception(failed)
        else:
            done.set_result(cast(T, result))

    async def use(fresh: bool) -> T:
        kernel = make_kernel()
        try:
            return await work(kernel, fresh)
        finally:
            await kernel.close()

    def begin() -> None:
        result, failed = None, None
        try:
            result = asyncio.run(use(ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) == 0))
        except KernelError as error:
            failed = error
        except OSError as error:
            failed = KernelError(str(error.strerror), error.errno or 0)
        except BaseException as error:  # noqa: BLE001 - the edge of a thread: whatever it is, somebody waits for it
            failed = FailedError(f"the rehearsal failed: {type(error).__name__}: {error}")
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(tell, result, failed)

    threading.Thread(target=begin, name="rehearsal", daemon=True).start()
    try:
        async with asyncio.timeout(deadline_s):
            return await done
    except TimeoutError:
        raise FailedError(f"whether the kernel can do this was not clear in {deadline_s:g} s: {what}", errno.ETIMEDOUT) from None


def trial_of_key(private: Secret[bytes]) -> list[Step]:
    """A wireguard device with this key, which listens nowhere."""
    link = Link(TRIAL_DEVICE, "wireguard", 1420, up=False, detail=Wireguard())
    return [Step("add", link), Step("add", WireguardDevice(TRIAL_DEVICE, 0, private))]


async def rehearse_here(kernel: Kernel, steps: Sequence[Step], undo: bool) -> Sequence[Result]:
    """The same in the namespace of ``kernel``; with ``undo``, what was made is removed again."""
    results = await kernel.apply(steps)
    if undo:
        made = [result.step.item for result in results if result.error is None]
        await kernel.apply([Step("remove", item, item) for item in reversed(made)])
    return [Result(result.step) if result.error and result.error.code in THERE else result for result in results]
