"""By which key do the peers know this host? One pair for as long as the process lives, kept on disk for the next.

The public key is the kernel's to derive. Only a backend that needs a key has one made (``core.backend.Keyed``).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from flannelpy.agent.context import Context
from flannelpy.agent.identity import copied
from flannelpy.core.backend import Backend
from flannelpy.core.errors import FlannelpyError
from flannelpy.core.model import Lease
from flannelpy.core.secret import Secret
from flannelpy.core.wireguard import KeyPair
from flannelpy.host import wireguard_key
from flannelpy.host.disk import Disk

log = logging.getLogger("flannelpy")


class HostKeys:
    """The key pair of this host."""

    def __init__(self, context: Context) -> None:
        settings = context.settings
        self._kernel = context.kernel
        self._path = settings.wireguard_key_file or settings.state_dir / wireguard_key.FILE
        self._flannels = settings.flannel_key_file
        self._disk = Disk()
        self._private: Secret[bytes] | None = None
        self._pair: KeyPair | None = None
        self.foreign = False
        """What is kept is another machine's: the next pair is a new one."""

    async def pair(self) -> KeyPair:
        """The pair. Raises KernelError where the kernel has no WireGuard."""
        if self.foreign:
            return await self.renew()
        if self._private is None:
            self._private = await self._read()
        return await self._derived(self._private)

    async def renew(self) -> KeyPair:
        """Another pair, which is kept in place of the one that there was. Raises KernelError, before anything has changed."""
        private = wireguard_key.draw()
        self._pair, before = None, self._pair
        try:
            pair = await self._derived(private)
        except BaseException:
            self._pair = before
            raise
        self._private, self.foreign = private, False
        try:
            await self._disk.do(lambda: wireguard_key.keep(self._path, private, log.warning), self._path)
        except FlannelpyError as error:
            log.warning("%s", error)
        return pair

    async def differ(self, backend: Backend, own: Lease, keys: KeyPair, leases: Iterable[Lease]) -> KeyPair:
        """The pair; another one, with a word about it, where an older lease of somebody else has ours: the peers go by that one."""
        other = copied(backend, own, {"": keys.public}, leases).get("")
        if other is None:
            return keys
        log.warning("%s has our public key %s, too, and is older: we have another one now", other, keys.public)
        return await self.renew()

    async def _read(self) -> Secret[bytes]:
        try:
            return await self._disk.do(lambda: wireguard_key.read_or_make(self._path, self._flannels, log.warning), self._path)
        except FlannelpyError as error:
            log.warning("%s; a new key is made", error)
            return wireguard_key.draw()

    async def _derived(self, private: Secret[bytes]) -> KeyPair:
        if self._pair is None:
            self._pair = KeyPair(private, await self._kernel.public_key(private))
            log.info("WireGuard: our public key is %s", self._pair.public)
        return self._pair
