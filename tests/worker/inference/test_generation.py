"""The inference application over HTTP, with a real model in this process."""

import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from model_core.attention.capture import attention_layers
from model_core.attention.exact import ExactWeights
from model_core.attention.exact_capture import write_exact
from model_core.attention.quota import AttentionQuota
from model_core.attention.record import AttentionRecord, dequantize
from model_core.checkpoint import load_model, parameters_state, writer
from model_core.config import ExperimentConfig
from model_core.config_loader import parse_config
from model_core.errors import AttentionTooLarge
from model_core.generation.forward.quality_gate import REFUSED, GateResult
from model_core.generation.forward.weight_formats import cpu_features
from model_core.gpt import GPT
from model_core.schemas import text_id
from model_core.storage.checkpoints import BEST, FINAL, CheckpointInfo
from model_core.storage.files import Layout, write_json
from model_core.storage.run import Run
from model_core.tokenizer import Tokenizer, train_bpe
from tests.polling import eventually
from tests.service.fake_host import Served
from worker.inference.app import create_app
from worker.inference.model_cache import ModelCache
from worker.jobs.settings import InferenceSettings

BLOCK = 512
CORPUS = ["One day a little cat went to the garden. The cat saw a red ball, and she was happy."] * 3


def _config(name: str) -> ExperimentConfig:
    model = {"n_layer": 2, "n_embd": 32, "vocab_size": 320, "block_size": BLOCK, "n_head_list": [4, 2]}
    training = {"batch_size": 2, "sequence_length": 32, "total_batch_size": 64, "warmup_steps": 1, "max_steps": 4}
    data = {"tokenizer": {"type": "bpe", "vocab_size": 280}}
    tree = {"experiment_name": name, "model": model, "training": training, "data": data}
    return parse_config(tree).config


def _publish(run: Run, tokenizer: Tokenizer, file: str, *, seed: int, step: int) -> CheckpointInfo:
    torch.manual_seed(seed)
    model = GPT(run.config().model)
    with torch.no_grad():
        model.transformer["wte"].weight[tokenizer.eot] = 0  # random models then hardly ever end a text
    state = parameters_state(model, run.config(), tokenizer, step)
    return run.publish(file, writer(state), attempt=1, step=step, full=False, loss=1.0, val_loss=1.0)


class Inference:
    """The application on a free port, and its client."""

    def __init__(self, layout: Layout, **settings: Any) -> None:
        self._layout, limits = layout, InferenceSettings(**{"memory_gb": 0.1, **settings})
        self._served = Served(create_app(ModelCache(layout, device="cpu", settings=limits)))
        self.url = self._served.url
        self.client = httpx.Client(base_url=self.url, timeout=30)

    def resolved(self, **fields: Any) -> dict[str, Any]:
        """The body of a request whose checkpoint the API has resolved."""
        info = Run.open(self._layout.run("tiny")).resolve(fields.get("checkpoint", "best"))
        return {"request": {"run": "tiny", **fields, "checkpoint": info.file}, "sha256": info.sha256}

    def generate(self, **fields: Any) -> httpx.Response:
        asked = {"max_new_tokens": 8, "seed": 1, "prompts": [""], **fields}
        return self.client.post("/generate", json=self.resolved(**asked))

    @property
    def busy(self) -> int:
        return int(self.client.get("/healthz").json()["open_requests"])

    def stop(self) -> None:
        self.client.close()
        self._served.stop()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(CORPUS, 280)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return Layout.under(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(layout: Layout, tokenizer: Tokenizer) -> Run:
    run = Run.create(layout.run("tiny"), _config("tiny"))
    _publish(run, tokenizer, BEST, seed=1, step=10)
    _publish(run, tokenizer, FINAL, seed=2, step=20)
    Run.create(layout.run("fresh"), _config("fresh"))
    return run


@pytest.fixture(scope="module")
def start(layout: Layout, run: Run) -> Iterator[Callable[..., Inference]]:
    """Start applications with their own settings."""
    started: list[Inference] = []

    def make(**settings: Any) -> Inference:
        started.append(Inference(layout, **settings))
        return started[-1]

    yield make
    for one in started:
        one.stop()


@pytest.fixture(scope="module")
def inference(start: Callable[..., Inference]) -> Inference:
    return start()


def test_a_reply_has_every_field_of_the_interface(inference: Inference, run: Run) -> None:
    reply = inference.generate(prompts=["One day", [5, 6]], n=2, echo=True, logprobs=1).json()

    assert {key: reply[key] for key in ("run", "checkpoint", "step", "sha256", "seed", "warnings")} == {
        "run": "tiny", "checkpoint": BEST, "step": 10, "sha256": run.resolve("best").sha256, "seed": 1, "warnings": [],
    }  # fmt: skip
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2, 3]
    assert reply["choices"][0].keys() == {"index", "text", "tokens", "finish_reason", "logprobs"}
    assert (reply["prompts"][1]["tokens"], reply["prompts"][1]["logprobs"][0]) == ([5, 6], None)
    assert reply["usage"]["completion_tokens"] == sum(len(choice["tokens"]) for choice in reply["choices"])
    assert reply["usage"]["prompt_tokens"] == sum(len(prompt["tokens"]) for prompt in reply["prompts"])
    (model,) = inference.client.get("/healthz").json()["models"]
    assert [model[key] for key in ("weights", "fingerprint")] == [reply["weights"], reply["fingerprint"]]


