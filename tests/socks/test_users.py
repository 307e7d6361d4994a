"""Who may come in: the users file, plain and scrypt, and that no answer tells by its time."""

import hashlib
from base64 import b64encode
from hmac import compare_digest
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import some, texts

from muonsocks.errors import UsageError
from muonsocks.socks import users
from muonsocks.socks.request import Credentials
from muonsocks.socks.users import ScryptHash, Users, parse_users, single_user

SALT = b"sixteen or so.." + b"\xff"


def scrypt_line(password: bytes, ln: int = 4, r: int = 8, p: int = 1, length: int = 32) -> bytes:
    """What the one-liner in muonsocks(7) makes, only cheaper."""
    digest = hashlib.scrypt(password, salt=SALT, n=1 << ln, r=r, p=p, dklen=length, maxmem=1 << 27)
    salt, hashed = (b64encode(raw).rstrip(b"=") for raw in (SALT, digest))
    return b"$scrypt$ln=%d,r=%d,p=%d$%s$%s" % (ln, r, p, salt, hashed)


FILE = (
    b"""\
# name:password
alice:secret
bob:with:colons:
carol: spaces stay \r
\xffdave:\xfe\x00

erin:"""
    + scrypt_line(b"hash:ed")
    + b"\r\nfrank:#no comment"
)


@pytest.mark.parametrize(
    ("user", "password", "accepted"),
    [
        (b"alice", b"secret", True),
        (b"alice", b"Secret", False),
        (b"alice", b"secret ", False),
        (b"alice", b"secre", False),
        (b"alice", b"", False),
        (b"Alice", b"secret", False),
        (b"", b"secret", False),
        (b"", b"", False),
        (b"bob", b"with:colons:", True),
        (b"bob", b"with", False),
        (b"bob:with", b"colons:", False),
        (b"carol", b" spaces stay ", True),
        (b"carol", b"spaces stay", False),
        (b"\xffdave", b"\xfe\0", True),
        (b"erin", b"hash:ed", True),
        (b"erin", b"hash:e", False),
        (b"erin", scrypt_line(b"hash:ed"), False),
        (b"frank", b"#no comment", True),
        (b"# name", b"password", False),
        (b"alice", b"with:colons:", False),
        (b"mallory", b"secret", False),
        (b"mallory", b"hash:ed", False),
    ],
)
def test_accept(user: bytes, password: bytes, accepted: bool) -> None:
    assert parse_users(FILE, "file").accept(Credentials(user, password)) is accepted


def is_in_a_file(name: bytes, password: bytes) -> bool:
    """Whether a line can say them."""
    return not (
        name.startswith(b"#")
        or b":" in name
        or b"\n" in name + password
        or b"\0" in name
        or password.startswith(b"$scrypt$")
        or password.endswith(b"\r")
    )


@some
@given(st.dictionaries(texts.filter(len), texts.filter(len), min_size=1, max_size=4), texts, texts)
def test_any_users(passwords: dict[bytes, bytes], user: bytes, password: bytes) -> None:
    passwords = {name: word for name, word in passwords.items() if is_in_a_file(name, word)}
    if not passwords:
        return
    made = parse_users(b"\n".join(map(b":".join, passwords.items())), "file")
    for name, word in passwords.items():
        assert made.accept(Credentials(name, word))
    assert made.accept(Credentials(user, password)) is (passwords.get(user) == password)


@pytest.mark.parametrize(
    ("ln", "r", "p", "length"),
    [(4, 8, 1, 32), (1, 1, 1, 16), (14, 8, 1, 64), (16, 8, 1, 32), (3, 8, 16, 32)],
)
def test_scrypt(ln: int, r: int, p: int, length: int) -> None:
    made = ScryptHash(scrypt_line(b"secret", ln, r, p, length))
    assert made.matches(b"secret")
    assert not made.matches(b"Secret")


def test_scrypt_of_rfc_7914() -> None:
    """The third test vector of section 12."""
    digest = bytes.fromhex(
        "7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2"
        "d5432955613f0fcf62d49705242a9af9e61e85dc0d651e40dfcf017b45575887"
    )
    salt, hashed = (b64encode(raw).rstrip(b"=") for raw in (b"SodiumChloride", digest))
    assert ScryptHash(b"$scrypt$ln=14,r=8,p=1$%s$%s" % (salt, hashed)).matches(b"pleaseletmein")


