"""Text grows by whole characters and never shows a part of a stop text."""

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_core.generation.detokenizer import Detokenizer


def _pieces(stream: Detokenizer, tokens: Iterable[bytes]) -> list[str]:
    return [stream.add(token) for token in tokens]


def test_a_character_spread_over_tokens_arrives_whole() -> None:
    stream = Detokenizer()

    pieces = _pieces(stream, ["🐈".encode()[:1], "🐈".encode()[1:3], "🐈".encode()[3:] + b"!"])

    assert pieces == ["", "", "🐈!"]


def test_half_a_character_at_the_end_becomes_a_replacement() -> None:
    stream = Detokenizer()

    pieces = [*_pieces(stream, [b"a", "ä".encode()[:1]]), stream.finish()]

    assert pieces == ["a", "", "\ufffd"]
    assert stream.text == b"a\xc3".decode(errors="replace")


def test_a_stop_text_over_several_tokens_is_never_shown() -> None:
    stream = Detokenizer(["STOP"])

    pieces = _pieces(stream, [b"go S", b"T", b"OP on"])

    assert pieces == ["go ", "", ""]
    assert (stream.text, stream.stopped, stream.token_count) == ("go ", True, 1)


def test_text_held_back_for_a_stop_text_is_given_when_it_is_none() -> None:
    stream = Detokenizer(["STOP"])

    pieces = _pieces(stream, [b"go ST", b"AY", b" S"])

    assert (pieces, stream.finish()) == (["go ", "STAY", " "], "S")


def test_the_earliest_of_several_stop_texts_wins() -> None:
    stream = Detokenizer(["cd", "bcd", "x"])

    assert _pieces(stream, [b"ab", b"cdx"]) == ["a", ""]
    assert stream.text == "a"


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_pieces_join_to_the_text_however_bytes_are_cut(size: int) -> None:
    data = "Häschen 猫🐈 aab aaab end".encode()
    stream = Detokenizer(["aaab"])

    pieces = _pieces(stream, (data[at : at + size] for at in range(0, len(data), size)))

    assert "".join(pieces) + stream.finish() == stream.text == "Häschen 猫🐈 aab "


LETTERS = st.text("ab🐈", min_size=1, max_size=4)


@given(st.text("ab🐈", max_size=14), st.lists(LETTERS, max_size=3), st.lists(st.integers(0, 40), max_size=6))
@settings(max_examples=200, deadline=None)
def test_where_a_text_ends_does_not_depend_on_its_tokens(text: str, stop: list[str], cuts: list[int]) -> None:
    ends = [at for at in range(len(text) + 1) if text[:at].endswith(tuple(stop))] if stop else []
    longest = max((len(one) for one in stop if ends and text[: ends[0]].endswith(one)), default=0)
    whole = text[: ends[0] - longest] if ends else text
    data = text.encode()
    borders = sorted({0, *(cut for cut in cuts if cut < len(data)), len(data)})
    stream = Detokenizer(stop)

    pieces = [*_pieces(stream, [data[a:b] for a, b in itertools.pairwise(borders)]), stream.finish()]

    assert ("".join(pieces), stream.text, stream.stopped) == (whole, whole, bool(ends))


def test_long_stop_texts_take_no_longer() -> None:
    stream = Detokenizer(["a" * 999 + "b"] * 16)

    pieces = _pieces(stream, [b"a"] * 3000)

    assert "".join(pieces) == "a" * (3000 - 999)
