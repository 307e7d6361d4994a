"""Real programs that go out to the network of captured.py, and how many connections each makes.

for program in PROGRAMS:
    words = program.words(world)
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from captured import (
    GIT_HTTP_PORT,
    GIT_PORT,
    HTTPS_PORT,
    PYTHON,
    World,
    build,
    serve_git,
    serve_https,
    serve_ssh,
)
from clients import NAME, TARGET, TARGET6, which

HERE = Path(__file__).parent
FETCH = str(HERE / "leak_fetch.py")


class Program(NamedTuple):
    """What is run, of what it is made, and how often it connects; by both families, maybe, if its
    name has both.
    """

    name: str
    words: Callable[[World], list[str]]
    connections: int = 1
    needs: tuple[str, ...] = ()
    by_name: bool = True  # the proxy is told the name of where it goes, and no address


def by_python(how: str, connections: int = 1) -> Program:
    return Program(
        f"python, {how}",
        lambda world: [PYTHON, FETCH, how, NAME, str(world.outer.web[TARGET])],
        connections,
    )


def static(name: str, needs: str, *more: str, host: str = NAME, connections: int = 1) -> Program:
    return Program(
        name,
        lambda world: [build(world, name), host, str(world.outer.web[TARGET]), *more],
        connections,
        (needs,),
        host == NAME,
    )


PERL = """\
use IO::Socket::INET;
my $sock = IO::Socket::INET->new(PeerAddr => $ARGV[0], PeerPort => $ARGV[1]) or die $@;
print $sock "GET /1000 HTTP/1.0\\r\\n\\r\\n";
my $size = 0;
$size += length while <$sock>;
exit($size > 1000 ? 0 : 3);
"""
SSH_OPTIONS = ("UserKnownHostsFile=/dev/null", "StrictHostKeyChecking=no", "LogLevel=ERROR")


def ssh(world: World) -> list[str]:
    options = [word for option in (*SSH_OPTIONS, "BatchMode=yes") for word in ("-o", option)]
    key = str(world.home / "key")
    return ["ssh", "-F", "none", *options, "-i", key, f"root@{NAME}", "true"]


def clone(url: str) -> Callable[[World], list[str]]:
    # into a directory that is new each time
    script = 'cd "$(mktemp -d -p "$HOME")" && exec git clone -q "$1"'
    return lambda world: ["sh", "-ec", script, "sh", url]


def curl(*more: str, url: str = "") -> Callable[[World], list[str]]:
    return lambda world: [
        *("curl", "-sS", "--fail", "--max-time", "20", "-o/dev/null"),
        *(word.format(work=world.work) for word in more),
        url or world.url,
    ]


PROGRAMS = [
    Program("curl, http by name", curl(), needs=("curl",)),
    Program(
        "curl, https",
        curl("--cacert", "{work}/public.pem", url=f"https://{NAME}:{HTTPS_PORT}/1000"),
        needs=("curl",),
    ),
    Program(
        "curl, IPv4",
        lambda world: curl(url=f"http://{TARGET}:{world.outer.web[TARGET]}/1000")(world),
        needs=("curl",),
        by_name=False,
    ),
    Program(
        "curl, IPv6",
        lambda world: curl(url=f"http://[{TARGET6}]:{world.outer.web[TARGET6]}/1000")(world),
        needs=("curl",),
        by_name=False,
    ),
    Program("curl, bulk", lambda world: curl(url=world.url + "0000")(world), needs=("curl",)),
    Program(
        "wget",
        lambda world: ["wget", "-q", "-O/dev/null", "--timeout=20", "--tries=1", world.url],
        needs=("wget",),
    ),
    Program("git clone, http", clone(f"http://{NAME}:{GIT_HTTP_PORT}/it"), 3, needs=("git",)),
    Program("git clone, git", clone(f"git://{NAME}:{GIT_PORT}/it"), needs=("git",)),
    Program("ssh", ssh, needs=("ssh", "sshd", "ssh-keygen")),
    Program("nc", lambda world: ["nc", "-zw20", NAME, str(world.outer.web[TARGET])], needs=("nc",)),
    Program(
        "perl",
        lambda world: ["perl", "-e", PERL, NAME, str(world.outer.web[TARGET])],
        needs=("perl",),
    ),
    Program(
        "node, http",
        lambda world: [
            *("node", str(HERE / "leak_fetch.js"), "http", NAME, str(world.outer.web[TARGET]))
        ],
        10,
        ("node",),
    ),
    Program(
        "node, c-ares",
        lambda world: [
            *("node", str(HERE / "leak_fetch.js"), "ares", NAME, str(world.outer.web[TARGET]))
        ],
        1,
        ("node",),
    ),
    by_python("blocking"),
    by_python("threads", 20),
    by_python("in_asyncio", 200),
    by_python("by_poll"),
    by_python("by_select"),
    by_python("by_epoll"),
    by_python("by_epoll_level"),
    by_python("signals", 20),
    by_python("fork", 5),
    by_python("while_parents_run", 6),
    by_python("daemonise"),
    by_python("by_exec"),
    by_python("in_session"),
    by_python("elsewhere"),
    static("static C", "gcc", host=TARGET),
    static("static musl", "musl-gcc"),
    static("static Go", "go", "1"),
    static("static Go, 200", "go", "200", connections=200),
    Program("getent", lambda world: ["getent", "ahosts", NAME], 0, ("getent",)),
    Program(
        "dig",
        lambda world: ["dig", "+time=3", "+tries=1", "+fail", NAME, "A"],
        0,
        ("dig",),
    ),
]


def serve_all(stack: contextlib.ExitStack, world: World) -> None:
    """Run the servers that the programs need."""
    serve_https(stack, world)
    if which("git"):
        serve_git(stack, world)
    if which("sshd") and which("ssh-keygen"):
        serve_ssh(stack, world)


# Those that mean to get past


def deceiving(how: str) -> Program:
    return Program(
        f"hostile, {how}",
        lambda world: [build(world, "hostile C"), how, TARGET],
        0,
        ("gcc",),
        False,
    )


TRIES_EVERYTHING = Program(
    "hostile, every way",
    lambda world: [PYTHON, str(HERE / "leak_hostile.py"), TARGET, TARGET6, "inner"],
    0,
    by_name=False,
)
# What another thread changes, of which call; and ways to call that are not the usual one.
DECEITS = [
    deceiving("connect-address"),
    deceiving("connect-datagram-address"),
    deceiving("connect-family"),
    deceiving("sendto-address"),
    deceiving("sendto-port"),
    deceiving("sendmsg-name"),
    deceiving("descriptor-connect"),
    deceiving("io-uring"),
    deceiving("i386"),
]
# The kernel does a call that a unix socket was for, with whatever has its number then. It keeps
# those who have been deceived from TCP; in a network of its own a program has neither UDP outside
# nor MPTCP.
ISOLATED_DECEITS = [
    deceiving("descriptor-connect-mptcp"),
    deceiving("descriptor-sendto"),
    deceiving("descriptor-sendmsg"),
    deceiving("descriptor-of-datagrams"),
    deceiving("i386-argument"),
]
