"""How does Docker's own configuration file get our subnet? Merged into daemon.json: everything else in it stays as it is.

dockerd refuses to start over a file that is no JSON object, that has a name it does not know or a value of another type, and over
what is said twice: by the file and by a flag, or by ``bridge`` and ``bip``. Such a file is refused here, before it is too late.
Source: dockerd(8), "DAEMON CONFIGURATION FILE"; Docker's daemon/config/config.go (20.10 to 28).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from netaddr import AddrFormatError, IPAddress, IPNetwork

from flannelpy.core.errors import FlannelpyError
from flannelpy.core.json_text import decode
from flannelpy.host.docker import PREFIX

LARGEST = 1 << 20
"""Bytes of a daemon.json."""

OURS = {f"{PREFIX}BIP": "bip", f"{PREFIX}MTU": "mtu", f"{PREFIX}IPMASQ": "ip-masq"}
"""Names in the file of the options made from subnet.env."""

_TEXT, _NUMBER, _SWITCH, _LIST, _OBJECT = "a string", "a whole number", "true or false", "a list of strings", "an object"
_TYPES: Mapping[str, str] = {
    name: kind
    for kind, names in {
        _TEXT: "bip bip6 bridge cgroup-parent containerd containerd-namespace containerd-plugins-namespace cri-containerd "
        "data-root default-cgroupns-mode default-gateway default-gateway-v6 default-ipc-mode default-runtime default-shm-size "
        "exec-root fixed-cidr fixed-cidr-v6 firewall-backend group host-gateway-ip init-path ip log-driver log-format log-level "
        "metrics-addr pidfile seccomp-profile storage-driver swarm-default-advertise-addr tlscacert tlscert tlskey "
        "userland-proxy-path",
        _NUMBER: "max-concurrent-downloads max-concurrent-uploads max-download-attempts mtu network-control-plane-mtu "
        "shutdown-timeout cpu-rt-period cpu-rt-runtime oom-score-adjust network-diagnostic-port",
        _SWITCH: "allow-direct-routing allow-nondistributable-artifacts-all debug experimental icc init ip-forward "
        "ip-forward-no-drop ip-masq ip6tables iptables ipv6 live-restore no-new-privileges no-proxy-all raw-logs selinux-enabled "
        "tls tlsverify userland-proxy",
        _LIST: "authorization-plugins dns dns-opts dns-search exec-opts hosts insecure-registries labels registry-mirrors "
        "storage-opts allow-nondistributable-artifacts cdi-spec-dirs",
        _OBJECT: "builder default-network-opts default-ulimits features log-opts proxies runtimes containerd-config",
    }.items()
    for name in names.split()
}
"""What dockerd expects behind a name. One that is not here may be a newer Docker's."""

_BY_FLAG = {
    "b": "bridge", "H": "hosts", "host": "hosts", "D": "debug", "G": "group", "g": "data-root", "l": "log-level",
    "p": "pidfile", "s": "storage-driver", "label": "labels", "dns-opt": "dns-opts", "exec-opt": "exec-opts",
    "storage-opt": "storage-opts", "insecure-registry": "insecure-registries", "registry-mirror": "registry-mirrors",
    "authorization-plugin": "authorization-plugins", "log-opt": "log-opts", "default-ulimit": "default-ulimits",
    "add-runtime": "runtimes",
}  # fmt: skip
"""Flags whose name in the file is another one."""


@dataclass(frozen=True, slots=True)
class Merged:
    """The whole new text, and what is another value in it than before, a line each; no line: nothing has to be written."""

    text: str
    changes: tuple[str, ...]


def wanted(made: Mapping[str, str]) -> dict[str, Any]:
    """What the file shall say, of options as ``daemon_options`` makes them; others than ours are flags, and stay so."""
    values = {OURS[name]: option.partition("=")[2] for name, option in made.items() if name in OURS}
    return {
        name: int(value) if name == "mtu" else value == "true" if name == "ip-masq" else value for name, value in values.items()
    }


def merge(text: str | None, values: Mapping[str, Any], flags: Collection[str] = ()) -> Merged:
    """``text`` (None: there is no file) with ``values`` in it, and everything else as it was, in its order.

    ``flags``: those that Docker is started with. Raises FlannelpyError with what dockerd would refuse of the result.
    """
    fields = _read(text)
    merged = {**fields, **values}
    for reason in _refused(merged, flags):
        raise FlannelpyError(f"{reason}: dockerd would not start; nothing was written")
    changes = tuple(
        f"{name}: {json.dumps(fields[name]) if name in fields else 'absent'} -> {json.dumps(value)}"
        for name, value in values.items()
        if name not in fields or fields[name] != value or isinstance(fields[name], bool) != isinstance(value, bool)
    )
    if not changes and text is not None:
        return Merged(text, ())
    return Merged(json.dumps(merged, indent=_indent(text), ensure_ascii=False) + "\n", changes)


def flags_of(words: Collection[str]) -> set[str]:
    """Names in the file that a command line of dockerd's gives: ``--bip=...``, ``-H fd://``."""
    found = set()
    for word in words:
        if (match := re.match(r"--([a-z0-9-]+)(=|$)", word)) or (match := re.match(r"-([A-Za-z])", word)):
            found.add(_BY_FLAG.get(match[1], match[1]))
    return found


def _read(text: str | None) -> dict[str, Any]:
    if text is None or not text.strip():  # dockerd takes an empty file
        return {}
    try:
        fields = decode(text)
    except ValueError as error:
        raise FlannelpyError(f"it is no JSON ({error}): dockerd would not start; nothing was written") from None
    if not isinstance(fields, dict):
        raise FlannelpyError("expected a JSON object: dockerd would not start; nothing was written")
    return fields


def _refused(fields: Mapping[str, Any], flags: Collection[str]) -> Iterator[str]:
    for name, value in fields.items():
        kind = _TYPES.get(name)
        if kind is None and name.lower() in _TYPES:
            yield f"{name!r:.60}: expected {name.lower()}, in small letters"
        elif kind is not None and value is not None and not _is(value, kind):
            yield f"{name}: {json.dumps(value):.60}, expected {kind}"
    for name in fields:
        if name in flags:
            yield f"{name} is given to Docker by a flag, too (systemctl cat docker), and may be said in one place only"
    if fields.get("bridge"):
        yield f"bridge {json.dumps(fields['bridge']):.60} and bip exclude each other"
    network = IPNetwork(fields["bip"])
    for name, needs in (("fixed-cidr", IPNetwork), ("default-gateway", IPAddress)):
        if value := fields.get(name):
            try:
                inside = needs(value) in network
            except (AddrFormatError, ValueError, TypeError):
                inside = False
            if not inside:
                yield f"{name} {value!r:.60} is not in {network.cidr}, which bip will be"


def _is(value: object, kind: str) -> bool:
    if kind == _NUMBER:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == _LIST:
        return isinstance(value, list) and all(isinstance(each, str) for each in value)
    return isinstance(value, {_TEXT: str, _SWITCH: bool, _OBJECT: dict}[kind])


def _indent(text: str | None) -> int | str:
    """As the file has it, by its first line that is indented."""
    found = re.search(r"^([ \t]+)\S", text or "", re.MULTILINE)
    return 4 if found is None else found[1] if "\t" in found[1] else len(found[1])
