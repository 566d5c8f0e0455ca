"""Continuous batching: requests from many threads, computed together by one.

The engine owns a thread and a `Scheduler`. A request joins at the next step, however far the others are, and leaves as
soon as it ends, is cancelled or is out of time. If the thread fails, every open request ends with an error: none waits
forever. Callbacks run on the engine's thread, at the end of each step.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from model_core.errors import ModelCoreError
from model_core.generation.forward.model_runner import ModelRunner
from model_core.generation.forward.packed_model import PackedModel, pack_model
from model_core.generation.forward.prefix_cache import PrefixCache
from model_core.generation.request import (
    Event,
    EventCallback,
    GenerationOutput,
    OpenRequest,
    Outcome,
    Request,
    ScoreCallback,
    ScoreRequest,
)
from model_core.generation.scheduling.rows import TakeMemory
from model_core.generation.scheduling.scheduler import PREFILL_TOKENS, Scheduler
from model_core.generation.stats import EngineStats, RequestCounts
from model_core.gpt import GPT
from model_core.schemas import SamplingParams
from model_core.tokenizer import Tokenizer

log = logging.getLogger(__name__)

MAX_ROWS = 32
MAX_QUEUE = 256
PREFIX_CACHE_BYTES = 256 * 2**20
_LONGEST_RETRY_S = 60


class EngineBusy(ModelCoreError):
    """Too many requests are open.

    Attributes:
        open_tokens: Most tokens that the open requests will still read and generate.
        tokens_per_s: Measured rate; 0 when nothing was measured yet.
        retry_after_s: Whole seconds after which a new request has a chance, 1 to 60.
    """

    code = "inference_busy"

    def __init__(self, requests: int, open_tokens: int, tokens_per_s: float) -> None:
        super().__init__(f"{requests} requests are open with this model already; try again later")
        self.open_tokens, self.tokens_per_s = open_tokens, tokens_per_s
        # a place is free when one request has ended, not all
        seconds = open_tokens / max(requests, 1) / tokens_per_s if tokens_per_s else 1.0
        self.retry_after_s = min(max(math.ceil(seconds), 1), _LONGEST_RETRY_S)


class EngineStopped(ModelCoreError):
    """The engine was closed or has failed."""

    code = "inference_unavailable"

    def __init__(self, reason: str) -> None:
        super().__init__(f"the generation engine has stopped: {reason}")


class Engine:
    """Computes with one model for any number of threads.

    Args:
        weights: The model.
        tokenizer: Tokenizer of the model.
        max_rows: Most sequences in the cache at once; others wait.
        max_queue: Most open requests beyond `max_rows`; one more is refused.
        cache_tokens: Most positions of the cache, which bounds its memory: rows in use times the longest of them. At
            least one row with all positions of the model; None has room for all rows.
        prefill_tokens: Most tokens of prompts read between two tokens of those that generate, at least 64.
        prefix_cache_bytes: Most memory for the beginnings of prompts; 0 keeps none.
        take_memory: See `Scheduler`; called on the engine's thread and once on this one.
    """

    def __init__(
        self,
        weights: PackedModel,
        tokenizer: Tokenizer,
        *,
        max_rows: int = MAX_ROWS,
        max_queue: int = MAX_QUEUE,
        cache_tokens: int | None = None,
        prefill_tokens: int = PREFILL_TOKENS,
        prefix_cache_bytes: int = PREFIX_CACHE_BYTES,
        take_memory: TakeMemory | None = None,
    ) -> None:
        self._tokenizer, self._block_size = tokenizer, weights.config.block_size
        self._max_open = max_rows + max_queue
        self._scheduler = Scheduler(
            ModelRunner(weights, rows=max_rows, length=self._block_size),
            tokenizer,
            cache_tokens=cache_tokens,
            prefill_tokens=prefill_tokens,
            prefix_cache=PrefixCache(prefix_cache_bytes),
            take_memory=take_memory,
        )
        self._open: set[OpenRequest] = set()  # guarded by _changed, like the four below
        self._arrived: list[Request | ScoreRequest] = []
        self._submitted = 0
        self._outcomes: Counter[Outcome] = Counter()  # of all that are not open any more
        self._stopped: EngineStopped | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    def submit(
        self,
        params: SamplingParams,
        prompt: str | Sequence[int],
        on_event: EventCallback,
        *,
        prompt_logprobs: bool = False,
        client: str = "",
        timeout_s: float | None = None,
    ) -> Request:
        """Start a request for text, from any thread.

        Args:
            params: Sampling parameters; a seed is drawn if there is none.
            prompt: Text to continue, or its token ids; empty starts a new text.
            on_event: Called on the engine's thread after each step that gave the request something, with a tuple of
                `TextDelta`s, at most one for each choice; then once with the `GenerationOutput` or an error. It must
                not block.
            prompt_logprobs: Whether to return the log probabilities of the prompt's tokens, with as many alternatives
                as `params.logprobs`. Such a prompt is read whole; otherwise its beginning may come from a cache.
            client: Whose request it is: rows are shared fairly between clients.
            timeout_s: Time until the request fails with `DeadlineExceeded`; None has no limit.

        Returns:
            The request, which can be cancelled.

        Raises:
            PromptTooLong: The prompt has more tokens than the model has positions.
            InvalidParameters: The tokenizer does not have a token id of the prompt or of the parameters.
            EngineBusy: Too many requests are open.
            EngineStopped: The engine was closed or has failed.
        """
        request = Request(
            params,
            prompt,
            self._tokenizer,
            self._block_size,
            on_event,
            prompt_logprobs=prompt_logprobs,
            client=client,
            timeout_s=timeout_s,
        )
        self._enqueue(request)
        return request

    def submit_score(
        self,
        sequences: Sequence[Sequence[int]],
        on_event: ScoreCallback,
        *,
        first: Sequence[int] | None = None,
        client: str = "",
        timeout_s: float | None = None,
    ) -> ScoreRequest:
        """Start a request for log probabilities, from any thread. It runs in what requests for text leave.

        Args:
            sequences: Token ids. The last one of a sequence is not read, so there may be one more than the model has
                positions; a sequence of no or one id has no log probability.
            on_event: Called on the engine's thread after each step that ended sequences, with a tuple of
                `ScoreDelta`s, in any order of their indices; then once with the `ScoreOutput` or an error. It must not
                block.
            first: Index of the first counted token of each sequence, at least 1: those before it are only read. None
                counts all but the first one.
            client: Whose request it is: rows are shared fairly between clients.
            timeout_s: Time until the request fails with `DeadlineExceeded`; None has no limit.

        Returns:
            The request, which can be cancelled.

        Raises:
            PromptTooLong: A sequence has more tokens than the model can read.
            InvalidParameters: The tokenizer does not have one of the ids.
            EngineBusy: Too many requests are open.
            EngineStopped: The engine was closed or has failed.
        """
        request = ScoreRequest(
            sequences,
            self._tokenizer.n_vocab,
            self._block_size,
            on_event,
            first=first,
            client=client,
            timeout_s=timeout_s,
        )
        self._enqueue(request)
        return request

    def complete(
        self, params: SamplingParams, prompt: str | Sequence[int] = "", *, prompt_logprobs: bool = False
    ) -> GenerationOutput:
        """Run a request for text and wait for its end.

        Args:
            params: See `submit`.
            prompt: See `submit`.
            prompt_logprobs: See `submit`.

        Returns:
            Every continuation, and the tokens used.

        Raises:
            ModelCoreError: As `submit`, or the error that ended the request.
        """
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.submit(params, prompt, events.put, prompt_logprobs=prompt_logprobs)
        while True:
            event = events.get()
            if isinstance(event, ModelCoreError):
                raise event
            if isinstance(event, GenerationOutput):
                return event

    def stats(self) -> EngineStats:
        """Take a snapshot of the counters, from any thread.

        Returns:
            The snapshot.
        """
        with self._changed:
            requests = RequestCounts(
                submitted=self._submitted,
                open_requests=len(self._open),
                finished=self._outcomes["finished"],
                cancelled=self._outcomes["cancelled"],
                failed=self._outcomes["failed"],
                open_tokens=self._open_tokens(),
            )
            return self._scheduler.stats(requests)

    @property
    def open_requests(self) -> int:
        """Requests that run or wait."""
        with self._changed:
            return len(self._open)

    @property
    def alive(self) -> bool:
        """Whether it accepts requests."""
        return self._stopped is None

    def close(self) -> None:
        """Stop within one step; open requests end with an error."""
        self._stop(EngineStopped("it was closed"))
        self._thread.join()

    def close_if_unused(self) -> bool:
        """Stop if no request is open, so that none which joins in this moment is lost.

        Returns:
            Whether it has stopped.
        """
        with self._changed:
            if self._open:
                return False
            self._stop(EngineStopped("it was closed"))
        self._thread.join()
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._scheduler.step()
                self._count_ended()
        except BaseException as error:  # the edge of a thread: open requests must end
            log.exception("generation engine failed")
            self._stop(EngineStopped(f"{type(error).__name__}: {error}"))
        finally:
            for request in tuple(self._open):  # none joins any more
                request.end_if_due(time.monotonic())
                request.fail(self._stopped or EngineStopped("its thread has ended"))
            self._count_ended()

    def _count_ended(self) -> None:
        """Count what has ended since the last call, in the moment in which it stops being open."""
        with self._changed:
            for request in tuple(self._open):
                if request.outcome is not None:
                    self._open.remove(request)
                    self._outcomes[request.outcome] += 1

    def _wait_for_work(self) -> bool:
        """Enqueue the requests that arrived; False when the engine stops."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._arrived or self._scheduler.busy)
            arrived, self._arrived = self._arrived, []
            if self._stopped is not None:
                return False
        for request in arrived:
            self._scheduler.add(request)
        return True

    def _enqueue(self, request: Request | ScoreRequest) -> None:
        with self._changed:
            if self._stopped is not None:
                raise self._stopped
            if len(self._open) >= self._max_open:
                raise EngineBusy(len(self._open), self._open_tokens(), self._scheduler.meter.tokens_per_s)
            self._open.add(request)
            self._arrived.append(request)
            self._submitted += 1
            self._changed.notify_all()

    def _open_tokens(self) -> int:
        return sum(request.open_tokens for request in self._open)

    def _stop(self, reason: EngineStopped) -> None:
        with self._changed:
            self._stopped = self._stopped or reason
            self._changed.notify_all()


