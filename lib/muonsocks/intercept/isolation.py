"""A network of the program's own that nothing leads out of: namespaces(7).

All that there is in it is the loopback interface. Every address is one of this host's there, so
that whatever nameserver the program asks is a socket of ours, and other datagrams find that nobody
is there. Only sockets for TCP are made outside, by us, and handed in: what is connected with them
is for `outgoing`. Raw sockets and the like stay inside, where they lead nowhere.

What a program inherits, or is passed over a unix socket, is of the network it was made in.
"""

from __future__ import annotations

import errno
import os
from _socket import (
    AF_INET,
    AF_INET6,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPPROTO_TCP,
    IPV6_RECVPKTINFO,
    IPV6_V6ONLY,
    SO_REUSEADDR,
    SOCK_CLOEXEC,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    SOCK_RAW,
    SOCK_STREAM,
    SOL_SOCKET,
    if_nametoindex,
    socket,
)

from muonsocks.intercept import kernel
from muonsocks.intercept.bpf import ALLOW, NOTIFY, Rule, equals, has_any, refuse
from muonsocks.intercept.cookies import network_of
from muonsocks.intercept.device import make_device
from muonsocks.intercept.dns import DOMAIN
from muonsocks.intercept.notify import Call, Refused, int_of
from muonsocks.intercept.packets import LONGEST
from muonsocks.intercept.rtnetlink import Network
from muonsocks.intercept.socket_rules import MPTCP, TCP_PROTOCOLS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.intercept.bpf import Rules

_CAP_NET_ADMIN, _CAP_SYS_ADMIN = 1 << 12, 1 << 21
_IP_PKTINFO, _IP_FREEBIND, _IPV6_FREEBIND = 8, 15, 78
_TYPE = 0xF
_NETWORK = "/proc/thread-self/ns/net"
# getaddrinfo(3) finds no address of a family that a host has none of but loopback's. The first one
# is nobody's (RFC 7335), the second is a local one (RFC 4193), made up.
ADDRESSES = {
    AF_INET: bytes((192, 0, 0, 2)),
    AF_INET6: bytes.fromhex("fd6d756f6e736f640000000000000002"),
}
# What leads nowhere, where there is no network. AF_VSOCK and some others are not about networks.
_HARMLESS = (1, 16, 17, 38)  # AF_UNIX, AF_NETLINK, AF_PACKET, AF_ALG
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EACCES, errno.EADDRNOTAVAIL)

# Root might go back to where there is a network, or to another one; 0 is any namespace.
_SETNS_RULES = (
    Rule(refuse(errno.EPERM), has_any(1, kernel.CLONE_NEWNET)),
    Rule(refuse(errno.EPERM), equals(1, 0)),
)
_OF_DATAGRAMS = ("sendto", "sendmsg", "sendmmsg", "recvfrom", "recvmsg", "recvmmsg")

SOCKET_RULES = (
    *(
        Rule(NOTIFY, equals(0, family), equals(1, SOCK_STREAM, _TYPE), equals(2, protocol))
        for family in (AF_INET, AF_INET6)
        for protocol in (0, *TCP_PROTOCOLS)
    ),
    *(Rule(ALLOW, equals(0, family)) for family in (AF_INET, AF_INET6, *_HARMLESS)),
    Rule(refuse(errno.EAFNOSUPPORT)),
)


def rules_inside(rules: Rules) -> Rules:
    """Give the rules of a program inside, from those of one that is not: its datagrams are no
    concern of ours.
    """
    without = {
        name: tuple(rule for rule in rules[name] if rule.verdict != NOTIFY)
        for name in _OF_DATAGRAMS
        if name in rules
    }
    return {**rules, **without, "socket": SOCKET_RULES, "setns": _SETNS_RULES}


# In the program's process, before it is executed


def enter(has_device: bool = False) -> list[int]:
    """Be in a network of one's own from now on. Gives the sockets that are the nameservers in
    there: for IPv4 and, where there is that, for IPv6; and before them the device that is the way
    to everywhere, if there is to be one. OSError, which says what is in the way.
    """
    outside = os.stat(_NETWORK).st_ino
    _unshare()
    if os.stat(_NETWORK).st_ino == outside:
        # A sandbox may only say that it has been made: what follows would change that of others.
        raise OSError(errno.ENOSYS, "no network of its own: none has been made")
    loopback = link = if_nametoindex("lo")
    made: list[int] = []
    if has_device:
        device, link = make_device()
        made.append(device)
    try:
        network = Network()
        try:
            network.bring_up(loopback)
            if has_device:
                network.bring_up(link, mtu=LONGEST)
            for family, packed in ADDRESSES.items():
                made += _begin(network, family, packed, link, has_device)
        finally:
            network.close()
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}, in a network of its own{_hint()}") from None
    for path in ("ipv4/icmp_echo_ignore_all", "ipv6/icmp/echo_ignore_all"):
        try:
            _write(f"/proc/sys/net/{path}", "1")
        except OSError:
            continue  # read-only, as in containers: ping(8) finds that all are there
    return made


