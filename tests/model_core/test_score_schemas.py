"""Requests about tokens and likelihoods: what is accepted, and where what is wrong is."""

from typing import Any

import pytest

from model_core.score_schemas import MAX_SCORE_ITEMS, DetokenizeRequest, PrefixedText, ScoreRequest
from service.protocol.errors import InvalidRequest
from service.protocol.parsing import validate

RUN = {"run": "tiny"}


def test_a_text_comes_as_text_as_ids_or_with_a_prefix() -> None:
    texts = ["One \u2028 day", [3, 1.0, 2], {"text": "b", "prefix": "a"}, {"text": "b", "prefix": None}, ""]
    request = validate(ScoreRequest, {**RUN, "texts": texts, "pairs": None}, strict=True)
    assert request.texts == (
        "One \u2028 day", (3, 1, 2), PrefixedText(text="b", prefix="a"), PrefixedText(text="b"), "",
    )  # fmt: skip
    assert (request.checkpoint, request.bos, request.stride, request.weights) == ("best", "none", None, None)


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({}, "/texts"),
        ({"texts": ["a"], "pairs": [{"good": "a", "bad": "b"}]}, "/pairs"),
        ({"texts": []}, "/texts"),
        ({"texts": "a"}, "/texts"),
        ({"texts": ["a"] * (MAX_SCORE_ITEMS + 1)}, "/texts"),
        ({"texts": [7]}, "/texts/0"),
        ({"texts": ["a", []]}, "/texts/1"),
        ({"texts": [[0, 1.5]]}, "/texts/0/1"),
        ({"texts": [[0, -1, -2]]}, "/texts/0/1"),
        ({"texts": [[0, "1"]]}, "/texts/0/1"),
        ({"texts": [[0, True]]}, "/texts/0/1"),
        ({"texts": [["a"]]}, "/texts/0/0"),
        ({"texts": ["\ud800"]}, "/texts/0"),
        ({"texts": ["a" * 200_001]}, "/texts/0"),
        ({"texts": [{"text": [1, 2], "prefix": "a"}]}, "/texts/0/text"),
        ({"texts": [{"text": "a", "prefix": [1]}]}, "/texts/0/prefix"),
        ({"texts": [{"prefix": "a"}]}, "/texts/0/text"),
        ({"texts": [{"text": "a", "suffix": "b"}]}, "/texts/0/suffix"),
        ({"pairs": [{"good": "a"}]}, "/pairs/0/bad"),
        ({"pairs": [{"good": "a", "bad": [1]}]}, "/pairs/0/bad"),
        ({"pairs": [{"good": "a", "bad": "\udc00"}]}, "/pairs/0/bad"),
        ({"pairs": []}, "/pairs"),
        ({"texts": ["a"], "bos": "x"}, "/bos"),
        ({"texts": ["a"], "stride": 0}, "/stride"),
        ({"texts": ["a"], "stride": 0.5}, "/stride"),
        ({"texts": ["a"], "weights": "fp8"}, "/weights"),
        ({"texts": ["a"], "detail": 1}, "/detail"),
        ({"texts": ["a"], "run": "../x"}, "/run"),
        ({"texts": ["a"], "max_tokens": 10**9}, "/max_tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_in_a_request_for_scores_is_named(changes: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        validate(ScoreRequest, {**RUN, **changes}, strict=True)
    assert [problem.pointer for problem in refused.value.problems] == [pointer]


def test_one_wrong_id_is_enough_to_refuse_a_long_list() -> None:
    with pytest.raises(InvalidRequest) as refused:
        validate(DetokenizeRequest, {**RUN, "tokens": [0, *[-1] * 60_000]}, strict=True)
    assert [(problem.pointer, problem.value) for problem in refused.value.problems] == [("/tokens/1", -1)]
