"""Requests to an engine, and the events that they cause.

A request is made on the thread that submits it, which encodes and checks its prompt. From then on only the engine's
thread changes it; `cancel` sets a flag that the next step reads. What one step produced for a request reaches its
callback in one call.

Shapes: T tokens of a sequence.
"""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from torch import Tensor

from model_core.errors import InvalidParameters, ModelCoreError, PromptTooLong
from model_core.generation.forward.prefix_cache import chain
from model_core.schemas import Choice, FinishReason, SamplingParams, ScoredToken, Usage
from model_core.tokenizer import Tokenizer, unknown_ids

log = logging.getLogger(__name__)

Outcome = Literal["finished", "cancelled", "failed"]


@dataclass(frozen=True)
class TextDelta:
    """What one step added to one choice.

    A token comes when all of its text has come, so it may come later than the first part of its text, but never after
    the text of a later token. The deltas of a choice together have the text, tokens and logprobs of its `Choice`.

    Attributes:
        index: Index of the choice.
        text: The text that was added; may be empty.
        tokens: Ids whose text is complete now.
        logprobs: One entry for each of these tokens; None if none were requested.
        finish_reason: Why the choice has ended; only in its last delta.
        end_token: See `Choice`; only in its last delta.
    """

    index: int
    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[ScoredToken, ...] | None = None
    finish_reason: FinishReason | None = None
    end_token: ScoredToken | None = None


@dataclass(frozen=True)
class GenerationOutput:
    """The result of a request for text, when its last choice has ended.

    Attributes:
        seed: Seed of the request, given or drawn.
        prompt: Ids of the prompt; an empty prompt has the end of text.
        choices: Every continuation, by index.
        usage: Tokens read, of these found in the prefix cache, and generated.
        prompt_logprobs: One entry for each token of the prompt, the first one None; None if none were requested.
    """

    seed: int
    prompt: tuple[int, ...]
    choices: tuple[Choice, ...]
    usage: Usage
    prompt_logprobs: tuple[ScoredToken | None, ...] | None = None


@dataclass(frozen=True, eq=False)
class ScoreDelta:
    """The score of one sequence.

    Attributes:
        index: Index of the sequence.
        logprobs: Natural log probability of every counted token, given those before it, (N,), float32 on the CPU; not
            finite where the model's logits are not.
    """

    index: int
    logprobs: Tensor


@dataclass(frozen=True, eq=False)
class ScoreOutput:
    """The result of a request for scores.

    Attributes:
        logprobs: See `ScoreDelta`, by index.
        tokens: Tokens read, which are all but the last one of each sequence.
    """

    logprobs: tuple[Tensor, ...]
    tokens: int


Event = tuple[TextDelta, ...] | GenerationOutput | ModelCoreError
EventCallback = Callable[[Event], None]
ScoreEvent = tuple[ScoreDelta, ...] | ScoreOutput | ModelCoreError
ScoreCallback = Callable[[ScoreEvent], None]


class GenerationCancelled(ModelCoreError):
    """The request was cancelled."""

    code = "cancelled"

    def __init__(self) -> None:
        super().__init__("the request was cancelled")


class DeadlineExceeded(ModelCoreError):
    """The request took longer than it was given."""

    code = "deadline_exceeded"

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"the request was not done within its {timeout_s:g} s")
        self.hint = "ask for fewer tokens, or give it a longer timeout_s"


