"""What does ``flannelpy cleanup`` do? It takes away what the agents of one network made on this host, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flannelpy.agent.lock import Claimant, Claims, hold_lock
from flannelpy.commands import leftovers, litter, reservations
from flannelpy.commands.conversation import with_registry
from flannelpy.commands.leftovers import Known, Places
from flannelpy.commands.litter import Piece
from flannelpy.commands.located import located, told_by_defaults
from flannelpy.commands.terminal import agreed, say
from flannelpy.core.dialect import lines
from flannelpy.core.errors import FlannelpyError, KernelError
from flannelpy.core.foreign import LINE, printable
from flannelpy.core.plan import Plan
from flannelpy.host import defaults
from flannelpy.options import BY_NAME, Given
from flannelpy.settings import load_cleanup, load_kube

if TYPE_CHECKING:
    from flannelpy.kernel import Kernel
    from flannelpy.registry import Registry

NOTHING = "nothing to do: no agent has left anything here"


@dataclass(frozen=True, slots=True)
class Wish:
    """How it was asked for. ``state``: the identity of this host goes, too; ``release``: its lease."""

    dry_run: bool = False
    yes: bool = False
    state: bool = False
    release: bool = False


@dataclass(frozen=True, slots=True)
class Own:
    """Our lease: its subnets, the network that it is of, and the PublicIP that we published; empty where that is not known."""

    subnets: reservations.Subnets
    prefix: str
    address: str


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be done: steps in the kernel, then the lease, then the files."""

    steps: Plan
    lease: Own | None
    files: tuple[Piece, ...]
    notes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.steps or self.lease or self.files)

    def lines(self) -> list[str]:
        """As an operator would type it."""
        released = [] if self.lease is None else [f"flannelpy lease release {self.lease.subnets}"]
        return [*lines(self.steps), *released, *(piece.text for piece in self.files)]


def cleanup(given: Given, wish: Wish) -> int:
    """Name what goes, ask, and take it away. 0: nothing of ours is left; 1: something is, or the answer was no.

    Raises FlannelpyError where an agent runs, and where something cannot be taken away.
    """
    places = find_places(given, os.environ)
    if os.geteuid() != 0:
        raise FlannelpyError("cleanup needs root: start it with sudo")
    import uvloop

    from flannelpy.kernel.netlink import NetlinkKernel

    async def work(change: bool) -> Work:
        kernel = NetlinkKernel()
        try:
            return await _work(kernel, places, wish, change=change)
        finally:
            await kernel.close()

    found = uvloop.run(work(change=False))
    for note in found.notes:
        click.echo(printable(f"flannelpy: {note}", LINE), err=True)
    if not found:
        say(NOTHING)
        return 0
    for line in found.lines():
        say(line)
    if wish.dry_run:
        click.echo(f"flannelpy: dry run: nothing was changed ({_how_many(found)})", err=True)
        return 0
    if not wish.yes and not agreed("Take all of this away?", _how_many(found)):
        return 1
    with ExitStack() as held:
        _hold(held, places)
        _finish(uvloop.run(work(change=True)), given)
    click.echo(f"flannelpy: done ({_how_many(found)})", err=True)
    return 0


def find_places(given: Given, environ: Mapping[str, str]) -> Places:
    """Where the agent of this host has its files: as given, else as the service is told. Raises UsageError."""
    told = told_by_defaults(defaults.read(defaults.DEFAULTS))
    ours = {
        name: told[name]
        for name in ("state-dir", "run-dir", "subnet-file", "etcd-prefix")
        if name in told and not given.get(name) and not any(environ.get(variable) for variable in BY_NAME[name].variables)
    }
    state_dir, run_dir, subnet_file, prefix = load_cleanup({**ours, **given}, environ)
    return Places(_absolute(state_dir), _absolute(run_dir), _absolute(subnet_file), prefix)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - a link stays one


async def _work(kernel: Kernel, places: Places, wish: Wish, *, change: bool) -> Work:
    """What is to be done; with ``change`` the kernel's part of it is done."""
    known = leftovers.recall(places)
    if not change:
        _refuse(places, known)
    steps, notes = await leftovers.find(kernel, places, known)
    subnets = leftovers.own_subnets(places, known) if wish.release and not known.flanneld else None
    if wish.release and known.flanneld:
        notes = (*notes, "the lease stays: flanneld, which runs here, holds it")
    own = None if subnets is None else Own(reservations.Subnets(*subnets), known.prefix, known.state.address)
    files = litter.litter(places, known, with_state=wish.state, released=own is not None)
    found = Work(steps, own, files, (*known.notes, *notes))
    if change:
        with _claimed(places, known):
            await take_away(kernel, found.steps)
    return found


@contextmanager
def _claimed(places: Places, known: Known) -> Iterator[None]:
    """No agent of another run directory takes it up meanwhile. Raises FlannelpyError where one has it."""
    claims, was_there = Claims(Claimant(os.getpid(), str(places.run_dir), known.prefix), places.claims), places.claims.exists()
    try:
        other = claims.claim(known.claims)
        if other is not None:
            raise FlannelpyError(f"{other}; nothing was changed")
        yield
    finally:
        claims.close()
        if not was_there:
            with suppress(OSError):
                places.claims.rmdir()


def _refuse(places: Places, known: Known) -> None:
    other = leftovers.in_use(places, known)
    if other:
        raise FlannelpyError(f"{other}; stop it first (systemctl disable --now flannelpy); nothing was changed")


async def take_away(kernel: Kernel, steps: Plan) -> None:
    """Carry out the steps. Raises KernelError with each that failed: the others are done all the same."""
    results = await kernel.apply(steps)
    failed = [f"{line}: {result.error}" for result in results if result.error is not None for line in lines([result.step])]
    if failed:
        more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
        raise KernelError(f"{'; '.join(failed[:3])}{more}; all else in the kernel is done, no file was touched")


def _finish(found: Work, given: Given) -> None:
    """The lease, then the files."""
    own = found.lease
    if own is not None:
        reached = located(given, os.environ)
        if load_kube(reached, os.environ) is not None:
            say(f"lease {own.subnets}: it is our node's podCIDR and stays; kubectl delete node NAME gives it back")
        else:
            reached = {**reached, "etcd-prefix": [own.prefix]}
            say(with_registry(reached, lambda registry: give_back(registry, own)))
    for piece in found.files:
        try:
            piece.do()
        except OSError as error:
            raise FlannelpyError(f"{piece.text}: {error.strerror}") from None


async def give_back(registry: Registry, own: Own) -> str:
    """Delete our lease where it is still ours, and no reservation; what became of it, in a line. Raises RegistryError."""
    lease = next((lease for lease in (await registry.snapshot()).leases if own.subnets.name(lease)), None)
    if lease is None:
        return f"lease {own.subnets}: it is gone already"
    if own.address and not reservations.published(lease, own.address):
        return f"lease {lease}: another host has it by now; it stays"
    if lease.reserved:
        return f"lease {lease}: it is a reservation and stays; flannelpy lease release {own.subnets} deletes it"
    await registry.release(lease)
    return f"released {own.subnets}"


def _hold(stack: ExitStack, places: Places) -> None:
    """Keep an agent from starting meanwhile. Raises FlannelpyError."""
    if not stack.enter_context(hold_lock(places.run_dir)):
        raise FlannelpyError(f"--run-dir {places.run_dir}: it cannot be locked; nothing was changed")


def _how_many(found: Work) -> str:
    return f"{len(found.lines())} things to take away"
