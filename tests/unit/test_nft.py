"""The nft table: which tool is used, what an error says, when a listing is what was asked for. With a kernel: tests/contract."""

from __future__ import annotations

import errno
import os
import stat
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
    { echo "$line"; cat; } >"$STORE/told"
    [ -f "$STORE/refusal" ] && { cat "$STORE/refusal" >&2; exit 1; }
    exit 0 ;;
esac
"""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tool = tmp_path / "nft"
    tool.write_text(TOOL)
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("STORE", str(tmp_path))
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
        "delete table inet flannelpy\n"
        "table inet flannelpy {\n"
        "\tchain forward {\n"
        "\t}\n"
        "}\n"
    )  # fmt: skip


async def test_no_table_is_none(nft: Nft, store: Path) -> None:
    assert await nft.list("flannelpy") is None


async def test_a_listing_in_the_words_of_the_table_is_the_table_to_a_fresh_process(nft: Nft, store: Path) -> None:
    (store / "listing").write_text(f"table inet flannelpy {{\n{TABLE.body}}}\n")
    assert await nft.list("flannelpy") == TABLE


async def test_other_words_are_the_table_as_long_as_they_stay(nft: Nft, store: Path) -> None:
    (store / "listing").write_text("table inet flannelpy {\n\tchain forward { # in nft's words\n\t}\n}\n")
    await nft.replace(TABLE)
    assert await nft.list("flannelpy") == TABLE
    (store / "listing").write_text("table inet flannelpy {\n\tchain forward { # changed by hand\n\t}\n}\n")
    assert await nft.list("flannelpy") == NftTable("flannelpy", "\tchain forward { # changed by hand\n\t}\n")
    await nft.remove("flannelpy")
    (store / "listing").write_text("table inet flannelpy {\n\tchain forward { # in nft's words\n\t}\n}\n")
    assert await nft.list("flannelpy") != TABLE


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
