"""What is told of a registry that is not well? Hours of calls in a moment: once when it begins and once when it ends, as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannelpy.core.conditions import CONDITIONS
from flannelpy.core.errors import (
    ConflictError,
    RegistryAuthError,
    RegistryError,
    RegistryRefusedError,
    RegistryTlsError,
    RegistryUnavailableError,
)
from flannelpy.core.health import Health
from flannelpy.registry.health import CODES, Kind, RegistryHealth
from flannelpy.registry.memory import MemoryRegistry
from flannelpy.registry.monitored import Monitored
from tests.contract.registry_place import attrs, net

REFUSED = RegistryUnavailableError("http://etcd:2379: connection refused; expected etcd to answer there")
SILENT = RegistryUnavailableError("http://etcd:2379: no answer in time; expected etcd to answer within 5 s")
DEAF = RegistryUnavailableError("http://etcd:2379: no sign of life on the watch for 2 s; expected etcd to answer")
NO_SPACE = RegistryRefusedError("http://etcd:2379: etcd takes no more writes: database space exceeded")
LEARNER = RegistryRefusedError("http://etcd:2379: etcd refused: rpc not supported for learner")
NO_USER = RegistryAuthError("http://etcd:2379: etcd asks for a user; expected --etcd-username and --etcd-password")
NO_ROLE = RegistryAuthError("http://etcd:2379: user 'f' lacks the role; expected one that may read and write the prefix")
NO_TRUST = RegistryTlsError("https://etcd:2379: TLS: the server's certificate is not signed by --etcd-cafile 'ca'")


@dataclass
class Etcd(MemoryRegistry):
    """What ``look`` asks of a registry, in the test's hand."""

    is_alive: bool = True
    watch_trouble: RegistryError | None = None

    def __post_init__(self) -> None:
        super().__init__()

    @property
    def alive(self) -> bool:
        return self.is_alive

    @property
    def trouble(self) -> RegistryError | None:
        return self.watch_trouble


@dataclass
class Scene:
    """A registry's health in time that the test moves. ``log`` is what people read: code, ``resolved:``, text."""

    etcd: Etcd = field(default_factory=Etcd)
    now: float = 1000.0
    conditions: Health = field(default_factory=Health)
    log: list[str] = field(default_factory=list)
    sets: int = 0

    def __post_init__(self) -> None:
        self.health = RegistryHealth(self.etcd, self, lambda: self.now)

    def set(self, code: str, details: Mapping[str, str]) -> None:
        """As the agent's reporter does."""
        self.sets += 1
        self.conditions.set(code, self.now, details)

    def seconds(self, number: int, *failures: tuple[Kind, RegistryError], well: tuple[Kind, ...] = ()) -> None:
        """So many seconds in which these calls fail in turn, and those succeed."""
        for _ in range(number):
            for kind, error in failures:
                self.health.failed(kind, error)
                self.report()
                self.now += 0.1
            for kind in well:
                self.health.succeeded(kind)
            self.now += 1.0 - 0.1 * len(failures)
            self.health.look(self.now)
            self.report()

    def report(self) -> None:
        for item in self.conditions.news(self.now)[0]:
            prefix = "resolved: " if item.resolved else ""
            subject = f" {item.active.subject}" if item.active.subject else ""
            self.log.append(f"{prefix}{item.active.condition.code}{subject}")
            if not item.resolved:
                self.texts = [*getattr(self, "texts", []), item.active.text]


def test_an_hour_of_outage_seen_by_all_is_one_begin_and_one_end() -> None:
    scene = Scene()
    scene.seconds(5, well=tuple(Kind))
    scene.etcd.watch_trouble, scene.etcd.is_alive = DEAF, False
    everybody = ((Kind.READ, REFUSED), (Kind.WRITE, SILENT), (Kind.KEEP_ALIVE, SILENT), (Kind.WATCH, DEAF))
    scene.seconds(3600, *everybody)
    scene.etcd.watch_trouble, scene.etcd.is_alive = None, True
    scene.seconds(60, well=tuple(Kind))
    assert scene.log == ["registry-unreachable", "resolved: registry-unreachable"]
    assert scene.texts == [f"etcd does not answer: {REFUSED}; what is programmed stays as it is"]


