"""Is the house in order? A module says what it answers, a file has a size to be read, a name names something."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("flannelpy/**/*.py"), *ROOT.glob("backends/**/*.py")])
PYTHON = sorted([*SOURCES, *ROOT.glob("tests/**/*.py"), *ROOT.glob("netns-lab/**/*.py")])
WRITTEN = (".py", ".md", ".toml", ".service", ".conf", ".sh", ".yml", ".yaml", ".cfg", ".json", ".txt", "Makefile")
TEXTS = sorted(
    path
    for top in ("flannelpy", "backends", "tests", "netns-lab", "docs", "packaging", "Makefile", "README.md", "pyproject.toml")
    for path in ([ROOT / top] if (ROOT / top).is_file() else ROOT.joinpath(top).rglob("*"))
    if path.is_file() and path.name.endswith(WRITTEN) and path != Path(__file__)
)

LINES = 400
LONGER = {
    "flannelpy/core/conditions.py": "what can be wrong, one beside the other",
    "flannelpy/cli.py": "each command and what it takes, beside the others",
    "flannelpy/core/leasing.py": "the rules of a lease are read together; a tenth is the list of words they use",
    "flannelpy/core/objects.py": "each kind of kernel object beside the others",
    "flannelpy/kernel/netlink.py": "the contract of a kernel, kind by kind",
    "flannelpy/kernel/fake.py": "a whole kernel, as far as we use one",
    "flannelpy/settings.py": "what each option may say, one beside the other",
    "flannelpy/kernel/messages.py": "packing and unpacking of each message side by side",
}
"""Files that may be longer, and why."""
LONGEST = 580
WHOLE = {"flannelpy/host/cni/plugin.py": 750}
"""What is installed as one file, and how long that may be."""

PAGES = {
    "backends/vxlan.py": 130,
    "backends/host_gw.py": 35,
    "backends/alloc.py": 20,
    "backends/wireguard.py": 200,
    "backends/ipip.py": 100,
}
"""A backend is a page: what several have in common is the contract's (flannelpy/core/usual.py, ends.py, shared_options.py)."""

NO_NAMES = re.compile(r"(Manager|Helper|Utils?|Handler|Processor)$|^process_|^handle_data$")
NOT_OURS = re.compile(r"(?<![\w.])/(work|root|home/\w+)/|(?<![\w.])/tmp/w/|\b(TODO|FIXME|XXX)\b|(?m:^(<{7}|>{7}) )")
"""Paths of a machine where it was made, notes to oneself, and what a merge has left."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_a_module_opens_with_what_it_answers(path: Path) -> None:
    tree = ast.parse(path.read_text())
    if tree.body:  # an empty __init__ has nothing to say
        assert ast.get_docstring(tree), f"{name_of(path)}: a module opens with the question it answers"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_file_is_of_a_size_to_be_read(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    allowed = WHOLE.get(name_of(path), LONGEST if name_of(path) in LONGER else LINES)
    assert lines <= allowed, f"{name_of(path)} has {lines} lines: split it, or say why not"


@pytest.mark.parametrize("path", [path for path in SOURCES if name_of(path).startswith("flannelpy/agent/")], ids=name_of)
def test_a_part_of_the_agent_fits_in_a_head(path: Path) -> None:
    """What runs beside each other is read beside each other: 300 lines, and 14 attributes of its own a class."""
    text = path.read_text()
    assert len(text.splitlines()) <= 300, name_of(path)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            held = {
                target.attr
                for inner in ast.walk(node)
                if isinstance(inner, ast.Assign | ast.AnnAssign)
                for target in (inner.targets if isinstance(inner, ast.Assign) else [inner.target])
                if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self"
            }
            assert len(held) <= 14, f"{name_of(path)}: {node.name} holds {len(held)}: {', '.join(sorted(held))}"


@pytest.mark.parametrize(("name", "lines"), PAGES.items())
def test_a_backend_is_a_page(name: str, lines: int) -> None:
    assert len(ROOT.joinpath(name).read_text().splitlines()) <= lines, f"{name}: what of it do others have, too?"


def test_every_exception_is_still_one() -> None:
    for name in (*LONGER, *WHOLE):
        assert len(ROOT.joinpath(name).read_text().splitlines()) > LINES, f"{name} is short now: take it off the list"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_names_name_something(path: Path) -> None:
    named = [
        f"{name_of(path)}:{node.lineno}: {node.name}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and NO_NAMES.search(node.name)
    ]
    assert named == []


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_the_project_speaks_of_itself(path: Path) -> None:
    said = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if NOT_OURS.search(line)
    ]
    assert said == []
