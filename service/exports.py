"""Exports of a run: which there are, and from a request for one to the job that makes it."""

from __future__ import annotations

from pydantic import Field
from starlette.concurrency import run_in_threadpool

from model_core.config import Config
from model_core.records.exports import export_at, exports_of
from model_core.records.files import Layout
from model_core.records.run import Run
from service import submission
from service.deps import Services
from service.orders import read_spec
from service.views.base import Listed
from service.views.run import ExportView
from worker.jobs.exchange import Submission
from worker.jobs.section import Licence


class ExportRequest(Config):
    """What is to be written as a folder of transformers."""

    checkpoint: str = Field(
        default="best", min_length=1, max_length=100, description="`best`, `final`, `latest`, `step=N` or a file name"
    )
    licence: Licence | None = Field(
        default=None,
        description="of the model, for its card, such as `mit`; null: not stated, or what is stated already",
    )


def page(layout: Layout, name: str) -> Listed[ExportView]:
    """Every export of a run, by name.

    Raises:
        RunNotFound: There is no such run.
    """
    data = [ExportView.of(name, info) for info in exports_of(layout, Run.open(layout.run(name)))]
    return Listed[ExportView].of(data, [view.name for view in data], has_more=False)


async def submit(services: Services, run: str, wanted: ExportRequest, *, key: str | None) -> Submission | ExportView:
    """Have a checkpoint exported; equal requests share one job.

    Args:
        services: Where to ask.
        run: The run's name.
        wanted: Which checkpoint, and what its card states.
        key: The client's Idempotency-Key.

    Returns:
        The job that makes the export; or the export, if it is there already.

    Raises:
        RunNotFound: There is no such run.
        CheckpointNotReady: It has no checkpoint; CheckpointNotFound: it has others.
    """
    job = {"kind": "export", "licence": wanted.licence}
    tree = {"job": job, "experiment_name": run, "testing": {"checkpoint_path": wanted.checkpoint}}
    order = await services.orders.ask(read_spec(tree, run=None, data_root=services.settings.data))
    submitted = await submission.ask(services, order, key=key, taken=order.taken, fingerprint=order.fingerprint)
    if isinstance(submitted, Submission):
        return submitted
    if submitted.why != "ready":
        raise await submission.refused(services, order, submitted)
    there = await run_in_threadpool(_there, services.layout, run, wanted)
    return there or await submission.submit(services, order, key=key)  # it has gone in this moment


def _there(layout: Layout, name: str, wanted: ExportRequest) -> ExportView | None:
    run = Run.open(layout.run(name))
    info = export_at(layout, run, run.resolve(wanted.checkpoint))
    return ExportView.of(name, info) if info is not None else None
