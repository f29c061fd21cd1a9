"""What does a row of a backend's options take, refuse and say of itself?"""

from __future__ import annotations

import pytest

from flannelpy.core.backend import Local
from flannelpy.core.backend_options import Given, Option, in_force, read
from flannelpy.core.errors import ConfigError
from flannelpy.core.model import NO_ADDRESS, LeaseAttrs
from flannelpy.core.secret import Secret
from flannelpy.core.usual import completed

NUMBER = Option("Port", 8472, "the port", zero=True)
FLAG = Option("Learning", False, "whether")
WORD = Option("Mode", "one", "which", words=("one", "two", "three"), zero=True)
STRICT = Option("Guard", "on", "which", words=("on", "off"))
TEXT = Option("Router", None, "who", parse=lambda text: f"<{text}>")
KEY = Option("Key32", None, "the key", secret=True, parse=lambda _: Secret(b"k"))
HIDDEN = Option("Word", None, "a password", secret=True)
TABLE = (NUMBER, FLAG, WORD, STRICT, TEXT, KEY, HIDDEN)


def test_what_is_not_said_is_the_default() -> None:
    expected = {"Port": 8472, "Learning": False, "Mode": "one", "Guard": "on", "Router": None, "Key32": None, "Word": None}
    assert read(TABLE, {}) == expected
    assert read(TABLE, {"Port": None, "Learning": None, "Mode": None, "Other": 1}) == expected
    assert read(TABLE, {"Port": 0, "Mode": "", "Router": ""}) == expected


def test_what_is_said_counts_in_any_letter_case() -> None:
    given = read(TABLE, {"port": 1, "LEARNING": True, "mode": "two", "guard": "off", "router": "x", "key32": "y"})
    assert given == {
        "Port": 1,
        "Learning": True,
        "Mode": "two",
        "Guard": "off",
        "Router": "<x>",
        "Key32": Secret(b"k"),
        "Word": None,
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"Port": 65536}, "Backend.Port 65536: expected a whole number, 0 to 65535"),
        ({"Port": "1"}, 'Backend.Port "1": expected a whole number, 0 to 65535'),
        ({"Learning": 1}, "Backend.Learning 1: expected true or false"),
        ({"Mode": "four"}, 'Backend.Mode "four": expected one, two or three'),
        ({"Guard": ""}, 'Backend.Guard "": expected on or off'),
        ({"Router": 7}, "Backend.Router 7: expected a string"),
        ({"word": 7}, "Backend.Word (not shown): expected a string"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_with_what_was_expected(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as failed:
        read(TABLE, options)
    assert str(failed.value) == said


def test_what_is_in_force_is_shown_and_no_secret() -> None:
    options = {"port": 0, "learning": True, "Word": "hunter2", "Key32": Secret("x")}
    shown = {option.name: (text, said) for option, text, said in in_force(TABLE, options)}
    assert shown == {
        "Port": ("8472", False),
        "Learning": ("true", True),
        "Mode": ('"one"', False),
        "Guard": ('"on"', False),
        "Router": ("", False),
        "Key32": ("(not shown)", True),
        "Word": ("(not shown)", True),
    }


@completed
class Least:
    """A backend that says what no other can say for it."""

    name, families = "least", (4,)
    options = (NUMBER,)

    def __init__(self, given: Given) -> None:
        self.port = given["Port"]

    def attrs(self, local: Local) -> LeaseAttrs:
        return LeaseAttrs(NO_ADDRESS)


def test_a_class_is_made_with_its_options_and_has_the_whole_contract() -> None:
    from flannelpy.core.backend import Backend

    backend = Least.from_options({"port": 7})  # type: ignore[attr-defined]
    assert (backend.port, backend.accepts, backend.wants_on_link) == (7, frozenset({"least"}), False)
    contract = {name for name in [*vars(Backend), *Backend.__annotations__] if not name.startswith("_")}
    assert [name for name in sorted(contract) if not hasattr(backend, name)] == []
