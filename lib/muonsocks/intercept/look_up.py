"""Names that are looked up here, in a process of its own that is started for the first of them.

The supervisor has no threads, which would be in the way of what it does with descriptors.
"""

from __future__ import annotations

import os

from muonsocks.net.loop import Loop
from muonsocks.net.resolver import Resolver


class LookUp:
    """Looks names up. `await look_up(name)` gives what `names.addresses_of` does."""

    __slots__ = ("_loop", "_resolver")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._resolver: Resolver | None = None

    async def __call__(self, host: str) -> list[tuple[bytes, int]]:
        """Give the addresses of a name. NameNotResolved; OSError if the system does not do it."""
        if self._resolver is None:
            self._resolver = self._start()
        return await self._resolver.lookup(host)

    def close(self) -> None:
        """End the process, if there is one."""
        resolver, self._resolver = self._resolver, None
        if resolver is not None:
            resolver.close()

    def _start(self) -> Resolver:
        """Start it without the program's standard error, which somebody may wait for the end of."""
        saved = os.dup(2)
        try:
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            os.dup2(null, 2)
            os.close(null)
            return Resolver.start(self._loop, None, self._on_death)
        finally:
            os.dup2(saved, 2)
            os.close(saved)

    def _on_death(self, _: str) -> None:
        self._resolver = None  # who waited has been told; the next one gets another
