"""HTTP/1.1 to our own processes: a POST of JSON over kept connections, whose reply is read in blocks.

The API spends nearly half of its time for a token in a general client (docs/performance.md), and needs little of it:
no redirects, cookies, proxies or compression. What goes wrong on the way is one exception.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

_CONNECT_S = 1.0
_KEPT_S = 2.0  # less than the 5 s after which uvicorn closes an idle connection
_KEPT = 32  # idle connections to one address
_BLOCK_BYTES = 1 << 16
_HEAD_END, _LINE_END = b"\r\n\r\n", b"\r\n"

_Address = tuple[str, int, bool]


class HostLost(httpx.TransportError):
    """A process does not answer, or stopped in the middle of a reply."""


@dataclass
class _Connection:
    """A connection, and since when it is idle."""

    address: _Address
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    idle_since_s: float = 0.0

    def is_usable(self, now_s: float) -> bool:
        return now_s - self.idle_since_s < _KEPT_S and not self.reader.at_eof() and not self.writer.is_closing()


class HostReply:
    """A reply whose head has arrived.

    Args:
        pool: Takes the connection back.
        connection: The connection.
        status: HTTP status.
        headers: Header fields, by lower-case name.

    Attributes:
        status_code: HTTP status.
        headers: Header fields, by lower-case name.
    """

    def __init__(self, pool: HostConnections, connection: _Connection, status: int, headers: Mapping[str, str]) -> None:
        self.status_code, self.headers = status, headers
        self._pool, self._connection = pool, connection
        self._is_open, self._is_complete = True, False

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status_code < 300

    async def aread(self) -> bytes:
        """Read the whole body.

        Returns:
            The body.

        Raises:
            HostLost: The process stopped before its end.
        """
        return b"".join([block async for block in self.aiter_bytes()])

    async def aiter_bytes(self) -> AsyncIterator[bytes]:
        """Read the body.

        Yields:
            Blocks, as they arrive.

        Raises:
            HostLost: The process stopped before its end.
        """
        reader = self._connection.reader
        try:
            if "chunked" in self.headers.get("transfer-encoding", ""):
                while size := int(await reader.readuntil(_LINE_END), 16):
                    yield (await reader.readexactly(size + len(_LINE_END)))[:size]
                await reader.readuntil(_LINE_END)
            else:
                left = int(self.headers.get("content-length", "0"))
                while left:
                    block = await reader.readexactly(min(left, _BLOCK_BYTES))
                    left -= len(block)
                    yield block
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            raise HostLost(f"the reply broke off ({type(error).__name__})") from None
        self._is_complete = True

    def abort(self) -> None:
        """Close the connection at once, so that whoever reads the reply gets an error."""
        self._connection.writer.transport.abort()

    async def aclose(self) -> None:
        """Keep the connection if the reply was read to its end, else close it, which the process notices."""
        if self._is_open:
            self._is_open = False
            is_kept = self._is_complete and self.headers.get("connection", "").lower() != "close"
            self._pool.put_back(self._connection, is_kept=is_kept)


class HostConnections:
    """Connections to processes."""

    def __init__(self) -> None:
        self._idle: defaultdict[_Address, list[_Connection]] = defaultdict(list)
        self._is_closed = False

    async def post(self, url: str, content: bytes) -> HostReply:
        """Send a request and wait for the head of its reply, however long.

        Args:
            url: Address.
            content: JSON.

        Returns:
            The reply, which the caller closes.

        Raises:
            HostLost: Nothing answers there.
        """
        parts = urlsplit(url)
        is_tls = parts.scheme == "https"
        address = (parts.hostname or "", parts.port or (443 if is_tls else 80), is_tls)
        head = f"POST {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        message = f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
        while (kept := self._take(address)) is not None:
            with contextlib.suppress(HostLost):  # closed in this moment; nothing was done there that matters
                return await self._send(kept, message)
        return await self._send(await _connect(address), message)

    def put_back(self, connection: _Connection, *, is_kept: bool) -> None:
        """Take a connection back whose reply was closed.

        Args:
            connection: The connection.
            is_kept: Whether it can serve another request.
        """
        idle = self._idle[connection.address]
        if not is_kept or self._is_closed or len(idle) >= _KEPT:
            connection.writer.close()
            return
        connection.idle_since_s = asyncio.get_running_loop().time()
        idle.append(connection)

    async def aclose(self) -> None:
        """Close every idle connection, and those in use when they come back."""
        self._is_closed = True
        for connections in self._idle.values():
            for connection in connections:
                connection.writer.close()
        self._idle.clear()

    def _take(self, address: _Address) -> _Connection | None:
        """Return the kept connection that was used last; close those that are too old."""
        now_s, idle = asyncio.get_running_loop().time(), self._idle[address]
        while idle and not idle[0].is_usable(now_s):
            idle.pop(0).writer.close()
        if not idle:
            return None
        connection = idle.pop()
        if connection.is_usable(now_s):
            return connection
        connection.writer.close()
        return self._take(address)

    async def _send(self, connection: _Connection, message: bytes) -> HostReply:
        try:
            connection.writer.write(message)
            await connection.writer.drain()
            head = await connection.reader.readuntil(_HEAD_END)
            return HostReply(self, connection, *_parsed(head))
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            connection.writer.close()
            raise HostLost(f"the process closed the connection ({type(error).__name__})") from None
        except BaseException:  # cancelled: the process notices
            connection.writer.close()
            raise


async def _connect(address: _Address) -> _Connection:
    host, port, is_tls = address
    try:
        async with asyncio.timeout(_CONNECT_S):
            return _Connection(address, *await asyncio.open_connection(host, port, ssl=is_tls or None))
    except (OSError, TimeoutError) as error:
        raise HostLost(f"no connection ({type(error).__name__})") from None


def _parsed(head: bytes) -> tuple[int, dict[str, str]]:
    """Status and header fields of a reply."""
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = (line.partition(":") for line in lines if line)
    _, status, *_ = first.split(" ", 2)
    return int(status), {name.strip().lower(): value.strip() for name, _, value in fields}
