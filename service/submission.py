"""What stands between a request for a job and the queue: everything that can be known before it runs."""

from __future__ import annotations

from functools import partial

from anyio import to_thread

from model_core.budget import fitting_batch_size, per_process_config
from model_core.config_loader import ConfigWarning, Tree
from model_core.errors import ModelCoreError, RunExists
from model_core.storage.files import next_free_name
from service.admission import PreparedSubmission, read_spec
from service.deps import Services
from service.protocol.errors import DoesNotFit
from service.protocol.parsing import holds_more_than
from worker.jobs import commands
from worker.jobs.commands import Taken
from worker.jobs.errors import QueueUnavailable
from worker.jobs.kinds import KINDS
from worker.jobs.schemas import Capacity, Rejection, Submission

_AT_ONCE_VALUES = 150  # a full configuration has a hundred; each wrong key costs up to half a millisecond


async def prepare(services: Services, tree: Tree, *, run: str | None) -> PreparedSubmission:
    """Read a request, and look at the disk for it.

    Args:
        services: Where to look.
        tree: As the body has it.
        run: Renames the run.

    Raises:
        InvalidConfig: With every wrong value.
    """
    read = partial(read_spec, tree, run=run, data_root=services.settings.data)
    if holds_more_than(tree, _AT_ONCE_VALUES):
        spec = await to_thread.run_sync(read, limiter=services.checking)
    else:  # quicker than the way to a thread, which would take the interpreter from everybody else
        spec = read()
    return await services.admission.submit(spec)


async def submit(services: Services, prepared: PreparedSubmission, *, key: str | None) -> Submission:
    """Put a job into the queue; a request that came before gets its job, whatever has changed since.

    Args:
        services: Where to ask.
        prepared: What to do.
        key: The client's Idempotency-Key.

    Raises:
        ModelCoreError: Whatever stands against it.
    """
    # A dataset or an export that is there already is made again at once: its job sees that it is there.
    taken = prepared.taken if prepared.taken != "ready" else ""
    submitted = await enqueue(services, prepared, key=key, taken=taken, fingerprint=prepared.fingerprint)
    if isinstance(submitted, Submission):
        return submitted
    raise await rejection_error(services, prepared, submitted)


async def enqueue(
    services: Services, prepared: PreparedSubmission, *, key: str | None, taken: Taken, fingerprint: str
) -> Submission | Rejection:
    """Ask that a job is recorded, in one round trip.

    Args:
        services: Where to ask.
        prepared: What to do.
        key: The client's Idempotency-Key.
        taken: Whether the disk has what the job makes.
        fingerprint: Equal for equal requests.
    """
    question = commands.submission(
        prepared.spec,
        key=key,
        fingerprint=fingerprint,
        taken=taken,
        max_queued=services.settings.max_queued,
        is_lacking=bool(prepared.missing),
        memory_bytes=prepared.memory_bytes,
        preparation=prepared.preparation,
    )
    return await services.async_store.run(question)


async def rejection_error(services: Services, prepared: PreparedSubmission, refusal: Rejection) -> ModelCoreError:
    """Why a job was not recorded, and what would be possible."""
    if refusal.why == "lacking":
        return prepared.missing[0]
    if refusal.capacity is not None:
        return _unfit(prepared, refusal.capacity)
    return await services.ask(services.store.name_conflict, prepared.spec, refusal, prepared.differs)


async def warnings(services: Services, prepared: PreparedSubmission) -> list[ConfigWarning]:
    """What the author of a request should know, and what would stand against submitting it now."""
    obstacles: list[ModelCoreError] = [*prepared.missing]
    try:
        capacity = await services.async_store.run(commands.shortage(prepared.spec.gpus or 0, prepared.memory_bytes))
        obstacles += [_unfit(prepared, capacity)] if capacity is not None else []
    except QueueUnavailable as error:
        obstacles.append(error)
    found = [ConfigWarning(error.code, f"{error}; {error.hint}" if error.hint else str(error)) for error in obstacles]
    if prepared.spec.run is not None and KINDS[prepared.spec.kind].makes_run and prepared.taken:
        free = next_free_name(services.layout.run(prepared.spec.run))
        found.append(ConfigWarning(RunExists.code, str(RunExists(prepared.spec.run, free))))
    return [*prepared.spec.warnings, *found]


def _unfit(prepared: PreparedSubmission, capacity: Capacity) -> DoesNotFit:
    """Why no known worker could run it, and what would fit."""
    asked = prepared.spec.gpus or 0
    if asked > capacity.gpus:
        return _too_many_gpus(asked, capacity.gpus)
    return _too_large(prepared, capacity.memory_bytes or 0)


def _too_many_gpus(asked: int, most: int) -> DoesNotFit:
    error = DoesNotFit(f"the job asks for {_gpus(asked)}; the known worker with most has {most or 'none'}")
    error.hint = f"job.resources.gpus {most} would fit" + ("" if most else ", with device.device auto or cpu")
    return error


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"


def _too_large(prepared: PreparedSubmission, largest: float) -> DoesNotFit:
    needed, config = prepared.memory_bytes, per_process_config(prepared.spec.config, prepared.spec.processes)
    error = DoesNotFit(f"training needs about {_gib(needed)}; the largest known worker has {_gib(largest)}")
    smaller = fitting_batch_size(config, largest / prepared.processes_per_memory)
    if smaller is not None:
        error.hint = f"training.batch_size {smaller} would fit, at the same total_batch_size"
    else:
        error.hint = "no batch size would fit; make the model smaller"
    return error


def _gib(size_bytes: float) -> str:
    return f"{size_bytes / 2**30:,.1f} GiB"
