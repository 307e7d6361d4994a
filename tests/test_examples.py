"""The examples of the README and of the manual pages run as they stand, and do what they say.

Runnable is what the README has in ```sh and ```python blocks and a page in its EXAMPLES; all of it
is either run here or named in NOT_RUN with the reason. The place is a booted systemd with nothing
but a loopback interface, into which muonsocks is installed by the README's own lines: there port
1080 is free, and the names and addresses of the examples are ours.
"""

import contextlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nspawn
import pytest
from nspawn import Machine

from muonsocks.address import Endpoint, parse_address
from muonsocks.socks.request import Command
from muonsocks.socks.rules import Rules, parse_rules

ROOT = Path(__file__).resolve().parents[1]
PYTHON = "/usr/bin/python3"
pytestmark = pytest.mark.xdist_group("examples")  # one machine serves them all

# Every line of an example that is not run, and why.
NOT_RUN = {
    r".*\bapt-get install .*": "there is no network here; tests/run installs the same packages",
    r"tests/run": "that is what runs this test",
    r"qemu-system| +-(chardev|device) ": "tests/real has a virtual machine, with such a port",
    r".*\benable --now virtio-mux-guest": "it waits for its port: real/test_virtio_mux_device.py",
    r"</?channel| +</?(source|target|reconnect|seclabel)": "there is no libvirt here",
}


# The examples


def readme_blocks(kind: str) -> list[str]:
    text = (ROOT / "README.md").read_text()
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.M | re.S)


def page_blocks(page: Path) -> list[str]:
    """What stands in .Dl lines and .Bd -literal blocks of the EXAMPLES of a page."""
    _, _, examples = page.read_text().partition("\n.Sh EXAMPLES\n")
    examples, _, _ = examples.partition("\n.Sh ")
    found = re.findall(r"^\.Dl (.*\n)|^\.Bd -literal.*\n((?s:.*?))^\.Ed$", examples, re.M)
    return [(line or block).replace(r"\e", "\\").replace(r"\&", "") for line, block in found]


EXAMPLES = {
    "README.md": readme_blocks("sh") + readme_blocks("python"),
    **{page.name: page_blocks(page) for page in sorted((ROOT / "man").iterdir())},
}
_used: set[str] = set()


def shown(source: str, words: str) -> str:
    """The one example of a source that has these words in it."""
    found = [text for text in EXAMPLES[source] if words in text]
    assert len(found) == 1, f"{words!r} is in {len(found)} examples of {source}"
    _used.add(found[0])
    return found[0]


def runnable(text: str) -> str:
    """An example without the lines that cannot be run here."""
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if not any(re.match(p, line) for p in NOT_RUN))


FIRST_COMMAND = shown("README.md", "apt-get update")
WEB_SERVER = shown("README.md", "http.server 8000 --bind")
FIRST_CURL = shown("README.md", "http://localhost:8000/")
INSTALL = shown("README.md", "pip install")
REMOVE = shown("README.md", "pip uninstall")
CONFIGURE = shown("README.md", "/etc/default/muonsocks")
PATH_OF_CLONE = shown("README.md", "PATH=$PWD/bin")
ADD_USER = shown("README.md", "getpass")
HAND_ON_USERS = shown("README.md", "muonsocks-users.conf")
LOG = shown("README.md", "journalctl -t")
POLICIES = [
    shown("README.md", "*.onion"),
    shown("socks-handshake.1", "cat > policy") + shown("socks-handshake.1", "./policy"),
]
HASHES = [shown("muonsocks.7", "getpass"), ADD_USER.partition("\n")[2].replace(">>", "#")]
TCPSERVERS = [shown("README.md", "tcpserver"), shown("muonsocks.7", "tcpserver")]
SOCATS = [shown("README.md", "socat -t"), shown("muonsocks.7", "socat -t")]
RESIDENT = shown("muonsocks.8", "muonsocks\n")
RECEIVERS = [
    shown("muonsocks.8", "--receive"),
    shown("socketbox-inetd.1", "socks-inetd &"),
]
SERVICES_WITHOUT_A_NETWORK = [
    shown("README.md", "hello.sock"),
    shown("socketbox-inetd.1", "unshare"),
]
SERVERS_WITHOUT_A_NETWORK = {
    ("files", 8091): shown("README.md", "files.sock"),
    ("server", 8088): shown("socketbox-preload.1", "server.sock"),
}
RELAY_TO_WEB = shown("socketbox-relay.1", "10.1.2.3 -p 80")
NAT64 = shown("socketbox-relay.1", "64:ff9b::/96")
RESIDENTS_WITH_USERS = [
    shown("README.md", "muonsocks --users"),
    shown("muonsocks.8", "muonsocks --users"),
    shown("muonsocks.8", "muonsocks -u"),
]
BEHIND_A_PROXY = [
    shown("README.md", "muonsocks -i 192.0.2.11"),
    shown("muonsocks.8", "muonsocks -i 192.0.2.11"),
]
IN_FRONT_OF_THREE = shown("README.md", "haproxy -db")
CONFIGURE_HAPROXY = shown("README.md", "restart haproxy")
UNDER_S6 = shown("muonsocks.8", "#!/bin/sh")
ENABLE_RESIDENT = [
    shown("README.md", "enable --now muonsocks-resident"),
    shown("muonsocks.8", "enable --now muonsocks-resident"),
]
RELOADS = [shown("README.md", "systemctl reload"), shown("muonsocks.8", "systemctl reload")]
STATUS = shown("muonsocks.8", "StatusText")
FIELDS = [shown("README.md", "SOCKS_TARGET"), shown("muonsocks.8", "SOCKS_TARGET")]
PLAIN_SERVERS = [
    shown("socks-inetd.1", "127.0.0.1:1080 socks-inetd"),
    shown("muonsocks.7", "systemd-socket-activate"),
]
FORWARDERS = [shown("README.md", ":8080"), shown("socks-relay.1", ":8080 ")]
UNIX_FORWARDER = shown("socks-relay.1", ":8081")
ALL_TO_ONE_PLACE = shown("socks-relay.1", "socks-handshake socks-relay")
POLICY_BY_USER = shown("socks-relay.1", "private.rules")
LINE_OF_REQUEST = shown("socks-handshake.1", "grep")
WITH_USERS = [
    shown("README.md", "socks-inetd --users"),
    shown("socks-inetd.1", "-w 192.0.2.0/24"),
]
CURL_WITH_PASSWORD = shown("socks-inetd.1", "alice:secret")
INETD_LINE = shown("muonsocks.7", "nowait.2000 nobody")
STATE_FOR_UNIT = shown("muonsocks.7", "StateDirectory")
STATE_FOR_INETD = shown("muonsocks.7", "useradd")
INETD_LINE_WITH_STATE = shown("muonsocks.7", "nowait.2000 muonsocks")
XINETD = shown("README.md", "xinetd")
ENABLE = shown("muonsocks.7", "--now muonsocks.socket\n")
ENABLE_RELAY = [
    shown("README.md", "systemctl enable --now muonsocks-relay.socket"),
    shown("muonsocks.7", "--now muonsocks.socket muonsocks-relay.socket"),
]
WITH_RELAY = [shown("README.md", "--relay="), shown("socks-relay.1", "--relay=")]
JOURNAL = shown("muonsocks.7", "journalctl")
WITH_RULES = shown("README.md", "deny 10.0.0.0/8  ")
THROUGH_A_PROXY = shown("README.md", "-p 1081")
WITH_WAYS = shown("README.md", "127.0.0.1:9050")
FORWARDER_THROUGH_A_PROXY = shown("README.md", ":8082")
SSH = shown("README.md", "ProxyCommand='socks-connect --proxy")
GIT = shown("README.md", "git clone")
CLIENT_PROGRAMS = [
    shown("README.md", "import create_connection"),
    shown("README.md", "await open_connection"),
    shown("README.md", "requests.get"),
]
CLIENT_PROGRAMS += [
    shown("muonsocks-client.3", "DestinationRefused"),
    shown("muonsocks-client.3", "select.select"),
    shown("muonsocks-client.3", "requests.get"),
]
DATAGRAMS = shown("muonsocks-client.3", "SOCK_DGRAM")
CLASSIC = shown("muonsocks-client.3", "Rconnect(")
UNCHANGED_PROGRAMS = [
    shown("README.md", "fetch.py"),
    shown("muonsocks-client.3", "fetch.py"),
]
SOCKSIFIED = [shown("README.md", "socksify --proxy"), shown("socksify.1", "wget")]
SEEN_ON_ITS_WAY = [shown("README.md", "socksify -v"), shown("socksify.1", "socksify -v")]
PAST_THE_PROXY = shown("socksify.1", "--direct")
MUXES = [shown("README.md", "mux.sock"), shown("virtio-mux.1", "mux.sock")]
MUX_CURLS = [shown("README.md", "curl --socks5-hostname 127.0.0.1:1080 http://www.")]
MUX_CURLS.append(shown("virtio-mux.1", "curl"))
ENABLE_MUX_HOST = [
    shown("README.md", "virtio-mux-host.socket"),
    shown("virtio-mux.1", "virtio-mux-host.socket"),
]
OWN_ADDRESS = shown("socket-query.1", "socket-query -r")
BY_LOCAL_ADDRESS = shown("socket-query.1", "socket-query -la")
FILE_RECEIVED = shown("send-receive-fd.1", "cat <&")
FILE_SENT = shown("send-receive-fd.1", "/etc/hosts")
CLIENTS_SENT = shown("send-receive-fd.1", "--inetd")
CLIENT_RECEIVED = shown("send-receive-fd.1", "exec socks-inetd")
LOG_IN = shown("socks-connect.1", "ssh -o")
CONFIGURE_SSH = shown("socks-connect.1", "~/.ssh/config")
PAGES_FETCHED = [shown("socks-connect.1", "ALL_PROXY"), shown("socks-connect.1", "sh -c")]
ADDRESS_OF_NAME = shown("socks-connect.1", "--resolve")
FILE_TO_WHO_COMES = shown("socks-connect.1", "--bind")
SITE = shown("README.md", "site.sock")
ADDRESSES = shown("README.md", "two.sock")
[EXPLAIN_ADDRESS] = re.findall("`(socketbox --explain [^`]*)`", (ROOT / "README.md").read_text())
CHECK_BOX = shown("socketbox.8", "--check")
EXPLAIN_BOX = shown("socketbox.8", "--explain")
BOX_WITHOUT_RULES = shown("socketbox.8", "-u nobody")
BOX_WITH_RULES = shown("socketbox.8", "-p 443")
ENABLE_BOX = shown("socketbox.8", "enable --now socketbox.socket")
TRY_A_RULE = shown("muonsocks.rules.5", "od -t u1")
ALLOW_LIST = shown("muonsocks.rules.5", "allow 10.1.2.3 22")
DENY_LIST = shown("muonsocks.rules.5", "deny .example.net  ")
WEB_ONLY = shown("muonsocks.rules.5", "0-79")
DNS_ONLY = shown("muonsocks.rules.5", "192.0.2.53")
WAYS = shown("muonsocks.rules.5", ".onion")


