"""A network of the program's own: what is in it, what leads out of it, and where it cannot be."""

import errno
import json
import os
import shutil
import socket
import subprocess
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from places import in_own_network, root_only, sh
from programs import SECONDS, Outcome, accept, listener
from real_server import Server, running, until
from socksified import (
    NOWHERE,
    NUMBER,
    SOCKSIFY,
    Done,
    as_user,
    command,
    expect_isolation,
    python,
    run,
)

from muonsocks.intercept import isolation, kernel
from muonsocks.intercept.bpf import ALLOW, NOTIFY, refuse, verdict
from muonsocks.intercept.outgoing import RULES

CLONE_NEWNET = 0x40000000
SOCK_CLOEXEC, SOCK_NONBLOCK = socket.SOCK_CLOEXEC, socket.SOCK_NONBLOCK


def network_of(process: str = "self") -> str:
    """Name the network namespace of a process."""
    return os.readlink(f"/proc/{process}/ns/net")


def networks() -> set[str]:
    """Name the network namespaces that there are processes in."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                found.add(network_of(entry.name))
            except OSError:
                continue  # it has ended
    return found


@pytest.fixture(scope="module")
def proxy() -> Iterator[Server]:
    with running() as server:
        yield server


def socksify(*program: str, before: tuple[str, ...] = (), **named: Any) -> Done:
    """Run a program, by root, in a network of its own, if nothing else is said."""
    named.setdefault("mode", "isolate")
    return run(*program, before=before, **named)


def inside(program: str, *arguments: str, before: tuple[str, ...] = ()) -> Any:
    """Run a program of Python's inside, and give what it prints, which is JSON."""
    words = python(HEAD + textwrap.dedent(program), *arguments)
    done = socksify(*words, before=before)
    assert done.status == 0, done.log
    return json.loads(done.output)


HEAD = f"""{NUMBER}
import fcntl, json, os, select, socket, struct, sys
"""


def test_there_is_nothing_but_loopback_and_an_address_that_can_be_seen(before):
    found = inside("print(json.dumps(socket.if_nameindex()))", before=before)
    assert found == [[1, "lo"]]
    done = socksify("ip", "-j", "addr", before=before)
    (link,) = json.loads(done.output)
    shown = {(one["local"], one["prefixlen"], one["scope"]) for one in link["addr_info"]}
    assert {("192.0.0.2", 32, "global"), ("fd6d:756f:6e73:6f64::2", 128, "global")} <= shown
    assert "UP" in link["flags"]
    for family in ("-4", "-6"):
        words = ("ip", "-j", family, "route", "show", "table", "all")
        done = socksify(*words, before=before)
        routes = json.loads(done.output)
        assert {one["dev"] for one in routes} == {"lo"}
        assert any(one["dst"] == "default" and one["type"] == "local" for one in routes)


@root_only()
def test_a_connection_goes_through_the_proxy(before):
    def connect() -> None:
        sh("ip addr add 198.51.100.1/24 dev lo")
        with running() as proxy, listener("198.51.100.1") as far:
            done = fetched(far, before, proxy.url)
            assert (done.status, done.output) == (0, "well")
            proxy.await_log(f"connected .*target=198.51.100.1:{far.getsockname()[1]}")

    in_own_network(connect)


def test_loopback_is_that_of_the_host(before):
    with listener() as far:
        done = fetched(far, before, NOWHERE)
    assert (done.status, done.output) == (0, "well")


@pytest.mark.parametrize("mode", ["isolate", "async", "hold"])
@pytest.mark.parametrize("blocks", ["True", "False"])
@root_only()
def test_a_nameserver_of_the_host_is_not_asked_over_tcp(mode: str, blocks: str):
    """It would ask others."""

    def there() -> None:
        with listener("127.0.0.1") as far, socket.create_server(("127.0.0.53", 53)) as nameserver:
            program = HEAD + textwrap.dedent(
                """
                here = []
                for host, port in (("127.0.0.53", 53), ("127.0.0.1", int(sys.argv[1]))):
                    sock = socket.socket()
                    sock.setblocking(sys.argv[2] == "True")
                    here.append(number(sock.connect, (host, port)))
                print(json.dumps(here))
                """
            )
            words = python(program, str(far.getsockname()[1]), blocks)
            done = socksify(*words, mode=mode)
            found = json.loads(done.output)
            assert found[0] == "ECONNREFUSED" and found[1] in ("", "EINPROGRESS")
            accept(far).close()
            nameserver.settimeout(0)
            with pytest.raises(BlockingIOError):
                nameserver.accept()

    in_own_network(there)


