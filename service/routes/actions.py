"""What can be wished of a job: each wish may be repeated, and is refused where the job's status has no way to it.

202 when a wish changed the job, 200 when it was so already or on its way, 409 with the actions that are allowed now.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from pydantic import Field

from model_core.config import Config
from service.body import parameters_of, query
from service.deps import Door
from service.openapi import problems
from service.views.job import JobView
from worker.jobs.exchange import Wish

router = APIRouter(prefix="/jobs/{job_id}", tags=["jobs"])

_ANSWERS: dict[str, Any] = {
    "status_code": 202,
    "responses": {200: {"model": JobView}, **problems(404, 409, 422, 503)},
}


class RetryQuery(Config):
    """Where to go on."""

    from_: Literal["checkpoint", "scratch"] = Field(
        default="checkpoint", alias="from", description="the last full state, or scratch: a new run from step 0"
    )


@router.post("/cancel", summary="Cancel a job", **_ANSWERS)
async def cancel(job_id: str, services: Door, response: Response) -> JobView:
    """A queued job is cancelled at once, a running one when its process has saved and gone."""
    return _answer(await services.ask(services.store.want, job_id, "cancel"), response)


@router.post("/pause", summary="Pause a job", **_ANSWERS)
async def pause(job_id: str, services: Door, response: Response) -> JobView:
    """A running job saves its full state and leaves its worker; `resume` goes on from there."""
    return _answer(await services.ask(services.store.want, job_id, "pause"), response)


@router.post("/resume", summary="Go on with a job that was paused or cancelled", **_ANSWERS)
async def resume(job_id: str, services: Door, response: Response) -> JobView:
    """It is queued again, and goes on from its last full state."""
    wish = await services.ask(services.store.want, job_id, "resume")
    services.ringer.ring()
    return _answer(wish, response)


@router.post(
    "/retry",
    summary="Run a failed job again",
    **_ANSWERS,
    openapi_extra={"parameters": parameters_of(RetryQuery)},
)
async def retry(
    job_id: str,
    wanted: Annotated[RetryQuery, query(RetryQuery)],
    services: Door,
    response: Response,
) -> JobView:
    """With a new crash budget: from its last full state, or from scratch in a run of a new name."""
    wish = await services.ask(services.store.retry, job_id, scratch=wanted.from_ == "scratch")
    services.ringer.ring()
    return _answer(wish, response)


def _answer(wish: Wish, response: Response) -> JobView:
    response.status_code = 202 if wish.is_new else 200
    return JobView.of(wish.job)
