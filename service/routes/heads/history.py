"""What the heads of a run do: the history of a training."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from model_core.attention.heads.history import History
from model_core.config import Name
from model_core.storage.run import Run
from service.attention.targets import resolve_target
from service.deps import ServicesDep
from service.head_history import HeadHistoryView, HistoryQuery, HistoryReply, history_response, respond
from service.head_results import CSV, PNG
from service.heads import probed_heads
from service.openapi import problems
from service.protocol.parsing import QueryRoute
from service.routes.heads.result_replies import PICTURE, media_type

router = APIRouter(prefix="/runs/{run}", tags=["heads"], route_class=QueryRoute)

_FORMS: dict[str, Any] = {
    CSV: {"schema": {"type": "string"}, "example": "step,layer,head,previous\r\n0,0,0,0.04\r\n"},
    PNG: PICTURE,
}


@router.get(
    "/heads",
    summary="Get how a run's heads changed",
    response_class=Response,
    responses={200: {"model": HeadHistoryView, "content": _FORMS}, **problems(404, 406, 409, 422, 503, 507)},
)
async def history(
    run: Name,
    wanted: Annotated[HistoryQuery, Query()],
    services: ServicesDep,
    request: Request,
) -> Response:
    """Metrics of every head on a fixed probe, at validations of the training: JSON, CSV, or a picture of one metric.

    Each step is from the latest attempt that reached it. With `checkpoint=` one checkpoint, probed now if the run has
    no event for it, as an imported one.
    """
    kind = media_type(wanted.format, request)
    opened = await run_in_threadpool(Run.open, services.layout.run(run))
    if wanted.checkpoint is None:
        answer = partial(history_response, services.history_cache, opened, wanted, kind)
        return await to_thread.run_sync(answer, limiter=services.drawing)
    target = await run_in_threadpool(resolve_target, services.layout, run, wanted.checkpoint)
    found = History((await probed_heads(services, request, run, target),))
    reply = HistoryReply(run, await run_in_threadpool(opened.config), found, wanted)
    return respond(run, await to_thread.run_sync(reply.render, kind, limiter=services.drawing), kind)
