"""Lines of streams between our processes, in blocks of any size."""

import asyncio
import json
from collections.abc import AsyncIterator

from hypothesis import given, settings
from hypothesis import strategies as st

from model_core.storage.events import ascii_line
from service.protocol.lines import event_stream_lines, split_lines, split_lines_async

WILD = "\u2028\u2029\u0085\r\0\ufeff\N{ROCKET}\x0b\x0c\x1c"  # what some readers end a line at, and other rarities
TEXTS = st.lists(st.text(st.sampled_from(WILD) | st.characters(exclude_categories=["Cs"]), max_size=9), max_size=5)


def blocks_of(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@given(TEXTS, st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_lines_are_read_as_they_were_written(texts: list[str], size: int) -> None:
    written = "".join(ascii_line(text) + "\n" for text in texts).encode()

    async def blocks() -> AsyncIterator[bytes]:
        for block in blocks_of(written, size):
            yield block

    async def read() -> list[bytes]:
        return [line async for line in split_lines_async(blocks())]

    assert [json.loads(line) for line in split_lines(blocks_of(written, size))] == texts
    assert [json.loads(line) for line in asyncio.run(read())] == texts


@given(TEXTS, st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_characters_outside_ascii_end_no_line_either(texts: list[str], size: int) -> None:
    written = "".join(json.dumps(text, ensure_ascii=False) + "\n" for text in texts).encode()
    assert [json.loads(line) for line in split_lines(blocks_of(written, size))] == texts
    assert [json.loads(line) for line in event_stream_lines(blocks_of(written, size))] == texts


def test_the_ends_of_an_event_stream_are_those_of_its_standard() -> None:
    for size in (1, 2, 99):
        blocks = blocks_of("a\rb\r\nc\n\n\u2028d\nrest".encode(), size)
        assert list(event_stream_lines(blocks)) == ["a", "b", "c", "", "\u2028d"]


def test_an_incomplete_last_line_is_left_out() -> None:
    assert list(split_lines([b"a\nb", b"", b"c"])) == [b"a"]
