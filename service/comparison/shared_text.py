"""One text under several checkpoints: captured for each if need be, and shown on one scale."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastapi import Request
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from starlette.concurrency import run_in_threadpool

from model_core.attention.pictures.layout import PictureStyle
from model_core.attention.pictures.record_pictures import PictureContent, record_picture
from model_core.attention.record import AttentionRecord, default_max_tokens, is_example, text_directory
from model_core.attention.texts import load_text, load_tokens
from model_core.attention.weights import largest_weight
from model_core.errors import AttentionTooLarge, ModelCoreError, TextNotFound
from model_core.schemas import AttentionRequest, text_id
from model_core.storage.dataset import EXAMPLES
from model_core.storage.files import Layout
from service.admission import not_ready
from service.attention.lookup import read_attention
from service.attention.targets import AttentionTarget
from service.attention.views import AttentionLinks, AttentionView
from service.comparison.compared_runs import TOKENIZERS_DIFFER, ComparedRun
from service.deps import Services
from service.schemas import View

_DPI = 100
_GAP_PX = 12
_MAX_PIXELS = 2**26  # of three bytes


class SharedTextView(View):
    """A text under the compared checkpoints; links are null for a run with another tokenizer."""

    example: str
    tokens: int | None = None
    pieces: list[str] | None = None
    scale: tuple[float, float] | None = None
    links: list[AttentionLinks | None] | None = None
    reason: str | None = None


@dataclass(frozen=True)
class SharedText:
    """A text under the compared checkpoints.

    Attributes:
        view: What the reply says of it.
        records: Its record of each run; None for a run with another tokenizer.
    """

    view: SharedTextView
    records: Sequence[AttentionRecord | None] = ()


async def share_text(
    services: Services, request: Request, runs: Sequence[ComparedRun], example: str, *, required: bool
) -> SharedText:
    """Find or capture a text for every run.

    Args:
        services: Services of this process.
        request: The HTTP request; a client that leaves ends the wait.
        runs: The runs.
        example: Number of a test example of the first run, or id of a text that was sent to one of them.
        required: Raise what prevents it; otherwise the view has its code as its reason.

    Returns:
        The text.

    Raises:
        ModelCoreError: It is required, and the text is unknown or cannot be captured.
    """
    try:
        wanted = await run_in_threadpool(_requests, services.layout, runs, example)
        records = [
            None if asked is None else await _record(services, request, compared, asked)
            for compared, asked in zip(runs, wanted, strict=True)
        ]
        view = await run_in_threadpool(_view, example, records)
    except ModelCoreError as error:
        if required:
            raise
        return SharedText(SharedTextView(example=example, reason=error.code))
    return SharedText(view, records)


def text_picture(shared: SharedText, facts: Mapping[str, str]) -> bytes:
    """Draw every head of every checkpoint, side by side on one scale.

    Args:
        shared: The text.
        facts: Texts of the file's metadata.

    Returns:
        A PNG.

    Raises:
        AttentionTooLarge: It would have too many pixels.
    """
    assert shared.view.scale is not None
    style = PictureStyle(dpi=_DPI, scale_max=shared.view.scale[1])
    content = PictureContent(max_tokens=shared.view.tokens)
    drawn = [Image.open(io.BytesIO(record_picture(record, content, style))) for record in shared.records if record]
    pixels = sum(image.width * image.height for image in drawn)
    if pixels > _MAX_PIXELS:
        raise AttentionTooLarge(f"the pictures have {pixels:,} pixels; at most {_MAX_PIXELS:,} fit: compare fewer runs")
    width = sum(image.width for image in drawn) + _GAP_PX * (len(drawn) - 1)
    sheet = Image.new("RGB", (width, max(image.height for image in drawn)), "white")
    left = 0
    for image in drawn:
        sheet.paste(image.convert("RGB"), (left, 0))
        left += image.width + _GAP_PX
    buffer, info = io.BytesIO(), PngInfo()
    for name, fact in {**facts, "id": shared.view.example, "scale": f"0 to {style.scale_max:g}"}.items():
        info.add_text(name, fact)
    sheet.save(buffer, "PNG", compress_level=1, dpi=(_DPI, _DPI), pnginfo=info)
    return buffer.getvalue()


def _requests(layout: Layout, runs: Sequence[ComparedRun], example: str) -> list[AttentionRequest | None]:
    """What to capture for each run; None for another tokenizer."""
    comparable = [compared for compared in runs if compared.tokenizer == runs[0].tokenizer]
    most = min(compared.config.model.block_size for compared in comparable)
    if is_example(example):
        most = min(most, default_max_tokens(runs[0].config.testing))
    return [
        _request(layout, runs, compared, example).model_copy(update={"max_tokens": most})
        if compared.tokenizer == runs[0].tokenizer
        else None
        for compared in runs
    ]


def _request(layout: Layout, runs: Sequence[ComparedRun], compared: ComparedRun, example: str) -> AttentionRequest:
    first = runs[0]
    if not is_example(example):
        for known in runs:
            directory = text_directory(layout, known.name, example)
            text, tokens = load_text(directory), load_tokens(directory)
            if text is not None or tokens is not None:
                sent = None if tokens is None else tuple(tokens)
                return AttentionRequest(run=compared.name, id=example, text=text, tokens=sent)
        raise TextNotFound(first.name, example)
    if compared.dataset == first.dataset:
        return AttentionRequest(run=compared.name, id=example)
    if not (first.dataset.directory / EXAMPLES).is_file():
        raise not_ready(first.dataset, first.config)
    text = first.dataset.example(int(example)).text  # another dataset has another example of that number
    return AttentionRequest(run=compared.name, id=text_id(text), text=text)


async def _record(
    services: Services, request: Request, compared: ComparedRun, wanted: AttentionRequest
) -> AttentionRecord:
    async def keep(record: AttentionRecord) -> AttentionRecord:
        return record

    target = AttentionTarget(compared.checkpoint.sha256, compared.checkpoint.file, is_fixed=True)
    return await read_attention(services, request, wanted, target, keep)


def _view(example: str, records: Sequence[AttentionRecord | None]) -> SharedTextView:
    known = [record for record in records if record is not None]
    tokens = min(len(record.tokens) for record in known)
    largest = max(
        largest_weight(record.layer(layer, first=tokens)) for record in known for layer in range(record.n_layer)
    )
    cut = [None if one is None else {**one.manifest, "tokens": one.tokens[:tokens]} for one in records]
    return SharedTextView(
        example=example,
        tokens=tokens,
        pieces=known[0].tokens[:tokens],
        scale=(0.0, round(largest, 4) or 1.0),
        links=[None if manifest is None else AttentionView.of(manifest).links for manifest in cut],
        reason=TOKENIZERS_DIFFER if len(known) < len(records) else None,
    )
