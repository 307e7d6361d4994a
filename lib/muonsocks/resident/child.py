"""A worker as its supervisor sees it: a process that is given orders, over a channel."""

from __future__ import annotations

from time import monotonic

from muonsocks.net.task import Mailbox
from muonsocks.resident.process import READY, TAKE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from muonsocks.net.stream import Stream


class _Gone(BaseException):
    """The worker has ended."""


class Child:
    """A worker: its `number` among them, its process, and since when that runs."""

    __slots__ = (
        "_channel",
        "_news",
        "_orders",
        "_task",
        "has_hung",
        "is_ready",
        "number",
        "pid",
        "started",
    )

    def __init__(
        self, number: int, pid: int, channel: Stream, on_ready: Callable[[], None]
    ) -> None:
        """Take the channel over; `on_ready` is called when it `is_ready`."""
        self.number = number
        self.pid = pid
        self.started = monotonic()
        self.is_ready = False
        self.has_hung = False  # and was told to end for that
        self._channel = channel
        self._orders = Mailbox()
        self._news = b""  # the order to take configuration, of which only the last one counts
        self._task = channel.loop.spawn(self._attend(on_ready), self._on_failure)

    def tell(self, order: bytes) -> None:
        """Give an order, which it gets in its turn."""
        self._orders.post(order)

    def have_take(self, order: bytes) -> None:
        """Give the order to take configuration, in the place of an earlier one that still waits."""
        waits, self._news = bool(self._news), order
        if not waits:
            self._orders.post(TAKE)

    def bury(self) -> None:
        """It has ended."""
        if not self._task.is_over:
            self._task.interrupt(_Gone())
        self._channel.close()

    def forget(self) -> None:
        """Close what leads to it, in another worker."""
        self._channel.close()

    async def _attend(self, on_ready: Callable[[], None]) -> None:
        """Wait for it to be ready, then pass orders on to it."""
        if await self._channel.receive(1) == READY:
            self.is_ready = True
            on_ready()
            while True:
                order = await self._orders.take()
                if order == TAKE:
                    order, self._news = self._news, b""
                await self._channel.send(order)

    def _on_failure(self, error: BaseException) -> None:
        # One that has ended cannot be told anything; SIGCHLD says so.
        if not isinstance(error, (_Gone, ConnectionError)):
            raise error