@pytest.mark.parametrize(
    ("text", "hashed"),
    [(b"a:b", False), (b"a:" + scrypt_line(b"b"), True), (b"a:b\nc:" + scrypt_line(b"d"), True)],
)
def test_hashed(text: bytes, hashed: bool) -> None:
    assert parse_users(text, "file").hashed is hashed


# The file

SALT64, HASH64 = scrypt_line(b"").split(b"$")[3:]
OF_THE_FORM = "the hash is not of the form $scrypt$ln=14,r=8,p=1$SALT$HASH; muonsocks(7) shows"
OUT_OF_RANGE = "the scrypt parameters are out of range; use ln=14,r=8,p=1"
LENGTH = "the scrypt salt or hash has the wrong length; use 16 and 32 bytes"


def hash_line(parameters: bytes, salt: bytes = SALT64, digest: bytes = HASH64) -> bytes:
    return b"u:$scrypt$%s$%s$%s" % (parameters, salt, digest)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"alice", "the line is not NAME:PASSWORD"),
        (b"alice:", "the line is not NAME:PASSWORD"),
        (b"alice:\r", "the line is not NAME:PASSWORD"),
        (b":secret", "the line is not NAME:PASSWORD"),
        (b":", "the line is not NAME:PASSWORD"),
        (b"u" * 256 + b":secret", "the name is longer than 255 bytes"),
        (b"alice:" + b"p" * 256, "the password is longer than 255 bytes"),
        (b"zoe:other", "the user is named twice; remove one of the lines"),
        (b"u:$scrypt$", OF_THE_FORM),
        (b"u:$scrypt$ln=4,r=8,p=1$" + SALT64, OF_THE_FORM),
        (hash_line(b"ln=4,r=8,p=1") + b"$", OF_THE_FORM),
        (hash_line(b"ln=4,r=8,p=1") + b" ", OF_THE_FORM),
        (hash_line(b"ln=4,r=8"), OF_THE_FORM),
        (hash_line(b"ln=4,r=8,p"), OF_THE_FORM),
        (hash_line(b"ln=4,r=8,p=x"), OF_THE_FORM),
        (hash_line(b""), OF_THE_FORM),
        (hash_line(b"ln=4,r=8,p=1", b"a-_a"), OF_THE_FORM),
        (hash_line(b"ln=4,r=8,p=1", SALT64, HASH64 + b"!!!!"), OF_THE_FORM),
        (hash_line(b"ln=4,r=8,p=1,q=1"), OUT_OF_RANGE),
        (hash_line(b"ln=0,r=8,p=1"), OUT_OF_RANGE),
        (hash_line(b"ln=21,r=1,p=1"), OUT_OF_RANGE),
        (hash_line(b"ln=-4,r=8,p=1"), OUT_OF_RANGE),
        (hash_line(b"ln=4,r=0,p=1"), OUT_OF_RANGE),
        (hash_line(b"ln=4,r=-8,p=1"), OUT_OF_RANGE),
        (hash_line(b"ln=4,r=8,p=0"), OUT_OF_RANGE),
        (hash_line(b"ln=4,r=8,p=17"), OUT_OF_RANGE),
        (hash_line(b"ln=17,r=8,p=1"), OUT_OF_RANGE),
        (hash_line(b"ln=16,r=9,p=1"), OUT_OF_RANGE),
        (hash_line(b"ln=4,r=8,p=1", b""), LENGTH),
        (hash_line(b"ln=4,r=8,p=1", SALT64, b""), LENGTH),
        (hash_line(b"ln=4,r=8,p=1", SALT64, b64encode(bytes(15))), LENGTH),
        (hash_line(b"ln=4,r=8,p=1", SALT64, b64encode(bytes(65))), LENGTH),
    ],
)
def test_a_bad_line(line: bytes, reason: str) -> None:
    """File, line and reason; the line itself is not in it, for it may hold a password."""
    with pytest.raises(UsageError) as caught:
        parse_users(b"# first\n\nzoe:secret\n" + line, "/etc/users")
    assert str(caught.value).startswith(f"/etc/users:4: {reason}")


@pytest.mark.parametrize("text", [b"", b"\n\n", b"# alice:secret\n", b" \t\r\n"])
def test_nobody(text: bytes) -> None:
    with pytest.raises(UsageError, match="file: there is no user; write a line"):
        parse_users(text, "file")
    with pytest.raises(UsageError, match="there is no user"):
        Users({})


