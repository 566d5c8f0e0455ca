"""A fake inference process, and a server that runs an application in a thread."""

import asyncio
import json
import threading
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from model_core.attention.exact import EXACT
from model_core.attention.heads.history import probe_file
from model_core.attention.heads.patterns import MEASURED, HeadPatterns, patterns_file, row_starts, windows_key
from model_core.attention.record import AttentionRecord, layer_file, text_directory
from model_core.attention.record_writer import RecordWriter
from model_core.storage.dataset import dataset_of
from model_core.storage.files import Layout, write_json
from model_core.storage.run import Run
from tests.polling import eventually

WAIT_S = 10.0
HEADS = (4, 2)
_REFUSALS = {
    "long": (422, "prompt_too_long"),
    "leaves": (503, "inference_unavailable"),
    "busy": (429, "inference_busy"),
    "odd": (500, "odd_code"),
}  # by prompt


class Served:
    """An ASGI application on a free loopback port, in a thread."""

    def __init__(self, app: Any) -> None:
        config = uvicorn.Config(
            app, host="127.0.0.1", port=0, http="h11", log_level="error", timeout_graceful_shutdown=2
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        eventually(lambda: self._server.started)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=WAIT_S)


class FakeHost:
    """Speaks the inference process' protocol; the first prompt decides what it does."""

    def __init__(self, layout: Layout, name: str) -> None:
        self.layout, self.name = layout, name
        self.wait_s = 3  # Retry-After of its refusals
        self.asked: list[dict[str, Any]] = []
        self.left_alone = threading.Event()  # a client went away while it was served
        routes = [
            Route("/generate", self._generate, methods=["POST"]),
            Route("/capture", self._capture, methods=["POST"]),
            Route("/exact", self._exact, methods=["POST"]),
            Route("/patterns", self._patterns, methods=["POST"]),
            Route("/probe", self._probe, methods=["POST"]),
            Route("/tokenize", self._tokenize, methods=["POST"]),
            Route("/detokenize", self._detokenize, methods=["POST"]),
            Route("/score", self._score, methods=["POST"]),
        ]
        self._served = Served(Starlette(routes=routes))
        self.url = self._served.url

    def stop(self) -> None:
        self._served.stop()

    async def _generate(self, request: Request) -> Response:
        asked = (await request.json())["request"]
        self.asked.append(asked)
        prompt = str(asked["prompts"][0])
        if prompt in _REFUSALS:
            status, code = _REFUSALS[prompt]
            body, headers = {"code": code, "detail": f"{self.name} refuses"}, {"Retry-After": str(self.wait_s)}
            return JSONResponse(body, status_code=status, headers=headers)
        if asked["stream"]:
            return StreamingResponse(self._pieces(asked), media_type="application/x-ndjson")
        if prompt == "endless":
            while (await request.receive())["type"] != "http.disconnect":
                pass
            self.left_alone.set()
        return JSONResponse(self._result(asked))

    async def _pieces(self, asked: dict[str, Any]) -> Any:
        prompt = str(asked["prompts"][0])
        try:
            words = [prompt[4:]] * 3 if prompt.startswith("say ") else ("Once", " upon", " a time")
            for word in words:
                gain = {"index": 0, "text": word, "tokens": [1]} | _scored(asked, [word])
                yield _line({"fingerprint": "0123456789ab", "choices": [gain]})
            if prompt == "breaks":
                yield _line({"error": {"code": "cuda_oom", "detail": "no memory"}})
                return
            while prompt == "endless":
                yield _line({"choices": [{"index": 0, "text": ".", "tokens": [2]}]})
                await asyncio.sleep(0.02)
            yield _line({"result": self._result(asked)})
        finally:
            if prompt == "endless":
                self.left_alone.set()

    def _result(self, asked: dict[str, Any]) -> dict[str, Any]:
        choice = {"text": "Once upon a time", "tokens": [1, 2], "finish_reason": "length"}
        choice |= _scored(asked, ["Once", " upon", " a time"])
        count = len(asked["prompts"]) * asked["n"]
        made = {"step": 3, "sha256": "0" * 64, "seed": asked["seed"] or 7, "weights": "fp32"}
        return {
            "run": asked["run"], "checkpoint": asked["checkpoint"], **made, "fingerprint": "0123456789ab",
            "prompts": [{"tokens": [1], "pieces": ["Once"]}] * len(asked["prompts"]),
            "choices": [{"index": index, **choice} for index in range(count)],
            "usage": {"prompt_tokens": 1, "completion_tokens": 2, "cached_tokens": 0},
            "warnings": [{"code": "slow", "detail": "int8 was refused"}] if asked["prompts"] == ["warns"] else [],
        }  # fmt: skip

    async def _capture(self, request: Request) -> Response:
        asked = (await request.json())["request"]
        self.asked.append(asked)
        if asked["text"] == "long":
            problem = {"pointer": "/text", "detail": "has 99 tokens", "value": 99, "nearest": [64]}
            body = {"code": "prompt_too_long", "detail": "too long", "problems": [problem]}
            return JSONResponse(body, status_code=422)
        sent = asked["text"] is not None or asked["tokens"] is not None
        if not sent and not (asked["id"].isdecimal() and int(asked["id"]) <= 9):
            return JSONResponse({"code": "example_not_found", "detail": "numbered 0 to 9"}, status_code=404)
        info = Run.open(self.layout.run(asked["run"])).resolve(asked["checkpoint"])
        most = asked["max_tokens"] or 5
        return JSONResponse(capture(self.layout, asked["run"], asked["id"], info.sha256, most=most).manifest)

    async def _exact(self, request: Request) -> Response:
        asked = (await request.json())["request"]
        self.asked.append(asked)
        sha256 = Run.open(self.layout.run(asked["run"])).resolve(asked["checkpoint"]).sha256
        record = AttentionRecord.find(self.layout, asked["run"], asked["id"], sha256, max_tokens=asked["max_tokens"])
        if record is not None:
            (record.path / EXACT).mkdir()
            for layer, weights in enumerate(made_up_weights(len(record.tokens))):
                np.save(record.path / EXACT / layer_file(layer, len(HEADS), "npy"), weights)
        return JSONResponse({"sha256": sha256, "is_written": record is not None})

    async def _patterns(self, request: Request) -> Response:
        asked = (await request.json())["request"]
        self.asked.append(asked)
        keep_patterns(self.layout, **asked)
        return JSONResponse({"file": "known from the request"})

    async def _probe(self, request: Request) -> Response:
        call = await request.json()
        self.asked.append(call["request"])
        info = Run.open(self.layout.run(call["request"]["run"])).resolve(call["request"]["checkpoint"])
        reading = {"schema_version": 1, "sha256": call["sha256"], "step": info.step, **probe_reading(0.5)}
        write_json(probe_file(self.layout, call["request"]["run"], call["sha256"], "p" * 64), reading)
        return JSONResponse(reading)

    async def _tokenize(self, request: Request) -> Response:
        asked = (await request.json())["request"]
        self.asked.append(asked)
        data = asked["text"].encode()  # one token for each byte
        made = {
            "pieces": [f"bytes:\\x{byte:02x}" for byte in data],
            "offsets": [[at, at + 1] for at in range(len(data))],
        }
        kept = {"run": asked["run"], "checkpoint": asked["checkpoint"]}
        return JSONResponse(
            {**kept, "tokens": list(data), **made, "count": len(data), "max_tokens": 64, "warnings": []}
        )

    async def _detokenize(self, request: Request) -> Response:
        asked = (await request.json())["request"]
        self.asked.append(asked)
        data = bytes(token % 256 for token in asked["tokens"])
        text = {"text": data.decode(errors="replace"), "whole": True, "warnings": []}
        return JSONResponse({"run": asked["run"], "checkpoint": asked["checkpoint"], **text})

    async def _score(self, request: Request) -> Response:
        asked = (await request.json())["request"]
        self.asked.append(asked)
        first = (asked["texts"] or [""])[0]
        if first == "long":
            body = {"code": "invalid_parameter", "detail": "too long"}
            problems = [{"pointer": "/texts/0", "detail": "has 99 tokens", "value": 99}]
            return JSONResponse({**body, "problems": problems}, status_code=422)
        if asked["stream"]:
            return StreamingResponse(self._scores(asked, first), media_type="application/x-ndjson")
        while first == "endless":
            if (await request.receive())["type"] == "http.disconnect":
                self.left_alone.set()
                break
        return JSONResponse(self._score_result(asked) | self._scored(asked))

    async def _scores(self, asked: dict[str, Any], first: str) -> Any:
        try:
            [results] = self._scored(asked).values()
            yield json.dumps({"results": results[:1]}).encode() + b"\n"
            while first == "endless":
                await asyncio.sleep(0.02)
                yield b" "
            if first == "breaks":
                yield b'{"error": {"code": "cuda_oom", "detail": "no memory"}}\n'
                return
            yield json.dumps({"results": results[1:]}).encode() + b"\n"
            yield json.dumps({"result": self._score_result(asked)}).encode() + b"\n"
        finally:
            if first == "endless":
                self.left_alone.set()

    def _scored(self, asked: dict[str, Any]) -> dict[str, Any]:
        """A token counts for each character, or id; all are equally likely."""
        if asked["pairs"] is not None:
            both = [{side: one_score(pair[side]) for side in ("good", "bad")} for pair in asked["pairs"]]
            margins = [pair["good"]["logprob"] - pair["bad"]["logprob"] for pair in both]
            return {"pairs": [{**p, "correct": m > 0, "margin": m} for p, m in zip(both, margins, strict=True)]}
        texts = [text["text"] if isinstance(text, dict) else text for text in asked["texts"]]
        return {"results": [one_score(text) for text in texts]}

    def _score_result(self, asked: dict[str, Any]) -> dict[str, Any]:
        counts = {"not_finite": 0, **({} if asked["pairs"] is None else {"accuracy": 0.0, "ties": 0})}
        usage = {"read_tokens": 1, "scored_tokens": 1}
        warnings = [{"code": "of_the_process", "detail": "other weights"}]
        kept = {"run": asked["run"], "checkpoint": asked["checkpoint"], "step": 3, "sha256": "0" * 64}
        return {
            **kept, "weights": "fp32", "fingerprint": "0123456789ab", **counts, "usage": usage, "warnings": warnings,
        }  # fmt: skip


