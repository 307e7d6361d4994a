"""What holds of every machine: any cut is the same, any bytes are survived, turns are kept.

And each version's server and client understand one another, whatever they have to say.
"""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playbook import PEERS_TURN, Script, Wire, check_wants, play, speak
from strategies import (
    Talk,
    commands,
    endpoints,
    few,
    ipv4_endpoints,
    many,
    names,
    offered_methods,
    pieces,
    ports,
    replies,
    some,
    talks,
    texts,
    trailings,
    user_ids,
)

from muonsocks.address import Endpoint
from muonsocks.errors import LocalProtocolError
from muonsocks.socks import http_connect, socks4, socks5
from muonsocks.socks.machine import Machine, name_bytes, port_bytes
from muonsocks.socks.request import (
    UNSPECIFIED,
    Command,
    Credentials,
    CredentialsVerdict,
    Event,
    Method,
    MethodChoice,
    MethodOffer,
    Reply,
    ReplyCode,
    Request,
)

# Any cut, any bytes


@many
@given(st.data())
def test_every_cut_is_the_same(data: st.DataObject) -> None:
    talk: Talk = data.draw(talks)
    whole = talk.make()
    expected = play(whole, [talk.data], talk.script)
    for chunks in ([bytes((one,)) for one in talk.data], data.draw(pieces(talk.data))):
        machine = talk.make()
        assert play(machine, chunks, talk.script) == expected
        assert machine.trailing == whole.trailing


@many
@given(talks, trailings)
def test_exact_reads_leave_what_is_behind(talk: Talk, behind: bytes) -> None:
    data = talk.data + behind
    whole, exact, wire = talk.make(), talk.make(), Wire(data)
    expected = play(whole, [data], talk.script)
    assert play(exact, wire.exact_reads(exact), talk.script) == expected
    assert exact.trailing + wire.unread == whole.trailing
    if expected.state == "relay":
        assert exact.trailing == b"", "it has read past the handshake"


@many
@given(st.sampled_from(sorted(PEERS_TURN, key=str)), st.data())
def test_any_bytes_are_survived(make: Callable[[], Machine], data: st.DataObject) -> None:
    """Events or RemoteProtocolError, which `play` takes, and nothing else."""
    script: Script = data.draw(
        st.fixed_dictionaries(
            {
                "choose": st.builds(MethodChoice, st.integers(0, 255)),
                "judge": st.builds(CredentialsVerdict, st.booleans()),
                "answer": replies,
            }
            if make in (socks4.Server, socks5.Server)
            else {
                "offer": st.builds(MethodOffer, offered_methods),
                "credentials": st.builds(Credentials, texts, texts),
                "request": st.builds(
                    Request,
                    st.just(Command.CONNECT) if make is http_connect.Client else commands,
                    ipv4_endpoints.filter(is_sayable),
                ),
            }
        )
    )
    play(make(), data.draw(st.lists(st.binary(max_size=300), max_size=5)), script)


def is_sayable(endpoint: Endpoint) -> bool:
    """Whether SOCKS4 can say the address: 0.0.0.x is its sign for a name."""
    return not endpoint.host.startswith("0.0.0.")


@pytest.mark.parametrize("make", sorted(PEERS_TURN, key=str), ids=lambda make: make.__module__)
def test_nothing_received_is_nothing_heard(make: Callable[[], Machine]) -> None:
    machine = make()
    machine.receive(b"")
    assert machine.next_event() is None
    assert machine.trailing == b""
    check_wants(machine)


# Server and client


def converse(server: Machine, ours: Script, client: Machine, theirs: Script) -> list[Event]:
    """Let two machines talk until neither has more to say; what each has heard, in order."""
    heard: list[Event] = []
    to_server = speak(client, theirs)
    while to_server:
        server.receive(to_server)
        to_client = b""
        while (event := server.next_event()) is not None:
            heard.append(event)
            to_client += speak(server, ours)
        client.receive(to_client)
        to_server = b""
        while (event := client.next_event()) is not None:
            heard.append(event)
            to_server += speak(client, theirs)
    assert server.trailing == client.trailing == b""
    assert server.state == client.state
    assert server.wants == client.wants == 0
    return heard


def converse5(
    request: Request, reply: Reply, credentials: Credentials | None = None, accepted: bool = True
) -> None:
    method = Method.NONE if credentials is None else Method.PASSWORD
    offer = MethodOffer(bytes((method,)))
    choice, verdict = MethodChoice(method), CredentialsVerdict(accepted)
    ours = {"choose": choice, "judge": verdict, "answer": reply}
    theirs: dict[str, Event] = {"offer": offer, "request": request}
    expected: list[Event] = [offer, choice]
    if credentials is not None:
        theirs["credentials"] = credentials
        expected += [credentials, verdict]
    if accepted:
        succeeds = reply.code == ReplyCode.SUCCEEDED
        replies = 2 if request.command == Command.BIND and succeeds else 1
        expected += [request] + [reply] * replies
    assert converse(socks5.Server(), ours, socks5.Client(), theirs) == expected


