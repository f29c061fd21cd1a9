#!/usr/bin/python3 -IS
# Part of flannelpy: `flannelpy cni install` puts it where container runtimes look, and `flannelpy cni uninstall` takes it back.
"""How does a container get onto this host's subnet? The CNI plugin ``flannel``: it says what, another plugin does it.

It reads the network's configuration (stdin) and the subnet that the agent leased (subnet.env), puts together what another plugin,
the delegate (by default ``bridge`` with ``host-local``), needs, keeps that for DEL, and runs it. Installed as ``flannel`` into the
runtime's folder of plugins, it is started twice a container by whatever Python the host has: it is one file, knows the standard
library alone, and imports no more than it must, because an import costs more than all its work. Errors are one JSON object on
stdout and exit code 1; their codes and words are those of flannel's own plugin, which logs and scripts know.

CNI specification 1.1.0 (https://www.cni.dev/docs/spec/); flannel-compat 7.
"""

import errno
import os
import stat
import sys
import time

# `json`, `re` and `socket` would cost 11 ms of CPU at every start, more than everything else; what is C in them costs nothing.
from _json import encode_basestring_ascii, make_scanner
from _signal import SIGPIPE, SIGXFSZ  # type: ignore[import-not-found]
from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
"""Commands that came after the first version of the specification."""
REQUIRED = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"),
    "GC": ("CNI_PATH",),
    "STATUS": ("CNI_PATH",),
}
SUBNET_FILE = "/run/flannel/subnet.env"
DATA_DIR = "/var/lib/cni/flannel"
FIELDS: dict[str, type] = {
    "cniVersion": str,
    "name": str,
    "type": str,
    "subnetFile": str,
    "dataDir": str,
    "capabilities": dict,
    "delegate": dict,
    "dns": dict,
    "ipam": dict,
    "prevResult": dict,
    "runtimeConfig": dict,
    "cni.dev/valid-attachments": list,
}
"""What is read of a configuration, and what it must be."""
ALNUM = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
LIMIT = 16 << 20
"""Bytes of a configuration, a file or an answer; nobody's has a thousandth of it."""
SHOWN = 300
"""Letters of foreign text in an error."""

VERSION_REFUSED, ENVIRONMENT, IO, DECODING, CONFIG, NETNS, UNAVAILABLE, INTERNAL = 1, 4, 5, 6, 7, 8, 50, 999


class CniError(Exception):
    """What ends the plugin: the specification's code, a sentence, and what helps to understand it."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.code, self.msg, self.details = code, msg, details


def main() -> int:
    """Do what CNI_COMMAND says; 0, or 1 with an error on stdout. Nothing that comes in from outside ends in a traceback."""
    try:
        return say(run(dict(os.environ)))
    except CniError as error:
        said: dict[str, object] = {"code": error.code, "msg": shown(error.msg, 4 * SHOWN)}
        if error.details:
            said["details"] = shown(error.details, 4 * SHOWN)
    except Exception as error:  # noqa: BLE001 - the edge of the process: a runtime reads JSON, not a traceback
        said = {"code": INTERNAL, "msg": shown(f"{type(error).__name__}: {error}")}
    return say(render(said, "\n")) or 1


def say(text: str) -> int:
    """Text on stdout, if any; 1 where nobody takes it."""
    if not text:
        return 0
    try:
        with open(1, "wb", closefd=False) as out:
            out.write(text.encode("ascii"))
    except OSError as error:
        note(f"flannel: the answer cannot be written: {error.strerror}")
        return 1
    return 0


def note(text: str) -> None:
    """A line on stderr, where somebody may log it."""
    note_as_it_is(f"{shown(text, 4 * SHOWN)}\n".encode())


def note_as_it_is(data: bytes) -> None:
    """Another program's stderr on ours. That nobody listens is no failure."""
    try:
        os.write(2, data)
    except OSError:
        return


