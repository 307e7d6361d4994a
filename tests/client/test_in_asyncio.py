"""Errands inside of asyncio."""

import asyncio
import gc
import socket
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from ends import PATIENCE, tcp_pair
from programs import closed_port
from real_server import Server
from relays import Proxy

from muonsocks.client import (
    DestinationRefused,
    ProxyTimedOut,
    ProxyUnreachable,
    in_asyncio,
    open_connection,
    open_socket,
)
from muonsocks.client.errand import Granted
from muonsocks.errors import UsageError
from muonsocks.net.loop import Loop
from muonsocks.net.task import Waitable

THERE = ("192.0.2.1", 80)
CLOSED = closed_port()
pytestmark = pytest.mark.usefixtures("clean")


def in_time(story: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(PATIENCE * 2):
            await story()
        assert not in_asyncio._guests, "the guest has gone when it has nothing to do"

    asyncio.run(main())


@pytest.mark.parametrize("name", ["local_addr", "family", "sock", "happy_eyeballs_delay"])
def test_what_asyncio_would_ignore(name: str) -> None:
    async def story() -> None:
        with pytest.raises(UsageError, match=f"{name} has no meaning here"):
            more: dict[str, Any] = {name: None}
            await open_connection(*THERE, proxy="socks5h://127.0.0.1:9", **more)

    in_time(story)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write((await reader.read()).upper())
    writer.close()
    await writer.wait_closed()


@asynccontextmanager
async def echo() -> AsyncIterator[int]:
    async with await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1000) as far:
        yield far.sockets[0].getsockname()[1]


async def ask(port: int, proxy: str, text: bytes = b"question") -> None:
    reader, writer = await open_connection("localhost", port, proxy=proxy)
    writer.write(text)
    writer.write_eof()
    assert await reader.read() == text.upper()
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("count", [1, 500])
def test_many_at_once(server: Server, count: int) -> None:
    async def story() -> None:
        async with echo() as port:
            tasks = [ask(port, server.url, b"question %d" % n) for n in range(count)]
            await asyncio.gather(*tasks)

    in_time(story)


def test_two_loops_in_two_threads(server: Server) -> None:
    async def story() -> None:
        async with echo() as port:
            for _ in range(5):
                await asyncio.gather(*(ask(port, server.url) for _ in range(10)))

    failures: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(story())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(PATIENCE * 2)
    assert failures == []


def test_open_socket(server: Server) -> None:
    async def story() -> None:
        async with echo() as port:
            sock = await open_socket("127.0.0.1", port, proxy=server.url)
            assert type(sock) is socket.socket
            assert sock.gettimeout() == 0, "as asyncio wants it"
            reader, writer = await asyncio.open_connection(sock=sock)
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()

    in_time(story)


def test_what_is_raised(server: Server) -> None:
    async def story() -> None:
        with pytest.raises(DestinationRefused):
            await open_connection("127.0.0.1", CLOSED, proxy=server.url)
        with pytest.raises(ProxyUnreachable):
            await open_connection("127.0.0.1", 9, proxy=f"socks5://127.0.0.1:{CLOSED}")
        with pytest.raises(ConnectionRefusedError):
            await open_connection("127.0.0.1", CLOSED, proxy="direct")
        with pytest.raises(ValueError):
            await open_connection("no name", 9, proxy=server.url)

    in_time(story)


def test_time_is_up() -> None:
    async def story() -> None:
        with Proxy() as proxy:
            proxy.may_answer.clear()
            with pytest.raises(ProxyTimedOut):
                await open_connection(*THERE, proxy=proxy.url, timeout=0.05)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await open_connection(*THERE, proxy=proxy.url)
            for number in range(2):
                assert proxy.connection(number).recv(1) == b""

    in_time(story)


@pytest.mark.parametrize("stage", ["start", "look-up", "connection", "request"])
def test_cancelled(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each stage; nothing of it is left."""
    if stage == "look-up":
        from muonsocks.net import names

        held = threading.Event()
        monkeypatch.setattr(names, "addresses_of", lambda _: (held.wait(PATIENCE), [])[1])

    async def story() -> None:
        with Proxy() as proxy, socket.socket() as deaf:
            proxy.may_answer.clear()
            where = proxy.url
            if stage == "look-up":
                where = "socks5h://somewhere:1080"
            if stage == "connection":
                # Its backlog is full, and further connections are not answered.
                deaf.bind(("127.0.0.1", 0))
                deaf.listen(0)
                more = [socket.socket() for _ in range(3)]
                for one in more:
                    one.setblocking(False)
                    one.connect_ex(deaf.getsockname())
                where = f"socks5h://127.0.0.1:{deaf.getsockname()[1]}"
            task = asyncio.create_task(open_socket(*THERE, proxy=where))
            if stage != "start":
                await asyncio.sleep(0.05)
            if stage == "request":
                await asyncio.to_thread(proxy.connection)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            if stage == "request":
                assert await asyncio.to_thread(proxy.connection().recv, 1) == b""
            if stage == "connection":
                for one in more:
                    one.close()
        if stage == "look-up":
            held.set()

    in_time(story)


def test_cancelled_when_it_is_there() -> None:
    """The connection that nobody gets is closed."""

    async def story() -> None:
        ours, theirs = tcp_pair()
        gate = Waitable()

        async def errand(_: Loop) -> Granted:
            await gate
            return Granted(ours)

        task = asyncio.create_task(in_asyncio.carry_out(errand))
        await asyncio.sleep(0)
        gate.wake()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert theirs.recv(1) == b""
        theirs.close()

    in_time(story)


def test_a_loop_that_is_closed_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody will ever resume what it has waited for: that is garbage, and its connection goes."""
    with Proxy() as proxy, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        unraisable: list[Any] = []
        monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
        proxy.may_answer.clear()

        def story() -> None:
            loop = asyncio.new_event_loop()
            loop.set_exception_handler(lambda *_: None)
            task = loop.create_task(open_socket(*THERE, proxy=proxy.url))
            loop.run_until_complete(asyncio.sleep(0.05))
            proxy.connection()
            loop.close()
            del task

        story()
        gc.collect()
        assert proxy.connection().recv(1) == b""
        assert not in_asyncio._guests
        assert [one.exc_value for one in unraisable] == []


@pytest.mark.parametrize("timeout", [-1, float("nan"), "5"])
def test_timeouts_that_are_none(timeout: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"[Tt]imeout"):
        asyncio.run(open_socket("192.0.2.1", 9, proxy="socks5h://192.0.2.1", timeout=timeout))
