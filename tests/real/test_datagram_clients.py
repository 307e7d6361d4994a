"""Clients' datagrams as people send them: by node-socks, perl, PySocks, DNS, DTLS with socksify."""

import contextlib
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import clients
import pytest
from clients import NAME, SECONDS, TARGET, TARGET6, Network

PYTHON = "/usr/bin/python3"
PROXY, PROXY6 = ("127.0.0.1", 1080), ("::1", 1080)
DNS = (TARGET, 53)
RESOLVES, ADDRESS = "answer.example", "198.51.100.9"

EACH_SERVER = [
    pytest.param(server, marks=pytest.mark.xdist_group(f"datagrams of {server}"))
    for server in clients.SERVERS
]


class Far:
    """Sends back what it gets, with a word in front."""

    def __init__(self, net: Network, host: str) -> None:
        self._socket = net.socket((host, 0), datagrams=True)
        self.host = host
        self.port: int = self._socket.getsockname()[1]
        self._net = net
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            data, source = self._socket.recvfrom(1 << 16)
            if data == b"stop":
                return
            self._socket.sendto(b"answer to " + data, source)

    def close(self) -> None:
        with self._net.socket((self.host, 0), datagrams=True) as last:
            last.sendto(b"stop", self._socket.getsockname())
        self._thread.join()
        self._socket.close()


class Datagrams:
    """A network with a proxy, what answers datagrams there, and a name server."""

    def __init__(self, net: Network, far: dict[str, Far]) -> None:
        self.net = net
        self.far = far

    def script(self, *command: str, **variables: str) -> str:
        """Run a client, and give what it says."""
        words = [f"{name}={value}" for name, value in variables.items()]
        done = self.net.run(["env", *words, *command])
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()


@pytest.fixture(scope="module", params=EACH_SERVER)
def datagrams(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Datagrams]:
    if reason := clients.missing("unshare", "nsenter", "ip", "systemd-socket-activate"):
        pytest.skip(reason)
    work = tmp_path_factory.mktemp("datagrams")
    with clients.network(work) as net, contextlib.ExitStack() as stack:
        for at in (PROXY, PROXY6):
            net.proxy(stack, request.param, at, ["-v"])
        far = {host: Far(net, host) for host in (TARGET, TARGET6)}
        for one in far.values():
            stack.callback(one.close)
        if dnsmasq := clients.which("dnsmasq"):
            options = "--keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts"
            command = [dnsmasq, *options.split(), "--bind-interfaces", "--user=root"]
            command += [f"--listen-address={TARGET}", f"--address=/{RESOLVES}/{ADDRESS}"]
            net.start(stack, [*command, "--pid-file="], DNS)
        yield Datagrams(net, far)
    assert "Traceback" not in net.log and "this is a bug" not in net.log


HOSTS = {"IPv4": (TARGET, TARGET), "IPv6": (TARGET6, TARGET6), "a name": (NAME, TARGET)}

NODE = """
const { SocksClient } = require('socks');
const [proxy, host, port] = process.argv.slice(1);
const udp = require('dgram').createSocket(proxy.includes(':') ? 'udp6' : 'udp4');
const client = new SocksClient({
    proxy: {host: proxy, port: 1080, type: 5}, command: 'associate',
    destination: {host: '0.0.0.0', port: 0},
});
client.on('established', info => {
    const data = Buffer.from('question'), there = {host, port: Number(port)};
    const frame = SocksClient.createUDPFrame({remoteHost: there, data, frameNumber: 0});
    udp.on('message', message => {
        const answer = SocksClient.parseUDPFrame(message);
        console.log(`${answer.data} from ${answer.remoteHost.host} ${answer.remoteHost.port}`);
        process.exit(0);
    });
    udp.send(frame, info.remoteHost.port, info.remoteHost.host);
});
client.on('error', error => { console.error(error); process.exit(1); });
client.connect();
"""


@pytest.mark.parametrize("proxy", [PROXY, PROXY6], ids=["over IPv4", "over IPv6"])
@pytest.mark.parametrize("how", ["IPv4", "a name"])
def test_node_socks(datagrams: Datagrams, proxy: tuple[str, int], how: str) -> None:
    if reason := clients.missing("node"):
        pytest.skip(reason)
    if not Path("/usr/share/nodejs/socks").is_dir():
        pytest.skip("no node-socks here: tests/run installs it")
    host, target = HOSTS[how]
    port = str(datagrams.far[target].port)
    said = datagrams.script("node", "-e", NODE, proxy[0], host, port, NODE_PATH="/usr/share/nodejs")
    assert said == f"answer to question from {target} {port}\n"


PERL = """
use IO::Socket::Socks; use Socket;
my ($host, $port) = @ARGV;
my $socket = IO::Socket::Socks->new(
    UdpAddr => '0.0.0.0', UdpPort => 0, ProxyAddr => '127.0.0.1', ProxyPort => 1080,
    SocksVersion => 5) or die $SOCKS_ERROR;
my $there = $host =~ /^[0-9.]+$/ ? pack_sockaddr_in($port, inet_aton($host)) : [$host, $port];
$socket->send('question', 0, $there) or die $!;
my $from = $socket->recv(my $data, 99) or die $!;
my ($from_port, $from_host) = unpack_sockaddr_in($from);
print "$data from ", inet_ntoa($from_host), " $from_port\\n";
"""


