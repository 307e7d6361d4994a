"""What is decided before a connection comes: who may come in, where to, how long it may take."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.address import Network
    from muonsocks.net.dial import Dialler
    from muonsocks.net.inherit import Peer
    from muonsocks.socks.auth_once import AuthOnce
    from muonsocks.socks.rules import Rules
    from muonsocks.socks.users import Users


class Access:
    """Who may come in: the `trusted` networks, and others with the password of one of the `users`.

    With `auth_once` an address that has shown a password needs none for some time. Everybody may
    come in if there are neither networks nor users.
    """

    __slots__ = ("auth_once", "has_complained", "trusted", "users")

    def __init__(
        self,
        users: Users | None = None,
        trusted: tuple[Network, ...] = (),
        auth_once: AuthOnce | None = None,
    ) -> None:
        self.users = users
        self.trusted = trusted
        self.auth_once = auth_once
        self.has_complained = False  # that addresses cannot be remembered: once is enough

    @property
    def is_limited(self) -> bool:
        """Whether there is anybody who may not come in."""
        return self.users is not None or bool(self.trusted)

    def trusts(self, peer: Peer) -> bool:
        """Say whether this peer is in one of the trusted networks."""
        address = peer.address
        return address is not None and any(address in network for network in self.trusted)

    def bars(self, peer: Peer) -> bool:
        """Say whether this peer may not come in, whatever it shows: there are only networks."""
        return self.users is None and bool(self.trusted) and not self.trusts(peer)

    def needs_password(self, peer: Peer) -> bool:
        """Say whether this peer must show a password. OSError if auth_once fails to tell."""
        if self.users is None or self.trusts(peer):
            return False
        known = self.auth_once
        return known is None or peer.address is None or not known.knows(peer.address)


class Limits:
    """How long a session may take over what, in seconds; `bind` is for a peer to connect."""

    __slots__ = ("bind", "half_close", "handshake", "idle")

    def __init__(
        self,
        handshake: float = 30,
        idle: float = 900,
        half_close: float = 120,
        bind: float = 120,
    ) -> None:
        self.handshake = handshake
        self.idle = idle
        self.half_close = half_close
        self.bind = bind


class Commands:
    """How far the commands besides CONNECT go: whether BIND may be for anybody who connects,
    whether datagrams may come from anywhere, and whether names may be asked for alone.
    """

    __slots__ = ("bind_any", "resolve", "udp_open")

    def __init__(
        self, bind_any: bool = False, udp_open: bool = False, resolve: bool = False
    ) -> None:
        self.bind_any = bind_any
        self.udp_open = udp_open
        self.resolve = resolve


class Front:
    """Where clients say who they are by a PROXY header, as proxies in front of us do for them.

    It is believed if it comes from one of the networks `sources` (from anybody, if there is none),
    or over a unix socket. `is_required` says that who does not send one may not come in.
    """

    __slots__ = ("is_required", "sources")

    def __init__(self, is_required: bool, sources: tuple[Network, ...] = ()) -> None:
        self.is_required = is_required
        self.sources = sources

    def believes(self, peer: Peer) -> bool:
        """Say whether this peer may speak for others."""
        address = peer.address
        if address is None or not self.sources:
            return True
        return any(address in network for network in self.sources)


class Policy:
    """All that is decided before a connection comes."""

    __slots__ = (
        "access",
        "commands",
        "dialler",
        "front",
        "limits",
        "resident",
        "rules",
        "sends_proxy_header",
    )

    def __init__(
        self,
        access: Access,
        rules: Rules,
        dialler: Dialler,
        limits: Limits,
        resident: str = "",
        commands: Commands | None = None,
        front: Front | None = None,
        sends_proxy_header: bool = False,
    ) -> None:
        """`resident` is the unix socket of a relay that connections are handed over to, if any.
        What is connected to is told by a header who the client is if that `sends_proxy_header`.
        """
        self.access = access
        self.rules = rules
        self.dialler = dialler
        self.limits = limits
        self.resident = resident
        self.commands = commands or Commands()
        self.front = front
        self.sends_proxy_header = sends_proxy_header