def fetched(far: socket.socket, before: tuple[str, ...], proxy: str) -> Done:
    """Run curl on a server that says "well"."""
    answers = threading.Thread(target=_answer, args=(far,))
    answers.start()
    host, port = far.getsockname()
    url = f"http://{host}:{port}/"
    try:
        return socksify("curl", "-sS", url, proxy=proxy, before=before)
    finally:
        answers.join()


def test_a_name_is_left_to_the_proxy(before, proxy):
    """Which looks it up, and finds none."""
    name = f"{'user' if before else 'root'}.isolated.invalid"
    words = ("curl", "-sS", f"http://{name}:8080/")
    done = socksify(*words, proxy=proxy.url, before=before)
    assert done.status == 7
    proxy.await_log(f"target={name}:8080")


def test_every_nameserver_answers_from_its_own_address(before):
    found = inside(
        """
        query = b"\\0\\7\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\5where\\4test\\0\\0\\1\\0\\1"
        here = []
        for family, host in (
            (2, "192.0.2.53"), (2, "127.0.0.53"), (10, "2001:db8::53"), (10, "::1"),
            (10, "::ffff:198.51.100.53"),
        ):
            for is_connected in (True, False):
                sock = socket.socket(family, socket.SOCK_DGRAM)
                sock.settimeout(10)
                if is_connected:
                    sock.connect((host, 53))
                    sock.send(query)
                else:
                    sock.sendto(query, (host, 53))
                answer, source = sock.recvfrom(512)
                here.append([source[0] == host, source[1], answer[:2] == query[:2]])
        print(json.dumps(here))
        """,
        before=before,
    )
    assert found == [[True, 53, True]] * 10


def test_a_name_has_addresses_of_all_families_that_the_host_has_itself(
    before,
):
    found = inside(
        """
        here = set()
        for family in (0, 2, 10):
            for one in socket.getaddrinfo("both.test", 80, family, socket.SOCK_STREAM,
                                          flags=socket.AI_ADDRCONFIG):
                here.add((family, int(one[0])))
        print(json.dumps(sorted(here)))
        """,
        before=before,
    )
    assert found == [[0, 2], [0, 10], [2, 2], [10, 10]]


def test_getent_and_dig_get_an_answer(before):
    done = socksify("getent", "ahostsv4", "some.test", before=before)
    assert done.output.startswith("198.18.") and done.status == 0
    if not shutil.which("dig"):
        pytest.skip("dig is not installed")
    done = socksify("dig", "+short", "@192.0.2.53", "some.test", before=before)
    assert done.output.startswith("198.18.") and done.status == 0


def _answer(far: socket.socket) -> None:
    with accept(far) as conn:
        while b"\r\n\r\n" not in conn.recv(4096):
            pass
        conn.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nwell")


def test_a_socket_is_as_the_program_wants_it(before):
    found = inside(
        """
        import _socket
        here = []
        for family in (socket.AF_INET, socket.AF_INET6):
            for flags in (0, socket.SOCK_NONBLOCK, socket.SOCK_CLOEXEC):
                # as socket(2) is called: Python adds SOCK_CLOEXEC
                fd = libc.socket(family, socket.SOCK_STREAM | flags, 0)
                sock = socket.socket(fileno=fd)
                is_closed = fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
                blocks = os.get_blocking(fd)
                here.append([sock.family, sock.type, sock.proto, flags, bool(is_closed), blocks])
        print(json.dumps(here))
        """.replace("import _socket", "import ctypes; libc = ctypes.CDLL(None, use_errno=True)"),
        before=before,
    )
    expected = [
        [family, 1, 6, flags, flags == SOCK_CLOEXEC, flags != SOCK_NONBLOCK]
        for family in (socket.AF_INET, socket.AF_INET6)
        for flags in (0, SOCK_NONBLOCK, SOCK_CLOEXEC)
    ]
    assert found == expected


def test_an_error_of_socket_is_the_programs(before):
    found = inside(
        """
        import resource
        def make(*arguments):
            socket.socket(*arguments).close()
        others = [number(make, 2, 1, 17), number(make, 2, 2, 6), number(make, 2, 0x101, 0)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (4, 4))
        first = socket.socket()
        others += [number(make, 2, 1, 0), number(make, 10, 1, 0)]
        print(json.dumps(others))
        """,
        before=before,
    )
    assert found == ["EPROTONOSUPPORT", "EPROTONOSUPPORT", "EINVAL", "EMFILE", "EMFILE"]


