"""Measures generation in one process and prints figures as JSON. bench/generate.py starts it.

python bench/child/generation.py transformers|fp32|fp16|bf16|int8 '{"settings": [...], "threads": 2, "rows": [1, 8]}'
"""

from __future__ import annotations

import json
import queue
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from harness.training_steps import BASELINE  # noqa: E402 - needs sys.path
from harness.untrained import untrained  # noqa: E402 - needs sys.path

from model_core.config import ModelConfig  # noqa: E402
from model_core.config_loader import load_config  # noqa: E402
from model_core.hardware.process_environment import run_in_new_thread  # noqa: E402

PROMPT, _IDS = 32, 1000  # ids that every tokenizer here knows
Prompts = Sequence[list[int]]


@dataclass(frozen=True)
class Options:
    """Options of a measurement.

    Attributes:
        settings: Configuration keys of the model that differ from the baseline.
        threads: CPU threads.
        rows: Numbers of texts at once.
        new_tokens: Tokens of each.
        repeats: Measurements of each figure, after one that warms up.
    """

    settings: list[str]
    threads: int
    rows: list[int]
    new_tokens: int = 32
    repeats: int = 2

    @property
    def model(self) -> ModelConfig:
        """Shape of the model."""
        return load_config(BASELINE, self.settings).model

    def prompts(self, count: int) -> Prompts:
        """Random prompts of 32 tokens, or fewer in a small context."""
        length = min(PROMPT, self.model.block_size - self.new_tokens)
        generator = torch.Generator().manual_seed(count)
        return torch.randint(_IDS, (count, length), generator=generator).tolist()  # (M, T)


# greedy texts of a fixed length; the seconds until every text has its first token, and until the end
Generate = Callable[[Prompts, int], tuple[float, float]]


def transformers(options: Options) -> tuple[str, Generate]:
    """Generate with GPT2LMHeadModel in float32, with its KV cache."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = options.model
    config = GPT2Config(
        vocab_size=shape.vocab_size, n_positions=shape.block_size, n_embd=shape.n_embd, n_layer=shape.n_layer,
        n_head=shape.n_head, bos_token_id=0, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()

    def generate(prompts: Prompts, new_tokens: int) -> tuple[float, float]:
        ids = torch.tensor(prompts)  # (M, T)
        began = time.perf_counter()
        with torch.inference_mode():
            given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            model.generate(**given, do_sample=False, max_new_tokens=new_tokens, min_new_tokens=new_tokens)
        seconds = time.perf_counter() - began
        return seconds if new_tokens == 1 else float("nan"), seconds

    return "fp32", generate


def ours(weights: str, options: Options) -> tuple[str, Generate]:
    """Generate with the engine, as an inference process does."""
    from model_core.generation.engine import Engine
    from model_core.generation.forward.packed_model import pack_model
    from model_core.generation.request import GenerationOutput
    from model_core.schemas import SamplingParams

    _, model, tokenizer = untrained(options.settings)
    packed = pack_model(model, tokenizer.n_vocab, weights, keep=False)
    engine = Engine(packed, tokenizer, max_rows=max(*options.rows, 8), prefix_cache_bytes=0)

    def generate(prompts: Prompts, new_tokens: int) -> tuple[float, float]:
        params = SamplingParams(temperature=0.0, max_new_tokens=new_tokens, ignore_eos=True, seed=1)
        events: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        began = time.perf_counter()
        for number, prompt in enumerate(prompts):
            engine.submit(params, prompt, lambda event, number=number: events.put((number, event)))
        first: dict[int, float] = {}
        ended = 0
        while ended < len(prompts):
            number, event = events.get()
            first.setdefault(number, time.perf_counter() - began)
            if isinstance(event, Exception):
                raise event
            ended += isinstance(event, GenerationOutput)
        return max(first.values()), time.perf_counter() - began

    return packed.weights, generate


def median(measure: Callable[[], float], repeats: int) -> float:
    """Repeat a measurement."""
    return statistics.median(measure() for _ in range(repeats))


def main() -> None:
    """Print the figures of the side that the command line names."""
    side, options = sys.argv[1], Options(**json.loads(sys.argv[2]))
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    weights, generate = (
        transformers(options) if side == "transformers" else run_in_new_thread(lambda: ours(side, options))
    )
    figures: dict[str, Any] = {"weights": weights, "rate": {}}
    for rows in options.rows:
        prompts = options.prompts(rows)
        generate(prompts, 2)  # warms up
        seconds = median(lambda p=prompts: generate(p, options.new_tokens)[1], options.repeats)
        figures["rate"][rows] = rows * options.new_tokens / seconds
    for name, count in {"first_ms": 1, "first_of_eight_ms": 8}.items():
        prompts = options.prompts(count)
        generate(prompts, 1)
        figures[name] = 1000 * median(lambda p=prompts: generate(p, 1)[0], 5 * options.repeats)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
