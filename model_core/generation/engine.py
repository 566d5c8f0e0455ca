"""Continuous batching: requests from many threads, decoded together by one.

The engine owns a thread and a `Scheduler`. A request joins at the next step, however far the others are, and leaves as
soon as it ends or is cancelled. If the thread fails, every open request ends with an error: none waits forever.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from model_core.errors import ModelCoreError
from model_core.generation.model_runner import ModelRunner
from model_core.generation.packed_model import pack_model
from model_core.generation.scheduler import Event, EventCallback, GenerationOutput, Request, Scheduler
from model_core.gpt import GPT
from model_core.schemas import SamplingParams
from model_core.tokenizer import Tokenizer

log = logging.getLogger(__name__)

_MAX_ROWS = 32  # of `generate`


class EngineBusy(ModelCoreError):
    """Too many requests are open."""

    code = "inference_unavailable"

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} requests wait for this model already; try again later")


class EngineStopped(ModelCoreError):
    """The engine was closed or has failed."""

    code = "inference_unavailable"

    def __init__(self, reason: str) -> None:
        super().__init__(f"the generation engine has stopped: {reason}")


class Engine:
    """Generates with one model for any number of threads.

    Args:
        model: The model, in any mode; its parameters are only read.
        tokenizer: Tokenizer of the model.
        max_batch: Most sequences decoded together; others wait.
        max_open: Most open requests; one more is refused.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, *, max_batch: int = 8, max_open: int = 256) -> None:
        self._tokenizer, self._block_size, self._max_open = tokenizer, model.config.block_size, max_open
        runner = ModelRunner(pack_model(model, tokenizer.n_vocab), rows=max_batch, length=self._block_size)
        self._scheduler = Scheduler(runner, tokenizer)
        self._open: set[Request] = set()  # guarded by _changed, like the two below
        self._arrived: list[Request] = []
        self._stopped: EngineStopped | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    def submit(self, params: SamplingParams, prompt: str | Sequence[int], on_event: EventCallback) -> Request:
        """Start a request, from any thread.

        Args:
            params: Sampling parameters; a seed is drawn if there is none.
            prompt: Text to continue, or its token ids; empty starts a new text.
            on_event: Called on the engine's thread with every `TextDelta`, then once with the `GenerationOutput` or
                an error.

        Returns:
            The request, which can be cancelled.

        Raises:
            PromptTooLong: The prompt has more tokens than the model has positions.
            InvalidParameter: A token id is not one of the tokenizer's.
            EngineBusy: Too many requests are open.
            EngineStopped: The engine was closed or has failed.
        """
        request = Request(params.seeded(), prompt, self._tokenizer, self._block_size, on_event)
        with self._changed:
            if self._stopped is not None:
                raise self._stopped
            if len(self._open) >= self._max_open:
                raise EngineBusy(self._max_open)
            self._open.add(request)
            self._arrived.append(request)
            self._changed.notify_all()
        return request

    def complete(self, params: SamplingParams, prompt: str | Sequence[int] = "") -> GenerationOutput:
        """Run a request and wait for its end.

        Args:
            params: Sampling parameters.
            prompt: As in `submit`.

        Returns:
            Every continuation, and the tokens used.

        Raises:
            ModelCoreError: As `submit`, or the error that ended the request.
        """
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.submit(params, prompt, events.put)
        while True:
            event = events.get()
            if isinstance(event, ModelCoreError):
                raise event
            if isinstance(event, GenerationOutput):
                return event

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
                with self._changed:
                    self._open = {request for request in self._open if not request.ended}
        except BaseException as error:  # the edge of a thread: open requests must end
            log.exception("generation engine failed")
            self._stop(EngineStopped(f"{type(error).__name__}: {error}"))
        finally:
            with self._changed:
                left, self._open = self._open, set()
            for request in left:
                request.fail(self._stopped or EngineStopped("its thread has ended"))

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
    request = Request(params.seeded(), prompt, tokenizer, model.config.block_size, events.append)
    length = len(request.prompt) + request.max_new
    runner = ModelRunner(pack_model(model, tokenizer.n_vocab), rows=min(n, _MAX_ROWS), length=length)
    scheduler = Scheduler(runner, tokenizer)
    scheduler.add(request)
    while scheduler.busy:
        scheduler.step()
    last = events[-1]
    if not isinstance(last, GenerationOutput):
        assert isinstance(last, ModelCoreError)
        raise last
    return [choice.text for choice in last.choices]
