"""Do the documents say what is so? Every command, flag, path, link, config and log line in them is looked up where it comes from.

``python -m tests.unit.test_docs`` writes the tables that are made from code: docs/conditions.md, the options in
docs/configuration.md, the metrics in docs/metrics.md, and the options of each backend in docs/backends.md.
"""

from __future__ import annotations

import ast
import re
import shlex
import sys
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import click
import pytest
from netaddr import IPAddress, IPNetwork

from flannelpy import options, plugins
from flannelpy.cli import flannelpy
from flannelpy.commands import netconfig
from flannelpy.core.backend import Backend, Local, Uplink
from flannelpy.core.conditions import CONDITIONS, IN_KUBERNETES, Condition, Severity
from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import ConfigError
from flannelpy.core.model import Lease, LeaseAttrs
from flannelpy.explain.metrics import METRICS, Durations
from flannelpy.options import Option
from tests.third_party import EXAMPLE, install

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
DOCUMENTS = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")] + sorted(DOCS.glob("*.md"))

FOREIGN_FLAGS = {"--help", "--bip", "--mtu", "--ip-masq", "--prefix"}
"""Flags of other programs (Docker, etcdctl) and of every command, that the documents mention by themselves."""

OTHER_LINES = ("was changed by somebody else; repairing", "lost our lease", "our subnet is", "udp worker", "more of the kind")
"""What the agent logs as a warning beside the conditions; each stands in its source."""


INTRODUCTION = """# Conditions

What can be wrong, as the agent reports it: in the log once when it begins and once, after `resolved:`, when it ends.
`{detail}` stands for what is known of the case; with `--kube-subnet-mgr` it says the API server where etcd stands here.
This page is made from `flannelpy/core/conditions.py` by `python -m tests.unit.test_docs`.

*not ready*: `/readyz` answers 503 while it holds. *reported after*: how long it must hold before it is reported, and be
gone before it is resolved. *suppresses*: what says the same from further away and is not reported beside it.
[Troubleshooting](troubleshooting.md) begins with what you see instead.
"""


# -------------------------------------------------------------------------------------------------------- made from code


def conditions_page() -> str:
    """docs/conditions.md."""
    return INTRODUCTION + "".join(_section(condition) for condition in CONDITIONS.values())


def _section(condition: Condition) -> str:
    notes = [condition.severity.name.lower()]
    notes += ["not ready"] if condition.unready else []
    notes += [f"reported after {condition.after:g} s"] if condition.after else []
    notes += [f"suppresses {', '.join(condition.hides)}"] if condition.hides else []
    remedy = textwrap.fill(f"Remedy: {condition.remedy}.", 120, break_long_words=False, break_on_hyphens=False)
    here = IN_KUBERNETES[condition.code]
    if here.remedy != condition.remedy:
        told = f"In Kubernetes: {here.remedy}."
        remedy += f"\n\n{textwrap.fill(told, 120, break_long_words=False, break_on_hyphens=False)}"
    return f"\n## {condition.code}\n\n{', '.join(notes)}\n\n    {condition.text}\n\n{remedy}\n"


def metrics_table() -> str:
    """The table in docs/metrics.md."""
    rows = ["| metric | type | labels | |", "|---|---|---|---|"]
    for metric in METRICS:
        kind, labels = ("histogram", ()) if isinstance(metric, Durations) else (metric.type, metric.labels)
        rows.append(f"| `{metric.name}` | {kind} | {', '.join(map('`{}`'.format, labels))} | {metric.help} |")
    return "\n".join(rows) + "\n"


def options_tables() -> dict[str, str]:
    """The tables in docs/configuration.md by the name in their markers."""
    does_nothing = "\n".join(f"| `{option.flag}` | {option.why} |" for option in options.ACCEPTED)
    return {
        "etcd": _table(options.ETCD),
        "kubernetes": _table(options.KUBE),
        "agent": _table(options.AGENT),
        "accepted": f"| flag | why it does nothing |\n|---|---|\n{does_nothing}\n",
    }


