"""Tokens, texts and likelihoods of a real model, as an inference process gives them."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from model_core.checkpoint import parameters_state, writer
from model_core.config_loader import parse_config
from model_core.errors import CheckpointDamaged
from model_core.gpt import GPT
from model_core.storage.checkpoints import BEST
from model_core.storage.files import Layout
from model_core.storage.run import Run
from model_core.tokenizer import train_bpe
from tests.polling import eventually, eventually_async
from worker.inference.app import create_app
from worker.inference.model_cache import ModelCache
from worker.inference.tokenizer_cache import TokenizerCache
from worker.jobs.settings import InferenceSettings

MODEL = {"n_layer": 2, "n_embd": 32, "vocab_size": 320, "block_size": 64, "n_head_list": [4, 2]}
TRAINING = {"batch_size": 1, "sequence_length": 32, "total_batch_size": 32, "warmup_steps": 1, "max_steps": 4}
BODY = {"run": "tiny", "checkpoint": BEST}


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    layout = Layout.under(tmp_path_factory.mktemp("tokens"))
    tree = {"experiment_name": "tiny", "model": MODEL, "training": TRAINING}
    config = parse_config({**tree, "data": {"tokenizer": {"type": "bpe", "vocab_size": 280}}}).config
    run = Run.create(layout.run("tiny"), config)
    torch.manual_seed(0)
    state = parameters_state(GPT(config.model), config, train_bpe(["The cat saw a red ball. Ä 猫"], 280), 3)
    run.publish(BEST, writer(state), attempt=1, step=3, full=False, loss=1.0, val_loss=1.0)
    return layout


@pytest.fixture(scope="module")
def models(layout: Layout) -> Iterator[ModelCache]:
    models = ModelCache(layout, device="cpu", settings=InferenceSettings(weights="fp32", memory_gb=0.1))
    yield models
    models.close()


@pytest.fixture
def ask(models: ModelCache) -> Callable[..., httpx.Response]:
    """Send a request as the API does."""
    sha256 = Run.open(models.layout.run("tiny")).resolve("best").sha256

    def send(path: str, **fields: Any) -> httpx.Response:
        async def post() -> httpx.Response:
            transport = httpx.ASGITransport(create_app(models))
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
                return await http.post(path, json={"request": {**BODY, **fields}, "sha256": sha256})

        return asyncio.run(post())

    return send


def problems_of(reply: httpx.Response) -> list[tuple[str, Any]]:
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid_parameter")
    return [(problem["pointer"], problem["value"]) for problem in reply.json()["problems"]]


def test_tokens_name_their_bytes_and_need_no_model(layout: Layout) -> None:
    models = ModelCache(layout, device="cpu", settings=InferenceSettings(weights="fp32"))
    text = "The cat\u2028 \U0001f408"
    sha256 = Run.open(layout.run("tiny")).resolve("best").sha256

    async def scene() -> tuple[dict[str, Any], dict[str, Any]]:
        transport = httpx.ASGITransport(create_app(models))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            asked = {"request": {**BODY, "text": text}, "sha256": sha256}
            found = (await http.post("/tokenize", json=asked)).json()
            asked = {"request": {**BODY, "tokens": found["tokens"]}, "sha256": sha256}
            return found, (await http.post("/detokenize", json=asked)).json()

    found, back = asyncio.run(scene())
    assert models.info() == []
    assert (back["text"], back["whole"]) == (text, True)
    assert (found["count"], found["max_tokens"]) == (len(found["tokens"]), 64)
    whole = text.encode()
    parts = [whole[begin:end] for begin, end in found["offsets"]]
    assert b"".join(parts) == whole
    named = [
        part.decode() if is_text(part) else "bytes:" + "".join(f"\\x{byte:02x}" for byte in part) for part in parts
    ]
    assert found["pieces"] == named
    assert any(piece.startswith("bytes:") for piece in named)


def is_text(part: bytes) -> bool:
    return "\ufffd" not in part.decode(errors="replace")


def test_a_part_of_a_character_is_no_whole_text(ask) -> None:
    first = ask("/tokenize", text="\U0001f408").json()["tokens"][:1]
    assert ask("/detokenize", tokens=first).json() == {**BODY, "text": "\ufffd", "whole": False, "warnings": []}


def test_ids_that_only_pad_the_model_are_unknown(ask) -> None:
    count = 280
    assert problems_of(ask("/detokenize", tokens=[0, 319, 1, count + 5]))[0] == ("/tokens/1", 319)
    assert problems_of(ask("/score", texts=["a", [1, 319]])) == [("/texts/1/1", 319)]


def test_what_is_too_long_or_too_much_is_named(ask) -> None:
    assert problems_of(ask("/score", texts=["a", [1] * 65])) == [("/texts/1", 65)]
    assert problems_of(ask("/score", texts=["a"], stride=65)) == [("/stride", 65)]
    assert problems_of(ask("/score", texts=[[1] * 64] * 3, max_tokens=100)) == [("/texts", 189)]


def test_scores_say_which_weights_served_them(ask, models: ModelCache) -> None:
    reply = ask("/score", texts=["The cat", [5], ""], detail=True).json()
    assert (reply["run"], reply["checkpoint"], reply["step"], reply["weights"]) == ("tiny", BEST, 3, "fp32")
    assert len(reply["fingerprint"]) == 12
    first, *rest = reply["results"]
    assert first["logprob"] == pytest.approx(sum(part["logprob"] for part in first["token_logprobs"]))
    assert [(result["tokens"], result["logprob"]) for result in rest] == [(0, 0.0), (0, 0.0)]
    assert reply["usage"] == {"read_tokens": first["tokens"], "scored_tokens": first["tokens"]}
    assert "pairs" not in reply
    eventually(lambda: models.open_requests == 0)


def test_another_format_of_the_weights_serves_a_request_that_wants_it(ask) -> None:
    asked = {"texts": ["The cat saw a red ball."], "bos": "eot"}
    full, half = ask("/score", **asked).json(), ask("/score", **asked, weights="fp16").json()
    assert (full["weights"], half["weights"]) == ("fp32", "fp16")
    [expected], [found] = full["results"], half["results"]
    assert found["logprob"] / found["tokens"] == pytest.approx(expected["logprob"] / expected["tokens"], abs=1e-3)


def test_pairs_have_verdicts_and_their_counts(ask) -> None:
    pairs = [{"good": "The cat", "bad": "The"}, {"good": "red", "bad": "red"}, {"good": "a", "bad": "b"}]
    reply = ask("/score", pairs=pairs, bos="eot").json()
    assert (reply["ties"], reply["not_finite"]) == (1, 0)
    assert reply["accuracy"] == sum(pair["correct"] for pair in reply["pairs"]) / 3
    assert reply["pairs"][1]["margin"] == 0
    assert "results" not in reply


def test_lines_have_the_results_in_order_and_the_rest_at_the_end(ask) -> None:
    texts = [[1] * length for length in (60, 1, 30, 2, 64)]
    *parts, end = [json.loads(line) for line in ask("/score", texts=texts, stream=True).text.splitlines()]
    assert [result["tokens"] for part in parts for result in part["results"]] == [59, 0, 29, 1, 63]
    assert end["result"]["usage"]["scored_tokens"] == 152
    assert "results" not in end["result"]


def test_leaving_frees_the_work_within_a_step(models: ModelCache, ask) -> None:
    ask("/score", texts=["a"])
    sha256 = Run.open(models.layout.run("tiny")).resolve("best").sha256
    long = {"request": {**BODY, "texts": [[1] * 5000], "stride": 1, "max_tokens": 10**9}, "sha256": sha256}

    async def scene() -> None:
        transport = httpx.ASGITransport(create_app(models))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            asked = asyncio.ensure_future(http.post("/score", json=long))
            await eventually_async(lambda: models.open_requests == 1)
            asked.cancel()

    cancelled = models.totals()["cancelled"]
    asyncio.run(scene())
    eventually(lambda: models.open_requests == 0)
    assert models.totals()["cancelled"] == cancelled + 1


def test_a_file_that_is_no_checkpoint_is_damaged(tmp_path: Path, layout: Layout) -> None:
    broken = Layout.under(tmp_path)
    run = Run.create(broken.run("tiny"), Run.open(layout.run("tiny")).config())
    run.publish(BEST, lambda file: file.write(b"weights"), attempt=1, step=3, full=False, loss=1.0, val_loss=1.0)
    with pytest.raises(CheckpointDamaged):
        TokenizerCache(broken).get("tiny", BEST, run.resolve("best").sha256)
