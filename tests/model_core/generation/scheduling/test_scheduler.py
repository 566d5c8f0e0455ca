"""Rows and turns: whatever joins and leaves, everybody gets what they would get alone, and no row is lost."""

import dataclasses
import itertools
import math
from collections import Counter
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_core.generation.forward.kv_cache import cache_bytes
from model_core.generation.forward.packed_model import PackedModel
from model_core.generation.forward.prefix_cache import PrefixCache
from model_core.generation.request import (
    GenerationCancelled,
    GenerationOutput,
    OpenRequest,
    ScoreOutput,
)
from model_core.generation.sampler import NonFiniteLogits
from model_core.tokenizer import Tokenizer
from tests.model_core.generation.scheduling.watched_scheduler import (
    BLOCK_SIZE,
    NO_REQUESTS,
    Caller,
    WatchedScheduler,
    choices_of,
    random_ids,
)

POISON = 7  # a token id whose embedding is not a number

# --- events


def test_a_step_calls_a_request_once_with_one_delta_of_each_choice(watched: WatchedScheduler) -> None:
    _, caller = watched.ask(random_ids(5), n=3, max_new_tokens=6, temperature=0)
    steps = 0
    while watched.scheduler.busy:
        watched.scheduler.step()
        steps += 1

    assert len(caller.calls) <= steps + 1  # the last step has the output too
    for call in caller.calls[:-1]:
        indices = [delta.index for delta in call]
        assert len(set(indices)) == len(indices)
    assert len(choices_of(caller)) == 3


@given(start=st.integers(0, 12), size=st.integers(1, 4), seed=st.integers(0, 5), logprobs=st.sampled_from([None, 0, 2]))
@settings(max_examples=8, deadline=None)
def test_deltas_together_are_the_choice(
    weights: PackedModel, tokenizer: Tokenizer, start: int, size: int, seed: int, logprobs: int | None
) -> None:
    watched = WatchedScheduler(weights, tokenizer)
    _, whole = watched.ask(random_ids(5), n=2, max_new_tokens=16, seed=seed)
    watched.run()
    stop = choices_of(whole)[0].text[start : start + size] or "never"

    _, caller = watched.ask(random_ids(5), n=2, max_new_tokens=16, seed=seed, stop=[stop], logprobs=logprobs)
    watched.run()

    for choice in choices_of(caller):
        deltas = [delta for delta in caller.deltas if delta.index == choice.index]
        assert "".join(delta.text for delta in deltas) == choice.text
        assert tuple(itertools.chain(*(delta.tokens for delta in deltas))) == choice.tokens
        scored = None if logprobs is None else tuple(itertools.chain(*(delta.logprobs for delta in deltas)))
        assert scored == choice.logprobs


def test_stop_token_ids_end_a_choice_and_are_not_part_of_it(watched: WatchedScheduler) -> None:
    _, whole = watched.ask(random_ids(5), max_new_tokens=20)
    watched.run()
    tokens = choices_of(whole)[0].tokens

    _, caller = watched.ask(random_ids(5), max_new_tokens=20, stop_token_ids=[tokens[4]])
    watched.run()

    choice = choices_of(caller)[0]
    assert choice.finish_reason == "stop"
    assert choice.tokens == tokens[: tokens.index(tokens[4])]


# --- leaving


def test_a_cancelled_text_is_gone_after_one_step_and_the_others_go_on(watched: WatchedScheduler) -> None:
    request, caller = watched.ask(random_ids(5), n=2, max_new_tokens=100)
    _, other = watched.ask(random_ids(9), max_new_tokens=10)
    watched.run(lambda: bool(caller.calls))

    request.cancel()
    watched.scheduler.step()

    assert watched.rows == 1
    assert isinstance(caller.end, GenerationCancelled)
    watched.run()
    assert len(choices_of(other)[0].tokens) == 10


def test_a_prompt_and_a_score_are_cancelled_while_they_are_read(watched: WatchedScheduler) -> None:
    watched.ask(random_ids(5), max_new_tokens=100)
    watched.scheduler.step()
    text, text_caller = watched.ask(random_ids(200), n=5)
    watched.scheduler.step()
    assert (watched.rows, watched.waiting, text_caller.calls) == (4, 2, [])

    text.cancel()
    watched.scheduler.step()

    assert (watched.rows, watched.waiting) == (1, 0)
    assert isinstance(text_caller.end, GenerationCancelled)

    score, score_caller = watched.score(random_ids(200), random_ids(100))
    watched.scheduler.step()
    assert (watched.rows, watched.waiting, score_caller.calls) == (2, 1, [])

    score.cancel()
    watched.scheduler.step()

    assert (watched.rows, watched.waiting) == (1, 0)
    assert isinstance(score_caller.end, GenerationCancelled)