def test_a_stream_is_pieces_and_then_the_same_reply(inference: Inference) -> None:
    asked = {"prompts": ["The cat", "A ball"], "n": 2, "logprobs": 0}
    whole = inference.generate(**asked).json()

    streamed = inference.generate(**asked, stream=True)

    *lines, last = [json.loads(line) for line in streamed.content.splitlines()]
    assert streamed.headers["content-type"].startswith("application/x-ndjson")
    assert last["result"]["choices"] == whole["choices"]
    assert [line.get("fingerprint") for line in lines] == [whole["fingerprint"]] + [None] * (len(lines) - 1)
    for choice in whole["choices"]:
        gains = [gain for line in lines for gain in line["choices"] if gain["index"] == choice["index"]]
        assert [gain.get("finish_reason") for gain in gains] == [None] * (len(gains) - 1) + [choice["finish_reason"]]
        assert "".join(gain["text"] for gain in gains) == choice["text"]
        assert [token for gain in gains for token in gain["tokens"]] == choice["tokens"]
        assert [scored for gain in gains for scored in gain["logprobs"]] == choice["logprobs"]


def test_a_stream_says_at_once_that_a_choice_has_ended(inference: Inference) -> None:
    asked = {"prompts": ["The cat", "A ball"], "temperature": 0, "max_new_tokens": 120, "ignore_eos": True}
    first, second = (choice["text"] for choice in inference.generate(**asked).json()["choices"])
    stop = next(first[:end] for end in range(1, 100) if first[:end] not in second)

    *lines, _ = inference.generate(**asked, stop=[stop], stream=True).content.splitlines()

    read = [json.loads(line)["choices"] for line in lines]
    ends = {
        gain["index"]: (i, gain["finish_reason"])
        for i, of in enumerate(read)
        for gain in of
        if gain.get("finish_reason")
    }
    assert ends[0][1] == "stop"
    assert ends[1] == (len(read) - 1, "length")
    assert ends[0][0] < ends[1][0]


def test_the_token_that_ends_a_choice_is_scored_apart(inference: Inference) -> None:
    asked = {"temperature": 0, "logprobs": 2, "max_new_tokens": 3}
    first = inference.generate(**asked).json()["choices"][0]["logprobs"][0]
    ended = {**asked, "stop_token_ids": [first["token"]]}

    line, last = map(json.loads, inference.generate(**ended, stream=True).content.splitlines())

    choice = {"index": 0, "text": "", "tokens": [], "finish_reason": "stop", "logprobs": [], "end_token": first}
    assert line["choices"] == last["result"]["choices"] == inference.generate(**ended).json()["choices"] == [choice]


def test_the_usage_counts_a_prompt_once_and_every_choice(inference: Inference) -> None:
    prompts = [[50, 51] * 65, [52] * 70, [50, 51, 50]]  # 2, 1 and no chunks before the last token
    asked = {"prompts": prompts, "n": 2, "max_new_tokens": 3, "ignore_eos": True}
    usages = [inference.generate(**asked).json()["usage"] for _ in range(2)]

    counts = {"prompt_tokens": 203, "completion_tokens": 18}
    assert usages == [{**counts, "cached_tokens": 0}, {**counts, "cached_tokens": 192}]


