"""Prompts and scores: how much is read between two tokens, in which chunks, and what comes from the prefix cache."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from model_core.generation.forward.model_runner import CHUNK
from model_core.generation.forward.packed_model import PackedModel
from model_core.generation.forward.prefix_cache import PrefixCache
from model_core.generation.request import (
    GenerationOutput,
    ScoreOutput,
)
from model_core.tokenizer import Tokenizer
from tests.model_core.generation.scheduling.watched_scheduler import (
    BLOCK_SIZE,
    WatchedScheduler,
    choices_of,
    random_ids,
    tiny_model,
)

# --- budget


def test_a_step_reads_a_chunk_beside_texts_and_many_prompts_without(watched: WatchedScheduler) -> None:
    watched.ask(random_ids(5), max_new_tokens=60)
    watched.run(lambda: bool(watched.runner.passes) and watched.runner.passes[-1].generating > 0)
    watched.runner.passes.clear()
    callers = [watched.ask(random_ids(size, seed=size))[1] for size in (150, 20, 30)]
    watched.run(lambda: all(caller.calls for caller in callers))

    beside = [sum(size for _, _, size in each.chunks) for each in watched.runner.passes if each.chunks]
    assert max(beside) <= CHUNK
    assert sum(beside) == 200
    watched.run()

    watched.runner.passes.clear()
    for size in (150, 20, 30):
        watched.ask(random_ids(size, seed=size + 1))
    watched.scheduler.step()
    assert sum(size for _, _, size in watched.runner.passes[0].chunks) == 200


def test_chunks_start_at_multiples_of_64_of_their_own_prompt(weights: PackedModel, tokenizer: Tokenizer) -> None:
    watched = WatchedScheduler(weights, tokenizer, rows=3)
    for size in (1, 64, 65, 130, 200):
        watched.ask(random_ids(size, seed=size))
    watched.score(random_ids(140), random_ids(3))
    watched.run()

    chunks = [chunk for each in watched.runner.passes for chunk in each.chunks]
    assert all(start % CHUNK == 0 for _, start, _ in chunks)
    assert Counter(size for _, _, size in chunks) == {1: 2, 64: 9, 2: 2, 8: 1, 11: 1}


def test_every_row_gets_a_token_in_every_step_while_a_prompt_is_read(watched: WatchedScheduler) -> None:
    _, caller = watched.ask(random_ids(5), n=2, max_new_tokens=40, temperature=0)
    watched.run(lambda: bool(caller.calls))
    watched.ask(random_ids(250))
    watched.runner.passes.clear()
    for _ in range(4):
        watched.scheduler.step()

    assert [each.generating for each in watched.runner.passes] == [2, 0] * 4


def test_rows_that_generate_wait_for_one_layer_at_most_and_a_pass_goes_on_in_later_steps(
    weights: PackedModel, tokenizer: Tokenizer
) -> None:
    watched = WatchedScheduler(weights, tokenizer, read_per_decode=0.0)
    _, caller = watched.ask(random_ids(5), max_new_tokens=60, temperature=0)
    watched.run(lambda: bool(caller.calls))
    _, other = watched.ask(random_ids(150), temperature=0)
    watched.runner.passes.clear()
    watched.run(lambda: bool(other.calls))

    chunks = [1 if each.chunks else 0 for each in watched.runner.passes]
    assert chunks == [0, 1, 0, 0, 1, 0, 0, 1, 0]  # three passes of two layers, and a token before each layer
    watched.run()
    _, alone = watched.ask(random_ids(150), temperature=0)
    watched.run()
    assert choices_of(other) == choices_of(alone)


# --- scores and log probabilities of prompts


def test_scores_are_those_of_the_model_and_equal_in_any_crowd(weights: PackedModel, tokenizer: Tokenizer) -> None:
    watched = WatchedScheduler(weights, tokenizer)
    sequences = [random_ids(size, seed=size) for size in (2, 64, 65, BLOCK_SIZE + 1, 1, 0)]
    watched.ask(random_ids(3), max_new_tokens=40, n=2)
    watched.scheduler.step()
    _, together = watched.score(*sequences)
    watched.run()

    assert isinstance(together.end, ScoreOutput)
    assert together.end.tokens == sum(max(len(ids) - 1, 0) for ids in sequences)
    for index, ids in enumerate(sequences):
        _, alone = watched.score(ids)
        watched.run()
        assert torch.equal(alone.end.logprobs[0], together.end.logprobs[index])
        torch.testing.assert_close(alone.end.logprobs[0], _logprobs_of(ids, tokenizer), atol=1e-4, rtol=0)
    assert sorted(delta.index for delta in together.deltas) == list(range(len(sequences)))


def test_log_probabilities_of_a_prompt_are_those_of_the_model(watched: WatchedScheduler, tokenizer: Tokenizer) -> None:
    ids = random_ids(150)
    for changes in ({}, {"max_new_tokens": 3, "n": 6}):
        _, caller = watched.ask(ids, logprobs=2, prompt_logprobs=True, **changes)
        watched.run()

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
    fresh, watched = (
        WatchedScheduler(weights, tokenizer),
        WatchedScheduler(weights, tokenizer, prefix_cache=PrefixCache(2**24)),
    )
    for prompt, cached in (
        (random_ids(140), 0),
        (random_ids(140), 128),
        (random_ids(128), 64),  # the last token is always read
        ([*random_ids(100), *random_ids(60, seed=9)], 64),
        (random_ids(250)[10:], 0),
    ):
        _, alone = fresh.ask(prompt, logprobs=5, max_new_tokens=12, n=2)
        _, caller = watched.ask(prompt, logprobs=5, max_new_tokens=12, n=2)
        fresh.run()
        watched.run()

        assert choices_of(caller) == choices_of(alone)
        assert caller.end.usage.cached_tokens == cached
    _, scored = watched.ask(random_ids(140), logprobs=0, prompt_logprobs=True)
    watched.run()
    assert scored.end.usage.cached_tokens == 0


def test_requests_at_once_share_what_the_first_has_read(weights: PackedModel, tokenizer: Tokenizer) -> None:
    watched = WatchedScheduler(weights, tokenizer, prefix_cache=PrefixCache(2**24))
    watched.ask(random_ids(3), max_new_tokens=60)
    watched.scheduler.step()
    callers = [watched.ask(random_ids(200), client=client)[1] for client in ("a", "a", "a")]
    watched.run()

    assert [caller.end.usage.cached_tokens for caller in callers] == [0, 192, 192]


def _logprobs_of(ids: Sequence[int], tokenizer: Tokenizer) -> Tensor:
    """What the model itself says, (T - 1,)."""
    if len(ids) < 2:
        return torch.empty(0)
    with torch.no_grad():
        logits, _ = tiny_model()(torch.tensor([ids[:-1]]))
    logprobs = logits[0, :, : tokenizer.n_vocab].log_softmax(-1)
    return logprobs.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
