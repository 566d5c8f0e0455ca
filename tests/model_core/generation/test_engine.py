"""Requests in one batch: each gets the output that it would get alone."""

import dataclasses
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from model_core.errors import InvalidParameters, PromptTooLong
from model_core.generation.engine import Engine, EngineBusy, EngineStopped, generate
from model_core.generation.forward.packed_model import pack_model
from model_core.generation.request import GenerationCancelled, GenerationOutput, ScoreOutput
from model_core.generation.sampler import NonFiniteLogits
from model_core.gpt import GPT
from model_core.schemas import SamplingParams
from model_core.tokenizer import Tokenizer
from tests.model_core.generation.conftest import start_engine
from tests.polling import eventually

PROMPT = "One day a little cat"


@pytest.fixture
def engine(model: GPT, tokenizer: Tokenizer) -> Iterator[Engine]:
    with start_engine(model, tokenizer) as running:
        yield running


def _settings(**changes: Any) -> SamplingParams:
    return SamplingParams.model_validate({"max_new_tokens": 30, "seed": 1, **changes})


def _recomputed(model: GPT, tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Greedy decoding with nothing kept between two tokens, until the model has no more positions."""
    ids = tokenizer.encode(prompt)
    read = len(ids)
    while len(ids) < model.config.block_size:
        with torch.no_grad():
            logits, _ = model(torch.tensor([ids]))
        token = int(logits[0, -1, : tokenizer.n_vocab].argmax())
        if token == tokenizer.eot:
            break
        ids.append(token)
    return ids[read:]


def test_the_cache_gives_what_full_recomputation_gives(shaped_model: GPT, tokenizer: Tokenizer) -> None:
    with start_engine(shaped_model, tokenizer) as engine:
        result = engine.complete(_settings(temperature=0, max_new_tokens=1000), PROMPT)

    assert len(result.choices[0].tokens) > 10
    assert list(result.choices[0].tokens) == _recomputed(shaped_model, tokenizer, PROMPT)


def test_rows_of_different_lengths_do_not_mix(model: GPT, tokenizer: Tokenizer, engine: Engine) -> None:
    prompts = [PROMPT[:size] for size in (1, 4, 9, 20, 3, 14)]

    with ThreadPoolExecutor(len(prompts)) as pool:
        results = list(pool.map(lambda p: engine.complete(_settings(temperature=0, max_new_tokens=99), p), prompts))

    assert [list(r.choices[0].tokens) for r in results] == [_recomputed(model, tokenizer, p) for p in prompts]


def test_a_seeded_result_does_not_depend_on_the_batch_it_met(engine: Engine) -> None:
    wanted = _settings(seed=5, n=2)
    alone = engine.complete(wanted, PROMPT)

    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(engine.complete, _settings(seed=k, n=2), "x" * k) for k in (3, 7, 11)]
        together = pool.submit(engine.complete, wanted, PROMPT).result()
    [other.result() for other in others]

    assert together == alone


def test_more_texts_than_rows_wait_their_turn(model: GPT, tokenizer: Tokenizer) -> None:
    wanted = _settings(n=5)
    with start_engine(model, tokenizer, max_rows=2) as narrow, start_engine(model, tokenizer, max_rows=8) as wide:
        assert narrow.complete(wanted, PROMPT).choices == wide.complete(wanted, PROMPT).choices


def test_choices_of_one_prompt_differ(engine: Engine) -> None:
    result = engine.complete(_settings(n=3), PROMPT)

    assert [choice.index for choice in result.choices] == [0, 1, 2]
    assert len({choice.tokens for choice in result.choices}) == 3
    assert result.usage.completion_tokens == sum(len(choice.tokens) for choice in result.choices)


def test_ids_that_only_pad_the_vocabulary_never_come(engine: Engine, tokenizer: Tokenizer) -> None:
    result = engine.complete(_settings(temperature=1000.0, top_k=0, n=16, max_new_tokens=40, logprobs=20), PROMPT)

    seen = {token for choice in result.choices for token in choice.tokens}
    listed = {t.token for choice in result.choices for s in choice.logprobs or () for t in s.top}
    assert max(seen | listed) < tokenizer.n_vocab


def test_an_empty_prompt_starts_a_new_text(engine: Engine, tokenizer: Tokenizer) -> None:
    result = engine.complete(_settings(max_new_tokens=3), "")

    assert result.usage.prompt_tokens == 1
    assert result.choices[0].text == tokenizer.decode(list(result.choices[0].tokens))


def test_a_full_context_ends_with_length(engine: Engine, model: GPT, tokenizer: Tokenizer) -> None:
    full = tokenizer.decode(_exactly(tokenizer, model.config.block_size))

    assert engine.complete(_settings(), full).choices[0].finish_reason == "context"
    assert engine.complete(_settings(), full).choices[0].tokens == ()


def test_a_prompt_over_the_context_is_refused(engine: Engine, model: GPT, tokenizer: Tokenizer) -> None:
    with pytest.raises(PromptTooLong, match=str(model.config.block_size)):
        engine.complete(_settings(), tokenizer.decode(_exactly(tokenizer, model.config.block_size)) + "x")


def test_end_of_text_ends_with_stop(tokenizer: Tokenizer, model_that_ends: GPT) -> None:
    with start_engine(model_that_ends, tokenizer) as engine:
        choice = engine.complete(_settings(temperature=0, logprobs=0), PROMPT).choices[0]

    assert (choice.tokens, choice.text, choice.finish_reason, choice.logprobs) == ((), "", "stop", ())
    assert choice.end_token is not None
    assert choice.end_token.token == tokenizer.eot


def test_a_stop_text_cuts_text_and_tokens_and_pieces(engine: Engine, tokenizer: Tokenizer) -> None:
    whole = engine.complete(_settings(temperature=0), PROMPT).choices[0]
    stop = whole.text[8:11]

    pieces, result = _listen(engine, _settings(temperature=0, stop=[stop]))

    choice = result.choices[0]
    assert choice.finish_reason == "stop"
    assert "".join(pieces) == choice.text == whole.text[: whole.text.index(stop)]
    assert choice.tokens == whole.tokens[: len(choice.tokens)]
    assert tokenizer.decode(list(choice.tokens)).startswith(choice.text)


def test_logprobs_are_those_of_the_model(engine: Engine, model: GPT, tokenizer: Tokenizer) -> None:
    scored = engine.complete(_settings(max_new_tokens=1, temperature=3.0, logprobs=2), PROMPT).choices[0].logprobs

    with torch.no_grad():
        logits, _ = model(torch.tensor([tokenizer.encode(PROMPT)]))
    expected = logits[0, -1, : tokenizer.n_vocab].log_softmax(-1)
    assert scored is not None
    assert scored[0].logprob == pytest.approx(float(expected[scored[0].token]), abs=1e-4)
    assert [t.token for t in scored[0].top] == expected.topk(2).indices.tolist()


def test_a_crash_of_the_engine_reaches_everybody_who_waits_and_is_counted(model: GPT, tokenizer: Tokenizer) -> None:
    def broken(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of memory")

    weights = dataclasses.replace(pack_model(model, tokenizer.n_vocab), head=broken)
    engine = Engine(weights, tokenizer, max_rows=1)
    hold, events = threading.Event(), [[], []]  # type: ignore[var-annotated]
    engine.submit_score([[1]], lambda _: _ignore(hold.wait(10)))
    for each in events:
        engine.submit(_settings(), PROMPT, each.append)
    engine.submit(_settings(), PROMPT, lambda _: None).cancel()
    hold.set()

    eventually(lambda: not engine.alive and engine.open_requests == 0)
    stats = engine.stats()
    assert (stats.submitted, stats.finished, stats.cancelled, stats.failed) == (4, 1, 1, 2)
    assert [[type(event) for event in each] for each in events] == [[EngineStopped], [EngineStopped]]
    with pytest.raises(EngineStopped):
        engine.complete(_settings(), PROMPT)


def test_a_closed_engine_ends_its_requests(engine: Engine) -> None:
    events: list[object] = []
    engine.submit(_settings(n=256), PROMPT, events.append)

    engine.close()

    stats = engine.stats()
    assert isinstance(events[-1], EngineStopped)
    assert (stats.submitted, stats.open_requests, stats.failed) == (1, 0, 1)


def test_an_engine_with_an_open_request_is_not_closed_as_unused(engine: Engine) -> None:
    request = engine.submit(_settings(n=256), PROMPT, lambda _: None)

    assert not engine.close_if_unused()
    assert engine.alive
    request.cancel()
    eventually(engine.close_if_unused)

    with pytest.raises(EngineStopped):
        engine.complete(_settings(), PROMPT)


def test_a_full_line_refuses_and_estimates_when_there_is_room(model: GPT, tokenizer: Tokenizer) -> None:
    hold = threading.Event()
    with start_engine(model, tokenizer, max_rows=1, max_queue=1) as engine:
        engine.submit(_settings(), PROMPT, lambda _: _ignore(hold.wait(10)))
        engine.submit(_settings(n=3), PROMPT, lambda _: None)
        with pytest.raises(EngineBusy) as full:
            engine.submit(_settings(), PROMPT, lambda _: None)
        with pytest.raises(EngineBusy):
            engine.submit_score([[1, 2]], lambda _: None)
        hold.set()
        eventually(lambda: engine.open_requests == 0)
        assert engine.complete(_settings(), PROMPT).choices

    prompt = len(tokenizer.encode(PROMPT))
    assert full.value.code == "inference_busy"
    assert full.value.open_tokens == 2 * prompt + (1 + 3) * 30
    assert 1 <= full.value.retry_after_s <= 60


def test_the_counters_add_up(engine: Engine, tokenizer: Tokenizer) -> None:
    output = engine.complete(_settings(n=2, ignore_eos=True), PROMPT)
    events: list[object] = []
    engine.submit_score([[1, 2, 3], [4]], events.append)
    engine.submit(_settings(), PROMPT, events.append, timeout_s=1e-9)
    engine.submit(_settings(n=256), PROMPT, events.append).cancel()
    eventually(lambda: engine.open_requests == 0)

    stats = engine.stats()
    assert (stats.submitted, stats.finished, stats.cancelled, stats.failed) == (4, 2, 1, 1)
    assert stats.completion_tokens >= output.usage.completion_tokens == 60
    assert stats.prompt_tokens >= output.usage.prompt_tokens == len(tokenizer.encode(PROMPT))
    assert (stats.scored_tokens, stats.rows, stats.waiting, stats.open_tokens) == (2, 0, 0, 0)
    assert stats.tokens_per_s > 0
    assert stats.first_token_s is not None
    assert stats.gap_s is not None


@pytest.mark.parametrize(
    ("change", "pointer"),
    [({"logit_bias": {290: 1.0}}, "/logit_bias/290"), ({"stop_token_ids": [1, 290]}, "/stop_token_ids/1")],
    ids=["logit_bias", "stop_token_ids"],
)
def test_ids_that_the_tokenizer_lacks_are_refused(engine: Engine, change: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidParameters) as refused:
        engine.submit(_settings(**change), PROMPT, lambda _: None)

    assert [problem.pointer for problem in refused.value.problems] == [pointer]


@pytest.mark.parametrize("token", [-1, 280, 319])
def test_prompts_of_ids_that_the_tokenizer_lacks_are_refused(engine: Engine, token: int) -> None:
    with pytest.raises(InvalidParameters) as prompt:
        engine.submit(_settings(), [1, token], lambda _: None)
    with pytest.raises(InvalidParameters) as score:
        engine.submit_score([[1], [2, token]], lambda _: None)

    assert [problem.pointer for problem in prompt.value.problems] == ["/prompt/1"]
    assert [problem.pointer for problem in score.value.problems] == ["/1/1"]


def test_a_prompt_of_ids_is_a_prompt_of_text(engine: Engine, tokenizer: Tokenizer) -> None:
    assert engine.complete(_settings(), tokenizer.encode(PROMPT)) == engine.complete(_settings(), PROMPT)


def test_the_engine_scores(engine: Engine, tokenizer: Tokenizer) -> None:
    events: list[Any] = []
    engine.submit_score([tokenizer.encode(PROMPT), [3], []], events.append)
    eventually(lambda: engine.open_requests == 0)

    assert isinstance(events[-1], ScoreOutput)
    assert [len(logprobs) for logprobs in events[-1].logprobs] == [len(tokenizer.encode(PROMPT)) - 1, 0, 0]


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_random_requests_of_which_a_third_leave_lose_no_row_and_change_no_text(
    model: GPT, tokenizer: Tokenizer, count: int
) -> None:
    chance = random.Random(count)
    with start_engine(model, tokenizer, max_rows=6, max_queue=count, cache_tokens=256) as engine:
        sent = [_send_random(engine, chance) for _ in range(count)]
        eventually(lambda: engine.open_requests == 0, timeout_s=300)
        stats = engine.stats()
        again = [engine.complete(*each.asked) for each in sent[:20] if each.asked]

    assert (stats.submitted, stats.rows, stats.waiting, stats.open_tokens, stats.failed) == (count, 0, 0, 0, 0)
    assert stats.finished + stats.cancelled == count
    assert stats.cancelled > 0
    assert all(sum(not isinstance(event, tuple) for event in each.events) == 1 for each in sent)
    whole = [each.events[-1] for each in sent[:20] if each.asked]
    pairs = zip(again, whole, strict=True)
    assert all(isinstance(old, GenerationCancelled) or new.choices == old.choices for new, old in pairs)


@dataclasses.dataclass
class _Sent:
    asked: tuple[SamplingParams, list[int]] | None = None
    events: list[Any] = dataclasses.field(default_factory=list)


def _send_random(engine: Engine, chance: random.Random) -> _Sent:
    """Send a text or a score; some leave at once, some after their first or second piece."""
    sent, leaves = _Sent(), chance.choice([None, None, None, None, 0, 1, 2])
    opened: list[Any] = []

    def on_event(event: object) -> None:
        sent.events.append(event)
        if len(sent.events) == leaves:
            [request.cancel() for request in opened]

    ids = [chance.randrange(250) for _ in range(chance.randint(1, 40))]
    client = chance.choice("abc")
    if chance.random() < 0.2:
        opened.append(engine.submit_score([ids, ids[:3], ids[:1]], on_event, client=client))
    else:
        params = _settings(
            n=chance.choice([1, 1, 2, 9]),
            max_new_tokens=chance.randint(1, 20),
            temperature=chance.choice([0.0, 1.0]),
            top_p=chance.choice([1.0, 0.8]),
            logprobs=chance.choice([None, 2]),
            seed=chance.randrange(100),
        )
        sent.asked = (params, ids)
        opened.append(engine.submit(params, ids, on_event, client=client))
    if leaves == 0:
        opened[0].cancel()
    return sent


def test_a_listener_that_fails_ends_only_its_own_request(engine: Engine) -> None:
    def fails(_: object) -> None:
        raise OSError("gone")

    engine.submit(_settings(), PROMPT, fails)

    assert engine.complete(_settings(), PROMPT).choices[0].tokens


def test_samples_touch_neither_the_model_nor_the_global_generator(model: GPT, tokenizer: Tokenizer) -> None:
    model.train()
    before = torch.get_rng_state()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        texts = generate(model, tokenizer, PROMPT, n=3, max_new_tokens=5, seed=1)

    assert len(texts) == 3
    assert texts == generate(model, tokenizer, PROMPT, n=3, max_new_tokens=5, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training


def test_logits_that_are_not_numbers_are_an_error_and_not_a_text(tokenizer: Tokenizer, broken_model: GPT) -> None:
    with pytest.raises(NonFiniteLogits):
        generate(broken_model, tokenizer, PROMPT)


def _listen(engine: Engine, settings: SamplingParams) -> tuple[list[str], GenerationOutput]:
    events: list[Any] = []
    done = threading.Event()
    engine.submit(settings, PROMPT, lambda e: (events.append(e), isinstance(e, tuple) or done.set())[0])
    assert done.wait(20)
    return [delta.text for event in events[:-1] for delta in event], events[-1]


def _ignore(_: object) -> None:
    return None


def _exactly(tokenizer: Tokenizer, count: int) -> list[int]:
    return tokenizer.encode("x" * count)[:count]
