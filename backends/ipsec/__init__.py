"""ipsec: packets in ESP tunnels, with keys that strongSwan's IKE daemon agrees on with each peer. flannel-compat 9.8, RFC 4301."""

from backends.ipsec.backend import Ipsec

__all__ = ["Ipsec"]
