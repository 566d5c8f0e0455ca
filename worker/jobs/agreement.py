"""What the parts of a request must agree about: kind, source, GPUs and processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from model_core.catalogue import FORMS
from model_core.config import ExperimentConfig
from model_core.errors import FieldProblem
from model_core.records.files import portable
from model_core.rules import whole_steps
from worker.jobs.kinds import WITHOUT_STEPS
from worker.jobs.section import JobSection, Kind


def derived_kind(config: ExperimentConfig) -> Kind:
    """What a job without a kind does."""
    return "train" if config.execution.train else "test"


def disagreements(job: JobSection, config: ExperimentConfig, data_root: Path | None) -> Iterator[FieldProblem]:
    """What contradicts what in a request whose parts are right.

    Args:
        job: Its section.
        config: Its experiment.
        data_root: Below its ``uploads`` a ``file:`` source may lie; without it there is no such place.
    """
    yield from _source_stays_inside(config, data_root)
    yield from _kind_fits(job, config)
    yield from _processes_fit(job, config)


def _source_stays_inside(config: ExperimentConfig, data_root: Path | None) -> Iterator[FieldProblem]:
    source = config.data.source
    if source is None:
        return
    if "\0" in source or not _is_unicode(source):
        yield FieldProblem("/data/source", f"{source!r} holds a character that no name can have", source)
        return
    if not source.startswith("file:"):
        return
    uploads = (data_root / "uploads").resolve() if data_root is not None else None
    path = portable(source.removeprefix("file:"))
    if uploads is None or not ((data_root or Path()) / path).resolve().is_relative_to(uploads):
        detail = f"{source!r} is not below the data root's uploads; put the file there and write file:uploads/NAME"
        yield FieldProblem("/data/source", detail, source, ("file:uploads/NAME",))


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)  # JSON can spell half a surrogate pair


def _kind_fits(job: JobSection, config: ExperimentConfig) -> Iterator[FieldProblem]:
    if job.licence is not None and job.kind != "export":
        yield FieldProblem("/job/licence", "only an export writes a model card; leave it out", job.licence)
    if job.kind in WITHOUT_STEPS:
        yield from _needs_no_gpu(job)
        yield from _something_to_prepare(job, config)
        return
    derived = derived_kind(config)
    if job.kind not in {None, derived}:
        detail = f"{job.kind!r} contradicts execution.train {config.execution.train}, which makes it {derived!r}"
        yield FieldProblem("/job/kind", detail, job.kind, (derived,))


def _something_to_prepare(job: JobSection, config: ExperimentConfig) -> Iterator[FieldProblem]:
    if job.kind == "prepare" and config.data.source is None:
        detail = "a preparation needs a source: where its documents come from"
        yield FieldProblem("/data/source", detail, None, FORMS)


def _needs_no_gpu(job: JobSection) -> Iterator[FieldProblem]:
    if job.resources.gpus:
        what = {"prepare": "a preparation", "export": "an export"}[job.kind or ""]
        detail = f"gpus {job.resources.gpus}: {what} uses none; leave it out"
        yield FieldProblem("/job/resources/gpus", detail, job.resources.gpus, (0,))


def _processes_fit(job: JobSection, config: ExperimentConfig) -> Iterator[FieldProblem]:
    gpus, processes = job.resources.gpus or 0, job.resources.processes
    trains = config.execution.train and job.kind != "prepare"
    if processes > 1 and not trains:
        yield FieldProblem("/job/resources/processes", "a job that trains nothing runs in one process", processes, (1,))
    elif processes > 1 and gpus not in {0, processes}:
        detail = f"{processes} is not resources.gpus {gpus}: each process drives one GPU; 0 GPUs leave all on the CPU"
        yield FieldProblem("/job/resources/processes", detail, processes, (gpus,))
    elif trains and max(processes, gpus) > 1:
        yield from whole_steps(config.training, max(processes, gpus))
