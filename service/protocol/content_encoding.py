"""Content-Encoding of requests (RFC 9110, 8.4): bodies that a client packed with gzip or deflate.

A body is unpacked as it is read, some hundred kilobytes at a time, and the limits of a body hold for what comes out. So
a small body that unpacks to gigabytes costs no more than a large one.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Protocol

from starlette.types import Message, Receive, Scope

from service.protocol.errors import MalformedBody, UnsupportedContentEncoding

_BLOCK_BYTES = 1 << 18
_GZIP, _ZLIB, _RAW = 31, 15, -15  # wbits of zlib
_CODINGS = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": _ZLIB}


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    @property
    def unconsumed_tail(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def content_coding(values: Iterable[bytes]) -> str | None:
    """Read the Content-Encoding of a body.

    Args:
        values: The values of all such headers.

    Returns:
        The coding; None if the body is not packed.

    Raises:
        UnsupportedContentEncoding: It is neither gzip nor deflate, or the body was packed more than once.
    """
    listed = b",".join(values).decode("latin-1").lower()
    codings = [coding for part in listed.split(",") if (coding := part.strip()) not in {"", "identity"}]
    if not codings:
        return None
    if len(codings) > 1 or codings[0] not in _CODINGS:
        raise UnsupportedContentEncoding(", ".join(codings))
    return codings[0]


def without_coding(scope: Scope) -> Scope:
    """Remove the headers that describe the packed body.

    Args:
        scope: ASGI scope of the request.

    Returns:
        The scope of the same request with an unpacked body.
    """
    headers = [pair for pair in scope["headers"] if pair[0] not in {b"content-encoding", b"content-length"}]
    return {**scope, "headers": headers}


class UnpackedBody:
    """Receives a packed body and returns it unpacked.

    Args:
        receive: Receives the packed body.
        coding: How it is packed, as `content_coding` returns it.
    """

    def __init__(self, receive: Receive, coding: str) -> None:
        self._receive, self._wbits = receive, _CODINGS[coding]
        self._decompressor: _Decompressor | None = None  # None: nothing was received
        self._packed, self._has_more = b"", True
        self._is_over = False

    async def __call__(self) -> Message:
        """Receive the next part of the body.

        Returns:
            An ASGI message.

        Raises:
            MalformedBody: The body is not packed as its header says, is cut off, or has something after its end.
        """
        while not self._is_over:
            if data := self._unpack():
                return {"type": "http.request", "body": data, "more_body": True}
            if not self._has_more:
                return self._end()
            message = await self._receive()
            if message["type"] != "http.request":
                return message
            self._packed += message.get("body", b"")
            self._has_more = message.get("more_body", False)
        return await self._receive()

    def _unpack(self) -> bytes:
        """The next bytes; empty once more must be received."""
        try:
            while self._packed or self._decompressor is not None:
                if self._decompressor is None and not self._begin():
                    return b""
                assert self._decompressor is not None
                if self._decompressor.eof and not self._next_member():
                    return b""
                data = self._decompressor.decompress(self._packed, _BLOCK_BYTES)
                at_end = self._decompressor.eof
                self._packed = self._decompressor.unused_data if at_end else self._decompressor.unconsumed_tail
                if data or not (at_end and self._packed):
                    return data
        except zlib.error as error:
            raise MalformedBody(f"the body is not packed as Content-Encoding says: {error}") from None
        return b""

    def _begin(self) -> bool:
        """Choose the format by the first bytes: deflate means zlib, but some clients send it without its header."""
        if len(self._packed) < 2 and self._has_more:
            return False
        is_zlib = self._packed[0] & 15 == 8 and int.from_bytes(self._packed[:2], "big") % 31 == 0
        self._decompressor = zlib.decompressobj(_RAW if self._wbits == _ZLIB and not is_zlib else self._wbits)
        return True

    def _next_member(self) -> bool:
        """A gzip file may have several members."""
        if not self._packed:
            return False
        if self._wbits != _GZIP:
            raise MalformedBody("the body has something after the end of its packed data")
        self._decompressor = zlib.decompressobj(_GZIP)
        return True

    def _end(self) -> Message:
        if self._decompressor is not None and not self._decompressor.eof:
            raise MalformedBody("the body ends before its packed data does")
        self._is_over = True
        return {"type": "http.request", "body": b"", "more_body": False}
