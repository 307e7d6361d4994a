"""The options that the SOCKS tools share: one vocabulary, and what each option makes."""

from __future__ import annotations

import os

from muonsocks.address import parse_networks
from muonsocks.errors import UsageError
from muonsocks.net.dial import Dialler
from muonsocks.socks.policy import Access, Commands, Front, Limits, Policy
from muonsocks.socks.rules import Rule, Rules, parse_rules
from muonsocks.socks.users import Users, parse_users, single_user
from muonsocks.tools.command_line import Options as Options
from muonsocks.tools.command_line import expect_no_arguments as expect_no_arguments
from muonsocks.tools.command_line import family, packed_address
from muonsocks.tools.command_line import parse as parse
from muonsocks.tools.command_line import unix_path as unix_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.socks.auth_once import AuthOnce
    from muonsocks.socks.proxy_address import ProxyAddress

_LARGEST_FILE = 4 << 20  # bytes of a rules or users file


def policy(options: Options, access: Access, resident: str = "") -> Policy:
    """Make the policy of a session from all other options that the tool has."""
    return Policy(
        access,
        rules(options),
        dialler(options),
        limits(options),
        resident,
        commands(options),
        front(options),
        options.flag("--send-proxy"),
    )


def access(options: Options, owner: tuple[int, int] | None = None) -> Access:
    """Make who may come in: -U and -P, --users or the credential `users`; -w; -1.

    `owner` is the user and group that the program is going to have, if they are others than now.
    """
    known = users(options)
    trusted = parse_networks(options.text("--trust") or "")
    if not options.flag("--auth-once"):
        return Access(known, trusted)
    if known is None:
        raise UsageError("-1 is for when there are users", "use --users FILE or -U and -P too")
    return Access(known, trusted, auth_once(options, owner))


def users(options: Options) -> Users | None:
    """Make the users: -U and -P, --users or the credential `users`; None without any of them."""
    name, password = options.text("--auth-user"), options.text("--auth-password")
    path = options.text("--users")
    if (name is None) != (password is None):
        raise UsageError("-U and -P go together", "or use --users FILE")
    if name is not None and password is not None:
        from muonsocks.net.process_list import hide_argument

        hide_argument(password, password, "put it into a file, see --users")
        if path is not None:
            raise UsageError("-U and --users exclude each other", "put all users into the file")
        return single_user(name, password)
    if path is not None:
        return parse_users(_read(path), path)
    if directory := os.environ.get("CREDENTIALS_DIRECTORY"):
        path = f"{directory}/users"
        if os.path.lexists(path) or not os.access(directory, os.X_OK):
            return parse_users(_read(path), path)
    return None


def auth_once(options: Options, owner: tuple[int, int] | None = None) -> AuthOnce:
    """Make where the addresses are that have authenticated: --state and --auth-once-ttl."""
    from muonsocks.socks.auth_once import AuthOnce

    return AuthOnce.at(state_directory(options), options.seconds("--auth-once-ttl", 86400), owner)


def state_directory(options: Options) -> str:
    """Name the directory for what outlives a connection: --state, or what is usual for it here."""
    path = options.text("--state")
    if path is not None:
        if not path:
            raise UsageError("--state is empty", "name a directory, or leave the option out")
        return path
    for name in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY"):  # systemd.exec(5): a colon between two
        if first := os.environ.get(name, "").partition(":")[0]:
            return first
    if os.geteuid() == 0:
        return "/run/muonsocks"
    if directory := os.environ.get("XDG_RUNTIME_DIR"):
        return f"{directory}/muonsocks"
    raise UsageError("nothing says where -1 is to keep addresses", "give a directory, --state=DIR")


def front(options: Options) -> Front | None:
    """Make who tells by a PROXY header who the client is: --proxy-protocol and --proxy-from."""
    mode, networks = options.text("--proxy-protocol"), options.text("--proxy-from")
    if mode not in (None, "off", "optional", "required"):
        raise UsageError(f"--proxy-protocol: {mode!r}?", "say off, optional or required")
    if mode in (None, "off"):
        if networks is not None:
            raise UsageError("--proxy-from is for --proxy-protocol", "say required, or optional")
        return None
    sources = parse_networks(networks or "")
    if networks is not None and not sources:
        raise UsageError("--proxy-from is empty", "name networks, or leave the option out")
    return Front(mode == "required", sources)


def commands(options: Options) -> Commands:
    """Make how far the other commands go: --bind-any, --udp-filter, --resolve-commands."""
    udp_filter = options.text("--udp-filter") or "strict"
    if udp_filter not in ("strict", "open"):
        raise UsageError(f"--udp-filter: {udp_filter!r}?", "say strict or open")
    return Commands(
        options.flag("--bind-any"), udp_filter == "open", options.flag("--resolve-commands")
    )


def chain(options: Options) -> tuple[ProxyAddress, ...]:
    """Make which proxies are gone through: --via, one through the other."""
    urls = options.texts("--via")
    if not urls:
        return ()
    from muonsocks.tools.proxies import named_by

    return named_by("--via", urls)


def rules(options: Options) -> Rules:
    """Make where clients may go, and which way: --rules, --allow-local and --via."""
    lines: tuple[Rule, ...] = ()
    path = options.text("--rules")
    if path is not None:
        try:
            text = _read(path).decode()
        except UnicodeDecodeError:
            raise UsageError(f"{path} is not UTF-8 text") from None
        lines = parse_rules(text, path)
    return Rules(lines, options.flag("--allow-local"), chain(options))


def dialler(options: Options) -> Dialler:
    """Make how the far end is reached: -4, -6, -b, -B, -m and the time limits."""
    bind_address = None
    text = options.text("--bind-address")
    if text is not None:
        bind_address = packed_address(text, "-b")
    interface = options.text("--bind-interface")
    if interface == "" or len(os.fsencode(interface or "")) > 15:
        raise UsageError(f"-B: {interface!r} is not an interface", "see ip link")
    return Dialler(
        family(options),
        bind_address,
        interface or "",
        options.number("--mark", 0xFFFFFFFF),
        options.seconds("--connect-timeout", 10),
        options.seconds("--dial-timeout", 30),
    )


def limits(options: Options) -> Limits:
    """Make how long a session may take."""
    return Limits(
        options.seconds("--handshake-timeout", 30),
        options.seconds("--idle-timeout", 900),
        options.seconds("--half-close-timeout", 120),
        options.seconds("--bind-timeout", 120),
    )


def resident(options: Options) -> str:
    """Make which relay connections are handed over to: --relay or $SOCKS_RELAY; "" for none."""
    path = options.text("--relay")
    if path is not None:
        return unix_path(path, "--relay") if path else ""
    path = os.environ.get("SOCKS_RELAY")
    if not path:
        return ""
    # What is in a unit for all to use may not be there, and that must cost nothing.
    is_there = path.startswith("@") or os.path.exists(path)
    return unix_path(path, "SOCKS_RELAY") if is_there else ""


def _read(path: str) -> bytes:
    """Read a file of ours whole. OSError, or UsageError if it is far too large."""
    if not path:
        raise UsageError("a file name is empty", "name a file, or leave the option out")
    with open(path, "rb") as file:
        content = file.read(_LARGEST_FILE + 1)
    if len(content) > _LARGEST_FILE:
        raise UsageError(f"{path} is larger than {_LARGEST_FILE} bytes")
    return content
