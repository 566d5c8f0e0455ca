"""Text grows by whole characters and never shows a part of a stop text."""

from collections.abc import Iterable

import pytest

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
