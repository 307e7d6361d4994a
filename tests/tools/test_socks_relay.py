"""socks-relay as a process: a request in the environment, another way to go, or none to answer."""

import os
import signal
import socket
from pathlib import Path

import pytest
from programs import (
    REJECTED,
    RELAY,
    SECONDS,
    VERSIONS,
    Version,
    accept,
    closed_port,
    environment,
    failure,
    listener,
    read_all,
    run,
    serving,
    wait_for_syn_sent,
)


def requested(
    host: str, port: int, *_: object, version: str = "5", command: str = "connect", user: str = ""
) -> dict[bytes, bytes]:
    """What socks-handshake leaves in the environment."""
    variables = {"SOCKS_USER": user} if user else {}
    return environment(
        SOCKS_VERSION=version,
        SOCKS_COMMAND=command,
        SOCKS_HOST=host,
        SOCKS_PORT=str(port),
        **variables,
    )


@pytest.mark.parametrize("over", ["tcp", "pipes", "pty"])
@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_a_request(version: Version, over: str) -> None:
    with listener() as far:
        environ = requested(*far.getsockname(), version=version.name, user="m\udcffe")
        with serving(RELAY, "--allow-local", over=over, environ=environ) as program:
            program.client.send(b"question")
            with accept(far) as conn:
                reply = version.success(*conn.getpeername())
                assert program.client.read(len(reply)) == reply
                assert read_all(conn, 8) == b"question"
                conn.sendall(b"answer")
                assert program.client.read(6) == b"answer"
            program.client.close()
            assert program.status == 0
        target = ":".join(map(str, far.getsockname()))
    assert "socks-relay[" in program.log
    assert rf" user=m\xffe target={target} " in program.log


REASONS = {
    "general-failure": 1,
    "not-allowed": 2,
    "network-unreachable": 3,
    "host-unreachable": 4,
    "connection-refused": 5,
    "ttl-expired": 6,
    "command-not-supported": 7,
    "address-type-not-supported": 8,
}


@pytest.mark.parametrize("reason", [*REASONS, *map(str, REASONS.values())])
@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_refuse(version: Version, reason: str) -> None:
    code = REASONS.get(reason) or int(reason)
    environ = requested("192.0.2.1", 80, version=version.name)
    with serving(RELAY, "--refuse", reason, environ=environ) as program:
        program.client.end()
        assert program.client.rest() == version.failure(code)
        assert program.status == 1
    assert f"target=192.0.2.1:80 reply={code} in=0 out=0 " in program.log
    assert program.end == "refused-by-rule"


@pytest.mark.parametrize("command", ["resolve", "resolve-ptr", "associate"])
def test_commands_that_it_cannot_do(command: str) -> None:
    with serving(RELAY, environ=requested("0.0.0.0", 0, command=command)) as program:
        program.client.end()
        assert program.client.rest() == failure(7)
        assert program.status == 0
    assert program.end == "command-not-supported"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "::1", "::ffff:127.0.0.1"])
def test_a_request_obeys_the_rules(host: str) -> None:
    with serving(RELAY, environ=requested(host, 80)) as program:
        program.client.end()
        assert program.client.rest() == failure(2)
        assert program.status == 1
    assert program.end == "refused-by-rule"