def _table(table: tuple[Option, ...]) -> str:
    rows = ["| flag | variable | default | |", "|---|---|---|---|"]
    for option in table:
        flag = option.flag if option.boolean else f"{option.flag} {option.metavar}"
        default = f"`{option.default}`" if option.default else ""
        what = option.help + ("; may be repeated" if option.repeatable else "")
        cells = (f"`{flag}`", f"`{option.variables[0]}`", default, what)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def backend_tables() -> dict[str, str]:
    """The tables in docs/backends.md by the name in their markers: what the ``Backend`` object of each Type may hold."""
    found = {}
    for name in plugins.names():
        rows = ["| option | default | | |", "|---|---|---|---|"]
        for option in plugins.of_type(name):
            default = option.usual or (f"`{option.default_text}`" if option.default_text else "")
            what = option.help + (f"; `{option.flag}` on a host wins over it" if option.flag else "")
            rows.append(f"| `{option.name}` | {default} | {option.range} | {what} |")
        if len(rows) > 2:
            found[name] = "\n".join(rows) + "\n"
    return found


def with_tables(text: str, tables: Mapping[str, str]) -> str:
    """A document with what stands between its markers made anew."""
    for name, table in tables.items():
        begin, end = f"<!-- made: {name} -->\n", "<!-- end -->\n"
        head, found, rest = text.partition(begin)
        assert found, f"no {begin.strip()} in the document"
        text = head + begin + table + end + rest.partition(end)[2]
    return text


def test_the_conditions_page_is_the_table() -> None:
    assert (DOCS / "conditions.md").read_text() == conditions_page(), "run: python -m tests.unit.test_docs"


def test_the_options_tables_are_the_options() -> None:
    text = (DOCS / "configuration.md").read_text()
    assert text == with_tables(text, options_tables()), "run: python -m tests.unit.test_docs"


def test_the_options_of_backends_are_their_tables() -> None:
    text = (DOCS / "backends.md").read_text()
    assert text == with_tables(text, backend_tables()), "run: python -m tests.unit.test_docs"


def test_a_host_has_the_option_that_wins_over_a_backends() -> None:
    for name in plugins.names():
        for option in plugins.of_type(name):
            flag = options.BY_NAME[option.flag.removeprefix("--")] if option.flag else None
            assert flag is None or f"Backend.{option.name}" in flag.help, option.flag


def test_the_metrics_page_has_every_metric() -> None:
    text = (DOCS / "metrics.md").read_text()
    assert text == with_tables(text, {"metrics": metrics_table()}), "run: python -m tests.unit.test_docs"


# --------------------------------------------------------------------------------------------------- reading a document


