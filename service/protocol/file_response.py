"""A reply with the bytes of a file, or a range of them.

The file is opened once. Size, ETag and bytes are those of the open file, so a client gets the old file or the new one
whole, whatever is renamed over it or deleted meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.protocol.negotiation import ByteRange

_BLOCK_BYTES = 1 << 20


class FileResponse(StreamingResponse):
    """Sends a part of an open file, and closes the file.

    Args:
        file: The file, which belongs to the response from now on.
        part: The bytes to send.
        is_range: Whether they are what a Range header asked for: 206 with Content-Range.
        media_type: Media type of the file.
        headers: Further headers.
    """

    def __init__(
        self, file: BinaryIO, part: ByteRange, *, is_range: bool, media_type: str, headers: Mapping[str, str]
    ) -> None:
        length = {"Content-Length": str(part.end - part.begin)}
        described = {**headers, **length, **({"Content-Range": part.content_range} if is_range else {})}
        super().__init__(
            read_blocks(file, part.begin, part.end), 206 if is_range else 200, described, media_type=media_type
        )
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response.

        Args:
            scope: ASGI scope of the request.
            receive: Receives the disconnect.
            send: Sends the messages.
        """
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._file.close()


def file_size(file: BinaryIO) -> int:
    """Measure an open file.

    Args:
        file: The file.

    Returns:
        Size in bytes.
    """
    return os.fstat(file.fileno()).st_size


def file_etag(file: BinaryIO) -> str:
    """Build the ETag of an open file.

    Args:
        file: The file.

    Returns:
        Another ETag for every file that gets the name.
    """
    state = os.fstat(file.fileno())
    return f'"{state.st_mtime_ns:x}-{state.st_ino:x}-{state.st_size:x}"'


def read_blocks(file: BinaryIO, begin: int, end: int) -> Iterator[bytes]:
    """Read a part of an open file, block by block.

    Args:
        file: The file.
        begin: Offset of the first byte.
        end: Offset after the last byte.

    Yields:
        Blocks of at most 1 MiB; fewer bytes in all if the file was truncated meanwhile.
    """
    file.seek(begin)
    while begin < end and (block := file.read(min(end - begin, _BLOCK_BYTES))):
        begin += len(block)
        yield block