class OpenRequest(ABC):
    """What requests for text and for scores have in common.

    Args:
        on_event: Called with the tuple of deltas of each step that had any, then once with the output or an error. It
            must not block.
        client: Whose request it is: clients take turns.
        timeout_s: Time until the request fails; None has no limit.
    """

    def __init__(self, on_event: Callable[[Any], None], *, client: str = "", timeout_s: float | None = None) -> None:
        self.client, self.timeout_s = client, timeout_s
        self.created_s = time.monotonic()
        self.deadline_s = math.inf if timeout_s is None else self.created_s + timeout_s
        self.cancelled = False
        self.outcome: Outcome | None = None
        self._on_event = on_event

    @property
    def ended(self) -> bool:
        """Whether the callback got the output or an error."""
        return self.outcome is not None

    @property
    @abstractmethod
    def open_tokens(self) -> int:
        """Most tokens that are still to be read and generated."""

    def cancel(self) -> None:
        """Cancel the request within one step, from any thread; does nothing after its end."""
        self.cancelled = True

    def fail(self, error: ModelCoreError) -> None:
        """End the request with an error; does nothing after its end.

        Args:
            error: The reason.
        """
        if self.outcome is None:
            self.outcome = "cancelled" if isinstance(error, GenerationCancelled) else "failed"
            self._call(error)

    def end_if_due(self, now_s: float) -> None:
        """End the request if it was cancelled or its time is over.

        Args:
            now_s: Present time of `time.monotonic`.
        """
        if self.cancelled:
            self.fail(GenerationCancelled())
        elif now_s >= self.deadline_s:
            assert self.timeout_s is not None
            self.fail(DeadlineExceeded(self.timeout_s))

    def flush(self) -> None:
        """Pass the deltas of a step to the callback, and the output if it is complete."""
        if self.outcome is None and (deltas := self._take_deltas()):
            self._call(deltas)
        if self.outcome is None and (output := self._output()) is not None:
            self.outcome = "finished"
            self._call(output)

    @abstractmethod
    def _take_deltas(self) -> tuple[TextDelta, ...] | tuple[ScoreDelta, ...]:
        """Return the deltas since the last call."""

    @abstractmethod
    def _output(self) -> GenerationOutput | ScoreOutput | None:
        """Return the output when everything has ended."""

    def _call(self, event: object) -> None:
        try:
            self._on_event(event)
        except Exception:  # foreign code: its failure must not end other requests
            log.exception("callback failed")
            self.cancelled = True


class Request(OpenRequest):
    """One prompt and its continuations.

    Args:
        params: Sampling parameters; a seed is drawn if there is none.
        prompt: Text, or token ids; an empty one starts a new text.
        tokenizer: Tokenizer of the model.
        block_size: Positions of the model.
        on_event: See `OpenRequest`.
        prompt_logprobs: Whether to return the log probabilities of the prompt's tokens.
        client: See `OpenRequest`.
        timeout_s: See `OpenRequest`.

    Attributes:
        max_new: Most tokens of a continuation; 0 where the prompt leaves no position, or none are wanted.
        limit: Finish reason of a continuation with `max_new` tokens.
        prompt_logits: Logits after the prompt, (V,), while choices still start from them.
        cached_tokens: Tokens of the prompt that the prefix cache had.
        started: Choices that have started.
        wants_prompt: Whether the log probabilities of the prompt are to be returned.

    Raises:
        PromptTooLong: The prompt has more tokens than the model has positions.
        InvalidParameters: The tokenizer does not have one of the ids.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: str | Sequence[int],
        tokenizer: Tokenizer,
        block_size: int,
        on_event: EventCallback,
        *,
        prompt_logprobs: bool = False,
        client: str = "",
        timeout_s: float | None = None,
    ) -> None:
        super().__init__(on_event, client=client, timeout_s=timeout_s)
        self.params = params.seeded()
        assert self.params.seed is not None
        self.seed = self.params.seed
        self.prompt = tuple(tokenizer.encode(prompt) if isinstance(prompt, str) else prompt) or (tokenizer.eot,)
        if len(self.prompt) > block_size:
            raise PromptTooLong(len(self.prompt), block_size)
        _check_ids(self.prompt, tokenizer.n_vocab, "/prompt")
        _check_ids(params.logit_bias, tokenizer.n_vocab, "/logit_bias")
        _check_ids(params.stop_token_ids, tokenizer.n_vocab, "/stop_token_ids")
        self.max_new = min(params.max_new_tokens, block_size - len(self.prompt))
        self.limit: FinishReason = "length" if self.max_new == params.max_new_tokens else "context"
        self.prompt_logits: Tensor | None = None
        self.cached_tokens = self.started = 0
        self.wants_prompt = prompt_logprobs
        self._prompt_logprobs: list[ScoredToken | None] = [None]
        self._choices: dict[int, Choice] = {}
        self._deltas: dict[int, TextDelta] = {}

    @property
    def open_tokens(self) -> int:
        """Most tokens that are still to be read and generated; nothing that runs is counted as done."""
        return len(self.prompt) + self.max_new * (self.params.n - len(self._choices))

    @cached_property
    def prefix_keys(self) -> tuple[bytes, ...]:
        """Keys of the prompt's full chunks in the prefix cache."""
        return chain(self.prompt)

    @property
    def prompt_scored(self) -> int:
        """Number of the prompt's tokens whose log probabilities are known; the first has none."""
        return len(self._prompt_logprobs)

    def add_prompt_logprobs(self, scored: Sequence[ScoredToken]) -> None:
        """Record the next log probabilities of the prompt.

        Args:
            scored: Those of the tokens behind the ones that are known.
        """
        self._prompt_logprobs.extend(scored)

    def count_start(self) -> None:
        """Count a choice that starts from `prompt_logits`; after the last one they are dropped."""
        self.started += 1
        if self.started == self.params.n:
            self.prompt_logits = None

    def add_delta(self, delta: TextDelta) -> None:
        """Add to what the next `flush` passes on.

        Args:
            delta: What a choice gained.
        """
        before = self._deltas.get(delta.index)
        self._deltas[delta.index] = delta if before is None else _joined(before, delta)

    def end_choice(self, choice: Choice) -> None:
        """Record an ended continuation; after the last one, `flush` ends the request.

        Args:
            choice: The continuation.
        """
        self._choices[choice.index] = choice

    def _take_deltas(self) -> tuple[TextDelta, ...]:
        deltas = tuple(self._deltas.values())
        self._deltas.clear()
        return deltas

    def _output(self) -> GenerationOutput | None:
        if len(self._choices) < self.params.n:
            return None
        choices = tuple(self._choices[index] for index in range(self.params.n))
        usage = Usage(
            prompt_tokens=len(self.prompt),
            completion_tokens=sum(len(choice.tokens) for choice in choices),
            cached_tokens=self.cached_tokens,
        )
        scored = tuple(self._prompt_logprobs) if self.wants_prompt else None
        return GenerationOutput(self.seed, self.prompt, choices, usage, scored)