def test_every_example_is_run() -> None:
    for source, texts in EXAMPLES.items():
        for text in texts:
            assert text in _used or not runnable(text), f"{source} has an example nobody runs"


def test_what_cannot_be_run_is_there() -> None:
    lines = [line for texts in EXAMPLES.values() for text in texts for line in text.splitlines()]
    for pattern in NOT_RUN:
        assert any(re.match(pattern, line) for line in lines)


def test_packages_are_those_of_the_tests() -> None:
    known = set(re.findall(r"[\w.-]+", (ROOT / "tests/run").read_text()))
    for text in (FIRST_COMMAND, INSTALL):
        [packages] = re.findall(r"--no-install-recommends ([^'\n]*)", text)
        assert set(packages.split()) <= known


def test_every_end_is_explained() -> None:
    source = "".join(path.read_text() for path in (ROOT / "lib").rglob("*.py"))
    page = (ROOT / "man/muonsocks.7").read_text()
    _, _, listed = page.partition("A connection that has been up ends with:")
    explained = re.findall(r"^\.It Cm (\S+)$", listed.partition("\n.Ss ")[0], re.M)
    assert len(explained) == len(set(explained))
    assert set(re.findall(r'\bFinished\(\s*"(.*?)"', source)) <= set(explained)
    for end in explained:
        assert f'"{end}"' in source


# Rules, which need no machine


def permits(
    text: str, host: str, port: int, address: str = "", command: int = Command.CONNECT
) -> bool:
    """Whether rules let a client go to a host; to a name at this address."""
    packed = parse_address(address or host)
    assert packed
    rules = Rules(parse_rules(text, "example"))
    return not rules.of_address(command, Endpoint(host, port), packed).refusal


def test_allow_list() -> None:
    rules = ALLOW_LIST
    for name in ("example.com", "www.example.com", "WWW.Example.COM."):
        assert permits(rules, name, 443, "203.0.113.1")
        assert not permits(rules, name, 22, "203.0.113.1")
        assert not permits(rules, name, 443, "192.168.7.7")
        assert not permits(rules, name, 80, "fc00::7")
    assert not permits(rules, "notexample.com", 443, "203.0.113.1")
    assert permits(rules, "192.0.2.7", 22)
    assert permits(rules, "::ffff:192.0.2.7", 22)
    assert permits(rules, "any.example.org", 22, "192.0.2.7")
    assert permits(rules, "any.example.org", 22, "10.1.2.3")
    assert not permits(rules, "10.1.2.3", 80)
    assert not permits(rules, "203.0.113.1", 443)


def test_deny_list() -> None:
    rules = DENY_LIST
    assert permits(rules, "www.example.com", 80, "203.0.113.1")
    assert not permits(rules, "www.example.com", 587, "203.0.113.1")
    assert not permits(rules, "203.0.113.1", 25)
    assert not permits(rules, "example.net", 80, "203.0.113.1")
    assert not permits(rules, "www.example.com", 80, "198.51.100.1")
    assert not permits(rules, "2001:db8:bad::1", 80)
    assert permits(rules, "2001:db8::1", 80)
    assert not permits(rules, "127.0.0.1", 80)


def test_datagrams_to_a_name_server_only() -> None:
    for host, port, command, allowed in (
        ("192.0.2.53", 53, Command.ASSOCIATE, True),
        ("192.0.2.53", 54, Command.ASSOCIATE, False),
        ("192.0.2.54", 53, Command.ASSOCIATE, False),
        ("192.0.2.53", 53, Command.BIND, False),
        ("192.0.2.54", 80, Command.CONNECT, True),
    ):
        assert permits(DNS_ONLY, host, port, command=command) is allowed