@root_only()
def test_multipath_tcp_is_tcp(before):
    kinds = inside(
        """
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 262) as sock:
            print(json.dumps(sock.getsockopt(socket.SOL_SOCKET, 38)))
        """,
        before=before,
    )
    assert kinds == socket.IPPROTO_TCP


def test_what_leads_out_of_a_network_without_being_of_one_is_not_to_be_had(before):
    found = inside(
        """
        families = {}
        for family in range(64):
            try:
                socket.socket(family, socket.SOCK_DGRAM).close()
            except OSError as error:
                families[family] = errno.errorcode[error.errno]
            else:
                families[family] = ""
        print(json.dumps(families))
        """,
        before=before,
    )
    had = {int(family) for family, number in found.items() if number != "EAFNOSUPPORT"}
    assert {1, 2, 10} <= had <= {1, 2, 10, 16, 17, 38}


def test_datagrams_to_elsewhere_find_nobody(before):
    found = inside(
        """
        here = []
        for family, host in ((2, "203.0.113.7"), (10, "2001:db8::7")):
            for is_connected in (True, False):
                sock = socket.socket(family, socket.SOCK_DGRAM)
                sock.settimeout(5)
                if is_connected:
                    sock.connect((host, 9))
                    assert sock.getpeername()[:2] == (host, 9)
                    sock.send(b"x")
                else:  # an error is told to who asks for it: IP_RECVERR, IPV6_RECVERR
                    sock.setsockopt(*((0, 11) if family == 2 else (41, 25)), 1)
                    sock.sendto(b"x", (host, 9))
                here.append(number(sock.recv, 1))
        print(json.dumps(here))
        """,
        before=before,
    )
    assert found == ["ECONNREFUSED"] * 4


def test_an_address_of_no_family_undoes_a_connection_of_datagrams(before):
    found = inside(
        """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect(("203.0.113.7", 9))
        assert libc.connect(sock.fileno(), bytes(16), 16) == 0
        here = [number(sock.getpeername)]
        assert libc.connect(sock.fileno(), b"\\n" + bytes(27), 28) == -1
        here.append(errno.errorcode[ctypes.get_errno()])
        print(json.dumps(here))
        """,
        before=before,
    )
    assert found == ["ENOTCONN", "EAFNOSUPPORT"]


# What has no way out: counted where packets would come by

LOUD = """
import ctypes
sent = []
def attempt(what, function, *arguments):
    try:
        function(*arguments)
        sent.append(what)
    except OSError as error:
        pass
def icmp():
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    raw.sendto(bytes([8, 0, 0xf7, 0xfe, 0, 1, 0, 0]), ("198.51.100.9", 0))
def whole():
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28, 1, 0, 64, 17, 0, bytes(4),
        socket.inet_aton("198.51.100.9"))
    raw.sendto(head + struct.pack("!HHHH", 9, 9, 8, 0), ("198.51.100.9", 0))
def frame():
    for _, name in socket.if_nameindex():
        packet = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        packet.bind((name, 0x800))
        packet.send(b"\\xff" * 12 + b"\\x08\\0" + b"E" + bytes(40))
def datagram():
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("198.51.100.9", 99))
def datagram6():
    socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b"x", ("2001:db8:9::9", 99))
def message():
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendmsg([b"x"], (), 0, ("198.51.100.9", 53))
def multicast():
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("224.0.0.251", 5353))
for function in (icmp, whole, frame, datagram, datagram6, message, multicast):
    attempt(function.__name__, function)
print(json.dumps(sent))
"""


