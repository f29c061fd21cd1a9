"""What can be wrong, and what does the operator do about it? A table of conditions; those that hold now are ``health``'s.

Status, readiness, metrics, logs and docs/conditions.md are views of this table; none of them decides by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum

from flannelpy.core.remedies import REMEDIES

TWO_LOOKS_S = 6.0
"""Of what is looked at every five seconds, and may be so for a moment: one look alone tells nobody."""


class RegistryName(StrEnum):
    """What a person knows the registry by; the value stands in sentences."""

    ETCD = "etcd"
    API_SERVER = "the API server"


class Severity(IntEnum):
    """How bad: INFO is for knowing, WARNING wants a look, ERROR means that packets are or will be lost."""

    INFO = 20
    WARNING = 30
    ERROR = 40


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that can be wrong. ``text`` is filled in with ``{detail}``; ``after`` is how long it must hold, in seconds, before
    anybody is told (a blip is no news). ``hides``: codes that say the same thing from further away and are not told beside it.
    """

    code: str
    severity: Severity
    text: str
    remedy: str
    after: float = 0.0
    hides: tuple[str, ...] = ()
    unready: bool = False
    """True where the agent is not ready to carry traffic while this holds."""

    def at(self, registry: RegistryName) -> Condition:
        """The same where this is the registry: ``{registry}`` in ``text`` is its name."""
        remedy = REMEDIES.get(self.code, self.remedy) if registry is RegistryName.API_SERVER else self.remedy
        return replace(self, text=self.text.replace("{registry}", registry), remedy=remedy)


