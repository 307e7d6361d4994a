"""Where clients may go: the table in the docstring of rules.py, case by case."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import some

from muonsocks.address import Endpoint, is_own_side, parse_address
from muonsocks.errors import UsageError
from muonsocks.socks.proxy_address import ProxyAddress
from muonsocks.socks.request import Command
from muonsocks.socks.rules import Rule, Rules, Verdict, parse_rules

CONNECT = Command.CONNECT


def refusal(rules: Rules, destination: Endpoint, address: bytes | None) -> str:
    """Why a client may not go to an address of a destination; with None, not to any of a name's."""
    if address is None:
        early = rules.of_name(CONNECT, destination)
        return "" if early is None else early.refusal
    return rules.of_address(CONNECT, destination, address).refusal


def permits(rules: Rules, destination: Endpoint, address: bytes) -> bool:
    """Whether a client may go to an address of a destination."""
    return not refusal(rules, destination, address)


def permitted(
    rules: str, host: str, address: str = "", port: int = 80, allow_local: bool = False
) -> bool:
    """Whether rules, separated by semicolons, let a client go; `host` is an address or has one."""
    packed = parse_address(address or host)
    assert packed is not None
    made = Rules(parse_rules(rules.replace(";", "\n"), "file"), allow_local)
    return permits(made, Endpoint(host, port), packed)


# Rules; what the request says, and for a name the address it has; the verdict.
TEN, V6 = "10.1.2.3", "2001:db8::1"
CASES: tuple[tuple[str, str, str, bool], ...] = (
    # no rule: everything but our own side
    ("", "192.0.2.1", "", True),
    ("", V6, "", True),
    ("", "a.test", TEN, True),
    # the request says an address: networks are asked, names are passed over, * matches
    ("deny 10.0.0.0/8", TEN, "", False),
    ("deny 10.0.0.0/8", "11.0.0.1", "", True),
    ("deny 10.1.2.3", TEN, "", False),
    ("deny 10.1.2.3", "10.1.2.4", "", True),
    ("deny 2001:db8::/32", V6, "", False),
    ("deny 0.0.0.0/0", V6, "", True),
    ("deny ::/0", V6, "", False),
    ("deny ::/0", TEN, "", True),
    ("deny 10.0.0.0/8", "::ffff:10.1.2.3", "", False),
    ("deny a.test", TEN, "", True),
    ("allow a.test; deny *", TEN, "", False),
    ("deny *", TEN, "", False),
    ("deny *", V6, "", False),
    # the request says a name: networks ask each address, names the name, * matches
    ("deny 10.0.0.0/8", "a.test", TEN, False),
    ("deny 10.0.0.0/8", "a.test", "11.0.0.1", True),
    ("deny 10.0.0.0/8", "a.test", "::ffff:10.1.2.3", False),
    ("deny a.test", "a.test", TEN, False),
    ("deny a.test", "b.test", TEN, True),
    ("deny *", "a.test", TEN, False),
    ("allow 10.0.0.0/8; deny *", "a.test", TEN, True),
    ("allow 10.0.0.0/8; deny *", "a.test", "11.0.0.1", False),
    # the first match wins
    ("allow 10.1.0.0/16; deny 10.0.0.0/8", TEN, "", True),
    ("deny 10.0.0.0/8; allow 10.1.0.0/16", TEN, "", False),
    ("allow *; deny 10.0.0.0/8", TEN, "", True),
    ("allow *; deny *", "a.test", TEN, True),
    ("allow *; deny a.test", "a.test", TEN, True),
    ("deny a.test; allow *", "a.test", TEN, False),
    ("deny a.test; allow a.test", "a.test", TEN, False),
    ("allow a.test; deny a.test", "a.test", TEN, True),
    ("allow a.test; deny .test", "a.test", TEN, True),
    ("allow a.test; deny .test", "b.test", TEN, False),
    ("allow *; deny a.test; deny 10.0.0.0/8", "a.test", TEN, True),
    # a name that is allowed passes the *, and leaves its addresses to the networks further down
    ("allow a.test; deny *", "a.test", TEN, True),
    ("allow a.test; deny *", "b.test", TEN, False),
    ("allow a.test; deny 10.0.0.0/8", "a.test", TEN, False),
    ("allow a.test; deny 10.0.0.0/8", "a.test", "11.0.0.1", True),
    ("allow a.test; deny *; deny 10.0.0.0/8", "a.test", TEN, False),
    ("allow a.test; deny .test; deny 10.0.0.0/8", "a.test", TEN, False),
    ("allow a.test; allow 10.1.0.0/16; deny 10.0.0.0/8; deny *", "a.test", TEN, True),
    ("allow a.test; deny 10.0.0.0/8; allow *", "a.test", TEN, False),
    ("allow .test; allow *; deny 10.0.0.0/8", "a.test", TEN, False),
    ("allow 10.0.0.0/8; allow a.test; deny 10.0.0.0/8", "a.test", TEN, True),
    # a suffix is the domain itself and all below
    ("deny .a.test", "a.test", TEN, False),
    ("deny .a.test", "b.a.test", TEN, False),
    ("deny .a.test", "c.b.a.test", TEN, False),
    ("deny .a.test", "ba.test", TEN, True),
    ("deny .a.test", "test", TEN, True),
    ("deny .a.test", "a.test.test", TEN, True),
    ("deny a.test", "b.a.test", TEN, True),
    ("deny test", "a.test", TEN, True),
    # neither case nor a final dot matters
    ("deny A.Test", "a.tEST", TEN, False),
    ("deny a.test", "a.test.", TEN, False),
    ("deny a.test.", "a.test", TEN, False),
    ("deny .A.TEST.", "B.a.test.", TEN, False),
    ("deny .a.test", "A.TEST.", TEN, False),
    # a name may look odd, and * is only special alone
    ("deny 0x7f.1", "0x7F.1", TEN, False),
    ("deny _a-1.test", "_a-1.test", TEN, False),
    ("deny *", "*", TEN, False),
)


