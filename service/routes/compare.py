"""`GET /compare`: two to eight runs against the first, as JSON or as one picture."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal, Self

from anyio import to_thread
from fastapi import APIRouter, Header, Query, Request
from pydantic import BeforeValidator, Field, model_validator
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from model_core.config import Name, misfit
from model_core.schemas import CheckpointRef, Count, ExampleId
from service.comparison.compared_runs import MAX_RUNS, ComparedRun, resolve_runs
from service.comparison.comparison_views import ComparisonView, attention_picture, curves_picture, heads_picture
from service.comparison.matched_heads import compare_heads
from service.comparison.run_curves import Axis, CurvesView, read_curves
from service.comparison.shared_text import share_text
from service.deps import Services, ServicesDep
from service.openapi import problems
from service.protocol.negotiation import choose
from service.protocol.parsing import JSON, QueryModel, QueryRoute
from service.schemas import warning_headers

router = APIRouter(tags=["compare"], route_class=QueryRoute)

PNG = "image/png"
_MEDIA_TYPES = {"json": JSON, "png": PNG}
_PICTURE: dict[str, Any] = {PNG: {"schema": {"type": "string", "format": "binary"}}}


def _split(value: Any) -> Any:
    """Split a parameter at its commas; FastAPI reads a parameter of several values as a list of texts."""
    texts = [value] if isinstance(value, str) else value
    return tuple(",".join(texts).split(",")) if isinstance(texts, list) else value


class CompareQuery(QueryModel):
    """Which runs, and what of them."""

    runs: Annotated[tuple[Name, ...], BeforeValidator(_split)] = Field(
        description="comma-separated names; all are compared with the first",
        json_schema_extra={
            "explode": False, "example": ["quickstart", "rising"], "minItems": 2, "maxItems": MAX_RUNS,
        },
    )  # fmt: skip
    checkpoints: Annotated[tuple[CheckpointRef, ...] | None, BeforeValidator(_split)] = Field(
        default=None,
        description="comma-separated, one for each run: best, final, latest, step=N, a file name or sha256=HASH; "
        "default: best",
        json_schema_extra={"explode": False, "example": ["best", "final"], "minItems": 2, "maxItems": MAX_RUNS},
    )
    example: ExampleId | None = Field(
        default=None,
        description="number of a test example of the first run, or id of a text that was sent to one of them, whose "
        "attention is compared; default: none, and 0 for view=attention",
    )
    x: Axis = Field(default="step", description="axis of the curves; seconds are those of training steps")
    view: Literal["curves", "heads", "attention"] | None = Field(
        default=None, description="only this part; default: all parts as JSON, the curves as PNG"
    )
    format: Literal["json", "png"] | None = Field(default=None, description="else what Accept prefers")
    max_points: Count = Field(default=400, ge=2, le=10_000, description="most finite points of a curve")

    @model_validator(mode="after")
    def _counts_fit(self) -> Self:
        if not 2 <= len(self.runs) <= MAX_RUNS:
            raise misfit("runs", f"names 2 to {MAX_RUNS} runs, got {len(self.runs)}", ",".join(self.runs))
        if self.checkpoints is not None and len(self.checkpoints) != len(self.runs):
            detail = f"has {len(self.checkpoints)} entries for {len(self.runs)} runs; give one for each run, or none"
            raise misfit("checkpoints", detail, ",".join(self.checkpoints))
        return self


@router.get(
    "/compare",
    summary="Compare runs",
    response_class=Response,
    responses={200: {"model": ComparisonView, "content": _PICTURE}, **problems(404, 406, 409, 422, 503, 507)},
)
async def compare(
    wanted: Annotated[CompareQuery, Query()],
    services: ServicesDep,
    request: Request,
    accept: Annotated[str | None, Header()] = None,
) -> Response:
    """Differences, curves, which heads of the first run were found again in the others, and one text under all of them.

    What prevents a part is its `reason`; for a part that `view` names it is the reply.
    """
    kind = _MEDIA_TYPES[wanted.format] if wanted.format else choose(accept, (JSON, PNG))
    references = wanted.checkpoints or ("best",) * len(wanted.runs)
    runs = await run_in_threadpool(resolve_runs, services.layout, wanted.runs, references)
    return await answer(services, request, runs, wanted, kind)


async def answer(
    services: Services, request: Request, runs: list[ComparedRun], wanted: CompareQuery, kind: str
) -> Response:
    """Reply with a comparison.

    Args:
        services: Services of this process.
        request: The HTTP request.
        runs: The runs.
        wanted: The validated query.
        kind: Media type of the reply.

    Returns:
        The comparison as JSON, or one picture of it.

    Raises:
        ModelCoreError: The part that `view` names cannot be had.
    """
    view = wanted.view or ("curves" if kind == PNG else None)
    warnings = warning_headers([warning for compared in runs for warning in compared.warnings])
    headers = {"Cache-Control": "no-store", "Vary": "Accept", **warnings}
    is_text = view == "attention" or (view is None and wanted.example is not None)
    curves = await _curves(services, runs, wanted) if view in {None, "curves"} else None
    heads = await compare_heads(services, request, runs, required=view == "heads") if view in {None, "heads"} else None
    text = await share_text(services, request, runs, wanted.example or "0", required=bool(view)) if is_text else None
    if kind == JSON:
        body = await run_in_threadpool(lambda: ComparisonView.of(runs, curves, heads, text).model_dump(mode="json"))
        return JSONResponse(body, headers=headers)
    draw: Callable[[], bytes]
    if text is not None:
        draw = partial(attention_picture, runs, text)
    elif heads is not None:
        draw = partial(heads_picture, runs, heads)
    else:
        assert curves is not None  # one part is drawn
        draw = partial(curves_picture, runs, curves)
    return Response(await to_thread.run_sync(draw, limiter=services.drawing), media_type=PNG, headers=headers)


async def _curves(services: Services, runs: list[ComparedRun], wanted: CompareQuery) -> CurvesView:
    read = partial(read_curves, services.series_cache, runs, wanted.x, wanted.max_points)
    return await to_thread.run_sync(read, limiter=services.series_cache.threads)
