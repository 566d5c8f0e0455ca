"""Connections to our own processes: a POST of JSON, whose reply is read in blocks as they arrive.

Over aiohttp, whose parser is compiled: httpx takes a large part of the API's time for a token. What goes wrong on the
way is one exception.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp

_CONNECT_S = 1.0
_KEPT_S = 2.0  # less than the 5 s after which uvicorn closes an idle connection
_LOST = (aiohttp.ClientError, OSError, TimeoutError)


class HostLost(Exception):
    """A process does not answer, or stopped in the middle of a reply."""


class HostReply:
    """A reply whose head has arrived.

    Args:
        response: The reply.
    """

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    @property
    def status_code(self) -> int:
        """HTTP status."""
        return self._response.status

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx."""
        return self._response.ok

    def header(self, name: str) -> str:
        """Look up a header field.

        Args:
            name: Its name, in any case.

        Returns:
            Its value; empty if the reply does not have it.
        """
        return self._response.headers.get(name, "")

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
        try:
            async for block in self._response.content.iter_any():
                yield block
        except _LOST as error:
            raise HostLost(f"the reply broke off ({type(error).__name__})") from None

    def abort(self) -> None:
        """Close the connection at once, so that whoever reads the reply gets an error."""
        self._response.close()

    async def aclose(self) -> None:
        """Keep the connection if the reply was read to its end, else close it, which the process notices."""
        if not self._response.content.at_eof():
            self._response.close()


class HostConnections:
    """Connections to processes."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None  # belongs to the event loop of the first request

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
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEPT_S),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        try:
            return await self._send(url, content)
        except HostLost:
            return await self._send(url, content)  # a kept connection may have been closed in this moment

    async def aclose(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _send(self, url: str, content: bytes) -> HostReply:
        assert self._session is not None
        headers = {"Content-Type": "application/json"}
        try:
            return HostReply(await self._session.post(url, data=content, headers=headers, allow_redirects=False))
        except _LOST as error:
            raise HostLost(f"the process does not answer ({type(error).__name__})") from None