@pytest.mark.parametrize(("rules", "host", "address", "verdict"), CASES)
def test_permit(rules: str, host: str, address: str, verdict: bool) -> None:
    assert permitted(rules, host, address) is verdict


@pytest.mark.parametrize(
    ("ports", "matching", "others"),
    [
        ("", (0, 1, 80, 65535), ()),
        ("80", (80,), (0, 79, 81, 8080)),
        ("80,443", (80, 443), (79, 81, 442, 444)),
        ("8000-8999", (8000, 8500, 8999), (7999, 9000)),
        ("25,8000-8001,1-2", (25, 8000, 8001, 1, 2), (0, 3, 24, 26, 7999, 8002)),
        ("7-7", (7,), (6, 8)),
        ("0-65535", (0, 65535), ()),
        ("0", (0,), (1,)),
    ],
)
@pytest.mark.parametrize("dest", ["10.0.0.0/8", "a.test", ".test", "*"])
def test_ports(dest: str, ports: str, matching: tuple[int, ...], others: tuple[int, ...]) -> None:
    rules = Rules(parse_rules(f"deny {dest} {ports}", "file"))
    destination = "a.test"
    for port in matching + others:
        end = Endpoint(destination, port)
        assert permits(rules, end, b"\x0a\0\0\1") is (port in others)
        assert bool(refusal(rules, end, None)) is (port in matching and dest != "10.0.0.0/8")


@pytest.mark.parametrize("rules", ["", "allow *", "allow .test", "allow a.test", "allow ::/0"])
@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.1.1", "::1", "64:ff9b::7f00:1"])
def test_own_side_is_closed_whatever_the_rules(rules: str, address: str) -> None:
    for host in (address, "a.test"):
        assert not permitted(rules, host, address)
        assert permitted(rules, host, address, allow_local=True)
        assert not permitted("deny *", host, address, allow_local=True)


@pytest.mark.parametrize(
    ("rules", "host", "ruled_out"),
    [
        ("", "a.test", False),
        ("deny a.test", "a.test", True),
        ("deny a.test 25", "a.test", False),
        ("deny .test", "A.TEST.", True),
        ("deny *", "a.test", True),
        ("allow a.test; deny *", "a.test", False),
        ("allow *; deny a.test", "a.test", False),
        ("deny 10.0.0.0/8; deny *", "a.test", True),
        ("allow 10.0.0.0/8; deny *", "a.test", False),
        ("allow 10.0.0.0/8 25; deny *", "a.test", True),
        ("deny 10.0.0.0/8", "a.test", False),
        # an address need not be looked up: it is refused at once
        ("deny 10.0.0.0/8", TEN, True),
        ("deny a.test; allow 10.0.0.0/8; deny *", TEN, False),
        ("", "127.0.0.1", True),
        ("", "::ffff:127.0.0.1", True),
        ("", "127.1", False),
    ],
)
def test_rule_out(rules: str, host: str, ruled_out: bool) -> None:
    made = Rules(parse_rules(rules.replace(";", "\n"), "file"))
    end = Endpoint(host, 80)
    assert bool(refusal(made, end, end.packed)) is ruled_out


