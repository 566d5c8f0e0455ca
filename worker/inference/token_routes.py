"""The routes about tokens: `POST /tokenize` and `POST /detokenize`, which load no model, and `POST /score`.

Scores run on the engine's thread, in what generation leaves of each step.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from model_core.errors import InvalidParameters
from model_core.generation.request import ScoreDelta, ScoreOutput, ScoreRequest
from model_core.generation.scoring import ScoreCollector, ScorePlan, plan_scores
from model_core.score_schemas import (
    DetokenizeRequest,
    DetokenizeResult,
    InferenceScoreRequest,
    PairScore,
    ScoreResult,
    TextScore,
    TokenizeRequest,
    TokenizeResult,
)
from model_core.tokenizer import unknown_ids
from worker.inference.engine_call import EngineCall
from worker.inference.loaded_models import ServedModel
from worker.inference.model_cache import ModelCache
from worker.inference.streams import Call, Lines, Waker, json_response, read_call
from worker.inference.tokenizer_cache import TokenizerCache
from worker.web.disconnect import while_connected


def token_routes(models: ModelCache, tokenizers: TokenizerCache, waker: Waker) -> list[Route]:
    """Build the routes.

    Args:
        models: The models of this process.
        tokenizers: The tokenizers of this process.
        waker: Wakes the event loop for events of engines.

    Returns:
        The routes.
    """

    async def tokenize(connection: Request) -> Response:
        request, sha256 = await read_call(connection, Call[TokenizeRequest])
        return json_response(await asyncio.to_thread(_tokenize, tokenizers, request, sha256))

    async def detokenize(connection: Request) -> Response:
        request, sha256 = await read_call(connection, Call[DetokenizeRequest])
        return json_response(await asyncio.to_thread(_detokenize, tokenizers, request, sha256))

    async def score(connection: Request) -> Response:
        request, sha256 = await read_call(connection, Call[InferenceScoreRequest])
        scoring = Scoring(request, models.settings.deadline_s, waker)
        if request.stream:
            begun = await while_connected(connection, scoring.begin(models, sha256))
            return Lines(begun.lines(), begun.cancel)
        result = await while_connected(connection, scoring.complete(models, sha256))
        return json_response(result)

    return [
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
        Route("/score", score, methods=["POST"]),
    ]


class Scoring(EngineCall[tuple[ScoreDelta, ...] | ScoreOutput]):
    """One open request for scores.

    Args:
        request: What to score; its checkpoint is a file name.
        deadline_s: Longest time for it, loading of the model included.
        waker: Wakes the event loop for the engine's events.
    """

    def __init__(self, request: InferenceScoreRequest, deadline_s: float, waker: Waker) -> None:
        super().__init__(request.timeout_s, deadline_s, waker)
        self._request = request
        self._submitted: ScoreRequest | None = None
        self._plan: ScorePlan
        self._collector: ScoreCollector

    async def complete(self, models: ModelCache, sha256: str) -> ScoreResult:
        """Score everything.

        Args:
            models: The models of this process.
            sha256: Hash of the checkpoint's file, hex.

        Returns:
            All results.

        Raises:
            ModelCoreError: The work failed.
        """
        await self.begin(models, sha256)
        try:
            async for _ in self._results():
                pass
        finally:
            self.cancel()
        return self._result(tuple(self._collector.results))

    async def lines(self) -> AsyncIterator[dict[str, Any]]:
        """Iterate over the lines of a stream.

        Yields:
            ``{"results": [...]}`` with the next results in order, and at the end ``{"result": ...}`` without them.

        Raises:
            ModelCoreError: The work failed.
        """
        async for results in self._results():
            yield {"results": [result.model_dump(mode="json") for result in results]}
        yield {"result": self._result(None).model_dump(mode="json")}

    def _load(self, models: ModelCache, sha256: str) -> ServedModel:
        return models.get(self._request.run, self._request.checkpoint, sha256, self._request.weights)

    def _submit(self) -> None:
        served = self._served
        self._plan = plan_scores(self._request, served.tokenizer, served.config.model.block_size)
        self._collector = ScoreCollector(self._plan, served.tokenizer)
        if self._plan.windows:
            self._submitted = served.engine.submit_score(
                [window.tokens for window in self._plan.windows],
                self._events.put,
                first=[window.first for window in self._plan.windows],
                client=self._request.client,
                timeout_s=self._left_s,
            )
            if self._is_cancelled:
                self._cancel_submitted()

    def _cancel_submitted(self) -> None:
        if self._submitted is not None:
            self._submitted.cancel()

    async def _results(self) -> AsyncIterator[list[TextScore | PairScore]]:
        """New results, in order, as they are complete."""
        if results := self._collector.complete():  # texts of which nothing counts
            yield results
        is_open = self._submitted is not None
        while is_open:
            for event in await self._events.take():
                if isinstance(event, ScoreOutput):
                    is_open = False
                else:
                    self._collect(event)
            if results := self._collector.complete():
                yield results

    def _collect(self, deltas: tuple[ScoreDelta, ...]) -> None:
        for delta in deltas:
            self._collector.add(delta.index, delta.logprobs.tolist())

    def _result(self, results: tuple[TextScore | PairScore, ...] | None) -> ScoreResult:
        served, collector = self._served, self._collector
        return ScoreResult.model_validate(
            {
                "run": served.run,
                "checkpoint": served.info.file,
                "step": served.info.step,
                "sha256": served.info.sha256,
                "weights": served.weights,
                "fingerprint": served.fingerprint,
                "results" if self._request.pairs is None else "pairs": results,
                "accuracy": collector.accuracy,
                "ties": collector.ties,
                "not_finite": collector.not_finite,
                "usage": self._plan.usage,
                "warnings": served.warnings,
            }
        )


def _tokenize(tokenizers: TokenizerCache, request: TokenizeRequest, sha256: str) -> TokenizeResult:
    tokenizer, block_size = tokenizers.get(request.run, request.checkpoint, sha256)
    tokens = tokenizer.encode(request.text)
    ends = [0, *itertools.accumulate(tokenizer.text_sizes(tokens))]
    return TokenizeResult(
        run=request.run,
        checkpoint=request.checkpoint,
        tokens=tuple(tokens),
        pieces=tuple(tokenizer.names(tokens)),
        offsets=tuple(itertools.pairwise(ends)),
        count=len(tokens),
        max_tokens=block_size,
    )


def _detokenize(tokenizers: TokenizerCache, request: DetokenizeRequest, sha256: str) -> DetokenizeResult:
    tokenizer, _ = tokenizers.get(request.run, request.checkpoint, sha256)
    if unknown := list(unknown_ids(request.tokens, tokenizer.n_vocab, "/tokens")):
        raise InvalidParameters(unknown)
    data = tokenizer.decode_bytes(request.tokens)
    text = data.decode("utf-8", errors="replace")
    return DetokenizeResult(run=request.run, checkpoint=request.checkpoint, text=text, whole=text.encode() == data)
