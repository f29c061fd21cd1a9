"""What may a person write on the command line or in the environment? The table, and flannel's way of writing flags.

Nothing heavy is imported here: ``cli`` builds its options from this table, ``settings`` reads what was given.
Source: flannel-compat 1 and 2. Deviation: a wrong flag is an error (exit 2).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from flannelpy.core.errors import UsageError

Given = Mapping[str, Sequence[str]]
"""What was written on the command line: flag name (without dashes) -> its values as typed, in order."""

OUR_ENV = "FLANNELPY_"
FLANNEL_ENV = "FLANNELD_"


@dataclass(frozen=True, slots=True)
class Option:
    """One flag. ``default`` is text, as a person would write it; ``why`` says why a flag does nothing or is refused."""

    name: str
    metavar: str = ""
    help: str = ""
    default: str = ""
    boolean: bool = False
    repeatable: bool = False
    why: str = ""

    @property
    def flag(self) -> str:
        """As it is written: ``--etcd-endpoints``."""
        return f"--{self.name}"

    @property
    def variables(self) -> tuple[str, str]:
        """The environment's twins, ours first, then flannel's."""
        tail = self.name.upper().replace("-", "_").replace(".", "_")
        return OUR_ENV + tail, FLANNEL_ENV + tail


ETCD = (
    Option(
        "etcd-endpoints",
        "URL,URL...",
        "etcd's client URLs, http:// or https://",
        "http://127.0.0.1:4001,http://127.0.0.1:2379",
    ),
    Option("etcd-prefix", "PATH", "where the network lives in etcd", "/coreos.com/network"),
    Option("etcd-cafile", "FILE", "certificates that etcd's certificate is checked against; the system's where not given"),
    Option("etcd-certfile", "FILE", "our client certificate; needs --etcd-keyfile"),
    Option("etcd-keyfile", "FILE", "the client certificate's key"),
    Option("etcd-username", "NAME", "etcd user"),
    Option("etcd-password", "TEXT", "the user's password; everybody on this host can read a command line: prefer the file"),
    Option("etcd-password-file", "FILE", "a file that holds the user's password"),
)
"""What every command that talks to etcd takes."""

KUBE = (
    Option(
        "kube-subnet-mgr", help="leases are Kubernetes' nodes, as kube-flannel has them; no etcd", default="false", boolean=True
    ),
    Option("kube-api-url", "URL", "the API server; in a pod its service account knows it"),
    Option(
        "kubeconfig-file", "FILE", "a kubeconfig with the way to the API server and who we are; in a pod its service account is"
    ),
    Option("kube-annotation-prefix", "TEXT", "how the annotations of the nodes begin", "flannel.alpha.coreos.com"),
    Option("net-config-path", "FILE", "the network config; what changes in it is followed", "/etc/kube-flannel/net-conf.json"),
    Option(
        "set-node-network-unavailable",
        help="say of our node that its network is there (NetworkUnavailable False) once it is",
        default="true",
        boolean=True,
    ),
)
"""What the agent takes instead of those where its leases are in Kubernetes."""

LOG = (
    Option("log-level", "LEVEL", "debug, info, warning or error", "info"),
    Option("log-format", "FORMAT", "text, json, or journal (text with the priority that systemd reads)", "text"),
)

AGENT = (
    Option("iface", "NAME|ADDRESS", "interface between the hosts, by name or address; the first that fits wins", repeatable=True),
    Option("iface-regex", "REGEX", "the same by a pattern for addresses, then names; tried after --iface", repeatable=True),
    Option("iface-can-reach", "ADDRESS", "the interface that the kernel would use to reach this address; tried last"),
    Option("public-ip", "ADDRESS", "IPv4 address that peers send to, where it is not the interface's (NAT)"),
    Option("public-ipv6", "ADDRESS", "the same for IPv6"),
    Option("subnet-file", "FILE", "what Docker and CNI read", "/run/flannel/subnet.env"),
    Option("subnet-lease-renew-margin", "MINUTES", "renew the lease this long before it ends, 1 to 1439", "60"),
    Option("subnet-lease-ttl", "SECONDS", "how long the lease lives in etcd when nobody extends it; flannel's is a day", "86400"),
    Option(
        "exit-on-subnet-change", help="end (exit 1) when the host gets another subnet than it had", default="false", boolean=True
    ),
    Option(
        "release-on-exit", help="give the lease back at a clean stop: a host that does not return", default="false", boolean=True
    ),
    Option("ip-masq", help="masquerade what leaves the overlay", default="false", boolean=True),
    Option("ip-masq-fully-random-disable", help="masquerade without fully random ports", default="false", boolean=True),
    Option("iptables-forward-rules", help="let the host forward the overlay's packets", default="true", boolean=True),
    Option(
        "container-source-check",
        help="forward no container of this host that sends as another host's",
        default="true",
        boolean=True,
    ),
    Option(
        "nexthop-objects",
        help="carry IPv4 routes of 2,000 peers and more by nexthop objects, where the kernel has them: a faster start",
        default="true",
        boolean=True,
    ),
    Option("ip-blackhole-route", help="drop what goes to unused addresses of our own subnet", default="false", boolean=True),
    Option("udp-engine", "ENGINE", "who carries udp's packets: auto, kernel or userspace; wins over the config's Backend.Engine"),
    Option("udp-workers", "N", "udp's worker processes, 1 to 64, at most one a core; wins over the config's Backend.Workers"),
    Option("probe", help="ask peers whether they are there: an echo request to each in ten seconds", default="true", boolean=True),
    Option(
        "hostname",
        "NAME",
        "what other hosts show beside this one's address; the machine's name where not given; --hostname= for none",
    ),
    Option("prefer", "none", "none: reach and be reached by the network's Type alone, whatever its Prefer says"),
    Option(
        "healthz-ip",
        "ADDRESS",
        "where the pages /healthz and /readyz listen; 0.0.0.0 is every IPv4 address, :: every one",
        "127.0.0.1",
    ),
    Option("healthz-port", "PORT", "their port; 0 is off", "0"),
    Option("state-dir", "DIR", "what must survive a reboot", "/var/lib/flannelpy"),
    Option(
        "wireguard-key-file",
        "FILE",
        "where the host's WireGuard key is kept; wireguard.key in the state directory where not given",
    ),
    Option(
        "run-dir",
        "DIR",
        "the lock that keeps a second agent out, and the socket of flannelpy status; one for each agent",
        "/run/flannelpy",
    ),
    *LOG,
)

_KLOG = "flannel's logging library is not used here; --log-level debug says more"

ACCEPTED = (
    Option("iptables-resync", "SECONDS", why="the kernel tells of changes to our rules, nothing is polled"),
    Option("v", "LEVEL", why=_KLOG),
    Option("vmodule", "PATTERN", why=_KLOG),
    Option("log_backtrace_at", "FILE:LINE", why=_KLOG),
)
"""flannel's flags that mean nothing here: accepted, with a line in the log."""