def generate(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str = "",
    *,
    n: int = 1,
    max_new_tokens: int = 100,
    temperature: float = 1.0,
    top_k: int = 50,
    seed: int | None = None,
) -> list[str]:
    """Generate in the calling thread, for example while the model trains.

    Neither the model's mode nor any global generator changes, so training continues bit for bit as without it.

    Args:
        model: The model; its parameters are only read.
        tokenizer: Tokenizer of the model.
        prompt: Text to continue; empty starts a new text.
        n: Number of continuations.
        max_new_tokens: Most tokens of each.
        temperature: Divides the logits; 0 takes the most likely token.
        top_k: Number of most likely tokens to sample from; 0 takes all.
        seed: Seed of every draw; None draws one.

    Returns:
        The continuations, without the prompt.

    Raises:
        PromptTooLong: The prompt has more tokens than the model has positions.
        NonFiniteLogits: The model's logits are NaN or infinite.
    """
    params = SamplingParams(n=n, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, seed=seed)
    events: list[Event] = []
    request = Request(params, prompt, tokenizer, model.config.block_size, events.append)
    weights = pack_model(model, tokenizer.n_vocab, "fp32", keep=True)
    length = len(request.prompt) + request.max_new
    scheduler = Scheduler(ModelRunner(weights, rows=min(n, MAX_ROWS), length=length), tokenizer)
    scheduler.add(request)
    while scheduler.busy:
        scheduler.step()
    last = events[-1]
    if not isinstance(last, GenerationOutput):
        assert isinstance(last, ModelCoreError)
        raise last
    return [choice.text for choice in last.choices]
