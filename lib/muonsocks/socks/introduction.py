"""Who the client is, said by headers of the PROXY protocol: to us, and by us.

A proxy in front of us says it before the first byte of SOCKS, and we may say it to whatever we
connect to, before its first byte.
"""

from __future__ import annotations

from muonsocks.address import Endpoint
from muonsocks.net.inherit import Peer
from muonsocks.socks.admission import READ, Finished
from muonsocks.socks.negotiation import FIRST_READ
from muonsocks.socks.proxy_header import Reader, version_2
from muonsocks.socks.request import ReplyCode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable

    from muonsocks.net.stream import Stream
    from muonsocks.socks.admission import Admission
    from muonsocks.socks.proxy_header import Introduction


async def hear(session: Admission, exact: bool) -> bytes:
    """Take the header, if there is one, and let the session know its client. Give what was read
    behind it: with `exact`, that is nothing, or what there is in its place.

    Finished if the peer may not say who somebody is, or leaves; RemoteProtocolError if the header
    makes no sense, or there has to be one.
    """
    client, front = session.client, session.policy.front
    assert front is not None, "nobody is in front of us"
    data = await client.receive(FIRST_READ if exact else READ)
    is_header = bool(data) and Reader.begins(data[0])
    if data and not is_header and not front.is_required:
        return data
    if is_header and not front.believes(session.peer):
        await session.refuse(None, ReplyCode.NOT_ALLOWED)
        raise Finished("client-refused", "it may not send a PROXY header")
    reader = Reader()
    while data:
        reader.receive(data)
        said = reader.next_event()
        if said is not None:
            _believe(session, said)
            return reader.trailing
        data = await client.receive(reader.wants if exact else READ)
    raise Finished("client-left")


def _believe(session: Admission, said: Introduction) -> None:
    """Let the client be who the header says; who says nothing is who has sent it."""
    if said.client is not None:
        session.peer = Peer.of_endpoint(said.client)
    elif said.over_unix:
        session.peer = Peer("unix")
    else:
        session.for_nobody = True


async def say(session: Admission, far: Stream) -> None:
    """Say on a connection that is new who the client is. OSError."""
    reached = session.client.local_endpoint()  # of a client that came to us over TCP
    if far.is_tcp:
        reached = Endpoint.of_socket(far.socket.getpeername())
    header = version_2(session.peer.endpoint(), reached)
    if left := far.send_now(header):
        await far.send(left)


async def introduce(session: Admission, connecting: Awaitable[Stream]) -> Stream:
    """Connect, and say there who the client is. OSError."""
    far = await connecting
    try:
        await say(session, far)
    except BaseException:
        far.close()
        raise
    return far
