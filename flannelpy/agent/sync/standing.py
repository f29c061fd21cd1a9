"""How do we stand? What is desired and not there, and why; worked out from desired state, mirror and the kernel's last answers."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from flannelpy.agent.report import Reporter
from flannelpy.agent.sync.fragments import FIREWALL, HOST, Fragments
from flannelpy.agent.sync.kernel_errors import Refusal, conditions, explain, in_the_way, links
from flannelpy.agent.sync.mirror import Mirror
from flannelpy.agent.sync.retries import Retries
from flannelpy.core.errors import KernelError
from flannelpy.core.objects import Key
from flannelpy.core.plan import Plan, Step
from flannelpy.core.tally import Histogram
from flannelpy.kernel import Kernel, Result


class Standing:
    """``refusals``: by key, what the kernel said to the last step. ``steps``: how many were taken, by kind of object, what was
    to be done, and what came of it; ``convergence``: how long the rounds took that had steps.
    """

    def __init__(self, fragments: Fragments, mirror: Mirror, retries: Retries) -> None:
        self.refusals: dict[Key, Refusal] = {}
        self.steps: Counter[tuple[str, str, str]] = Counter()
        self.convergence = Histogram()
        self._fragments = fragments
        self._mirror = mirror
        self._retries = retries

    def in_sync(self, key: Key) -> bool:
        """True where the kernel holds what is desired under ``key``, as far as we were told."""
        return self._mirror.get(key) == self._fragments.desired.get(key)

    @property
    def failing(self) -> Mapping[Key, Refusal]:
        """What the kernel has refused and still does not hold."""
        return {key: refusal for key, refusal in self.refusals.items() if not self.in_sync(key)}

    @property
    def left_over(self) -> bool:
        """True while the kernel refuses to let go of something that nobody wants any more: it is still ours."""
        return any(refusal.step.op == "remove" for refusal in self.failing.values())

    @property
    def host_failed(self) -> bool:
        """True while something of the host's own (device, address, network route, firewall) could not be applied.

        Packets flow without a sysctl, which in a container may not be settable.
        """
        spare = self._fragments.target.spare if self._fragments.has_target else ()
        ours = {key for owner in (HOST, FIREWALL) for key in self._fragments.desired.fragment(owner).objects if key not in spare}
        return bool(self._fragments.broken) or any(key in ours and key.kind != "sysctl" for key in self.failing)

    def why_not(self, owner: str) -> str | None:
        """Why the kernel does not hold all of an owner's fragment: its error; empty where it only has not come to it; else None."""
        if not self._fragments.knows(owner):
            return ""
        out = [key for key in self._fragments.desired.fragment(owner).objects if not self.in_sync(key)]
        refused = [self.refusals[key].why for key in out if key in self.refusals]
        return refused[0] if refused else "" if out else None

    def count(self) -> tuple[Counter[str], Counter[str]]:
        """Kernel objects by kind: those that are desired, and those of them that are in sync, as far as we were told."""
        desired = self._fragments.desired.state.objects
        held = Counter(key.kind for key, item in desired.items() if self._mirror.get(key) == item)
        return Counter(key.kind for key in desired), held

    def tally(self, results: Sequence[Result], took_s: float) -> None:
        """Count what a round has done, and how long that took from the first news it took up."""
        if results:
            self.steps.update((each.step.key.kind, each.step.op, "refused" if each.error else "done") for each in results)
            self.convergence.observe(took_s)

    async def refuse(self, kernel: Kernel, refused: Collection[tuple[Step, KernelError]], now: float) -> Collection[Key]:
        """The kernel has refused these steps: why is found out where that is news, and they are tried again later; but where
        somebody else has the number of a nexthop object, without. The keys to look at for that.
        """
        news = list[tuple[Step, KernelError]]()
        for step, error in refused:
            self._retries.refused(step.key, now)
            before = self.refusals.get(step.key)
            if before is None or (before.step, str(before.error)) != (step, str(error)):
                news.append((step, error))
        others = await in_the_way(kernel, news)
        for step, error in news:
            if step.op == "add" and step.item in others.get(step.key, ()):  # what went was another beside it (ip route append)
                self.forget(step.key)
                self._mirror.learn(step.key, step.item)
            else:
                self.refusals[step.key] = Refusal(step, error, await explain(step, error, others.get(step.key, ())))
        taken = [step.key for step, error in refused if step.key.kind == "nexthop" and error.code == errno.EEXIST]
        without = self._fragments.avoid_nexthops(taken)
        for key in without:
            self.forget(key)
        return without

    def forget(self, key: Key) -> None:
        """There is nothing left to try under ``key``."""
        self._retries.done(key)
        self.refusals.pop(key, None)

    def settle(self, looked_at: Collection[Key] | None, steps: Plan, now: float) -> None:
        """Of what was due and looked at (None: everything), is not desired, and about which nothing is done: there is nothing to
        try. It would be due for ever: what may not be removed, or is somebody else's.
        """
        planned = {step.key for step in steps} if len(self._retries) else ()
        for key in self._retries:
            due = (looked_at is None or key in looked_at) and not self._retries.waiting(key, now)
            if due and key not in planned and self._fragments.desired.get(key) is None:
                self.forget(key)

    def report(self, reporter: Reporter) -> None:
        """Derive what is wrong, and set it."""
        for key in [key for key in self.refusals if self.in_sync(key)]:
            self.forget(key)
        failing = self.failing
        reporter.set("kernel-refused", conditions(failing.values(), links(failing)))
