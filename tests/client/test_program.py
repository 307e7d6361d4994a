"""A program is run as python3 would run it, but for its sockets."""

import errno
import os
import signal
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from muonsocks.client.program_socket import ProgramSocket

LIB = Path(__file__).resolve().parents[2] / "lib"
PYTHON = "/usr/bin/python3"
SECONDS = 60
PROXY = "socks5h://127.0.0.1:9"

SHOW = """\
import os, sys
import __main__
print(sys.argv, __file__, __name__, __package__, __spec__ and __spec__.name, sys.path[0])
print(sorted(set(globals()) - {"__main__"}), __main__.__dict__ is globals(), __doc__)
print(type(__loader__).__name__, __builtins__ is __import__("builtins"), os.getcwd())
"""
ENDS: dict[str, str] = {
    "nothing": "",
    "an exception": "def f():\n    raise ValueError('of the program')\nf()",
    "exit": "import sys; sys.exit()",
    "exit 3": "import sys; sys.exit(3)",
    "exit words": "import sys; sys.exit('words')",
    "exit in a hurry": "import os; os._exit(7)",
    "an interrupt": "raise KeyboardInterrupt",
    "no syntax": "def f(:\n    pass",
    "a chain": "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise KeyError('x') from e",
    "its own hook": (
        "import sys\n"
        "sys.excepthook = lambda kind, value, trace: print(kind, value, trace.tb_lineno)\n"
        "raise ValueError('x')"
    ),
    "a thread that goes on": (
        "import __main__, threading, time\n"
        "def late():\n"
        "    threading.main_thread().join()\n"
        "    print('late', __main__.__dict__ is globals(), __name__)\n"
        "threading.Thread(target=late).start()\n"
    ),
    "at the exit": "import atexit\natexit.register(lambda: print('over', __name__))",
    "an exception in a thread": (
        "import threading\n"
        "thread = threading.Thread(target=lambda: 1 / 0, name='one')\n"
        "thread.start(); thread.join()"
    ),
    "pickles": (
        "import pickle\nclass C: pass\n"
        "print(type(pickle.loads(pickle.dumps(C()))) is C, C.__module__)"
    ),
    "input": "print(input(), end='')",
}


def run(
    where: Path, *words: str, ours: bool = True, options: tuple[str, ...] = (), **environ: str
) -> subprocess.CompletedProcess[str]:
    before = ["-m", "muonsocks.client"] if ours else []
    return subprocess.run(
        [PYTHON, *options, *before, *words],
        cwd=where,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(LIB), "ALL_PROXY": PROXY, **environ},
        input="a line\n",
        capture_output=True,
        text=True,
        errors="backslashreplace",
        timeout=SECONDS,
    )


def outcome(done: subprocess.CompletedProcess[str]) -> tuple[int, str, str]:
    return done.returncode, done.stdout, done.stderr


def assert_same(where: Path, *words: str, **more: Any) -> None:
    expected = outcome(run(where, *words, ours=False, **more))
    assert outcome(run(where, *words, **more)) == expected


@pytest.mark.parametrize("end", ENDS)
def test_how_it_ends(tmp_path: Path, end: str) -> None:
    (tmp_path / "p.py").write_text(ENDS[end])
    assert_same(tmp_path, "p.py")


def test_an_interrupt_is_a_signal(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text(ENDS["an interrupt"])
    assert run(tmp_path, "p.py").returncode == -signal.SIGINT


@pytest.mark.parametrize("options", [(), ("-P",), ("-O", "-W", "error")])
@pytest.mark.parametrize("form", ["p.py", "./p.py", "{}/p.py", "link.py", "sub", "sub/", "z.zip"])
def test_what_it_finds(tmp_path: Path, form: str, options: tuple[str, ...]) -> None:
    place = tmp_path / "sub"
    place.mkdir()
    for path in (tmp_path / "p.py", place / "__main__.py", place / "other.py"):
        path.write_text(SHOW)
    (tmp_path / "link.py").symlink_to(place / "other.py")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("__main__.py", SHOW)
    assert_same(tmp_path, form.format(tmp_path), "--proxy", "-m", options=options)


@pytest.mark.parametrize(
    "words",
    [
        ("-m", "module", "a", "-b"),
        ("-mmodule", "--proxy"),
        ("-m", "package"),
        ("-m", "package.inner"),
        ("-m", "nothing.here"),
        ("-m", "failing"),
    ],
)
def test_modules(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "package").mkdir()
    for name in ("module.py", "package/__main__.py", "package/inner.py"):
        (tmp_path / name).write_text(SHOW)
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "failing.py").write_text(ENDS["an exception"])
    assert_same(tmp_path, *words)