def packets_of(words: list[str]) -> tuple[int, Outcome]:
    """Say how many packets come to the only interface of a network, beside loopback, which is the
    way to everywhere, while a command runs.
    """
    results: list[tuple[int, Outcome]] = []

    def measure() -> None:
        sh(
            "ip link add out type veth peer name far",
            "ip link set far up",
            "sysctl -qw net.ipv6.conf.out.disable_ipv6=0 net.ipv6.conf.out.router_solicitations=0",
            "ip link set out up multicast on",
            "ip addr add 198.51.100.1/24 dev out",
            "ip -6 addr add 2001:db8:9::1/64 dev out nodad",
            "ip route add default dev out",
            "ip -6 route add default dev out",
            "ip neigh add 198.51.100.9 lladdr 02:00:00:00:00:09 dev out",
            "ip -6 neigh add 2001:db8:9::9 lladdr 02:00:00:00:00:09 dev out",
        )
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3)) as sniffer:
            sniffer.bind(("out", 3))
            sniffer.settimeout(0)
            done = subprocess.run(words, capture_output=True, timeout=SECONDS)
            outcome = Outcome(done.returncode, done.stdout, done.stderr.decode())
            seen = 0
            while True:
                try:
                    packet = sniffer.recv(65536)
                except BlockingIOError:
                    break
                # What the kernel itself says of the interface: ICMPv6 from 130 (RFC 2710, 4861)
                seen += not (packet[0] >> 4 == 6 and 58 in (packet[6], packet[40]))
            results.append((seen, outcome))

    in_own_network(measure)
    return results[0]


@root_only()
def test_the_same_packets_are_seen_where_they_may_leave():
    seen, done = packets_of([*python(HEAD + LOUD)])
    assert done.status == 0 and len(json.loads(done.output)) == 7, done.log
    assert seen >= 7


@root_only()
@pytest.mark.parametrize("udp", ["refuse", "allow"])
def test_no_packet_of_any_kind_leaves(udp: str):
    if udp == "allow" and not os.path.exists("/dev/net/tun"):
        pytest.skip("there is no /dev/net/tun")
    seen, done = packets_of(
        command(*python(HEAD + LOUD), mode="isolate", options=(f"--udp={udp}",), before=())
    )
    assert done.status == 0 and len(json.loads(done.output)) == 7, done.log
    assert seen == 0


@root_only()
def test_a_user_cannot_even_try_raw_sockets():
    expect_isolation()
    seen, done = packets_of(command(*python(HEAD + LOUD), mode="isolate"))
    assert done.status == 0, done.log
    assert set(json.loads(done.output)) == {"datagram", "datagram6", "message", "multicast"}
    assert seen == 0


def test_ping_does_not_find_what_is_not_there(before):
    found = inside(
        """
        for path in ("ipv4/icmp_echo_ignore_all", "ipv6/icmp/echo_ignore_all"):
            assert open(f"/proc/sys/net/{path}").read() == "1\\n"
        print("true")
        """,
        before=before,
    )
    assert found


# The namespace


@root_only()
def test_root_is_still_root_and_can_become_others():
    words = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "id", "-u")
    done = socksify(*words)
    assert (done.status, done.output) == (0, "65534\n")


@root_only()
def test_root_cannot_go_to_another_network():
    """Nor to this one, which would be as good a try."""
    for kind in (0, CLONE_NEWNET):
        found = inside(
            """
            import ctypes
            libc = ctypes.CDLL(None, use_errno=True)
            fd = os.open("/proc/self/ns/net", os.O_RDONLY)
            result = libc.setns(fd, int(sys.argv[1]))
            print(json.dumps([result, errno.errorcode.get(ctypes.get_errno())]))
            """,
            str(kind),
        )
        assert found == [-1, "EPERM"]


@root_only()
def test_a_network_in_the_network_is_empty():
    words = ("unshare", "--net", "ip", "-j", "route", "show", "table", "all")
    done = socksify(*words)
    assert (done.status, done.output.strip()) == (0, "[]")


def test_a_user_is_who_one_was(before):
    found = inside("print(json.dumps([os.getuid(), os.getgid(), os.geteuid()]))", before=before)
    expected = 65534 if before else os.geteuid()
    assert found == [expected, 65534 if before else os.getegid(), expected]


def test_the_namespace_ends_with_its_last_process(before):
    done = socksify(
        "sh",
        "-c",
        "readlink /proc/self/ns/net; (sleep 1; exec true) >/dev/null 2>&1 &",
        before=before,
    )
    name = done.output.strip()
    assert name.startswith("net:[") and name != network_of()
    until("nobody is in that network", lambda: name not in networks())


# Which mode it is


def test_auto_is_isolate_where_that_can_be(before):
    done = run("readlink", "/proc/self/ns/net", options=("-v",), before=before)
    assert done.status == 0 and "mode=isolate" in done.log
    assert done.output.strip() != network_of()


@pytest.mark.parametrize("mode", ["async", "hold"])
def test_the_other_modes_are_in_the_network_that_there_is(mode):
    done = run("readlink", "/proc/self/ns/net", mode=mode, options=("-v",))
    assert (done.status, done.output.strip()) == (0, network_of())
    assert f"mode={mode}" in done.log