@pytest.mark.parametrize("prompts", [[[280]], ["One", [5, 6, 280]]], ids=["one", "two"])
def test_an_unknown_id_is_named_with_its_prompt(inference: Inference, prompts: list[Any]) -> None:
    reply = inference.generate(prompts=prompts)

    [problem] = reply.json()["problems"]
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid_parameter")
    assert problem["pointer"] == f"/prompts/{len(prompts) - 1}/{len(prompts[-1]) - 1}"


@pytest.mark.parametrize("stream", [True, False])
def test_a_deadline_ends_a_request(inference: Inference, stream: bool) -> None:
    asked = {"max_new_tokens": BLOCK, "n": 64, "timeout_s": 0.05, "stream": stream, "ignore_eos": True}
    reply = inference.generate(**asked)

    last = json.loads(reply.content.splitlines()[-1])
    error = last["error"] if stream and reply.status_code == 200 else last
    assert (reply.status_code in {200, 504}, error["code"]) == (True, "deadline_exceeded")
    eventually(lambda: inference.busy == 0)


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"run": "nobody"}, 404, "run_not_found"),
        ({"run": "fresh"}, 409, "checkpoint_not_ready"),
        ({"temperature": -1}, 422, "invalid_parameter"),
        ({"run": "../x"}, 422, "invalid_parameter"),
        ({"prompts": ["cat " * 600]}, 422, "prompt_too_long"),
        ({"prompts": ["One", "cat " * 600], "stream": True}, 422, "prompt_too_long"),
    ],
)
def test_bad_input_is_a_status_and_a_code(inference: Inference, fields: dict[str, Any], status: int, code: str) -> None:
    reply = inference.generate(**fields)

    assert (reply.status_code, reply.json()["code"]) == (status, code)
    assert reply.json()["detail"]


def test_a_body_that_is_not_json_is_malformed(inference: Inference) -> None:
    reply = inference.client.post("/generate", content=b"{", headers={"content-type": "application/json"})

    assert (reply.status_code, reply.json()["code"]) == (400, "malformed_body")


def test_a_replaced_checkpoint_answers_from_the_next_request_on(
    inference: Inference, run: Run, tokenizer: Tokenizer
) -> None:
    before = inference.generate(checkpoint="final").json()

    info = _publish(run, tokenizer, FINAL, seed=3, step=30)
    after = inference.generate(checkpoint="final").json()

    assert (before["step"], after["step"]) == (20, 30)
    assert before["choices"] != after["choices"]
    models = inference.client.get("/healthz").json()["models"]
    assert [model["sha256"] for model in models if model["file"] == FINAL] == [info.sha256]


def test_a_deleted_checkpoint_is_not_found(inference: Inference, run: Run, tokenizer: Tokenizer) -> None:
    _publish(run, tokenizer, "model_00035.pt", seed=4, step=35)
    resolved = inference.resolved(checkpoint="step=35", prompts=[""])
    run.remove("model_00035.pt", is_over=True)

    reply = inference.client.post("/generate", json=resolved)

    assert (reply.status_code, reply.json()["code"]) == (404, "checkpoint_not_found")


def test_a_damaged_checkpoint_is_named(inference: Inference, run: Run, tokenizer: Tokenizer) -> None:
    _publish(run, tokenizer, "model_00040.pt", seed=4, step=40)
    path = run.path / "model_00040.pt"
    path.write_bytes(path.read_bytes()[:-100])

    reply = inference.generate(checkpoint="step=40")

    assert (reply.status_code, reply.json()["code"]) == (409, "checkpoint_damaged")


@pytest.mark.parametrize("stream", [True, False])
def test_a_closed_connection_ends_its_generation(inference: Inference, stream: bool) -> None:
    def totals() -> dict[str, int]:
        found: dict[str, int] = inference.client.get("/healthz").json()["totals"]
        return found

    before, asked = totals(), {"prompts": ["One", "day"], "max_new_tokens": BLOCK, "ignore_eos": True, "n": 32}
    body = json.dumps(inference.resolved(**asked, stream=stream)).encode()
    host, port = inference.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}"
        head = f"POST /generate HTTP/1.1\r\nHost: localhost\r\n{kind}"
        client.sendall(head.encode() + b"\r\n\r\n" + body)
        eventually(lambda: totals()["completion_tokens"] > before["completion_tokens"])
    eventually(lambda: inference.busy == 0)

    after = totals()
    assert after["cancelled"] - before["cancelled"] == 2
    assert after["completion_tokens"] - before["completion_tokens"] < 2 * 32 * BLOCK / 2


