"""What stands between a request for a job and the queue: everything that can be known before it runs."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from model_core.budget import Budget, budget_of, fitting_batch_size
from model_core.config import NAME_PATTERN, ExperimentConfig, ModelConfig
from model_core.errors import (
    CheckpointMismatch,
    DatasetNotReady,
    FieldProblem,
    InvalidConfig,
    ModelCoreError,
    RunExists,
)
from model_core.loading import Advice, Tree
from model_core.preflight import disk_shortage
from model_core.records.dataset import dataset_of
from model_core.records.files import Layout, next_free_name
from model_core.records.run import Run
from model_core.report import train_tokens_of
from service.deps import Services
from service.errors import DoesNotFit
from worker.jobs import questions
from worker.jobs.errors import QueueUnavailable
from worker.jobs.job import Submission
from worker.jobs.spec import JobSpec, parse_spec

_REFERENCE = re.compile(rf"{NAME_PATTERN[:-1]}(/[A-Za-z0-9_=.-]{{1,100}})?$")


@dataclass(frozen=True)
class Order:
    """A request that is right in itself, and what it would cost.

    Attributes:
        spec: What is asked for.
        budget: What it costs.
        is_taken: Whether a directory has the run's name.
        missing: What the job needs and the disk does not have.
    """

    spec: JobSpec
    budget: Budget
    is_taken: bool
    missing: tuple[ModelCoreError, ...]

    @property
    def fingerprint(self) -> str:
        """Equal for requests that ask for the same, however they are written."""
        config, job = self.spec.config.model_dump(mode="json"), self.spec.job.model_dump(mode="json")
        text = json.dumps([self.spec.kind, self.spec.run, config, job], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def take(tree: Tree, layout: Layout, *, run: str | None) -> Order:
    """Read a request.

    Args:
        tree: As the body has it.
        layout: Where things lie.
        run: Renames the run.

    Raises:
        InvalidConfig: With every wrong value.
    """
    spec = parse_spec(tree, run=run, data_root=layout.exp.parent)
    refused = tuple(_reference_is_a_name(spec.config))
    if refused:
        raise InvalidConfig(refused)
    budget = budget_of(spec.config, train_tokens=train_tokens_of(dataset_of(spec.config, layout)))
    if spec.kind == "train":
        spec = replace(spec, warnings=(*spec.warnings, *disk_shortage(budget.disk, layout.run(spec.run))))
    # What is missing now may be what it waits for.
    missing = () if spec.job.depends_on else tuple(_missing(spec, layout))
    return Order(spec, budget, layout.run(spec.run).exists(), missing)


async def submit(services: Services, order: Order, *, key: str | None) -> Submission:
    """Put a job into the queue; a request that came before gets its job, whatever has changed since.

    Args:
        services: Where to ask.
        order: What to do.
        key: The client's Idempotency-Key.

    Raises:
        ModelCoreError: Whatever stands against it.
    """
    async for obstacle in _obstacles(services, order):
        if key is None or isinstance(obstacle, QueueUnavailable):  # who does not answer knows no key either
            raise obstacle
        known = await services.ask(services.store.known, key, order.fingerprint)
        if known is None:
            raise obstacle
        return Submission(known, created=False)
    submitted = await services.wire.ask(
        questions.submission(
            order.spec,
            key=key,
            fingerprint=order.fingerprint,
            is_taken=order.is_taken,
            max_queued=services.settings.max_queued,
        )
    )
    if submitted is None:
        raise RunExists(order.spec.run, await services.ask(services.store.next_free_run, order.spec.run))
    return submitted


async def warnings(services: Services, order: Order) -> list[Advice]:
    """What the author of a request should know, and what would stand against submitting it now."""
    obstacles = [obstacle async for obstacle in _obstacles(services, order)]
    found = [Advice(error.code, f"{error}; {error.hint}" if error.hint else str(error)) for error in obstacles]
    path = services.layout.run(order.spec.run)
    if order.spec.kind == "train" and path.exists():
        found.append(Advice(RunExists.code, str(RunExists(path.name, next_free_name(path)))))
    return [*order.spec.warnings, *found]


async def _obstacles(services: Services, order: Order) -> AsyncIterator[ModelCoreError]:
    for obstacle in order.missing:
        yield obstacle
    try:
        workers = await services.wire.ask(questions.alive("workers"))
    except QueueUnavailable as error:
        yield error
        return
    if (most := _most_gpus(workers)) < (order.spec.gpus or 0):
        yield _too_many_gpus(order.spec.gpus or 0, most)
    if order.spec.kind != "train":  # the budget is a training's
        return
    largest = max((_room(worker) for worker in workers), default=math.inf)
    if order.budget.memory.required_bytes > largest:
        yield _too_large(order, largest)


def _missing(spec: JobSpec, layout: Layout) -> Iterator[ModelCoreError]:
    """What the job needs and the disk does not have."""
    config = spec.config
    try:
        if spec.kind == "test":
            config = _tested(config, layout)
        if config.checkpoint.load_checkpoint is not None and spec.kind == "train":
            _continued(config, layout)
    except ModelCoreError as error:
        yield error
        return
    dataset = dataset_of(config, layout)
    if config.data.source is None and (missing := dataset.missing()):
        yield DatasetNotReady(
            f"dataset {dataset.name!r} lacks {', '.join(path.name for path in missing)}, and data.source is not set; "
            f"set data.source to stories, or put the files below datasets/{dataset.name} of the data root"
        )


def _tested(written: ExperimentConfig, layout: Layout) -> ExperimentConfig:
    """A test reads a run that exists, with the model of its checkpoint."""
    run = Run.open(layout.run(written.experiment_name))
    run.resolve(written.testing.checkpoint_path)
    trained = run.config()
    if "model" in written.model_fields_set:
        _same_model(written.model, trained.model, written.model.model_fields_set, f"run {run.name!r}")
    return trained if "data" not in written.model_fields_set else written


def _continued(config: ExperimentConfig, layout: Layout) -> None:
    """A training that begins with another run's checkpoint has its model."""
    reference = config.checkpoint.load_checkpoint or ""
    name, _, file = reference.partition("/")
    run = Run.open(layout.run(name))
    run.resolve(file or ("latest" if run.full_states() else "best"))
    _same_model(config.model, run.config().model, ModelConfig.model_fields, f"checkpoint.load_checkpoint {reference!r}")