@given(
    st.lists(
        st.tuples(st.sampled_from(list(Kind)), st.sampled_from([REFUSED, SILENT, DEAF])),
        min_size=1,
        max_size=6,
    ),
    st.integers(5, 400),
    st.booleans(),
)
def test_whoever_sees_an_outage_it_is_told_once(voices: list[tuple[Kind, RegistryError]], seconds: int, troubled: bool) -> None:
    scene = Scene()
    scene.etcd.is_alive, scene.etcd.watch_trouble = False, DEAF if troubled else None
    scene.seconds(seconds, *voices)
    assert scene.log == ["registry-unreachable"]
    scene.etcd.is_alive, scene.etcd.watch_trouble = True, None
    scene.seconds(5, well=tuple(kind for kind, _ in voices))
    assert scene.log == ["registry-unreachable", "resolved: registry-unreachable"]
    assert list(scene.conditions) == []


def test_a_blip_is_no_news() -> None:
    scene = Scene()
    scene.health.failed(Kind.READ, REFUSED)
    scene.seconds(1, well=(Kind.READ,))
    scene.seconds(10, well=tuple(Kind))
    assert scene.log == []


def test_no_space_with_healthy_reads_is_told_as_that() -> None:
    scene = Scene()
    scene.seconds(70, (Kind.WRITE, NO_SPACE), well=(Kind.READ, Kind.WATCH, Kind.KEEP_ALIVE))
    assert scene.log == ["registry-refused write"]
    assert "etcd takes no more writes: database space exceeded" in scene.texts[0]
    assert "does not answer" not in scene.texts[0]
    assert scene.health.verdict.answers
    scene.seconds(4, well=(Kind.WRITE,))
    assert scene.log == ["registry-refused write", "resolved: registry-refused write"]


def test_auth_switched_on_under_way_is_told_of_what_it_stops() -> None:
    """The watch stands and keep-alives go on: they were let in before."""
    scene = Scene()
    scene.seconds(5, well=tuple(Kind))
    scene.seconds(100, (Kind.READ, NO_USER), well=(Kind.KEEP_ALIVE,))
    assert scene.log == ["registry-auth read"]
    scene.seconds(100, (Kind.READ, NO_USER), (Kind.WRITE, NO_USER), well=(Kind.KEEP_ALIVE,))
    assert scene.log == ["registry-auth read", "registry-auth write"]
    scene.seconds(2, well=(Kind.READ, Kind.WRITE))
    assert sorted(scene.log[2:]) == ["resolved: registry-auth read", "resolved: registry-auth write"]


def test_a_wrong_password_is_one_text() -> None:
    scene = Scene()
    scene.etcd.watch_trouble = NO_USER
    scene.seconds(100, *((kind, NO_USER) for kind in Kind))
    assert scene.log == ["registry-auth"]
    scene.etcd.watch_trouble = None
    scene.seconds(2, well=tuple(Kind))
    assert scene.log == ["registry-auth", "resolved: registry-auth"]


def test_a_role_that_may_only_read_is_told_of_writes() -> None:
    scene = Scene()
    scene.seconds(100, (Kind.WRITE, NO_ROLE), well=(Kind.READ, Kind.KEEP_ALIVE))
    assert scene.log == ["registry-auth write"]
    assert scene.texts[0].startswith("etcd refuses us: writes: http://etcd:2379: user 'f' lacks the role")


def test_no_trust_is_not_told_as_silence_too() -> None:
    scene = Scene()
    scene.etcd.is_alive = False
    scene.seconds(100, (Kind.READ, NO_TRUST))
    assert scene.log == ["registry-tls"]


def test_a_kind_that_is_refused_is_told_beside_an_outage_of_another() -> None:
    scene = Scene()
    scene.seconds(20, (Kind.WRITE, NO_SPACE), (Kind.READ, SILENT))
    assert sorted(scene.log) == ["registry-refused write", "registry-unreachable"]
    scene.seconds(20, (Kind.WRITE, NO_SPACE), well=(Kind.READ,))
    assert scene.log[2:] == ["resolved: registry-unreachable"]


