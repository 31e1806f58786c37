"""What the server has promised to tell us changes of.

While a lease is held, what was asked for under it stays true until the server says otherwise
(:class:`~..protocol.messages.AttrReply` says what a lease covers). A lease that ended and was granted again is another
one: between the two, changes may have gone unnoticed. So what is remembered under a lease carries its :data:`Cover`,
which is good for exactly as long as that very lease is held.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from ..protocol.messages import Identity

#: The number of one granted lease; never 0, never used twice.
Cover: TypeAlias = int


class Leases:
    """The leases held. ``offered``: the server grants any; otherwise times to live are all there is."""

    def __init__(self) -> None:
        self.offered = False
        self._held: dict[Identity, Cover] = {}
        self._live: set[Cover] = set()
        self._last = 0

    def __len__(self) -> int:
        return len(self._held)

    def grant(self, identity: Identity) -> Cover:
        """The server says that the lease on *identity* is held now; it may have been held before."""
        cover = self._held.get(identity)
        if cover is None:
            self._last += 1
            cover = self._held[identity] = self._last
            self._live.add(cover)
        return cover

    def on(self, identity: Identity) -> Cover:
        """The cover of the lease on *identity*; 0 if none is held."""
        return self._held.get(identity, 0)

    def holds(self, cover: Cover) -> bool:
        """Whether the lease of that number is still held."""
        return cover in self._live

    def end(self, identity: Identity) -> None:
        """The lease on *identity* is over, or we do not follow what is told under it any more."""
        cover = self._held.pop(identity, None)
        if cover is not None:
            self._live.discard(cover)

    def clear(self, identities: Iterable[Identity] | None = None) -> None:
        """All are over, or those on *identities*."""
        if identities is not None:
            for identity in identities:
                self.end(identity)
            return
        self._held.clear()
        self._live.clear()
