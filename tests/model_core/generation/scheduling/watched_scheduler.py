"""A scheduler over a tiny model, with all that it computed and all that its callers got."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from model_core.config import ModelConfig
from model_core.generation.forward.model_runner import CHUNK, ModelRunner, Prefill, PromptChunk
from model_core.generation.forward.packed_model import PackedModel
from model_core.generation.request import (
    GenerationOutput,
    Request,
    ScoreRequest,
)
from model_core.generation.scheduling.scheduler import Scheduler
from model_core.generation.stats import RequestCounts
from model_core.gpt import GPT
from model_core.schemas import Choice, SamplingParams
from model_core.tokenizer import Tokenizer

BLOCK_SIZE = 256
NO_REQUESTS = RequestCounts(submitted=0, open_requests=0, finished=0, cancelled=0, failed=0, open_tokens=0)


@dataclass
class Pass:
    """What a scheduler asked of the model in one call."""

    generating: int  # rows
    length: int  # of the longest, in steps of the cache
    chunks: list[tuple[int, int, int]]  # row, start, size


class WatchedRunner(ModelRunner):
    """A runner that remembers what it computed."""

    def __init__(self, weights: PackedModel, *, rows: int, length: int) -> None:
        super().__init__(weights, rows=rows, length=length)
        self.passes: list[Pass] = []

    def begin(self, chunks: Sequence[PromptChunk]) -> Prefill:
        self.passes.append(Pass(0, 0, [(chunk.row, chunk.start, len(chunk.tokens)) for chunk in chunks]))
        return super().begin(chunks)

    def step(self, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        length = -(-(max(positions) + 1) // CHUNK) * CHUNK
        self.passes.append(Pass(len(tokens), length, []))
        return super().step(tokens, positions)


@dataclass
class Caller:
    """Who gets the events of a request."""

    calls: list[Any] = field(default_factory=list)

    @property
    def deltas(self) -> list[Any]:
        return [delta for call in self.calls if isinstance(call, tuple) for delta in call]

    @property
    def ended(self) -> bool:
        return bool(self.calls) and not isinstance(self.calls[-1], tuple)

    @property
    def end(self) -> Any:
        assert self.ended
        return self.calls[-1]


class WatchedScheduler:
    """A scheduler over a tiny model, with everything that happened."""

    def __init__(self, weights: PackedModel, tokenizer: Tokenizer, *, rows: int = 4, **changes: Any) -> None:
        self.runner = WatchedRunner(weights, rows=rows, length=BLOCK_SIZE)
        whole_passes = {"read_per_decode": math.inf}  # whatever the time
        self.scheduler = Scheduler(self.runner, tokenizer, **whole_passes | changes)
        self.tokenizer = tokenizer

    def ask(self, prompt: Sequence[int], *, ended: list[str] | None = None, **changes: Any) -> tuple[Request, Caller]:
        """Add a request; its client is appended to `ended` when it ends."""
        caller = Caller()
        own = {name: changes.pop(name) for name in ("prompt_logprobs", "client", "timeout_s") if name in changes}
        params = SamplingParams.model_validate({"max_new_tokens": 5, "seed": 1, "ignore_eos": True, **changes})

        def on_event(event: Any) -> None:
            caller.calls.append(event)
            if ended is not None and not isinstance(event, tuple):
                ended.append(own["client"])

        request = Request(params, prompt, self.tokenizer, BLOCK_SIZE, on_event, **own)
        self.scheduler.add(request)
        return request, caller

    def score(self, *sequences: Sequence[int], **own: Any) -> tuple[ScoreRequest, Caller]:
        caller = Caller()
        request = ScoreRequest(sequences, self.tokenizer.n_vocab, BLOCK_SIZE, caller.calls.append, **own)
        self.scheduler.add(request)
        return request, caller

    def run(self, until: Callable[[], bool] = lambda: False, limit: int = 5000) -> None:
        for _ in range(limit):
            if not self.scheduler.busy or until():
                return
            self.scheduler.step()
        raise AssertionError(f"not done after {limit} steps")

    @property
    def rows(self) -> int:
        return self.scheduler.stats(NO_REQUESTS).rows

    @property
    def waiting(self) -> int:
        return self.scheduler.stats(NO_REQUESTS).waiting


@cache
def tiny_model() -> GPT:
    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_embd": 32, "vocab_size": 320, "block_size": BLOCK_SIZE, "n_head_list": (2, 1)}
    model = GPT(ModelConfig.model_validate(shape))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def random_ids(count: int, seed: int = 0) -> list[int]:
    return torch.randint(10, 250, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def choices_of(caller: Caller) -> tuple[Choice, ...]:
    assert isinstance(caller.end, GenerationOutput), caller.end
    return caller.end.choices