def test_while_this_hosts_own_link_is_down_etcd_is_not_blamed() -> None:
    scene = Scene()
    scene.etcd.is_alive = False
    scene.health.link_down("eth1")
    scene.seconds(60, (Kind.READ, SILENT), (Kind.WATCH, DEAF))
    assert scene.health.verdict.text == "eth1 of this host is down"
    assert not scene.health.verdict.answers
    scene.health.link_down("")
    scene.seconds(2, (Kind.READ, SILENT))  # up again, and the connection takes its time
    scene.etcd.is_alive = True
    scene.seconds(10, well=tuple(Kind))
    assert scene.log == []


def test_a_link_that_goes_down_in_an_outage_takes_the_blame() -> None:
    scene = Scene()
    scene.etcd.is_alive = False
    scene.seconds(10, (Kind.READ, SILENT))
    scene.health.link_down("eth1")
    scene.seconds(10, (Kind.READ, SILENT))
    assert scene.log == ["registry-unreachable", "resolved: registry-unreachable"]


def test_a_link_that_is_up_again_is_no_reason_for_ever() -> None:
    scene = Scene()
    scene.etcd.is_alive = False
    scene.health.link_down("eth1")
    scene.seconds(10, (Kind.READ, SILENT))
    scene.health.link_down(None)
    scene.seconds(10, (Kind.READ, SILENT))
    assert scene.log == ["registry-unreachable"]


def test_a_link_that_is_down_without_a_failure_is_nothing_to_do_with_etcd() -> None:
    scene = Scene()
    scene.health.link_down("eth1")
    scene.seconds(10, well=tuple(Kind))
    assert scene.log == []


def test_a_failure_that_nobody_repeats_is_over_where_etcd_answers_others() -> None:
    scene = Scene()
    scene.health.failed(Kind.WRITE, SILENT)
    scene.seconds(10, well=(Kind.READ,))
    assert scene.log == ["registry-unreachable"]
    scene.seconds(10, well=(Kind.READ,))
    assert scene.log == ["registry-unreachable", "resolved: registry-unreachable"]
    scene.health.failed(Kind.WRITE, NO_SPACE)
    scene.seconds(300, well=(Kind.READ,))
    assert scene.log[2:] == ["registry-refused write", "resolved: registry-refused write"]


def test_a_failure_that_nobody_repeats_stays_where_nobody_answers() -> None:
    scene = Scene()
    scene.health.failed(Kind.WRITE, SILENT)
    scene.etcd.is_alive = False
    scene.seconds(3600)
    assert scene.log == ["registry-unreachable"]


def test_another_reason_of_a_refusal_is_told_but_not_another_endpoint() -> None:
    scene = Scene()
    there = RegistryRefusedError(str(NO_SPACE).replace("etcd:2379", "other:2379"))
    scene.seconds(300, (Kind.WRITE, NO_SPACE), (Kind.WRITE, there), well=(Kind.READ,))
    assert scene.log == ["registry-refused write"]
    scene.seconds(300, (Kind.WRITE, LEARNER), well=(Kind.READ,))
    assert scene.log == ["registry-refused write"] * 2
    assert "learner" in scene.texts[-1]


def test_silence_alone_is_told() -> None:
    scene = Scene()
    scene.etcd.is_alive = False
    scene.seconds(600)
    scene.etcd.is_alive = True
    scene.seconds(4)
    assert scene.log == ["registry-unreachable", "resolved: registry-unreachable"]


def test_what_holds_is_said_again_to_a_reporter_that_forgot() -> None:
    scene = Scene()
    scene.seconds(10, (Kind.WRITE, NO_SPACE))
    scene.conditions = Health()
    scene.seconds(5, (Kind.WRITE, NO_SPACE))
    assert [active.condition.code for active in scene.conditions] == ["registry-refused"]


def test_every_code_is_a_condition() -> None:
    assert set(CODES) <= CONDITIONS.keys()
    for code in ("registry-unreachable", "registry-refused"):
        assert CONDITIONS[code].after >= 2.0  # longer than a text takes to settle


