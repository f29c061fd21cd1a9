"""What does the host's own firewall do with forwarded packets, and how do we stand in it? iptables' FORWARD chains, of either kind.

iptables-nft keeps its rules in the nft tables ``ip filter`` and ``ip6 filter``: ours are written and read there as nft text, in the
form that iptables of any version shows as its own (a prefix as a mask of four bytes; the comment as nft keeps it), so that an
operator sees them in ``iptables -S`` and can delete them with ``iptables -D``. iptables-legacy is asked by its command, and only
where its table is in use (/proc/net/ip_tables_names), for asking would load it. Nothing is ever done to a rule without our comment.
The kernel tells of changes in the old tables to nobody. Sources: nft(8), iptables(8).
"""

from __future__ import annotations

import errno
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from netaddr import AddrFormatError, IPNetwork

from flannelpy.core.errors import KernelError
from flannelpy.core.forward_accept import ForwardAccept, command
from flannelpy.core.forwarding import DOCKER_USER, FORWARD, Hindrance
from flannelpy.kernel.nft import Nft, run_command

FAMILIES = {4: "ip", 6: "ip6"}
VERSIONS = {"ip": 4, "ip6": 6, "inet": 0}

NAMES = {4: Path("/proc/thread-self/net/ip_tables_names"), 6: Path("/proc/thread-self/net/ip6_tables_names")}
PATH = "/usr/sbin:/sbin:/usr/bin:/bin"
LOCK_S = 5
"""How long iptables-legacy may wait for another iptables, in seconds."""

GONE = frozenset({errno.ENOENT, errno.ENOPKG, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT})
"""How nft says that there is no such table or chain, or that there are none at all."""

_TABLE = re.compile(r"table (\S+) (\S+) \{")
_CHAIN = re.compile(r"\tchain (\S+) \{")
_HOOK = re.compile(r"\s+type filter hook forward priority [^;]*;(?: policy (\w+);)?")
_END = re.compile(r"(?:counter(?: packets \d+ bytes \d+)? )?(?:drop\b|reject\b|xt target \"(?:DROP|REJECT)\")")
"""A rule that drops whatever has come so far."""
_LEADS = re.compile(r"(?:counter(?: packets \d+ bytes \d+)? )?(?:jump|goto) (\S+)")

_OURS = re.compile(
    r"""\s*(?:iifname\ !=\ "(?P<not_in>[^"]+)"\ )? (?:ip6?\ saddr\ (?P<source>\S+)\ )? (?:ip6?\ daddr\ (?P<destination>\S+)\ )?
        counter(?:\ packets\ \d+\ bytes\ \d+)?\ accept\ comment\ "(?P<owner>[^"]*)"\ \#\ handle\ (?P<handle>\d+)""",
    re.VERBOSE,
)
_NETWORK = re.compile(r"(?<![\w.:])(?:\d+\.\d+\.\d+\.\d+|[0-9a-f]*:[0-9a-f:]*:[0-9a-f:.]*)/\d+")
_QUOTED = re.compile(r'"([^"]+)"')
_DROPS = re.compile(r"\b(?:drop|reject)\b")


@dataclass(frozen=True, slots=True)
class Base:
    """A base chain of hook forward, of whichever table. ``policy`` is ``accept`` or ``drop``."""

    family: str
    table: str
    chain: str
    policy: str