ALL = (*ETCD, *KUBE, *AGENT, *ACCEPTED)
BY_NAME: Mapping[str, Option] = {option.name: option for option in ALL}


WHOSE = (
    Option("public-ip", "ADDRESS", "the IPv4 address of the host that the subnet is for"),
    Option("public-ipv6", "ADDRESS", "its IPv6 address, where it has no other"),
)
"""What ``lease reserve`` takes: names of the table above, said of another host."""


def spell_out(words: Iterable[str]) -> list[str]:
    """The command line with flannel's spellings turned into one: ``--name=value``.

    ``-name value``, ``-name=value`` and ``--name value`` become ``--name=value``, a bare boolean becomes ``--name=true``. What is
    not in the table (subcommands and their short options) stays as it is; after ``--`` nothing is touched.
    Raises UsageError for ``--ip-masq false``, which flannel silently takes for true.
    """
    spelt: list[str] = []
    rest = list(words)
    in_command = False
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*spelt, word, *rest]
        name, equals, value = word.lstrip("-").partition("=")
        dashes = len(word) - len(word.lstrip("-"))
        option = BY_NAME.get(name) if dashes in (1, 2) else None
        in_command = in_command or not dashes
        if option is None:
            long_with_one_dash = dashes == 1 and len(name) > 1 and not in_command
            spelt.append(f"-{word}" if long_with_one_dash else word)
        elif equals:
            spelt.append(f"{option.flag}={value}")
        elif option.boolean:
            if rest and rest[0].lower() in ("true", "false"):
                raise UsageError(f"{word} {rest[0]}: expected {word}={rest[0]}")
            spelt.append(f"{option.flag}=true")
        elif rest:
            spelt.append(f"{option.flag}={rest.pop(0)}")
        else:
            raise UsageError(f"{word}: expected a value after it ({option.metavar})")
    return spelt