ERRORS = [REFUSED, SILENT, DEAF, NO_SPACE, LEARNER, NO_USER, NO_ROLE, NO_TRUST, RegistryError("anything at all")]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("fails"), st.sampled_from(list(Kind)), st.sampled_from(ERRORS)),
            st.tuples(st.just("succeeds"), st.sampled_from(list(Kind))),
            st.tuples(st.just("link"), st.sampled_from(["eth1", "", None])),
            st.tuples(st.just("alive"), st.booleans(), st.sampled_from([None, *ERRORS])),
            st.tuples(st.just("time"), st.floats(0.0, 500.0)),
        ),
        max_size=40,
    )
)
def test_whatever_happens_nothing_is_raised_and_everything_ends(story: list[tuple[object, ...]]) -> None:
    scene = Scene()
    for what, *how in story:
        match what, how:
            case "fails", [Kind() as kind, RegistryError() as error]:
                scene.health.failed(kind, error)
            case "succeeds", [Kind() as kind]:
                scene.health.succeeded(kind)
            case "link", [name]:
                scene.health.link_down(name)  # type: ignore[arg-type]
            case "alive", [bool() as alive, trouble]:
                scene.etcd.is_alive, scene.etcd.watch_trouble = alive, trouble  # type: ignore[assignment]
            case "time", [float() as seconds]:
                scene.now += seconds
                scene.health.look(scene.now)
        scene.report()
        held = {active.condition.code for active in scene.conditions if active.ended is None}
        assert (scene.health.verdict.code == "") is (not held) or scene.health.verdict.text.endswith("of this host is down")
    scene.etcd.is_alive, scene.etcd.watch_trouble = True, None
    scene.health.link_down(None)
    scene.seconds(5, well=tuple(Kind))
    assert list(scene.conditions) == []
    assert scene.health.verdict.code == ""


# ------------------------------------------------------------------------------------------------- calls that are watched


async def test_every_call_is_told_by_its_kind() -> None:
    scene = Scene()
    monitored = Monitored(scene.etcd, scene.health)
    lease = await monitored.create(net("10.5.1.0/24"), attrs())
    refusal = RegistryRefusedError("no")
    for method, call, kind in (
        ("config", lambda: monitored.config(), "read"),
        ("snapshot", lambda: monitored.snapshot(), "read"),
        ("remaining", lambda: monitored.remaining(lease), "read"),
        ("outliving", lambda: monitored.outliving([lease]), "read"),
        ("put_config", lambda: monitored.put_config("{}"), "write"),
        ("create", lambda: monitored.create(net("10.5.2.0/24"), attrs()), "write"),
        ("renew", lambda: monitored.renew(lease, attrs()), "write"),
        ("release", lambda: monitored.release(lease), "write"),
        ("keep_alive", lambda: monitored.keep_alive(lease), "keep-alive"),
        ("watch", lambda: anext(monitored.watch(1)), "watch"),
    ):
        scene.etcd.fail(method, refusal)
        with pytest.raises(RegistryRefusedError):
            await call()
        assert [active.subject for active in scene.conditions] == [kind], method
        assert await _answer(call) is not None or method == "release"
        scene.health.succeeded(Kind.WATCH)  # a watch that merely stands has not succeeded
        assert list(scene.conditions) == [], method
    assert scene.health.verdict.code == ""


async def _answer(call: object) -> object:
    try:
        return await call()  # type: ignore[operator]
    except ConflictError as conflict:
        return conflict


async def test_a_conflict_is_an_answer() -> None:
    scene = Scene()
    monitored = Monitored(scene.etcd, scene.health)
    lease = await monitored.create(net("10.5.1.0/24"), attrs())
    scene.health.failed(Kind.WRITE, SILENT)
    await monitored.renew(lease, attrs())
    scene.health.failed(Kind.WRITE, SILENT)
    with pytest.raises(ConflictError):
        await monitored.renew(lease, attrs())
    assert list(scene.conditions) == []


async def test_a_watch_through_it_is_a_watch() -> None:
    scene = Scene()
    monitored = Monitored(scene.etcd, scene.health)
    scene.health.failed(Kind.WATCH, SILENT)
    batches = monitored.watch(scene.etcd.store.revision + 1)
    assert (await anext(batches)).connected
    assert scene.conditions.holds("registry-unreachable")  # that it stands proves nothing
    await monitored.create(net("10.5.1.0/24"), attrs())
    assert (await anext(batches)).events
    assert list(scene.conditions) == []
    await batches.aclose()  # type: ignore[attr-defined]
