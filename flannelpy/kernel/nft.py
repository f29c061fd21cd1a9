"""How is our nft table written and read? As text, through libnftables in this process; through ``nft`` where that is missing, or
where so many files are open that the library would end the process.

A table's rules are replaced in one transaction: packets see the old ones or the new ones. Its sets stay, with who is in them (their
elements are elements.py's), and so does what a counter has counted that is in the new table, too. nft may print a table in
other words than it was written in, so what it printed right after writing is remembered: while the listing stays the same, the
table is what was asked for. libnftables takes 0.5 ms for our table without peers; the command takes 8-24 ms. Sources: nft(8),
libnftables(3).
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import re
import shutil
import socket
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from flannelpy.core.environment import bare
from flannelpy.core.errors import KernelError
from flannelpy.core.objects import NftSet, NftTable

STATELESS = 1 << 2
"""NFT_CTX_OUTPUT_STATELESS, the ``-s`` of nft(8): without counters."""

TERSE = 1 << 11
"""NFT_CTX_OUTPUT_TERSE, its ``-t``: without the elements of sets."""
NUMBERS = 1 << 7
"""NFT_CTX_OUTPUT_NUMERIC_PROTO, its ``-p``: protocols by number. Their names are the host's own (/etc/protocols)."""
HANDLES = 1 << 3
"""NFT_CTX_OUTPUT_HANDLE, the ``-a``: with what a rule is deleted by."""

JSON = 1 << 4
"""NFT_CTX_OUTPUT_JSON, the ``-j``."""

PRINTED = STATELESS | TERSE | NUMBERS
_LETTERS = {STATELESS: "-s", TERSE: "-t", NUMBERS: "-p", HANDLES: "-a", JSON: "-j"}

NETLINK_NETFILTER = 12

FD_SETSIZE = 1024
SPARE = 24
"""Files that other threads may open meanwhile."""

COMMAND_S = 10.0
"""How long the command may take, in seconds."""

READ_BYTES = 64 << 20
"""Of what it prints, no more than this is read: a table of 100,000 elements is 3 MB."""

WORDS = 300
"""Letters of its complaints that are passed on."""

MISSING = "neither libnftables.so.1 nor the nft command is there; install the package nftables"
TOO_MANY = f"nftables: about {FD_SETSIZE} files are open, more than libnftables can do with, and the nft command is not there"
NEEDED = "CAP_NET_ADMIN in this network namespace is needed"
NET_ADMIN = 12
"""CAP_NET_ADMIN, linux/capability.h."""

_CODES = (errno.ENOENT, errno.EPERM, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EEXIST, errno.EBUSY, errno.EINVAL)
_ERROR = re.compile(r"Error: (.*)")
_PART = re.compile(r"^\s*((?:chain|set|map|counter) \S+) \{", re.MULTILINE)
_SET = re.compile(r"^\tset (\S+) \{\n(.*?)^\t\}\n\n?", re.MULTILINE | re.DOTALL)


