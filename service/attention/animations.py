"""Animations of attention: which steps have a frame, and where each comes from."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from functools import partial

from anyio import to_thread
from fastapi import Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from model_core.attention.heads.frames import Frame, frame_steps, frame_time, load_frame
from model_core.attention.pictures.animation import AnimationPlot, StepFrame, animate
from model_core.attention.pictures.layout import PictureStyle
from model_core.attention.record import AttentionRecord, default_max_tokens
from model_core.config import TestingConfig
from model_core.errors import AttentionTooLarge, FieldProblem, TooFewCheckpoints
from model_core.schemas import AttentionRequest, Count, TokenCount
from model_core.storage.checkpoints import CheckpointInfo
from model_core.storage.files import Layout
from model_core.storage.run import Run
from service.attention.lookup import find_or_capture
from service.attention.style_query import CONFIGURED, Index, StyleQuery
from service.attention.targets import AttentionTarget, read_testing
from service.deps import Services
from service.protocol.errors import InferenceUnavailable
from service.protocol.negotiation import etag_matches
from service.protocol.parsing import validate

PROBE = "probe"  # id of the frames that a training keeps
MAX_DPI, MAX_CAPTURES = 150, 20
_EDITION = 1  # increase it when the same frames are drawn differently
_MAX_DELETED = 3  # times that a record may go while it is drawn


class AnimationQuery(StyleQuery):
    """Which heads and steps, and how they are drawn."""

    layer: Index | None = Field(default=None, description="one layer; default: all layers")
    head: Index | None = Field(default=None, description="one head of that layer")
    dpi: Count | None = Field(default=None, ge=10, le=MAX_DPI, description=f"{CONFIGURED}, at most {MAX_DPI}")
    frame_ms: Count = Field(default=500, ge=20, le=60_000, description="how long a frame is shown")
    checkpoints: str | None = Field(
        default=None,
        min_length=1,
        max_length=2000,
        description="which, separated by commas: best, final, step=N or file names; default: one of each step",
    )
    max_tokens: TokenCount | None = Field(
        default=None, description="default: the run's configuration for an example, all tokens of a text"
    )


async def animation_reply(
    services: Services, request: Request, run: str, example: str, wanted: AnimationQuery, media_type: str
) -> Response:
    """Draw an animation, from the frames of the probe or from checkpoints.

    Args:
        services: Services of this process.
        request: The HTTP request: its headers and its connection.
        run: Name of the run.
        example: `PROBE`, the number of a test example, or the id of a text.
        wanted: The validated query.
        media_type: Media type of the reply.

    Returns:
        The animation, or 304 if the client has it already.

    Raises:
        TooFewCheckpoints: There are fewer than two steps.
        AttentionTooLarge: Too many checkpoints have to be captured, or too many pixels drawn.
        ModelCoreError: As `find_or_capture`, or of the picture.
    """
    testing = await run_in_threadpool(read_testing, services.layout, run)
    style = _style(wanted, testing)
    if example == PROBE:
        source: Sequence[object] = await run_in_threadpool(_probe_steps, services.layout, run)
        tokens = None
    else:
        source = await run_in_threadpool(_checkpoints, services.layout, run, wanted.checkpoints)
        tokens = wanted.max_tokens or default_max_tokens(testing)
    if len(source) < 2:
        raise TooFewCheckpoints(run, len(source), "frames" if example == PROBE else "checkpoints")
    key = repr((_EDITION, run, example, media_type, style, tokens, wanted, source))
    headers = {
        "ETag": f'"{hashlib.sha256(key.encode()).hexdigest()[:32]}"',
        "Vary": "Accept",
        "Cache-Control": "private, no-cache",
    }
    if etag_matches(request.headers.get("if-none-match"), headers["ETag"]):
        return Response(status_code=304, headers=headers)
    container = "gif" if media_type == "image/gif" else "png"
    for _ in range(_MAX_DELETED):
        if example == PROBE:
            plot = await run_in_threadpool(_probe_plot, services.layout, run, wanted)
        else:
            checkpoints = [info for info in source if isinstance(info, CheckpointInfo)]
            records = await _records(services, request, run, example, wanted, checkpoints)
            plot = _plot(records, [info.step for info in checkpoints], wanted)
        draw = partial(animate, plot, style, container, frame_ms=wanted.frame_ms)
        with contextlib.suppress(FileNotFoundError):  # deleted since it was found
            data = await to_thread.run_sync(draw, limiter=services.drawing)
            return Response(data, media_type=media_type, headers=headers)
    raise InferenceUnavailable("the attention was deleted each time that it was drawn")


def _style(wanted: AnimationQuery, testing: TestingConfig) -> PictureStyle:
    style = wanted.style(testing, "png")
    return style.with_dpi(min(style.dpi, MAX_DPI))


def _checkpoints(layout: Layout, name: str, references: str | None) -> list[CheckpointInfo]:
    """One checkpoint a step, the smallest file of it, in the order of the steps."""
    run = Run.open(layout.run(name))
    if references is None:
        found = run.checkpoints()
    else:
        found = [run.resolve(reference.strip()) for reference in references.split(",")]
    smallest = {info.step: info for info in sorted(found, key=lambda info: (-info.size_bytes, info.file))}
    return [smallest[step] for step in sorted(smallest)]


async def _records(
    services: Services,
    request: Request,
    run: str,
    example: str,
    wanted: AnimationQuery,
    checkpoints: Sequence[CheckpointInfo],
) -> list[AttentionRecord]:
    text = validate(AttentionRequest, {"run": run, "id": example, "max_tokens": wanted.max_tokens})

    def missing() -> int:
        shas = [info.sha256 for info in checkpoints]
        found = (AttentionRecord.find(services.layout, run, example, sha, max_tokens=wanted.max_tokens) for sha in shas)
        return sum(record is None for record in found)

    if (count := await run_in_threadpool(missing)) > MAX_CAPTURES:
        detail = f"{count} checkpoints would be captured, and {MAX_CAPTURES} is the most for one animation"
        near = ",".join(f"step={info.step}" for info in _spread(checkpoints, MAX_CAPTURES))
        raise AttentionTooLarge(detail, [FieldProblem("/checkpoints", detail, wanted.checkpoints, (near,))])
    targets = [AttentionTarget(info.sha256, info.file, is_fixed=True) for info in checkpoints]
    return [await find_or_capture(services, request, text, target) for target in targets]


def _spread(checkpoints: Sequence[CheckpointInfo], count: int) -> list[CheckpointInfo]:
    last = len(checkpoints) - 1
    return [checkpoints[round(place * last / (count - 1))] for place in range(count)]


def _plot(records: Sequence[AttentionRecord], steps: Sequence[int], wanted: AnimationQuery) -> AnimationPlot:
    frames = [StepFrame(step, record.heads, record.layer) for step, record in zip(steps, records, strict=True)]
    manifest = records[-1].manifest
    tokens = records[-1].tokens
    facts = {
        "run": manifest["run"],
        "id": manifest["id"],
        "steps": ",".join(str(frame.step) for frame in frames),
        "sha256": ",".join(record.manifest["sha256"] for record in records),
        "tokens": f"0:{len(tokens)}",
    }
    source = f"text {manifest['id']}" if manifest["id"].startswith("t_") else f"example {manifest['id']}"
    notes = (manifest["run"], source, f"{len(frames)} steps")
    return AnimationPlot(frames, tokens, wanted.layer, wanted.head, notes, facts)


def _probe_steps(layout: Layout, run: str) -> list[tuple[int, int]]:
    """Steps that have a frame, each with the time of the attempt that wrote it."""
    directory = Run.open(layout.run(run)).path
    return [(step, frame_time(directory, step)) for step in frame_steps(directory)]


def _probe_plot(layout: Layout, run: str, wanted: AnimationQuery) -> AnimationPlot:
    directory = Run.open(layout.run(run)).path
    found = [frame for step in frame_steps(directory) if (frame := load_frame(directory, step))]
    latest = found[-1:]
    same = [frame for frame in found if _shape(frame) == _shape(latest[0])]  # of one probe and one model
    if len(same) < 2:
        raise TooFewCheckpoints(run, len(same), "frames")
    heads, tokens = tuple(map(len, same[0].layers)), same[0].tokens
    frames = [StepFrame(frame.step, heads, frame.layers.__getitem__) for frame in same]
    facts = {
        "run": run,
        "id": PROBE,
        "steps": ",".join(str(frame.step) for frame in same),
        "tokens": f"0:{len(tokens)}",
    }
    return AnimationPlot(frames, tokens, wanted.layer, wanted.head, (run, "probe", f"{len(same)} steps"), facts)


def _shape(frame: Frame) -> tuple[object, ...]:
    return frame.tokens, tuple(map(len, frame.layers))
