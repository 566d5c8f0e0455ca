"""Requests to our own processes over kept connections."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest

from service.host_connection import HostConnections, HostLost

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole"
CHUNKED = (
    b"HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\nRetry-After: 7\r\n\r\n3\r\nin \r\na\r\ntwo chunks\r\n0\r\n\r\n"
)


class Server:
    """Sends a reply to each request of a connection, as many as it is told, and then closes it."""

    def __init__(self, reply: bytes, per_connection: int) -> None:
        self.connections, self.bodies = 0, list[bytes]()
        self._reply, self._count = reply, per_connection

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        for _ in range(self._count):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            self.bodies.append(await reader.readexactly(length))
            writer.write(self._reply)
        writer.close()


def run(server: Server, use: Callable[[HostConnections, str], Awaitable[None]]) -> None:
    async def scene() -> None:
        async with (
            await asyncio.start_server(server, "127.0.0.1", 0) as listening,
            contextlib.aclosing(HostConnections()) as connections,
        ):
            await use(connections, f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/path")

    asyncio.run(asyncio.wait_for(scene(), 30))


@pytest.mark.parametrize(
    ("sent", "status", "body"), [(WHOLE, 200, b"whole"), (CHUNKED, 503, b"in two chunks")], ids=["whole", "chunked"]
)
def test_a_connection_serves_one_request_after_the_other(sent: bytes, status: int, body: bytes) -> None:
    server = Server(sent, 3)

    async def use(connections: HostConnections, url: str) -> None:
        for number in range(3):
            reply = await connections.post(url, b"%d" % number)
            assert (reply.status_code, await reply.aread()) == (status, body)
            assert reply.header("Retry-After") == {200: "", 503: "7"}[status]
            await reply.aclose()

    run(server, use)
    assert (server.connections, server.bodies) == (1, [b"0", b"1", b"2"])


def test_a_kept_connection_that_was_closed_is_replaced() -> None:
    server = Server(WHOLE, 1)

    async def use(connections: HostConnections, url: str) -> None:
        for _ in range(3):
            reply = await connections.post(url, b"{}")
            assert await reply.aread() == b"whole"
            await reply.aclose()

    run(server, use)
    assert (server.connections, len(server.bodies)) == (3, 3)


def test_a_reply_that_is_not_read_to_its_end_closes_its_connection() -> None:
    server = Server(WHOLE[:-1], 2)

    async def use(connections: HostConnections, url: str) -> None:
        await (await connections.post(url, b"{}")).aclose()
        await (await connections.post(url, b"{}")).aclose()

    run(server, use)
    assert server.connections == 2


@pytest.mark.parametrize("sent", [WHOLE[:-1], CHUNKED[:-9], CHUNKED.replace(b"\r\na\r\n", b"\r\nx\r\n")])
def test_a_reply_that_breaks_off_is_an_error(sent: bytes) -> None:
    async def use(connections: HostConnections, url: str) -> None:
        with pytest.raises(HostLost):
            async with contextlib.aclosing(await connections.post(url, b"{}")) as reply:
                await reply.aread()

    run(Server(sent, 1), use)


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\n", b"what\r\n\r\n"])
def test_a_process_without_a_reply_is_an_error(sent: bytes) -> None:
    async def use(connections: HostConnections, url: str) -> None:
        with pytest.raises(HostLost):
            await connections.post(url, b"{}")

    run(Server(sent, 1), use)


def test_nobody_listens() -> None:
    async def use(connections: HostConnections, url: str) -> None:
        with pytest.raises(HostLost):
            await connections.post("http://127.0.0.1:9/path", b"{}")

    run(Server(WHOLE, 1), use)
