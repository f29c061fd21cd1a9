"""What do nft and iptables print of FORWARD chains, and how is a rule of ours written? Text in, values out."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from netaddr import AddrFormatError, IPNetwork

from flannelpy.core.forward_accept import ForwardAccept

FAMILIES = {4: "ip", 6: "ip6"}
VERSIONS = {"ip": 4, "ip6": 6, "inet": 0}

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
_WIDE = re.compile(r"\bmark\b(?! set)| != |\b[io]if(?:group|kind)\b")
_DROPS = re.compile(r"\b(?:drop|reject)\b")


@dataclass(frozen=True, slots=True)
class Base:
    """A base chain of hook forward, of whichever table. ``policy`` is ``accept`` or ``drop``."""

    family: str
    table: str
    chain: str
    policy: str


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


def leads_to(text: str) -> str:
    """The chain that all that has come so far goes to by the last rule of a listed chain; empty where there is no such rule."""
    match = _LEADS.fullmatch(text.rstrip("}\n\t ").rpartition("\n")[2].strip())
    return match[1] if match else ""


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


def lets_through(text: str) -> bool:
    """True where a rule of a listing does more than drop by what is told of it nowhere else: a mark, or all but something."""
    return any(_WIDE.search(_QUOTED.sub("", line)) and not _DROPS.search(line) for line in text.splitlines())


def spelled(rule: ForwardAccept) -> str:
    """As nft reads it."""
    words = [f'iifname != "{rule.not_in}"'] if rule.not_in else []
    for side, net in (("saddr", rule.source), ("daddr", rule.destination)):
        if net is not None:
            words.append(f"{FAMILIES[net.version]} {side} & {net.netmask} == {net.network}")
    return f'{" ".join(words)} counter accept comment "{rule.owner}"'


def read_rules(lines: Iterable[str], chain: str) -> Iterator[tuple[ForwardAccept, int]]:
    """The rules of our form, whoever's, and their handles."""
    return (found for line in lines if (found := read_rule(line, chain)) is not None)


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
