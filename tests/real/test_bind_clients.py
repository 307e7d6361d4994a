"""Libraries that have BIND, as people use them; test_active_ftp.py has what BIND is for."""

import contextlib
import subprocess
from collections.abc import Iterator

import clients
import pytest
from clients import TARGET, TARGET6, Network

PROXY = ("127.0.0.1", 1080)

EACH_SERVER = [
    pytest.param(server, marks=pytest.mark.xdist_group(f"BIND of {server}"))  # a network each
    for server in ("socks-inetd", "muonsocks, 1 worker")
]


@pytest.fixture(scope="module", params=EACH_SERVER)
def net(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Network]:
    if reason := clients.missing("unshare", "nsenter", "ip", "systemd-socket-activate"):
        pytest.skip(reason)
    work = tmp_path_factory.mktemp("bind")
    with clients.network(work) as net, contextlib.ExitStack() as stack:
        net.proxy(stack, request.param, PROXY, ["-v"])
        yield net
    print(net.log)
    assert "Traceback" not in net.log and "this is a bug" not in net.log


def need(*programs: str) -> None:
    if reason := clients.missing(*programs):
        pytest.skip(reason)


# Libraries. Each says where it is waited for, in a line, and then what the peer sends it.

PERL = """
use IO::Socket::Socks ':constants';
my ($version, $proxy, $port, $host) = @ARGV;
my $sock = IO::Socket::Socks->new(
    ProxyAddr => $proxy, ProxyPort => $port, SocksVersion => $version,
    BindAddr => $host, BindPort => 21, Timeout => 30) or die $SOCKS_ERROR;
my ($there, $where) = $sock->dst;
$| = 1;
print "$there $where\\n";
# Its accept (0.74) takes SOCKS4's second reply for one of SOCKS5.
($version == 4 ? sysread($sock, my $reply, 8) == 8 : $sock->accept()) or die $SOCKS_ERROR;
while (my $line = <$sock>) { print $line; print $sock uc $line; }
"""
NODE = """
const { SocksClient } = require('socks');
const [version, proxy, port, host] = process.argv.slice(1);
const client = new SocksClient({
    proxy: { host: proxy, port: +port, type: +version }, command: 'bind', timeout: 30000,
    destination: { host, port: 21 } });
client.on('bound', info => console.log(info.remoteHost.host, info.remoteHost.port));
client.on('established', info => {
    info.socket.on('data', data => {
        process.stdout.write(data);
        info.socket.write(data.toString().toUpperCase());
    });
    info.socket.on('end', () => process.exit(0));
    info.socket.resume();
});
client.on('error', error => { console.error(error); process.exit(1); });
client.connect();
"""
LIBRARIES = {
    "IO::Socket::Socks": (["perl", "-e", PERL], ["perl", "-MIO::Socket::Socks", "-e", ""], "--"),
    "node-socks": (["node", "-e", NODE], ["node", "-e", "require('socks')"], "--"),
}


@pytest.mark.parametrize(
    ("version", "host"), [("5", TARGET), ("5", TARGET6), ("4", TARGET)], ids=["5", "IPv6", "4"]
)
@pytest.mark.parametrize("library", LIBRARIES)
def test_library(net: Network, library: str, version: str, host: str) -> None:
    command, probe, dashes = LIBRARIES[library]
    need(command[0])
    environ = ["env", "NODE_PATH=/usr/share/nodejs"]
    if subprocess.run([*environ, *probe], capture_output=True).returncode:
        pytest.skip(f"no {library} here: tests/run installs it")
    arguments = [version, PROXY[0], str(PROXY[1]), host]
    with subprocess.Popen(
        net.command([*environ, *command, dashes, *arguments]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as client:
        try:
            assert client.stdout and client.stderr
            line = client.stdout.readline().split()
            assert line and line[0].decode() == host, client.stderr.read()
            with net.socket((host, int(line[1])), connect=True) as peer:
                peer.sendall(b"hello\n")
                assert peer.recv(100) == b"HELLO\n"
            assert client.stdout.read() == b"hello\n"
            assert client.wait(clients.SECONDS) == 0
        finally:
            client.kill()
