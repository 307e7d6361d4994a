"""As whom socketbox runs, and in which root directory: by its options, or by its JSON."""

from __future__ import annotations

from muonsocks.net.identity import Identity
from muonsocks.net.privileges import expect_rights

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.log import Log
    from muonsocks.socketbox.json_configuration import Daemon
    from muonsocks.tools.command_line import Options


def by_options(given: Options, log: Log) -> tuple[Identity | None, str | None]:
    """Say what a command line asks for. UsageError or OSError if it is not to be had."""
    identity = Identity.of_parts(
        given.text("--user"),
        given.text("--group"),
        given.text("--groups"),
        given.flag("--keep-groups"),
    )
    return _expected(identity, given.text("--chroot"), "-x", log)


def by_json(daemon: Daemon, log: Log) -> tuple[Identity | None, str | None]:
    """Say what a document asks for. UsageError or OSError if it is not to be had."""
    identity = None
    if (daemon.uid, daemon.gid, daemon.groups) != (None, None, None):
        groups = None if daemon.groups is None else tuple(daemon.groups)
        if groups is None and daemon.gid is not None:
            groups = ()  # or who has another group would still have those of root
        identity = Identity(daemon.uid, daemon.gid, groups, implied=False)
    return _expected(identity, daemon.chroot or None, "daemon.chroot", log)


def _expected(
    identity: Identity | None, root: str | None, option: str, log: Log
) -> tuple[Identity | None, str | None]:
    root = expect_rights(identity, root, option)
    if identity is not None and identity.leaves_root_its_group:
        log.warning("a group is root's still; -g and -G name others, and so do gid and groups")
    return identity, root
