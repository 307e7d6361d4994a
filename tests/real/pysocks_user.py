"""What programs do with PySocks, by way of requests and urllib3: python3 pysocks_user.py LIB WHERE

LIB is where muonsocks.client.pysocks is to be found, which is then the only socks there is; if it
is empty, that is PySocks. WHERE is JSON: the servers and proxies. Writes what came of all, in JSON.
"""

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

SECONDS = 30


class NoOther:
    """Finds no PySocks, wherever it is."""

    def find_spec(self, name: str, *_: object) -> None:
        assert name != "socks", "it is PySocks that is imported"


lib, where = sys.argv[1], json.loads(sys.argv[2])
if lib:
    sys.path.insert(0, lib)
    import muonsocks.client.pysocks

    sys.meta_path.insert(0, NoOther())  # type: ignore[arg-type]
    sys.modules["socks"] = muonsocks.client.pysocks

import requests  # type: ignore[import-untyped]  # noqa: E402
import urllib3  # noqa: E402
from urllib3.contrib.socks import SOCKSProxyManager  # noqa: E402

import socks  # type: ignore[import-untyped]  # noqa: E402

assert ("muonsocks" in socks.__name__) == bool(lib)
results: dict[str, Any] = {}


def digest(data: bytes) -> str:
    return f"{len(data)} {hashlib.sha256(data).hexdigest()}"


def attempt(name: str, what: Callable[[], Any]) -> None:
    """Have what comes of something among the results."""
    try:
        results[name] = what()
    except requests.RequestException as error:
        results[name] = failure(error)
    except urllib3.exceptions.HTTPError as error:
        results[name] = failure(error)


def failure(error: BaseException) -> list[str]:
    """The classes of an error and of those behind it, and what a proxy or the system has said."""
    classes = [type(error).__name__]
    while True:
        behind = getattr(error, "reason", None) or (error.args and error.args[0])
        if not isinstance(behind, Exception):
            break
        error = behind
        classes.append(type(error).__name__)
    return [*classes, *re.findall(r": (0x\w\w: .*|\[Errno 111\] .*)", str(error))]


@contextmanager
def session(proxy: str) -> Iterator[Any]:
    with requests.Session() as one:
        one.trust_env = False
        one.proxies = {"http": proxy, "https": proxy}
        one.verify = where["certificate"]
        yield one


def get(proxy: str, url: str, seconds: float = SECONDS) -> Any:
    with session(proxy) as one:
        answer = one.get(url, timeout=seconds)
        return [answer.status_code, digest(answer.content)]


def kept_alive(proxy: str, url: str) -> int:
    """On how many connections ten requests were."""
    with session(proxy) as one:
        return len({one.get(url, timeout=SECONDS).headers["X-Peer"] for _ in range(10)})


def upload(proxy: str, url: str) -> str:
    with session(proxy) as one:
        return str(one.put(url, data=bytes(1_000_000), timeout=SECONDS).text)


def pool(proxy: str, url: str) -> Any:
    """Get a page forty times in eight threads, over at most three connections."""
    manager = SOCKSProxyManager(proxy, maxsize=3, block=True)

    def one(_: int) -> tuple[str, str]:
        answer = manager.request("GET", url, timeout=SECONDS)
        return digest(answer.data), answer.headers["X-Peer"]

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(one, range(40)))
    manager.clear()
    return [sorted({page for page, _ in answers}), len({peer for _, peer in answers}) <= 3]


for name, proxy in where["proxies"].items():
    for url in where["urls"]:
        attempt(f"{name} {url}", lambda proxy=proxy, url=url: get(proxy, url))
for name, proxy, url in where["failures"]:
    attempt(name, lambda proxy=proxy, url=url: get(proxy, url, 5))
attempt("timeout", lambda: get(where["silent"], where["urls"][0], 0.2))
works, urls = where["proxies"]["socks5h"], where["urls"]
for url in urls:
    attempt(f"kept alive {url}", lambda url=url: kept_alive(works, url))
    attempt(f"upload {url}", lambda url=url: upload(works, url))
attempt("pool", lambda: pool(works, urls[0]))
nobody = SOCKSProxyManager(where["failures"][0][1], retries=False)
attempt("no retries", lambda: nobody.request("GET", urls[0]))
print(json.dumps(results))
