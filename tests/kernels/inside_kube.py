"""Do nodes of Kubernetes reach each other by wireguard and ipip? Runs in the guest of ``guest.py``, on the hosts of ``inside.py``.

    a 192.168.90.1, podCIDR 10.1.1.0/24 ---- bridge, API server ---- 192.168.90.2, podCIDR 10.1.2.0/24 b

Agents are real; the API server is the small one of the lab.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

from tests.kernels import inside
from tests.kernels.inside import NUMBER, Host, check, make_hosts, say, shell
from tests.kernels.inside_wireguard import meet, on_the_wire, peers, pinged, settle

until = partial(inside.until, within_s=200.0)

URL = "http://192.168.90.254:6443"
CONFIG = Path("/run/net-conf.json")
PREFIX = "flannel.alpha.coreos.com/"


def configure(backend: str) -> None:
    """As kubelet brings a ConfigMap that was changed."""
    new = CONFIG.with_suffix(".new")
    new.write_text(json.dumps({"Network": "10.1.0.0/16", "Backend": {"Type": backend}}))
    new.replace(CONFIG)


def call(method: str, path: str = "", body: dict[str, Any] | None = None) -> dict[str, Any]:
    """What an administrator does with kubectl. Raises OSError."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{URL}/api/v1/nodes{path}", data, method=method)
    with urllib.request.urlopen(request, timeout=20) as answer:
        found: dict[str, Any] = json.loads(answer.read())
    return found


def answers() -> bool:
    try:
        call("GET")
    except OSError:
        return False
    return True


def published(host: Host) -> dict[str, str]:
    """flannel's annotations of a host's node."""
    return dict(call("GET", f"/{host.name}")["metadata"].get("annotations", {}))


def register(host: Host) -> None:
    """The node, with its podCIDR."""
    subnet = f"10.1.{NUMBER[host.name]}.0/24"
    call("POST", body={"metadata": {"name": host.name}, "spec": {"podCIDR": subnet, "podCIDRs": [subnet]}, "status": {}})


def main() -> None:
    say("kernel", os.uname().release)
    shell("modprobe -a veth bridge dummy wireguard ipip")
    make_hosts()
    configure("wireguard")
    words = [sys.executable, "-m", "netns_lab.api_server", "--address=192.168.90.254", "--port=6443", "--state=/run/nodes.json"]
    server = subprocess.Popen(words, stdin=subprocess.DEVNULL)
    until(answers, "the API server answers")
    a, b = Host("a"), Host("b")
    try:
        for host in (a, b):
            register(host)
            host.registry = {"kube-subnet-mgr": "true", "kube-api-url": URL, "net-config-path": str(CONFIG)}
            host.environ = {"NODE_NAME": host.name}
            host.file.parent.mkdir()
            host.log.touch()
            host.start("auto")
        settle(a, b)
        with check("wireguard"):
            meet(a, b, "4")
            on_the_wire(a, b)
            for one, other in ((a, b), (b, a)):
                (peer,) = peers(one)
                said = published(other)
                assert said[f"{PREFIX}backend-type"] == "wireguard"
                assert json.loads(said[f"{PREFIX}backend-data"]) == {"PublicKey": peer.public_key}
        with check("a node that goes and comes"):
            b.stop()
            call("DELETE", "/b")
            until(lambda: peers(a) == [], "nobody is left")
            register(b)
            b.start("auto")
            settle(b)
            meet(a, b, "4")
        with check("ipip"):
            configure("ipip")
            for host in (a, b):
                until(lambda host=host: published(host)[f"{PREFIX}backend-type"] == "ipip", "it is published")  # type: ignore[misc]
            until(lambda: pinged("a", a.inside, b.inside) and pinged("b", b.inside, a.inside), "they meet by ipip")
            assert "flannel-wg" not in shell("ip -br link", "a")
    finally:
        for host in (a, b):
            host.stop()
            for line in host.log.read_text().splitlines():
                print(host.name, line)
        server.kill()
        server.wait()
    say("end")


if __name__ == "__main__":
    main()