class Forward:
    """The FORWARD chains of the namespace where it is first used."""

    def __init__(self, nft: Nft) -> None:
        self._nft = nft

    async def hindrances(self) -> tuple[Hindrance, ...]:
        """Which chains drop what is forwarded. One listing of chains, and one of each base chain of hook forward."""
        try:
            listed = await self._nft.ask("list chains\n")
        except KernelError as reason:
            if reason.code not in GONE:
                raise
            listed = ""
        docker = chains_named(listed, DOCKER_USER)
        found = [await self._look(base, (base.family, base.table) in docker) for base in base_chains(listed)]
        return (*(one for one in found if one is not None), *await self._legacy_hindrances())

    async def observe(self, owner: str) -> list[ForwardAccept]:
        """The rules whose comment is ``owner``."""
        found: list[ForwardAccept] = []
        for version in FAMILIES:
            for chain in (FORWARD, DOCKER_USER):
                found += [rule for rule, _handle in await self._nft_rules(version, chain) if rule.owner == owner]
            found += [rule for rule in await self._legacy_rules(version) if rule.owner == owner]
        return list(dict.fromkeys(found))

    async def add(self, rule: ForwardAccept) -> None:
        """Put it before all others of its chain. Raises KernelError; ENOENT where there is no such chain."""
        if rule.tool == "legacy":
            await self._legacy(rule.version, "-I", rule.chain, *shlex.split(rule.match))
        else:
            family = FAMILIES[rule.version]
            await self._nft.ask(f"insert rule {family} filter {rule.chain} {spelled(rule)}\n")

    async def remove(self, rule: ForwardAccept) -> None:
        """Take it out, as often as it is there. Raises KernelError."""
        if rule.tool == "legacy":
            for other in await self._legacy_rules(rule.version):
                if other == rule:
                    await self._legacy(rule.version, "-D", rule.chain, *shlex.split(rule.match))
            return
        family = FAMILIES[rule.version]
        for other, handle in await self._nft_rules(rule.version, rule.chain):
            if other == rule:
                await self._nft.ask(f"delete rule {family} filter {rule.chain} handle {handle}\n")

    # ------------------------------------------------------------------------------------------------------------ nft

    async def _look(self, base: Base, docker: bool) -> Hindrance | None:
        """What the chain does; None where it is in nobody's way."""
        theirs = base.table == "filter" and base.chain == FORWARD and base.family in FAMILIES.values()
        text = "" if base.policy == "drop" and theirs else await self._list(f"chain {base.family} {base.table} {base.chain}")
        version, table = VERSIONS[base.family], f"{base.family} {base.table}"
        why = "policy drop" if base.policy == "drop" else await self._end(table, text)
        if theirs:
            return Hindrance(version, table, base.chain, why, "nft", docker) if why or docker else None
        if not why:
            return None
        if re.search(r"\b(?:jump|goto|vmap|@\w+)\b", text):
            text = await self._list(f"table {base.family} {base.table}")
        networks, devices = frozenset(networks_in(text)), frozenset(devices_in(text))
        return Hindrance(version, table, base.chain, why, networks=networks, devices=devices)

    async def _end(self, table: str, text: str) -> str:
        """By which rule it drops all that has come so far, itself or where its last rule leads to; empty: by none."""
        last = text.rstrip("}\n\t ").rpartition("\n")[2].strip()
        if match := _LEADS.fullmatch(last):
            text += await self._list(f"chain {table} {match[1]}")
        return next((f"it ends in: {end}" for end in ends(text)), "")

    async def _list(self, what: str) -> str:
        try:
            return await self._nft.ask(f"list {what}\n")
        except KernelError as reason:
            if reason.code in GONE:
                return ""
            raise

    async def _nft_rules(self, version: int, chain: str) -> list[tuple[ForwardAccept, int]]:
        """The rules of our form in a chain of iptables-nft, whoever's, and their handles."""
        try:
            listed = await self._nft.ask(f"list chain {FAMILIES[version]} filter {chain}\n", handles=True)
        except KernelError as reason:
            if reason.code in GONE:
                return []
            raise
        return [found for line in listed.splitlines() if (found := read_rule(line, chain)) is not None]

    # --------------------------------------------------------------------------------------------------------- legacy

    async def _legacy_hindrances(self) -> list[Hindrance]:
        found = []
        for version in FAMILIES:
            lines = await self._legacy_lines(version, FORWARD)
            policy = any(line == f"-P {FORWARD} DROP" for line in lines)
            last = next((line for line in lines if re.match(rf"-A {FORWARD} -j (?:DROP|REJECT)\b", line)), "")
            why = "policy DROP" if policy else f"it ends in: {last}" if last else ""
            docker = f"-A {FORWARD} -j {DOCKER_USER}" in lines
            if why or docker:
                found.append(Hindrance(version, f"{command('legacy', version)} filter", FORWARD, why, "legacy", docker))
        return found

    async def _legacy_rules(self, version: int) -> list[ForwardAccept]:
        lines = await self._legacy_lines(version, FORWARD)
        if f"-A {FORWARD} -j {DOCKER_USER}" in lines:
            lines += await self._legacy_lines(version, DOCKER_USER)
        return [rule for line in lines if (rule := read_legacy(line)) is not None]

    async def _legacy_lines(self, version: int, chain: str) -> list[str]:
        """A chain as ``iptables -S`` prints it; nothing where iptables-legacy is not in use, or is not there."""
        if not in_use(version) or shutil.which(command("legacy", version), path=PATH) is None:
            return []
        return (await self._legacy(version, "-S", chain)).splitlines()

    async def _legacy(self, version: int, *words: str) -> str:
        program = command("legacy", version)
        path = shutil.which(program, path=PATH)
        if path is None:
            raise KernelError(f"the host's firewall is iptables-legacy, and {program} is not there", errno.ENOPKG)
        return await run_command([path, "-w", str(LOCK_S), *words])


