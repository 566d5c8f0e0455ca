"""Exports of a run: list them, and submit the job that makes one."""

from __future__ import annotations

from typing import Any, Literal, Self

from fastapi import APIRouter, Request, Response
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from model_core.config import Config, Name, TestingConfig
from model_core.hf.export_folder import ExportInfo, find_export, list_exports
from model_core.storage.checkpoints import CheckpointInfo
from model_core.storage.files import Layout
from model_core.storage.run import Run
from service import submission
from service.admission import read_spec
from service.deps import Services, ServicesDep
from service.job_views import JobView
from service.openapi import nullable, problems
from service.protocol.parsing import JSON, KEY_PARAMETER, YAML, QueryRoute, idempotency_key, read_tree, validate
from service.schemas import Listed, View, checkpoint_warnings, link, warning_headers
from worker.jobs.schemas import Submission
from worker.jobs.spec import Licence

router = APIRouter(prefix="/runs/{run}/exports", tags=["runs"], route_class=QueryRoute)


class ExportLinks(View):
    """Links of an export."""

    run: str
    safetensors: str | None = Field(description="its tensors; null once the run has another checkpoint of that name")


class ExportView(View):
    """A folder of transformers that a checkpoint was written to."""

    object: Literal["export"] = "export"
    name: str
    run: str
    checkpoint: str = Field(description="the file that it was made of")
    sha256: str | None = Field(description="of that file; null once the run has another of that name")
    size_bytes: int = Field(description="of all its files")
    created_at: str
    licence: str | None = Field(description="of the model, as its card states it")
    links: ExportLinks

    @classmethod
    def of(cls, run: str, info: ExportInfo) -> Self:
        """Build the view.

        Args:
            run: Name of the run.
            info: The export on disk.

        Returns:
            The view.
        """
        content = link(f"/runs/{run}/checkpoints/{info.file}/content?format=safetensors")
        return cls(
            name=info.name,
            run=run,
            checkpoint=info.file,
            sha256=info.sha256,
            size_bytes=info.size_bytes,
            created_at=info.created_at,
            licence=info.licence,
            links=ExportLinks(run=link(f"/runs/{run}"), safetensors=content if info.sha256 else None),
        )


class ExportRequest(Config):
    """What is to be written as a folder of transformers."""

    checkpoint: str = Field(
        default="best", min_length=1, max_length=100, description="`best`, `final`, `latest`, `step=N` or a file name"
    )
    licence: Licence | None = Field(
        default=None,
        description="of the model, for its card, such as `mit`; null: not stated, or what is stated already",
    )


_WANTED: dict[str, Any] = {"schema": nullable(ExportRequest.model_json_schema()), "example": {"checkpoint": "best"}}
_BODY: dict[str, Any] = {"required": False, "content": {JSON: _WANTED, YAML: _WANTED}}


@router.post(
    "",
    status_code=202,
    summary="Export a checkpoint for transformers",
    responses={200: {"model": JobView | ExportView}, **problems(400, 404, 409, 413, 415, 422, 429, 503)},
    openapi_extra={"requestBody": _BODY, "parameters": [KEY_PARAMETER]},
)
async def export(
    run: Name,
    request: Request,
    services: ServicesDep,
    response: Response,
) -> JobView | ExportView:
    """202 with the job that writes the folder; without a body it is the best checkpoint.

    200 with that job while it runs, and with the export once it exists: equal requests share one job.
    """
    wanted = validate(ExportRequest, await read_tree(request, ExportRequest) if await request.body() else {})
    found = await submit(services, run, wanted, key=idempotency_key(request))
    if not isinstance(found, Submission):
        response.status_code = 200
        response.headers["Location"] = link(f"/runs/{run}/exports")
        info = await run_in_threadpool(_resolve, services.layout, run, wanted)
        response.headers.update(warning_headers(checkpoint_warnings(_reference(wanted), info)))
        return found
    services.wakeups.notify()
    response.status_code = 202 if found.created else 200
    response.headers["Location"] = link(f"/jobs/{found.job.id}")
    return JobView.of(found.job)


@router.get("", summary="List a run's exports by name", responses=problems(404, 422))
async def exports(run: Name, services: ServicesDep) -> Listed[ExportView]:
    """All on one page."""
    return await run_in_threadpool(page, services.layout, run)


def page(layout: Layout, name: str) -> Listed[ExportView]:
    """List the exports of a run.

    Args:
        layout: Paths of the data root.
        name: Name of the run.

    Returns:
        All of them on one page, by name.

    Raises:
        RunNotFound: There is no such run.
    """
    data = [ExportView.of(name, info) for info in list_exports(layout, Run.open(layout.run(name)))]
    return Listed[ExportView].of(data, [view.name for view in data], has_more=False)


async def submit(services: Services, run: str, wanted: ExportRequest, *, key: str | None) -> Submission | ExportView:
    """Submit the job that exports a checkpoint; equal requests share one job.

    Args:
        services: Services of this process.
        run: Name of the run.
        wanted: The checkpoint, and the license for its model card.
        key: The client's Idempotency-Key.

    Returns:
        The job that makes the export; or the export, if it exists already.

    Raises:
        RunNotFound: There is no such run.
        CheckpointNotReady: The run has no checkpoint.
        CheckpointNotFound: The run has other checkpoints.
    """
    job = {"kind": "export", "licence": wanted.licence}
    tree = {"job": job, "experiment_name": run, "testing": {"checkpoint_path": wanted.checkpoint}}
    prepared = await services.admission.submit(read_spec(tree, run=None, data_root=services.settings.data))
    submitted = await submission.enqueue(
        services, prepared, key=key, taken=prepared.taken, fingerprint=prepared.fingerprint
    )
    if isinstance(submitted, Submission):
        return submitted
    if submitted.why != "ready":
        raise await submission.rejection_error(services, prepared, submitted)
    export = await run_in_threadpool(_existing, services.layout, run, wanted)
    return export or await submission.submit(services, prepared, key=key)  # it was deleted in this moment


def _existing(layout: Layout, name: str, wanted: ExportRequest) -> ExportView | None:
    found = find_export(layout, Run.open(layout.run(name)), _resolve(layout, name, wanted))
    return ExportView.of(name, found) if found is not None else None


def _resolve(layout: Layout, name: str, wanted: ExportRequest) -> CheckpointInfo:
    return Run.open(layout.run(name)).resolve(_reference(wanted))


def _reference(wanted: ExportRequest) -> str:
    return TestingConfig(checkpoint_path=wanted.checkpoint).checkpoint  # as the job reads it