OWN_SIDE = "127.0.0.1 is on this host's own side, see --allow-local"


@pytest.mark.parametrize(
    ("host", "address", "reason"),
    [
        ("a.test", None, "denied by file:2"),
        ("a.test", "192.0.2.1", "denied by file:2"),
        ("a.test", "127.0.0.1", OWN_SIDE),
        ("127.0.0.1", "127.0.0.1", OWN_SIDE),
        ("10.1.2.3", "10.1.2.3", "denied by file:4"),
        ("b.test", "10.1.2.3", "denied by file:4"),
        ("b.test", None, ""),
        ("b.test", "192.0.2.1", ""),
        ("c.test", None, ""),
        ("c.test", "10.1.2.3", "denied by file:4"),
    ],
)
def test_refusal(host: str, address: str | None, reason: str) -> None:
    """Why a destination is refused names the line, for the log."""
    made = Rules(parse_rules("# first\ndeny a.test\nallow c.test\ndeny 10.0.0.0/8", "file"))
    packed = None if address is None else parse_address(address)
    assert refusal(made, Endpoint(host, 80), packed) == reason


# Commands

BIND, ASSOCIATE, RESOLVE_PTR = Command.BIND, Command.ASSOCIATE, Command.RESOLVE_PTR


def judged(rules: str, command: int, host: str, address: str = "", port: int = 80) -> Verdict:
    made = Rules(parse_rules(rules.replace(";", "\n"), "file"))
    packed = parse_address(address or host)
    assert packed is not None
    return made.of_address(command, Endpoint(host, port), packed)


@pytest.mark.parametrize(
    ("rules", "command", "host", "denied"),
    [
        ("deny bind", BIND, TEN, True),
        ("deny bind", CONNECT, TEN, False),
        ("deny bind,associate", ASSOCIATE, TEN, True),
        ("deny bind,associate", CONNECT, TEN, False),
        ("deny bind 10.0.0.0/8", BIND, "11.0.0.1", False),
        ("deny bind 10.0.0.0/8", BIND, TEN, True),
        ("deny associate * 53", ASSOCIATE, TEN, False),
        ("deny associate * 80", ASSOCIATE, TEN, True),
        ("allow bind 10.0.0.0/8; deny bind", BIND, TEN, False),
        ("allow bind 10.0.0.0/8; deny bind", BIND, "11.0.0.1", True),
        ("allow connect; deny *", CONNECT, TEN, False),
        ("allow connect; deny *", BIND, TEN, True),
        ("deny resolve", RESOLVE_PTR, TEN, True),
        ("deny resolve-ptr", Command.RESOLVE, TEN, False),
        # a host of such a name is written with its final dot
        ("deny bind.", BIND, TEN, False),
    ],
)
def test_commands(rules: str, command: int, host: str, denied: bool) -> None:
    assert bool(judged(rules, command, host).refusal) is denied


def test_a_host_that_is_called_like_a_command() -> None:
    assert judged("deny bind.", CONNECT, "bind", TEN).refusal


@pytest.mark.parametrize(
    ("rules", "denied"),
    [
        ("", False),
        ("deny associate", True),
        ("deny *", True),
        ("deny bind", False),
        ("deny * 53", False),
        ("deny 10.0.0.0/8; deny a.test; deny associate", True),
        ("allow associate * 53; deny associate", False),
        ("allow bind; deny associate", True),
    ],
)
def test_a_command_whose_destinations_are_to_come(rules: str, denied: bool) -> None:
    made = Rules(parse_rules(rules.replace(";", "\n"), "file"))
    assert bool(made.of_command(ASSOCIATE).refusal) is denied


