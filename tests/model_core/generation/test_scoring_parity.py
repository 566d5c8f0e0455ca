"""Log-likelihoods from the engine compared with transformers' loss, and with our model without a cache."""

import math
import random
from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from model_core.generation.engine import Engine
from model_core.generation.request import ScoreEvent, ScoreOutput
from model_core.generation.scoring import ScoreCollector, plan_scores
from model_core.gpt import GPT
from model_core.score_schemas import InferenceScoreRequest, PairScore, TextScore
from model_core.tokenizer import Tokenizer
from tests.model_core.generation.conftest import start_engine, tiny_model

BLOCK = 64
CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # transformers keeps these as (in, out)
WORDS = ("One", " day", " a", " little", " cat", " went", " to", " the", " garden", ".", " \u732b", " Q", "\u2028")


@pytest.fixture(scope="module")
def equal_heads(tokenizer: Tokenizer) -> GPT:
    return tiny_model(n_head_list=(4, 4, 4), vocab_size=tokenizer.n_vocab)


@pytest.fixture(scope="module")
def theirs(equal_heads: GPT) -> GPT2LMHeadModel:
    shape = {"n_layer": 3, "n_head": 4, "n_embd": 32, "vocab_size": equal_heads.config.vocab_size, "n_positions": BLOCK}
    config = GPT2Config(**shape, bos_token_id=0, eos_token_id=0, attn_implementation="eager")
    model = GPT2LMHeadModel(config).eval()
    state = equal_heads.state_dict().items()
    model.load_state_dict({name: tensor.T if name.endswith(CONV1D) else tensor for name, tensor in state})
    return model


@pytest.fixture(scope="module")
def equal_engine(equal_heads: GPT, tokenizer: Tokenizer) -> Iterator[Engine]:
    with start_engine(equal_heads, tokenizer) as engine:
        yield engine


@pytest.fixture(scope="module")
def engine(model: GPT, tokenizer: Tokenizer) -> Iterator[Engine]:
    with start_engine(model, tokenizer) as engine:
        yield engine


def score(engine: Engine, tokenizer: Tokenizer, **fields: Any) -> ScoreCollector:
    """Score as an inference process does."""
    request = InferenceScoreRequest.model_validate({"run": "tiny", **fields})
    plan = plan_scores(request, tokenizer, BLOCK)
    collector = ScoreCollector(plan, tokenizer)
    events: SimpleQueue[ScoreEvent] = SimpleQueue()
    sequences, first = [window.tokens for window in plan.windows], [window.first for window in plan.windows]
    engine.submit_score(sequences, events.put, first=first)
    while not isinstance(event := events.get(timeout=60), ScoreOutput):
        assert isinstance(event, tuple), event
        for delta in event:
            collector.add(delta.index, delta.logprobs.tolist())
        collector.complete()
    return collector


def texts_of(collector: ScoreCollector) -> list[TextScore]:
    return [result for result in collector.results if isinstance(result, TextScore)]


def uncached(model: GPT, tokenizer: Tokenizer, ids: Sequence[int]) -> list[float]:
    """Log-probability of every token after the first one, from one forward pass."""
    with torch.no_grad():
        logits, _ = model(torch.tensor([ids]))
    logprobs = logits[0, :-1, : tokenizer.n_vocab].log_softmax(dim=-1)  # (T - 1, V)
    return [float(row[token]) for row, token in zip(logprobs, ids[1:], strict=True)]


def sentences(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(WORDS, k=draw.randint(1, 16))) for _ in range(count)]


def test_the_mean_is_the_loss_of_transformers(
    equal_engine: Engine, theirs: GPT2LMHeadModel, tokenizer: Tokenizer
) -> None:
    texts = [text for text in sentences(12) if len(tokenizer.encode(text)) > 1]
    for text, found in zip(texts, texts_of(score(equal_engine, tokenizer, texts=texts)), strict=True):
        ids = torch.tensor([tokenizer.encode(text)])
        with torch.no_grad():
            loss = theirs(ids, labels=ids).loss.item()
        assert found.logprob is not None
        assert found.tokens == ids.size(1) - 1
        assert -found.logprob / found.tokens == pytest.approx(loss, abs=1e-4)


def test_a_prefix_is_what_transformers_masks(
    equal_engine: Engine, theirs: GPT2LMHeadModel, tokenizer: Tokenizer
) -> None:
    items = [{"prefix": "One day a", "text": " little cat."}, {"prefix": "The c", "text": "at saw"}]
    for item, found in zip(items, texts_of(score(equal_engine, tokenizer, texts=items)), strict=True):
        ids = torch.tensor([tokenizer.encode(item["prefix"] + item["text"])])
        labels = ids.clone()
        labels[0, : ids.size(1) - found.tokens] = -100
        with torch.no_grad():
            loss = theirs(ids, labels=labels).loss.item()
        assert found.logprob is not None
        assert -found.logprob / found.tokens == pytest.approx(loss, abs=1e-4)