@some
@given(commands, endpoints, replies, st.none() | st.builds(Credentials, texts, texts))
def test_socks5_client_and_server(
    command: int, destination: Endpoint, reply: Reply, credentials: Credentials | None
) -> None:
    converse5(Request(command, destination), reply, credentials)


@few
@given(texts, texts)
def test_socks5_client_and_server_refused(user: bytes, password: bytes) -> None:
    request = Request(Command.CONNECT, UNSPECIFIED)
    converse5(request, Reply(0), Credentials(user, password), accepted=False)


def test_socks5_every_length() -> None:
    """Names of 1 to 255 bytes, users and passwords of 0 to 255."""
    for length in range(256):
        name = Endpoint("n" * max(1, length), length)
        credentials = Credentials(b"u" * length, b"p" * (255 - length))
        converse5(Request(Command.CONNECT, name), Reply(ReplyCode.SUCCEEDED, name), credentials)


def converse4(request: Request, reply: Reply) -> None:
    server = socks4.Server()
    heard = converse(server, {"answer": reply}, socks4.Client(), {"request": request})
    assert heard[0] == request
    assert server.version == ("4a" if request.destination.packed is None else "4")
    replies = 2 if request.command == Command.BIND and reply.code == ReplyCode.SUCCEEDED else 1
    assert heard[1:] == [as_socks4_says(reply)] * replies


def as_socks4_says(reply: Reply) -> Reply:
    """A reply without what SOCKS4 cannot say: why it failed, and a bound IPv6 address."""
    codes = {
        ReplyCode.SUCCEEDED: ReplyCode.SUCCEEDED,
        ReplyCode.IDENTITY_REFUSED: ReplyCode.NOT_ALLOWED,
    }
    code = codes.get(reply.code, ReplyCode.GENERAL_FAILURE)
    packed = reply.bound.packed
    return Reply(code, reply.bound if packed is not None and len(packed) == 4 else UNSPECIFIED)


@some
@given(
    commands,
    ipv4_endpoints.filter(is_sayable)
    | st.builds(Endpoint, names.filter(lambda name: Endpoint(name, 0).packed is None), ports),
    user_ids,
    replies,
)
def test_socks4_client_and_server(
    command: int, destination: Endpoint, user: bytes, reply: Reply
) -> None:
    converse4(Request(command, destination, user), reply)


def test_socks4_every_length() -> None:
    """Names of 1 to 255 bytes, user ids of 0 to 255."""
    for length in range(256):
        destination = Endpoint("n" * max(1, length), length)
        converse4(Request(Command.CONNECT, destination, b"u" * (255 - length)), Reply(0))
        converse4(Request(Command.CONNECT, Endpoint("192.0.2.1", 1), b"u" * length), Reply(0))


# Turns

BOUND = Endpoint("192.0.2.7", 8080)
EVENTS: tuple[Event, ...] = (
    MethodOffer(b"\0\2"),
    MethodChoice(Method.NONE),
    Credentials(b"u", b"p"),
    CredentialsVerdict(True),
    Request(Command.CONNECT, BOUND),
    Reply(ReplyCode.SUCCEEDED, BOUND),
)
REQUEST4, REPLY4 = "04 01 0050 c0000207 00", "00 5a 1f90 c0000207"
REQUEST5, REPLY5 = "05 01 00 01 c0000207 0050", "05 00 00 01 c0000207 1f90"
REFUSAL5 = "05 02 00 01 00000000 0000"
OURS = {"offer": EVENTS[0], "credentials": EVENTS[2], "request": EVENTS[4]}
NONE, PASSWORD, NO_METHOD = MethodChoice(0), MethodChoice(2), MethodChoice(0xFF)
ACCEPTED, REFUSED = CredentialsVerdict(True), CredentialsVerdict(False)
SUCCESS, FAILURE = Reply(ReplyCode.SUCCEEDED, BOUND), Reply(ReplyCode.GENERAL_FAILURE)