@pytest.mark.parametrize(
    ("rules", "way"),
    [
        ("", "socks5://usual:1080"),
        ("deny 192.0.2.1", "socks5://usual:1080"),
        ("allow 192.0.2.1", "socks5://usual:1080"),
        ("via socks5://one bind", "socks5://one:1080"),
        ("via socks5://one 192.0.2.1;deny *", "socks5://one:1080"),
        ("via socks5://one 192.0.2.1", ""),
        ("via socks5://one * 80", ""),
        ("via socks5://one connect", "socks5://usual:1080"),
        ("via direct *", ""),
        ("allow 192.0.2.1;via direct *", ""),
        ("deny *", ""),
    ],
)
def test_the_way_of_a_command_whatever_its_destinations(rules: str, way: str) -> None:
    usual = ProxyAddress.parse("socks5://usual")
    lines = rules.replace(";", "\n")
    made = Rules(parse_rules(lines, "file"), via=(usual,))
    assert ",".join(map(str, made.way_of_all(BIND))) == way


# Ways

ELSEWHERE = "via socks5://p1 "  # where names are looked up here
BEYOND = "via socks5h://p2 "  # and where not
DEFAULT = "socks5h://default"
WAYS = (
    # rules; whether there is a default; what is asked for; the name's verdict; the address's
    ("", False, "a.test", None, ""),
    ("", True, "a.test", DEFAULT, DEFAULT),
    ("", True, TEN, None, DEFAULT),
    (ELSEWHERE + "*", False, "a.test", None, "socks5://p1"),
    (BEYOND + "*", False, "a.test", "socks5h://p2", "socks5h://p2"),
    (BEYOND + "a.test", False, "a.test", "socks5h://p2", "socks5h://p2"),
    (BEYOND + "a.test", False, "b.test", None, ""),
    (BEYOND + "10.0.0.0/8", False, "a.test", None, "socks5h://p2"),
    (BEYOND + ELSEWHERE + "*", False, "a.test", None, "socks5h://p2 socks5://p1"),
    (ELSEWHERE + BEYOND + "*", False, "a.test", "socks5://p1 socks5h://p2", None),
    ("via direct a.test", True, "a.test", None, ""),
    ("via direct a.test", True, "b.test", DEFAULT, DEFAULT),
    ("via direct 10.0.0.0/8", True, "a.test", DEFAULT, ""),
    ("via direct 10.0.0.0/8", True, TEN, None, ""),
    # the first rule that matches has the say of the way, too
    ("allow a.test; " + BEYOND + "*", False, "a.test", None, ""),
    (ELSEWHERE + "a.test; allow 10.0.0.0/8", False, "a.test", None, "socks5://p1"),
    (ELSEWHERE + "a.test; deny 10.0.0.0/8", False, "a.test", None, "denied by file:2"),
    # a name that is not looked up here has no address to be asked
    ("deny 10.0.0.0/8; " + BEYOND + "*", False, "a.test", "socks5h://p2", "denied by file:1"),
    ("deny 10.0.0.0/8", True, "a.test", DEFAULT, "denied by file:1"),
    ("allow 10.0.0.0/8; deny *", True, "a.test", "denied by file:2", DEFAULT),
    ("allow 10.0.0.0/8; deny *", False, "a.test", None, ""),
    (BEYOND + "connect a.test; deny *", False, "a.test", "socks5h://p2", None),
    (BEYOND + "bind a.test; deny *", False, "a.test", "denied by file:2", None),
    (BEYOND + "a.test 443", False, "a.test", None, ""),
)


def shown(verdict: Verdict | None) -> str | None:
    if verdict is None:
        return None
    return verdict.refusal or " ".join(map(str, verdict.via)).replace(":1080", "")


@pytest.mark.parametrize(
    ("rules", "way", "way_of_all"),
    [
        ("", DEFAULT, DEFAULT),
        ("via socks5://p1 associate", "socks5://p1", "socks5://p1"),
        ("via socks5://p1 connect", DEFAULT, DEFAULT),
        ("via socks5://p1 * 53", DEFAULT, ""),
        ("deny 10.0.0.0/8; via socks5://p1 *", "socks5://p1", "socks5://p1"),
        ("via socks5h://p2 a.test; via socks5://p1 *", "socks5://p1", ""),
        ("via socks5://p1 a.test; deny *", DEFAULT, "socks5://p1"),
        ("via direct associate", "", ""),
    ],
)
def test_the_way_where_destinations_are_to_come(rules: str, way: str, way_of_all: str) -> None:
    default = (ProxyAddress.parse(DEFAULT),)
    made = Rules(parse_rules(rules.replace(";", "\n"), "file"), via=default)
    assert shown(made.of_command(ASSOCIATE)) == way
    assert shown(Verdict(via=made.way_of_all(ASSOCIATE))) == way_of_all


