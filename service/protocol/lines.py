"""From blocks of bytes to lines, for every stream between our processes.

Lines are split as bytes, at the ends that a format names and at no other: readers of text also end a line at U+2028,
U+2029, U+0085 and others, which prompts and generated texts may hold. What we send is ASCII, so it has none of them.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator

_EVENT_STREAM_END = re.compile(rb"\r\n|\r|\n")


class LineSplitter:
    """Splits the blocks of one stream at line feeds, as NDJSON has them."""

    def __init__(self) -> None:
        self._held: list[bytes] = []  # of a line that has not ended

    def feed(self, block: bytes) -> list[bytes]:
        """Take the next block.

        Args:
            block: Bytes of any number of lines.

        Returns:
            The lines that it completes, without line feeds.
        """
        first, *others = block.split(b"\n")
        self._held.append(first)
        if not others:
            return []
        *lines, last = others
        lines.insert(0, b"".join(self._held))
        self._held = [last]
        return lines


def split_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Split a stream at line feeds; an incomplete last line is left out.

    Args:
        blocks: The stream, in blocks of any size.

    Returns:
        Iterator over the complete lines, without line feeds.
    """
    splitter = LineSplitter()
    for block in blocks:
        yield from splitter.feed(block)


async def split_lines_async(blocks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Split a stream as `split_lines` does.

    Args:
        blocks: The stream, in blocks of any size.

    Yields:
        The complete lines, without line feeds.
    """
    splitter = LineSplitter()
    async for block in blocks:
        for line in splitter.feed(block):
            yield line


def event_stream_lines(blocks: Iterable[bytes]) -> Iterator[str]:
    """Split server-sent events into lines: LF, CR and CR LF end one, as the standard says, and no other character.

    Args:
        blocks: The stream, in blocks of any size.

    Returns:
        Iterator over the complete lines, without line ends.
    """
    held: list[bytes] = []
    is_after_cr = False
    for block in blocks:
        rest = block[1:] if is_after_cr and block.startswith(b"\n") else block  # the second half of a CR LF
        is_after_cr = block.endswith(b"\r") or (is_after_cr and not block)
        first, *others = _EVENT_STREAM_END.split(rest)
        held.append(first)
        for line in others:
            yield b"".join(held).decode("utf-8", "replace")
            held = [line]
