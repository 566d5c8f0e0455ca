"""Requests in one batch: each gets the output that it would get alone."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from model_core.errors import PromptTooLong
from model_core.generation.engine import Engine, EngineBusy, EngineStopped, generate
from model_core.generation.scheduler import GenerationOutput, TextDelta
from model_core.gpt import GPT
from model_core.schemas import SamplingParams
from model_core.tokenizer import Tokenizer
from tests.polling import eventually

PROMPT = "One day a little cat"


@pytest.fixture
def engine(model: GPT, tokenizer: Tokenizer) -> Iterator[Engine]:
    with Engine(model, tokenizer) as running:
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
    with Engine(shaped_model, tokenizer) as engine:
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
    with Engine(model, tokenizer, max_batch=2) as narrow, Engine(model, tokenizer, max_batch=8) as wide:
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
    with Engine(model_that_ends, tokenizer) as engine:
        choice = engine.complete(_settings(temperature=0), PROMPT).choices[0]

    assert (choice.tokens, choice.text, choice.finish_reason) == ((), "", "stop")


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


def test_a_cancelled_request_ends_within_a_step_and_leaves_the_others(slow: Engine) -> None:
    events: list[object] = []
    first = threading.Event()
    request = slow.submit(
        _settings(max_new_tokens=50, n=2), PROMPT, lambda event: (events.append(event), first.set())[0]
    )
    other = slow.submit(_settings(max_new_tokens=4), PROMPT, lambda _: None)

    assert first.wait(10)
    request.cancel()
    eventually(lambda: other.ended and slow.open_requests == 0)

    pieces = sum(isinstance(event, TextDelta) for event in events)
    assert pieces < 20
    assert [type(event).__name__ for event in events if not isinstance(event, TextDelta)] == ["GenerationCancelled"]


def test_a_crash_of_the_engine_reaches_everybody_who_waits(
    model: GPT, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, tokenizer)

    def broken(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("model_core.generation.model_runner.ModelRunner.step", broken)
    with pytest.raises(EngineStopped, match="out of memory"):
        engine.complete(_settings(), PROMPT)
    eventually(lambda: not engine.alive)
    with pytest.raises(EngineStopped):
        engine.complete(_settings(), PROMPT)


def test_a_closed_engine_ends_its_requests(slow: Engine) -> None:
    events: list[object] = []
    slow.submit(_settings(), PROMPT, events.append)

    slow.close()

    assert isinstance(events[-1], EngineStopped)


def test_a_full_line_refuses(model: GPT, tokenizer: Tokenizer, slow: Engine) -> None:
    slow.submit(_settings(), PROMPT, lambda _: None)
    slow.submit(_settings(), PROMPT, lambda _: None)

    with pytest.raises(EngineBusy):
        slow.submit(_settings(), PROMPT, lambda _: None)


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
    from model_core.generation.sampler import NonFiniteLogits

    with pytest.raises(NonFiniteLogits):
        generate(broken_model, tokenizer, PROMPT)


@pytest.fixture
def slow(model: GPT, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """An engine whose steps take long enough to act between two of them; at most two requests."""
    from model_core.generation.model_runner import ModelRunner

    quick = ModelRunner.step

    def unhurried(self: ModelRunner, *args: Any) -> torch.Tensor:
        time.sleep(0.02)
        return quick(self, *args)

    monkeypatch.setattr(ModelRunner, "step", unhurried)
    with Engine(model, tokenizer, max_open=2) as running:
        yield running


def _listen(engine: Engine, settings: SamplingParams) -> tuple[list[str], GenerationOutput]:
    events: list[Any] = []
    done = threading.Event()
    engine.submit(settings, PROMPT, lambda e: (events.append(e), isinstance(e, TextDelta) or done.set())[0])
    assert done.wait(20)
    return [event.text for event in events[:-1]], events[-1]


def _exactly(tokenizer: Tokenizer, count: int) -> list[int]:
    return tokenizer.encode("x" * count)[:count]