def run(env: dict[str, str], stdin: int = 0) -> str:
    """The answer of a command, empty where it has none. Raises CniError."""
    command = env.get("CNI_COMMAND", "")
    if not command:  # a person called it
        note(f"CNI plugin flannel, of flannelpy; CNI protocol versions supported: {', '.join(VERSIONS)}")
        return ""
    demand_environment(command, env)
    if command == "VERSION":
        return render({"cniVersion": VERSIONS[-1], "supportedVersions": list(VERSIONS)}) + "\n"
    conf = read_conf(stdin)
    if command not in REQUIRED:
        raise CniError(ENVIRONMENT, f"unknown CNI_COMMAND: {command}")
    demand_version(command, conf)
    if command == "CHECK":  # whatever can be checked is the delegate's, and flannel's own plugin does not ask it
        return ""
    demand_types(conf)
    if command in ("STATUS", "GC"):
        (status if command == "STATUS" else collect)(conf, env)
        return ""
    answer = add(conf, env) if command == "ADD" else delete(conf, env)
    if env.get("CNI_NETNS_OVERRIDE", "").upper() not in ("TRUE", "1") and is_own_netns(env.get("CNI_NETNS", "")):
        raise CniError(NETNS, "plugin's netns and netns from CNI_NETNS should not be the same")
    return answer


# ------------------------------------------------------------------------------------------------------------ what is asked


def demand_environment(command: str, env: dict[str, str]) -> None:
    """Raise CniError where a variable that the command needs is missing, or is nothing that may be used as a name."""
    missing = []
    for name in REQUIRED.get(command, ()):
        value = env.get(name, "")
        if not value:
            missing.append(name)
        elif name == "CNI_CONTAINERID" and not is_name(value):
            raise CniError(ENVIRONMENT, "invalid characters in containerID", value)
        elif name == "CNI_IFNAME":
            demand_interface_name(value)
    if missing:
        raise CniError(ENVIRONMENT, f"required env variables [{','.join(missing)}] missing")


def is_name(text: str) -> bool:
    """Whether it may name a network or a container: such a name stays in the folder it is looked for in, and begins with no dot."""
    return text[:1] in ALNUM and ALNUM.union("_.-").issuperset(text)


def demand_interface_name(name: str) -> None:
    """Raise CniError for what the kernel would not take (dev_valid_name)."""
    if len(os.fsencode(name)) > 15:
        raise CniError(ENVIRONMENT, "interface name is too long", "interface name should be less than 16 characters")
    if name in (".", ".."):
        raise CniError(ENVIRONMENT, "interface name is . or ..")
    if any(letter in "/:" or letter.isspace() for letter in name):
        raise CniError(ENVIRONMENT, "interface name contains / or : or whitespace characters")


def read_conf(descriptor: int) -> dict[str, object]:
    """The configuration on stdin, with a name that may be one. Raises CniError.

    Its own keys are found whatever their case, as Go reads JSON; null is as if nothing stood there.
    """
    try:
        data = read_all(descriptor)
    except OSError as error:
        raise CniError(IO, f"error reading from stdin: {error.strerror}") from None
    try:
        given = parse_object(data) if data.strip() != b"null" else {}
    except ValueError as error:
        raise CniError(DECODING, f"error unmarshall network config: {error}") from None
    known = {key.lower(): key for key in FIELDS}
    conf = {known.get(key.lower(), key): value for key, value in given.items() if value is not None}
    name = conf.get("name", "")
    if not isinstance(name, str):
        raise CniError(DECODING, f"error unmarshall network config: name: expected a string, got {kind(name)}")
    if not name:
        raise CniError(CONFIG, "missing network name")
    if not is_name(name):
        raise CniError(CONFIG, "invalid characters found in network name", name)
    return conf


def demand_version(command: str, conf: dict[str, object]) -> None:
    """Raise CniError where the configuration's version is none of ours, or knows no such command."""
    version = conf.get("cniVersion", "")
    if not isinstance(version, str):
        raise CniError(DECODING, f"decoding version from network config: cniVersion: expected a string, got {kind(version)}")
    version = version or VERSIONS[0]
    if command in SINCE:
        wanted = numbers(version)
        if wanted < numbers(SINCE[command]):
            raise CniError(VERSION_REFUSED, f"config version does not allow {command}")
        if wanted > numbers(VERSIONS[-1]):
            raise CniError(VERSION_REFUSED, f"plugin version does not allow {command}")
    if version not in VERSIONS:
        ours = " ".join(f'"{each}"' for each in VERSIONS)
        raise CniError(VERSION_REFUSED, "incompatible CNI versions", f"config is {quoted(version)}, plugin supports [{ours}]")


