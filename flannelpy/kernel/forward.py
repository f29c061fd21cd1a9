"""What does the host's own firewall do with forwarded packets, and how do we stand in it? iptables' FORWARD chains, of either kind.

iptables-nft keeps its rules in the nft tables ``ip filter`` and ``ip6 filter``: ours are written and read there as nft text, in the
form that iptables of any version shows as its own (a prefix as a mask of four bytes; the comment as nft keeps it), so that an
operator sees them in ``iptables -S`` and can delete them with ``iptables -D``. iptables-legacy is asked by its command, and only
where its table is in use (``in_use``), for asking would load it. Nothing is ever done to a rule without our comment.
The kernel tells of changes in the old tables to nobody. Sources: nft(8), iptables(8).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import shlex
import shutil
from collections.abc import Awaitable
from contextlib import suppress
from itertools import product
from pathlib import Path

from flannelpy.core import packet_filter
from flannelpy.core.errors import KernelError, MalformedError
from flannelpy.core.forward_accept import ForwardAccept, command
from flannelpy.core.forwarding import DOCKER_USER, FORWARD, Hindrance
from flannelpy.core.packet_filter import Ruleset
from flannelpy.kernel.forward_text import (
    FAMILIES,
    VERSIONS,
    Base,
    base_chains,
    chains_named,
    devices_in,
    ends,
    leads_to,
    lets_through,
    networks_in,
    read_legacy,
    read_rule,
    read_rules,
    spelled,
)
from flannelpy.kernel.legacy_rules import PRIORITIES, with_legacy
from flannelpy.kernel.nft import Nft, run_command

NAMES = {4: Path("/proc/thread-self/net/ip_tables_names"), 6: Path("/proc/thread-self/net/ip6_tables_names")}
XTABLES_LOCK = Path("/run/xtables.lock")
PATH = "/usr/sbin:/sbin:/usr/bin:/bin"
LOCK_S = 5
"""How long iptables-legacy may wait for another iptables, in seconds."""

SMALL = 1 << 16
"""A listing of so many letters is read at once, in a millisecond or two; a longer one in a thread."""
LINES = 50
"""So many rules of iptables-legacy, likewise: one takes 65 µs."""

log = logging.getLogger(__name__)

GONE = frozenset({errno.ENOENT, errno.ENOPKG, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT})
"""How nft says that there is no such table or chain, or that there are none at all."""


class Forward:
    """The FORWARD chains of the namespace where it is first used."""

    def __init__(self, nft: Nft) -> None:
        self._nft = nft
        self._added: set[ForwardAccept] = set()

    async def hindrances(self) -> tuple[Hindrance, ...]:
        """Which chains drop what is forwarded. One listing of chains, and one of each base chain of hook forward."""
        listed = await _there(self._nft.ask("list chains\n"))
        docker = chains_named(listed, DOCKER_USER)
        found = [await self._look(base, (base.family, base.table) in docker) for base in base_chains(listed)]
        return (*(one for one in found if one is not None), *await self._legacy_hindrances())

    async def filter_rules(self) -> Ruleset:
        """Those of nft's tables, which are iptables-nft's, too, and of iptables-legacy's ``filter``. Raises KernelError."""
        try:
            rules = await self._whole(packet_filter.read(await self._nft.everything()))
        except MalformedError as error:
            raise KernelError(str(error), errno.EPROTO) from None
        for version in FAMILIES:
            for table in PRIORITIES:
                if lines := await self._legacy_lines(version, table=table):
                    rules = await _with_legacy(rules, version, lines, table)
        return rules

    async def foreign_rules(self) -> Ruleset:
        """Those of others' tables that filter: the rest (NAT) is not read, and may be thousands. Raises KernelError."""
        try:
            chains = packet_filter.read(await self._listed("list chains"))
            tables = dict.fromkeys(base.place[:2] for base in chains.bases if base.place[0] in VERSIONS)
            # One at a time: of several lists in one run nft 1.0 has read the last one's table only.
            lists = [
                await self._listed(f"list table {' '.join(table)}") for table in tables if not table[1].startswith("flannelpy")
            ]
            text = "\n".join(lists)
            rules = await asyncio.to_thread(packet_filter.read, text) if len(text) > SMALL else packet_filter.read(text)
            rules = await self._whole(rules)
        except MalformedError as error:
            raise KernelError(str(error), errno.EPROTO) from None
        for (version, table), lines in (await self.legacy()).items():
            rules = await _with_legacy(rules, version, lines, table)
        return rules

    async def _listed(self, what: str) -> str:
        """In JSON; empty where there is no such thing any more."""
        return await _there(self._nft.listed(f"{what}\n"))

    async def _whole(self, rules: Ruleset) -> Ruleset:
        """With what iptables-nft's matches ask for. One more listing of each table that has such."""
        from flannelpy.core import xt_matches

        for table in xt_matches.untold(rules):
            text = await _there(self._nft.told(f"list table {' '.join(table)}\n"))
            if len(text) > SMALL:
                rules = await asyncio.to_thread(xt_matches.with_text, rules, table, text)
            else:
                rules = xt_matches.with_text(rules, table, text)
        return rules

    async def legacy(self) -> dict[tuple[int, str], list[str]]:
        """What ``iptables-legacy -S`` prints, by IP version and table, where that is in use and may be asked."""
        found = {}
        for version, table in product(FAMILIES, PRIORITIES):
            with suppress(KernelError):
                if lines := await self._legacy_lines(version, table=table):
                    found[version, table] = lines
        return found

    async def observe(self, owner: str) -> list[ForwardAccept]:
        """The rules whose comment is ``owner``.

        Where tables of others hold what this nft cannot list, what we have put there is taken to be there still: it must neither be
        put there again and again, nor keep all else from being looked at.
        """
        found: list[ForwardAccept] = []
        for version in FAMILIES:
            try:
                for chain in (FORWARD, DOCKER_USER):
                    found += [rule for rule, _handle in read_rules(await self._nft_lines(version, chain), chain)]
                found += [rule for line in await self._legacy_chains(version) if (rule := read_legacy(line)) is not None]
            except KernelError as reason:
                log.debug("the rules in FORWARD cannot be listed: %s", reason)
                found += [rule for rule in self._added if rule.version == version]
        return list(dict.fromkeys(rule for rule in found if rule.owner == owner))

    async def add(self, rule: ForwardAccept) -> None:
        """Put it before all others of its chain. Raises KernelError; ENOENT where there is no such chain.

        What has our comment and another form than ours goes: so one rule never becomes many, whatever becomes of it.
        """
        if rule.tool == "legacy":
            for line in await self._legacy_chains(rule.version):
                if f" --comment {rule.owner} " in line and read_legacy(line) is None:
                    await self._legacy(rule.version, "-D", *shlex.split(line.removeprefix("-A ")))
            await self._legacy(rule.version, "-I", rule.chain, *shlex.split(rule.match))
        else:
            lines = await self._nft_lines(rule.version, rule.chain)
            strays = [
                line for line in lines if f' comment "{rule.owner}" # handle ' in line and read_rule(line, rule.chain) is None
            ]
            for stray in strays:
                await self._delete(rule, int(stray.rpartition(" ")[2]))
            await self._nft.ask(f"insert rule {FAMILIES[rule.version]} filter {rule.chain} {spelled(rule)}\n")
        self._added.add(rule)

    async def remove(self, rule: ForwardAccept) -> None:
        """Take it out, as often as it is there. Raises KernelError."""
        self._added.discard(rule)
        if rule.tool == "legacy":
            for line in await self._legacy_chains(rule.version):
                if read_legacy(line) == rule:
                    await self._legacy(rule.version, "-D", rule.chain, *shlex.split(rule.match))
            return
        for other, handle in read_rules(await self._nft_lines(rule.version, rule.chain), rule.chain):
            if other == rule:
                await self._delete(rule, handle)

    async def _delete(self, rule: ForwardAccept, handle: int) -> None:
        await self._nft.ask(f"delete rule {FAMILIES[rule.version]} filter {rule.chain} handle {handle}\n")

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
        return Hindrance(version, table, base.chain, why, networks=networks, devices=devices, wide=lets_through(text))

    async def _end(self, table: str, text: str) -> str:
        """By which rule it drops all that has come so far, itself or where its last rule leads to; empty: by none."""
        if chain := leads_to(text):
            text += await self._list(f"chain {table} {chain}")
        return next((f"it ends in: {end}" for end in ends(text)), "")

    async def _list(self, what: str) -> str:
        return await _there(self._nft.ask(f"list {what}\n"))

    async def _nft_lines(self, version: int, chain: str) -> list[str]:
        """A chain of iptables-nft, a rule a line, with handles; nothing where there is none."""
        text = await _there(self._nft.ask(f"list chain {FAMILIES[version]} filter {chain}\n", handles=True))
        return text.splitlines()

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

    async def _legacy_chains(self, version: int) -> list[str]:
        """FORWARD, and DOCKER-USER where it leads there."""
        lines = await self._legacy_lines(version, FORWARD)
        return lines + (await self._legacy_lines(version, DOCKER_USER) if f"-A {FORWARD} -j {DOCKER_USER}" in lines else [])

    async def _legacy_lines(self, version: int, *chain: str, table: str = "filter") -> list[str]:
        """A chain, or all, as ``iptables -S`` prints it; nothing where iptables-legacy is not in use, or is not there."""
        if not in_use(version, table) or shutil.which(command("legacy", version), path=PATH) is None:
            return []
        return (await self._legacy(version, "-t", table, "-S", *chain)).splitlines()

    async def _legacy(self, version: int, *words: str) -> str:
        program = command("legacy", version)
        path = shutil.which(program, path=PATH)
        if path is None:
            raise KernelError(f"the host's firewall is iptables-legacy, and {program} is not there", errno.ENOPKG)
        return await run_command([path, "-w", str(LOCK_S), *words])


async def _there(asked: Awaitable[str]) -> str:
    """What nft prints; empty where there is no such thing, or no more."""
    try:
        return await asked
    except KernelError as reason:
        if reason.code in GONE:
            return ""
        raise


async def _with_legacy(rules: Ruleset, version: int, lines: list[str], table: str) -> Ruleset:
    if len(lines) > LINES:
        return await asyncio.to_thread(with_legacy, rules, version, lines, table)
    return with_legacy(rules, version, lines, table)


def in_use(version: int, table: str = "filter") -> bool:
    """True where an old table is in use in this namespace; asking by the command would bring it there.

    The kernel tells root alone. Others know by the lock, which iptables-legacy alone makes, where it has been opened to them
    (packaging's flannelpy-xtables.service): without that the command would be of no use. They are told of ``filter`` only.
    """
    try:
        return table in NAMES[version].read_text().split()
    except PermissionError:
        return table == "filter" and os.access(XTABLES_LOCK, os.R_OK)
    except OSError:
        return False