def _same_model(ours: ModelConfig, theirs: ModelConfig, keys: Iterable[str], whose: str) -> None:
    different = [
        f"model.{key} is {getattr(ours, key)} here and {getattr(theirs, key)} in {whose}"
        for key in sorted(keys)
        if getattr(ours, key) != getattr(theirs, key)
    ]
    if different:
        raise CheckpointMismatch("; ".join(different))


def _reference_is_a_name(config: ExperimentConfig) -> Iterator[FieldProblem]:
    reference = config.checkpoint.load_checkpoint
    if reference is not None and not _REFERENCE.fullmatch(reference):
        detail = f"{reference!r} is not RUN or RUN/FILE, for example quickstart/model_latest.pt"
        yield FieldProblem("/checkpoint/load_checkpoint", detail, reference)


def _most_gpus(workers: Sequence[Mapping[str, Any]]) -> float:
    """GPUs of the worker that has most; without a known worker nobody can say."""
    return max((len(worker.get("gpus", ())) for worker in workers), default=math.inf)


def _too_many_gpus(asked: int, most: float) -> DoesNotFit:
    error = DoesNotFit(f"the job asks for {_gpus(asked)}; the known worker with most has {most or 'none'}")
    error.hint = f"job.resources.gpus {most} would fit" + ("" if most else ", with device.device auto or cpu")
    return error


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"


def _room(worker: Mapping[str, Any]) -> float:
    """Memory for one job: the worker's, or its largest GPU's; without a number there is room."""
    sizes = [worker.get("memory_bytes"), *(gpu.get("memory_bytes") for gpu in worker.get("gpus", ()))]
    return max((float(size) for size in sizes if size), default=math.inf)


def _too_large(order: Order, largest: float) -> DoesNotFit:
    needed = order.budget.memory.required_bytes
    error = DoesNotFit(f"training needs about {_gib(needed)}; the largest known worker has {_gib(largest)}")
    smaller = fitting_batch_size(order.spec.config, largest)
    if smaller is not None:
        error.hint = f"training.batch_size {smaller} would fit, at the same total_batch_size"
    else:
        error.hint = "no batch size would fit; make the model smaller"
    return error


def _gib(size_bytes: float) -> str:
    return f"{size_bytes / 2**30:,.1f} GiB"