def in_use(version: int) -> bool:
    """True where the old table ``filter`` is in use in this namespace; asking by the command would bring it there."""
    with suppress(OSError):
        return "filter" in NAMES[version].read_text().split()
    return False


def base_chains(listed: str) -> Iterator[Base]:
    """The base chains of hook forward in a listing of chains that see IP packets, but our own, which drop nothing."""
    family = table = chain = ""
    for line in listed.splitlines():
        if match := _TABLE.match(line):
            family, table = match.groups()
        elif match := _CHAIN.match(line):
            chain = match[1]
        elif (match := _HOOK.match(line)) and family in VERSIONS and not table.startswith("flannelpy"):
            yield Base(family, table, chain, match[1] or "accept")


def chains_named(listed: str, name: str) -> frozenset[tuple[str, str]]:
    """Family and table of the chains of this name in iptables' tables."""
    found, family, table = set(), "", ""
    for line in listed.splitlines():
        if match := _TABLE.match(line):
            family, table = match.groups()
        elif (match := _CHAIN.match(line)) and match[1] == name and table == "filter":
            found.add((family, table))
    return frozenset(found)


def ends(text: str) -> Iterator[str]:
    """The rules of a listed chain that drop all that has come so far."""
    return (line.strip() for line in text.splitlines() if _END.match(line.strip()))


def networks_in(text: str) -> Iterator[IPNetwork]:
    """The networks that a listing speaks of, but to drop them."""
    for line in text.splitlines():
        if not _DROPS.search(line):
            for found in _NETWORK.findall(line):
                with suppress(AddrFormatError, ValueError):
                    yield IPNetwork(found).cidr


def devices_in(text: str) -> Iterator[str]:
    """What stands in quotes, but to be dropped: names of devices, and comments."""
    for line in text.splitlines():
        if not _DROPS.search(line):
            yield from _QUOTED.findall(line)


def spelled(rule: ForwardAccept) -> str:
    """As nft reads it."""
    words = [f'iifname != "{rule.not_in}"'] if rule.not_in else []
    for side, net in (("saddr", rule.source), ("daddr", rule.destination)):
        if net is not None:
            words.append(f"{FAMILIES[net.version]} {side} & {net.netmask} == {net.network}")
    return f'{" ".join(words)} counter accept comment "{rule.owner}"'


def read_rule(line: str, chain: str) -> tuple[ForwardAccept, int] | None:
    """A rule of our form, and its handle, from a line of nft's listing; None for any other."""
    match = _OURS.fullmatch(line)
    if match is None:
        return None
    nets = _networks(match["source"], match["destination"])
    if nets is None:
        return None
    return ForwardAccept("nft", chain, match["owner"], *nets, not_in=match["not_in"] or ""), int(match["handle"])


def read_legacy(line: str) -> ForwardAccept | None:
    """A rule of our form from a line of ``iptables -S``; None for any other."""
    try:
        words = shlex.split(line)
    except ValueError:
        return None
    found = {"-A": "", "-s": "", "-d": "", "! -i": "", "--comment": "", "-j": "", "-m": ""}
    rest = _negated(words)
    for option, value in zip(rest[::2], rest[1::2], strict=False):
        if found.get(option, "said") or len(rest) % 2:
            return None
        found[option] = value
    nets = _networks(found["-s"], found["-d"])
    if nets is None or found["-j"] != "ACCEPT" or not found["--comment"]:
        return None
    return ForwardAccept("legacy", found["-A"], found["--comment"], *nets, not_in=found["! -i"])


def _negated(words: Iterable[str]) -> list[str]:
    """``! -i x`` as one option and its value."""
    found: list[str] = []
    for word in words:
        if found and found[-1] == "!":
            found[-1] = f"! {word}"
        else:
            found.append(word)
    return found


def _networks(source: str | None, destination: str | None) -> tuple[IPNetwork | None, IPNetwork | None] | None:
    """Both, as far as they were said; None where neither was, or what was said is no network."""
    try:
        nets = tuple(IPNetwork(text) if text else None for text in (source, destination))
    except (AddrFormatError, ValueError):
        return None
    return None if nets == (None, None) else (nets[0], nets[1])
