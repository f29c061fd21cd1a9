"""What does the IKE daemon have to know? Messages of VICI, as flannel has it told. flannel-compat 9.8, swanctl.conf(5).

A name says all by which two connections of one host differ, so that what the daemon has is told by names alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from flannelpy.core.backend import Local
from flannelpy.core.model import Lease
from flannelpy.core.secret import Secret
from flannelpy.core.xfrm import REQID

IKE_PROPOSAL = "aes256-sha256-modp4096"
REKEY = "1h"

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Terms:
    """What all hosts of a network must agree on."""

    psk: Secret[str]
    udp_encap: bool
    esp_proposal: str


@dataclass(frozen=True, slots=True)
class Own:
    """This host, as its IKE daemon has to know it. ``address`` is the interface's, ``public_ip`` what the peers send to."""

    interface: str
    subnet: str
    address: str
    public_ip: str

    @classmethod
    def of(cls, local: Local) -> Own:
        """Raises BackendError where there is no lease."""
        return cls(local.uplink.name, str(local.own.subnet), str(local.uplink.address), str(local.uplink.public_ip))


def name(peer: Lease) -> str:
    """Of a peer's connection, its one child, and nobody else's."""
    return f"flannel-{peer.subnet.ip}-{peer.subnet.prefixlen}-{peer.public_ip}"


def connection(own: Own, peer: Lease, terms: Terms) -> Message:
    """The connection to a peer, for ``load-conn``."""
    local: Message = {"auth": "psk"}
    if own.address != own.public_ip:
        local["id"] = own.public_ip  # else the daemon would go by its address, which behind NAT no peer has a key for
    child = {
        "mode": "tunnel",
        "local_ts": [own.subnet],
        "remote_ts": [str(peer.subnet)],
        "esp_proposals": [terms.esp_proposal],
        "start_action": "start",
        "close_action": "trap",
        "dpd_action": "restart",
        "rekey_time": REKEY,
        "reqid": str(REQID),
        "policies": "no",  # they are the agent's
    }
    return {
        name(peer): {
            "version": "2",
            "local_addrs": [own.address],
            "remote_addrs": [str(peer.public_ip)],
            "proposals": [IKE_PROPOSAL],
            "keyingtries": "0",  # for ever
            "encap": "yes" if terms.udp_encap else "no",
            "local": local,
            "remote": {"auth": "psk"},
            "children": {name(peer): child},
        }
    }


def key_name(public_ip: str) -> str:
    """By which the key of a host is unloaded again."""
    return f"flannel-{public_ip}"


def shared(public_ip: str, terms: Terms) -> Message:
    """The preshared key as that of a host, for ``load-shared``: the one place where it is shown."""
    return {"id": key_name(public_ip), "type": "IKE", "data": terms.psk.reveal(), "owners": [public_ip]}


def fingerprint(own: Own, terms: Terms, salt: bytes) -> str:
    """By which a daemon that was left running is known to have been told these terms, of which it does not tell the key."""
    words = (own.interface, own.subnet, own.address, own.public_ip, terms.psk.reveal(), str(terms.udp_encap), terms.esp_proposal)
    return hashlib.scrypt("\0".join(words).encode(), salt=salt, n=1 << 10, r=8, p=1).hex()