def test_limits() -> None:
    longest = parse_users(b"u" * 255 + b":" + b"p" * 255, "file")
    assert longest.accept(Credentials(b"u" * 255, b"p" * 255))
    most = b"".join(b"%d:x\n" % number for number in range(10_000))
    assert parse_users(most, "file").accept(Credentials(b"9999", b"x"))
    with pytest.raises(UsageError, match="file:10001: there are more than 10000 users"):
        parse_users(most + b"one:more", "file")


@pytest.mark.parametrize("parameters", [b"ln=16,r=1,p=1", b"ln=19,r=1,p=1", b"ln=1,r=262144,p=16"])
def test_parameters_that_scrypt_refuses(parameters: bytes) -> None:
    """RFC 7914 section 6: N is less than 2^(128 r / 8)."""
    with pytest.raises(UsageError, match="file:1: "):
        parse_users(hash_line(parameters), "file")


# -U and -P


@pytest.mark.parametrize(
    ("name", "password", "raw"),
    [
        ("alice", "secret", (b"alice", b"secret")),
        ("a:b", "$scrypt$", (b"a:b", b"$scrypt$")),
        ("zoë", "\udcff", (b"zo\xc3\xab", b"\xff")),
        ("u" * 255, "p" * 255, (b"u" * 255, b"p" * 255)),
    ],
)
def test_single_user(name: str, password: str, raw: tuple[bytes, bytes]) -> None:
    user = single_user(name, password)
    assert user.accept(Credentials(*raw))
    assert not user.accept(Credentials(raw[0], raw[1] + b"x"))
    assert not user.accept(Credentials(raw[0] + b"x", raw[1]))
    assert not user.hashed


@pytest.mark.parametrize(
    ("name", "password", "problem"),
    [
        ("", "secret", "the user must have 1 to 255 bytes, not 0"),
        ("alice", "", "the password must have 1 to 255 bytes, not 0"),
        ("u" * 256, "secret", "the user must have 1 to 255 bytes, not 256"),
        ("alice", "ë" * 128, "the password must have 1 to 255 bytes, not 256"),
    ],
)
def test_single_user_of_the_wrong_length(name: str, password: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        single_user(name, password)


# What the time tells

ATTEMPTS = [
    Credentials(user, password)
    for user in (b"first", b"last", b"nobody", b"")
    for password in (b"one", b"two", b"wrong", b"")
]


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, bytes]]:
    """What was given to the comparison in constant time."""
    calls: list[tuple[bytes, bytes]] = []

    def compare(ours: bytes, theirs: bytes) -> bool:
        calls.append((ours, theirs))
        return compare_digest(ours, theirs)

    monkeypatch.setattr(users, "_compare_digest", compare)
    return calls


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The passwords that were hashed."""
    calls: list[bytes] = []
    real = hashlib.scrypt

    def scrypt(password: bytes, **cost: Any) -> bytes:
        calls.append(password)
        return real(password, **cost)

    monkeypatch.setattr(hashlib, "scrypt", scrypt)
    return calls


def test_both_fields_are_always_compared(compared: list[tuple[bytes, bytes]]) -> None:
    """Whoever asks: the user with every name, then the password with one."""
    made = Users({b"first": b"one", b"last": b"two"})
    for given_ in ATTEMPTS:
        compared.clear()
        made.accept(given_)
        assert compared[:2] == [(b"first", given_.user), (b"last", given_.user)]
        assert [right for _, right in compared[2:]] == [given_.password]


def test_a_password_is_hashed_for_anybody(
    compared: list[tuple[bytes, bytes]], hashed: list[bytes]
) -> None:
    made = parse_users(b"first:" + scrypt_line(b"one") + b"\nlast:" + scrypt_line(b"two"), "file")
    for given_ in ATTEMPTS:
        compared.clear()
        hashed.clear()
        made.accept(given_)
        assert hashed == [given_.password]
        assert len(compared) in (3, 4)  # of a known user the hash, or what stands for it


@pytest.mark.parametrize(
    "text",
    [b"first:one\nlast:" + scrypt_line(b"two"), b"first:" + scrypt_line(b"one") + b"\nlast:two"],
    ids=["plain first", "scrypt first"],
)
def test_a_mixed_file_tells_nothing(text: bytes, hashed: list[bytes]) -> None:
    made = parse_users(text, "file")
    counts = set()
    for given_ in ATTEMPTS:
        hashed.clear()
        made.accept(given_)
        counts.add(len(hashed))
    assert len(counts) == 1