def test_a_deadline_ends_what_runs_and_what_waits(weights: PackedModel, tokenizer: Tokenizer) -> None:
    watched = WatchedScheduler(weights, tokenizer, rows=1)
    callers = [watched.ask(random_ids(5), timeout_s=1e-6)[1], watched.score(random_ids(5), timeout_s=1e-6)[1]]

    watched.scheduler.step()

    assert [caller.end.code for caller in callers] == ["deadline_exceeded"] * 2
    assert not watched.scheduler.busy


def test_logits_that_are_not_numbers_end_only_their_own_request(weights: PackedModel, tokenizer: Tokenizer) -> None:
    wte = weights.wte.clone()
    wte[POISON] = torch.nan
    watched = WatchedScheduler(dataclasses.replace(weights, wte=wte), tokenizer)
    usual = {"max_new_tokens": 30, "logprobs": 0, "temperature": 0}
    _, alone = watched.ask(random_ids(70), **usual)
    watched.run()

    _, beside = watched.ask(random_ids(70), **usual)
    bad = [watched.ask([*random_ids(at), POISON, *random_ids(80)], n=2)[1] for at in (0, 70)]
    _, scores = watched.score([*random_ids(66), POISON, *random_ids(70)], random_ids(70))
    watched.run()
    _, later = watched.ask(random_ids(70), **usual, n=4)  # in all rows
    watched.run()

    assert [type(caller.end) for caller in bad] == [NonFiniteLogits] * 2
    assert POISON not in choices_of(alone)[0].tokens
    assert choices_of(beside) == choices_of(alone)
    assert [choice.tokens for choice in choices_of(later)] == [choices_of(alone)[0].tokens] * 4
    spoiled, whole = scores.end.logprobs
    assert spoiled[:64].isfinite().all()  # the chunk before
    assert spoiled[66:].isnan().all()
    assert (len(spoiled), len(whole)) == (136, 69)
    assert whole.isfinite().all()


# --- memory


@given(
    st.lists(st.tuples(st.integers(1, 240), st.integers(1, 40)), min_size=1, max_size=8),
    st.integers(BLOCK_SIZE, 4 * BLOCK_SIZE),
)
@settings(max_examples=5, deadline=None)
def test_nothing_starts_before_all_of_it_fits(
    weights: PackedModel, tokenizer: Tokenizer, sizes: list[tuple[int, int]], cache_tokens: int
) -> None:
    watched = WatchedScheduler(weights, tokenizer, rows=6, cache_tokens=cache_tokens)
    callers = [watched.ask(random_ids(prompt), max_new_tokens=new)[1] for prompt, new in sizes]

    watched.run()

    assert all(each.generating * each.length <= cache_tokens for each in watched.runner.passes)
    for caller, (prompt, new) in zip(callers, sizes, strict=True):
        assert len(choices_of(caller)[0].tokens) == min(new, BLOCK_SIZE - prompt)


# --- turns


def test_a_client_with_many_texts_gets_half_of_the_rows_while_another_waits(
    weights: PackedModel, tokenizer: Tokenizer
) -> None:
    watched, ended = WatchedScheduler(weights, tokenizer, rows=4), []  # type: ignore[var-annotated]
    for _ in range(20):
        watched.ask(random_ids(5), max_new_tokens=8, client="many", ended=ended)
    watched.scheduler.step()
    assert watched.rows == 4  # nobody else waits
    for _ in range(6):
        watched.ask(random_ids(5), max_new_tokens=8, client="other", ended=ended)

    watched.run()

    assert ended[:4] == ["many"] * 4
    assert Counter(ended[4:16]) == {"many": 6, "other": 6}
    assert ended[16:] == ["many"] * 10


def test_clients_take_turns_whoever_came_first(weights: PackedModel, tokenizer: Tokenizer) -> None:
    watched, ended = WatchedScheduler(weights, tokenizer, rows=1), []  # type: ignore[var-annotated]
    for client in ("a", "a", "a", "a", "b", "b", "c"):
        watched.ask(random_ids(3), max_new_tokens=2, client=client, ended=ended)

    watched.run()

    assert ended == ["a", "b", "c", "a", "b", "a", "a"]


def test_a_short_prompt_does_not_wait_for_the_long_one_of_another_client(watched: WatchedScheduler) -> None:
    watched.ask(random_ids(3), max_new_tokens=100, client="c")
    watched.scheduler.step()
    _, long = watched.ask(random_ids(250), client="a")
    watched.scheduler.step()
    _, short = watched.ask(random_ids(20), client="b")

    watched.run(lambda: bool(short.calls))

    assert not long.calls


def test_scores_stand_back_behind_texts_but_not_for_ever(weights: PackedModel, tokenizer: Tokenizer) -> None:
    watched = WatchedScheduler(weights, tokenizer, rows=2)
    texts = [watched.ask(random_ids(70, seed=k), max_new_tokens=4, client=str(k % 3))[1] for k in range(60)]
    watched.scheduler.step()
    _, scores = watched.score(random_ids(150), random_ids(10))
    watched.run(lambda: scores.ended)

    assert sum(not caller.calls for caller in texts) > 20
    watched.run()
    assert all(len(choices_of(caller)[0].tokens) == 4 for caller in texts)