@pytest.mark.parametrize(("rules", "has_default", "host", "by_name", "by_address"), WAYS)
def test_ways(
    rules: str, has_default: bool, host: str, by_name: str | None, by_address: str | None
) -> None:
    default = (ProxyAddress.parse(DEFAULT),) if has_default else ()
    made = Rules(parse_rules(rules.replace(";", "\n"), "file"), via=default)
    end, packed = Endpoint(host, 80), parse_address(TEN)
    assert packed is not None
    if end.packed is None:
        assert shown(made.of_name(CONNECT, end)) == by_name
    if by_address is not None:
        assert shown(made.of_address(CONNECT, end, packed)) == by_address


@pytest.mark.parametrize(
    ("rules", "has_default", "has_ways"),
    [
        ("", False, False),
        ("deny a.test; allow *", False, False),
        ("via direct *", False, False),
        ("", True, True),
        ("via direct *", True, True),
        ("deny a.test; via socks5://p bind *", False, True),
    ],
)
def test_whether_there_are_other_ways(rules: str, has_default: bool, has_ways: bool) -> None:
    """Who has none need not look for one."""
    default = (ProxyAddress.parse(DEFAULT),) if has_default else ()
    made = Rules(parse_rules(rules.replace(";", "\n"), "file"), via=default)
    assert made.has_ways is has_ways
    assert made.usual_way == default


# Properties

