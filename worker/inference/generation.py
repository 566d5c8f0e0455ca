"""One open request for text: from its prompts to one result, or to lines of a stream.

Each prompt is a request of its own to the engine; their continuations are numbered through. What came from the engine
since the last line is one line of a stream.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any, cast

from model_core.errors import InvalidParameters
from model_core.generation.engine import EngineStopped
from model_core.generation.request import Event, GenerationOutput, TextDelta
from model_core.generation.request import Request as EngineRequest
from model_core.schemas import InferenceRequest, InferenceResult, PromptResult, Usage, Weights
from worker.inference.engine_call import EngineCall
from worker.inference.loaded_models import ServedModel
from worker.inference.model_cache import ModelCache
from worker.inference.streams import Waker

_Produced = tuple[TextDelta, ...] | GenerationOutput
_Part = tuple[int, _Produced]  # with the number of the prompt

_SHORT = 2000  # characters or ids of all prompts


class Generation(EngineCall[_Part]):
    """One open request for text. It has begun when its first text is there.

    Args:
        request: What to generate; its checkpoint is a file name.
        deadline_s: Longest time for it, loading of the model included.
        waker: Wakes the event loop for the engine's events.
    """

    def __init__(self, request: InferenceRequest, deadline_s: float, waker: Waker) -> None:
        super().__init__(request.timeout_s, deadline_s, waker)
        self._request = request
        self._submitted: list[EngineRequest] = []
        self._first: list[_Part] = []
        self._outputs: dict[int, GenerationOutput] = {}

    async def complete(self, models: ModelCache, sha256: str) -> InferenceResult:
        """Generate everything.

        Args:
            models: The models of this process.
            sha256: Hash of the checkpoint's file, hex.

        Returns:
            The result.

        Raises:
            ModelCoreError: The generation failed.
        """
        await self.begin(models, sha256)
        try:
            async for _ in self._parts():
                pass
        finally:
            self.cancel()
        return self._result()

    async def lines(self) -> AsyncIterator[dict[str, Any]]:
        """Iterate over the lines of a stream.

        Yields:
            ``{"choices": [...]}`` with what the choices gained since the last line; a choice that has ended has its
            `finish_reason` and `end_token`. The first line also has the `fingerprint`. At the end ``{"result": ...}``.

        Raises:
            ModelCoreError: The generation failed.
        """
        head = {"fingerprint": self._served.fingerprint}
        async for parts in self._parts():
            if choices := self._gains(parts):
                yield {**head, "choices": choices}
                head = {}
        yield {"result": self._result().model_dump(mode="json")}

    async def _start(self, models: ModelCache, sha256: str) -> None:
        if not self._submit_at_once(models, sha256):
            await super()._start(models, sha256)
        self._first = await self._events.take()

    def _submit_at_once(self, models: ModelCache, sha256: str) -> bool:
        """Submit a request that blocks the event loop less than a thread would: short prompts for a loaded model."""
        if sum(map(len, self._request.prompts)) > _SHORT:
            return False
        served = models.loaded(self._request.run, self._request.checkpoint, sha256)
        if served is None:
            return False
        self._served = served
        try:
            self._submit()
        except EngineStopped:  # the model was evicted in this moment
            return False
        return True

    def _load(self, models: ModelCache, sha256: str) -> ServedModel:
        return models.get(self._request.run, self._request.checkpoint, sha256)

    def _submit(self) -> None:
        self._submitted.clear()
        left_s = self._left_s
        for number, prompt in enumerate(self._request.prompts):
            try:
                submitted = self._served.engine.submit(
                    self._request,
                    prompt,
                    partial(self._on_event, number),
                    prompt_logprobs=self._request.echo and self._request.logprobs is not None,
                    client=self._request.client,
                    timeout_s=left_s,
                )
            except InvalidParameters as error:
                self._cancel_submitted()
                raise InvalidParameters(p.moved("/prompt", f"/prompts/{number}") for p in error.problems) from None
            except BaseException:
                self._cancel_submitted()
                raise
            self._submitted.append(submitted)
            if self._is_cancelled:
                self._cancel_submitted()

    def _cancel_submitted(self) -> None:
        for submitted in tuple(self._submitted):  # a thread may still be submitting
            submitted.cancel()

    def _on_event(self, number: int, event: Event) -> None:
        self._events.put(event if isinstance(event, Exception) else (number, event))

    async def _parts(self) -> AsyncIterator[list[_Part]]:
        """Everything that comes from the engine, until all prompts have their output."""
        parts, self._first = self._first, []
        while True:
            for number, part in parts:
                if isinstance(part, GenerationOutput):
                    self._outputs[number] = part
            yield parts
            if len(self._outputs) == len(self._request.prompts):
                return
            parts = await self._events.take()

    def _gains(self, parts: list[_Part]) -> list[dict[str, Any]]:
        """What each choice gained; several steps of one choice are joined."""
        gains: dict[int, dict[str, Any]] = {}
        for number, part in parts:
            for delta in () if isinstance(part, GenerationOutput) else part:
                index = number * self._request.n + delta.index
                gain = gains.setdefault(index, {"index": index, "text": "", "tokens": []})
                gain["text"] += delta.text
                gain["tokens"] += delta.tokens
                if delta.logprobs is not None:
                    gain.setdefault("logprobs", []).extend(scored.model_dump(mode="json") for scored in delta.logprobs)
                if delta.finish_reason is not None:
                    gain["finish_reason"] = delta.finish_reason
                if delta.end_token is not None:
                    gain["end_token"] = delta.end_token.model_dump(mode="json")
        return list(gains.values())

    def _result(self) -> InferenceResult:
        outputs = [self._outputs[number] for number in range(len(self._request.prompts))]
        choices = [
            choice.model_copy(update={"index": number * self._request.n + choice.index})
            for number, output in enumerate(outputs)
            for choice in output.choices
        ]
        usage = Usage(
            prompt_tokens=sum(output.usage.prompt_tokens for output in outputs),
            completion_tokens=sum(output.usage.completion_tokens for output in outputs),
            cached_tokens=sum(output.usage.cached_tokens for output in outputs),
        )
        served = self._served
        wants_pieces = self._request.echo or self._request.logprobs is not None
        prompts = [
            PromptResult(
                tokens=output.prompt,
                pieces=tuple(served.tokenizer.names(output.prompt)) if wants_pieces else (),
                logprobs=output.prompt_logprobs,
            )
            for output in outputs
        ]
        return InferenceResult(
            run=served.run,
            checkpoint=served.info.file,
            step=served.info.step,
            sha256=served.info.sha256,
            seed=outputs[0].seed,
            weights=cast("Weights", served.weights),
            fingerprint=served.fingerprint,
            prompts=tuple(prompts),
            choices=tuple(choices),
            usage=usage,
            warnings=served.warnings,
        )