def test_all_names_of_the_class_of_sockets(tmp_path: Path) -> None:
    """There are two in the module that programs import."""
    (tmp_path / "p.py").write_text(
        "import socket\n"
        "print(socket.SocketType.__mro__[0], socket.SocketType is socket.socket)\n"
        "sock = socket.SocketType(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "print(isinstance(sock, socket.SocketType), sock.connect_ex(('192.0.2.1', 53)))\n"
    )
    status, out, problems = outcome(run(tmp_path, "p.py", ALL_PROXY="http://127.0.0.1:9"))
    assert (status, problems) == (0, "")
    assert out == f"{ProgramSocket} True\nTrue {errno.EOPNOTSUPP}\n"


# The command line and the environment


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), "there is no program to run; write python3 -m muonsocks.client"),
        (("--proxy",), "--proxy is not followed by a URL"),
        (("--proxy=",), "--proxy is not followed by a URL"),
        (("--proxy", "gopher://x", "p.py"), "'gopher' is no kind of proxy"),
        (("--proxy", PROXY), "there is no program"),
        (("-m",), "-m is not followed by a module"),
        (("-q", "p.py"), "there is no option '-q'"),
        (("absent.py",), "absent.py: No such file or directory"),
    ],
)
def test_what_is_wrong(tmp_path: Path, words: tuple[str, ...], problem: str) -> None:
    status, output, errors = outcome(run(tmp_path, *words))
    assert (status, output, errors.count("\n")) == (100, "", 1)
    assert errors.startswith("muonsocks.client: ")
    assert problem in errors


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        ({"ALL_PROXY": ""}, "there is no proxy to go through; write --proxy socks5h://HOST:PORT"),
        ({"ALL_PROXY": "direct"}, "there is no proxy to go through"),
        ({"ALL_PROXY": "x://y"}, "$ALL_PROXY: "),
    ],
)
def test_without_a_proxy_nothing_is_run(
    tmp_path: Path, environ: dict[str, str], problem: str
) -> None:
    (tmp_path / "p.py").write_text("print('run')")
    status, output, errors = outcome(run(tmp_path, "p.py", **environ))
    assert (status, output, errors.count("\n")) == (100, "", 1)
    assert problem in errors