def one_score(text: Any) -> dict[str, Any]:
    """The score of a text, as the inference process writes it."""
    return {
        "logprob": -1.0 * len(text),
        "tokens": len(text),
        "bytes": len(text),
        "bits_per_byte": 1.0 if text else None,
    }


def probe_reading(value: float) -> dict[str, Any]:
    """What the probe would measure if head h of layer l had `value` + l + h / 8 in `previous`."""
    rows = [[value + layer + head / 8 for head in range(heads)] for layer, heads in enumerate(HEADS)]
    texts = {"sha256": "p" * 64, "sequences": 8, "tokens": 64, "repeated": 32, "reason": None}
    missing: list[list[float | None]] = [[None] * heads for heads in HEADS]
    label = {"type": "previous", "strength": "weak", "score": 0.5, "chance": 0.06, "z": 9.5, "control": None}
    return {
        "probe": {**texts, "chance": {"previous": 0.0625, "induction": 0.01}},
        "values": {"previous": rows, "induction": missing},
        "types": {"1.0": [label]},
    }


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def keep_patterns(layout: Layout, run: str, checkpoint: str, windows_of: str, tokens: int) -> None:
    """Write patterns of made-up weights: heads of one run are alike in all of its checkpoints."""
    opened = Run.open(layout.run(run))
    config, source = opened.config(), Run.open(layout.run(windows_of)).config()
    heads = config.model.heads
    generator = np.random.default_rng(list(run.encode()))
    levels = generator.integers(0, 2, (sum(heads), 2, row_starts(tokens)[-1]), dtype=np.uint8) * 200
    values = {name: generator.random(sum(heads)) * 0.9 for name in MEASURED}
    key = windows_key(dataset_of(source, layout), tokens)
    path = patterns_file(layout, run, opened.resolve(checkpoint).sha256, key)
    HeadPatterns(heads, tokens, levels, values, "ab" * 32).save(path)


