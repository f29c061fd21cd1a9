"""The nft table: which tool is used, what an error says, when a listing is what was asked for. With a kernel: tests/contract."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from flannelpy.core.errors import KernelError
from flannelpy.core.objects import NftTable
from flannelpy.kernel.nft import Nft

TABLE = NftTable("flannelpy", "\tchain forward {\n\t}\n")

TOOL = """#!/bin/sh
# Stands for nft: keeps what it was told in $STORE/told, and lists $STORE/listing.
read -r line
case "$line" in
list*)
    [ -f "$STORE/listing" ] && { cat "$STORE/listing"; exit 0; }
    echo '/dev/stdin:1:1-5: Error: No such file or directory; did you mean table nat?' >&2
    echo 'list table inet flannelpy' >&2
    exit 1 ;;
*)
    [ -f "$STORE/refusal" ] && { cat "$STORE/refusal" >&2; exit 1; }
    { echo "$line"; cat; } >"$STORE/told"
    [ -f "$STORE/listing" ] || sed 1,2d "$STORE/told" >"$STORE/listing"
    exit 0 ;;
esac
"""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tool = tmp_path / "nft"
    tool.write_text(TOOL.replace("$STORE", str(tmp_path)))  # no variable of ours comes through to it
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


@pytest.fixture
def nft() -> Nft:
    """Without the library: through the command."""
    return Nft(library=None)


async def test_without_library_and_command_the_error_names_the_package() -> None:
    with pytest.raises(KernelError, match="install the package nftables"):
        await Nft(library="libnftables.so.none", command="no-such-nft").replace(TABLE)


async def test_without_library_and_command_there_is_no_table() -> None:
    assert await Nft(library=None, command=None).list("flannelpy") is None


async def test_a_table_is_declared_deleted_and_defined_at_once(nft: Nft, store: Path) -> None:
    await nft.replace(TABLE)
    assert (store / "told").read_text() == (
        "add table inet flannelpy\n"
        "flush table inet flannelpy\n"
        "table inet flannelpy {\n"
        "\tchain forward {\n"
        "\t}\n"
        "}\n"
    )  # fmt: skip


async def test_no_table_is_none(nft: Nft, store: Path) -> None:
    assert await nft.list("flannelpy") is None


async def test_a_listing_in_the_words_of_the_table_is_the_table_to_a_fresh_process(nft: Nft, store: Path) -> None:
    (store / "listing").write_text(f"table inet flannelpy {{\n{TABLE.body}}}\n")
    assert await nft.list("flannelpy") == (TABLE, ())


async def test_other_words_are_the_table_as_long_as_they_stay(nft: Nft, store: Path) -> None:
    (store / "listing").write_text("table inet flannelpy {\n\tchain forward { # in nft's words\n\t}\n}\n")
    await nft.replace(TABLE)
    assert await nft.list("flannelpy") == (TABLE, ())
    (store / "listing").write_text("table inet flannelpy {\n\tchain forward { # changed by hand\n\t}\n}\n")
    assert await nft.list("flannelpy") == (NftTable("flannelpy", "\tchain forward { # changed by hand\n\t}\n"), ())
    await nft.remove("flannelpy")
    (store / "listing").write_text("table inet flannelpy {\n\tchain forward { # in nft's words\n\t}\n}\n")
    assert await nft.list("flannelpy") != (TABLE, ())


@pytest.mark.parametrize(
    ("refusal", "text", "code"),
    [
        (
            "/dev/stdin:5:3-8: Error: syntax error, unexpected string\nfwd\n^^^\n",
            "syntax error, unexpected string",
            0,
        ),
        (
            "/dev/stdin:1:1-24: Error: Could not process rule: Operation not permitted\nadd table inet flannelpy\n",
            "Could not process rule: Operation not permitted: CAP_NET_ADMIN in this network namespace is needed",
            errno.EPERM,
        ),
        ("", "nft failed without a word", 0),
    ],
)
async def test_a_refusal_is_one_line(nft: Nft, store: Path, refusal: str, text: str, code: int) -> None:
    (store / "refusal").write_text(refusal)
    with pytest.raises(KernelError) as caught:
        await nft.replace(TABLE)
    assert (str(caught.value), caught.value.code) == (text, code)


async def test_removing_a_table_that_is_not_there_is_success(nft: Nft, store: Path) -> None:
    (store / "refusal").write_text("/dev/stdin:1:1-24: Error: Could not process rule: No such file or directory\n")
    await nft.remove("flannelpy")


# -------------------------------------------------------------------------------------------- a tool that is not what it seems


LISTS_NOTHING = """case $(head -c 4) in list) echo 'Error: No such file or directory' >&2; exit 1;; esac"""


def tool(store: Path, script: str) -> Nft:
    (store / "nft").write_text("#!/bin/sh\n" + script)
    return Nft(library=None)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (LISTS_NOTHING, "nft says that it has written table inet flannelpy, and there is none"),
        ("exit 0", "nft printed '' where table inet flannelpy was asked for"),
        ("exit 1", "nft failed without a word"),
        ("exec </dev/null; echo 'Error: no' >&2; exit 3", "no"),
        ("kill -9 $$", "nft was killed by signal 9"),
        ("echo hello", "nft printed 'hello\\n' where table inet flannelpy was asked for"),
        ("echo 'table inet flannelpy {'", "nft printed 'table inet flannelpy {\\n' where table inet flannelpy was asked for"),
        ("echo 'table inet other {'; echo '}'", "nft printed 'table inet other {\\n}\\n' where table inet flannelpy was asked for"),
        (
            "echo 'table inet flannelpy {'; echo '}'",
            "table inet flannelpy, and it has no chain forward",
        ),
        ("head -c 200000 /dev/urandom", ""),
        ("head -c 200000 /dev/urandom >&2; exit 1", ""),
    ],
)
async def test_a_tool_that_fails_or_lies_is_one_line_and_not_believed(store: Path, script: str, words: str) -> None:
    big = NftTable("flannelpy", TABLE.body + "\t# filler\n" * 50_000)  # more than a pipe holds, to a tool that does not read
    with pytest.raises(KernelError) as caught:
        await tool(store, script).replace(big)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 1000


async def test_a_tool_that_hangs_is_killed(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flannelpy.kernel.nft.COMMAND_S", 0.2)
    nft = tool(store, f"echo $$ >{store}/pid; sleep 3 & wait")  # and its child holds what it was given
    with pytest.raises(KernelError, match=r"nft did not end within 0.2 s and was killed"):
        await nft.replace(TABLE)
    pid = int((store / "pid").read_text())
    with pytest.raises(ProcessLookupError):  # it was waited for
        os.kill(pid, 0)


@pytest.mark.parametrize(
    ("mode", "said"), [(0o644, r"install the package nftables$"), (0o755, r"not found$")], ids=["no program", "of another machine"]
)
async def test_a_tool_that_cannot_be_run_is_one_line(store: Path, mode: int, said: str) -> None:
    (store / "nft").write_bytes(b"\x7fELF nonsense")
    (store / "nft").chmod(mode)
    with pytest.raises(KernelError, match=said) as caught:
        await Nft(library=None, command=str(store / "nft")).replace(TABLE)
    assert len(str(caught.value).splitlines()) == 1


UNPRIVILEGED = """
import asyncio, sys
from flannelpy.core.errors import KernelError
from flannelpy.kernel.nft import Nft
async def ask():
    nft = Nft(command=None)
    for question in (nft.everything, lambda: nft.list("flannelpy"), lambda: nft.remove("nosuch")):
        try:
            await question()
        except KernelError as error:
            print(error)
asyncio.run(ask())
"""


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not there")
@pytest.mark.parametrize("held", [False, True])
def test_without_the_right_the_library_is_not_asked_which_would_write_to_stderr(held: bool) -> None:
    bare = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-all"] if os.geteuid() == 0 and not held else []
    if held and os.geteuid() != 0:
        pytest.skip("needs root")
    words = [*bare, sys.executable, "-c", UNPRIVILEGED]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    refused = "nftables: Operation not permitted: CAP_NET_ADMIN in this network namespace is needed\n"
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count(refused) == (0 if held else 3)
