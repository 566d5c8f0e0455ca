"""Rows, budgets and turns: whatever joins and leaves, everybody gets what they would get alone, and no row is lost."""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model_core.config import ModelConfig
from model_core.generation.forward.kv_cache import cache_bytes
from model_core.generation.forward.model_runner import CHUNK, ModelRunner, Prefill, PromptChunk
from model_core.generation.forward.packed_model import PackedModel, pack_model
from model_core.generation.forward.prefix_cache import PrefixCache
from model_core.generation.request import (
    GenerationCancelled,
    GenerationOutput,
    OpenRequest,
    Request,
    ScoreOutput,
    ScoreRequest,
)
from model_core.generation.sampler import NonFiniteLogits
from model_core.generation.scheduling.scheduler import Scheduler
from model_core.generation.stats import RequestCounts
from model_core.gpt import GPT
from model_core.schemas import Choice, SamplingParams
from model_core.tokenizer import Tokenizer

BLOCK_SIZE = 256
NO_REQUESTS = RequestCounts(submitted=0, open_requests=0, finished=0, cancelled=0, failed=0, open_tokens=0)
POISON = 7  # a token id whose embedding is not a number


@dataclass
class Pass:
    """What a scheduler asked of the model in one call."""

    generating: int  # rows
    length: int  # of the longest, in steps of the cache
    chunks: list[tuple[int, int, int]]  # row, start, size