# --- everything at once

_TEXT = st.fixed_dictionaries(
    {
        "size": st.sampled_from([1, 5, 64, 65, 150]),
        "seed": st.integers(0, 2),
        "n": st.sampled_from([1, 1, 2, 3]),
        "max_new_tokens": st.sampled_from([1, 4, 12]),
        "logprobs": st.sampled_from([None, 1]),
        "prompt_logprobs": st.booleans(),
    }
)
_WORK = st.tuples(
    st.one_of(_TEXT, st.lists(st.sampled_from([0, 1, 5, 66, 150]), max_size=4)),
    st.sampled_from("abc"),
    st.integers(0, 4),  # steps before the next request
    st.one_of(st.none(), st.none(), st.integers(0, 6)),  # steps until it is cancelled
)
_ALONE: dict[str, Any] = {}


def test_caches_stay_within_the_memory_that_they_are_given(weights: PackedModel, tokenizer: Tokenizer) -> None:
    granted: list[int] = []
    row = cache_bytes(weights.config, rows=1, length=BLOCK_SIZE)

    def take_memory(size_bytes: int) -> bool:
        granted.extend([size_bytes] if size_bytes <= 3 * row else [])
        return size_bytes <= 3 * row

    watched = WatchedScheduler(weights, tokenizer, rows=8, prefix_cache=PrefixCache(2 * row), take_memory=take_memory)
    callers = [watched.ask(random_ids(100 + number, seed=number), max_new_tokens=150)[1] for number in range(5)]
    most = 0
    while watched.scheduler.busy:
        watched.scheduler.step()
        stats = watched.scheduler.stats(NO_REQUESTS)
        assert stats.cache_bytes + stats.prefix_bytes <= granted[-1]
        most = max(most, stats.rows)

    assert all(isinstance(caller.end, GenerationOutput) for caller in callers)
    assert most == 2
    assert granted[-1] < row + 2 * row


@given(
    st.lists(_WORK, min_size=1, max_size=8),
    st.integers(1, 5),
    st.sampled_from([BLOCK_SIZE, 3 * BLOCK_SIZE, None]),
    st.sampled_from([0, 2**16, 2**24]),
    st.sampled_from([0.0, math.inf]),
)
@settings(max_examples=8, deadline=None)
def test_whatever_joins_and_leaves_everybody_gets_what_they_would_get_alone(
    weights: PackedModel,
    tokenizer: Tokenizer,
    work: list[Any],
    rows: int,
    cache_tokens: int | None,
    prefix_bytes: int,
    read_per_decode: float,
) -> None:
    limits = {"cache_tokens": cache_tokens, "read_per_decode": read_per_decode}
    watched = WatchedScheduler(weights, tokenizer, rows=rows, prefix_cache=PrefixCache(prefix_bytes), **limits)
    opened = []
    leaving: list[tuple[int, OpenRequest]] = []
    clock = itertools.count()
    for what, client, pause, stay in work:
        request, caller = _send(watched, what, client=client)
        opened.append((what, request, caller))
        now = next(clock)
        leaving += [] if stay is None else [(now + stay, request)]
        for _ in range(pause):
            now = next(clock)
            [request.cancel() for at, request in leaving if at == now]
            watched.scheduler.step()
            assert watched.rows <= rows
    [request.cancel() for _, request in leaving]
    watched.run()

    assert (watched.rows, watched.waiting) == (0, 0)
    for what, request, caller in opened:
        assert sum(not isinstance(call, tuple) for call in caller.calls) == 1
        assert isinstance(caller.end, GenerationCancelled) or _result(caller) == _alone(weights, tokenizer, what)
        assert request.cancelled or not isinstance(caller.end, GenerationCancelled)
    assert {request.outcome for _, request, _ in opened} <= {"finished", "cancelled"}


def _send(watched: WatchedScheduler, what: Any, **own: Any) -> tuple[OpenRequest, Caller]:
    if isinstance(what, list):
        return watched.score(*(random_ids(size, seed=size) for size in what), **own)
    return watched.ask(random_ids(what["size"]), **{name: what[name] for name in what if name != "size"}, **own)


def _result(caller: Caller) -> Any:
    """What does not depend on the crowd."""
    if isinstance(caller.end, ScoreOutput):
        return [logprobs.tolist() for logprobs in caller.end.logprobs]
    assert isinstance(caller.end, GenerationOutput), caller.end
    return caller.end.choices, caller.end.prompt_logprobs


def _alone(weights: PackedModel, tokenizer: Tokenizer, what: Any) -> Any:
    if (key := repr(what)) not in _ALONE:
        watched = WatchedScheduler(weights, tokenizer, rows=1)
        _, caller = _send(watched, what)
        watched.run()
        _ALONE[key] = _result(caller)
    return _ALONE[key]
