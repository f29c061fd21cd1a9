"""Which rule of ours stands in a chain of the host's own firewall? One kind of kernel object (``core.objects``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from netaddr import IPNetwork

from flannelpy.core.key import Key

Tool = Literal["nft", "legacy"]
"""Whose a FORWARD chain is: iptables-nft's, in the nft table ``filter``, or iptables-legacy's."""


@dataclass(frozen=True, slots=True)
class ForwardAccept:
    """A rule that accepts what is forwarded, in a chain of the host's iptables (FORWARD or DOCKER-USER), put there before others.

    The rule's comment is ``owner``, by which a fresh process knows its own. ``not_in`` is a device whose packets it leaves alone.
    """

    noun: ClassVar[str] = "forward"

    tool: Tool
    chain: str
    owner: str
    source: IPNetwork | None = None
    destination: IPNetwork | None = None
    not_in: str = ""

    @property
    def version(self) -> int:
        """The IP version of the packets that it accepts; it speaks of one network at least."""
        return next(net.version for net in (self.source, self.destination) if net is not None)

    @property
    def key(self) -> Key:
        """All of it: a rule is there or not, and is never changed."""
        return Key("forward", str(self))

    @property
    def lives_on(self) -> None:
        return None

    def satisfied_by(self, observed: object) -> bool:
        """True where what was observed under the same key is as good as this."""
        return self == observed

    @property
    def match(self) -> str:
        """What it says behind the chain's name, as ``iptables -S`` prints it."""
        words = [f"-s {self.source}"] if self.source is not None else []
        words += [f"-d {self.destination}"] if self.destination is not None else []
        words += [f"! -i {self.not_in}"] if self.not_in else []
        return f"{' '.join(words)} -m comment --comment {self.owner} -j ACCEPT"

    def __str__(self) -> str:
        return f"{command(self.tool, self.version)} {self.chain} {self.match}"


def command(tool: Tool, version: int) -> str:
    """The program by which an operator would look at it."""
    return f"{'iptables' if version == 4 else 'ip6tables'}{'-legacy' if tool == 'legacy' else ''}"
