"""A connection goes from the tool that has made it to a resident relay, and the tool can exit.

They talk over a unix socket of messages (SOCK_SEQPACKET), on which the relay listens:

    the tool    OFFER ...   what is known of the connection (offer.py), with client and far end
    the relay   TAKEN       it would relay; nothing of either socket has been touched yet
                FULL        it has no room; and whatever else it says, or its end, means no
    the tool    GO          from now on the connection is the relay's. The tool exits

Who may touch the sockets is never in doubt. Up to GO it is the tool: it waits a second for TAKEN,
then goes away and relays itself. A relay that reads an end of file where GO should be closes its
descriptors, which the tool has too, and that is all. A relay that will wait no more shuts its side
before it looks a last time: a GO that was sent is read, one that comes later fails for the tool.

The descriptors of both share O_NONBLOCK, so that the tool must not restore what it has found.
"""

from __future__ import annotations

from _socket import SO_LINGER, SOL_SOCKET
from time import monotonic

from muonsocks.errors import RemoteProtocolError
from muonsocks.log import DEBUG, Form, Log
from muonsocks.net.borrowed import Pair
from muonsocks.net.dial import Dialler
from muonsocks.net.inherit import Peer
from muonsocks.net.passed import is_connection, stream_sockets
from muonsocks.net.passing import Passage, send
from muonsocks.net.stream import Stream, is_tcp, prepare_tcp
from muonsocks.socks.offer import FULL, GO, LARGEST, LONGEST_WORD, TAKEN, Offer
from muonsocks.socks.policy import Access, Limits, Policy
from muonsocks.socks.rules import Rules
from muonsocks.socks.session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

    from muonsocks.net.loop import Loop
    from muonsocks.net.relay import Relay
    from muonsocks.net.task import Pause

_PATIENCE = 1.0  # s that a tool waits for TAKEN; meanwhile nothing is relayed
_STEP = 5.0  # s that a relay waits for the offer, and for GO

_WHO = Form("", "client", "user", "target")
_TAKEN = Form("taken", "client", "user", "target", "address")
_NO_LINGER = bytes(8)  # struct linger: off


class NotTaken(Exception):
    """No relay takes the connection: it is still the tool's, and nobody else's."""


# The tool


async def hand_over(path: str, offer: Offer, client: Stream, far: Stream) -> None:
    """Leave a connection to the relay that listens at `path`. NotTaken says why that is not done.

    Afterwards the streams are only to be closed, with nothing shut down or reset or made blocking.
    """
    for stream in (client, far):
        if isinstance(stream, Pair) or not is_connection(stream.socket):
            raise NotTaken("only stream sockets can be handed over")
    try:
        passage = Passage.to(client.loop, path)
    except OSError as error:
        raise NotTaken(f"{path}: {error.strerror or error}") from None
    try:
        client.is_shared = far.is_shared = True  # from now on, even if it is not taken
        with client.loop.deadline(_PATIENCE):
            await passage.send_message(offer.encode(), (client.reader, far.reader))
            answer, _ = await passage.receive_message(LONGEST_WORD)
        if answer != TAKEN:
            raise NotTaken(f"{path}: {'it is full' if answer == FULL else 'it refuses'}")
        send(passage.socket, GO)  # at once or not at all: nothing may come in between
    except (OSError, RemoteProtocolError, ValueError) as error:
        raise NotTaken(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    finally:
        passage.close()


async def is_taken_over(session: Session, far: Stream, early: bytes) -> bool:
    """Leave a session's connection to the resident relay, if that is there and takes it."""
    client, policy = session.client, session.policy
    try:
        offer = Offer(
            session.peer.text,
            session.user,
            session.target,
            far.name,
            session.reply,
            monotonic() - session.started,
            policy.limits.idle,
            policy.limits.half_close,
            early,
        )
        await hand_over(policy.resident, offer, client, far)
    except (NotTaken, ValueError) as reason:
        session.log.debug(f"{_WHO.text % session.facts()} not handed over: {reason}")
        return False
    except BaseException:
        for stream in (client, far):
            stream.reset_on_close()  # the client has been told that it is connected
        raise
    client.give_away()
    far.close()
    return True


# The relay


async def serve(loop: Loop, sock: socket, log: Log, has_room: bool = True) -> int | Pause:
    """Serve a tool that has connected, from its offer to the end of the connection it hands over.

    `sock` is closed on the way. Without room the offer is refused. So is a bad one, and logged;
    what goes wrong later is given and raised as by `Session.run`.
    """
    passage = Passage.over(loop, sock)
    try:
        adopted = await _adopt(passage, log, has_room)
    except TimeoutError:
        log.debug("refused an offer: it has not come")  # who only connects is not to fill the log
        return 0
    except ConnectionError:
        return 0  # the tool is gone, or keeps what it has
    except (RemoteProtocolError, OSError) as error:
        log.warning(f"refused an offer: {getattr(error, 'strerror', None) or error}")
        return 0
    finally:
        passage.close()
    return 0 if adopted is None else await adopted.run()


async def _adopt(passage: Passage, log: Log, has_room: bool) -> Adopted | None:
    """Take a connection over; None if it stays where it is. Raises what is wrong with the offer."""
    with passage.loop.deadline(_STEP):
        message, fds = await passage.receive_message(LARGEST, 2)
    if not message:
        return None
    sockets = stream_sockets(fds)
    loop = passage.loop
    try:
        offer = Offer.decode(message)
        if len(sockets) != 2:
            raise RemoteProtocolError(f"it has {len(sockets)} sockets, not 2")
        if not has_room:
            send(passage.socket, FULL)
            return None
        # All that can fail comes before TAKEN.
        client, far = (Stream(loop, sock) for sock in sockets)
        adopted = Adopted(client, far, offer, log)
        send(passage.socket, TAKEN)
        if not await _is_told_to_go(passage):
            return None
        sockets = []
        return adopted
    finally:
        for sock in sockets:
            loop.unregister(sock.fileno())
            sock.close()


async def _is_told_to_go(passage: Passage) -> bool:
    try:
        with passage.loop.deadline(_STEP):
            word, _ = await passage.receive_message(LONGEST_WORD)
    except TimeoutError:
        word = passage.last_message(LONGEST_WORD)
    if word not in (GO, b""):
        raise RemoteProtocolError("its tool says neither GO nor nothing")
    return word == GO


class Adopted(Session):
    """The rest of a session that began in another process."""

    __slots__ = ("_far", "_offer")

    def __init__(self, client: Stream, far: Stream, offer: Offer, log: Log) -> None:
        limits = Limits(idle=offer.idle, half_close=offer.half_close)
        policy = Policy(Access(), Rules(), Dialler(), limits)
        super().__init__(client, Peer(offer.client), policy, log)
        self.user = offer.user
        self.target = offer.target
        self.reply = offer.reply
        self.started -= offer.age
        client.is_shared = far.is_shared = True  # its tool may take its time to go
        self._far = far
        self._offer = offer

    async def _story(self) -> Relay:
        """Relay. Both streams are closed at the end."""
        self.log.fill_in(DEBUG, _TAKEN, (*self.facts(), self._offer.address))
        try:
            for stream in (self.client, self._far):
                _settle(stream.socket)
            return self.join(self._far, self._offer.early)
        except BaseException:
            self._far.close()
            raise


def _settle(sock: socket) -> None:
    """Make a socket what a relay of many needs it to be, whatever it was for the tool."""
    sock.setblocking(False)
    if is_tcp(sock):
        prepare_tcp(sock)
        sock.setsockopt(SOL_SOCKET, SO_LINGER, _NO_LINGER)  # or a close could wait, and all with it
