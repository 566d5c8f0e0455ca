"""Ranges, marks, layers and heads as clients name them."""

import pytest

from model_core.attention.selection import TokenRange, check_head, chosen_heads, parse_highlight, parse_numbers
from model_core.errors import InvalidParameters


@pytest.mark.parametrize(
    ("text", "expected"), [(None, (0, 9)), ("0:9", (0, 9)), ("3:", (3, 9)), (":4", (0, 4)), ("2:3", (2, 3))]
)
def test_a_range_is_read(text, expected):
    tokens = TokenRange.parse(text, 9)
    assert (tokens.start, tokens.stop) == expected


@pytest.mark.parametrize(
    ("text", "near"), [("9:3", "8:9"), ("4:4", "4:9"), ("0:10", "0:9"), ("9:12", "8:9"), ("x", "0:9"), ("3", "0:9")]
)
def test_a_wrong_range_names_a_right_one(text, near):
    with pytest.raises(InvalidParameters) as refusal:
        TokenRange.parse(text, 9)
    (problem,) = refusal.value.problems
    assert (problem.pointer, problem.value, problem.nearest) == ("/tokens", text, (near,))
    assert str(TokenRange.parse(near, 9)) == near


def test_marks_are_numbers_and_ranges_of_what_is_shown():
    shown = TokenRange(3, 10)
    assert parse_highlight(None, shown) == ()
    assert parse_highlight("7-9,3,8", shown) == (3, 7, 8, 9)
    for wrong in ("", "2", "10", "9-7", "4-", "a", "3,,4", "3 4"):
        with pytest.raises(InvalidParameters):
            parse_highlight(wrong, shown)


def test_heads_are_chosen_by_layer():
    heads = (4, 2, 1)
    assert chosen_heads(heads) == {0: (0, 1, 2, 3), 1: (0, 1), 2: (0,)}
    assert chosen_heads(heads, parse_numbers("layer", "1,0,1"), (1,)) == {0: (1,), 1: (1,)}
    with pytest.raises(InvalidParameters) as refusal:
        chosen_heads(heads, None, (1,))
    (problem,) = refusal.value.problems
    assert (problem.pointer, problem.value, problem.nearest) == ("/head", 1, (0,))
    with pytest.raises(InvalidParameters, match="/layer"):
        check_head(0, 3, heads)
    with pytest.raises(InvalidParameters, match="/layer"):
        parse_numbers("layer", "1;2")