class Nft:
    """The tables of family inet in the namespace where it was first used."""

    def __init__(self, library: str | None = "libnftables.so.1", command: str | None = "nft") -> None:
        self._library = library
        self._command = command
        self._nft: _Library | None = None
        self._written: dict[str, tuple[str, str]] = {}
        self._sets: dict[tuple[str, str], tuple[str, str]] = {}
        self._turn = asyncio.Lock()

    async def replace(self, table: NftTable) -> None:
        """Make chains and counters what they should be, in one transaction. Raises KernelError with nft's words and the place.

        It is looked at afterwards: a tool that only says that all is well is not believed.
        """
        name = table.name
        async with self._turn:  # nobody lists between the writing and the remembering
            before = await self._print(name)
            kept = {part for part in _parts(table.body) if part.startswith("counter")}
            gone = sorted(_parts(_SET.sub("", before or "")) - kept, key=lambda part: not part.startswith("chain"))
            old = "".join(f"delete {kind} inet {name} {part}\n" for kind, part in (one.split() for one in gone))
            await self._run(f"add table inet {name}\nflush table inet {name}\n{old}table inet {name} {{\n{table.body}}}\n")
            printed = await self._print(name)
            if printed is None:
                raise KernelError(f"nft says that it has written table inet {name}, and there is none", errno.EPROTO)
            if missing := _parts(table.body) - _parts(printed):
                raise KernelError(f"nft says that it has written table inet {name}, and it has no {min(missing)}", errno.EPROTO)
            self._written[name] = (table.body, _body(printed))

    async def add_set(self, item: NftSet) -> None:
        """Make a set, and its table; one that is there stays as it is, with its elements. Raises KernelError."""
        async with self._turn:
            spec = item.spec.replace("\n", "; ")
            await self._run(f"add table inet {item.table}\nadd set inet {item.table} {item.name} {{ {spec}; }}\n")
            sets = dict(_SET.findall(await self._print(item.table) or ""))
            if item.name not in sets:
                raise KernelError(f"nft says that it has made set {item.name}, and there is none", errno.EPROTO)
            self._sets[item.table, item.name] = (item.spec, _spec(sets[item.name]))

    async def remove_set(self, item: NftSet) -> None:
        """Delete a set that no rule names; one that is not there is no error."""
        async with self._turn:
            try:
                await self._run(f"delete set inet {item.table} {item.name}\n")
            except KernelError as error:
                if error.code != errno.ENOENT:
                    raise

    async def remove(self, name: str) -> None:
        """Delete the table; one that is not there is no error."""
        async with self._turn:
            try:
                await self._run(f"delete table inet {name}\n")
            except KernelError as error:
                if error.code != errno.ENOENT:
                    raise
            self._written.pop(name, None)

    async def list(self, name: str) -> tuple[NftTable, tuple[NftSet, ...]] | None:
        """The table as it is, in the words it was asked for, and its sets; None where there is none, or nothing that could have
        made one.
        """
        try:
            async with self._turn:
                printed = await self._print(name)
        except KernelError as error:
            if error.code in (errno.ENOPKG, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT):
                return None
            raise
        if printed is None:
            return None
        body = _body(printed)
        asked, remembered = self._written.get(name, (body, body))
        sets = []
        for part, lines in _SET.findall(printed):
            spec, known = self._sets.get((name, part), ("", None))
            sets.append(NftSet(name, part, spec if _spec(lines) == known else _spec(lines)))
        return NftTable(name, asked if body == remembered else body), tuple(sets)

    async def ask(self, commands: str, *, handles: bool = False) -> str:
        """What nft prints for commands about tables of others; with ``handles`` by which a rule is deleted. Raises KernelError."""
        async with self._turn:
            return await self._run(commands, HANDLES if handles else 0)

    async def everything(self) -> str:
        """All tables, whosever, with the elements of their sets, as JSON (libnftables-json(5)). Raises KernelError."""
        async with self._turn:
            return await self._run("list ruleset\n", JSON, TERSE)

    async def listed(self, commands: str) -> str:
        """What a list of somebody's table holds, as JSON, with the elements of its sets. Raises KernelError."""
        return await self._apart(commands, JSON, TERSE)

    async def told(self, commands: str) -> str:
        """The same as text, with handles, and without elements. Raises KernelError."""
        return await self._apart(commands, HANDLES)

    async def _apart(self, commands: str, more: int, less: int = 0) -> str:
        """By the command where that is there: nothing of ours waits while another process reads thousands of rules."""
        if self._command is None or shutil.which(self._command) is None:
            async with self._turn:
                return await self._run(commands, more, less)
        return await run_command([self._command, *_letters((PRINTED | more) & ~less), "-f", "-"], commands)

    def close(self) -> None:
        if self._nft is not None:
            self._nft.close()
            self._nft = None

    async def _print(self, name: str) -> str | None:
        """What stands between the table's braces, None where there is no table."""
        try:
            text = await self._run(f"list table inet {name}\n")
        except KernelError as error:
            if error.code == errno.ENOENT:
                return None
            raise
        head, _brace, rest = text.partition("{\n")
        if head.split() != ["table", "inet", name] or not rest.rstrip().endswith("}"):
            raise KernelError(f"nft printed {text[:60]!r} where table inet {name} was asked for", errno.EPROTO)
        return rest[: rest.rindex("}")]

    async def _run(self, commands: str, more: int = 0, less: int = 0) -> str:
        """What is printed, with ``more`` flags than usual, or ``less``."""
        flags = (PRINTED | more) & ~less
        few = _few_descriptors()
        if few and self._nft is None and self._library is not None:
            _demand_netfilter()
            _demand_right()
            try:
                self._nft = _Library(self._library)
            except OSError:
                self._library = None
        if few and self._nft is not None:
            # In a thread: before it lists or changes a table the library reads all elements of its sets, 0.3 s for 20,000.
            return await asyncio.to_thread(self._nft.run, commands, flags)
        if self._command is None or shutil.which(self._command) is None:
            raise KernelError(MISSING, errno.ENOPKG) if few else KernelError(TOO_MANY, errno.EMFILE)
        return await run_command([self._command, *_letters(flags), "-f", "-"], commands)


def _letters(flags: int) -> list[str]:
    """As the command takes them."""
    return [letter for flag, letter in _LETTERS.items() if flags & flag]


def _demand_netfilter() -> None:
    """Raise KernelError where the kernel has no netfilter sockets: libnftables would end this process then."""
    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER).close()
    except OSError as error:
        raise KernelError(f"nftables: {error.strerror}; the kernel needs the module nf_tables", error.errno or 0) from None


def _demand_right() -> None:
    """Raise KernelError where the kernel would refuse any request (netlink_net_capable): libnftables writes that to stderr, too."""
    try:
        lines = Path("/proc/thread-self/status").read_text().splitlines()
        held = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    except (OSError, StopIteration, ValueError):
        return  # nobody knows: asked, it says
    if not held >> NET_ADMIN & 1:
        raise KernelError(f"nftables: {os.strerror(errno.EPERM)}: {NEEDED}", errno.EPERM)


def _few_descriptors() -> bool:
    """Would a file that is opened now have a number that select(2) takes?

    The library waits for its netlink socket, which it opens again after a listing that was disturbed, by select: from FD_SETSIZE on
    glibc ends the process (FD_SET(3) "bit out of range").
    """
    try:
        number = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    os.close(number)
    return number < FD_SETSIZE - SPARE


