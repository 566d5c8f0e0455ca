"""The inference process over real HTTP, with a real Redis that starts late."""

import asyncio
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from model_core.checkpoint import parameters_state, writer
from model_core.config import ExperimentConfig
from model_core.config_loader import parse_config
from model_core.gpt import GPT
from model_core.schemas import text_id
from model_core.storage.checkpoints import BEST, FINAL, CheckpointInfo
from model_core.storage.files import Layout
from model_core.storage.run import Run
from model_core.tokenizer import Tokenizer, train_bpe
from tests.polling import eventually
from worker.inference.__main__ import listen
from worker.jobs.redis_client import Registry

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
    """A running process and its client."""

    def __init__(self, data: Path, redis_url: str, log: Path) -> None:
        self._layout = Layout.under(data)
        environment = {**os.environ, "HEADCOUNT_DATA": str(data), "HEADCOUNT_REDIS_URL": redis_url}
        environment |= {"HEADCOUNT_INFERENCE_DEVICE": "cpu", "HEADCOUNT_INFERENCE_MEMORY_GB": "0.1"}
        command = [sys.executable, "-m", "worker.inference", "--host", "127.0.0.1", "--port", "0", "--threads", "1"]
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(command, env=environment, stderr=stderr)
        eventually(lambda: "inference ready" in log.read_text() or self.process.poll() is not None, 60)
        self.url = next(word[4:] for word in log.read_text().split() if word.startswith("url="))
        self.client = httpx.Client(base_url=self.url, timeout=30)

    def resolved(self, **fields: Any) -> dict[str, Any]:
        """The body of a request whose checkpoint the API has resolved."""
        info = Run.open(self._layout.run("tiny")).resolve(fields.get("checkpoint", "best"))
        return {"request": {"run": "tiny", **fields, "checkpoint": info.file}, "sha256": info.sha256}

    def generate(self, **fields: Any) -> httpx.Response:
        return self.client.post("/generate", json=self.resolved(**{"max_new_tokens": 8, "seed": 1, **fields}))

    @property
    def busy(self) -> int:
        return int(self.client.get("/healthz").json()["open_requests"])


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
def absent_redis(start_redis: Callable[..., Any]) -> Any:
    server = start_redis()
    server.kill()
    return server


@pytest.fixture(scope="module")
def inference(
    layout: Layout, run: Run, absent_redis: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Inference]:
    started = Inference(layout.exp.parent, absent_redis.url, tmp_path_factory.mktemp("log") / "log")
    yield started
    started.client.close()
    started.process.kill()
    started.process.wait()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_accepted_connection_sends_small_replies_at_once(host: str) -> None:
    async def nodelay() -> int:
        accepted: asyncio.Queue[int] = asyncio.Queue()

        def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            option = writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            accepted.put_nowait(option)
            writer.close()

        listening = listen(host, 0)
        async with await asyncio.start_server(accept, sock=listening):
            _, writer = await asyncio.open_connection(*listening.getsockname()[:2])
            writer.close()
            return await accepted.get()

    assert asyncio.run(nodelay()) == 1


def is_taken(error: OSError) -> bool:
    return error.errno == errno.EADDRINUSE


def test_a_taken_port_is_an_error_of_the_caller() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, check=is_taken):
        listen("127.0.0.1", taken.getsockname()[1])


def test_a_reply_has_every_field_of_the_interface(inference: Inference, run: Run) -> None:
    reply = inference.generate(prompt="One day", n=2).json()

    assert {key: reply[key] for key in ("run", "checkpoint", "step", "prompt", "seed")} == {
        "run": "tiny", "checkpoint": BEST, "step": 10, "prompt": "One day", "seed": 1,
    }  # fmt: skip
    assert [choice["index"] for choice in reply["choices"]] == [0, 1]
    assert reply["choices"][0].keys() == {"index", "text", "tokens", "finish_reason"}
    assert reply["usage"]["completion_tokens"] == sum(len(choice["tokens"]) for choice in reply["choices"])


def test_a_stream_is_pieces_and_then_the_same_reply(inference: Inference) -> None:
    whole = inference.generate(prompt="The cat").json()

    streamed = inference.generate(prompt="The cat", stream=True)

    *pieces, last = [json.loads(line) for line in streamed.text.splitlines()]
    assert streamed.headers["content-type"].startswith("application/x-ndjson")
    assert last == {"result": whole}
    assert "".join(piece["text"] for piece in pieces) == whole["choices"][0]["text"]


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"run": "nobody"}, 404, "run_not_found"),
        ({"run": "fresh"}, 409, "checkpoint_not_ready"),
        ({"temperature": -1}, 422, "invalid_parameter"),
        ({"run": "../x"}, 422, "invalid_parameter"),
        ({"prompt": "cat " * 600}, 422, "prompt_too_long"),
        ({"prompt": "cat " * 600, "stream": True}, 422, "prompt_too_long"),
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
    resolved = inference.resolved(checkpoint="step=35")
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
    started = time.monotonic()
    inference.generate(n=8, max_new_tokens=BLOCK)  # how long it takes when nobody leaves
    whole_s = time.monotonic() - started

    body = json.dumps(inference.resolved(max_new_tokens=BLOCK, n=64, stream=stream)).encode()
    host, port = inference.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}"
        head = f"POST /generate HTTP/1.1\r\nHost: localhost\r\n{kind}"
        client.sendall(head.encode() + b"\r\n\r\n" + body)
        eventually(lambda: inference.busy == 1)
    left = time.monotonic()
    eventually(lambda: inference.busy == 0)

    assert time.monotonic() - left < max(0.5, whole_s)  # the rest would have taken eight times as long


def test_attention_is_captured_for_a_text(inference: Inference, layout: Layout) -> None:
    text = "The cat saw a red ball"

    reply = inference.client.post("/capture", json=inference.resolved(id=text_id(text), text=text))

    assert reply.status_code == 200, reply.text
    assert [layer["n_head"] for layer in reply.json()["layers"]] == [4, 2]
    assert (layout.attention_of("tiny") / text_id(text)).is_dir()


def test_it_registers_when_redis_comes_and_deregisters_on_sigterm(
    inference: Inference, absent_redis: Any, connected
) -> None:
    registry = Registry(connected(absent_redis.start().url, for_api=False))
    info = eventually(lambda: registry.alive("inference"))[0]
    assert (info["url"], info["device"], info["pid"]) == (inference.url, "cpu", inference.process.pid)

    inference.process.send_signal(signal.SIGTERM)
    assert inference.process.wait(8) == 0
    assert registry.alive("inference") == []