def test_a_full_queue_is_a_429_with_a_time(start: Callable[..., Inference]) -> None:
    inference = start(max_rows=1, max_queue=1)

    reply = inference.generate(prompts=["One", "day", "a"], max_new_tokens=BLOCK, ignore_eos=True)

    assert (reply.status_code, reply.json()["code"]) == (429, "inference_busy")
    assert 1 <= int(reply.headers["retry-after"]) <= 60
    eventually(lambda: inference.busy == 0)


def test_a_model_that_int8_spoils_is_served_in_another_format_which_replies_and_health_name(
    start: Callable[..., Inference], run: Run
) -> None:
    sha256 = run.resolve("best").sha256
    measured = GateResult(sha256, torch.__version__, cpu_features(), 4096, 2.0, 2.5, "refused")
    write_json(run.path / "model_best.int8.json", asdict(measured))
    inference = start(weights="int8")

    reply = inference.generate().json()

    (model,) = inference.client.get("/healthz").json()["models"]
    assert reply["weights"] != "int8"
    assert [warning["code"] for warning in reply["warnings"]][:1] == [REFUSED]
    assert {key: model[key] for key in ("weights", "fingerprint", "warnings")} == {
        key: reply[key] for key in ("weights", "fingerprint", "warnings")
    }


def test_exact_attention_is_written_beside_its_record(inference: Inference, layout: Layout) -> None:
    text = "The cat saw a red ball"
    inference.client.post("/capture", json=inference.resolved(id=text_id(text), text=text))
    for _ in range(2):
        reply = inference.client.post("/exact", json=inference.resolved(id=text_id(text)))
        assert reply.json()["is_written"], reply.text

    loaded = load_model(Run.open(layout.run("tiny")), "best")
    record = AttentionRecord.find(layout, "tiny", text_id(text), loaded.info.sha256)
    assert record is not None
    exact = ExactWeights.find(record)
    assert exact is not None
    idx = torch.tensor([record.manifest["token_ids"]])
    for layer, expected in enumerate(attention_layers(loaded.model, idx)):
        np.testing.assert_allclose(exact.layer(layer), expected.numpy(), atol=1e-6)
        assert np.abs(dequantize(record.layer(layer)) - exact.layer(layer)).max() <= 0.004


def test_exact_attention_without_room_is_refused(inference: Inference, layout: Layout) -> None:
    text = "The red ball saw a cat"
    inference.client.post("/capture", json=inference.resolved(id=text_id(text), text=text))
    loaded = load_model(Run.open(layout.run("tiny")), "best")
    record = AttentionRecord.find(layout, "tiny", text_id(text), loaded.info.sha256)
    assert record is not None
    with pytest.raises(AttentionTooLarge) as refusal:
        write_exact(loaded, record, AttentionQuota(layout, 1))
    assert refusal.value.problems[0].nearest == ("u8",)
    assert ExactWeights.find(record) is None
    assert write_exact(loaded, record, AttentionQuota(layout, 2**30)) is not None


def test_attention_is_captured_for_a_text(inference: Inference, layout: Layout) -> None:
    text = "The cat saw a red ball"

    reply = inference.client.post("/capture", json=inference.resolved(id=text_id(text), text=text))

    assert reply.status_code == 200, reply.text
    assert [layer["n_head"] for layer in reply.json()["layers"]] == [4, 2]
    assert (layout.attention_of("tiny") / text_id(text)).is_dir()


def test_a_text_that_is_too_long_is_refused_before_a_model_is_loaded(start: Callable[..., Inference]) -> None:
    inference, text = start(), "The cat saw a red ball. " * 40

    reply = inference.client.post("/capture", json=inference.resolved(id=text_id(text), text=text))

    assert (reply.status_code, reply.json()["code"]) == (422, "prompt_too_long")
    [problem] = reply.json()["problems"]
    assert (problem["pointer"], problem["nearest"]) == ("/text", [_config("tiny").model.block_size])
    assert inference.client.get("/healthz").json()["models"] == []