class WatchedRunner(ModelRunner):
    """A runner that remembers what it computed."""

    def __init__(self, weights: PackedModel, *, rows: int, length: int) -> None:
        super().__init__(weights, rows=rows, length=length)
        self.passes: list[Pass] = []

    def begin(self, chunks: Sequence[PromptChunk]) -> Prefill:
        self.passes.append(Pass(0, 0, [(chunk.row, chunk.start, len(chunk.tokens)) for chunk in chunks]))
        return super().begin(chunks)

    def step(self, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        length = -(-(max(positions) + 1) // CHUNK) * CHUNK
        self.passes.append(Pass(len(tokens), length, []))
        return super().step(tokens, positions)


@dataclass
class Caller:
    """Who gets the events of a request."""

    calls: list[Any] = field(default_factory=list)

    @property
    def deltas(self) -> list[Any]:
        return [delta for call in self.calls if isinstance(call, tuple) for delta in call]

    @property
    def ended(self) -> bool:
        return bool(self.calls) and not isinstance(self.calls[-1], tuple)

    @property
    def end(self) -> Any:
        assert self.ended
        return self.calls[-1]


class House:
    """A scheduler over a tiny model, with everything that happened."""

    def __init__(self, weights: PackedModel, tokenizer: Tokenizer, *, rows: int = 4, **changes: Any) -> None:
        self.runner = WatchedRunner(weights, rows=rows, length=BLOCK_SIZE)
        whole_passes = {"read_per_decode": math.inf}  # whatever the time
        self.scheduler = Scheduler(self.runner, tokenizer, **whole_passes | changes)
        self.tokenizer = tokenizer

    def ask(self, prompt: Sequence[int], *, ended: list[str] | None = None, **changes: Any) -> tuple[Request, Caller]:
        """Add a request; its client is appended to `ended` when it ends."""
        caller = Caller()
        own = {name: changes.pop(name) for name in ("prompt_logprobs", "client", "timeout_s") if name in changes}
        params = SamplingParams.model_validate({"max_new_tokens": 5, "seed": 1, "ignore_eos": True, **changes})

        def on_event(event: Any) -> None:
            caller.calls.append(event)
            if ended is not None and not isinstance(event, tuple):
                ended.append(own["client"])

        request = Request(params, prompt, self.tokenizer, BLOCK_SIZE, on_event, **own)
        self.scheduler.add(request)
        return request, caller

    def score(self, *sequences: Sequence[int], **own: Any) -> tuple[ScoreRequest, Caller]:
        caller = Caller()
        request = ScoreRequest(sequences, self.tokenizer.n_vocab, BLOCK_SIZE, caller.calls.append, **own)
        self.scheduler.add(request)
        return request, caller

    def run(self, until: Callable[[], bool] = lambda: False, limit: int = 5000) -> None:
        for _ in range(limit):
            if not self.scheduler.busy or until():
                return
            self.scheduler.step()
        raise AssertionError(f"not done after {limit} steps")

    @property
    def rows(self) -> int:
        return self.scheduler.stats(NO_REQUESTS).rows

    @property
    def waiting(self) -> int:
        return self.scheduler.stats(NO_REQUESTS).waiting


@pytest.fixture(scope="module")
def weights(tokenizer: Tokenizer) -> PackedModel:
    return pack_model(_model(), tokenizer.n_vocab)


@pytest.fixture
def house(weights: PackedModel, tokenizer: Tokenizer) -> House:
    return House(weights, tokenizer)


@cache
def _model() -> GPT:
    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_embd": 32, "vocab_size": 320, "block_size": BLOCK_SIZE, "n_head_list": (2, 1)}
    model = GPT(ModelConfig.model_validate(shape))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def _ids(count: int, seed: int = 0) -> list[int]:
    return torch.randint(10, 250, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def _choices(caller: Caller) -> tuple[Choice, ...]:
    assert isinstance(caller.end, GenerationOutput), caller.end
    return caller.end.choices


# --- events


def test_a_step_calls_a_request_once_with_one_delta_of_each_choice(house: House) -> None:
    _, caller = house.ask(_ids(5), n=3, max_new_tokens=6, temperature=0)
    steps = 0
    while house.scheduler.busy:
        house.scheduler.step()
        steps += 1

    assert len(caller.calls) <= steps + 1  # the last step has the output too
    for call in caller.calls[:-1]:
        indices = [delta.index for delta in call]
        assert len(set(indices)) == len(indices)
    assert len(_choices(caller)) == 3


@given(start=st.integers(0, 12), size=st.integers(1, 4), seed=st.integers(0, 5), logprobs=st.sampled_from([None, 0, 2]))
@settings(max_examples=8, deadline=None)
def test_deltas_together_are_the_choice(
    weights: PackedModel, tokenizer: Tokenizer, start: int, size: int, seed: int, logprobs: int | None
) -> None:
    house = House(weights, tokenizer)
    _, whole = house.ask(_ids(5), n=2, max_new_tokens=16, seed=seed)
    house.run()
    stop = _choices(whole)[0].text[start : start + size] or "never"

    _, caller = house.ask(_ids(5), n=2, max_new_tokens=16, seed=seed, stop=[stop], logprobs=logprobs)
    house.run()

    for choice in _choices(caller):
        deltas = [delta for delta in caller.deltas if delta.index == choice.index]
        assert "".join(delta.text for delta in deltas) == choice.text
        assert tuple(itertools.chain(*(delta.tokens for delta in deltas))) == choice.tokens
        scored = None if logprobs is None else tuple(itertools.chain(*(delta.logprobs for delta in deltas)))
        assert scored == choice.logprobs


def test_stop_token_ids_end_a_choice_and_are_not_part_of_it(house: House) -> None:
    _, whole = house.ask(_ids(5), max_new_tokens=20)
    house.run()
    tokens = _choices(whole)[0].tokens

    _, caller = house.ask(_ids(5), max_new_tokens=20, stop_token_ids=[tokens[4]])
    house.run()

    choice = _choices(caller)[0]
    assert choice.finish_reason == "stop"
    assert choice.tokens == tokens[: tokens.index(tokens[4])]


# --- leaving


def test_a_cancelled_text_is_gone_after_one_step_and_the_others_go_on(house: House) -> None:
    request, caller = house.ask(_ids(5), n=2, max_new_tokens=100)
    _, other = house.ask(_ids(9), max_new_tokens=10)
    house.run(lambda: bool(caller.calls))

    request.cancel()
    house.scheduler.step()

    assert house.rows == 1
    assert isinstance(caller.end, GenerationCancelled)
    house.run()
    assert len(_choices(other)[0].tokens) == 10


def test_a_prompt_and_a_score_are_cancelled_while_they_are_read(house: House) -> None:
    house.ask(_ids(5), max_new_tokens=100)
    house.scheduler.step()
    text, text_caller = house.ask(_ids(200), n=5)
    house.scheduler.step()
    assert (house.rows, house.waiting, text_caller.calls) == (4, 2, [])

    text.cancel()
    house.scheduler.step()

    assert (house.rows, house.waiting) == (1, 0)
    assert isinstance(text_caller.end, GenerationCancelled)

    score, score_caller = house.score(_ids(200), _ids(100))
    house.scheduler.step()
    assert (house.rows, house.waiting, score_caller.calls) == (2, 1, [])

    score.cancel()
    house.scheduler.step()

    assert (house.rows, house.waiting) == (1, 0)
    assert isinstance(score_caller.end, GenerationCancelled)


def test_a_deadline_ends_what_runs_and_what_waits(weights: PackedModel, tokenizer: Tokenizer) -> None:
    house = House(weights, tokenizer, rows=1)
    callers = [house.ask(_ids(5), timeout_s=1e-6)[1], house.score(_ids(5), timeout_s=1e-6)[1]]

    house.scheduler.step()

    assert [caller.end.code for caller in callers] == ["deadline_exceeded"] * 2
    assert not house.scheduler.busy


def test_logits_that_are_not_numbers_end_only_their_own_request(weights: PackedModel, tokenizer: Tokenizer) -> None:
    wte = weights.wte.clone()
    wte[POISON] = torch.nan
    house = House(dataclasses.replace(weights, wte=wte), tokenizer)
    usual = {"max_new_tokens": 30, "logprobs": 0, "temperature": 0}
    _, alone = house.ask(_ids(70), **usual)
    house.run()

    _, beside = house.ask(_ids(70), **usual)
    bad = [house.ask([*_ids(at), POISON, *_ids(80)], n=2)[1] for at in (0, 70)]
    _, scores = house.score([*_ids(66), POISON, *_ids(70)], _ids(70))
    house.run()
    _, later = house.ask(_ids(70), **usual, n=4)  # in all rows
    house.run()

    assert [type(caller.end) for caller in bad] == [NonFiniteLogits] * 2
    assert POISON not in _choices(alone)[0].tokens
    assert _choices(beside) == _choices(alone)
    assert [choice.tokens for choice in _choices(later)] == [_choices(alone)[0].tokens] * 4
    spoiled, whole = scores.end.logprobs
    assert spoiled[:64].isfinite().all()  # the chunk before
    assert spoiled[66:].isnan().all()
    assert (len(spoiled), len(whole)) == (136, 69)
    assert whole.isfinite().all()


# --- budget


def test_a_step_reads_a_chunk_beside_texts_and_many_prompts_without(house: House) -> None:
    house.ask(_ids(5), max_new_tokens=60)
    house.run(lambda: bool(house.runner.passes) and house.runner.passes[-1].generating > 0)
    house.runner.passes.clear()
    callers = [house.ask(_ids(size, seed=size))[1] for size in (150, 20, 30)]
    house.run(lambda: all(caller.calls for caller in callers))

    beside = [sum(size for _, _, size in each.chunks) for each in house.runner.passes if each.chunks]
    assert max(beside) <= CHUNK
    assert sum(beside) == 200
    house.run()

    house.runner.passes.clear()
    for size in (150, 20, 30):
        house.ask(_ids(size, seed=size + 1))
    house.scheduler.step()
    assert sum(size for _, _, size in house.runner.passes[0].chunks) == 200


def test_chunks_start_at_multiples_of_64_of_their_own_prompt(weights: PackedModel, tokenizer: Tokenizer) -> None:
    house = House(weights, tokenizer, rows=3)
    for size in (1, 64, 65, 130, 200):
        house.ask(_ids(size, seed=size))
    house.score(_ids(140), _ids(3))
    house.run()

    chunks = [chunk for each in house.runner.passes for chunk in each.chunks]
    assert all(start % CHUNK == 0 for _, start, _ in chunks)
    assert Counter(size for _, _, size in chunks) == {1: 2, 64: 9, 2: 2, 8: 1, 11: 1}


def test_every_row_gets_a_token_in_every_step_while_a_prompt_is_read(house: House) -> None:
    _, caller = house.ask(_ids(5), n=2, max_new_tokens=40, temperature=0)
    house.run(lambda: bool(caller.calls))
    house.ask(_ids(250))
    house.runner.passes.clear()
    for _ in range(4):
        house.scheduler.step()

    assert [each.generating for each in house.runner.passes] == [2, 0] * 4


def test_rows_that_generate_wait_for_one_layer_at_most_and_a_pass_goes_on_in_later_steps(
    weights: PackedModel, tokenizer: Tokenizer
) -> None:
    house = House(weights, tokenizer, read_per_decode=0.0)
    _, caller = house.ask(_ids(5), max_new_tokens=60, temperature=0)
    house.run(lambda: bool(caller.calls))
    _, other = house.ask(_ids(150), temperature=0)
    house.runner.passes.clear()
    house.run(lambda: bool(other.calls))

    chunks = [1 if each.chunks else 0 for each in house.runner.passes]
    assert chunks == [0, 1, 0, 0, 1, 0, 0, 1, 0]  # three passes of two layers, and a token before each layer
    house.run()
    _, alone = house.ask(_ids(150), temperature=0)
    house.run()
    assert _choices(other) == _choices(alone)


# --- memory


@given(
    st.lists(st.tuples(st.integers(1, 240), st.integers(1, 40)), min_size=1, max_size=8),
    st.integers(BLOCK_SIZE, 4 * BLOCK_SIZE),
)
@settings(max_examples=5, deadline=None)
def test_nothing_starts_before_all_of_it_fits(
    weights: PackedModel, tokenizer: Tokenizer, sizes: list[tuple[int, int]], cache_tokens: int
) -> None:
    house = House(weights, tokenizer, rows=6, cache_tokens=cache_tokens)
    callers = [house.ask(_ids(prompt), max_new_tokens=new)[1] for prompt, new in sizes]

    house.run()

    assert all(each.generating * each.length <= cache_tokens for each in house.runner.passes)
    for caller, (prompt, new) in zip(callers, sizes, strict=True):
        assert len(_choices(caller)[0].tokens) == min(new, BLOCK_SIZE - prompt)


# --- turns


def test_a_client_with_many_texts_gets_half_of_the_rows_while_another_waits(
    weights: PackedModel, tokenizer: Tokenizer
) -> None:
    house, ended = House(weights, tokenizer, rows=4), []  # type: ignore[var-annotated]
    for _ in range(20):
        house.ask(_ids(5), max_new_tokens=8, client="many", ended=ended)
    house.scheduler.step()
    assert house.rows == 4  # nobody else waits
    for _ in range(6):
        house.ask(_ids(5), max_new_tokens=8, client="other", ended=ended)

    house.run()

    assert ended[:4] == ["many"] * 4
    assert Counter(ended[4:16]) == {"many": 6, "other": 6}
    assert ended[16:] == ["many"] * 10


def test_clients_take_turns_whoever_came_first(weights: PackedModel, tokenizer: Tokenizer) -> None:
    house, ended = House(weights, tokenizer, rows=1), []  # type: ignore[var-annotated]
    for client in ("a", "a", "a", "a", "b", "b", "c"):
        house.ask(_ids(3), max_new_tokens=2, client=client, ended=ended)

    house.run()

    assert ended == ["a", "b", "c", "a", "b", "a", "a"]


def test_a_short_prompt_does_not_wait_for_the_long_one_of_another_client(house: House) -> None:
    house.ask(_ids(3), max_new_tokens=100, client="c")
    house.scheduler.step()
    _, long = house.ask(_ids(250), client="a")
    house.scheduler.step()
    _, short = house.ask(_ids(20), client="b")

    house.run(lambda: bool(short.calls))

    assert not long.calls


def test_scores_stand_back_behind_texts_but_not_for_ever(weights: PackedModel, tokenizer: Tokenizer) -> None:
    house = House(weights, tokenizer, rows=2)
    texts = [house.ask(_ids(70, seed=k), max_new_tokens=4, client=str(k % 3))[1] for k in range(60)]
    house.scheduler.step()
    _, scores = house.score(_ids(150), _ids(10))
    house.run(lambda: scores.ended)

    assert sum(not caller.calls for caller in texts) > 20
    house.run()
    assert all(len(_choices(caller)[0].tokens) == 4 for caller in texts)


# --- scores and log probabilities of prompts


def test_scores_are_those_of_the_model_and_equal_in_any_crowd(weights: PackedModel, tokenizer: Tokenizer) -> None:
    house = House(weights, tokenizer)
    sequences = [_ids(size, seed=size) for size in (2, 64, 65, BLOCK_SIZE + 1, 1, 0)]
    house.ask(_ids(3), max_new_tokens=40, n=2)
    house.scheduler.step()
    _, together = house.score(*sequences)
    house.run()

    assert isinstance(together.end, ScoreOutput)
    assert together.end.tokens == sum(max(len(ids) - 1, 0) for ids in sequences)
    for index, ids in enumerate(sequences):
        _, alone = house.score(ids)
        house.run()
        assert torch.equal(alone.end.logprobs[0], together.end.logprobs[index])
        torch.testing.assert_close(alone.end.logprobs[0], _logprobs_of(ids, tokenizer), atol=1e-4, rtol=0)
    assert sorted(delta.index for delta in together.deltas) == list(range(len(sequences)))


def test_log_probabilities_of_a_prompt_are_those_of_the_model(house: House, tokenizer: Tokenizer) -> None:
    ids = _ids(150)
    for changes in ({}, {"max_new_tokens": 3, "n": 6}):
        _, caller = house.ask(ids, logprobs=2, prompt_logprobs=True, **changes)
        house.run()

        assert isinstance(caller.end, GenerationOutput)
        assert caller.end.prompt == tuple(ids)
        assert caller.end.prompt_logprobs is not None
        first, *others = caller.end.prompt_logprobs
        assert first is None
        assert [scored.token for scored in others if scored] == ids[1:]
        values = torch.tensor([scored.logprob for scored in others if scored])
        torch.testing.assert_close(values, _logprobs_of(ids, tokenizer), atol=1e-4, rtol=0)
        assert all(scored.top[0].logprob >= scored.logprob for scored in others if scored)


# --- prefixes


def test_a_prompt_that_begins_like_an_earlier_one_gives_the_same_bits(
    weights: PackedModel, tokenizer: Tokenizer
) -> None:
    fresh, house = House(weights, tokenizer), House(weights, tokenizer, prefix_cache=PrefixCache(2**24))
    for prompt, cached in (
        (_ids(140), 0),
        (_ids(140), 128),
        (_ids(128), 64),  # the last token is always read
        ([*_ids(100), *_ids(60, seed=9)], 64),
        (_ids(250)[10:], 0),
    ):
        _, alone = fresh.ask(prompt, logprobs=5, max_new_tokens=12, n=2)
        _, caller = house.ask(prompt, logprobs=5, max_new_tokens=12, n=2)
        fresh.run()
        house.run()

        assert _choices(caller) == _choices(alone)
        assert caller.end.usage.cached_tokens == cached
    _, scored = house.ask(_ids(140), logprobs=0, prompt_logprobs=True)
    house.run()
    assert scored.end.usage.cached_tokens == 0


def test_requests_at_once_share_what_the_first_has_read(weights: PackedModel, tokenizer: Tokenizer) -> None:
    house = House(weights, tokenizer, prefix_cache=PrefixCache(2**24))
    house.ask(_ids(3), max_new_tokens=60)
    house.scheduler.step()
    callers = [house.ask(_ids(200), client=client)[1] for client in ("a", "a", "a")]
    house.run()

    assert [caller.end.usage.cached_tokens for caller in callers] == [0, 192, 192]


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

    house = House(weights, tokenizer, rows=8, prefix_cache=PrefixCache(2 * row), take_memory=take_memory)
    callers = [house.ask(_ids(100 + number, seed=number), max_new_tokens=150)[1] for number in range(5)]
    most = 0
    while house.scheduler.busy:
        house.scheduler.step()
        stats = house.scheduler.stats(NO_REQUESTS)
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
    house = House(weights, tokenizer, rows=rows, prefix_cache=PrefixCache(prefix_bytes), **limits)
    opened = []
    leaving: list[tuple[int, OpenRequest]] = []
    clock = itertools.count()
    for what, client, pause, stay in work:
        request, caller = _send(house, what, client=client)
        opened.append((what, request, caller))
        now = next(clock)
        leaving += [] if stay is None else [(now + stay, request)]
        for _ in range(pause):
            now = next(clock)
            [request.cancel() for at, request in leaving if at == now]
            house.scheduler.step()
            assert house.rows <= rows
    [request.cancel() for _, request in leaving]
    house.run()

    assert (house.rows, house.waiting) == (0, 0)
    for what, request, caller in opened:
        assert sum(not isinstance(call, tuple) for call in caller.calls) == 1
        assert isinstance(caller.end, GenerationCancelled) or _result(caller) == _alone(weights, tokenizer, what)
        assert request.cancelled or not isinstance(caller.end, GenerationCancelled)
    assert {request.outcome for _, request, _ in opened} <= {"finished", "cancelled"}


def _send(house: House, what: Any, **own: Any) -> tuple[OpenRequest, Caller]:
    if isinstance(what, list):
        return house.score(*(_ids(size, seed=size) for size in what), **own)
    return house.ask(_ids(what["size"]), **{name: what[name] for name in what if name != "size"}, **own)


def _result(caller: Caller) -> Any:
    """What does not depend on the crowd."""
    if isinstance(caller.end, ScoreOutput):
        return [logprobs.tolist() for logprobs in caller.end.logprobs]
    assert isinstance(caller.end, GenerationOutput), caller.end
    return caller.end.choices, caller.end.prompt_logprobs


def _alone(weights: PackedModel, tokenizer: Tokenizer, what: Any) -> Any:
    if (key := repr(what)) not in _ALONE:
        house = House(weights, tokenizer, rows=1)
        _, caller = _send(house, what)
        house.run()
        _ALONE[key] = _result(caller)
    return _ALONE[key]


def _logprobs_of(ids: Sequence[int], tokenizer: Tokenizer) -> Tensor:
    """What the model itself says, (T - 1,)."""
    if len(ids) < 2:
        return torch.empty(0)
    with torch.no_grad():
        logits, _ = _model()(torch.tensor([ids[:-1]]))
    logprobs = logits[0, :, : tokenizer.n_vocab].log_softmax(-1)
    return logprobs.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