def numbers(version: str) -> tuple[int, ...]:
    """A version as what can be compared; what is left out is 0."""
    parts = version.split(".")
    if len(parts) > 3 or not all(is_digits(part) and len(part) < 10 for part in parts):
        raise CniError(DECODING, f"invalid version {quoted(version)}: expected up to three numbers, as in 1.0.0")
    return tuple(map(int, [*parts, "0", "0"][:3]))


def demand_types(conf: dict[str, object]) -> None:
    """Raise CniError where a field is not of its type."""
    for key, wanted in FIELDS.items():
        if key in conf and not isinstance(conf[key], wanted):
            raise unfit(key, kind(wanted()), conf[key])
    for name, value in mapping(conf, "capabilities").items():
        if not isinstance(value, bool | None):
            raise unfit(f"capabilities.{name}", "true or false", value)


def unfit(where: str, wanted: str, value: object) -> CniError:
    """Something in a configuration is not what it should be."""
    return CniError(INTERNAL, f"loadFlannelNetConf failed: failed to load netconf: {where}: expected {wanted}, got {kind(value)}")


def is_own_netns(path: str) -> bool:
    """Whether the container's namespace is the one that we run in: whoever says so would have the host's links changed."""
    try:
        return os.path.samestat(os.stat(path), os.stat("/proc/self/ns/net"))
    except (OSError, ValueError):  # gone, as it may be at DEL
        return False


# ------------------------------------------------------------------------------------------------------------ the commands


def add(conf: dict[str, object], env: dict[str, str]) -> str:
    """Connect a container; the delegate's result. What it was given is kept before it runs, so that DEL can take back a part."""
    netconf = delegate_conf(conf)
    data = render(netconf).encode()
    keep(data_dir(conf), env["CNI_CONTAINERID"], data)
    try:
        answer = delegate("ADD", str(netconf["type"]), data, env)
        result = parse_object(answer)
    except ValueError as error:
        raise CniError(INTERNAL, f"failed to delegate add: failed to unmarshal raw result: {error}") from None
    version = result.pop("cniVersion", None)
    if not isinstance(version, str) or not version:  # older plugins leave it out, and mean the configuration's
        version = conf.get("cniVersion") or VERSIONS[0]
    if version not in VERSIONS:
        raise CniError(INTERNAL, f"failed to delegate add: unsupported CNI result version {quoted(str(version))}")
    return render({"cniVersion": version, **result}, "\n")


def delete(conf: dict[str, object], env: dict[str, str]) -> str:
    """Disconnect a container, with the very configuration that connected it. What is not there is done already."""
    place, name = data_dir(conf), env["CNI_CONTAINERID"]
    data = kept(place, name)
    if data is None:
        return ""
    try:
        plugin = kept_type(data)
    except ValueError as error:  # not even a delegate can be found in it: what it made ends with the namespace
        note(f"flannel: what was kept for {name} cannot be read, and is removed: {error}")
    else:
        delegate("DEL", plugin, data, env)
    forget(place, name)
    return ""


def status(conf: dict[str, object], env: dict[str, str]) -> None:
    """Whether a container could be connected now: there is a subnet, and the delegate says the same of itself."""
    try:
        netconf = delegate_conf(conf)
    except CniError as error:
        raise CniError(UNAVAILABLE, error.msg, error.details) from None
    delegate("STATUS", str(netconf["type"]), render(netconf).encode(), env)


def collect(conf: dict[str, object], env: dict[str, str]) -> None:
    """Forget attachments that the runtime no longer has, and let the delegate do the same.

    Only what was kept for this network, and can be read, is forgotten; without the list of what is valid nothing is.
    """
    listed = conf.get("cni.dev/valid-attachments")
    if not isinstance(listed, list):
        return
    valid = set()
    for each in listed:
        if not isinstance(each, dict) or not isinstance(each.get("containerID"), str):
            raise unfit("cni.dev/valid-attachments", "objects with a containerID", each)
        valid.add(each["containerID"])
    netconf = delegate_conf(conf)
    delegate("GC", str(netconf["type"]), render({**netconf, "cni.dev/valid-attachments": listed}).encode(), env)
    place = data_dir(conf)
    for name in names(place):
        try:
            data = kept(place, name) if name not in valid else None
            ours = data is not None and parse_object(data).get("name") == conf["name"]
        except (CniError, ValueError):  # a link, a folder, what cannot be read: whose it is, nobody knows
            continue
        if ours:
            forget(place, name)