@cache
def fences(path: Path) -> tuple[tuple[str, str], ...]:
    """(language, text) of each fenced block."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)
    return tuple((language, text) for language, text in found)


@cache
def code(path: Path) -> tuple[str, ...]:
    """Whatever is set as code: spans, fenced and indented lines."""
    text = path.read_text()
    lines = [line for language, block in fences(path) if language != "log" for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    lines += [line for line in prose.splitlines() if line.startswith("    ")]
    return (*re.findall(r"`([^`\n]+)`", prose), *(line.strip() for line in lines))


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as a web page of it has them."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


by_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())


@by_document
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        assert not target.startswith("http"), f"{target}: the documents stand for themselves"
        name, _, anchor = target.partition("#")
        to = (path.parent / name).resolve() if name else path
        assert to.exists(), target
        if anchor:
            assert anchor in anchors(to), target


@by_document
def test_prose_fits_120_columns(path: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    long = [line for line in prose.splitlines() if len(line) > 120 and not line.startswith(("|", "    "))]
    assert long == []


@by_document
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for text in code(path):
        for target in re.findall(r"(?:^|sudo )make ([a-z][a-z-]*)", text):
            assert target in targets, text


@by_document
def test_paths_exist(path: Path) -> None:
    rooms = "flannelpy|backends|tests|netns-lab|packaging|docs"
    for text in code(path):
        for name, test in re.findall(rf"(?<![\w./-])((?:{rooms})/[\w./-]*)(?:::(\w+))?", text):
            assert (ROOT / name).exists(), f"{name} in {text!r}"
            if test:
                assert test in functions(ROOT / name), f"{name}::{test}"


@cache
def functions(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


# ------------------------------------------------------------------------------------------------------------- commands


def commands(path: Path, program: str) -> Iterator[list[str]]:
    """The words after each mention of a program as a command; what stands in capitals or dots is an example's blank."""
    for text in code(path):
        for match in re.finditer(rf"(?:^|[ /;|(]){re.escape(program)} (?=[a-z-])([^;|)]*)", text):
            if text[: match.start()].rstrip().endswith(("install", "restart", "stop", "start", "edit", "enable", "-u", "status")):
                continue  # systemctl's and journalctl's: there it is the unit
            try:
                yield shlex.split(match[1].partition("  ")[0].partition(" > ")[0], comments=True)
            except ValueError:
                yield match[1].split()


def unknown(words: list[str], root: click.Command, known: frozenset[str]) -> str | None:
    """The first word that the command line would refuse: a subcommand or a flag that is not there."""
    command, flags = root, {flag for parameter in root.params for flag in parameter.opts} | known
    for word in words:
        if word == "--":
            return None
        if word.startswith("-") and word != "-":
            if word.partition("=")[0] not in flags:
                return word
        elif isinstance(command, click.Group) and word.isidentifier() | word.replace("-", "").isalpha() and word.islower():
            if word in command.commands:
                command = command.commands[word]
                flags |= {flag for parameter in command.params for flag in parameter.opts}
            elif command is not root or word == words[0]:
                return word
    return None


@by_document
def test_flannelpys_commands_and_flags_exist(path: Path) -> None:
    for words in commands(path, "flannelpy"):
        assert unknown(words, flannelpy, frozenset({"--help", "-h"})) is None, words


@by_document
def test_the_labs_commands_and_flags_exist(path: Path) -> None:
    from netns_lab.cli import lab  # pytest knows where it is

    for words in commands(path, "netns-lab/lab"):
        assert unknown(words, lab, frozenset({"--help", "-h"})) is None, words


@by_document
def test_flags_and_variables_exist(path: Path) -> None:
    from netns_lab.cli import lab

    ours = {flag for command in every(flannelpy) + every(lab) for parameter in command.params for flag in parameter.opts}
    variables = {variable for option in options.ALL for variable in option.variables} | {"FLANNELPY_OPTIONS"}
    for text in code(path):
        if text.startswith("--"):
            flag = re.split(r"[ =]", text)[0]
            assert flag in ours | FOREIGN_FLAGS or not flag.strip("-"), text
        for variable in re.findall(r"FLANNEL(?:PY|D)_[A-Z0-9_]*[A-Z0-9]", text):
            assert variable in variables, text


def every(command: click.Command) -> list[click.Command]:
    inner = list(command.commands.values()) if isinstance(command, click.Group) else []
    return [command, *(below for each in inner for below in every(each))]


@pytest.mark.parametrize(
    "line",
    [
        "flannelpy stats",
        "flannelpy config set x",
        "flannelpy --ifaces eth1",
        "flannelpy config put --forse FILE",
        "flannelpy config -x",
    ],
)
def test_a_command_that_is_not_there_is_seen(line: str, tmp_path: Path) -> None:
    document = tmp_path / "x.md"
    document.write_text(f"Type `{line}`.\n")
    assert [unknown(words, flannelpy, frozenset()) for words in commands(document, "flannelpy")] != [None]


# ------------------------------------------------------------------------------------------- configs, log lines, example