def capture(layout: Layout, run: str, example: str, sha256: str, *, most: int = 5) -> AttentionRecord:
    """Write a record of made-up weights."""
    tokens = ["One", "·day", ",", "·a", "·cat"][:most]
    cut_from = 5 if most < 5 else None
    writer = RecordWriter(text_directory(layout, run, example) / sha256[:8], len(HEADS), len(tokens))
    for weights in made_up_weights(len(tokens)):
        heads = len(weights)
        norms = 1 + np.arange(heads * len(tokens), dtype=np.float32).reshape(heads, -1)
        writer.add(weights, value_norms=norms, output_norms=norms / 10)
    layers = [{"layer": i, "n_head": h, "head_dim": 32 // h, "png": f"layer{i:02d}.png"} for i, h in enumerate(HEADS)]
    return writer.finish(
        {
            "run": run, "id": example, "checkpoint": "model_best.pt", "step": 3, "sha256": sha256,
            "text": "One day, a cat",
            "tokens": tokens, "token_ids": [1, 2, 3, 4, 5][:most], "max_tokens": most, "truncated_from": cut_from,
            "block_size": 64,
            "layers": layers,
        }
    )  # fmt: skip


def made_up_weights(tokens: int) -> list[Any]:
    """Attention of each layer, (H, T, T), the same each time."""
    generator = np.random.default_rng(0)
    layers = [np.tril(generator.random((heads, tokens, tokens))).astype(np.float32) for heads in HEADS]
    return [layer / layer.sum(axis=-1, keepdims=True) for layer in layers]


def _scored(asked: dict[str, Any], words: list[str]) -> dict[str, Any]:
    """Log probabilities, where they were requested."""
    if asked["logprobs"] is None:
        return {}
    return {"logprobs": [{"token": 1, "text": word, "logprob": -0.5, "top": []} for word in words]}
