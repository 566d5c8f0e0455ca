"""Schedules the sequences that one model generates, one token of each per step (continuous batching).

It has no thread and no lock: `Engine` drives a scheduler from its own thread, `generate` from the caller's. Between two
steps new sequences join and ended ones leave; then the last row moves into the gap, so the rows in use are the first.

Shapes: A rows in use, V ids of the tokenizer.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from model_core.errors import InvalidParameter, ModelCoreError, PromptTooLong
from model_core.generation.detokenizer import Detokenizer
from model_core.generation.model_runner import CHUNK, ModelRunner, PromptChunk
from model_core.generation.sampler import NonFiniteLogits, Sampler, choice_generator, sample
from model_core.schemas import Choice, FinishReason, SamplingParams, ScoredToken, TokenLogprob, Usage
from model_core.tokenizer import Tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextDelta:
    """New text of one choice.

    Attributes:
        index: Index of the choice.
        text: The text that was added.
    """

    index: int
    text: str


@dataclass(frozen=True)
class GenerationOutput:
    """The result of a request, when its last choice has ended.

    Attributes:
        seed: Seed of the request, given or drawn.
        choices: Every continuation, by index.
        usage: Tokens read and generated.
    """

    seed: int
    choices: tuple[Choice, ...]
    usage: Usage


class GenerationCancelled(ModelCoreError):
    """The request was cancelled."""

    code = "cancelled"

    def __init__(self) -> None:
        super().__init__("the generation was cancelled")


Event = TextDelta | GenerationOutput | ModelCoreError
EventCallback = Callable[[Event], None]


class Request:
    """One prompt and its continuations.

    Args:
        params: Sampling parameters, with a seed.
        prompt: Text to continue, or its token ids; empty starts a new text.
        tokenizer: Tokenizer of the model.
        block_size: Positions of the model.
        on_event: Called with every `TextDelta`, then once with the `GenerationOutput` or an error. It must not block.

    Raises:
        PromptTooLong: The prompt has more tokens than the model has positions.
        InvalidParameter: A token id is not one of the tokenizer's.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: str | Iterable[int],
        tokenizer: Tokenizer,
        block_size: int,
        on_event: EventCallback,
    ) -> None:
        assert params.seed is not None
        self.params, self.seed = params, params.seed
        self.prompt = (tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)) or [tokenizer.eot]
        _check_ids(tokenizer, prompt=self.prompt, logit_bias=params.logit_bias, stop_token_ids=params.stop_token_ids)
        if len(self.prompt) > block_size:
            raise PromptTooLong(len(self.prompt), block_size)
        self.max_new = min(params.max_new_tokens, block_size - len(self.prompt))
        self.limit: FinishReason = "length" if self.max_new == params.max_new_tokens else "context"
        self.prompt_logits: Tensor | None = None  # (V,), shared by the choices
        self.cancelled, self.ended = False, False
        self._on_event = on_event
        self._choices: dict[int, Choice] = {}

    def cancel(self) -> None:
        """Cancel the request within one step, from any thread; does nothing after its end."""
        self.cancelled = True

    def emit(self, delta: TextDelta) -> None:
        """Pass new text to the callback.

        Args:
            delta: The text.
        """
        self._call(delta)

    def fail(self, error: ModelCoreError) -> None:
        """End the request with an error; does nothing after its end.

        Args:
            error: The reason.
        """
        if not self.ended:
            self.cancelled = self.ended = True
            self._call(error)

    def end_choice(self, choice: Choice) -> None:
        """Record an ended continuation; the last one ends the request.

        Args:
            choice: The continuation.
        """
        self._choices[choice.index] = choice
        if len(self._choices) == self.params.n and not self.ended:
            self.ended = True
            choices = tuple(self._choices[index] for index in range(self.params.n))
            usage = Usage(prompt_tokens=len(self.prompt), completion_tokens=sum(len(c.tokens) for c in choices))
            self._call(GenerationOutput(self.seed, choices, usage))

    def _call(self, event: Event) -> None:
        try:
            self._on_event(event)
        except Exception:  # foreign code: its failure must not end other requests
            log.exception("callback failed")
            self.cancelled = True


class Sequence:
    """One continuation of a request while it grows.

    Args:
        request: The request.
        index: Index of the choice.
        tokenizer: Tokenizer of the model.
    """

    def __init__(self, request: Request, index: int, tokenizer: Tokenizer) -> None:
        self.request, self.index = request, index
        self.sampler = Sampler(request.params, choice_generator(request.seed, index))
        self.tokens: list[int] = []
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(request.params.stop)
        self._logprobs: list[ScoredToken] = []

    @property
    def position(self) -> int:
        """Index of the newest token in the sequence; the tokens before it are in the cache."""
        return len(self.request.prompt) + len(self.tokens) - 1

    def append(self, token: int, logits: Tensor) -> bool:
        """Append a drawn token.

        Args:
            token: Its id.
            logits: Logits that it was drawn from, (V,).

        Returns:
            Whether the sequence has ended with it.
        """
        if token == self._tokenizer.eot:
            return self.end("stop")
        self.tokens.append(token)
        if self.request.params.logprobs is not None:
            self._logprobs.append(_scored_token(self._tokenizer, token, logits, self.request.params.logprobs))
        self._emit(self._detokenizer.add(self._tokenizer.decode_bytes([token])))
        if self._detokenizer.stopped:
            return self.end("stop")
        return len(self.tokens) == self.request.max_new and self.end(self.request.limit)

    def end(self, reason: FinishReason) -> bool:
        """Emit the text that was held back, and hand the choice to the request.

        Args:
            reason: Why it ends; a stop string in the last text makes it ``stop``.

        Returns:
            True.
        """
        self._emit(self._detokenizer.finish())
        count = self._detokenizer.token_count
        choice = Choice(
            index=self.index,
            text=self._detokenizer.text,
            tokens=tuple(self.tokens[:count]),
            finish_reason="stop" if self._detokenizer.stopped else reason,
            logprobs=tuple(self._logprobs[:count]) if self.request.params.logprobs is not None else None,
        )
        self.request.end_choice(choice)
        return True

    def _emit(self, text: str) -> None:
        if text:
            self.request.emit(TextDelta(self.index, text))


