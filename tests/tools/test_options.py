"""What the options do: where a client may go and who may come in, through the real program."""

import base64
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from programs import (
    GREETING,
    INETD,
    PASSWORD_GREETING,
    REJECTED,
    accept,
    address_bytes,
    credentials,
    environment,
    failure,
    listener,
    run,
    serving,
    socks4,
    socks4a,
    socks5,
)

LOCAL = [INETD, "--allow-local"]

# Where a client may go

OWN_SIDE_NAMES = [
    *(
        "127.0.0.1",
        "127.1",
        "127.9.9.9",
        "0x7f.1",
        "0177.1",
        "2130706433",
        "localhost",
        "LOCALHOST",
    ),
    *("0.0.0.0", "0", "0.1.2.3", "169.254.1.1", "224.0.0.1", "239.255.255.255", "255.255.255.255"),
    *("::1", "::", "0:0:0:0:0:0:0:1", "::ffff:127.0.0.1", "::ffff:7f00:1", "::127.0.0.1"),
    *("::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::127.0.0.1", "64:ff9b:1::7f00:1"),
    *("2002:7f00:1::", "2002:a9fe:101::", "fe80::1%lo", "fe80::1", "febf::1", "ff02::1", "ff05::2"),
]
OWN_SIDE_ADDRESSES = [name for name in OWN_SIDE_NAMES if address_bytes(name)[0] != 3]


def as_name(host: str) -> bytes:
    return b"\5\1\0\3" + bytes([len(host)]) + host.encode() + b"\0\x50"


@pytest.mark.parametrize("host", OWN_SIDE_NAMES)
def test_this_host_s_own_side_is_refused(host: str) -> None:
    """As a name and, where it is one, as an address, in every version that can say it."""
    requests = {"name": (GREETING + as_name(host), b"\5\0" + failure(2))}
    requests["SOCKS4a"] = (socks4a(host, 80), REJECTED)
    if host in OWN_SIDE_ADDRESSES:
        requests["address"] = (GREETING + socks5(host, 80), b"\5\0" + failure(2))
        if ":" not in host and (host == "0.0.0.0" or not host.startswith("0.")):
            requests["SOCKS4"] = (socks4(host, 80), REJECTED)
    for kind, (request, answer) in requests.items():
        with serving(INETD) as program:
            program.client.send(request)
            program.client.end()
            assert program.client.rest() == answer, kind
            assert program.status == 1, kind
        assert program.end == "refused-by-rule", kind


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "0x7f.1", "2130706433", "localhost"])
def test_allow_local(host: str) -> None:
    with listener() as far, serving(*LOCAL, "-4") as program:
        program.client.send(GREETING + socks5(host, far.getsockname()[1]))
        assert program.client.read(4) == b"\5\0\5\0"
        accept(far).close()


RULES = """\
deny * 25   # no mail
deny .onion
deny 127.0.0.2
allow localhost
allow 127.0.0.0/8
deny *
"""
DECISIONS = {
    ("127.0.0.1", 0): True,
    ("127.0.0.2", 0): False,
    ("127.0.0.3", 25): False,
    ("127.2", 0): False,
    ("127.3", 0): True,
    ("127.0.0.2.onion", 0): False,
    ("localhost", 0): True,
    ("::1", 0): False,
    ("hidden.onion", 0): False,
    ("192.0.2.1", 0): False,
}


@pytest.mark.parametrize(("host", "port"), DECISIONS)
def test_rules(tmp_path: Path, host: str, port: int) -> None:
    rules = tmp_path / "rules"
    rules.write_text(RULES)
    allowed = DECISIONS[host, port]
    with (
        listener("0.0.0.0") as far,
        serving(*LOCAL, f"--rules={rules}") as program,
    ):
        program.client.send(GREETING + socks5(host, port or far.getsockname()[1]))
        program.client.end()
        if allowed:
            accept(far).close()
            assert program.client.read(4) == b"\5\0\5\0"
        else:
            assert program.client.rest() == b"\5\0" + failure(2)
        assert program.status == (0 if allowed else 1)


# Who may come in

ALICE = b"\xc3\xa4lice"  # as UTF-8 has her