def test_ways() -> None:
    rules, ways = Rules(parse_rules(WAYS, "example")), {}
    for host in ("a.onion", "www.example.com", "10.9.1.1", "192.0.2.7", "198.51.100.1"):
        end = Endpoint(host, 80)
        if end.packed is None:
            verdict = rules.of_name(Command.CONNECT, end)
        else:
            verdict = rules.of_address(Command.CONNECT, end, end.packed)
        assert verdict is not None and not verdict.refusal
        ways[host] = [str(proxy) for proxy in verdict.via]
    assert ways == {
        "a.onion": ["socks5h://127.0.0.1:9050"],
        "www.example.com": ["http://proxy.example.com:3128"],
        "10.9.1.1": ["socks5://192.0.2.1:1080", "socks5://10.8.0.1:1080"],
        "192.0.2.7": [],
        "198.51.100.1": ["http://proxy.example.com:3128"],
    }
    assert not permits(WAYS, "198.51.100.1", 80, command=Command.BIND)


def test_ports_of_the_web_only() -> None:
    rules = WEB_ONLY
    assert permits(rules, "git.example.org", 22, "203.0.113.1")
    assert not permits(rules, "example.org", 22, "203.0.113.1")
    assert not permits(rules, "203.0.113.1", 22)
    assert permits(rules, "203.0.113.1", 80) and permits(rules, "example.org", 443, "203.0.113.1")


# The machine


def needs(program: str) -> pytest.MarkDecorator:
    reason = f"no {program} here: tests/run installs it"
    return pytest.mark.skipif(not shutil.which(program), reason=reason)


CLONE = "/srv/muonsocks"
XINETD_PROGRAM = "/opt/xinetd"
NETWORKS = ("10.0.0.0/8", "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")
WWW, GATEWAY, PRIVATE = "192.0.2.80:80", "198.51.100.10:8080", "10.1.2.3:80"
HOSTS = """\
127.0.0.1 localhost
192.0.2.80 www.example.com
198.51.100.10 gateway.example.net
10.1.2.3 inside.example.com
203.0.113.1 www.example.net
"""