# ------------------------------------------------------------------------------------------------- what the delegate is told


def delegate_conf(conf: dict[str, object]) -> dict[str, object]:
    """The delegate's configuration: what stands in ``delegate``, with what it leaves open. Raises CniError."""
    where = conf.get("subnetFile", SUBNET_FILE)
    try:
        subnet = read_subnet(str(where))
    except (OSError, ValueError) as error:
        said = f"failed to load flannel 'subnet.env' file: {words(error)}. Check the flannel pod log for this node."
        raise CniError(INTERNAL, said) from None
    told = dict(mapping(conf, "delegate"))
    if not isinstance(told.get("type", ""), str):
        raise CniError(INTERNAL, "'delegate' dictionary, if present, must have (string) 'type' field")
    for key in ("name", "ipam"):
        if key in told:
            raise CniError(INTERNAL, f"'delegate' dictionary must not have '{key}' field, it'll be set by flannel")
    if "runtimeConfig" in conf:
        told["runtimeConfig"] = conf["runtimeConfig"]
    told["name"] = conf["name"]
    told.setdefault("type", "bridge")
    told.setdefault("ipMasq", not subnet.masquerades)  # one of the two has to
    told.setdefault("mtu", subnet.mtu)
    if told["type"] == "bridge":
        told.setdefault("isGateway", True)  # the bridge has the subnet's first address, and containers route by it
    if conf.get("cniVersion"):
        told["cniVersion"] = conf["cniVersion"]
    told["ipam"] = ipam(mapping(conf, "ipam"), subnet)
    return told


class Subnet:
    """What the agent wrote: the leased subnets and the overlay's networks, IPv4 before IPv6; MTU; whether it masquerades."""

    def __init__(self, subnets: list[str], networks: list[str], mtu: int, masquerades: bool) -> None:
        self.subnets, self.networks, self.mtu, self.masquerades = subnets, networks, mtu, masquerades


def ipam(given: dict[str, object], subnet: Subnet) -> dict[str, object]:
    """Addresses of the leased subnets, and routes into the overlay behind those that were given. Raises CniError."""
    try:
        routes = [route(each) for each in sequence(given.get("routes"))]
    except ValueError as error:
        said = f"failed to assemble Delegate IPAM: failed to read IPAM routes: failed to parse ipam.routes: {error}"
        raise CniError(INTERNAL, said) from None
    return {
        "type": "host-local",
        **given,
        "ranges": [[{"subnet": each}] for each in subnet.subnets],
        "routes": [*routes, *({"dst": each} for each in subnet.networks)],
    }


def route(given: object) -> dict[str, object]:
    """A route of the specification, without what is none of it. Raises ValueError."""
    if not isinstance(given, dict):
        raise ValueError(f"expected objects, got {kind(given)}")
    address, length = cidr(given.get("dst"))
    made: dict[str, object] = {"dst": f"{spelled(address)}/{length}"}
    if given.get("gw"):
        if not isinstance(given["gw"], str):
            raise ValueError(f"gw: expected a string, got {kind(given['gw'])}")
        try:
            made["gw"] = spelled(packed(given["gw"]))
        except ValueError:
            raise ValueError(f"invalid IP address: {given['gw']}") from None
    for key in ("mtu", "advmss", "priority", "table", "scope"):
        value = given.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise ValueError(f"{key}: expected a whole number, got {kind(value)}")
        if value or (value == 0 and key in ("table", "scope")):  # 0 is no MTU, but it is a table
            made[key] = value
    return made


def read_subnet(path: str) -> Subnet:
    """What stands in subnet.env: ``KEY=value`` lines as they are; of a key the last one counts. Raises OSError, ValueError."""
    found: dict[str, list[str]] = {}
    mtu: int | None = None
    masquerades: bool | None = None
    for line in read_file(path).decode("utf-8", "replace").split("\n"):
        key, equals, value = line.removesuffix("\r").partition("=")
        if key.startswith("FLANNEL_") and not equals:
            raise ValueError(f"{path}: {quoted(key)}: expected KEY=value")
        if key in ("FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"):
            found[key] = [network(each) for each in value.split(",")]
        elif key in ("FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"):
            found[key] = [network(value)]
        elif key == "FLANNEL_MTU":
            mtu = whole(value)
        elif key == "FLANNEL_IPMASQ":
            masquerades = value == "true"
    networks = [*found.get("FLANNEL_NETWORK", ()), *found.get("FLANNEL_IPV6_NETWORK", ())]
    subnets = [*found.get("FLANNEL_SUBNET", ()), *found.get("FLANNEL_IPV6_SUBNET", ())]
    missing = [] if networks else ["FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"]
    missing += [] if subnets else ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"]
    if mtu is None or masquerades is None or missing:
        missing += ["FLANNEL_MTU"] * (mtu is None) + ["FLANNEL_IPMASQ"] * (masquerades is None)
        raise ValueError(f"{path} is missing {', '.join(missing)}")
    return Subnet(subnets, networks, mtu, masquerades)


