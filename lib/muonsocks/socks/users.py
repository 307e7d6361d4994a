"""Who may come in with a password. The format is muonsocks(7)'s: `name:password` lines."""

from __future__ import annotations

import errno
from _operator import _compare_digest

from muonsocks.errors import UsageError
from muonsocks.socks.request import Credentials

_MOST_USERS = 10_000
_SCRYPT = b"$scrypt$"
_MOST_MEMORY = (64 << 20) + (1 << 16)  # bytes that hashing a password may take


class ScryptHash:
    """A password as `$scrypt$ln=L,r=R,p=P$SALT$HASH` (RFC 7914; base64 without padding)."""

    __slots__ = ("_cost", "_digest", "_salt", "work")

    def __init__(self, text: bytes) -> None:
        from base64 import b64decode

        try:
            _, _, parameters, salt, digest = text.split(b"$")
            fields = dict(field.split(b"=") for field in parameters.split(b","))
            log_n, r, p = (int(fields.pop(name)) for name in (b"ln", b"r", b"p"))
            self._salt, self._digest = (
                b64decode(field + b"=" * (-len(field) % 4), b"+/", validate=True)
                for field in (salt, digest)
            )
        except (ValueError, KeyError):  # binascii.Error is a ValueError
            raise UsageError(
                "the hash is not of the form $scrypt$ln=14,r=8,p=1$SALT$HASH",
                "muonsocks(7) shows how to make one",
            ) from None
        # An attempt may cost 64 MiB of memory, and time in proportion; RFC 7914 section 2 wants
        # N below 2^(16 r).
        sane = not fields and 1 <= log_n <= 20 and r >= 1 and 1 <= p <= 16
        if not sane or log_n >= 16 * r or 128 * r * ((1 << log_n) + p + 2) > _MOST_MEMORY:
            raise UsageError("the scrypt parameters are out of range", "use ln=14,r=8,p=1")
        if not self._salt or not 16 <= len(self._digest) <= 64:
            raise UsageError("the scrypt salt or hash has the wrong length", "use 16 and 32 bytes")
        self._cost = {"n": 1 << log_n, "r": r, "p": p}
        self.work = (p * r) << log_n

    def matches(self, password: bytes) -> bool:
        """Hash a password (tens of milliseconds) and compare."""
        from hashlib import scrypt

        size, memory = len(self._digest), 2 * _MOST_MEMORY
        try:
            digest = scrypt(password, salt=self._salt, dklen=size, maxmem=memory, **self._cost)
        except (ValueError, MemoryError) as error:  # OpenSSL's malloc has failed
            raise OSError(errno.ENOMEM, "no memory to hash a password") from error
        return _compare_digest(digest, self._digest)


class Users:
    """The users and their passwords.

    What a refusal takes tells nothing but the number of users, as long as all hashes are made with
    the same parameters: where any password is hashed, one hash is made for every attempt.
    """

    __slots__ = ("_dearest", "_passwords")

    def __init__(self, passwords: dict[bytes, bytes | ScryptHash]) -> None:
        if not passwords:
            raise UsageError("there is no user", "write a line NAME:PASSWORD for each")
        self._passwords = passwords
        hashes = [kept for kept in passwords.values() if isinstance(kept, ScryptHash)]
        self._dearest = max(hashes, key=lambda kept: kept.work, default=None)

    @property
    def hashed(self) -> bool:
        """Whether a check may take long enough to be kept out of an event loop."""
        return self._dearest is not None

    def accept(self, given: Credentials) -> bool:
        """Say whether user and password are right."""
        known = False
        kept: bytes | ScryptHash = b""
        for name, password in self._passwords.items():
            if _compare_digest(name, given.user):
                known, kept = True, password
        if isinstance(kept, ScryptHash):
            return kept.matches(given.password)
        if self._dearest is not None:
            self._dearest.matches(given.password)
        right = _compare_digest(kept, given.password)
        return known and right


def parse_users(text: bytes, source: str) -> Users:
    """Read `name:password` or `name:$scrypt$...` lines; empty lines and # comments are skipped.

    Raises UsageError with `source`, line number and reason.
    """
    passwords: dict[bytes, bytes | ScryptHash] = {}
    for number, line in enumerate(text.split(b"\n"), 1):
        line = line.rstrip(b"\r")
        if not line.strip() or line.startswith(b"#"):
            continue
        try:
            name, password = _parse_user(line)
            if name in passwords:
                raise UsageError("the user is named twice", "remove one of the lines")
            if len(passwords) == _MOST_USERS:
                raise UsageError(f"there are more than {_MOST_USERS} users")
        except UsageError as error:
            raise UsageError(f"{source}:{number}: {error}") from None
        passwords[name] = password
    try:
        return Users(passwords)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from None


def _parse_user(line: bytes) -> tuple[bytes, bytes | ScryptHash]:
    name, colon, password = line.partition(b":")
    if not colon or not name or not password:
        raise UsageError("the line is not NAME:PASSWORD")
    if b"\0" in name:
        raise UsageError("the name has a NUL byte in it")
    if len(name) > 255:
        raise UsageError("the name is longer than 255 bytes")
    if password.startswith(_SCRYPT):
        return name, ScryptHash(password)
    if len(password) > 255:
        raise UsageError("the password is longer than 255 bytes")
    return name, password


def single_user(name: str, password: str) -> Users:
    """Make the users of `-U NAME -P PASSWORD`."""
    raw = name.encode("utf-8", "surrogateescape"), password.encode("utf-8", "surrogateescape")
    for what, value in zip(("user", "password"), raw, strict=True):
        if not 0 < len(value) < 256:
            raise UsageError(f"the {what} must have 1 to 255 bytes, not {len(value)}")
    return Users({raw[0]: raw[1]})