class ScoreRequest(OpenRequest):
    """Sequences whose tokens get a log probability each.

    Args:
        sequences: Token ids. The last one of a sequence is not read, so there may be one more than the model has
            positions; a sequence of no or one id has no log probability.
        n_vocab: Ids of the tokenizer.
        block_size: Positions of the model.
        on_event: See `OpenRequest`.
        first: Index of the first counted token of each sequence, at least 1; None counts all but the first one.
        client: See `OpenRequest`.
        timeout_s: See `OpenRequest`.

    Raises:
        PromptTooLong: A sequence has more tokens than the model can read.
        InvalidParameters: The tokenizer does not have one of the ids.
    """

    def __init__(
        self,
        sequences: Sequence[Sequence[int]],
        n_vocab: int,
        block_size: int,
        on_event: ScoreCallback,
        *,
        first: Sequence[int] | None = None,
        client: str = "",
        timeout_s: float | None = None,
    ) -> None:
        super().__init__(on_event, client=client, timeout_s=timeout_s)
        self.sequences = tuple(tuple(ids) for ids in sequences)
        self.first = tuple(first) if first is not None else (1,) * len(self.sequences)
        for index, ids in enumerate(self.sequences):
            _check_ids(ids, n_vocab, f"/{index}")
        longest = max(map(len, self.sequences), default=0)
        if longest > block_size + 1:
            raise PromptTooLong(longest, block_size)
        self._scores: dict[int, Tensor] = {}
        self._deltas: list[ScoreDelta] = []

    @property
    def open_tokens(self) -> int:
        """Tokens of the sequences that are not scored yet."""
        return sum(max(len(ids) - 1, 0) for i, ids in enumerate(self.sequences) if i not in self._scores)

    def end_sequence(self, index: int, logprobs: Tensor) -> None:
        """Record the score of a sequence; after the last one, `flush` ends the request.

        Args:
            index: Index of the sequence.
            logprobs: See `ScoreDelta`.
        """
        self._scores[index] = logprobs
        self._deltas.append(ScoreDelta(index, logprobs))

    def _take_deltas(self) -> tuple[ScoreDelta, ...]:
        deltas = tuple(self._deltas)
        self._deltas.clear()
        return deltas

    def _output(self) -> ScoreOutput | None:
        if len(self._scores) < len(self.sequences):
            return None
        scores = tuple(self._scores[index] for index in range(len(self.sequences)))
        return ScoreOutput(scores, sum(map(len, scores)))


def _check_ids(ids: Iterable[int], n_vocab: int, pointer: str) -> None:
    if wrong := list(unknown_ids(ids, n_vocab, pointer)):
        raise InvalidParameters(wrong)


def _joined(first: TextDelta, second: TextDelta) -> TextDelta:
    logprobs = None if first.logprobs is None else first.logprobs + (second.logprobs or ())
    text, tokens = first.text + second.text, first.tokens + second.tokens
    return replace(second, text=text, tokens=tokens, logprobs=logprobs)