def whole(text: str) -> int:
    """A number of 32 bits. Raises ValueError, in the words that are known from flannel."""
    if not is_digits(text):
        raise ValueError(f"strconv.ParseUint: parsing {quoted(text)}: invalid syntax")
    digits = text.lstrip("0")
    if len(digits) > 10 or int(digits or "0") >= 1 << 32:
        raise ValueError(f"strconv.ParseUint: parsing {quoted(text)}: value out of range")
    return int(digits or "0")


def network(text: str) -> str:
    """``10.1.7.1/24`` as the network that it lies in. Raises ValueError."""
    address, length = cidr(text)
    bits = len(address) * 8
    masked = int.from_bytes(address, "big") >> (bits - length) << (bits - length)
    return f"{spelled(masked.to_bytes(len(address), 'big'))}/{length}"


def is_digits(text: str) -> bool:
    """Whether it is a decimal number, of ASCII digits alone."""
    return text.isascii() and text.isdigit()


def cidr(text: object) -> tuple[bytes, int]:
    """Address and length of a prefix. Raises ValueError."""
    if isinstance(text, str):
        address, _, length = text.partition("/")
        try:
            raw = packed(address)
        except ValueError:
            raw = b""
        if raw and is_digits(length) and len(length) < 8 and int(length) <= len(raw) * 8:
            return raw, int(length)
    raise ValueError(f"invalid CIDR address: {text if isinstance(text, str) else kind(text)}")


def packed(text: str) -> bytes:
    """The 4 or 16 bytes of an address. Raises ValueError."""
    try:
        return inet_pton(AF_INET6 if ":" in text else AF_INET, text)
    except OSError:
        raise ValueError(text) from None


def spelled(address: bytes) -> str:
    """An address as text."""
    return inet_ntop(AF_INET if len(address) == 4 else AF_INET6, address)


# ------------------------------------------------------------------------------------------------------- the delegate's process


def delegate(command: str, plugin: str, conf: bytes, env: dict[str, str]) -> bytes:
    """Run another plugin in our environment, with the configuration on its stdin; what it answers. Raises CniError, its own too.

    Its three streams are files in memory: no pipe that has to be emptied while another is filled, and none that a child which it
    leaves behind holds open. Everything of ours but these is closed on exec (PEP 446).
    """
    prefix = "failed to delegate add: " if command == "ADD" else ""
    path = find(plugin, env["CNI_PATH"].split(":"), prefix)
    streams = [os.memfd_create(name) for name in ("stdin", "stdout", "stderr")]
    os.write(streams[0], conf)
    os.lseek(streams[0], 0, os.SEEK_SET)
    actions = [(os.POSIX_SPAWN_DUP2, stream, number) for number, stream in enumerate(streams)]
    code = os.waitstatus_to_exitcode(os.waitpid(spawn(path, actions, {**env, "CNI_COMMAND": command}, prefix), 0)[1])
    answer, said = (read_whole(stream) for stream in streams[1:])
    note_as_it_is(said)
    if code:
        raise refusal(answer, said, f"exit status {code}" if code > 0 else f"signal: {-code}")
    return answer


def spawn(path: str, actions: list[tuple[int, int, int]], env: dict[str, str], prefix: str) -> int:
    """The delegate's process. A plugin that is just being installed over is waited for (ETXTBSY), a second at a time.

    Python ignores two signals, and a shell script that inherits that could not even trap them (signal(7)).
    """
    for tries in range(6):
        try:
            return os.posix_spawn(path, [path], env, file_actions=actions, setsigdef=(SIGPIPE, SIGXFSZ))
        except OSError as error:
            if error.errno != errno.ETXTBSY or tries == 5:
                raise CniError(INTERNAL, f"{prefix}{words(error, 'fork/exec')}") from None
            time.sleep(1)
    raise AssertionError("the last try returns or raises")