_ALL = (
    Condition(
        "config-unusable",
        Severity.ERROR,
        "network config {detail}; waiting for it to be mended",
        "flannelpy config put FILE writes one; flannelpy config check FILE says before whether it is right",
        unready=True,
    ),
    Condition(
        "config-changed",
        Severity.WARNING,
        "the network config cannot be used: {detail}; going on with the one before",
        "write a config that can be: flannelpy config check FILE, flannelpy config put FILE",
    ),
    Condition(
        "type-unfinished",
        Severity.WARNING,
        "the change of the network's Type is not over: {detail}",
        "flannelpy status --peers says why; a host that is down comes back to the new Type, a flanneld needs a restart, and a host "
        "that cannot have it keeps the one before; the config before, put back, ends it, too",
        after=30.0,
    ),
    Condition(
        "registry-unreachable",
        Severity.WARNING,
        "{registry} does not answer: {detail}; what is programmed stays as it is",
        "look at etcd and the way to it: etcdctl endpoint health; the agent goes on by itself when etcd answers",
        after=2.0,
    ),
    Condition(
        "registry-tls",
        Severity.ERROR,
        "{registry}'s TLS: {detail}; trying again",
        "check --etcd-cafile, --etcd-certfile, --etcd-keyfile and the scheme of --etcd-endpoints",
    ),
    Condition(
        "registry-auth",
        Severity.ERROR,
        "{registry} refuses us: {detail}; trying again",
        "check --etcd-username, the password, and the role's permission on the prefix",
    ),
    Condition(
        "registry-refused",
        Severity.ERROR,
        "{registry} answers, and refuses: {detail}; trying again",
        "the message says what etcd is missing (etcdctl alarm list, etcdctl endpoint status)",
        after=2.0,
    ),
    Condition(
        "no-free-subnet",
        Severity.ERROR,
        "{detail}; waiting for one",
        "flannelpy lease list shows who holds what; flannelpy lease release SUBNET for hosts that are gone, or a larger Network; "
        "where this host itself needs part of it, another Network",
        unready=True,
    ),
    Condition(
        "node-unassigned",
        Severity.ERROR,
        "Kubernetes has given this host no subnet: {detail}; waiting for one",
        "kubectl get node NAME -o yaml; the controller-manager gives podCIDRs with --allocate-node-cidrs=true, inside Network",
        unready=True,
        after=2.0,
    ),
    Condition(
        "lease-lost",
        Severity.ERROR,
        "our lease is gone from {registry}: {detail}; asking for it again",
        "none needed; if it stays, flannelpy lease list shows who holds the subnet",
        after=2.0,
        hides=("lease-unconfirmed",),
    ),
    Condition(
        "lease-unconfirmed",
        Severity.WARNING,
        "our lease could not be confirmed: {detail}; packets keep flowing",
        "look at etcd and the way to it: etcdctl endpoint health",
        after=5.0,
    ),
    Condition(
        "subnet-conflict",
        Severity.ERROR,
        "two hosts claim one subnet: {detail}",
        "give every host an address and a --public-ip of its own; flannelpy lease list shows who holds what",
    ),
    Condition(
        "subnet-changed",
        Severity.ERROR,
        "our subnet has changed: {detail}",
        "systemctl restart docker, so that its bridge takes the new subnet from the subnet file",
        hides=("bridge-stale", "bridge-elsewhere"),
    ),
    Condition(
        "duplicate-public-ip",
        Severity.ERROR,
        "another host publishes our address: {detail}",
        "give each host its own --public-ip or --iface",
    ),
    Condition(
        "lease-malformed",
        Severity.WARNING,
        "a key in {registry} is not a lease: {detail}; it is ignored",
        "etcdctl del KEY, if nobody needs it; nothing but leases belongs below <prefix>/subnets",
    ),
    Condition(
        "peer-unusable",
        Severity.WARNING,
        "a peer's lease cannot be used: {detail}; no route to it, the others are not affected",
        "flannelpy lease list shows the lease and its host; mend that host's options, or flannelpy lease release SUBNET",
    ),
    Condition(
        "peer-unreadable",
        Severity.WARNING,
        "a peer's lease does not say how to reach it: {detail}; no route to it, the others are not affected",
        "flannelpy lease list shows the lease and its host; restart flannelpy there, or flannelpy lease release SUBNET",
    ),
    Condition(
        "offer-unusable",
        Severity.WARNING,
        "what a host offers besides the network's Type cannot be used: {detail}; it is reached by the Type",
        "etcdctl get --prefix <prefix>/flannelpy/hosts/ shows it; a flannelpy that runs there writes its own anew",
    ),
    Condition(
        "offers-refused",
        Severity.WARNING,
        "what hosts offer each other besides the network's Type cannot be {detail}; peers are reached as was known last, or by it",
        "let the agent's etcd user read and write the keys below <prefix>/flannelpy/hosts/, too: etcdctl role grant-permission",
        after=5.0,
    ),
    Condition(
        "peer-conflict",
        Severity.WARNING,
        "two leases cannot both be programmed: {detail}; the older one is",
        "flannelpy lease list shows both; flannelpy lease release SUBNET for the wrong one (a clone has copied a state directory)",
    ),
    Condition(
        "peers-unreachable",
        Severity.ERROR,
        "no peer answers through the overlay any more, of {detail}: this host is cut off",
        "look at this host's uplink, its firewall and the network behind it; then flannelpy status --bad",
        hides=("peer-unreachable",),
        unready=True,
    ),
    Condition(
        "peer-unreachable",
        Severity.ERROR,
        "a peer is not reached: {detail}",
        "look at that host, at its firewall and this one's, and at the network between; flannelpy status --bad shows all of them",
    ),
    Condition(
        "peer-silent",
        Severity.WARNING,
        "a peer has never answered: {detail}",
        "let ICMP echo requests in there, or release its lease if the host is gone: flannelpy lease release SUBNET",
    ),
    Condition(
        "kernel-refused",
        Severity.ERROR,
        "{detail}",
        "remove what is in the way (ip route del, ip link del), or load what is missing; the agent tries again by itself",
        after=0.5,
    ),
    Condition(
        "kernel-contested",
        Severity.ERROR,
        "somebody else changes {detail} again and again; it is repaired with pauses",
        "ip monitor shows the changes; look for a second agent for the same device, a network manager, a script",
    ),
    Condition(
        "registry-reset",
        Severity.ERROR,
        "{registry} has lost data: {detail}",
        "none needed where the other hosts are up; restore etcd's data where they are not",
    ),
    Condition(
        "view-stale",
        Severity.WARNING,
        "{registry} has not been reached since the start: {detail}; packets flow by what was known then",
        "look at etcd and the way to it: etcdctl endpoint health; the agent corrects itself when etcd answers",
    ),
    Condition(
        "backend-failed",
        Severity.ERROR,
        "what the host itself needs cannot be worked out: {detail}; what is programmed stays, trying again",
        "look at the network config; where it is a plugin's own fault, tell who wrote it (--log-level debug shows where)",
        unready=True,
    ),
    Condition(
        "kernel-unreadable",
        Severity.ERROR,
        "the kernel's state cannot be read: {detail}; trying again",
        "run it as root, or give the service AmbientCapabilities=CAP_NET_ADMIN",
        unready=True,
    ),
    Condition(
        "engine-refused",
        Severity.WARNING,
        "{detail}",
        "modprobe -a fou ipip, then systemctl restart flannelpy; or ask for the engine auto",
    ),
    Condition(
        "datapath-failed",
        Severity.ERROR,
        "the userspace datapath cannot run: {detail}",
        "the message says what is missing; the agent tries again by itself",
        unready=True,
    ),
    Condition(
        "preparation-failed",
        Severity.ERROR,
        "the backend cannot find out what it has to publish: {detail}; trying again",
        "run PreStartupCommand by hand on this host, with nothing of a login's environment: env -i PATH=$PATH COMMAND",
    ),
    Condition(
        "peer-failed",
        Severity.ERROR,
        "a peer cannot be set up: {detail}; the others are not affected",
        "run that command by hand on this host, with the variables of that peer; the agent tries again by itself",
    ),
    Condition(
        "claimed",
        Severity.ERROR,
        "another agent of this host has what this network needs: {detail}; it is left alone, and tried again",
        "give each network of a host a VNI or port of its own (flannelpy config put), or stop the other agent",
        unready=True,
    ),
    Condition(
        "forward-blocked",
        Severity.ERROR,
        "the host's firewall drops what the overlay forwards: {detail}",
        "run the commands that it names, and write them where the host's firewall is configured",
    ),
    Condition(
        "firewall-drops",
        Severity.ERROR,
        "this host's firewall drops what the overlay needs: {detail}",
        "run the command that it names, and write it where the host's firewall is configured",
        after=5.0,
    ),
    Condition(
        "forwarding-off",
        Severity.ERROR,
        "this host does not forward: {detail}",
        "run the command that it names, and write the setting into a file of /etc/sysctl.d (Docker sets it when it starts)",
        after=TWO_LOOKS_S,
    ),
    Condition(
        "reverse-path-filter",
        Severity.ERROR,
        "this host's reverse path filter drops what peers send: {detail}",
        "mend the route to the peer (ip route get ADDRESS), or run the command that it names, which makes the filter loose",
    ),
    Condition(
        "route-astray",
        Severity.ERROR,
        "a route or rule that is not ours takes packets for peers elsewhere: {detail}",
        "run the command that it names; ip route get ADDRESS shows which way a packet goes",
    ),
    Condition(
        "bridge-stale",
        Severity.ERROR,
        "a bridge has an address of the overlay that is not this host's: {detail}",
        "flannelpy docker-opts writes what Docker has to be told; systemctl restart docker gives its bridge the subnet",
    ),
    Condition(
        "bridge-elsewhere",
        Severity.WARNING,
        "Docker's containers are not in the overlay: {detail}",
        "tell Docker its subnet: flannelpy setup does, by the drop-in docker-flannelpy.conf (/usr/share/doc/flannelpy/examples, "
        "in a checkout packaging/systemd); nothing, where only others use the overlay",
        after=TWO_LOOKS_S,
    ),
    Condition(
        "bridge-down",
        Severity.ERROR,
        "containers here reach nobody: {detail}",
        "run the command that it names",
    ),
    Condition(
        "bridge-mtu",
        Severity.WARNING,
        "containers here may send larger packets than the overlay carries: {detail}",
        "run the command that it names, and restart what was started with the larger MTU",
        after=TWO_LOOKS_S,
    ),
    Condition(
        "subnet-file",
        Severity.ERROR,
        "the subnet file cannot be written: {detail}; trying again",
        "make the directory writable, or choose another with --subnet-file; where it was removed, systemctl restart flannelpy",
        unready=True,
    ),
    Condition(
        "state-dir",
        Severity.WARNING,
        "the state directory cannot be used: {detail}; going on without it",
        "make the directory writable, or choose another with --state-dir; where it was removed, systemctl restart flannelpy",
    ),
    Condition(
        "healthz-unavailable",
        Severity.WARNING,
        "the health pages are not served: {detail}; trying again",
        "give them an address of this host and a free port: --healthz-ip, --healthz-port",
    ),
    Condition(
        "uplink-missing",
        Severity.ERROR,
        "no uplink to send from: {detail}; what is programmed stays as it is",
        "bring the interface and its address back (ip addr), or choose another with --iface",
        hides=("peers-unreachable", "peer-unreachable", "route-astray", "reverse-path-filter"),
        unready=True,
    ),
    Condition(
        "uplink-down",
        Severity.ERROR,
        "the uplink {detail}: no packet reaches another host",
        "look at the cable or the switch, or: ip link set INTERFACE up",
        hides=("peers-unreachable", "peer-unreachable", "route-astray", "reverse-path-filter"),
        unready=True,
    ),
    Condition(
        "mtu-clamped",
        Severity.WARNING,
        "the MTU is smaller than the network config asks for: {detail}",
        "raise the MTU of the uplink, or lower Backend.MTU",
    ),
    Condition(
        "network-overlap",
        Severity.ERROR,
        "Network overlaps what this host needs outside of it: {detail}",
        "use a Network that no host, gateway, resolver or etcd is in: flannelpy config put FILE",
    ),
    Condition(
        "subnet-overlap",
        Severity.ERROR,
        "our subnet covers what this host needs outside of it: {detail}",
        "flannelpy lease release SUBNET, then systemctl restart flannelpy: it takes another one",
        unready=True,
    ),
    Condition(
        "task-failed",
        Severity.ERROR,
        "a part of the agent failed and was started again: {detail}",
        "this is a fault of flannelpy: please report it, with the traceback in the log",
    ),
)

CONDITIONS: dict[str, Condition] = {condition.code: condition.at(RegistryName.ETCD) for condition in _ALL}
IN_KUBERNETES: dict[str, Condition] = {condition.code: condition.at(RegistryName.API_SERVER) for condition in _ALL}


def conditions_at(registry: RegistryName) -> dict[str, Condition]:
    """The table where this is the registry."""
    return CONDITIONS if registry is RegistryName.ETCD else IN_KUBERNETES