@pytest.mark.parametrize("how", ["IPv4", "a name"])
def test_perl(datagrams: Datagrams, how: str) -> None:
    if reason := clients.missing("perl"):
        pytest.skip(reason)
    if subprocess.run(["perl", "-MIO::Socket::Socks", "-e1"], capture_output=True).returncode:
        pytest.skip("no IO::Socket::Socks here: tests/run installs it")
    host, target = HOSTS[how]
    port = str(datagrams.far[target].port)
    said = datagrams.script("perl", "-e", PERL, host, port)
    assert said == f"answer to question from {target} {port}\n"


PYSOCKS = """
import socks, sys
host, port, data = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3])
sock = socks.socksocket(type=socks.socket.SOCK_DGRAM)
sock.set_proxy(socks.SOCKS5, "127.0.0.1", 1080)
sock.settimeout(30)
sock.sendto(data, (host, port))
answer, source = sock.recvfrom(65535)
print(answer.hex(), *source)
"""


def pysocks(datagrams: Datagrams, host: str, port: int, data: bytes) -> tuple[bytes, str, str]:
    if subprocess.run([PYTHON, "-c", "import socks"], capture_output=True).returncode:
        pytest.skip(f"{PYTHON} has no socks: tests/run installs it")
    said = datagrams.script(PYTHON, "-c", PYSOCKS, host, str(port), data.hex())
    answer, source, source_port = said.split()
    return bytes.fromhex(answer), source, source_port


@pytest.mark.parametrize("how", HOSTS)
def test_pysocks(datagrams: Datagrams, how: str) -> None:
    host, target = HOSTS[how]
    port = datagrams.far[target].port
    for data in (b"question", bytes(range(256)) * 100):
        assert pysocks(datagrams, host, port, data) == (b"answer to " + data, target, str(port))


@pytest.mark.parametrize("host", [TARGET, NAME])
def test_dns(datagrams: Datagrams, host: str) -> None:
    """A question to dnsmasq, which is named by its address, or by a name that is looked up here."""
    if reason := clients.missing("dnsmasq"):
        pytest.skip(reason)
    name = b"".join(bytes([len(label)]) + label.encode() for label in RESOLVES.split("."))
    question = name + b"\0" + bytes((0, 1, 0, 1))
    query = bytes.fromhex("beef 0100 0001 0000 0000 0000") + question
    answer, source, port = pysocks(datagrams, host, 53, query)
    assert (source, port) == DNS[:1] + ("53",)
    assert answer[:2] == query[:2] and answer[3] & 15 == 0
    assert answer[12:].startswith(question)
    assert answer.endswith(bytes(map(int, ADDRESS.split("."))))


DANTE = f"""\
route {{
    from: 0.0.0.0/0 to: {TARGET}/32 via: {PROXY[0]} port = {PROXY[1]}
    protocol: tcp udp
    proxyprotocol: socks_v5
    method: none
}}
"""


def test_dtls_with_socksify(datagrams: Datagrams, tmp_path: Path) -> None:
    """A whole DTLS connection of openssl, whose socket calls dante makes SOCKS of."""
    if reason := clients.missing("openssl", "socksify"):
        pytest.skip(reason)
    configuration, key, certificate = (str(tmp_path / name) for name in ("conf", "key", "cert"))
    Path(configuration).write_text(DANTE)
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x"]
    make += ["-keyout", key, "-out", certificate]
    subprocess.run(make, check=True, capture_output=True)
    net, port = datagrams.net, 4433
    serve = ["openssl", "s_server", "-dtls1_2", "-quiet", "-accept", f"{TARGET}:{port}"]
    serve += ["-cert", certificate, "-key", key]
    ask = ["env", "SOCKS_AUTOADD_LANROUTES=no", f"SOCKS_CONF={configuration}", "socksify"]
    ask += ["openssl", "s_client", "-dtls1_2", "-quiet", "-connect", f"{TARGET}:{port}"]
    before = net.log.count("associated ")
    with running(net, serve) as server, running(net, ask) as client:
        for one, other, line in ((client, server, b"question\n"), (server, client, b"answer\n")):
            assert one.stdin and other.stdout
            one.stdin.write(line)
            one.stdin.flush()
            assert other.stdout.readline() == line
    assert net.log.count("associated ") == before + 1
    wanted = r" target=127\.0\.0\.1:[1-9]\d* relay=127\.0\.0\.1:"
    assert re.search(wanted, net.log), "dante says where it will send from"


@contextlib.contextmanager
def running(net: Network, command: list[str]) -> Iterator["subprocess.Popen[bytes]"]:
    """A program in the network, that is killed in the end."""
    process = subprocess.Popen(
        net.command(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    timer = threading.Timer(SECONDS, process.kill)  # who waits for a line then reads the end
    timer.start()
    try:
        with process:
            try:
                yield process
            finally:
                process.kill()
    finally:
        timer.cancel()