@pytest.mark.parametrize("bos", ["none", "eot"])
def test_unequal_heads_give_what_the_model_gives_without_a_cache(
    engine: Engine, model: GPT, tokenizer: Tokenizer, bos: str
) -> None:
    texts = [*sentences(10, seed=1), "a", [7] * (BLOCK - 1), [tokenizer.eot, 5]]
    start = [tokenizer.eot] if bos == "eot" else []
    for text, found in zip(texts, texts_of(score(engine, tokenizer, texts=texts, bos=bos)), strict=True):
        ids = [*start, *(tokenizer.encode(text) if isinstance(text, str) else text)]
        assert found.tokens == len(ids) - 1
        assert found.logprob == pytest.approx(math.fsum(uncached(model, tokenizer, ids)), abs=1e-4 * len(ids))


def test_what_is_not_counted_changes_no_bits(engine: Engine, tokenizer: Tokenizer) -> None:
    [counted] = texts_of(score(engine, tokenizer, texts=[{"prefix": "One day a", "text": " cat went"}], detail=True))
    [whole] = texts_of(score(engine, tokenizer, texts=["One day a cat went"], detail=True))
    assert counted.token_logprobs is not None
    assert whole.token_logprobs is not None
    assert counted.token_logprobs == whole.token_logprobs[-counted.tokens :]


def test_alone_or_among_others_a_text_has_the_same_bits(engine: Engine, tokenizer: Tokenizer) -> None:
    texts = [*sentences(20, seed=2), [9] * BLOCK, [3]]
    together = texts_of(score(engine, tokenizer, texts=texts, detail=True, bos="eot"))
    alone = [texts_of(score(engine, tokenizer, texts=[text], detail=True, bos="eot"))[0] for text in texts]
    assert together == alone


def test_windows_without_overlap_add_up_to_the_parts(engine: Engine, tokenizer: Tokenizer) -> None:
    ids = [draw % tokenizer.eot for draw in random.Random(3).sample(range(10_000), 2 * BLOCK + 21)]
    [whole] = texts_of(score(engine, tokenizer, texts=[ids], stride=BLOCK))
    pieces = [ids[: BLOCK + 1], ids[BLOCK : 2 * BLOCK + 1], ids[2 * BLOCK :]]  # each begins with the one counted last
    parts = texts_of(score(engine, tokenizer, texts=pieces, stride=BLOCK))
    assert whole.tokens == sum(part.tokens for part in parts) == len(ids) - 1
    assert whole.logprob == pytest.approx(math.fsum(part.logprob or 0.0 for part in parts), rel=1e-12)


def test_verdicts_on_pairs_are_those_of_direct_computation(engine: Engine, model: GPT, tokenizer: Tokenizer) -> None:
    draw = random.Random(4)
    pairs = [{"good": good, "bad": bad, "prefix": draw.choice(("", "One day", " a"))} for good, bad in
             zip(sentences(200, seed=5), sentences(200, seed=6), strict=True)]  # fmt: skip
    pairs[7]["bad"] = pairs[7]["good"]
    collector = score(engine, tokenizer, pairs=pairs)

    def direct(pair: dict[str, str], side: str) -> float:
        ids = tokenizer.encode(pair["prefix"] + pair[side])
        ends = [len(tokenizer.decode_bytes(ids[: at + 1])) for at in range(len(ids))]
        counted = [at for at, end in enumerate(ends) if end > len(pair["prefix"].encode()) and at > 0]
        logprobs = uncached(model, tokenizer, ids)
        return math.fsum(logprobs[at - 1] for at in counted)

    verdicts = [result for result in collector.results if isinstance(result, PairScore)]
    assert [pair.correct for pair in verdicts] == [direct(pair, "good") > direct(pair, "bad") for pair in pairs]
    assert collector.ties == sum(pair["good"] == pair["bad"] for pair in pairs)
    assert collector.accuracy == sum(pair.correct for pair in verdicts) / 200


def test_a_broken_model_gives_scores_that_are_not_finite(broken_model: GPT, tokenizer: Tokenizer) -> None:
    with start_engine(broken_model, tokenizer) as engine:
        collector = score(engine, tokenizer, pairs=[{"good": "One day", "bad": "a cat", "prefix": "The"}])
    assert (collector.accuracy, collector.ties, collector.not_finite) == (0.0, 0, 1)