ADDRESSES = [
    packed
    for text in (TEN, "10.200.0.1", "11.0.0.1", V6, "2001:db9::1", "::ffff:10.1.2.3", "127.0.0.1")
    if (packed := parse_address(text))
]
addresses = st.sampled_from(ADDRESSES)
hosts = st.sampled_from(("a.test", "b.a.test", "A.test.", "other", "0x7f.1"))
literals = st.builds(Endpoint.at, addresses, st.sampled_from((25, 80)))
named = st.builds(Endpoint, hosts, st.sampled_from((25, 80)))
network_dests = st.sampled_from(
    ("10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "0.0.0.0/0", "::/0", "2001:db8::/32")
)
name_dests = st.sampled_from(("a.test", ".a.test", ".test", "other", "*", "0x7f.1"))
actions = st.sampled_from(("allow", "deny"))
port_lists = st.sampled_from(((), (), ("80",), ("1-50",), ("25,80",)))


def rules_on(dests: st.SearchStrategy[str]) -> st.SearchStrategy[Rule]:
    return st.builds(
        lambda action, dest, ports: Rule.parse([action, dest, *ports]), actions, dests, port_lists
    )


rule_lists = st.lists(rules_on(network_dests) | rules_on(name_dests), max_size=7).map(tuple)


@some
@given(rule_lists, named | literals, st.booleans())
def test_what_is_ruled_out_is_not_permitted(
    rules: tuple[Rule, ...], destination: Endpoint, allow_local: bool
) -> None:
    made = Rules(rules, allow_local)
    mine = ADDRESSES if destination.packed is None else [destination.packed]
    if bool(refusal(made, destination, destination.packed)):
        assert not any(permits(made, destination, address) for address in mine)
    elif destination.packed is not None:
        assert permits(made, destination, destination.packed)


@some
@given(rule_lists, named, addresses)
def test_an_allowed_name_is_left_to_the_networks(
    rules: tuple[Rule, ...], destination: Endpoint, address: bytes
) -> None:
    """Nobody's name server can point an allowed name at a network that is denied."""
    allow_name = Rule.parse(["allow", destination.host])
    networks = tuple(rule for rule in rules if rule.network is not None)
    alone = permits(Rules(networks), Endpoint.at(address, destination.port), address)
    assert permits(Rules((allow_name, *rules)), destination, address) is alone


@some
@given(rule_lists, named | literals, addresses)
def test_rules_open_nothing_that_is_our_own_side(
    rules: tuple[Rule, ...], destination: Endpoint, address: bytes
) -> None:
    closed = permits(Rules(rules), destination, address)
    opened = permits(Rules(rules, allow_local=True), destination, address)
    assert closed is (opened and not is_own_side(address))


# The file


def test_a_file() -> None:
    text = """\
# who may go where
allow\t.example.com   80,443\r
  deny 10.0.0.0/8\t# the office

deny * 25 # no mail
"""
    rules = parse_rules(text, "file")
    assert [(rule.allow, rule.name, rule.ports) for rule in rules] == [
        (True, ".example.com", ((80, 80), (443, 443))),
        (False, "", ()),
        (False, "*", ((25, 25),)),
    ]
    assert [rule.network and rule.network.text for rule in rules] == [None, "10.0.0.0/8", None]
    assert parse_rules("", "file") == parse_rules("\n # \n", "file") == ()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("allow", "the line is not a rule; write allow|deny|via URL [COMMAND] [DEST [PORTS]]"),
        ("deny bind * 80 90", "the line is not a rule"),
        ("deny bind 80", "'80' is not a network"),
        ("via", "the line ends where a proxy should be"),
        ("via socks5://p via", "the line ends where a proxy should be"),
        ("via socks5://p", "the line is not a rule"),
        ("via direct", "the line is not a rule"),
        ("via proxy *", "what has no scheme is no kind of proxy; write socks5h://HOST:PORT"),
        ("via ftp://p *", "'ftp' is no kind of proxy"),
        ("via socks5://p via direct *", "what has no scheme is no kind of proxy"),
        ("via socks5://p " * 9 + "*", "there are more than 8 proxies in one chain"),
        ("permit *", "the line is not a rule"),
        ("Allow *", "the line is not a rule"),
        ("* allow", "the line is not a rule"),
        ("allow * 80 443", "the line is not a rule"),
        ("allow * 80, 443", "the line is not a rule"),
        ("allow * http", "'http' is not a port; write 80, 80,443 or 8000-8999"),
        ("allow * 80,", "'' is not a port"),
        ("allow * -80", "'-80' is not a port"),
        ("allow * 80-", "'80-' is not a port"),
        ("allow * 1-2-3", "'1-2-3' is not a port"),
        ("allow * +80", "'+80' is not a port"),
        ("allow * 8_0", "'8_0' is not a port"),
        ("allow * ٨٠", "'٨٠' is not a port"),
        ("allow * ٨٠-90", "'٨٠-90' is not a port"),
        ("allow * 80-٩٠", "'80-٩٠' is not a port"),
        ("allow * 65536", "'65536' is not a range of ports"),
        ("allow * 1-65536", "'1-65536' is not a range of ports"),
        ("allow * 443-80", "'443-80' is not a range of ports; write the lower one first"),
        ("allow 10.0.0.1/8", "'10.0.0.1/8' has host bits set; did you mean 10.0.0.0/8?"),
        ("allow 10.0.0.0/33", "'10.0.0.0/33' has no valid prefix length; write 0 to 32"),
        ("allow 2001:db8::/129", "'2001:db8::/129' has no valid prefix length; write 0 to 128"),
        ("allow 10.0.0.0/", "'10.0.0.0/' has no valid prefix length"),
        ("allow 10.0.0", "'10.0.0' is not a network; write ADDRESS or ADDRESS/BITS"),
        ("allow 127.1", "'127.1' is not a network"),
        ("allow 256.0.0.1", "'256.0.0.1' is not a network"),
        ("allow 10", "'10' is not a network"),
        ("allow a.test/8", "'a.test/8' is not a network"),
        ("allow [::1]", "'[::1]' is not a network"),
        ("allow a.test:80", "'a.test:80' is not a network"),
        ("allow *.a.test", "'*.a.test' is no network and no name; write NAME, .SUFFIX or *"),
        ("allow a*", "'a*' is no network and no name"),
        ("allow .", "'.' is no network and no name"),
        ("allow münchen.test", "'münchen.test' is no network and no name"),
        ("allow " + "n" * 256, "is no network and no name"),
    ],
)
def test_a_bad_line(line: str, reason: str) -> None:
    """File, line and reason."""
    with pytest.raises(UsageError) as caught:
        parse_rules(f"# first\n\nallow *\n{line}\ndeny *", "/etc/rules")
    assert str(caught.value).startswith("/etc/rules:4: ")
    assert reason in str(caught.value)


def test_too_many_rules() -> None:
    assert len(parse_rules("deny *\n" * 10_000, "file")) == 10_000
    with pytest.raises(UsageError, match="file:10002: there are more than 10000 rules"):
        parse_rules("deny *\n" * 10_000 + "\ndeny *", "file")


@pytest.mark.parametrize(
    "line", ["allow * " + "1" * 5000, "allow ::/" + "0" * 5000], ids=["port", "bits"]
)
def test_a_very_long_number(line: str) -> None:
    with pytest.raises(UsageError, match="file:1: "):
        parse_rules(line, "file")