def _unshare() -> None:
    user, group = os.geteuid(), os.getegid()
    may = _capabilities()
    if may & _CAP_NET_ADMIN and may & _CAP_SYS_ADMIN:
        try:
            kernel.unshare(kernel.CLONE_NEWNET)  # who is root can still become others
        except OSError as error:
            raise OSError(error.errno, f"no network of its own: {error.strerror}") from None
        return
    try:
        kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNET)
    except OSError as error:
        reason = f"no network of its own: {error.strerror}{_hint()}"
        raise OSError(error.errno, reason) from None
    try:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{user} {user} 1")
        _write("/proc/self/gid_map", f"{group} {group} 1")
    except OSError as error:
        raise OSError(error.errno, f"no user namespace: {error.strerror}{_hint()}") from None
    kernel.allow_inspection()


def _begin(network: Network, family: int, packed: bytes, link: int, has_device: bool) -> list[int]:
    """Have all addresses of a family lead somewhere, and a nameserver at those that are local.
    Gives that one, or none where there is no IPv6.
    """
    try:
        network.add_address(link, packed)
        if has_device:
            if family == AF_INET6:
                network.have_local(family, link, packed)
            network.send_all_to(family, link, packed)
        else:
            network.have_local(family, link)
        return [_nameserver(family).detach()]
    except OSError as error:
        if family == AF_INET or error.errno not in _NO_IPV6:
            raise
        return []


def _nameserver(family: int) -> socket:
    """Make a socket that gets what is for a nameserver, and is told the address it is for."""
    sock = socket(family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC)
    sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    if family == AF_INET:
        sock.setsockopt(IPPROTO_IP, _IP_PKTINFO, 1)
        sock.setsockopt(IPPROTO_IP, _IP_FREEBIND, 1)
    else:
        sock.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, 1)
        sock.setsockopt(IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
        sock.setsockopt(IPPROTO_IPV6, _IPV6_FREEBIND, 1)
    sock.bind(("" if family == AF_INET else "::", DOMAIN))
    return sock


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""  # not every kernel has all of them


def _capabilities() -> int:
    for line in _read("/proc/self/status").splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _hint() -> str:
    """Say what forbids user namespaces, as far as that can be known, and how to change it."""
    if _read("/proc/sys/user/max_user_namespaces") == "0":
        return "; user namespaces are forbidden here: sysctl user.max_user_namespaces is 0"
    if _read("/proc/sys/user/max_net_namespaces") == "0":
        return "; network namespaces are forbidden here: sysctl user.max_net_namespaces is 0"
    if _read("/proc/sys/kernel/unprivileged_userns_clone") == "0":
        return "; user namespaces are root's here: sysctl kernel.unprivileged_userns_clone is 0"
    if _read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        name = "kernel.apparmor_restrict_unprivileged_userns"
        return f"; AppArmor restricts user namespaces here: sysctl {name} is 1"
    return "; a container or a sandbox may forbid user namespaces"


# In the supervisor


class Isolation:
    """Answers what a program inside asks for of the network outside."""

    __slots__ = ("_cookie",)

    def __init__(self, inside: socket) -> None:
        """`inside` is a socket of the network inside."""
        self._cookie = network_of(inside)

    async def make_socket(self, call: Call) -> None:
        """Answer socket(2) for TCP with one of the network outside.

        For MPTCP, too, which goes on as TCP with a peer that has none, as proxies do: Landlock does
        not know it, and it could be connected behind our back.
        """
        family, kind, protocol = (int_of(argument) for argument in call.arguments[:3])
        if protocol == MPTCP:
            protocol = IPPROTO_TCP
        try:
            sock = socket(family, kind, protocol)
        except OSError as error:
            raise Refused(error.errno or errno.ENOBUFS) from None
        try:
            call.hand_in(sock.fileno(), bool(kind & SOCK_CLOEXEC))
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            raise Refused(errno.EMFILE) from None  # the program's
        finally:
            sock.close()

    async def connect(self, call: Call, sock: socket, raw: bytes) -> None:
        """Answer connect(2) of a socket that is not for TCP: it has to be one of the inside.

        The kernel would look once more which socket it is, and find another one.
        """
        if sock.type not in (SOCK_DGRAM, SOCK_RAW) or network_of(sock) != self._cookie:
            raise Refused(errno.ENETUNREACH)
        if number := kernel.connect(sock.fileno(), raw):
            raise Refused(number)
        call.succeed()
