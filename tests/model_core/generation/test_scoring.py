"""Which tokens of a text count, in which window, and what their log-probabilities add up to."""

import itertools
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_core.errors import InvalidParameters
from model_core.generation.scoring import ScoreCollector, ScorePlan, plan_scores
from model_core.score_schemas import InferenceScoreRequest, PairScore, TextScore
from model_core.tokenizer import Tokenizer, gpt2_tokenizer

BLOCK = 8


def planned(tokenizer: Tokenizer, block_size: int = BLOCK, **fields: Any) -> ScorePlan:
    return plan_scores(InferenceScoreRequest.model_validate({"run": "tiny", **fields}), tokenizer, block_size)


def wrong(tokenizer: Tokenizer, **fields: Any) -> list[tuple[str, Any]]:
    with pytest.raises(InvalidParameters) as refused:
        planned(tokenizer, **fields)
    return [(problem.pointer, problem.value) for problem in refused.value.problems]


def scored(tokenizer: Tokenizer, logprobs: dict[int, float], **fields: Any) -> ScoreCollector:
    """Score with a made-up model, in which a token has the same log-probability everywhere; windows come backwards."""
    plan = planned(tokenizer, **fields)
    collector = ScoreCollector(plan, tokenizer)
    for number, window in reversed(list(enumerate(plan.windows))):
        collector.add(number, [logprobs.get(token, -1.0) for token in window.tokens[window.first :]])
    collector.complete()
    return collector


def test_without_a_start_the_first_token_does_not_count(tokenizer: Tokenizer) -> None:
    [text] = planned(tokenizer, texts=[[5, 6, 7]]).texts
    assert (text.counted, [(w.tokens, w.first) for w in text.windows]) == ((6, 7), [((5, 6, 7), 1)])
    [text] = planned(tokenizer, texts=[[5, 6, 7]], bos="eot").texts
    assert (text.counted, text.windows[0].tokens) == ((5, 6, 7), (tokenizer.eot, 5, 6, 7))


@pytest.mark.parametrize("texts", [[""], ["a"], [[7]], [{"text": "", "prefix": "One day"}]], ids=str)
def test_a_text_of_which_nothing_counts_has_no_tokens(tokenizer: Tokenizer, texts: list[Any]) -> None:
    collector = scored(tokenizer, {}, texts=texts)
    assert collector.results == [TextScore(logprob=0.0, tokens=0, bytes=0, bits_per_byte=None)]
    assert collector.not_finite == 0


def test_a_model_can_read_as_many_tokens_as_it_has_positions(tokenizer: Tokenizer) -> None:
    for bos, read in (("none", BLOCK - 1), ("eot", BLOCK)):
        assert planned(tokenizer, texts=[[5] * BLOCK], bos=bos).usage.read_tokens == read


@pytest.mark.parametrize(
    ("prefix", "text"),
    [
        ("One day", " a cat"),
        ("The c", "at saw"),
        ("", "The cat"),
        ("The ", ""),
        ("\u732b", "\U0001f408 \xe4"),
        (" ", " x"),
    ],
)
@pytest.mark.parametrize("name", ["gpt2", "bpe"])
def test_every_byte_behind_a_prefix_is_counted_once(tokenizer: Tokenizer, name: str, prefix: str, text: str) -> None:
    tokenizer = gpt2_tokenizer() if name == "gpt2" else tokenizer
    item = {"text": text, "prefix": prefix}
    [found] = planned(tokenizer, block_size=64, texts=[item], bos="eot").texts
    whole = tokenizer.encode(prefix + text)
    assert found.counted == tuple(whole[len(whole) - len(found.counted) :])
    assert found.covered_bytes == len(text.encode())
    before = tokenizer.decode_bytes(whole[: len(whole) - len(found.counted)])
    assert len(before) <= len(prefix.encode())  # and the next token ends behind it


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_windows_count_every_token_once_and_each_as_many_as_the_stride(data: st.DataObject) -> None:
    block = data.draw(st.integers(1, 12))
    stride = data.draw(st.integers(1, block))
    bos = data.draw(st.sampled_from(["none", "eot"]))
    ids = tuple(range(data.draw(st.integers(1, 60))))
    [text] = planned(gpt2_tokenizer(), block, texts=[ids], bos=bos, stride=stride).texts

    counted = [window.tokens[window.first :] for window in text.windows]
    assert tuple(itertools.chain(*counted)) == text.counted == ids[0 if bos == "eot" else 1 :]
    assert all(len(window.tokens) - 1 <= block for window in text.windows)
    assert all(len(part) == stride for part in counted[1:-1])
    assert all(window.first > block - stride for window in text.windows[1:])  # what each has in view at least


