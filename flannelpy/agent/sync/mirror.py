"""What does the kernel hold, as far as we were told? A cache of the last look, kept true by acknowledgements and notifications.

Of a thing that the kernel changes by itself (``satisfied_by``: a WireGuard peer that roams) it keeps what was there before, for
nobody has to do anything about it. What is there as it is desired is held as the very object that is desired, not as one more.

What changes while we look or write may be told before or after its turn in the answer: of such a key the cache is stale, and the
kernel is asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from flannelpy.core.objects import HostState, Key, Object

AT_ONCE = 1000
"""Objects in a piece: some two milliseconds."""


class Mirror:
    """The observed objects by key."""

    def __init__(self, desired: Callable[[Key], Object | None] = lambda _key: None) -> None:
        self._desired = desired
        self.objects: dict[Key, Object] = {}
        self.stale: set[Key] = set()
        """Keys about which it may be wrong."""
        self._heard: dict[Key, Object | None] = {}
        self._doubted: set[Key] = set()

    def get(self, key: Key) -> Object | None:
        """What is there under ``key``."""
        return self.objects.get(key)

    def hear(self, objects: Mapping[Key, Object | None]) -> None:
        """The kernel tells of these: as they are now, None for those that are gone."""
        for key, item in objects.items():
            self._set(key, item)
            there = self.objects.get(key)
            self._heard[key] = there if there == item else item  # what is held already, where it says the same

    def listen(self) -> None:
        """From here on, what is heard may contradict what is read or written meanwhile."""
        self._heard.clear()
        self._doubted.clear()

    def doubt(self, keys: Iterable[Key]) -> Collection[Key]:
        """These may be others now, without a word of the kernel's: they are read once more, also where that is being done."""
        doubted = set(keys)
        self.stale |= doubted
        self._doubted |= doubted
        return doubted

    def take_full(self, observed: HostState) -> Iterator[None]:
        """Everything was looked at. It is taken in pieces, after each of which others may have a turn: what is heard in between
        says which keys are stale. Nothing has changed before the last.
        """
        objects: dict[Key, Object] = {}
        for number, (key, item) in enumerate(observed.objects.items(), 1):
            good = self._as_good(key, item)
            objects[good.key] = good  # its own key: the one just read would be held besides
            if not number % AT_ONCE:
                yield
        self.objects = objects
        self.stale = {key for key, item in self._heard.items() if self.objects.get(key) != item} | self._doubted

    def take_part(self, keys: Iterable[Key], observed: HostState) -> None:
        """These were looked at."""
        for key in keys:
            self.stale.discard(key)
            self._set(key, observed.get(key))
        self.stale |= {key for key, item in self._heard.items() if self.objects.get(key) != item} | self._doubted

    def learn(self, key: Key, item: Object | None) -> None:
        """The kernel has acknowledged that ``key`` is this now."""
        if key in self._doubted or (key in self._heard and self._heard[key] != item):
            self.stale.add(key)  # somebody else was at it while we were: which came last, only the kernel knows
        else:
            self._set(key, item, exactly=True)

    def _set(self, key: Key, item: Object | None, *, exactly: bool = False) -> None:
        if item is None:
            self.objects.pop(key, None)
        else:
            self.objects[key] = item if exactly else self._as_good(key, item)

    def _as_good(self, key: Key, item: Object) -> Object:
        """What was there, where the kernel itself has made this of it; else this, or the object that is desired if equal."""
        before = self.objects.get(key)
        if before is not None and before.satisfied_by(item):
            return before
        wanted = self._desired(key)
        return wanted if wanted is not None and wanted == item else item
