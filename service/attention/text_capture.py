"""Captures the attention of a text that a client sends, or of its token ids."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from anyio import to_thread
from fastapi import Request
from pydantic import BeforeValidator, Field, model_validator
from starlette.concurrency import run_in_threadpool

from model_core.attention.quota import check_size
from model_core.attention.record import AttentionRecord
from model_core.attention.selection import TokenRange, chosen_heads
from model_core.config import Config, Name, misfit
from model_core.errors import FieldProblem, InvalidParameters, PromptTooLong
from model_core.schemas import (
    MAX_PROMPT_CHARACTERS,
    AttentionRequest,
    AttentionTokens,
    CheckpointRef,
    TokenCount,
    text_id,
    tokens_id,
)
from model_core.storage.files import Layout
from model_core.storage.run import Run
from service.attention.lookup import read_attention
from service.attention.targets import AttentionTarget, resolve_target
from service.attention.views import AttentionView
from service.attention.weight_bodies import Selection, sparse_json
from service.deps import Services


def _listed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Indices = Annotated[
    tuple[Annotated[int, Field(strict=True, ge=0, le=65_536)], ...],
    Field(min_length=1, max_length=1000),
    BeforeValidator(_listed),
]


class TextCaptureRequest(Config):
    """A text to capture, and what the reply holds of it."""

    run: Name
    checkpoint: CheckpointRef = "best"
    text: str | None = Field(default=None, min_length=1, max_length=MAX_PROMPT_CHARACTERS)
    tokens: AttentionTokens | None = None
    max_tokens: TokenCount | None = None
    layers: Indices | None = None
    heads: Indices | None = None
    weights: Literal["sparse"] | None = None

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        if self.text is None and self.tokens is None:
            raise misfit("text", "a text or tokens are needed", None)
        if self.text is not None and self.tokens is not None:
            raise misfit("tokens", "a text or tokens, not both", None)
        return self

    @property
    def id(self) -> str:
        """Id of the text."""
        return text_id(self.text) if self.text is not None else tokens_id(self.tokens or ())

    def wanted(self) -> AttentionRequest:
        """Build the request for the record.

        Returns:
            The request, without the parts that the reply holds.
        """
        return AttentionRequest(
            run=self.run, id=self.id, text=self.text, tokens=self.tokens, max_tokens=self.max_tokens
        )


class CapturedTextView(AttentionView):
    """What was captured of a text."""

    weights: dict[str, Any] | None = Field(
        default=None, description="with `weights: sparse` the strongest keys of the chosen heads, as of links.weights"
    )


async def capture_text(
    services: Services, request: Request, asked: TextCaptureRequest
) -> tuple[CapturedTextView, bool, AttentionTarget]:
    """Find or capture a text.

    Args:
        services: Services of this process.
        request: The HTTP request; a client that leaves ends the wait.
        asked: The validated body.

    Returns:
        The view, whether it was captured just now, and the checkpoint.

    Raises:
        ModelCoreError: The run, the checkpoint, a layer or a head does not exist; the text is too long; no inference
            process can capture it.
    """
    target = await run_in_threadpool(resolve_target, services.layout, asked.run, asked.checkpoint)
    is_new = await run_in_threadpool(_check, services.layout, asked, target)

    async def view(record: AttentionRecord) -> CapturedTextView:
        return await to_thread.run_sync(_view, record, asked, target, limiter=services.drawing)

    return await read_attention(services, request, asked.wanted(), target, view), is_new, target


def _check(layout: Layout, asked: TextCaptureRequest, target: AttentionTarget) -> bool:
    """Refuse what is known to be wrong without a tokenizer; return whether the text is not captured yet."""
    model = Run.open(layout.run(asked.run)).config().model
    _choose(asked, model.heads)
    found = AttentionRecord.find(layout, asked.run, asked.id, target.sha256, max_tokens=asked.max_tokens)
    pointer = "/text" if asked.tokens is None else "/tokens"
    whole = len(asked.tokens or ()) if found is None else found.whole_tokens
    if asked.max_tokens is None and whole > model.block_size:
        raise PromptTooLong(whole, model.block_size, pointer=pointer)
    if found is None and asked.tokens is not None:
        count = min(len(asked.tokens), asked.max_tokens or whole, model.block_size)
        check_size(model.heads, count, max_tokens=asked.max_tokens)
    return found is None


def _choose(asked: TextCaptureRequest, heads: tuple[int, ...]) -> Mapping[int, tuple[int, ...]]:
    try:
        return chosen_heads(heads, asked.layers, asked.heads)
    except InvalidParameters as error:
        raise InvalidParameters(_moved(asked, problem) for problem in error.problems) from None


def _moved(asked: TextCaptureRequest, problem: FieldProblem) -> FieldProblem:
    """Point at the value in the body: /layer, of a query, is a place in `layers` here."""
    name = problem.pointer.lstrip("/") + "s"
    values: tuple[int, ...] = getattr(asked, name) or ()
    return problem.moved(problem.pointer, f"/{name}/{values.index(problem.value)}")


def _view(record: AttentionRecord, asked: TextCaptureRequest, target: AttentionTarget) -> CapturedTextView:
    chosen = _choose(asked, record.heads)
    layers = [layer for layer in record.manifest["layers"] if layer["layer"] in chosen]
    view = CapturedTextView.of({**record.manifest, "layers": layers}, target.warnings)
    if asked.weights is None:
        return view
    part = Selection(record, chosen, TokenRange(0, len(record.tokens)))
    sparse = json.loads(b"".join(sparse_json(part)))
    return view.model_copy(update={"weights": {"unit": sparse["unit"], "layers": sparse["layers"]}})
