"""The texts that one model is writing, advanced together by one token a step.

No thread and no lock: `Engine` drives a batch from its own thread, `generate` from the caller's. Between two steps
new texts join and ended ones leave; the last row then moves into the free place, so rows stay without gaps.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from model_core.errors import ModelCoreError, PromptTooLong
from model_core.generation.detokenizer import Detokenizer
from model_core.generation.model_runner import Decoder
from model_core.generation.sampler import NonFiniteLogits, Sampler, generator_of, sample
from model_core.schemas import Choice, SamplingParams, ScoredToken, TokenLogprob, Usage
from model_core.tokenizer import Tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextDelta:
    """New text of one choice."""

    index: int
    text: str


@dataclass(frozen=True)
class GenerationOutput:
    """Everything, when the last choice has ended."""

    seed: int
    choices: tuple[Choice, ...]
    usage: Usage


class GenerationCancelled(ModelCoreError):
    """The one who asked went away."""

    code = "cancelled"

    def __init__(self) -> None:
        super().__init__("the generation was cancelled")


Event = TextDelta | GenerationOutput | ModelCoreError
Listener = Callable[[Event], None]


class Request:
    """One prompt and its continuations.

    Args:
        settings: With a seed.
        tokenizer: The model's.
        block_size: The model's positions.
        listener: Hears every `TextDelta`, then once a `GenerationOutput` or an error. It must return at once.

    Raises:
        PromptTooLong: The prompt alone has more tokens than the model has positions.
    """

    def __init__(self, settings: SamplingParams, tokenizer: Tokenizer, block_size: int, listener: Listener) -> None:
        assert settings.seed is not None
        self.settings, self.seed = settings, settings.seed
        self.prompt = tokenizer.encode(settings.prompt) or [tokenizer.eot]
        if len(self.prompt) > block_size:
            raise PromptTooLong(len(self.prompt), block_size)
        self.max_new = min(settings.max_new_tokens, block_size - len(self.prompt))
        self.prompt_logits: Tensor | None = None
        self.cancelled, self.ended = False, False
        self._listener = listener
        self._choices: dict[int, Choice] = {}

    def cancel(self) -> None:
        """End it within one step, from any thread; harmless when it has ended."""
        self.cancelled = True

    def tell(self, delta: TextDelta) -> None:
        """Pass on new text."""
        self._call(delta)

    def fail(self, error: ModelCoreError) -> None:
        """End with an error."""
        if not self.ended:
            self.cancelled = self.ended = True
            self._call(error)

    def end_choice(self, choice: Choice) -> None:
        """Take one continuation; the last one ends the request."""
        self._choices[choice.index] = choice
        if len(self._choices) == self.settings.n and not self.ended:
            self.ended = True
            choices = tuple(self._choices[index] for index in range(self.settings.n))
            usage = Usage(prompt_tokens=len(self.prompt), completion_tokens=sum(len(c.tokens) for c in choices))
            self._call(GenerationOutput(self.seed, choices, usage))

    def _call(self, event: Event) -> None:
        try:
            self._listener(event)
        except Exception:  # foreign code: its failure must not end the other texts
            log.exception("listener failed")
            self.cancelled = True


class Sequence:
    """One continuation while it grows."""

    def __init__(self, request: Request, index: int, tokenizer: Tokenizer) -> None:
        self.request, self.index = request, index
        self.sampler = Sampler(request.settings, generator_of(request.seed, index))
        self.tokens: list[int] = []
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(request.settings.stop)
        self._scored: list[ScoredToken] = []

    @property
    def position(self) -> int:
        """Where the newest token stands; everything before it is in the cache."""
        return len(self.request.prompt) + len(self.tokens) - 1

    def accept(self, token: int, logits: Tensor) -> bool:
        """Take the next token and say whether the text has ended with it."""
        if token == self._tokenizer.eot:
            return self.end("stop")
        self.tokens.append(token)
        if self.request.settings.logprobs is not None:
            self._scored.append(_scored(self._tokenizer, token, logits, self.request.settings.logprobs))
        self._tell(self._detokenizer.add(self._tokenizer.decode_bytes([token])))
        if self._detokenizer.stopped:
            return self.end("stop")
        return len(self.tokens) == self.request.max_new and self.end("length")

    def end(self, reason: str) -> bool:
        """Give what was held back and hand in the choice."""
        self._tell(self._detokenizer.finish())
        count, stopped = self._detokenizer.token_count, reason == "stop" or self._detokenizer.stopped
        choice = Choice(
            index=self.index,
            text=self._detokenizer.text,
            tokens=tuple(self.tokens[:count]),
            finish_reason="stop" if stopped else "length",
            logprobs=tuple(self._scored[:count]) if self.request.settings.logprobs is not None else None,
        )
        self.request.end_choice(choice)
        return True

    def _tell(self, text: str) -> None:
        if text:
            self.request.tell(TextDelta(self.index, text))


class Batch:
    """Texts in work and texts that wait for a row."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer) -> None:
        self._decoder, self._tokenizer = decoder, tokenizer
        self._rows: list[Sequence] = []
        self._waiting: deque[Sequence] = deque()

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._rows or self._waiting)

    def add(self, request: Request) -> None:
        """Put a request's continuations at the end of the line."""
        sequences = [Sequence(request, index, self._tokenizer) for index in range(request.settings.n)]
        if request.max_new == 0:
            for sequence in sequences:
                sequence.end("length")
        else:
            self._waiting.extend(sequences)

    def advance(self) -> None:
        """Let cancelled texts leave and waiting ones join, then write one token of each."""
        with torch.inference_mode(), torch.autocast(self._decoder.device.partition(":")[0], enabled=False):
            self._drop_cancelled()
            while self._waiting and len(self._rows) < self._decoder.rows:
                self._admit(self._waiting.popleft())
            if self._rows:
                positions = [sequence.position for sequence in self._rows]
                self._take(self._decoder.step([sequence.tokens[-1] for sequence in self._rows], positions), 0)

    def _admit(self, sequence: Sequence) -> None:
        """Read a prompt into the first free row, or copy it from a row that holds the same one."""
        request, row = sequence.request, len(self._rows)
        if request.cancelled:
            request.fail(GenerationCancelled())
            return
        sibling = next((at for at, other in enumerate(self._rows) if other.request is request), None)
        if sibling is not None and request.prompt_logits is not None:
            self._decoder.share(sibling, row, len(request.prompt))
        else:
            request.prompt_logits = self._decoder.prefill(row, request.prompt)
        self._rows.append(sequence)
        self._take(request.prompt_logits[None], row)

    def _take(self, logits: Tensor, first: int) -> None:
        """Draw a token for each row from `first` on; logits (A, V)."""
        drawn = sample(logits, [sequence.sampler for sequence in self._rows[first:]])
        ended = [first + at for at, token in enumerate(drawn) if self._ends(self._rows[first + at], token, logits[at])]
        self._free(ended)

    def _ends(self, sequence: Sequence, token: int | NonFiniteLogits, logits: Tensor) -> bool:
        if isinstance(token, int):
            return sequence.accept(token, logits)
        sequence.request.fail(token)
        return True

    def _drop_cancelled(self) -> None:
        gone = {sequence.request for sequence in (*self._rows, *self._waiting) if sequence.request.cancelled}
        for request in gone:
            request.fail(GenerationCancelled())
        self._waiting = deque(sequence for sequence in self._waiting if sequence.request not in gone)
        self._free([row for row, sequence in enumerate(self._rows) if sequence.request in gone])

    def _free(self, rows: Iterable[int]) -> None:
        """Empty rows; the last one moves into each gap."""
        for row in sorted(rows, reverse=True):
            last = self._rows.pop()
            if row < len(self._rows):
                self._decoder.share(len(self._rows), row, last.position)
                self._rows[row] = last


def _scored(tokenizer: Tokenizer, token: int, logits: Tensor, count: int) -> ScoredToken:
    logprobs = logits.log_softmax(dim=-1)  # (V,)
    best = logprobs.topk(min(count, len(logprobs)))
    ids = [token, *best.indices.tolist()]
    values = [float(logprobs[token]), *best.values.tolist()]
    labels = tokenizer.pieces(ids)
    every = [{"token": i, "text": t, "logprob": v} for i, t, v in zip(ids, labels, values, strict=True)]
    return ScoredToken(**every[0], top=tuple(TokenLogprob(**other) for other in every[1:]))
