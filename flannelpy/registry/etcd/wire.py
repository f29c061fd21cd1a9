"""What is a connection to one member of etcd? A gRPC channel with etcd's services on it, which stands or says why not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flannelpy.registry import Endpoint
from flannelpy.registry.etcd import loader as etcd3_loader
from flannelpy.registry.etcd.endpoints import Address
from flannelpy.registry.etcd.tls import read_credentials

rpc: Any = etcd3_loader.load()  # before grpc, which reads its environment while it is imported

import grpc  # noqa: E402
from grpc import aio  # noqa: E402

CallError: Any = grpc.RpcError
"""What a call raises; the modules beside this one take it from here, lest they import grpc too early."""

Code: Any = grpc.StatusCode

END: Any = aio.EOF
"""What reading a stream gives when etcd has ended it."""

MESSAGE_MAX = 8 << 20
"""Bytes of the largest answer that is taken. A lease is 200; etcd's own limit of one value is 1.5 MiB unless it is raised."""
CONNECT_MS = 12_000
"""How long one attempt to connect may take, also of a channel that was closed meanwhile: its socket stays as long (gRPC: 20 s)."""

GRACE_S = 0.1
"""How much later than gRPC's deadline ours is: its clock is the one that counts."""

AHEAD_MAX = 4 << 20
"""Bytes that are on the way to us, or wait to be read, of one call."""


def _options() -> tuple[tuple[str, int], ...]:
    return (
        # A dead peer is noticed only with ping_timeout set: its default of a minute wins over the keepalive options. No pings while
        # nothing is asked: etcd takes those for an attack and closes the connection (grpc keepalive.md, "too_many_pings").
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.http2.ping_timeout_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", MESSAGE_MAX),
        # What etcd may send ahead of our reading stays so small, however fast the way is: an answer that is refused for its size
        # would else be here, in part, before it is.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", AHEAD_MAX),
        ("grpc.min_reconnect_backoff_ms", CONNECT_MS),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # Channels of one process share connections, and with them the backoff of a refused one: a new channel has to be new.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
    )


@dataclass(slots=True, eq=False)
class Wire:
    """One channel to one endpoint. Closed when it was dropped and its last user has left."""

    address: Address
    channel: Any
    kv: Any
    lease: Any
    watch: Any
    auth: Any
    users: int = 0
    dropped: bool = False

    @classmethod
    def open(cls, address: Address, endpoint: Endpoint) -> Wire:
        """Make the channel; nothing is sent yet. Certificates are read from their files now. Raises RegistryTlsError."""
        target = f"dns:///{address.target}"
        if address.tls:
            channel = aio.secure_channel(
                target, grpc.ssl_channel_credentials(*read_credentials(address, endpoint)), options=_options()
            )
        else:
            channel = aio.insecure_channel(target, options=_options())
        return cls(address, channel, rpc.KVStub(channel), rpc.LeaseStub(channel), rpc.WatchStub(channel), rpc.AuthStub(channel))

    @property
    def stands(self) -> bool:
        """False once the connection is known to be lost."""
        return self.channel is not None and self.channel.get_state() is grpc.ChannelConnectivity.READY

    async def close(self) -> None:
        """Close the channel; calls on it end as cancelled. A second time does no harm.

        gRPC gives a channel up only when nothing names it any more: one that was closed while it had no connection makes one as
        soon as it can, and keeps it. An error's traceback names the frames that it came through, and so the call and us.
        """
        if self.channel is not None:
            await self.channel.close()
        if not self.users:
            self.channel = self.kv = self.lease = self.watch = self.auth = None

    async def stand(self) -> Any:
        """Connect; None once the connection stands (TCP, TLS, and HTTP/2's settings of the server), else the CallError why not."""
        states = grpc.ChannelConnectivity
        state = self.channel.get_state(try_to_connect=True)
        while state not in (states.READY, states.TRANSIENT_FAILURE, states.SHUTDOWN):
            await self.channel.wait_for_state_change(state)
            state = self.channel.get_state(try_to_connect=True)
        if state is states.READY:
            return None
        try:
            # The state does not say why; a call does, and fails at once on a channel that does not stand.
            await self.kv.Range(rpc.RangeRequest(key=b"\0", count_only=True), timeout=1)
        except CallError as error:
            error.with_traceback(None)  # it names gRPC's call, which names the channel
            return error if error.code() in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED) else None
        return None