def test_windows_without_overlap_are_the_parts_of_a_text(tokenizer: Tokenizer) -> None:
    ids = list(range(5, 5 + 2 * BLOCK + 3))
    [whole] = planned(tokenizer, texts=[ids], stride=BLOCK, bos="eot").texts
    parts = planned(tokenizer, texts=[ids[:BLOCK], ids[BLOCK - 1 : 2 * BLOCK - 1]], bos="none").texts
    assert [w.tokens for w in whole.windows] == [
        (tokenizer.eot, *ids[:BLOCK]), tuple(ids[BLOCK - 1 : 2 * BLOCK]), tuple(ids[2 * BLOCK - 1 :]),
    ]  # fmt: skip
    assert parts[1].windows[0].tokens == whole.windows[1].tokens[:-1]


def test_what_only_the_tokenizer_and_the_model_know_is_named(tokenizer: Tokenizer) -> None:
    above = tokenizer.n_vocab
    assert wrong(tokenizer, texts=["a", [1, above, 2, 319]]) == [("/texts/1/1", above), ("/texts/1/3", 319)]
    assert wrong(tokenizer, texts=["a", [1] * 9]) == [("/texts/1", 9)]
    assert wrong(tokenizer, pairs=[{"good": "a", "bad": "Q" * 9}]) == [("/pairs/0/bad", 9)]
    assert wrong(tokenizer, texts=["a"], stride=BLOCK + 1) == [("/stride", BLOCK + 1)]
    assert wrong(tokenizer, texts=[[1] * 4] * 4, max_tokens=11) == [("/texts", 12)]
    assert wrong(tokenizer, texts=[[1] * 60_000], stride=1, max_tokens=65_536)[0][0] == "/texts"
    assert wrong(tokenizer, pairs=[{"good": "QQQQ", "bad": "QQQQ"}], max_tokens=5) == [("/pairs", 6)]


def test_sums_are_in_nats_and_bits_by_byte(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("The cat")
    logprobs = {token: -0.5 * (at + 1) for at, token in enumerate(ids)}
    [score] = scored(tokenizer, logprobs, texts=["The cat"], bos="eot", detail=True).results
    assert isinstance(score, TextScore)
    assert score.logprob == pytest.approx(sum(logprobs[token] for token in ids))
    assert (score.tokens, score.bytes) == (len(ids), 7)
    assert score.bits_per_byte == pytest.approx(-score.logprob / math.log(2) / 7)
    assert score.token_logprobs is not None
    assert [(part.token, part.text) for part in score.token_logprobs] == list(
        zip(ids, tokenizer.names(ids), strict=True)
    )


def test_a_tie_and_a_sum_that_is_not_finite_are_wrong_and_counted(tokenizer: Tokenizer) -> None:
    good, bad, odd = tokenizer.encode("x")[0], tokenizer.encode("y")[0], tokenizer.encode("z")[0]
    both = (("x", "y"), ("y", "x"), ("x", "x"), ("x", "z"), ("z", "y"))
    pairs = [{"good": first, "bad": second, "prefix": "-"} for first, second in both]
    collector = scored(tokenizer, {good: -1.0, bad: -2.0, odd: math.nan}, pairs=pairs, bos="eot")
    verdicts = [score for score in collector.results if isinstance(score, PairScore)]
    assert [(pair.correct, pair.margin) for pair in verdicts] == [
        (True, 1.0), (False, -1.0), (False, 0.0), (False, None), (False, None),
    ]  # fmt: skip
    assert (collector.accuracy, collector.ties, collector.not_finite) == (0.2, 1, 2)
    assert verdicts[3].bad.logprob is None


def test_results_come_in_order_as_soon_as_those_before_are_there(tokenizer: Tokenizer) -> None:
    plan = planned(tokenizer, texts=[[1, 2], [3], [4, 5], [6, 7]])
    collector = ScoreCollector(plan, tokenizer)
    seen = []
    for number in (1, 0, 2):
        collector.add(number, [-1.0])
        seen.append(len(collector.complete()))
    assert seen == [0, 3, 1]
