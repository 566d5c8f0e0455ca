"""Submission of a job: parse the request, check it against the disk and the workers, put the job into the queue.

Every error that can be found before the job runs is raised here, with values that would be accepted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial

from anyio import to_thread

from model_core.budget import fitting_batch_size, per_process_config
from model_core.config_loader import ConfigWarning, Tree
from model_core.errors import DatasetNotReady, InvalidConfig, ModelCoreError, RunExists
from model_core.storage.files import next_free_name
from service.admission import PreparedSubmission, join_preparation, manifest_of_ready, read_spec
from service.dataset_options import complete, dataset_named_by, options_of_manifest, options_of_spec, requested_of
from service.deps import Services
from service.job_views import Validation
from service.protocol.errors import DoesNotFit
from service.protocol.parsing import holds_more_than
from worker.jobs import commands
from worker.jobs.commands import Taken
from worker.jobs.errors import QueueUnavailable
from worker.jobs.kinds import KINDS
from worker.jobs.schemas import Capacity, Rejection, Submission
from worker.jobs.spec import JobSpec

_VOCABULARY = "/model/vocab_size"  # compared with data.tokenizer, which a request may leave to its dataset
_INLINE_VALUES = 150  # a full configuration has 100; each invalid key costs up to 0.5 ms


async def prepare(services: Services, tree: Tree, *, run: str | None) -> PreparedSubmission:
    """Parse a request and check it against the disk.

    Args:
        services: Services of the process.
        tree: Tree of the body.
        run: New name of the run; None keeps that of the tree.

    Returns:
        The parsed request, and the state of the disk that concerns it.

    Raises:
        InvalidConfig: The tree is invalid; the error contains every problem.
    """
    try:
        prepared = await _check(services, tree, run=run)
    except InvalidConfig as error:
        if any(problem.pointer != _VOCABULARY for problem in error.problems):
            raise
        completed = await _completed(services, tree, run=run, requested=None)
        if completed is None:
            raise
        return completed
    if not prepared.lacks_dataset:
        return prepared
    return await _completed(services, tree, run=run, requested=prepared.spec) or prepared


async def submit(services: Services, prepared: PreparedSubmission, *, key: str | None) -> Submission:
    """Put a job into the queue. A repeated request returns the same job, even if the disk has changed.

    Args:
        services: Services of the process.
        prepared: The request.
        key: Idempotency-Key of the client.

    Returns:
        The job, and whether this call created it.

    Raises:
        ModelCoreError: The job cannot be queued.
    """
    # A job is queued even if its dataset or export exists: it succeeds at once.
    taken = prepared.taken if prepared.taken != "ready" else ""
    submitted = await enqueue(services, prepared, key=key, taken=taken, fingerprint=prepared.fingerprint)
    if isinstance(submitted, Submission):
        return submitted
    raise await rejection_error(services, prepared, submitted)


async def enqueue(
    services: Services, prepared: PreparedSubmission, *, key: str | None, taken: Taken, fingerprint: str
) -> Submission | Rejection:
    """Record a job in the queue, in one round trip.

    Args:
        services: Services of the process.
        prepared: The request.
        key: Idempotency-Key of the client.
        taken: Whether the result of the job already exists.
        fingerprint: Hash that is equal for equal requests.

    Returns:
        The job, or the reason for its rejection.
    """
    call = commands.submission(
        prepared.spec,
        key=key,
        fingerprint=fingerprint,
        taken=taken,
        max_queued=services.settings.max_queued,
        is_lacking=prepared.missing is not None,
        memory_bytes=prepared.memory_bytes,
        preparation=prepared.preparation,
        tokens=prepared.training_tokens,
    )
    return await services.async_store.run(call)


async def rejection_error(services: Services, prepared: PreparedSubmission, rejection: Rejection) -> ModelCoreError:
    """Build the error about a rejected job, with values that would be accepted.

    Args:
        services: Services of the process.
        prepared: The request.
        rejection: Reason for the rejection.

    Returns:
        The error.
    """
    if prepared.missing is not None and rejection.why == "lacking":
        return await _explained(services, prepared.missing, prepared.spec.dataset)
    if rejection.capacity is not None:
        return _does_not_fit(prepared, rejection.capacity)
    return await services.ask(services.store.name_conflict, prepared.spec, rejection, prepared.differs)


async def validate(services: Services, prepared: PreparedSubmission) -> Validation:
    """Describe what a submission would be, with the errors that it would raise now as warnings.

    Args:
        services: Services of the process.
        prepared: The request.

    Returns:
        The view. It has no place in the queue if the job would wait for its dataset, or would be refused.
    """
    obstacles, preview = list[ModelCoreError](), None
    try:
        if prepared.missing is not None:
            obstacles.append(await _explained(services, prepared.missing, prepared.spec.dataset))
        call = commands.preview(prepared.spec, memory_bytes=prepared.memory_bytes, tokens=prepared.training_tokens)
        preview = await services.async_store.run(call)
        obstacles += [_does_not_fit(prepared, preview.capacity)] if preview.capacity is not None else []
    except QueueUnavailable as error:
        obstacles.append(error)
    return Validation.of(
        prepared.spec,
        prepared.budget,
        [*prepared.spec.warnings, *map(_as_warning, obstacles), *_name_warnings(services, prepared)],
        estimate=preview.estimate if preview is not None else None,
        queue=preview.queue if preview is not None and not obstacles and prepared.preparation is None else None,
    )


def _as_warning(error: ModelCoreError) -> ConfigWarning:
    return ConfigWarning(error.code, f"{error}; {error.hint}" if error.hint else str(error))


def _name_warnings(services: Services, prepared: PreparedSubmission) -> Iterator[ConfigWarning]:
    if prepared.spec.run is not None and KINDS[prepared.spec.kind].makes_run and prepared.taken:
        free = next_free_name(services.layout.run(prepared.spec.run))
        yield ConfigWarning(RunExists.code, str(RunExists(prepared.spec.run, free)))


async def _check(services: Services, tree: Tree, *, run: str | None) -> PreparedSubmission:
    read = partial(read_spec, tree, run=run, data_root=services.settings.data)
    if holds_more_than(tree, _INLINE_VALUES):
        spec = await to_thread.run_sync(read, limiter=services.checking)
    else:  # faster than a thread, which would compete with the event loop for the interpreter
        spec = read()
    return await services.admission.submit(spec)


async def _completed(
    services: Services, tree: Tree, *, run: str | None, requested: JobSpec | None
) -> PreparedSubmission | None:
    """Check a training again, with the options of the dataset that it names where it leaves them out.

    Args:
        services: Services of the process.
        tree: Tree of the body.
        run: New name of the run.
        requested: The request without these options; None if it is not valid without them.

    Returns:
        The request; None if it is no training, names no dataset, or nobody knows that dataset.
    """
    name = dataset_named_by(tree)
    if name is None:
        return None
    made = None
    with suppress(QueueUnavailable):  # a check without submission needs no queue
        made = await services.async_store.run(commands.preparation_of(name))  # before the disk, where its end is seen
    manifest = await to_thread.run_sync(manifest_of_ready, services.layout, name, limiter=services.checking)
    if manifest is None and made is None:
        return None
    options = options_of_spec(made) if manifest is None and made is not None else options_of_manifest(manifest or {})
    prepared = await _check(services, complete(tree, options), run=run)
    if not KINDS[prepared.spec.kind].writes_in_run:
        return None
    prepared = replace(prepared, requested=requested)
    if manifest is not None or made is None:
        return prepared
    return join_preparation(prepared, requested_of(made, tree, prepared.spec.config.data))


async def _explained(services: Services, missing: ModelCoreError, dataset: str | None) -> ModelCoreError:
    """The error about a missing dataset, with the job that was to prepare it, if there is one."""
    if not isinstance(missing, DatasetNotReady) or dataset is None:
        return missing
    maker = None
    with suppress(QueueUnavailable):
        [maker] = await services.async_store.run(commands.dataset_jobs([dataset]))
    if maker is None or maker.status == "succeeded":  # the dataset was removed since
        return missing
    action = {"failed": "retry", "cancelled": "resume"}.get(maker.status)
    if action is None:
        advice = f"submit this when it has succeeded, or with job.depends_on [{maker.id}]"
        error = DatasetNotReady(
            f"dataset {dataset!r} is being prepared by {maker.id}, which is {maker.status}; {advice}"
        )
    else:
        why = f": {maker.error.detail}" if maker.error is not None else ""
        error = DatasetNotReady(f"dataset {dataset!r} is not ready: its preparation {maker.id} is {maker.status}{why}")
        error.request = {"method": "POST", "path": f"/jobs/{maker.id}/{action}", "body": None}
        error.hint = f"{action} that job, or prepare the dataset anew with POST /datasets"
    error.job_id = maker.id
    return error


def _does_not_fit(prepared: PreparedSubmission, capacity: Capacity) -> DoesNotFit:
    """Error about a job that no known worker can run, with values that would fit."""
    requested = prepared.spec.gpus or 0
    if requested > capacity.gpus:
        return _too_many_gpus(requested, capacity.gpus)
    return _too_large(prepared, capacity.memory_bytes or 0)


def _too_many_gpus(requested: int, available: int) -> DoesNotFit:
    error = DoesNotFit(f"the job needs {_format_gpus(requested)}; the largest known worker has {available or 'none'}")
    error.hint = f"job.resources.gpus {available} would fit" + ("" if available else ", with device.device auto or cpu")
    return error


def _format_gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"


def _too_large(prepared: PreparedSubmission, largest: float) -> DoesNotFit:
    needed, config = prepared.memory_bytes, per_process_config(prepared.spec.config, prepared.spec.processes)
    error = DoesNotFit(
        f"training needs about {_format_gib(needed)}; the largest known worker has {_format_gib(largest)}"
    )
    smaller = fitting_batch_size(config, largest / prepared.processes_per_memory)
    if smaller is not None:
        error.hint = f"training.batch_size {smaller} would fit, at the same total_batch_size"
    else:
        error.hint = "no batch size would fit; make the model smaller"
    return error


def _format_gib(size_bytes: float) -> str:
    return f"{size_bytes / 2**30:,.1f} GiB"