def scrypt_line(name: bytes, password: bytes) -> bytes:
    """Make a line of a users file in the way that muonsocks(7) shows."""
    salt = b"salt of 16 bytes"
    digest = hashlib.scrypt(password, salt=salt, n=16, r=8, p=1, dklen=32)
    fields = (base64.b64encode(field).rstrip(b"=").decode() for field in (salt, digest))
    return name + f":$scrypt$ln=4,r=8,p=1${'$'.join(fields)}\n".encode()


@pytest.fixture(params=["-U -P", "--users", "scrypt", "credential"])
def guarded(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[list[str | bytes], Path]:
    """A command line that lets älice in with the password `secret`; all ways to say so."""
    users = tmp_path / "users"
    users.write_bytes(b"# comment\n\nbob:other:\xff\n" + ALICE + b":secret\n")
    options: dict[str, list[str | bytes]] = {
        "-U -P": ["-U", ALICE, "-P", "secret"],
        "--users": ["--users", str(users)],
        "scrypt": [f"--users={users}"],
        "credential": [],
    }
    if request.param == "scrypt":
        users.write_bytes(scrypt_line(b"bob", b"x") + scrypt_line(ALICE, b"secret"))
    credentials_directory = tmp_path if request.param == "credential" else tmp_path / "none"
    return [*LOCAL, *options[request.param]], credentials_directory


LOGINS: dict[str, tuple[bytes, bytes]] = {
    "right": (PASSWORD_GREETING + credentials(ALICE, b"secret"), b"\5\2\1\0"),
    "among other methods": (b"\5\4\0\x80\2\1" + credentials(ALICE, b"secret"), b"\5\2\1\0"),
    "wrong password": (PASSWORD_GREETING + credentials(ALICE, b"secre"), b"\5\2\1\1"),
    "longer password": (PASSWORD_GREETING + credentials(ALICE, b"secret2"), b"\5\2\1\1"),
    "no password": (PASSWORD_GREETING + credentials(ALICE, b""), b"\5\2\1\1"),
    "unknown user": (PASSWORD_GREETING + credentials(b"mallory", b"secret"), b"\5\2\1\1"),
    "no user": (PASSWORD_GREETING + credentials(b"", b"secret"), b"\5\2\1\1"),
    "255 bytes": (PASSWORD_GREETING + credentials(b"\n" * 255, b"\xff" * 255), b"\5\2\1\1"),
    "wrong version": (PASSWORD_GREETING + b"\5\1\0", b"\5\2\1\1"),
    "method not offered": (GREETING, b"\5\xff"),
    "no methods": (b"\5\0", b"\5\xff"),
}


@pytest.mark.parametrize("login", LOGINS)
def test_logins(guarded: tuple[list[str | bytes], Path], login: str) -> None:
    command, directory = guarded
    sent, answer = LOGINS[login]
    accepted = answer == b"\5\2\1\0"
    environ = environment(CREDENTIALS_DIRECTORY=str(directory))
    with listener() as far, serving(*command, over="tcp", environ=environ) as program:
        program.client.send(sent + socks5(*far.getsockname()))
        assert program.client.read(len(answer)) == answer
        if accepted:
            assert program.client.read(4) == b"\5\0\0\1"
            accept(far).close()
        program.client.end()
        rest = program.client.rest()
        assert rest == b"" or accepted
        assert program.status == 0
    assert "secre" not in program.log
    if accepted:
        assert r"user=\xc3\xa4lice " in program.log
    elif answer == b"\5\2\1\1" and login != "wrong version":
        assert program.end == "authentication-failed"


@pytest.mark.parametrize(
    ("request_of", "code"),
    [
        (socks4("127.0.0.1", 80), 0x5D),
        (socks4("127.0.0.1", 80, user=b""), 0x5B),
        (socks4a("localhost", 80), 0x5D),
    ],
    ids=["user id", "none", "4a"],
)
def test_socks4_has_no_passwords(request_of: bytes, code: int) -> None:
    with serving(*LOCAL, "-Ume", "-Psecret") as program:
        program.client.send(request_of)
        program.client.end()
        assert program.client.rest() == bytes([0, code]) + bytes(6)
        assert program.status == 0
    assert program.end == "authentication-failed"


@pytest.mark.parametrize(
    "options",
    [
        "-U me -P SECRET",
        "-U me -PSECRET",
        "-U me -qPSECRET",
        "--auth-user=me --auth-password=SECRET",
        "--auth-user me --auth-password SECRET",
        "-U me --auth-pass=SECRET",
    ],
)
def test_a_password_is_not_in_the_process_list(options: str) -> None:
    secret = b"pass=word s\xc3\xa9cret"
    words = [os.fsencode(word).replace(b"SECRET", secret) for word in options.split()]
    with serving(*LOCAL, *words, over="tcp") as program:
        program.client.send(PASSWORD_GREETING + credentials(b"me", secret))
        assert program.client.read(4) == b"\5\2\1\0"
        shown = Path(f"/proc/{program.process.pid}/cmdline").read_bytes()
        assert secret not in shown
        assert b"--allow-local\0" in shown
        assert b"*" * len(secret) in shown


TRUSTED = {
    ("tcp", "127.0.0.0/8"): True,
    ("tcp", "10.0.0.0/8,127.0.0.1"): True,
    ("tcp", "10.0.0.0/8 ::1"): False,
    ("tcp6", "::1"): True,
    ("tcp6", "127.0.0.0/8"): False,
    ("mapped", "127.0.0.0/8"): True,
    ("mapped", "::ffff:127.0.0.1"): True,
    ("mapped", "::1"): False,
    ("unix", "0.0.0.0/0,::/0"): False,
    ("pipes", "0.0.0.0/0,::/0"): False,
}


@pytest.mark.parametrize(("over", "networks"), TRUSTED)
def test_trusted_networks(over: str, networks: str) -> None:
    trusted = TRUSTED[over, networks]
    with serving(INETD, "-Ume", "-Psecret", "-w", networks, over=over) as program:
        program.client.send(b"\5\2\2\0")
        assert program.client.read(2) == (b"\5\0" if trusted else b"\5\2")


@pytest.mark.parametrize(("over", "networks"), TRUSTED)
def test_only_trusted_networks(over: str, networks: str) -> None:
    """Without users nobody else has a way in."""
    trusted = TRUSTED[over, networks]
    answers = {b"\5\2\2\0": b"\5\0" if trusted else b"\5\xff", socks4("127.0.0.1", 80): REJECTED}
    for sent, answer in answers.items():
        with serving(INETD, "-w", networks, over=over) as program:
            program.client.send(sent)
            if program.client.socket is not None:
                program.client.end()
            assert program.client.read(len(answer)) == answer
            program.client.close()
            assert program.status == (trusted and answer == REJECTED)
        assert (program.end == "client-refused") is not trusted


def test_a_trusted_client_needs_no_password_in_socks4() -> None:
    with listener() as far, serving(*LOCAL, "-Ua", "-Pb", "-w127.0.0.1", over="tcp") as program:
        program.client.send(socks4(*far.getsockname()))
        assert program.client.read(8)[:2] == b"\0\x5a"
        accept(far).close()


# What cannot be

USAGE: dict[str, tuple[list[str | bytes], str]] = {
    "argument": (["example.org"], "see --help"),
    "argument behind an option": (["-q", "extra"], "see --help"),
    "unknown long option": (["--bogus"], "there is no option --bogus; see --help"),
    "unknown short option": (["-z"], "there is no option -z; see --help"),
    "missing argument": (["--users"], "--users requires argument"),
    "argument of a flag": (["--quiet=yes"], "--quiet"),
    "both families": (["-4", "-6"], "-4 and -6 exclude each other"),
    "user only": (["-U", "me"], "-U and -P go together"),
    "password only": (["-P", "x"], "-U and -P go together"),
    "empty user": (["-U", "", "-P", "x"], "1 to 255 bytes"),
    "empty password": (["-U", "me", "-P", ""], "1 to 255 bytes"),
    "long password": (["-U", "me", "-P", "x" * 256], "1 to 255 bytes"),
    "two sets of users": (["-Ume", "-Px", "--users=/dev/null"], "exclude each other"),
    "once without users": (["-1"], "-1 is for when there are users; use --users"),
    "once with trust alone": (["-1", "-w127.0.0.1"], "-1 is for when there are users"),
    "empty state": (["-1", "-Ume", "-Px", "--state="], "--state is empty; name a directory"),
    "state nowhere": (["-1Ume", "-Px", "--state=/no/such"], "make it, or give another directory"),
    "state in the open": (["-1Ume", "-Px", "--state=/tmp"], "/tmp is open to others"),
    "once for no time": (["-1", "-Ume", "-Px", "--auth-once-ttl=0"], "is not a time"),
    "no network": (["-Ume", "-Px", "-w", "home"], "write ADDRESS or ADDRESS/BITS"),
    "host bits": (["-Ume", "-Px", "-w", "10.1.2.3/8"], "did you mean 10.0.0.0/8?"),
    "prefix": (["-Ume", "-Px", "-w", "10.0.0.0/33"], "write 0 to 32"),
    "prefix of 5000 digits": (["-Ume", "-Px", "-w", f"::/{'1' * 5000}"], "::/1111"),
    "bind address": (["-b", "localhost"], "give IPv4 or IPv6 in full"),
    "interface": (["-B", "much-too-long-a-name"], "not an interface"),
    "mark": (["-m", "red"], "is not a number"),
    "mark too large": (["-m", "0x100000000"], "is too large; give 0 to 4294967295"),
    "negative mark": (["--mark=-1"], "is too small; give 0 to"),
    "time": (["--idle-timeout=soon"], "is not a time"),
    "no time": (["--handshake-timeout=0"], "is not a time"),
    "negative time": (["--connect-timeout=-1"], "is not a time"),
    "not a number": (["--dial-timeout=nan"], "is not a time"),
    "endless": (["--half-close-timeout=inf"], "is not a time"),
    "a newline": (["--idle-timeout=1\n2"], "is not a time"),
    "not UTF-8": ([b"--mark=\xff"], "is not a number"),
}


@pytest.mark.parametrize("what", USAGE)
def test_wrong_usage(what: str) -> None:
    arguments, message = USAGE[what]
    ended = run(INETD, *arguments, stdin=GREETING)
    assert (ended.status, ended.output) == (100, b"")
    [line] = ended.log.splitlines()
    assert line.startswith("socks-inetd: ") and message in line


@pytest.mark.parametrize("option", ["-q", "-v", "-b127.0.0.1", "-m1", "-w::1", "-Ux"])
def test_a_known_option_is_not_called_unknown(option: str) -> None:
    assert "there is no option" not in run(INETD, option, "extra").log


FILES: dict[str, tuple[str, bytes, str]] = {
    "word": ("rules", b"permit all\n", ":1: the line is not a rule"),
    "second line": ("rules", b"deny *\nallow\n", ":2: the line is not a rule"),
    "network": ("rules", b"allow 10.0.0.1/8\n", ":1: '10.0.0.1/8' has host bits set"),
    "name": ("rules", b"allow *.org\n", ":1: '*.org' is no network and no name"),
    "port": ("rules", b"\n\nallow * http\n", ":3: 'http' is not a port"),
    "port too large": ("rules", b"allow * 80-65536\n", ":1: '80-65536' is not a range"),
    "port of 5000 digits": ("rules", b"deny * " + b"1" * 5000, ":1: "),
    "not UTF-8": ("rules", b"\xff\n", " is not UTF-8 text"),
    "no user": ("users", b"", ": there is no user"),
    "only comments": ("users", b"# nobody yet\n\n", ": there is no user"),
    "no password": ("users", b"alice\n", ":1: the line is not NAME:PASSWORD"),
    "empty password": ("users", b"a:b\nalice:\n", ":2: the line is not NAME:PASSWORD"),
    "twice": ("users", b"alice:a\nalice:b\n", ":2: the user is named twice"),
    "long name": ("users", b"a" * 256 + b":x\n", ":1: the name is longer than 255 bytes"),
    "hash": ("users", b"alice:$scrypt$ln=14\n", ":1: the hash is not of the form"),
    "costly hash": ("users", b"a:$scrypt$ln=30,r=8,p=1$YWJj$YWJj\n", ":1: the scrypt param"),
    "too large": ("users", b"#" * (5 << 20), " is larger than"),
}


@pytest.mark.parametrize("what", FILES)
def test_a_bad_file(tmp_path: Path, what: str) -> None:
    """It is named, with its line, and nobody is served."""
    option, content, message = FILES[what]
    file = tmp_path / "file"
    file.write_bytes(content)
    ended = run(INETD, f"--{option}={file}", stdin=GREETING)
    assert (ended.status, ended.output) == (100, b"")
    [line] = ended.log.splitlines()
    assert line.startswith(f"socks-inetd: {file}{message}")


@pytest.mark.parametrize(
    ("content", "status"),
    [(None, 0), (b"", 100), (b"\n", 100), (b"# comment\n", 100), (b"alice\n", 100)],
    ids=["missing", "empty", "an empty line", "only a comment", "no password"],
)
def test_credentials_directory(tmp_path: Path, content: bytes | None, status: int) -> None:
    """No such file means no users; one with nobody in it must not let everybody in."""
    if content is not None:
        (tmp_path / "users").write_bytes(content)
    environ = environment(CREDENTIALS_DIRECTORY=str(tmp_path))
    ended = run(INETD, stdin=GREETING, env=environ)
    assert (ended.status, ended.output) == (status, b"\5\0" if status == 0 else b"")


def test_a_credential_that_cannot_be_read_lets_nobody_in(tmp_path: Path) -> None:
    (tmp_path / "users").symlink_to("/no/such")
    dangling = run(INETD, stdin=GREETING, env=environment(CREDENTIALS_DIRECTORY=str(tmp_path)))
    assert (dangling.status, dangling.output) == (111, b"")
    closed = ("setpriv", "--reuid=65534", "--clear-groups", INETD)
    tmp_path.chmod(0o700)
    environ = environment(CREDENTIALS_DIRECTORY=str(tmp_path))
    unreadable = run(*closed, stdin=GREETING, env=environ)
    assert (unreadable.status, unreadable.output) == (111, b"")


@pytest.mark.parametrize("option", ["--rules=", "--users=", "-b", "-B", "-m"])
def test_an_empty_argument_is_not_left_out(option: str) -> None:
    """As from a shell variable that is not set."""
    ended = run(INETD, *([option] if "=" in option else [option, ""]), stdin=GREETING)
    assert (ended.status, ended.output) == (100, b"")


# Where addresses that have authenticated are kept

NOBODY = "65534"
ONCE = [INETD, "-1", "-Ume", "-Psecret"]
STATES: dict[str, tuple[list[str], dict[str, str]]] = {
    "option": (["--state={}/option"], {"STATE_DIRECTORY": "{}/state"}),
    "state": ([], {"STATE_DIRECTORY": "{}/state:{}/2nd", "RUNTIME_DIRECTORY": "{}/runtime"}),
    "runtime": ([], {"RUNTIME_DIRECTORY": "{}/runtime:{}/2nd", "XDG_RUNTIME_DIR": "{}"}),
    "muonsocks": ([], {"STATE_DIRECTORY": "", "XDG_RUNTIME_DIR": "{}"}),
}


@pytest.mark.parametrize("expected", STATES)
def test_the_state_directory(expected: str) -> None:
    """The option, then what systemd has made (the first of several), then the user's own."""
    arguments, variables = STATES[expected]
    with tempfile.TemporaryDirectory() as place:
        command = ONCE
        if os.geteuid() == 0:
            shutil.chown(place, int(NOBODY), int(NOBODY))
            command = ["setpriv", "--reuid", NOBODY, "--clear-groups", *ONCE]
        command = command + [argument.format(place) for argument in arguments]
        environ = {name: text.format(place, place) for name, text in variables.items()}
        ended = run(*command, stdin=GREETING, env=environment(**environ))
        assert (ended.status, ended.output) == (0, b"\5\xff"), ended.log
        assert [str(found) for found in Path(place).rglob("*")] == [
            f"{place}/{expected}",
            f"{place}/{expected}/auth-once",
        ]


def test_nowhere_to_keep_state() -> None:
    command = ONCE if os.geteuid() else ["setpriv", "--reuid", NOBODY, "--clear-groups", *ONCE]
    ended = run(*command, stdin=GREETING)
    assert (ended.status, ended.output) == (100, b"")
    assert "nothing says where -1 is to keep addresses; give a directory, --state=DIR" in ended.log


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has one that nobody has to name")
def test_the_state_directory_of_root(tmp_path: Path) -> None:
    script = 'mount --bind "$0" /run && exec "$@"'
    environ = environment(XDG_RUNTIME_DIR="/run/user")
    ended = run("unshare", "-m", "sh", "-c", script, tmp_path, *ONCE, stdin=GREETING, env=environ)
    assert (ended.status, ended.output) == (0, b"\5\xff"), ended.log
    assert (tmp_path / "muonsocks" / "auth-once").is_dir()


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version(option: str) -> None:
    ended = run(INETD, option)
    assert (ended.status, ended.log) == (0, "")
    first = {"--help": b"Serve one SOCKS client", "--version": b"socks-inetd "}[option]
    assert ended.output.startswith(first)
