"""What who drives one side of the mux needs of it, be it machine.Mux or classic.Classic. No I/O."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from muonsocks.address import Endpoint
    from muonsocks.mux.connection import Connection
    from muonsocks.mux.events import Over
    from muonsocks.socks.request import UNSPECIFIED, Event

    class Speaker(Protocol):
        """One side. What is in `output` is to be sent, in its order, before anything else: of the
        older pair's each part in a write of its own.
        """

        output: list[bytes]

        @property
        def is_classic(self) -> bool:
            """Whether it speaks as the older pair does."""

        @property
        def is_up(self) -> bool:
            """Whether there is a session."""

        @property
        def is_full(self) -> bool:
            """Whether no more is to be read until some of what has come has been passed on, as
            nothing else would bound it.
            """

        @property
        def is_sign(self) -> bool:
            """Whether what was received last is a sign of life."""

        @property
        def is_strange(self) -> bool:
            """Whether what was received last may be another protocol's."""

        @property
        def limit(self) -> int:
            """How many connections a guest may have at once."""

        # Sessions

        def greet(self) -> None:
            """Say what begins a session, as long as there is none."""

        def ping(self, token: bytes) -> None:
            """Say something because nothing has come for a while."""

        def lose(self, reason: str) -> Over:
            """End the session without a word."""

        def say_goodbye(self, reason: str) -> Over:
            """End the session, and tell the other side, behind what it is to hear before that."""

        # Input

        def room(self) -> memoryview:
            """Give room to read into; data of earlier events is not to be used any more."""

        def received(self, count: int) -> list[Event]:
            """Take the bytes that were read into the first part of the room, and say what they
            mean.
            """

        # What one side says of a connection

        def open(self, destination: Endpoint) -> Connection | None:
            """Ask the host for a connection, if there may be one more. RequestFailed if that host
            cannot be asked for this one.
            """

        def pause(self) -> float:
            """Say how long (s) it is until a number may be used again, if all that are free have
            to rest; else 0.
            """

        def answer(self, connection: Connection, code: int, bound: Endpoint = UNSPECIFIED) -> None:
            """Tell the guest how it went to connect."""

        def end(self, connection: Connection) -> None:
            """Say that no more data comes. The last of it is in the output already."""

        def reset(self, connection: Connection, reason: int) -> None:
            """Let go of a connection. Harmless when that has been done."""

        def consume(self, connection: Connection, count: int) -> None:
            """Note that so many bytes of data have gone on their way, or been dropped."""

        def release(self, connection: Connection) -> None:
            """Forget the owner of a connection; let go of it if that has not been done."""