class Scheduler:
    """Running sequences, one per row of the cache, and waiting ones.

    Args:
        runner: The model with its cache.
        tokenizer: Tokenizer of the model.
    """

    def __init__(self, runner: ModelRunner, tokenizer: Tokenizer) -> None:
        self._runner, self._tokenizer = runner, tokenizer
        self._rows: list[Sequence] = []
        self._waiting: deque[Sequence] = deque()

    @property
    def busy(self) -> bool:
        """Whether a sequence runs or waits."""
        return bool(self._rows or self._waiting)

    def add(self, request: Request) -> None:
        """Enqueue the sequences of a request.

        Args:
            request: The request.
        """
        sequences = [Sequence(request, index, self._tokenizer) for index in range(request.params.n)]
        if request.max_new == 0:
            for sequence in sequences:
                sequence.end(request.limit)
        else:
            self._waiting.extend(sequences)

    def step(self) -> None:
        """Remove cancelled sequences, admit waiting ones, and generate one token of each."""
        with torch.inference_mode(), torch.autocast(self._runner.device.partition(":")[0], enabled=False):
            self._drop_cancelled()
            while self._waiting and len(self._rows) < self._runner.rows:
                self._admit(self._waiting.popleft())
            if self._rows:
                positions = [sequence.position for sequence in self._rows]
                logits = self._runner.step([sequence.tokens[-1] for sequence in self._rows], positions)  # (A, V)
                self._sample(logits, first=0)

    def _admit(self, sequence: Sequence) -> None:
        """Run the prompt in the first free row, or copy it from a row of the same request."""
        request, row = sequence.request, len(self._rows)
        if request.cancelled:
            request.fail(GenerationCancelled())
            return
        sibling = next((at for at, other in enumerate(self._rows) if other.request is request), None)
        if sibling is not None and request.prompt_logits is not None:
            self._runner.copy_row(sibling, row, len(request.prompt))
        else:
            request.prompt_logits = self._prefill(row, request.prompt)  # (V,)
        self._rows.append(sequence)
        self._sample(request.prompt_logits[None], first=row)  # (1, V)

    def _prefill(self, row: int, prompt: list[int]) -> Tensor:
        """Run a prompt in chunks; returns the logits of the next token, (V,)."""
        for start in range(0, len(prompt), CHUNK):
            hidden = self._runner.prefill([PromptChunk(row, start, prompt[start : start + CHUNK])])  # (T, C)
        return self._runner.logits(hidden[-1:])[0]  # (V,)

    def _sample(self, logits: Tensor, *, first: int) -> None:
        """Draw a token for each row from `first` on; logits (A - first, V)."""
        drawn = sample(logits, [sequence.sampler for sequence in self._rows[first:]])
        ended = [first + at for at, token in enumerate(drawn) if self._ends(self._rows[first + at], token, logits[at])]
        self._free(ended)

    def _ends(self, sequence: Sequence, token: int | NonFiniteLogits, logits: Tensor) -> bool:
        if isinstance(token, int):
            return sequence.append(token, logits)
        sequence.request.fail(token)
        return True

    def _drop_cancelled(self) -> None:
        cancelled = {sequence.request for sequence in (*self._rows, *self._waiting) if sequence.request.cancelled}
        for request in cancelled:
            request.fail(GenerationCancelled())
        self._waiting = deque(sequence for sequence in self._waiting if sequence.request not in cancelled)
        self._free([row for row, sequence in enumerate(self._rows) if sequence.request in cancelled])

    def _free(self, rows: Iterable[int]) -> None:
        """Free rows; the last row moves into each gap."""
        for row in sorted(rows, reverse=True):
            last = self._rows.pop()
            if row < len(self._rows):
                self._runner.copy_row(len(self._rows), row, last.position)
                self._rows[row] = last


def _check_ids(tokenizer: Tokenizer, **given: Iterable[int]) -> None:
    for name, ids in given.items():
        unknown = next((token for token in ids if not 0 <= token < tokenizer.n_vocab), None)
        if unknown is not None:
            raise InvalidParameter(
                f"/{name}: no token has the id {unknown}; those of this model go from 0 to {tokenizer.n_vocab - 1}"
            )


def _scored_token(tokenizer: Tokenizer, token: int, logits: Tensor, count: int) -> ScoredToken:
    logprobs = logits.log_softmax(dim=-1)  # (V,)
    best = logprobs.topk(min(count, len(logprobs)))  # 2 x (count,)
    ids = [token, *best.indices.tolist()]
    values = [float(logprobs[token]), *best.values.tolist()]
    labels = tokenizer.pieces(ids)
    every = [{"token": i, "text": t, "logprob": v} for i, t, v in zip(ids, labels, values, strict=True)]
    return ScoredToken(**every[0], top=tuple(TokenLogprob(**other) for other in every[1:]))