def find(plugin: str, folders: list[str], prefix: str) -> str:
    """Where a plugin is. Raises CniError."""
    if not plugin:
        raise CniError(INTERNAL, f"{prefix}no plugin name provided")
    if "/" in plugin or "\0" in plugin:
        raise CniError(INTERNAL, f"{prefix}invalid plugin name: {plugin}")
    for folder in filter(None, folders):
        path = os.path.join(folder, plugin)
        if os.path.isfile(path):
            return path
    raise CniError(INTERNAL, f"{prefix}failed to find plugin {quoted(plugin)} in path [{' '.join(folders)}]")


def refusal(answer: bytes, said: bytes, end: str) -> CniError:
    """A delegate's error as ours: its code and its words, whatever it gave of them."""
    if not answer:
        return CniError(
            0, f"netplugin failed: {quoted(text_of(said))}: {end}" if said else f"netplugin failed with no error message: {end}"
        )
    try:
        told = parse_object(answer)
        code, msg, details = told.get("code", 0), told.get("msg", ""), told.get("details", "")
        if not isinstance(code, int) or not isinstance(msg, str) or not isinstance(details, str):
            raise ValueError("expected code, msg and details")
    except ValueError as error:
        return CniError(0, f"netplugin failed but error parsing its diagnostic message {quoted(text_of(answer))}: {error}")
    return CniError(code, msg, details)


# ------------------------------------------------------------------------------------------------------------- what is kept


def data_dir(conf: dict[str, object]) -> str:
    """Where the delegates' configurations are kept, a file a container."""
    return str(conf.get("dataDir", DATA_DIR))


def keep(place: str, name: str, data: bytes) -> None:
    """Write a file whole or not at all, for root alone. Raises CniError. When it returns, the file outlives a loss of power.

    It is made beside and renamed: whatever was there, a link too, is replaced and not written through. One fsync(2) after the
    rename is enough for content and name, and half the wait of two: nothing is to be undone before the delegate has run.
    """
    beside = f".new-{os.urandom(8).hex()}"  # no container's name begins with a dot
    try:
        os.makedirs(place, mode=0o700, exist_ok=True)
        folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder)
            try:
                with open(descriptor, "wb", buffering=0) as file:
                    os.fchmod(descriptor, 0o600)  # whatever the umask
                    if file.write(data) < len(data):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    os.rename(beside, name, src_dir_fd=folder, dst_dir_fd=folder)
                    beside = name
                    os.fsync(descriptor)
            except OSError:
                os.unlink(beside, dir_fd=folder)
                raise
        finally:
            os.close(folder)
    except (OSError, ValueError) as error:
        raise CniError(INTERNAL, f"{place}/{name}: {words(error)}") from None