@by_document
def test_network_configs_would_work(path: Path) -> None:
    for language, text in fences(path):
        if language == "json" and "Network" in text and "via-router" not in text:
            netconfig.examine(text)
    for text in re.findall(r"'(\{\"Network\".*?\})'", path.read_text()):
        netconfig.examine(text)


@by_document
def test_quoted_log_lines_are_what_the_agent_says(path: Path) -> None:
    source = "".join(file.read_text() for room in ("flannelpy", "backends") for file in (ROOT / room).rglob("*.py"))
    for language, text in fences(path):
        for line in text.splitlines() if language == "log" else ():
            match = re.match(r"(?:[\d-]+ [\d:.]+ )?(warning|error|over): (.*)", line)
            if match is None:
                continue
            if any(fragment in line for fragment in OTHER_LINES):
                assert all(fragment in source for fragment in OTHER_LINES if fragment in line)
            else:
                assert any(_could_say(condition, *match.groups()) for condition in CONDITIONS.values()), line


def _could_say(condition: Condition, level: str, said: str) -> bool:
    fitting = level == "over" or Severity[level.upper()] is condition.severity
    pattern = ".+".join(re.escape(part) for part in condition.text.split("{detail}"))
    return fitting and re.fullmatch(pattern, said) is not None


def test_the_backend_that_is_shown_is_the_one_in_the_file() -> None:
    shown = [text for language, text in fences(DOCS / "backends.md") if language == "python"]
    assert EXAMPLE.joinpath("via_router.py").read_text() in shown


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in install(tmp_path):
        monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "via_router", raising=False)


@pytest.mark.usefixtures("installed")
def test_the_backend_that_is_shown_is_found_by_its_type() -> None:
    text = next(text for language, text in fences(DOCS / "backends.md") if language == "json" and "via-router" in text)
    config = NetworkConfig.parse(text)
    backend = plugins.load(config)
    assert backend.name == "via-router"
    peer = Lease(IPNetwork("10.5.9.0/24"), LeaseAttrs(IPAddress("192.0.2.2"), backend_type="via-router"))
    local = Local(config, Uplink("eth1", 2, 1500, IPAddress("192.0.2.1"), public_ip=IPAddress("192.0.2.1")))
    assert [str(item) for item in backend.path(peer, local).state] == ["10.5.9.0/24 via 192.0.2.254 dev eth1"]
    assert backend.mtu(local) == 1500
    assert backend.attrs(local).to_json() == '{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"via-router"}'
    with pytest.raises(ConfigError, match=r'Backend\.Router "x": expected an IPv4 address'):
        plugins.load(NetworkConfig.parse(text.replace("192.0.2.254", "x")))


@pytest.mark.usefixtures("installed")
def test_the_backend_that_is_shown_has_the_whole_contract() -> None:
    from via_router import ViaRouter  # type: ignore[import-not-found]

    contract = {name for name in [*vars(Backend), *Backend.__annotations__] if not name.startswith("_")}
    assert contract >= {"name", "path", "datapath"}
    assert [name for name in sorted(contract) if not hasattr(ViaRouter, name)] == []


def test_the_changelog_knows_this_version() -> None:
    version = re.search(r'__version__ = "([^"]+)"', (ROOT / "flannelpy" / "__init__.py").read_text())
    assert version is not None
    assert re.search(rf"^## \[{re.escape(version[1])}\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def write() -> None:
    """Write what is made from code."""
    (DOCS / "conditions.md").write_text(conditions_page())
    made = {"configuration": options_tables(), "metrics": {"metrics": metrics_table()}, "backends": backend_tables()}
    for page, tables in made.items():
        path = DOCS / f"{page}.md"
        path.write_text(with_tables(path.read_text(), tables))
    print("written: docs/conditions.md, docs/configuration.md, docs/metrics.md, docs/backends.md")


if __name__ == "__main__":
    write()
