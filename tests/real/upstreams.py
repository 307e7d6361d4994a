"""Proxies of others, and our own, to be gone through, in a network of clients.py.

start(net, stack, "dante")
start(net, stack, "dante", with_password=True)
net.run([... f"--via=socks5h://{LOGIN}@{at('dante', True)}" ...])
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

import clients
from clients import MUONSOCKS, SSH_PORT, TARGET, Network

HOST = TARGET  # not loopback, which some let nobody go to, or be a next proxy at
USER, SECRET = "alice", "secret"
LOGIN = f"{USER}:{SECRET}"

# What each speaks, and whether it can want a password.
UPSTREAMS = {
    "muonsocks": ("socks4", "socks4a", "socks5", "socks5h"),
    "microsocks": ("socks5", "socks5h"),
    "dante": ("socks4", "socks5", "socks5h"),  # it refuses what curl says in SOCKS4A, too
    "ssh": ("socks4", "socks4a", "socks5", "socks5h"),
    "tinyproxy": ("http",),
}
HAVE_PASSWORDS = ("muonsocks", "microsocks", "dante", "tinyproxy")
PROGRAMS = {"dante": ["danted"], "ssh": ["ssh", "sshd", "ssh-keygen"], "muonsocks": []}
TOR = (HOST, 2050)
_PORTS = {name: 2001 + number for number, name in enumerate(UPSTREAMS)}


def port(name: str, with_password: bool = False) -> int:
    return _PORTS[name] + 100 * with_password


def at(name: str, with_password: bool = False) -> str:
    return f"{HOST}:{port(name, with_password)}"


def url(name: str, scheme: str, login: str = "") -> str:
    return f"{scheme}://{login}{'@' if login else ''}{at(name, bool(login))}"


def missing(name: str) -> str | None:
    """Why it cannot be run here, or None."""
    return clients.missing("unshare", "nsenter", "ip", *PROGRAMS.get(name, [name]))


def start(
    net: Network, stack: contextlib.ExitStack, name: str, with_password: bool = False
) -> None:
    """Run one of UPSTREAMS up to the end of the stack."""
    command = _COMMANDS[name](net, port(name, with_password), with_password)
    if name == "ssh":
        stack.enter_context(clients.sshd(net))
        command += ["-i", str(net.work / "ssh" / "client"), f"root@{TARGET}"]
    net.start(stack, command, (HOST, port(name, with_password)))


def start_tor(net: Network, stack: contextlib.ExitStack) -> str:
    """Run Tor at TOR, up to the end of the stack; give the path of its unix socket. It has no
    network, and refuses everything.
    """
    directory = net.work / "tor"
    directory.mkdir(mode=0o700)
    path = directory / "socket"
    options = {
        "-f": str(directory / "none"),
        "--ignore-missing-torrc": "",
        "--DataDirectory": str(directory),
        "--SocksTimeout": "1",
        "--SocksPort": f"{HOST}:{TOR[1]}",
        "+SocksPort": f"unix:{path}",
        "--Log": "warn stderr",
    }
    words = [word for pair in options.items() for word in pair if word]
    net.start(stack, ["tor", *words], TOR)
    return str(path)


def _muonsocks(net: Network, port: int, with_password: bool) -> list[str]:
    users = net.work / "users"
    users.write_text(f"{LOGIN}\n")
    login = [f"--users={users}"] if with_password else []
    return [MUONSOCKS, f"-i{HOST}", f"-p{port}", "--workers=1", *login]


def _microsocks(_: Network, port: int, with_password: bool) -> list[str]:
    login = ["-u", USER, "-P", SECRET] if with_password else []
    return ["microsocks", "-i", HOST, "-p", str(port), *login]


DANTE = """\
logoutput: stderr
internal: {host} port = {port}
external: {out}
clientmethod: none
socksmethod: {method}
user.privileged: root
user.unprivileged: nobody
client pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}
socks pass {{ from: 0.0.0.0/0 to: 0/0 }}
"""
# The users of dante are the system's own: /etc/shadow of the network is a file of ours. SECRET.
DANTE_LOGIN = f"nobody:{SECRET}"
_SHADOW = "nobody:$1$muonsock$oUDVt510pZK2lGj4yV8ep.:20000:0:99999:7:::\n"


def _dante(net: Network, port: int, with_password: bool) -> list[str]:
    path = net.work / f"danted-{port}.conf"
    method = "username" if with_password else "none"
    if with_password:
        with (net.work / "shadow").open("a") as shadow:
            shadow.write(_SHADOW)
    path.write_text(DANTE.format(host=HOST, port=port, out="lo", method=method))
    return [clients.which("danted"), "-f", str(path), "-p", str(path.with_suffix(".pid"))]


def _ssh(_: Network, port: int, __: bool) -> list[str]:
    options = {
        "UserKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "no",
        "BatchMode": "yes",
        "IdentitiesOnly": "yes",
        "LogLevel": "ERROR",
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    return ["ssh", "-F", "none", "-N", "-D", f"{HOST}:{port}", "-p", str(SSH_PORT), *words]


def _tinyproxy(net: Network, port: int, with_password: bool) -> list[str]:
    path: Path = net.work / f"tinyproxy-{port}.conf"
    login = f"BasicAuth {USER} {SECRET}\n" if with_password else ""
    path.write_text(f"Port {port}\nListen {HOST}\nAllow {HOST}\nMaxClients 20\n{login}")
    return ["tinyproxy", "-d", "-c", str(path)]


_COMMANDS: dict[str, Callable[[Network, int, bool], list[str]]] = {
    "muonsocks": _muonsocks,
    "microsocks": _microsocks,
    "dante": _dante,
    "ssh": _ssh,
    "tinyproxy": _tinyproxy,
}