def kept(place: str, name: str) -> bytes | None:
    """What was kept for a container; None where nothing was. Raises CniError: also for what is no file, which is not followed."""
    try:
        return read_file(os.path.join(place, name), os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise CniError(INTERNAL, words(error)) from None


def kept_type(data: bytes) -> str:
    """The delegate's name in what was kept. Raises ValueError."""
    plugin = parse_object(data).get("type", "")
    if not isinstance(plugin, str):
        raise ValueError(f"type: expected a string, got {kind(plugin)}")
    return plugin


def forget(place: str, name: str) -> None:
    """Remove what was kept. That it cannot be is no failure of DEL: the next finds it again."""
    try:
        os.unlink(os.path.join(place, name))
    except OSError as error:
        note(f"flannel: {words(error, 'remove')}")


def names(place: str) -> list[str]:
    """The containers for which something is kept."""
    try:
        return sorted(name for name in os.listdir(place) if is_name(name))
    except OSError:
        return []


# ---------------------------------------------------------------------------------------------------------- bytes and words


def read_file(path: str, flags: int = 0) -> bytes:
    """A regular file's content; a FIFO in its place is not waited for. Raises OSError, ValueError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | flags)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError(f"read {path}: expected a file")
        return read_all(descriptor)
    finally:
        os.close(descriptor)


def read_whole(descriptor: int) -> bytes:
    """What was written to a file in memory, from its start."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    return read_all(descriptor)


def read_all(descriptor: int) -> bytes:
    """Everything up to the end. Raises OSError where it is more than anybody would send."""
    data = bytearray()
    while part := os.read(descriptor, 1 << 16):
        data += part
        if len(data) > LIMIT:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return bytes(data)


class Numbers:
    """How the scanner reads: numbers are 64-bit floats, as Go's."""

    strict, object_hook, object_pairs_hook, array_hook = True, None, None, None

    @staticmethod
    def parse_float(text: str) -> int | float:
        """A JSON number; whole where it is, so that 5.0 reaches a delegate as the 5 that it reads. Raises ValueError."""
        value = float(text)
        if value - value != 0:  # NaN and Infinity are not JSON, and 1e999 would become one
            raise ValueError(f"{text[:40]} is no number")
        return int(value) if value == int(value) and abs(value) < 1e21 else value

    parse_int = parse_constant = parse_float


TOO_DEEP = "nested too deeply"


def parse(data: bytes) -> object:
    """JSON as Go reads it, broken UTF-8 replaced. Raises ValueError.

    What the bare scanner does not take goes to ``json``, which says what is wrong, and where.
    """
    text = text_of(data).strip(" \t\n\r")
    try:
        value, end = make_scanner(Numbers)(text, 0)  # type: ignore[arg-type]  # it asks for these attributes alone
        if end == len(text):
            return value
    except (StopIteration, SystemError, AttributeError):  # its errors are classes of `json`; another Python's may ask for more
        pass
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    import json

    read = Numbers.parse_float
    try:
        return json.loads(text, parse_int=read, parse_float=read, parse_constant=read)
    except RecursionError:  # it calls itself a little deeper than its scanner does
        raise ValueError(TOO_DEEP) from None


def parse_object(data: bytes) -> dict[str, object]:
    """As ``parse``, for what is an object. Raises ValueError."""
    value = parse(data)
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {kind(value)}")
    return value


def render(value: object, line: str = "") -> str:
    """JSON in ASCII: one line, sorted, as flannel's plugin keeps it; or a value a line, each begun by ``line``. Raises CniError."""
    if isinstance(value, str):
        return encode_basestring_ascii(value)
    if not isinstance(value, dict | list):
        return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    inner = line and f"{line}    "
    try:
        if isinstance(value, list):
            parts, (start, end) = [render(each, inner) for each in value], "[]"
        else:
            colon, items = (": ", value.items()) if line else (":", sorted(value.items()))
            parts, (start, end) = [f"{encode_basestring_ascii(key)}{colon}{render(each, inner)}" for key, each in items], "{}"
    except RecursionError:
        raise CniError(INTERNAL, f"error serializing delegate netconf: {TOO_DEEP}") from None
    return f"{start}{inner}{f',{inner}'.join(parts)}{line}{end}" if parts else f"{start}{end}"


def mapping(conf: dict[str, object], key: str) -> dict[str, object]:
    """An object of the configuration; empty where it is not there."""
    value = conf.get(key)
    return value if isinstance(value, dict) else {}


def sequence(value: object) -> list[object]:
    """A list; empty where it is not there. Raises ValueError."""
    if value is not None and not isinstance(value, list):
        raise ValueError(f"expected a list, got {kind(value)}")
    return value or []


def kind(value: object) -> str:
    """What a JSON value is, in words."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def words(error: OSError | ValueError, done: str = "open") -> str:
    """What went wrong with a file, as flannel's plugin words it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{done} {error.filename or ''}: {error.strerror[0].lower()}{error.strerror[1:]}"
    return str(error)


def text_of(data: bytes) -> str:
    """Foreign bytes as text."""
    return data.decode("utf-8", "replace")


def quoted(text: str) -> str:
    """Foreign text in quotes, its controls escaped."""
    return f'"{shown(text.replace(chr(92), chr(92) * 2).replace(chr(34), chr(92) + chr(34)))}"'


def shown(text: str, most: int = SHOWN) -> str:
    """Foreign text for a log: nothing in it that a terminal obeys, and no longer than a person reads."""
    visible = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text[:most])
    return visible if len(text) <= most else f"{visible}... ({len(text)} letters)"


if __name__ == "__main__":
    sys.exit(main())
