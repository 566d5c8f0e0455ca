"""Results of an inference process in OpenAI's shapes."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.completion_views import Completion, CompletionWriter, TextOffsets, token_bytes


def scored(text: str, logprob: float | None = -1.0, **top: float) -> dict[str, Any]:
    return {
        "token": 1,
        "text": text,
        "logprob": logprob,
        "top": [{"token": 2, "text": t, "logprob": p} for t, p in top.items()],
    }


def result(*choices: dict[str, Any], prompts: Any = ({"tokens": [1], "pieces": ["The"]},)) -> dict[str, Any]:
    numbered = [{"index": i, "tokens": [], "finish_reason": "length", **choice} for i, choice in enumerate(choices)]
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "cached_tokens": 2}
    return {"fingerprint": "0123456789ab", "prompts": list(prompts), "choices": numbered, "usage": usage}


def writer(*prompts: Any, n: int = 1, echo: bool = False, include_usage: bool = False) -> CompletionWriter:
    return CompletionWriter("tiny", prompts or ("The",), n=n, echo=echo, include_usage=include_usage)


def test_a_completion_has_openais_shape() -> None:
    written = writer().completion(result({"text": " cat"}))
    Completion.model_validate(written)
    assert written["id"].startswith("cmpl-")
    assert {key: value for key, value in written.items() if key not in {"id", "created"}} == {
        "object": "text_completion",
        "model": "tiny",
        "system_fingerprint": "fp_0123456789ab",
        "choices": [{"index": 0, "text": " cat", "logprobs": None, "finish_reason": "length"}],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 4,
            "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 2},
        },
    }


@pytest.mark.parametrize(("ours", "openais"), [("stop", "stop"), ("length", "length"), ("context", "length")])
def test_a_full_context_ends_by_length(ours: str, openais: str) -> None:
    written = writer().completion(result({"text": "", "finish_reason": ours}))
    assert written["choices"][0]["finish_reason"] == openais


def test_logprobs_name_the_chosen_token_among_the_most_likely_ones() -> None:
    logprobs = [scored(" cat", -0.5, **{" cat": -0.5, " dog": -1.0}), scored("!", -3.0, **{".": -0.1, "?": -2.0})]
    written = writer().completion(result({"text": " cat!", "logprobs": logprobs}))
    assert written["choices"][0]["logprobs"] == {
        "tokens": [" cat", "!"],
        "token_logprobs": [-0.5, -3.0],
        "top_logprobs": [{" cat": -0.5, " dog": -1.0}, {".": -0.1, "?": -2.0, "!": -3.0}],
        "text_offset": [0, 4],
    }


def test_an_echo_begins_with_the_prompt_and_its_logprobs() -> None:
    prompts = [
        {"tokens": [1, 2], "pieces": ["The", " cat"], "logprobs": [None, scored(" cat", -2.0)]},
        {"tokens": [0], "pieces": ["<|endoftext|>"], "logprobs": [None]},
    ]
    choices = [{"text": text, "logprobs": [scored(text)]} for text in (" sat", " ran", "One", "Two")]
    written = writer("The cat", "", n=2, echo=True).completion(result(*choices, prompts=prompts))
    assert [choice["text"] for choice in written["choices"]] == ["The cat sat", "The cat ran", "One", "Two"]
    first, _, third, _ = (choice["logprobs"] for choice in written["choices"])
    assert (first["tokens"], first["token_logprobs"]) == (["The", " cat", " sat"], [None, -2.0, -1.0])
    assert (first["top_logprobs"][0], first["text_offset"]) == (None, [0, 3, 7])
    assert (third["tokens"], third["text_offset"]) == (["One"], [0])  # an empty prompt has no token of its own


def test_an_echo_of_ids_is_their_text() -> None:
    prompts = [{"tokens": [5, 6, 7], "pieces": [r"bytes:\xe2\x80", r"bytes:\xa8", "x"]}]
    written = writer((5, 6, 7), echo=True).completion(result({"text": "y"}, prompts=prompts))
    assert written["choices"][0]["text"] == "\u2028xy"


@given(st.text(), st.data())
def test_offsets_are_those_of_the_characters_however_they_are_cut(text: str, data: st.DataObject) -> None:
    whole = text.encode("utf-8", "replace")
    ends = sorted(data.draw(st.sets(st.integers(0, len(whole)))) | {0, len(whole)})
    pieces = [whole[start:end] for start, end in pairwise(ends)]
    offsets = TextOffsets()
    names = ["bytes:" + "".join(f"\\x{byte:02x}" for byte in piece) for piece in pieces]
    found = [offsets.next(name) for name in names]
    assert found == [len(whole[:start].decode("utf-8", "ignore")) for start in ends[:-1]]
    assert b"".join(map(token_bytes, names)) == whole


def test_the_token_that_ended_a_text_has_its_logprob_behind_it() -> None:
    ended = {"finish_reason": "stop", "end_token": scored("<|endoftext|>", -0.1)}
    prompts = [{"tokens": [1], "pieces": ["The"], "logprobs": [None]}]
    choices = [{"text": "", "logprobs": [], **ended}, {"text": " cat", "logprobs": [scored(" cat")]}]
    found = writer(n=2, echo=True).completion(result(*choices, prompts=prompts))["choices"]
    assert [choice["text"] for choice in found] == ["The", "The cat"]
    assert [choice["logprobs"]["token_logprobs"] for choice in found] == [[None, -0.1], [None, -1.0]]
    assert [choice["logprobs"]["text_offset"] for choice in found] == [[0, 3], [0, 3]]
    streamed = writer().chunk({"fingerprint": "0", "choices": [piece(0, " cat", logprobs=[scored(" cat")], **ended)]})
    assert streamed["choices"][0]["logprobs"]["tokens"] == [" cat", "<|endoftext|>"]


def piece(index: int, text: str, reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {"index": index, "text": text, "tokens": [1], **({"finish_reason": reason} if reason else {}), **more}


def test_a_stream_says_each_thing_once() -> None:
    writing = writer(n=2, include_usage=True)
    lines: list[dict[str, Any]] = [
        {"fingerprint": "0123456789ab", "choices": [piece(0, " cat", logprobs=[scored(" cat")])]},
        {"choices": [piece(1, " dog", "stop", logprobs=[scored(" dog")])]},
        {"choices": [piece(0, " sat", "context", logprobs=[scored(" sat")])]},
    ]
    pieces = [writing.chunk(line) for line in lines]
    [usage] = writing.usage_chunks(result({"text": " cat sat"}, {"text": " dog"}))
    for chunk in (*pieces, usage):
        Completion.model_validate(chunk)
        assert (chunk["id"], chunk["system_fingerprint"]) == (usage["id"], "fp_0123456789ab")
    assert [chunk["usage"] for chunk in pieces] == [None] * 3
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 7)
    choices = [choice for chunk in pieces for choice in chunk["choices"]]
    assert [(c["index"], c["finish_reason"]) for c in choices] == [(0, None), (1, "stop"), (0, "length")]
    assert [c["logprobs"]["text_offset"] for c in choices] == [[0], [0], [4]]


def test_a_stream_has_no_usage_unless_it_is_wanted() -> None:
    writing = writer()
    chunk = writing.chunk({"fingerprint": "0123456789ab", "choices": [piece(0, " cat", "length")]})
    assert ("usage" in chunk, writing.usage_chunks(result({"text": " cat"}))) == (False, [])