def test_rules(tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    with listener() as far:
        rules.write_text(f"deny * {far.getsockname()[1]}\n")
        environ = requested(*far.getsockname())
        with serving(RELAY, f"--rules={rules}", "--allow-local", environ=environ) as program:
            program.client.end()
            assert program.client.rest() == failure(2)
            assert program.status == 1
    assert f'detail="denied by {rules}:1"' in program.log


def unix_listener(name: str | bytes) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(name)
    server.listen()
    server.settimeout(SECONDS)
    return server


@pytest.fixture(params=["HOST PORT", "NAME PORT", "unix:PATH", "unix:PATH of 107", "unix:@NAME"])
def elsewhere(
    request: pytest.FixtureRequest, tmp_path: Path
) -> tuple[socket.socket, list[str | bytes]]:
    """A far end, and the arguments that lead to it."""
    if "PORT" in request.param:
        server = listener()
        host, port = server.getsockname()
        return server, ["localhost" if "NAME" in request.param else host, str(port)]
    if request.param == "unix:@NAME":
        name = b"muonsocks-" + os.urandom(8).hex().encode()
        return unix_listener(b"\0" + name), [b"unix:@" + name]
    path = tmp_path / "far"
    if "107" in request.param:
        path = tmp_path / ("f" * (106 - len(str(tmp_path))))
        assert len(str(path)) == 107
    return unix_listener(str(path)), [f"unix:{path}"]


def test_a_plain_forwarder(elsewhere: tuple[socket.socket, list[str | bytes]]) -> None:
    """Without a request there is nobody to reply to, and no rule."""
    server, arguments = elsewhere
    with server, serving(RELAY, *arguments, over="tcp") as program:
        program.client.send(b"question")
        program.client.end()
        with accept(server) as conn:
            assert read_all(conn) == b"question"
            conn.sendall(b"answer")
        assert program.client.rest() == b"answer"
        assert program.status == 0
    target = ":".join(os.fsdecode(argument) for argument in arguments)
    assert f" user=- target={target} reply=- in=8 out=6 " in program.log


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_another_way(elsewhere: tuple[socket.socket, list[str | bytes]], version: Version) -> None:
    """The request is answered, but it does not say where to go."""
    server, arguments = elsewhere
    environ = requested("192.0.2.1", 80, version=version.name)
    with server, serving(RELAY, "-q", *arguments, environ=environ) as program:
        program.client.send(b"question")
        program.client.end()
        with accept(server) as conn:
            assert read_all(conn) == b"question"
            is_tcp = conn.family != socket.AF_UNIX
            bound = conn.getpeername() if is_tcp else ("0.0.0.0", 0)
            conn.sendall(b"answer")
        assert program.client.rest() == version.success(*bound) + b"answer"
        assert program.status == 0
    assert program.log == ""


def test_another_way_is_logged_under_the_request() -> None:
    with listener() as far:
        arguments = map(str, far.getsockname())
        with serving(RELAY, *arguments, environ=requested("example.org", 443)) as program:
            accept(far).close()
            program.client.end()
            program.client.rest()
    assert " target=example.org:443 address=127.0.0.1:" in program.log


@pytest.mark.parametrize(
    ("arguments", "code", "end"),
    [
        (["127.0.0.1", "CLOSED"], 5, "dial-failed"),
        (["no-such-name.invalid", "80"], 4, "name-not-found"),
        (["unix:/no/such/socket"], 4, "dial-failed"),
        (["unix:@no-such-socket"], 5, "dial-failed"),
    ],
    ids=lambda value: str(value),
)
@pytest.mark.parametrize("with_request", [True, False])
def test_another_way_that_leads_nowhere(
    arguments: list[str], code: int, end: str, with_request: bool
) -> None:
    port = str(closed_port())
    arguments = [argument.replace("CLOSED", port) for argument in arguments]
    environ = requested("192.0.2.1", 80) if with_request else environment()
    with serving(RELAY, *arguments, environ=environ) as program:
        program.client.end()
        assert program.client.rest() == (failure(code) if with_request else b"")
        assert program.status == 0
    assert program.end == end
    assert f"reply={code if with_request else '-'} " in program.log


# What cannot be. The client of a request is answered even then.

USAGE: dict[str, tuple[list[str | bytes], str]] = {
    "one argument": (["example.org"], "give HOST PORT or unix:PATH"),
    "three arguments": (["a", "80", "c"], "give HOST PORT or unix:PATH"),
    "port": (["example.org", "http"], "it must be a port, 0 to 65535"),
    "port too large": (["example.org", "65536"], "it must be a port, 0 to 65535"),
    "port of 5000 digits": (["example.org", "1" * 5000], "PORT is"),  # the rest is cut off
    "negative port": (["example.org", "+80"], "it must be a port, 0 to 65535"),
    "empty host": (["", "80"], "neither a name nor an address"),
    "host with a space": (["a b", "80"], "neither a name nor an address"),
    "host that is not ASCII": (["\u00fc", "80"], "neither a name nor an address"),
    "host that is not UTF-8": ([b"\xff", "80"], "neither a name nor an address"),
    "empty path": (["unix:"], "a path or @NAME of 107 bytes at most fits"),
    "long path": (["unix:/" + "p" * 107], "a path or @NAME of 107 bytes at most fits"),
    "reason": (["--refuse=never"], "see --help for those there are"),
    "reason 0": (["--refuse=0"], "see --help for those there are"),
    "reason 9": (["--refuse=9"], "see --help for those there are"),
    "reason of 5000 digits": (["--refuse", "1" * 5000], "--refuse: "),
    "refuse and go": (["--refuse=1", "127.0.0.1", "80"], "see --help"),
    "unknown option": (["--bogus"], "there is no option --bogus; see --help"),
    "an option of socks-inetd": (["--users=/dev/null"], "there is no option --users"),
    "time": (["--connect-timeout=soon"], "is not a time"),
    "both families": (["-46"], "-4 and -6 exclude each other"),
}


@pytest.mark.parametrize("version", ["", "5", "4"])
@pytest.mark.parametrize("what", USAGE)
def test_wrong_usage(what: str, version: str) -> None:
    arguments, message = USAGE[what]
    environ = requested("192.0.2.1", 80, version=version) if version else environment()
    ended = run(RELAY, *arguments, env=environ)
    assert ended.status == 100
    assert ended.output == {"": b"", "5": failure(1), "4": REJECTED}[version]
    *_, line = ended.log.splitlines()  # before it, what became of the client
    assert line.startswith("socks-relay: ")
    assert message in line


@pytest.mark.parametrize("arguments", [[], ["--refuse=1"], ["-q"]], ids=str)
def test_nothing_to_do(arguments: list[str]) -> None:
    ended = run(RELAY, *arguments)
    assert (ended.status, ended.output) == (100, b"")
    hint = "give HOST PORT or unix:PATH, or run it from socks-handshake"
    assert ended.log.endswith(hint + "\n")


BAD_REQUESTS = {
    "version": ({"SOCKS_VERSION": "6"}, b"", "it must be 4, 4a or 5"),
    "empty version": ({"SOCKS_VERSION": ""}, b"", "it must be 4, 4a or 5"),
    "command": ({"SOCKS_COMMAND": "listen"}, failure(1), "resolve, resolve-ptr"),
    "no command": ({"SOCKS_COMMAND": None}, failure(1), "resolve, resolve-ptr"),
    "host": ({"SOCKS_HOST": "a b"}, failure(1), "it must be a name or an address"),
    "no host": ({"SOCKS_HOST": None}, failure(1), "it must be a name or an address"),
    "host not UTF-8": ({"SOCKS_HOST": "\udcff"}, failure(1), "it must be a name or an address"),
    "port": ({"SOCKS_PORT": "http"}, failure(1), "it must be a port, 0 to 65535"),
    "no port": ({"SOCKS_PORT": None}, failure(1), "it must be a port, 0 to 65535"),
    "port with a sign": ({"SOCKS_PORT": "-1"}, failure(1), "it must be a port, 0 to 65535"),
    "5000 digits": ({"SOCKS_PORT": "1" * 5000}, failure(1), ""),
}


@pytest.mark.parametrize("what", BAD_REQUESTS)
def test_a_bad_request(what: str) -> None:
    changes, output, message = BAD_REQUESTS[what]
    environ = requested("192.0.2.1", 80)
    for name, value in changes.items():
        if value is None:
            del environ[os.fsencode(name)]
        else:
            environ[os.fsencode(name)] = os.fsencode(value)
    ended = run(RELAY, env=environ)
    assert (ended.status, ended.output) == (100, output)
    *_, line = ended.log.splitlines()  # before it, what became of the client
    assert line.startswith(f"socks-relay: {next(iter(changes))} is ")
    assert line.endswith(message)


def test_a_rules_file_that_is_missing() -> None:
    ended = run(RELAY, "--rules=/no/such", env=requested("192.0.2.1", 80))
    assert (ended.status, ended.output) == (111, failure(1))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_too_few_descriptors(host: str) -> None:
    """The client is answered, and the status says that it is not the far end's fault."""
    environ = requested("192.0.2.1", 80)
    ended = run("prlimit", "--nofile=6", RELAY, host, str(closed_port()), env=environ)
    assert (ended.status, ended.output) == (111, failure(1))


@pytest.mark.parametrize("environ", [environment(), requested("192.0.2.1", 80)], ids=["", "5"])
def test_closed_descriptors(environ: dict[bytes, bytes]) -> None:
    for closed in ("<&-", ">&-", "<&- >&-"):
        ended = run("sh", "-c", f"exec {RELAY} 127.0.0.1 1 {closed}", env=environ)
        assert (ended.status, ended.output) == (111, b"")
        assert len(ended.log.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_it_dials(number: signal.Signals) -> None:
    """The client is not told a success, and the log says why."""
    with socket.socket() as far, socket.socket() as first, socket.socket() as second:
        far.bind(("127.0.0.1", 0))
        far.listen(0)
        for filler in (first, second):  # the backlog is full now, and nobody is answered
            filler.setblocking(False)
            filler.connect_ex(far.getsockname())
        environ = requested(*far.getsockname())
        with serving(RELAY, "--allow-local", over="tcp", environ=environ) as program:
            wait_for_syn_sent(program.process.pid)
            program.process.send_signal(number)
            assert program.client.rest() == b""
            assert program.status == 0
    assert program.end == "terminated"
