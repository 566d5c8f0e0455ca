"""What a service serves of stored attention: statistics, weights, animations, and the history of a training's heads.

Records and events are written beforehand, so that no model runs: 12 layers of 12 heads, 512 tokens. Requests go over
HTTP to the API process of `headcount up`, accept gzip as a browser does, and differ, so that each reply is built.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from harness.http_clients import request, send_requests
from harness.service import serve
from harness.table import Row
from harness.turns import time_row
from harness.untrained import publish
from numpy.typing import NDArray

from model_core.attention.head_metrics import FORMULAS, HISTORY_METRICS, INDEX_METRICS
from model_core.attention.heads.frames import Frame, save_frame
from model_core.attention.record import quantize, text_directory
from model_core.attention.record_writer import RecordWriter
from model_core.schemas import text_id
from model_core.storage.events import EventWriter
from model_core.storage.files import Layout
from model_core.storage.run import Run

RUN = "bench-heads"
WIDTH, FRAME_TOKENS, FRAMES = 48, 48, 12
STEPS_PER_VALIDATION = 100  # whose events stand between those of two validations
STATISTICS_MS, U8_MS, SPARSE_MS, APNG_CPU_S = 30, 60, 60, 0.5
FIRST_MS, AGAIN_MS, PNG_MS = 100, 10, 150
_TEXT = "once"
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Size:
    """Size of what is stored.

    Attributes:
        layers: Layers, of as many heads each.
        tokens: Tokens of the record.
        validations: Events of the history.
    """

    layers: int = 12
    tokens: int = 512
    validations: int = 100

    @classmethod
    def of(cls, *, quick: bool) -> Size:
        """Choose a size."""
        return cls(2, 32, 3) if quick else cls()

    @property
    def settings(self) -> list[str]:
        """Configuration keys that differ from the baseline."""
        shape = {"n_layer": self.layers, "n_head": self.layers, "n_embd": WIDTH, "vocab_size": 1280}
        keys = [f"model.{name}={value}" for name, value in {**shape, "block_size": self.tokens}.items()]
        steps = [f"training.sequence_length={self.tokens}", f"training.total_batch_size={64 * self.tokens}"]
        return [*keys, *steps, "training.batch_size=1", "data.tokenizer={type: bpe, vocab_size: 1280}"]


def disk(rounds: int, *, quick: bool) -> Iterator[Row]:
    """Measure replies that are made of a record and of frames.

    Args:
        rounds: Twice this number of requests is sent for each row.
        quick: Stores little.

    Yields:
        The rows.
    """
    size = Size.of(quick=quick)
    with _serve(size) as (data, address):
        run = Run.open(Layout.under(data).run(RUN))
        store_record(data, run, size)
        for step in range(FRAMES):
            levels = (quantize(random_attention(size.layers, FRAME_TOKENS, step)) for _ in range(size.layers))
            labels = tuple(f"t{place}" for place in range(FRAME_TOKENS))
            save_frame(run.path, Frame(step, labels, tuple(levels)), every=1)
        yield from _numbers(address, size, rounds)
        path = f"/attention/{RUN}/probe/animation.png?layer=1"
        ask(address, [path], accept="image/apng")
        before = cpu_seconds(address)
        took = ask(address, [path] * rounds, accept="image/apng")
        yield time_row(f"APNG of {FRAMES} frames: wall time", took, None)
        spent = (cpu_seconds(address) - before) / rounds
        yield Row(f"APNG of {FRAMES} frames: CPU of the API", f"{spent:.2f} s", "", spent, APNG_CPU_S, unit="s")


def _numbers(address: tuple[str, int], size: Size, rounds: int) -> Iterator[Row]:
    """Measure replies of numbers; no two requests are equal, so each is built."""
    home, tokens = f"/attention/{RUN}/{text_id(_TEXT)}", size.tokens
    few, layers, sorts = tokens // 16, range(size.layers), [name for name in FORMULAS if name not in INDEX_METRICS]
    measured: dict[str, tuple[list[str], float | None]] = {
        f"statistics of {size.layers**2} heads, {tokens} tokens": (
            [f"statistics?sort={name}" for name in sorts], STATISTICS_MS,
        ),
        f"statistics of {few} tokens": ([f"statistics?tokens=16:{16 + few}&sort={name}" for name in sorts], None),
        f"statistics of {tokens - 16} tokens": ([f"statistics?tokens=16:{tokens}&sort={name}" for name in sorts], None),
        f"u8 of a layer, {size.layers} x {tokens}^2": ([f"weights?layer={n}&format=u8" for n in layers], U8_MS),
        "sparse weights of a layer": ([f"weights?layer={n}&format=sparse" for n in layers], SPARSE_MS),
    }  # fmt: skip
    for what, (queries, target) in measured.items():
        paths = [f"{home}/{query}" for query in queries]
        ask(address, paths[:1])  # warms up
        yield time_row(what, ask(address, paths[1 : 1 + 2 * rounds]), target)
    yield time_row("the last one again", ask(address, paths[1:2] * 2 * rounds), None)


def history(rounds: int, *, quick: bool) -> Iterator[Row]:
    """Measure the history of a training's heads: the first request, the second, and the picture.

    Args:
        rounds: Number of runs, each with a history of its own.
        quick: Stores little.

    Yields:
        The rows.
    """
    size = Size.of(quick=quick)
    with _serve(size) as (data, address):
        config = Run.open(Layout.under(data).run(RUN)).config()
        names = [f"{RUN}-{number}" for number in range(rounds + 1)]
        for seed, name in enumerate(names):
            store_history(Run.create(Layout.under(data).run(name), config), size, seed)
        pictures = [f"/runs/{name}/heads?format=png" for name in names]
        first, again, drawn, drawn_again = (
            each([f"/runs/{name}/heads" for name in names], address),
            each([f"/runs/{name}/heads" for name in names], address),
            each(pictures, address),
            each(pictures, address),
        )
        what = f"history of {size.validations} x {size.layers**2} heads"
        yield time_row(f"{what}: first", first, FIRST_MS)
        yield time_row(f"{what}: again", again, AGAIN_MS)
        yield time_row(f"{what}: PNG", drawn, PNG_MS)
        yield time_row(f"{what}: PNG again", drawn_again, None)


def each(paths: Sequence[str], address: tuple[str, int]) -> list[float]:
    """Send one request for each path; the first one warms up."""
    return [seconds for path in paths for seconds in ask(address, [path])][1:]


def ask(address: tuple[str, int], paths: Sequence[str], *, accept: str = "*/*") -> list[float]:
    """Send requests one after the other.

    Args:
        address: Host and port of the API.
        paths: A path each.
        accept: The Accept header.

    Returns:
        Seconds of each.
    """
    sent = send_requests(
        address, [request("GET", path, Accept=accept, Accept_Encoding="gzip") for path in paths], 200, clients=1
    )
    if sent.errors:
        raise SystemExit(sent.errors[0])
    return sent.latencies_s


def cpu_seconds(address: tuple[str, int]) -> float:
    """Read the processor time of the API process so far.

    Args:
        address: Its host and port.

    Returns:
        Seconds in user and kernel mode.
    """
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"uvicorn" in words and str(address[1]).encode() in words:
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                return sum(map(int, fields[11:13])) / _TICKS
        except OSError:
            continue
    raise SystemExit("the process of the API was not found")


def store_record(data: Path, run: Run, size: Size) -> None:
    """Write a record of random attention.

    Args:
        data: Data root.
        run: Run with a checkpoint.
        size: Shape of the record.
    """
    info, name, tokens = run.checkpoints()[0], text_id(_TEXT), size.tokens
    writer = RecordWriter(text_directory(Layout.under(data), run.name, name), size.layers, tokens)
    rng = np.random.default_rng(0)
    for layer in range(size.layers):
        norms, outputs = rng.uniform(0.1, 1, (2, size.layers, tokens)).astype(np.float32)  # (H, T) twice
        writer.add(random_attention(size.layers, tokens, layer), value_norms=norms, output_norms=outputs)
    head_dim = WIDTH // size.layers
    layers = [
        {"layer": layer, "n_head": size.layers, "head_dim": head_dim, "png": f"layer{layer:02d}.png"}
        for layer in range(size.layers)
    ]
    writer.finish(
        {
            "run": run.name, "id": name, "checkpoint": info.file, "step": info.step, "sha256": info.sha256,
            "text": "a" * tokens, "tokens": ["a"] * tokens, "token_ids": [1] * tokens,
            "ends": list(range(1, tokens + 1)), "max_tokens": tokens, "truncated_from": None, "block_size": tokens,
            "layers": layers,
        }
    )  # fmt: skip


def store_history(run: Run, size: Size, seed: int) -> None:
    """Write the events of a training: steps, and what a probe measured at each validation.

    Args:
        run: A run without events.
        size: Number of heads and validations.
        seed: Of the random values.
    """
    rng = np.random.default_rng(seed)
    probe = {
        "sha256": "0" * 64, "sequences": 8, "tokens": 128, "repeated": 64, "reason": None,
        "chance": dict.fromkeys(HISTORY_METRICS, 0.04),
    }  # fmt: skip
    label = {"type": "previous", "strength": "weak", "score": 0.12, "chance": 0.04, "z": 9.5, "control": None}
    writer = EventWriter(run.events, 1)
    for validation in range(size.validations):
        first = validation * STEPS_PER_VALIDATION
        for step in range(first + 1, first + STEPS_PER_VALIDATION + 1):
            writer.append("step", step=step, loss=2.5, lr=0.001, grad_norm=0.8, tokens_per_s=20_000.0)
        values = {metric: _four_digits(rng, size.layers) for metric in HISTORY_METRICS}
        types = {f"{layer}.1": [label] for layer in range(size.layers)}
        writer.append("heads", step=first + STEPS_PER_VALIDATION, probe=probe, values=values, types=types)
    writer.close()


def random_attention(heads: int, tokens: int, seed: int) -> NDArray[np.float32]:
    """Draw sharp and flat heads.

    Args:
        heads: Number of heads, H.
        tokens: Number of tokens, T.
        seed: Of the random values.

    Returns:
        Causal attention, (H, T, T).
    """
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(heads, tokens, tokens)) * np.linspace(0.5, 4, heads)[:, None, None]  # (H, T, T)
    logits[:, np.triu(np.ones((tokens, tokens), bool), 1)] = -np.inf
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return (exponentials / exponentials.sum(-1, keepdims=True)).astype(np.float32)


def _four_digits(rng: np.random.Generator, layers: int) -> list[list[float]]:
    return [[float(f"{value:.4g}") for value in row] for row in rng.uniform(0, 1, (layers, layers))]


@contextmanager
def _serve(size: Size) -> Iterator[tuple[Path, tuple[str, int]]]:
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory)
        publish(data, RUN, size.settings)
        with serve(data, os.environ) as address:
            yield data, address
