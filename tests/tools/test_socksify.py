"""bin/socksify: its command line. What it does is in tests/intercept and tests/real."""

import errno

import pytest
from programs import PYTHON, ROOT, environment, run
from real_server import running

SOCKSIFY = str(ROOT / "bin" / "socksify")
PROXY = "--proxy=socks5h://127.0.0.1:1"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--proxy",), "--proxy requires argument; see --help"),
        (("--proxy=ftp://x", "true"), "--proxy: 'ftp' is no kind of proxy; there are socks4, "),
        ((PROXY, "--via=ftp://x", "true"), "--via: 'ftp' is no kind of proxy; there are socks4, "),
        ((PROXY, *["--via=socks5h://127.0.0.1:1"] * 16, "true"), "there are more than "),
        ((PROXY, "--mode=fast", "true"), "--mode: 'fast' is none; give one of auto, isolate, "),
        ((PROXY, "--udp=some", "true"), "--udp: 'some' is neither; give refuse or allow"),
        (
            (PROXY, "--mode=hold", "--udp=allow", "true"),
            "--udp allow is nothing for --mode hold; it takes --mode isolate",
        ),
        (
            (PROXY, "--direct=abc", "true"),
            "--direct: 'abc' is not a network; write ADDRESS or ",
        ),
        ((PROXY, "--connect-timeout=0", "true"), "--connect-timeout: '0' is not a time; "),
        (("--nosuch", "true"), "there is no option --nosuch; see --help"),
        (("true",), "there is no proxy; name it by --proxy, or in $ALL_PROXY"),
    ],
)
def test_wrong_usage(words: tuple[str, ...], problem: str) -> None:
    done = run(SOCKSIFY, *words)
    assert (done.status, done.output) == (100, b"")
    assert problem in done.log and done.log.count("\n") == 1


@pytest.mark.parametrize("way", ["--proxy", "ALL_PROXY"])
def test_one_proxy_leads_to_the_next(way: str) -> None:
    with running() as first, running() as second:
        options = [f"--via={second.url}"]
        environ = environment()
        if way == "ALL_PROXY":
            environ["ALL_PROXY"] = first.url
        else:
            options.append(f"--proxy={first.url}")
        code = (
            "import socket, sys; sys.exit(socket.socket().connect_ex(('www.example.invalid', 80)))"
        )
        words = (*options, "--mode=async", PYTHON, "-IS", "-c", code)
        assert run(SOCKSIFY, *words, env=environ).status == errno.EHOSTUNREACH
        first.await_log(f"target={':'.join(map(str, second.address))} ")
        second.await_log("target=www.example.invalid:80 ")


@pytest.mark.parametrize("name", ["all_proxy", "ALL_PROXY", "SOCKS5_SERVER", "SOCKS_SERVER"])
def test_the_proxy_may_be_in_the_environment(name: str) -> None:
    done = run(SOCKSIFY, "true", env=environment(**{name: "socks5h://127.0.0.1:1"}))
    assert (done.status, done.log) == (0, "")


@pytest.mark.parametrize(("options", "said"), [(("-v",), 1), ((), 0), (("-q",), 0)])
def test_which_mode_it_is_is_said_if_asked(options: tuple[str, ...], said: int) -> None:
    done = run(SOCKSIFY, PROXY, "--mode=async", *options, "true")
    assert done.log.count(" mode=async\n") == done.log.count("\n") == said