def _descriptors() -> set[int]:
    return {int(each.name) for each in Path("/proc/thread-self/fd").iterdir()}


class _Library:
    """libnftables with one context: its netlink socket belongs to the namespace of the moment.

    A thread cannot be cancelled: it goes on in the library when nobody awaits it any more. So the threads, not those who wait for
    them, take turns; two in one context at a time end the process (a fault, or abort(3) by an assertion of the library's).
    """

    def __init__(self, name: str) -> None:
        self._turn = threading.Lock()
        self._over = False
        library: Any = ctypes.CDLL(name)
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_new.argtypes = [ctypes.c_uint32]
        for function in ("nft_ctx_free", "nft_ctx_buffer_output", "nft_ctx_buffer_error"):
            getattr(library, function).argtypes = [ctypes.c_void_p]
        library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        for function in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
            getattr(library, function).argtypes = [ctypes.c_void_p]
            getattr(library, function).restype = ctypes.c_char_p
        self._library = library
        before = _descriptors()
        self._context = library.nft_ctx_new(0)
        for number in _descriptors() - before:  # libmnl opens its socket without SOCK_CLOEXEC: no child is to have it
            with suppress(OSError):
                os.set_inheritable(number, False)
        if not self._context:
            raise OSError(errno.ENOMEM, "nft_ctx_new")
        library.nft_ctx_buffer_output(self._context)
        library.nft_ctx_buffer_error(self._context)

    def run(self, commands: str, flags: int = PRINTED) -> str:
        """What is printed; waits for its turn. Raises KernelError, after ``close`` with ESHUTDOWN."""
        try:
            with self._turn:
                if self._over:
                    raise KernelError("nft: closed", errno.ESHUTDOWN)
                self._library.nft_ctx_output_set_flags(self._context, flags)
                failed = self._library.nft_run_cmd_from_buffer(self._context, commands.encode())
                output: bytes = self._library.nft_ctx_get_output_buffer(self._context)
                words: bytes = self._library.nft_ctx_get_error_buffer(self._context)
        finally:
            if self._over:
                self._free()
        if failed:
            raise _error(words.decode("utf-8", "replace"))
        return output.decode("utf-8", "replace")

    def close(self) -> None:
        """No more turns; the context goes with the last that is under way, which is not waited for."""
        self._over = True
        self._free()

    def _free(self) -> None:
        if self._turn.acquire(blocking=False):  # else somebody has it, who comes here afterwards
            try:
                context, self._context = self._context, None
                if context:
                    self._library.nft_ctx_free(context)
            finally:
                self._turn.release()


async def run_command(words: list[str], commands: str = "") -> str:
    """What a command prints that reads ``commands``. Raises KernelError, also where it does not end, and then it is ended.

    All three streams are files in memory: no pipe breaks where it ends without reading, and none stays open where it leaves a
    child behind.
    """
    command = words[0]
    with ExitStack() as stack:
        given, output, complaints = (stack.enter_context(os.fdopen(os.memfd_create("nft"), "w+b")) for _ in range(3))
        given.write(commands.encode())
        given.seek(0)
        try:
            process = await asyncio.create_subprocess_exec(
                *words, stdin=given, stdout=output, stderr=complaints, env=bare(os.environ, LC_ALL="C")
            )
        except OSError as error:
            raise KernelError(f"{command} cannot be run: {error.strerror}", error.errno or 0) from None
        try:
            async with asyncio.timeout(COMMAND_S):
                await process.wait()
        except TimeoutError:
            raise KernelError(f"{command} did not end within {COMMAND_S:g} s and was killed", errno.ETIMEDOUT) from None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await asyncio.shield(process.wait())
        output.seek(0)
        complaints.seek(0)
        said, complaint = (stream.read(READ_BYTES).decode("utf-8", "replace") for stream in (output, complaints))
    code = process.returncode or 0
    if code < 0:
        raise KernelError(f"{command} was killed by signal {-code}", errno.EINTR)
    if code:
        raise _error(complaint)
    return said


def _body(printed: str) -> str:
    """What is printed of a table without its sets."""
    kept = _SET.sub("", printed)
    return kept[:-1] if kept.endswith("\n\n") else kept


def _spec(lines: str) -> str:
    """The lines of a set, in short."""
    return "\n".join(line.strip() for line in lines.splitlines() if line.strip())


def _parts(body: str) -> frozenset[str]:
    """The chains, sets, maps and counters of a table."""
    return frozenset(_PART.findall(body))


def _error(words: str) -> KernelError:
    """nft's first complaint in one line, with the errno that it names (0 where it names none)."""
    match = _ERROR.search(words)
    text = match[1].strip() if match else words.strip().splitlines()[0] if words.strip() else "nft failed without a word"
    text = "".join(letter if letter.isprintable() else "?" for letter in text[:WORDS])
    code = next((code for code in _CODES if os.strerror(code) in words), 0)
    if code == errno.EPERM:
        text += f": {NEEDED}"
    return KernelError(text, code)
