"""Continuous batching: requests from many threads, decoded together by one.

The engine owns a thread and a `Batch`. A request joins at the next step, whatever the others are at, and leaves
the moment it ends or is cancelled. If the thread fails, every request hears of it: nobody waits for ever.
"""

from __future__ import annotations

import logging
import queue
import threading
from types import TracebackType
from typing import Self

from model_core.errors import ModelCoreError
from model_core.generation.model_runner import Decoder
from model_core.generation.scheduler import Batch, GenerationOutput, Listener, Request, TextDelta
from model_core.gpt import GPT
from model_core.schemas import SamplingParams
from model_core.tokenizer import Tokenizer

log = logging.getLogger(__name__)

_SAMPLES_AT_ONCE = 32


class EngineBusy(ModelCoreError):
    """Too many requests wait already."""

    code = "inference_unavailable"

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} requests wait for this model already; try again later")


class EngineStopped(ModelCoreError):
    """The engine does not run any more."""

    code = "inference_unavailable"

    def __init__(self, reason: str) -> None:
        super().__init__(f"the generation engine has stopped: {reason}")


class Engine:
    """Writes with one model for everybody who asks.

    Args:
        model: In any mode; its parameters are only read.
        tokenizer: The one it was trained with.
        max_batch: Texts decoded together; more wait in line.
        max_open: Requests in work or in line; one more is refused.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, *, max_batch: int = 8, max_open: int = 256) -> None:
        self._tokenizer, self._block_size, self._max_open = tokenizer, model.config.block_size, max_open
        decoder = Decoder(model, tokenizer.n_vocab, rows=max_batch, length=self._block_size)
        self._batch = Batch(decoder, tokenizer)
        self._open: set[Request] = set()  # guarded by _changed, like the two below
        self._arrived: list[Request] = []
        self._stopped: EngineStopped | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    def submit(self, settings: SamplingParams, listener: Listener) -> Request:
        """Start a request, from any thread.

        Args:
            settings: A seed is drawn if it has none.
            listener: Called on the engine's thread with every `TextDelta`, then once with the `GenerationOutput` or
                an error.

        Returns:
            The request, to cancel it.

        Raises:
            PromptTooLong: The prompt has more tokens than the model has positions.
            EngineBusy: Too many requests wait.
            EngineStopped: The engine was closed or has failed.
        """
        request = Request(settings.seeded(), self._tokenizer, self._block_size, listener)
        with self._changed:
            if self._stopped is not None:
                raise self._stopped
            if len(self._open) >= self._max_open:
                raise EngineBusy(self._max_open)
            self._open.add(request)
            self._arrived.append(request)
            self._changed.notify_all()
        return request

    def complete(self, settings: SamplingParams) -> GenerationOutput:
        """Run a request and wait for its end.

        Raises:
            ModelCoreError: As `submit`, or what ended the request.
        """
        events: queue.SimpleQueue[TextDelta | GenerationOutput | ModelCoreError] = queue.SimpleQueue()
        self.submit(settings, events.put)
        while True:
            event = events.get()
            if isinstance(event, ModelCoreError):
                raise event
            if isinstance(event, GenerationOutput):
                return event

    @property
    def open_requests(self) -> int:
        """Requests in work or in line."""
        with self._changed:
            return len(self._open)

    @property
    def alive(self) -> bool:
        """Whether it takes requests."""
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
            while self._take_arrived():
                self._batch.advance()
                with self._changed:
                    self._open = {request for request in self._open if not request.ended}
        except BaseException as error:  # the edge of a thread: whoever waits must hear of it
            log.exception("generation engine failed")
            self._stop(EngineStopped(f"{type(error).__name__}: {error}"))
        finally:
            with self._changed:
                left, self._open = self._open, set()
            for request in left:
                request.fail(self._stopped or EngineStopped("its thread has ended"))

    def _take_arrived(self) -> bool:
        """Wait for work; false when the engine is to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._arrived or self._batch.busy)
            arrived, self._arrived = self._arrived, []
            if self._stopped is not None:
                return False
        for request in arrived:
            self._batch.add(request)
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
    """Write with a model in the calling thread, for example while it trains.

    Neither the model's mode nor any global generator is touched, so training goes on bit for bit as without it.

    Args:
        model: Its parameters are only read.
        tokenizer: The one it is trained with.
        prompt: Text to continue; empty starts a new text.
        n: Continuations.
        max_new_tokens: At most so many each.
        temperature: As in `SamplingParams`, like the rest.
        top_k: See `SamplingParams`.
        seed: See `SamplingParams`.

    Returns:
        The continuations, without the prompt.

    Raises:
        PromptTooLong: The prompt has more tokens than the model has positions.
    """
    settings = SamplingParams(
        prompt=prompt, n=n, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, seed=seed
    )
    events: list[TextDelta | GenerationOutput | ModelCoreError] = []
    request = Request(settings.seeded(), tokenizer, model.config.block_size, events.append)
    length = len(request.prompt) + request.max_new
    batch = Batch(Decoder(model, tokenizer.n_vocab, rows=min(n, _SAMPLES_AT_ONCE), length=length), tokenizer)
    batch.add(request)
    while batch.busy:
        batch.advance()
    last = events[-1]
    if not isinstance(last, GenerationOutput):
        assert isinstance(last, ModelCoreError)
        raise last
    return [choice.text for choice in last.choices]