# Answers every request with the address it came to: over TCP, and over a unix socket.
TARGETS = """\
import socket, sys, threading

def serve(listener, name):
    while True:
        with listener.accept()[0] as client:
            client.recv(65536)
            client.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\n" + name.encode() + b"\\n")

for name in sys.argv[1:]:
    host, _, port = name.rpartition(":")
    if host:
        listener = socket.create_server((host, int(port)))
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(name)
        listener.listen()
    threading.Thread(target=serve, args=(listener, name)).start()
"""
TARGET_NAMES = [WWW, GATEWAY, PRIVATE, "192.0.2.80:25", "203.0.113.1:80", "203.0.113.1:22"]
TARGET_NAMES += ["127.0.0.1:8888", "/run/web.sock"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine into which muonsocks is installed as the README says; its socket is stopped."""
    if reason := nspawn.missing():
        pytest.skip(reason)
    if not shutil.which("curl"):
        pytest.skip("no curl here: tests/run installs it")
    for module in ("pip", "setuptools", "wheel"):
        if subprocess.run([PYTHON, "-c", f"import {module}"], capture_output=True).returncode:
            pytest.skip(f"{PYTHON} has no {module}")
    clone = tmp_path_factory.mktemp("examples") / "clone"
    ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "tests")
    shutil.copytree(ROOT, clone, ignore=ignored)
    binds = {str(clone): "/opt/clone"}
    if xinetd := shutil.which("xinetd"):
        binds[xinetd] = XINETD_PROGRAM  # it may be where the machine does not look
    with Machine(binds) as machine:
        machine.run(f"cp -r /opt/clone {CLONE}")
        for network in NETWORKS:
            machine.run(f"ip route add local {network} dev lo")
        machine.put("/etc/hosts", HOSTS)
        machine.put("/srv/targets.py", TARGETS)
        with serving(machine, f"{PYTHON} /srv/targets.py {' '.join(TARGET_NAMES)}", "web.sock"):
            paste(machine, INSTALL)
            machine.run("systemctl stop muonsocks.socket")
            yield machine


@pytest.fixture
def machine(installed: Machine) -> Machine:
    """That machine, with muonsocks unconfigured."""
    drop_ins = "/etc/systemd/system/muonsocks@.service.d"
    drop_ins += " /etc/systemd/system/muonsocks-resident.service.d"
    installed.run(f"rm -rf /etc/muonsocks /etc/default/muonsocks* {drop_ins}")
    return installed


def paste(machine: Machine, text: str, input: str = "") -> str:
    """Run the lines of an example in the clone; they succeed. Return what they print."""
    script = f"set -e; cd {CLONE}\n{runnable(text)}"
    return machine.run(script, input=input, timeout=100).stdout


@contextlib.contextmanager
def serving(machine: Machine, text: str, listens: str) -> Iterator[None]:
    """Run an example that goes on until it is ended, from when it listens (on a port, say)."""
    unit = f"example-{listens}.service"
    output = f"-p StandardOutput=truncate:/run/example-{listens}.log -p StandardError=inherit"
    path = "--setenv=PATH=/usr/local/bin:/usr/bin:/usr/sbin"
    where = f"--working-directory={CLONE}"
    command = f"/bin/sh -ec {shlex.quote(text)}"
    machine.run(f"systemd-run --quiet --unit={unit} {output} {path} {where} {command}")
    try:
        # there is no event for "somebody listens now"
        listening = f"ss -Hlntx; systemctl is-active {unit} || echo over"
        pattern = shlex.quote(f"[:/ ]{re.escape(listens)} |^over")
        machine.run(f"until ({listening}) | grep -Eq {pattern}; do sleep 0.02; done", timeout=20)
        over = machine.run(f"systemctl is-active {unit}", check=False).returncode
        assert not over, machine.run(f"cat /run/example-{listens}.log").stdout
        yield
    finally:
        machine.run(f"systemctl stop {unit}; systemctl reset-failed {unit} 2>&1", check=False)


def await_log(machine: Machine, pattern: str, command: str = "cat /run/example-1080.log") -> None:
    """Wait for a line of the log, which may come after the client has gone."""
    found = f"{command} | grep -Eq -- {shlex.quote(pattern)}"
    machine.run(f"until {found}; do sleep 0.02; done", timeout=20)


def fetch(machine: Machine, url: str, options: str = "--socks5-hostname 127.0.0.1:1080") -> str:
    """What curl gets, or what it says has gone wrong."""
    done = machine.run(f"curl -sS --max-time 20 {options} {url}", check=False)
    return (done.stderr if done.returncode else done.stdout).strip()


def test_first_command_line(machine: Machine) -> None:
    command = FIRST_COMMAND.partition("' && ")[2]
    with (
        serving(machine, WEB_SERVER.strip().removesuffix("&"), "8000"),
        serving(machine, command, "1080"),
    ):
        assert "Directory listing" in paste(machine, FIRST_CURL)
        [sample] = [block for block in readme_blocks("text") if "end=" in block]
        for line in sample.splitlines():
            await_log(machine, "^" + re.sub(r"\d+", "[0-9]+", line.replace("[", r"\[")) + "$")


def test_path_of_a_clone(machine: Machine) -> None:
    assert paste(machine, PATH_OF_CLONE + "command -v socks-inetd") == f"{CLONE}/bin/socks-inetd\n"


@pytest.mark.parametrize("text", PLAIN_SERVERS, ids=["socks-inetd.1", "muonsocks.7"])
def test_plain_server(machine: Machine, text: str) -> None:
    with serving(machine, text, "1080"):
        assert fetch(machine, "http://www.example.com/") == WWW
        assert "(2)" in fetch(machine, "http://localhost:8888/")


@pytest.mark.parametrize("text", HASHES, ids=["muonsocks.7", "README.md"])
def test_hash_of_a_password(machine: Machine, text: str) -> None:
    [line] = paste(machine, text, input="secret\n").splitlines()
    assert line.startswith("alice:$scrypt$ln=14,r=8,p=1$")
    machine.put("/run/users", f"{line}\n", mode=0o600)
    server = "systemd-socket-activate --accept --inetd -l 127.0.0.1:1080 socks-inetd --users="
    with serving(machine, f"{server}/run/users", "1080"):
        proxy = "-x socks5h://alice:{}@127.0.0.1:1080"
        assert fetch(machine, "http://www.example.com/", proxy.format("secret")) == WWW
        assert "rejected" in fetch(machine, "http://www.example.com/", proxy.format("guess"))


@pytest.mark.parametrize("text", WITH_USERS, ids=["README.md", "socks-inetd.1"])
def test_users_and_trusted_networks(machine: Machine, text: str) -> None:
    machine.put("/etc/muonsocks/users", "alice:secret\n", mode=0o600)
    with serving(machine, text, "1080"):
        assert paste(machine, CURL_WITH_PASSWORD).strip() == WWW
        assert "auth" in fetch(machine, "http://www.example.com/")
        trusted = "--interface 192.0.2.5 --socks5-hostname 192.0.2.1:1080"
        assert fetch(machine, "http://www.example.com/", trusted) == WWW


def test_resident(machine: Machine) -> None:
    with serving(machine, RESIDENT, "1080"):
        for address in ("127.0.0.1", "[::1]"):
            proxy = f"--socks5-hostname {address}:1080"
            assert fetch(machine, "http://www.example.com/", proxy) == WWW
            assert "(2)" in fetch(machine, "http://localhost:8888/", proxy)


@pytest.mark.parametrize("text", RESIDENTS_WITH_USERS, ids=["README.md", "muonsocks.8", "-u"])
def test_resident_with_users(machine: Machine, text: str) -> None:
    machine.put("/etc/muonsocks/users", "alice:secret\n", mode=0o600)
    with serving(machine, text, "1080"):
        alice = "-x socks5h://alice:secret@127.0.0.1"
        assert fetch(machine, "http://www.example.com/", alice) == WWW
        assert "auth" in fetch(machine, "http://www.example.com/")
        trusted = "--interface 192.0.2.5 --socks5-hostname 192.0.2.1:1080"
        assert fetch(machine, "http://www.example.com/", trusted) == WWW
        there = machine.run("nproc && pgrep --full --count --euid nobody muonsocks", check=False)
        cpus, _, unprivileged = there.stdout.partition("\n")
        assert unprivileged.strip() == (cpus if " -u nobody " in text else "0")


@pytest.mark.parametrize("text", BEHIND_A_PROXY, ids=["README.md", "muonsocks.8"])
def test_behind_a_proxy(machine: Machine, text: str) -> None:
    """One that says it is HAProxy, and for whom it comes."""
    machine.put("/etc/muonsocks/users", "alice:secret\n", mode=0o600)
    header = r"PROXY TCP4 203.0.113.7 192.0.2.1 4711 1080\r\n"
    greeting = r"\5\1\2\1\5alice\6secret" if "--users" in text else r"\5\1\0"
    said = header + greeting + r"\5\1\0\1\300\0\2\120\0\120"
    with serving(machine, text, "192.0.2.11:1080"):
        for source, end in (("192.0.2.1", "closed"), ("192.0.2.2", "client-refused")):
            connect = f"socat -t 20 - TCP:192.0.2.11:1080,bind={source}"
            machine.run(f"printf '{said}' | {connect} > /dev/null", check=False)
            who = "203.0.113.7:4711" if end == "closed" else source
            log = "cat /run/example-192.0.2.11:1080.log"
            await_log(machine, f"closed client={re.escape(who)}.* end={end}", log)


@needs("haproxy")
def test_haproxy_in_front_of_three(machine: Machine) -> None:
    with serving(machine, IN_FRONT_OF_THREE, "127.0.0.1:1080"):
        for host in ("127.0.0.5", "192.0.2.5"):
            options = f"--interface {host} --socks5-hostname 127.0.0.1:1080"
            assert fetch(machine, "http://www.example.com/", options) == WWW
            log = "cat /run/example-127.0.0.1:1080.log"
            await_log(machine, f"closed client={re.escape(host)}:.* end=closed", log)


@needs("haproxy")
def test_haproxy_is_configured(machine: Machine) -> None:
    """By Debian's unit; what is appended makes sense beside what Debian has there.

    Here it is on one machine with who is behind it, so that it needs an address of its own.
    """
    appended, restart = CONFIGURE_HAPROXY.splitlines()
    assert restart == "systemctl restart haproxy"
    configuration = "/etc/haproxy/haproxy.cfg"
    paste(machine, appended)
    own = "s/bind :/bind 192.0.2.1:/; s/default-server send-proxy-v2/& source 192.0.2.1/"
    machine.run(f"sed -i '{own}' {configuration}")
    assert machine.run(f"haproxy -c -f {configuration}").stderr == ""
    machine.put("/etc/muonsocks/users", "alice:secret\n", mode=0o600)
    with serving(machine, BEHIND_A_PROXY[0], "192.0.2.11:1080"):
        paste(machine, restart)
        try:
            log = "cat /run/example-192.0.2.11:1080.log"
            options = "--interface 192.0.2.5 --socks5-hostname 192.0.2.1:1080"
            options += " --proxy-user alice:secret"
            assert fetch(machine, "http://www.example.com/", options) == WWW
            await_log(machine, "closed client=192.0.2.5:.* user=alice .* end=closed", log)
        finally:
            machine.run("systemctl stop haproxy")


def test_through_a_proxy(machine: Machine) -> None:
    with (
        serving(machine, RESIDENT, "1080"),
        serving(machine, THROUGH_A_PROXY, "1081"),
        serving(machine, FORWARDER_THROUGH_A_PROXY, "8082"),
    ):
        last = "--socks5-hostname 127.0.0.1:1081"
        assert fetch(machine, "http://www.example.com/", last) == WWW
        assert "(4)" in fetch(machine, "http://nowhere.example.com/", last)
        assert fetch(machine, "http://127.0.0.1:8082/", "") == WWW
        log = "cat /run/example-1081.log"
        await_log(machine, 'connected .* via="socks5h://127.0.0.1:1080"', log)


def test_through_some_proxies(machine: Machine) -> None:
    with serving(machine, WITH_WAYS, "1080"):
        assert fetch(machine, "http://192.0.2.80/") == WWW
        for host, why in (
            ("a.onion", "127.0.0.1:9050: Connection refused"),
            ("10.9.1.1", "192.0.2.9:1080: Connection refused"),
            ("www.example.com", "proxy.example.com:3128: proxy.example.com: "),
        ):
            assert "(1)" in fetch(machine, f"http://{host}/")
            await_log(machine, f'target={host}:80 .* end=via-failed detail=".*//{why}')
        assert "(2)" in fetch(machine, "http://203.0.113.1:22/")


HOME = "export HOME=$(getent passwd 0 | cut -d: -f6)\n"
SSHD = (
    HOME
    + """\
mkdir -p /run/sshd /srv/ssh ~/.ssh
test -e /srv/ssh/host || ssh-keygen -q -t ed25519 -N '' -f /srv/ssh/host
test -e ~/.ssh/id_ed25519 || ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519
cp ~/.ssh/id_ed25519.pub /srv/ssh/authorized
echo "www.example.com $(cat /srv/ssh/host.pub)" > ~/.ssh/known_hosts
usermod -p '*' root
exec /usr/sbin/sshd -D -e -f /dev/null -h /srv/ssh/host -o ListenAddress=192.0.2.80 \\
    -o AuthorizedKeysFile=/srv/ssh/authorized -o UsePAM=no -o StrictModes=no
"""
)
GIT_DAEMON = """\
git init -q /srv/project
cd /srv/project
git -c user.name=a -c user.email=a@example.com commit -q --allow-empty -m 'the first'
exec git daemon --base-path=/srv --export-all --listen=192.0.2.80
"""


@needs("sshd")
def test_ssh_through_a_proxy(machine: Machine) -> None:
    with (
        serving(machine, RESIDENT, "1080"),
        serving(machine, SSHD, "192.0.2.80:22"),
    ):
        assert "load average" in paste(machine, SSH)
        await_log(machine, "closed .* target=www.example.com:22 ")


@needs("sshd")
def test_git_through_a_proxy(machine: Machine) -> None:
    with (
        serving(machine, RESIDENT, "1080"),
        serving(machine, SSHD, "192.0.2.80:22"),
        serving(machine, GIT_DAEMON, "192.0.2.80:9418"),
    ):
        try:
            paste(machine, GIT)
            for name in ("project", "copy"):
                said = paste(machine, f"git -C {name} log --format=%s")
                assert said == "the first\n"
        finally:
            paste(machine, "rm -rf project copy /srv/project")
        for port in (22, 9418):
            await_log(machine, f"closed .* target=www.example.com:{port} ")


@pytest.mark.parametrize("text", CLIENT_PROGRAMS, ids=range(len(CLIENT_PROGRAMS)))
def test_programs_of_the_library(machine: Machine, text: str) -> None:
    with serving(machine, RESIDENT, "1080"):
        assert WWW in paste(machine, f"{PYTHON} -", input=text)
        await_log(machine, "closed .* target=[^ ]*:80 .* end=closed")


def test_classic_sequence() -> None:
    """It is a program that real/test_client_ftp.py runs."""
    assert (ROOT / "tests/real/classic_ftp.py").read_text() == CLASSIC


@needs("dnsmasq")
def test_a_program_with_datagrams(machine: Machine) -> None:
    server = "dnsmasq -d -h -R -C /dev/null --bind-interfaces -a 192.0.2.53 -u root"
    server += " --address=/www.example.com/192.0.2.80"
    with serving(machine, RESIDENT, "1080"), serving(machine, server, "192.0.2.53:53"):
        said = paste(machine, f"{PYTHON} -", input=DATAGRAMS)
        assert said == "192.0.2.80 says 192.0.2.53\n"
        await_log(machine, "closed .* datagrams-in=1 datagrams-out=1 ")


@pytest.mark.parametrize("text", UNCHANGED_PROGRAMS, ids=["README.md", "muonsocks-client.3"])
def test_an_unchanged_program(machine: Machine, text: str) -> None:
    with serving(machine, RESIDENT, "1080"):
        assert paste(machine, text + "rm fetch.py").strip() == WWW
        await_log(machine, "closed .* target=www.example.com:80 .* end=closed")


@pytest.mark.parametrize("text", SOCKSIFIED, ids=["README.md", "socksify.1"])
@needs("wget")
def test_a_program_that_knows_nothing(machine: Machine, text: str) -> None:
    with serving(machine, RESIDENT, "1080"):
        assert paste(machine, text).strip() == WWW
        await_log(machine, "closed .* target=192.0.2.80:80 .* end=closed")  # by /etc/hosts


@pytest.mark.parametrize("text", SEEN_ON_ITS_WAY, ids=["README.md", "socksify.1"])
def test_where_programs_go(machine: Machine, text: str) -> None:
    with serving(machine, RESIDENT, "1080"):
        said = paste(machine, f"exec 2>&1\n{text}")
    assert WWW in said.splitlines()
    assert re.search(r"socksify.*: connected .*target=192.0.2.80:80 .*via=socks5h://", said)
    if "example.net" in text:
        assert "203.0.113.1:80" in said.splitlines()


def test_what_goes_past_the_proxy(machine: Machine) -> None:
    with serving(machine, RESIDENT, "1080"):
        assert paste(machine, PAST_THE_PROXY).split() == [WWW, PRIVATE]
        await_log(machine, "closed .* target=192.0.2.80:80 .* end=closed")
        assert PRIVATE not in machine.run("cat /run/example-1080.log").stdout


def test_resident_under_s6(machine: Machine) -> None:
    machine.put("/srv/run", UNDER_S6, mode=0o755)
    with serving(machine, "exec 3>/run/ready; exec /srv/run", "1080"):
        machine.run("until test -s /run/ready; do sleep 0.02; done", timeout=20)
        assert machine.run("cat /run/ready").stdout == "\n"
        trusted = "--interface 192.0.2.5 --socks5-hostname 192.0.2.1:1080"
        assert fetch(machine, "http://www.example.com/", trusted) == WWW
        stranger = "--interface 10.1.2.3 --socks5-hostname 192.0.2.1:1080"
        assert "(97)" in fetch(machine, "http://www.example.com/", stranger)


def test_rules_of_the_readme(machine: Machine) -> None:
    setting, _, server = WITH_RULES.rpartition("systemd-socket-activate")
    paste(machine, setting)
    with serving(machine, f"systemd-socket-activate{server}", "1080"):
        assert fetch(machine, "http://www.example.com/") == WWW
        assert fetch(machine, "http://192.0.2.80/") == WWW
        for url in ("http://inside.example.com/", "http://10.1.2.3/", "http://www.example.net/"):
            assert "(2)" in fetch(machine, url)
            await_log(machine, f"target={url[7:-1]}:80 reply=2 .* end=refused-by-rule")


def test_trying_a_rule(machine: Machine) -> None:
    assert paste(machine, TRY_A_RULE).split()[1:3] == ["5", "2"]


@pytest.mark.parametrize("text", POLICIES, ids=["README.md", "socks-handshake.1"])
def test_policy(machine: Machine, text: str) -> None:
    with serving(machine, text, "1080"):
        assert fetch(machine, "http://www.example.com/") == WWW
        assert fetch(machine, "http://expyuzz4.onion/", "-x socks5h://127.0.0.1") == GATEWAY
        assert fetch(machine, "http://expyuzz4.onion/", "-x socks4a://127.0.0.1") == GATEWAY
        for host in ("www.example.com", "192.0.2.80", "x.onion"):
            assert "(2)" in fetch(machine, f"telnet://{host}:25/")
        assert "91" in fetch(machine, "telnet://192.0.2.80:25/", "-x socks4a://127.0.0.1")
        await_log(machine, "target=x.onion:25 reply=2 .* end=refused-by-rule")


def test_looking_at_requests(machine: Machine) -> None:
    with serving(machine, LINE_OF_REQUEST, "1080"):
        assert fetch(machine, "http://www.example.com/", "-x socks4a://me@127.0.0.1") == WWW
        for line in ("VERSION=4a", "COMMAND=connect", "HOST=www.example.com", "PORT=80", "USER=me"):
            await_log(machine, f"^SOCKS_{line}$")


@pytest.mark.parametrize("text", FORWARDERS, ids=["README.md", "socks-relay.1"])
def test_forwarder(machine: Machine, text: str) -> None:
    with serving(machine, text, "127.0.0.1:8080"):  # GATEWAY has that port on another address
        assert fetch(machine, "http://127.0.0.1:8080/", "") == WWW
        log = "cat /run/example-127.0.0.1:8080.log"
        await_log(machine, "target=www.example.com:80 reply=- .* end=closed", log)


def test_forwarder_to_a_unix_socket(machine: Machine) -> None:
    with serving(machine, UNIX_FORWARDER, "8081"):
        assert fetch(machine, "http://127.0.0.1:8081/", "") == "/run/web.sock"


def test_all_to_one_place(machine: Machine) -> None:
    with serving(machine, ALL_TO_ONE_PLACE, "1080"):
        assert fetch(machine, "http://www.example.com/") == GATEWAY


def test_policy_by_user(machine: Machine) -> None:
    machine.put("/etc/muonsocks/users", "alice:secret\nbob:secret\n", mode=0o600)
    with serving(machine, POLICY_BY_USER, "1080"):
        alice, bob = (f"-x socks5h://{name}:secret@127.0.0.1" for name in ("alice", "bob"))
        for proxy in (alice, bob):
            assert fetch(machine, "http://www.example.com/", proxy) == WWW
            assert "(2)" in fetch(machine, "http://10.1.2.3/", proxy)
        assert fetch(machine, "--http0.9 http://203.0.113.1:22/", alice) == "203.0.113.1:22"
        assert "(2)" in fetch(machine, "http://203.0.113.1:22/", bob)


@pytest.mark.parametrize("text", WITH_RELAY, ids=["README.md", "socks-relay.1"])
def test_resident_relay(machine: Machine, text: str) -> None:
    with serving(machine, text, "1080"):
        machine.run("until test -S /run/socks-relay.socket; do sleep 0.02; done", timeout=20)
        assert fetch(machine, "http://www.example.com/") == WWW
        await_log(machine, r"socks-inetd\[[0-9]+\]: connected client=127\.0\.0\.1:[0-9]+ ")
        await_log(machine, r"socks-relay\[[0-9]+\]: closed client=127\.0\.0\.1:.* end=closed")
    machine.run("rm /run/socks-relay.socket")


@pytest.mark.parametrize("which", [0, 1], ids=["README.md", "virtio-mux.1"])
def test_a_mux_without_a_virtual_machine(machine: Machine, which: int) -> None:
    with serving(machine, MUXES[which], "1080"):
        assert paste(machine, MUX_CURLS[which]).strip() == WWW
        await_log(machine, r"virtio-mux\[[0-9]+\]: closed client=mux:0 .* end=closed")
    machine.run("rm /run/mux.sock")


@pytest.mark.parametrize("which", [0, 1], ids=["README.md", "virtio-mux.1"])
def test_socket_of_a_mux_host(machine: Machine, which: int) -> None:
    """It is where QEMU is told to connect to."""
    try:
        paste(machine, ENABLE_MUX_HOST[which])
        for source in ("README.md", "virtio-mux.1"):
            text = (ROOT / source if source == "README.md" else ROOT / "man" / source).read_text()
            [path] = set(re.findall(r"path='?(/[^,']*)", text))
            machine.run(f"test -S {path}")
    finally:
        machine.run("systemctl disable --now virtio-mux-host.socket")


def test_clients_told_where_they_come_from(machine: Machine) -> None:
    with serving(machine, OWN_ADDRESS, "8000"):
        answer = machine.run("bash -c 'cat </dev/tcp/127.0.0.1/8000'", timeout=20).stdout
        assert re.fullmatch(r"127\.0\.0\.1:\d+\n", answer)


def test_serving_by_the_local_address(machine: Machine) -> None:
    with serving(machine, BY_LOCAL_ADDRESS, "1080"):
        assert fetch(machine, "http://www.example.com/") == WWW
        other = "--socks5-hostname 192.0.2.1:1080"
        assert "(97)" in fetch(machine, "http://www.example.com/", other)


def test_a_file_that_is_passed(machine: Machine) -> None:
    with serving(machine, FILE_RECEIVED, "passed.sock"):
        assert paste(machine, FILE_SENT) == ""
        await_log(machine, "www.example.com", "cat /run/example-passed.sock.log")


def test_clients_that_are_passed(machine: Machine) -> None:
    with (
        serving(machine, CLIENT_RECEIVED, "clients.sock"),
        serving(machine, CLIENTS_SENT, "1080"),
    ):
        assert fetch(machine, "http://www.example.com/") == WWW
        await_log(
            machine, r"client=127\.0\.0\.1:.* end=closed", "cat /run/example-clients.sock.log"
        )


@pytest.mark.parametrize("text", RECEIVERS, ids=["muonsocks.8", "socketbox-inetd.1"])
def test_clients_who_are_passed(machine: Machine, text: str) -> None:
    [path] = set(re.findall(r"/run/\S+\.sock", text))
    with serving(machine, text, "1080"):
        machine.run(f"until test -S {path}; do sleep 0.02; done", timeout=20)
        assert fetch(machine, "http://www.example.com/") == WWW
        await_log(machine, r"closed client=127\.0\.0\.1:.* end=closed")


def test_relay_to_a_web_server(machine: Machine) -> None:
    with serving(machine, RELAY_TO_WEB, "127.0.0.1:8080"):
        assert fetch(machine, "http://127.0.0.1:8080/", "") == PRIVATE


def test_nat64(machine: Machine) -> None:
    relay, curl = NAT64.split(" &\n")
    try:
        with serving(machine, relay, "8064"):
            assert paste(machine, curl).strip() == PRIVATE
    finally:
        machine.run("ip route del local 64:ff9b::/96 dev lo")


@needs("tcpserver")
@pytest.mark.parametrize("text", TCPSERVERS, ids=["README.md", "muonsocks.7"])
def test_tcpserver(machine: Machine, text: str) -> None:
    with serving(machine, text, "1080"):
        assert fetch(machine, "http://www.example.com/") == WWW
        await_log(machine, r"client=127\.0\.0\.1:[0-9]+ .* end=closed")


@needs("socat")
@pytest.mark.parametrize("text", SOCATS, ids=["README.md", "muonsocks.7"])
def test_socat(machine: Machine, text: str) -> None:
    with serving(machine, text, "1080"):
        assert fetch(machine, "http://www.example.com/") == WWW
        await_log(machine, r"client=127\.0\.0\.1:[0-9]+ .* end=closed")


@needs("inetd")
def test_inetd(machine: Machine) -> None:
    [line] = [block for block in readme_blocks("text") if "nowait" in block]
    assert line == INETD_LINE
    machine.put("/etc/inetd.conf", line)
    with serving(machine, "inetd -i", "1080"):
        assert fetch(machine, "http://www.example.com/") == WWW
        await_log(machine, r"client=127\.0\.0\.1:[0-9]+ .* end=closed", "journalctl -o cat")


def one_password_is_enough(machine: Machine) -> None:
    """For all at the address that has shown it, and for no other."""
    for proxy, answer in (
        ("--socks5-hostname 127.0.0.1:1080", "auth"),
        ("-x socks5h://alice:secret@127.0.0.1", WWW),
        ("--socks5-hostname 127.0.0.1:1080", WWW),
        ("-x socks4a://127.0.0.1", WWW),
        ("--interface 127.0.0.2 --socks5-hostname 127.0.0.1:1080", "auth"),
    ):
        assert answer in fetch(machine, "http://www.example.com/", proxy).lower()


@needs("inetd")
def test_inetd_and_who_has_authenticated_once(machine: Machine) -> None:
    machine.put("/etc/muonsocks/users", "alice:secret\n", mode=0o600)
    paste(machine, STATE_FOR_INETD)
    machine.put("/etc/inetd.conf", INETD_LINE_WITH_STATE)
    try:
        with serving(machine, "inetd -i", "1080"):
            one_password_is_enough(machine)
        assert machine.run("ls /var/lib/muonsocks/auth-once").stdout == "127.0.0.1\n"
    finally:
        machine.run("rm -r /var/lib/muonsocks && userdel muonsocks")


@needs("xinetd")
def test_xinetd(machine: Machine) -> None:
    machine.run("mkdir -p /etc/xinetd.d")
    paste(machine, XINETD)
    files = "-f /etc/xinetd.d/muonsocks -pidfile /run/xinetd.pid"
    with serving(machine, f"{XINETD_PROGRAM} -dontfork {files}", "1080"):
        assert fetch(machine, "http://www.example.com/") == WWW


@contextlib.contextmanager
def unit(machine: Machine) -> Iterator[None]:
    """The installed socket unit, listening."""
    paste(machine, ENABLE)
    try:
        yield
    finally:
        machine.run("systemctl stop muonsocks.socket muonsocks-relay.socket 'muonsocks@*'")
        machine.run("systemctl stop muonsocks-relay.service")


def test_unit(machine: Machine) -> None:
    with unit(machine):
        for address in ("127.0.0.1", "[::1]"):
            proxy = f"--socks5-hostname {address}:1080"
            assert fetch(machine, "http://www.example.com/", proxy) == WWW
            assert "(2)" in fetch(machine, "http://localhost:8888/", proxy)
        for text in (LOG, JOURNAL):
            lines = r"client=127\.0\.0\.1:[0-9]+ .*target=www.example.com:80 .*end=closed"
            await_log(machine, lines, text.strip())


@pytest.mark.parametrize("text", ENABLE_RELAY, ids=["README.md", "muonsocks.7"])
def test_unit_with_relay(machine: Machine, text: str) -> None:
    with unit(machine):
        paste(machine, text)
        closed = r"grep -c 'socks-relay\[[0-9]*\]: closed client=127.0.0.1:.* end=closed'"
        count = f"{JOURNAL.strip()} | {closed}"
        before = int(machine.run(count, check=False).stdout)
        # The first client keeps its connection to itself if the relay takes its time to start.
        assert fetch(machine, "http://www.example.com/") == WWW
        await_log(machine, "^active$", "systemctl is-active muonsocks-relay.service")
        assert fetch(machine, "http://www.example.com/") == WWW
        await_log(machine, "^1$", f"echo $(( $({count}) > {before} ))")


def test_unit_with_options_and_users(machine: Machine) -> None:
    paste(machine, CONFIGURE)
    paste(machine, ADD_USER, input="secret\n")
    with unit(machine):
        assert "(97)" in fetch(machine, "http://www.example.com/")  # nobody, until it is told
    paste(machine, HAND_ON_USERS)
    with unit(machine):
        alice = "-x socks5h://alice:secret@127.0.0.1"
        assert fetch(machine, "http://www.example.com/", alice) == WWW
        assert "(2)" in fetch(machine, "telnet://www.example.com:25/", alice)
        assert "auth" in fetch(machine, "http://www.example.com/")
    assert machine.run("stat -c %a /etc/muonsocks/users").stdout == "600\n"


def test_unit_and_who_has_authenticated_once(machine: Machine) -> None:
    machine.put("/etc/default/muonsocks", "MUONSOCKS_OPTIONS=-1\n")
    machine.put("/etc/muonsocks/users", "alice:secret\n", mode=0o600)
    paste(machine, HAND_ON_USERS)
    paste(machine, STATE_FOR_UNIT)
    with unit(machine):
        one_password_is_enough(machine)
    with unit(machine):
        assert fetch(machine, "http://www.example.com/") == WWW
    assert machine.run("ls /var/lib/muonsocks/auth-once").stdout == "127.0.0.1\n"


@pytest.mark.parametrize("text", ENABLE_RESIDENT, ids=["README.md", "muonsocks.8"])
def test_resident_unit(machine: Machine, text: str) -> None:
    since = machine.run("date +@%s.%6N").stdout.strip()
    paste(machine, text)
    try:
        assert machine.run("systemctl is-active muonsocks.socket", check=False).returncode != 0
        assert fetch(machine, "http://www.example.com/") == WWW
        paste(machine, CONFIGURE)
        machine.run("systemctl restart muonsocks-resident.service")
        assert "(2)" in fetch(machine, "telnet://www.example.com:25/")
        machine.put("/etc/muonsocks/rules", "deny www.example.com\n")
        for reload in RELOADS:
            paste(machine, reload)
        await_log(machine, "^reloaded", f"journalctl --since={since} -o cat")
        assert "(2)" in fetch(machine, "http://www.example.com/")
        assert "connections: " in paste(machine, STATUS)
        for find in FIELDS:
            await_log(machine, "connected client=.*www.example.com", find.splitlines()[0])
        assert "target=www.example.com:80 reply=2" in paste(machine, FIELDS[1])
    finally:
        machine.run("systemctl disable --now muonsocks-resident.socket")


def test_resident_unit_with_users(machine: Machine) -> None:
    paste(machine, ADD_USER, input="secret\n")
    paste(machine, HAND_ON_USERS)
    paste(machine, ENABLE_RESIDENT[0])
    try:
        alice = "-x socks5h://alice:secret@127.0.0.1"
        assert fetch(machine, "http://www.example.com/", alice) == WWW
        assert "auth" in fetch(machine, "http://www.example.com/")
    finally:
        machine.run("systemctl disable --now muonsocks-resident.socket")


def test_unit_with_a_policy(machine: Machine) -> None:
    setting, _, _ = POLICIES[0].rpartition("systemd-socket-activate")
    paste(machine, f"{setting}install -D -t /etc/muonsocks policy")
    [drop_in] = readme_blocks("ini")
    machine.put("/etc/systemd/system/muonsocks@.service.d/override.conf", drop_in)
    with unit(machine):
        assert fetch(machine, "http://www.example.com/") == WWW
        assert fetch(machine, "http://expyuzz4.onion/", "-x socks5h://127.0.0.1") == GATEWAY
        assert "(2)" in fetch(machine, "telnet://www.example.com:25/")


RECEIVER = """
import os, socket
there = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
if os.path.exists("/run/receiver.sock"):
    os.unlink("/run/receiver.sock")
there.bind("/run/receiver.sock")
os.chmod("/run/receiver.sock", 0o666)
while True:
    _, [fd], _, _ = socket.recv_fds(there, 1, 1)
    with socket.socket(fileno=fd) as conn:
        conn.recv(4096)
        text = "{} of {}".format(conn.getpeername()[0], conn.getsockname()[1]).encode()
        conn.sendall(b"HTTP/1.0 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(text) + text)
        conn.recv(1)
"""
BOX_RULES = """
rule-set:0
ip:192.0.2.1 port:80 jump-unix:/run/receiver.sock
port:443 jump-unix:/run/receiver.sock
"""


@pytest.mark.parametrize("text", SERVICES_WITHOUT_A_NETWORK, ids=["README.md", "inetd.1"])
def test_a_program_without_a_network(machine: Machine, text: str) -> None:
    with serving(machine, text, "8023"):
        machine.run("until test -S /run/hello.sock; do sleep 0.02; done", timeout=20)
        hello = "telnet://127.0.0.1:8023/"
        assert fetch(machine, hello, "--interface 127.0.0.5") == "you are 127.0.0.5"


def test_a_service_without_a_network(machine: Machine) -> None:
    with serving(machine, SITE, "8090"):
        machine.run("until test -S /run/site.sock; do sleep 0.02; done", timeout=20)
        listing = "curl --retry 20 --retry-delay 1 --retry-all-errors -sS http://192.0.2.1:8090/"
        assert "Directory listing" in machine.run(listing, timeout=60).stdout


@pytest.mark.parametrize(("name", "port"), SERVERS_WITHOUT_A_NETWORK)
def test_a_server_without_a_network(machine: Machine, name: str, port: int) -> None:
    with serving(machine, SERVERS_WITHOUT_A_NETWORK[name, port], str(port)):
        machine.run(f"until test -S /run/{name}.sock; do sleep 0.02; done", timeout=20)
        # With --retry: the socket is there before its server listens.
        fetch = "curl -sS --retry 20 --retry-delay 1 --retry-all-errors --interface 127.0.0.5"
        assert "Directory listing" in machine.run(f"{fetch} http://127.0.0.1:{port}/").stdout
        log = f"until grep '^::ffff:127.0.0.5 .*GET /' /run/example-{port}.log; do sleep 0.02; done"
        assert "127.0.0.5" in machine.run(log, timeout=20).stdout


def test_a_service_for_every_address(machine: Machine) -> None:
    """As pasted; and when one has gone, there is the spare one."""
    try:
        with serving(machine, ADDRESSES, "8090"):
            for number, name in ((1, "one"), (2, "two")):
                url = f"telnet://[2001:db8:1::{number}]:8090/"
                assert fetch(machine, url, "") == f"this is {name}"
            machine.run("pkill --full '[s]ocketbox-inetd /run/two.sock'")
            machine.run("while test -e /run/two.sock; do sleep 0.02; done", timeout=20)
            url = "telnet://[2001:db8:1::2]:8090/"
            assert fetch(machine, url, "") == "this is spare"
            decision = paste(machine, EXPLAIN_ADDRESS)
            assert "decision: jump-unix:/run/one.sock" in decision
    finally:
        machine.run("ip -6 route del local 2001:db8:1::/64 dev lo")


def test_socketbox(machine: Machine) -> None:
    """Checked, explained, and passing on, by options, by rules and as a unit."""
    machine.put("/srv/receiver.py", RECEIVER)
    machine.put("/etc/socketbox.conf", BOX_RULES)
    assert paste(machine, CHECK_BOX) == "good: 1 set, 2 entries, 0 warnings\n"
    decision = "decision: jump-unix:/run/receiver.sock (/etc/socketbox.conf:3)"
    assert decision in paste(machine, EXPLAIN_BOX)
    machine.run(f"systemd-run --quiet --unit=receiver unshare --net {PYTHON} /srv/receiver.py")
    machine.run("until test -S /run/receiver.sock; do sleep 0.02; done", timeout=20)
    try:
        with serving(machine, BOX_WITHOUT_RULES, "8443"):
            assert fetch(machine, "http://192.0.2.1:8443/", "") == "::ffff:192.0.2.1 of 8443"
            assert machine.run("pgrep --count --euid nobody socketbox || true").stdout != "0\n"
        with serving(machine, BOX_WITH_RULES, "443"):
            for port in (80, 443):
                answer = fetch(machine, f"http://192.0.2.1:{port}/", "--interface 192.0.2.5")
                assert answer == f"192.0.2.5 of {port}"
        drop_in = "[Socket]\nListenStream=\nListenStream=[::]:8443\n"
        machine.put("/etc/systemd/system/socketbox.socket.d/override.conf", drop_in)
        paste(machine, ENABLE_BOX)
        try:
            assert "curl: (5" in fetch(machine, "http://[::1]:8443/", "")  # an end, or a reset
            machine.put("/etc/socketbox.conf", BOX_RULES + "jump-unix:/run/receiver.sock\n")
            machine.run("systemctl reload socketbox.service")
            await_log(machine, "^reloaded", "journalctl -u socketbox.service -o cat")
            assert fetch(machine, "http://[::1]:8443/", "") == "::1 of 8443"
            assert fetch(machine, "http://192.0.2.1:8443/", "") == "::ffff:192.0.2.1 of 8443"
            show = "systemctl show --property=StatusText socketbox.service"
            await_log(machine, "passed on: 2, after a wait: 0, not passed on: 1", show)
            await_log(machine, "client=.*::1", "journalctl SOCKS_TO=/run/receiver.sock -o cat")
            main = machine.run("systemctl show --property=MainPID --value socketbox").stdout.strip()
            machine.run(f"! nsenter --net --target {main} ip -6 route get 2001:db8::1")
        finally:
            machine.run("systemctl disable --now socketbox.socket; systemctl stop socketbox")
    finally:
        machine.run("systemctl stop receiver")


def test_fetched_through_a_proxy(machine: Machine) -> None:
    with serving(machine, RESIDENT, "1080"):
        for text in PAGES_FETCHED:
            assert paste(machine, text) == f"HTTP/1.0 200 OK\n\n{WWW}\n"


@needs("sshd")
def test_logged_in_through_a_proxy(machine: Machine) -> None:
    """With options for who we are, and what is to be run there, behind what the page has."""
    with serving(machine, RESIDENT, "1080"), serving(machine, SSHD, "192.0.2.80:22"):
        said = paste(machine, LOG_IN.rstrip() + " 'echo $SSH_CLIENT'")
        assert said.startswith("192.0.2.80 ")
        configure, login = CONFIGURE_SSH.rstrip().rsplit("\n", 1)
        try:
            said = paste(machine, f"{HOME}{configure}\n{login} 'echo this is $USER'")
        finally:
            machine.run(f"{HOME}rm -f ~/.ssh/config")
        assert said == "this is root\n"
        await_log(machine, "closed .* target=www.example.com:22 ")


def test_look_up_by_a_proxy(machine: Machine) -> None:
    with serving(machine, f"{RESIDENT.rstrip()} --resolve-commands", "1080"):
        assert paste(machine, ADDRESS_OF_NAME) == "192.0.2.80\n"


def test_who_comes_to_a_proxy(machine: Machine) -> None:
    """The host comes when it has been told where to, which the first line says."""
    told = re.sub(
        r"\n +cat\n",
        r"""
    exec 3<>"/dev/tcp/$address/$port"; echo this came >&3; cat <&3
    exec 3<&-; cat
""",
        FILE_TO_WHO_COMES,
    )
    with serving(machine, f"{RESIDENT.rstrip()} --allow-local", "1080"):
        assert told != FILE_TO_WHO_COMES
        said = paste(machine, f"exec bash -ec {shlex.quote(told)}")
        first, *others = said.splitlines()
        assert re.fullmatch(r"connect to [\d.]+, port \d+", first)
        assert "\n".join(others) == f"{HOSTS}this came"


def test_removal(machine: Machine) -> None:
    """The last one: what it removes, the others need."""
    there = "cd /usr/local; ls bin/*socks* lib/systemd/system/muonsocks* share/man/man?/*socks*"
    machine.run(there)
    paste(machine, REMOVE)
    assert machine.run(there, check=False).stdout == ""
    assert machine.run("systemctl is-active muonsocks.socket", check=False).stdout == "inactive\n"
