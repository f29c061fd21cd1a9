"""Does a host get its token, however many others want theirs? And does a call keep to its time meanwhile?"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flannelpy.core.errors import RegistryAuthError, RegistryError, RegistryUnavailableError
from flannelpy.core.secret import Secret
from flannelpy.registry import Endpoint
from flannelpy.registry.etcd.endpoints import Address, parse_endpoint
from flannelpy.registry.etcd.token import LONGEST_PAUSE_S, PATIENCE_S, REFUSED_PAUSE_S, Token
from flannelpy.registry.etcd.wire import CallError, Code
from flannelpy.registry.etcd.words import NotLetInError, costs_the_turn
from tests.unit.virtual_time import run

URLS = ("http://192.0.2.1:2379", "http://192.0.2.2:2379", "http://192.0.2.3:2379")
LOOK_S = 0.06
"""What a password takes a core."""


class GrpcError(CallError):  # type: ignore[misc, valid-type]
    def __init__(self, code: Any, details: str) -> None:
        super().__init__()
        self._said = code, details

    def code(self) -> Any:
        return self._said[0]

    def details(self) -> str:
        return str(self._said[1])


@dataclass
class Member:
    """An etcd that has so many cores for passwords; what was begun is done, whether anybody still waits or not. All share them."""

    cores: float = 1.0
    right: str = "sesame"
    address: Address = field(default_factory=lambda: parse_endpoint(URLS[0]))
    asked: int = 0
    _left_s: dict[asyncio.Future[None], float] = field(default_factory=dict)
    _at: float = 0.0
    _timer: asyncio.TimerHandle | None = None

    @property
    def auth(self) -> Member:
        return self

    async def Authenticate(self, request: Any, timeout: float) -> Any:  # noqa: N802
        loop = asyncio.get_running_loop()
        self.asked += 1
        self._work()
        looked: asyncio.Future[None] = loop.create_future()
        self._left_s[looked] = LOOK_S
        self._work()
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(looked)
        except TimeoutError:
            raise GrpcError(Code.DEADLINE_EXCEEDED, "Deadline Exceeded") from None
        if request.password != self.right:
            raise GrpcError(Code.INVALID_ARGUMENT, "etcdserver: authentication failed, invalid user ID or password")
        return SimpleNamespace(token="token")

    def _work(self) -> None:
        """What was done since, and when the next is done."""
        loop = asyncio.get_running_loop()
        share = min(1.0, self.cores / len(self._left_s)) if self._left_s else 0.0
        passed_s, self._at = loop.time() - self._at, loop.time()
        for looked in self._left_s:
            self._left_s[looked] -= passed_s * share
        for looked in [looked for looked, left_s in self._left_s.items() if left_s <= 1e-9]:
            del self._left_s[looked]
            looked.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._left_s:
            share = min(1.0, self.cores / len(self._left_s))
            self._timer = loop.call_later(max(1e-6, min(self._left_s.values()) / share), self._work)


class Frozen:
    """A member that takes connections and says nothing."""

    address = parse_endpoint(URLS[0])
    asked = 0

    @property
    def auth(self) -> Frozen:
        return self

    async def Authenticate(self, _request: object, timeout: float) -> None:  # noqa: N802
        self.asked += 1
        await asyncio.sleep(timeout)
        raise GrpcError(Code.DEADLINE_EXCEEDED, "Deadline Exceeded")


@asynccontextmanager
async def kept(wire: Any) -> AsyncIterator[Any]:
    yield wire


def token_of(urls: tuple[str, ...] = URLS[:1], password: str = "sesame", **more: Any) -> Token:
    return Token(Endpoint(urls, username="u", password=Secret(password), **more), lambda: None, kept)


async def log_in(token: Token, wire_of: Callable[[], Any]) -> float:
    """As whoever follows etcd: asks, and again after up to two seconds. Returns when it was let in, in seconds from the start."""
    while True:
        try:
            await token.get(wire_of(), 5.0)
            return asyncio.get_running_loop().time()
        except RegistryError:
            await asyncio.sleep(random.uniform(1.0, 2.0))


@pytest.mark.parametrize(("hosts", "cores"), [(1, 1.0), (50, 1.0), (300, 1.0), (300, 8.0), (2_000, 4.0)])
def test_all_hosts_are_let_in_however_many_come_at_one_moment(hosts: int, cores: float) -> None:
    """etcd was started anew. Each question that nobody waits for any more is one that the others wait for."""
    member = Member(cores)

    async def scene() -> list[float]:
        async with asyncio.timeout(3600):
            return await asyncio.gather(*(log_in(token_of(), lambda: member) for _ in range(hosts)))

    random.seed(hosts)
    took = run(scene())
    least_s = hosts * LOOK_S / cores
    assert max(took) <= least_s + 2.5 if least_s < PATIENCE_S else max(took) <= 12 * least_s
    assert member.asked <= (hosts if least_s < PATIENCE_S else 4 * hosts)


@pytest.mark.parametrize("callers", [1, 50])
@pytest.mark.parametrize("share_s", [0.5, 5.0])
def test_a_call_keeps_to_its_time_and_one_question_is_under_way(callers: int, share_s: float) -> None:
    wire = Frozen()

    async def scene() -> float:
        token, loop = token_of(), asyncio.get_running_loop()

        async def ask() -> float:
            began = loop.time()
            with pytest.raises(NotLetInError, match="still looks at our password"):
                await token.get(wire, share_s)  # type: ignore[arg-type]
            return loop.time() - began

        longest = max(await asyncio.gather(*(ask() for _ in range(callers))))
        await token.close()
        return longest

    assert run(scene()) <= share_s + 0.5
    assert wire.asked == 1


def test_who_is_not_let_in_yet_does_not_go_elsewhere() -> None:
    """Another member would be no quicker, and the question would be asked twice."""
    assert not costs_the_turn(NotLetInError(""))
    assert costs_the_turn(RegistryUnavailableError(""))


@pytest.mark.parametrize("deaf", [0, 1, 2])
def test_a_member_that_says_nothing_costs_its_time_once(deaf: int) -> None:
    """Of three the last ones answer. The wire of one that did not is left, which is up to ``using``."""
    members: list[Any] = [*(Frozen() for _ in range(deaf)), Member()]

    async def scene() -> float:
        token = token_of()
        token.endpoint = Endpoint(URLS, username="u", password=Secret("sesame"))

        def wire() -> Any:
            return members[0]

        @asynccontextmanager
        async def leave(at: Any) -> AsyncIterator[Any]:
            try:
                yield at
            except RegistryError:
                members.remove(at)
                raise

        token.using = leave
        return await log_in(token, wire)

    assert run(scene()) <= 0.1 + deaf * 7.5 + (30.0 if deaf == 2 else 0.0)


@pytest.mark.parametrize("by_file", [False, True])
def test_a_wrong_password_is_sent_seldom_and_one_that_was_put_right_at_once(by_file: bool, tmp_path: Path) -> None:
    member, file = Member(), tmp_path / "password"
    file.write_text("wrong\n")

    async def scene() -> float:
        token = token_of(password_file=str(file)) if by_file else token_of(password="wrong")
        for _ in range(3_600):
            with pytest.raises(RegistryAuthError, match="expected a user name and password that etcd knows"):
                await token.get(member, 5.0)  # type: ignore[arg-type]
            await asyncio.sleep(1.0)
        assert 3_600 / REFUSED_PAUSE_S <= member.asked <= 2.5 * 3_600 / REFUSED_PAUSE_S
        file.write_text("sesame\n")
        member.right = "sesame" if by_file else "wrong"
        began = asyncio.get_running_loop().time()
        await log_in(token, lambda: member)
        return asyncio.get_running_loop().time() - began

    assert run(scene()) <= (0.1 if by_file else REFUSED_PAUSE_S + 2.0)


def test_an_etcd_that_is_deaf_for_long_is_asked_seldom_and_not_never() -> None:
    wire = Frozen()

    async def scene() -> None:
        task = asyncio.create_task(log_in(token_of(), lambda: wire))
        await asyncio.sleep(86_400)
        task.cancel()

    run(scene())
    assert 86_400 / (LONGEST_PAUSE_S + PATIENCE_S) <= wire.asked <= 500


def test_a_connection_that_we_close_ourselves_ends_the_question_and_the_next_is_soon() -> None:
    member = Member()

    class Closed(Member):
        async def Authenticate(self, _request: Any, timeout: float) -> Any:  # noqa: N802
            await asyncio.sleep(timeout / 100)
            raise asyncio.CancelledError

    async def scene() -> float:
        wires: list[Any] = [Closed()]

        def wire() -> Any:
            return wires.pop() if wires else member

        return await log_in(token_of(), wire)

    assert run(scene()) <= 3.0


class Refusing:
    """A member that refuses at once what another would not."""

    def __init__(self, url: str, said: str) -> None:
        self.address, self.said, self.asked = parse_endpoint(url), said, 0

    @property
    def auth(self) -> Refusing:
        return self

    async def Authenticate(self, _request: object, timeout: float) -> None:  # noqa: N802
        self.asked += 1
        await asyncio.sleep(min(0.001, timeout))
        raise GrpcError(Code.UNAVAILABLE, self.said)


@pytest.mark.parametrize("said", ["etcdserver: rpc not supported for learner", "etcdserver: no leader", "connection reset by peer"])
@pytest.mark.parametrize("refusing", [1, 2])
def test_a_member_that_refuses_at_once_is_left_for_the_next_at_once(refusing: int, said: str) -> None:
    """Each ask begins with the same one: after a pause for all of them the others would never be asked."""
    bad = [Refusing(url, said) for url in URLS[:refusing]]

    async def scene() -> str | None:
        token = token_of(URLS)
        for wire in bad:
            with pytest.raises(RegistryError) as caught:
                await token.get(wire, 1.0)  # type: ignore[arg-type]
            assert costs_the_turn(caught.value)
        return await token.get(Member(address=parse_endpoint(URLS[refusing])), 1.0)  # type: ignore[arg-type]

    assert run(scene()) == "token"


@pytest.mark.parametrize("urls", [URLS[:1], URLS])
def test_in_a_pause_nobody_loses_a_turn_and_all_are_asked_in_the_end(urls: tuple[str, ...]) -> None:
    members = [Refusing(url, "etcdserver: no leader") for url in urls]

    async def scene() -> None:
        token, turn = token_of(urls), 0
        for _ in range(600):
            try:
                await token.get(members[turn % len(members)], 1.0)  # type: ignore[arg-type]
            except RegistryError as error:
                turn += costs_the_turn(error)
            await asyncio.sleep(1.0)
        assert turn == sum(member.asked for member in members)

    run(scene())
    assert all(member.asked >= 600 / REFUSED_PAUSE_S / len(urls) for member in members)
    assert sum(member.asked for member in members) <= 2.5 * 600 / REFUSED_PAUSE_S + 10


def test_who_waits_at_one_member_for_another_is_not_to_blame_for_it() -> None:
    """The wire was changed meanwhile: the question is put at the one that stands now."""
    member = Member(address=parse_endpoint(URLS[1]))

    async def scene() -> str | None:
        token = token_of(URLS)
        first = asyncio.create_task(token.get(Refusing(URLS[0], "etcdserver: no leader"), 1.0))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        assert await token.get(member, 1.0) == "token"  # type: ignore[arg-type]
        with pytest.raises(RegistryUnavailableError, match="no leader"):
            await first
        return await token.get(member, 1.0)  # type: ignore[arg-type]

    assert run(scene()) == "token"


def test_what_nobody_expected_is_told_to_whoever_waits() -> None:
    class Broken(Member):
        async def Authenticate(self, _request: Any, timeout: float) -> Any:  # noqa: N802
            raise ValueError("no such thing")

    async def scene() -> None:
        token = token_of()
        with pytest.raises(ValueError, match="no such thing"):
            await token.get(Broken(), 1.0)  # type: ignore[arg-type]
        assert await token.get(Member(), 1.0) == "token"  # type: ignore[arg-type]

    run(scene())


@pytest.mark.parametrize("timeout_s", [0.3, 5.0, 12.0])
@pytest.mark.parametrize("endpoints", [1, 2, 3])
def test_a_deaf_member_is_given_up_while_the_question_can_go_elsewhere(endpoints: int, timeout_s: float) -> None:
    """What the question has for one of several is its share; at the last one nobody gives up so soon."""

    async def scene() -> tuple[float, RegistryError]:
        token, loop = token_of(URLS[:endpoints], timeout_s=timeout_s), asyncio.get_running_loop()
        with pytest.raises(RegistryError) as caught:
            await token.get(Frozen(), timeout_s / endpoints)  # type: ignore[arg-type]
        took_s = loop.time()
        await token.close()
        return took_s, caught.value

    took_s, error = run(scene())
    assert costs_the_turn(error) is (endpoints > 1)
    assert took_s <= timeout_s / endpoints + 0.001


@pytest.mark.parametrize("urls", [URLS[:1], URLS])
@pytest.mark.parametrize("minutes", [1, 30])
def test_who_was_told_that_there_is_no_quorum_is_in_soon_after_there_is_one(urls: tuple[str, ...], minutes: int) -> None:
    """etcd says so after seven seconds, which is late, and no sign of a stampede."""
    well = Member()

    class Alone(Member):
        async def Authenticate(self, _request: Any, timeout: float) -> Any:  # noqa: N802
            await asyncio.sleep(min(timeout / 2, 7.0))
            raise GrpcError(Code.UNKNOWN, "etcdserver: request timed out")

    async def scene() -> float:
        loop, over_s, alone = asyncio.get_running_loop(), 60.0 * minutes, Alone()
        return await log_in(token_of(urls), lambda: well if loop.time() > over_s else alone) - over_s

    random.seed(minutes)
    assert max(run(scene()) for _ in range(5)) <= REFUSED_PAUSE_S + 5.0


@pytest.mark.parametrize("password", ["sesame", "wrong"])
def test_neither_password_nor_token_is_in_its_words(password: str) -> None:
    """A debugger's, or a traceback's with what its frames hold."""

    async def scene() -> str:
        token = token_of(password=password)
        with contextlib.suppress(RegistryAuthError):
            assert await token.get(Member(right="sesame"), 5.0) == "token"  # type: ignore[arg-type]
        return repr(token)

    said = run(scene())
    assert password not in said
    assert "'token'" not in said