def test_an_unknown_mode_is_said_to_be_none():
    done = run("true", mode="fast")
    assert done.status == 100 and "isolate" in done.log and "'fast'" in done.log


def test_which_option_a_network_is_wrong_in():
    done = run("true", options=("--direct=10.0.0.0/8,foo",))
    assert done.status == 100
    said = "--direct: 'foo' is not a network; write ADDRESS or ADDRESS/BITS"
    assert done.log == f"socksify: {said}\n"


def _forbidding(sysctl: str) -> tuple[str, ...]:
    """Words to be in a user namespace in which another namespace cannot be, and without rights."""
    script = f'echo 0 >/proc/sys/user/{sysctl} && exec "$@"'
    without_rights = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    shell = ("sh", "-c", script, "sh", *without_rights)
    return (*as_user(), "unshare", "--user", "--map-root-user", *shell)


@pytest.mark.parametrize("sysctl", ["max_user_namespaces", "max_net_namespaces"])
def test_where_it_cannot_be_isolate_says_so_and_what_to_do(sysctl):
    expect_isolation()
    forbidding = _forbidding(sysctl)
    done = socksify("true", before=forbidding)
    assert done.status == 111
    assert done.log.count("\n") == 1
    assert f"sysctl user.{sysctl} is 0" in done.log and "--mode async" in done.log


def test_where_it_cannot_be_auto_is_async_and_says_why_if_asked():
    expect_isolation()
    forbidding = _forbidding("max_user_namespaces")
    words = ("readlink", "/proc/self/ns/net")
    done = run(*words, options=("-v",), before=forbidding)
    assert (done.status, done.output.strip()) == (0, network_of())
    assert "mode=async" in done.log and "sysctl user.max_user_namespaces is 0" in done.log
    assert run(*words, before=forbidding).log == ""


def test_there_is_no_second_one_inside(before):
    done = socksify(SOCKSIFY, "--mode=isolate", f"--proxy={NOWHERE}", "true", before=before)
    assert done.status == 111 and "another one answers" in done.log


# The rules


def test_what_is_for_datagrams_is_let_through_inside():
    rules = isolation.rules_inside(RULES)
    for name in ("sendto", "sendmsg"):
        assert verdict(rules[name], (3, 1, 1, 0, 1, 16)) == ALLOW
    assert verdict(rules["sendto"], (3, 1, 1, 0x20000000, 1, 16)) == refuse(errno.EOPNOTSUPP)
    assert rules["connect"] == RULES["connect"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((2, 1, 0), NOTIFY),
        ((10, 1 | SOCK_CLOEXEC | SOCK_NONBLOCK, 6), NOTIFY),
        ((2, 1, 262), NOTIFY),
        ((1 << 32 | 2, 1, 1 << 32), NOTIFY),
        ((2, 2, 0), ALLOW),
        ((2, 3, 1), ALLOW),
        ((10, 1, 132), ALLOW),
        ((16, 3, 0), ALLOW),
        ((40, 1, 0), refuse(errno.EAFNOSUPPORT)),
        ((0, 1, 0), refuse(errno.EAFNOSUPPORT)),
    ],
)
def test_which_sockets_are_made_outside(arguments: tuple[int, ...], expected: int):
    assert verdict(isolation.SOCKET_RULES, (*arguments, 0, 0, 0)) == expected


# Orphans that end, each of which the supervisor is told of, while sockets are handed in.
ORPHANS = """
import os, socket, time
end = time.monotonic() + 2
for _ in range(2):
    if os.fork():
        continue
    while time.monotonic() < end:
        if not os.fork():
            for _ in range(20):
                os.fork() or os._exit(0)
            os._exit(0)
        os.wait()
    os._exit(0)
while time.monotonic() < end:
    with socket.socket() as sock:
        assert sock.fileno() > 2
"""


def test_no_signal_comes_between_a_program_and_its_socket() -> None:
    """Else the kernel lets socket(2) give 0, and there is none."""
    done = run(*python(ORPHANS), mode="isolate")
    assert (done.status, done.log) == (0, "")


@root_only()
def test_another_ones_network_is_not_touched(monkeypatch):
    def there() -> None:
        monkeypatch.setattr(kernel, "unshare", lambda _: None)  # as a sandbox may have it
        with pytest.raises(OSError, match="none has been made"):
            isolation.enter()
        sh("! ip route show table local | grep default")

    in_own_network(there)