def test_exceptions_are_no_lack_of_a_proxy(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text("print('run')")
    assert outcome(run(tmp_path, "p.py", NO_PROXY="*")) == (0, "run\n", "")


def test_help(tmp_path: Path) -> None:
    for option in ("-h", "--help"):
        status, output, errors = outcome(run(tmp_path, option, ALL_PROXY=""))
        assert (status, errors) == (0, "")
        assert "python3 -m muonsocks.client [--proxy=URL]... PROGRAM.py" in output
        assert "`" not in output  # it is for users, who have never seen the modules


def test_proxies_of_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text(
        "import os, socket, sys\n"
        "print(os.environ['all_proxy'], sys.argv)\n"
        "os.environ.clear()\n"
        "socket.socket().connect(('192.0.2.1', 80))\n"
    )
    words = ("--proxy", "socks5h://127.0.0.1:7", "--proxy=http://127.0.0.2:8", "--", "p.py", "--")
    status, output, errors = outcome(run(tmp_path, *words, all_proxy=PROXY))
    assert status == 1
    assert output == "socks5h://127.0.0.1:7 http://127.0.0.2:8 ['p.py', '--']\n"
    assert errors.endswith(
        "ProxyUnreachable: [Errno 111] socks5h://127.0.0.1:7: Connection refused\n"
    )


@pytest.mark.parametrize("words", [("--proxy", "{}"), ("--proxy={}",)])
def test_a_password_is_not_in_the_process_list(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "p.py").write_text(
        "import os\n"
        "print(open('/proc/self/cmdline').read().split(chr(0))[3:])\n"
        "print(os.environ['all_proxy'])\n"
    )
    url = "socks5h://me:s3cret@127.0.0.1:7"
    done = run(tmp_path, *(word.format(url) for word in words), "p.py", "an argument")
    shown = [word.format(url.replace("s3cret", "******")) for word in words]
    expected = f"{[*shown, 'p.py', 'an argument', '']}\n{url}\n"
    assert outcome(done) == (0, expected, "")


# What is exchanged

SOCKETS = """\
import asyncio, http.client, socket, ssl, sys, urllib.request
import muonsocks.client.program_socket as ours
assert socket.socket is socket.SocketType is ours.ProgramSocket
assert issubclass(ssl.SSLSocket, ours.ProgramSocket), ssl.SSLSocket.__mro__
assert ssl.SSLContext.sslsocket_class is ssl.SSLSocket
assert socket.gethostbyname("a.example") == "198.18.0.1"
from socket import getaddrinfo, gethostbyaddr, socket as kind
assert getaddrinfo("b.example", 80)[0][4][0] == "198.18.0.2"
assert kind is ours.ProgramSocket
a, b = socket.socketpair()
assert type(a) is kind and a.getsockname() == ""
import early
assert early.kind is kind, early.kind
assert early.look_up("c.example", 80)[0][4][0] == "198.18.0.3"
print("fine")
"""


@pytest.mark.parametrize("site", ["", "import ssl", "import asyncio, http.client, urllib.request"])
def test_what_has_been_loaded_before(tmp_path: Path, site: str) -> None:
    """By site, or a .pth file of its."""
    (tmp_path / "early.py").write_text(
        "from socket import getaddrinfo as look_up, socket as kind\nimport socket as whole\n"
    )
    (tmp_path / "sitecustomize.py").write_text(f"import early\n{site}\n")
    (tmp_path / "p.py").write_text(SOCKETS)
    done = run(tmp_path, "p.py", PYTHONPATH=f"{LIB}:{tmp_path}")
    assert outcome(done) == (0, "fine\n", "")


def test_sockets_that_have_been_derived_before(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import socket, sys\nclass Own(socket.socket): pass\nsys.modules['x'] = Own\n"
    )
    (tmp_path / "p.py").write_text("print('run')")
    status, output, errors = outcome(run(tmp_path, "p.py", PYTHONPATH=f"{LIB}:{tmp_path}"))
    assert (status, output, errors.count("\n")) == (100, "", 1)
    assert "sitecustomize is loaded already, and has sockets of its own" in errors


def test_what_a_program_is_to_find_is_not_loaded_already(tmp_path: Path) -> None:
    """What takes long to load is for who needs it."""
    (tmp_path / "p.py").write_text("import sys; print(*sys.modules)")
    loaded = set(run(tmp_path, "p.py").stdout.split())
    assert not loaded & {"asyncio", "ssl", "subprocess", "logging", "threading", "argparse"}


def test_a_fork_asks_while_another_thread_does(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text(
        "import os, socket\n"
        "ours = socket.getaddrinfo.__self__\n"
        "with ours._destinations._lock:\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        os._exit(socket.gethostbyname('a.example') != '198.18.0.1')\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert outcome(run(tmp_path, "p.py")) == (0, "0\n", "")


def test_a_python_without_some_families(tmp_path: Path) -> None:
    """Which ones there are depends on how it was built."""
    (tmp_path / "sitecustomize.py").write_text("import socket\ndel socket.AF_BLUETOOTH\n")
    (tmp_path / "p.py").write_text("print('run')")
    done = run(tmp_path, "p.py", PYTHONPATH=f"{LIB}:{tmp_path}")
    assert outcome(done) == (0, "run\n", "")