# How each state is reached: the machine, the state, the peer's bytes, what we say, and the event
# whose turn it then is.
STATES: tuple[tuple[type[Machine], str, str, Script, type[Event] | None], ...] = (
    (socks4.Server, "request", "", {}, None),
    (socks4.Server, "request", "04 01", {}, None),
    (socks4.Server, "answer", REQUEST4, {}, Reply),
    (socks4.Server, "relay", REQUEST4, {"answer": SUCCESS}, None),
    (socks4.Server, "closed", REQUEST4, {"answer": FAILURE}, None),
    (socks4.Server, "closed", "05", {}, None),
    (socks4.Client, "request", "", {}, Request),
    (socks4.Client, "answer", "", OURS, None),
    (socks4.Client, "relay", REPLY4, OURS, None),
    (socks4.Client, "closed", "00 5b 0000 00000000", OURS, None),
    (socks4.Client, "closed", "04", OURS, None),
    (socks5.Server, "offer", "", {}, None),
    (socks5.Server, "choose", "05 01 00", {}, MethodChoice),
    (socks5.Server, "credentials", "05 01 02", {"choose": PASSWORD}, None),
    (socks5.Server, "judge", "05 01 02 01 00 00", {"choose": PASSWORD}, CredentialsVerdict),
    (socks5.Server, "request", "05 01 00", {"choose": NONE}, None),
    (
        socks5.Server,
        "request",
        "05 01 02 01 00 00",
        {"choose": PASSWORD, "judge": ACCEPTED},
        None,
    ),
    (socks5.Server, "answer", "05 01 00" + REQUEST5, {"choose": NONE}, Reply),
    (socks5.Server, "relay", "05 01 00" + REQUEST5, {"choose": NONE, "answer": SUCCESS}, None),
    (socks5.Server, "closed", "05 01 00" + REQUEST5, {"choose": NONE, "answer": FAILURE}, None),
    (socks5.Server, "closed", "05 01 00", {"choose": NO_METHOD}, None),
    (socks5.Server, "closed", "05 01 01", {"choose": MethodChoice(1)}, None),
    (
        socks5.Server,
        "closed",
        "05 01 02 01 00 00",
        {"choose": PASSWORD, "judge": REFUSED},
        None,
    ),
    (socks5.Server, "closed", "04", {}, None),
    (socks5.Client, "offer", "", {}, MethodOffer),
    (socks5.Client, "choice", "", {"offer": EVENTS[0]}, None),
    (socks5.Client, "credentials", "05 02", {"offer": EVENTS[0]}, Credentials),
    (socks5.Client, "verdict", "05 02", {"offer": EVENTS[0], "credentials": EVENTS[2]}, None),
    (socks5.Client, "request", "05 00", {"offer": EVENTS[0]}, Request),
    (
        socks5.Client,
        "request",
        "05 02 01 00",
        {"offer": EVENTS[0], "credentials": EVENTS[2]},
        Request,
    ),
    (socks5.Client, "reply", "05 00", OURS, None),
    (socks5.Client, "relay", "05 00" + REPLY5, OURS, None),
    (socks5.Client, "closed", "05 ff", OURS, None),
    (socks5.Client, "closed", "05 02 01 01", OURS, None),
    (socks5.Client, "closed", "05 00" + REFUSAL5, OURS, None),
    (socks5.Client, "closed", "04", OURS, None),
    (http_connect.Client, "request", "", {}, Request),
    (http_connect.Client, "response", "", OURS, None),
    (http_connect.Client, "relay", b"HTTP/1.0 200 \n\n".hex(), OURS, None),
    (http_connect.Client, "closed", b"HTTP/1.0 407 \n\n".hex(), OURS, None),
    (http_connect.Client, "closed", "05", OURS, None),
)


@pytest.mark.parametrize(("make", "state", "digits", "script", "turn"), STATES)
def test_turns(
    make: Callable[[], Machine], state: str, digits: str, script: Script, turn: type[Event] | None
) -> None:
    """Out of turn, every event is our own fault; it changes nothing, and the right one goes on."""
    machine = make()
    play(machine, [bytes.fromhex(digits)], script)
    assert machine.state == state
    assert machine.next_event() is None
    check_wants(machine)
    kept = machine.trailing, machine.wants
    for event in EVENTS:
        if type(event) is not turn:
            with pytest.raises(LocalProtocolError, match=f"state {state}"):
                machine.send(event)
            assert (machine.state, machine.trailing, machine.wants) == (state, *kept)
    for event in EVENTS:
        if type(event) is turn:
            assert machine.send(event)
            assert machine.state != state


def test_an_error_tells_no_password() -> None:
    with pytest.raises(LocalProtocolError) as caught:
        socks5.Server().send(Credentials(b"alice", b"secret"))
    assert "alice" in str(caught.value)
    assert "secret" not in str(caught.value)


# What the machines have in common


def test_port_bytes() -> None:
    assert port_bytes(Endpoint("name", 0x1234)) == b"\x12\x34"


@pytest.mark.parametrize(
    "name", ["", "n" * 256, "a b", "a\0b", "a\nb", "\x7f", "münchen", "\udc80"]
)
def test_names_that_cannot_be_said(name: str) -> None:
    with pytest.raises(LocalProtocolError, match="cannot be sent as a name"):
        name_bytes(Endpoint(name, 0))


@pytest.mark.parametrize("name", ["a", "n" * 255, "xn--mnchen-3ya.test", "!~"])
def test_names_that_can_be_said(name: str) -> None:
    assert name_bytes(Endpoint(name, 0)) == name.encode()
