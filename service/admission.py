"""Admission of job requests: everything that can be checked without the queue.

Reads the request, looks up what the disk has of its run, dataset and source, and collects the reasons to refuse it. The
status of a dataset is cached by the state of its directory, because many requests ask for the same one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from model_core.budget import Budget, budget_of
from model_core.catalog import BUILTIN_SOURCES, HUB_DATASETS
from model_core.config import NAME_PATTERN, ExperimentConfig, ModelConfig
from model_core.config_loader import ConfigWarning, Tree
from model_core.config_validation import model_differences
from model_core.data.dataset_spec import DatasetSpec, training_mismatch
from model_core.errors import (
    CheckpointMismatch,
    DatasetExists,
    DatasetNotReady,
    FieldProblem,
    InvalidConfig,
    InvalidData,
    ModelCoreError,
)
from model_core.hf.export_folder import export_at
from model_core.report import disk_shortage, train_tokens_of
from model_core.storage.dataset import EXAMPLES, MANIFEST, Dataset, dataset_of
from model_core.storage.files import Layout, next_free_name, portable
from model_core.storage.run import Run
from worker.jobs.commands import Taken
from worker.jobs.kinds import KINDS
from worker.jobs.spec import JobSpec, parse_spec

_REFERENCE = re.compile(rf"{NAME_PATTERN[:-1]}(/[A-Za-z0-9_=.-]{{1,100}})?$")


@dataclass(frozen=True)
class PreparedSubmission:
    """A request that is right in itself, and what the disk says of it.

    Attributes:
        spec: What is asked for.
        budget: What it costs; None of a preparation and of an export, which train nothing.
        taken: Whether the disk has what the job makes.
        missing: What the job needs and the disk does not have.
        preparation: Of the dataset, where that is missing and its source is known.
        differs: How the dataset that has the name differs from the one that is wanted.
    """

    spec: JobSpec
    budget: Budget | None
    taken: Taken
    missing: tuple[ModelCoreError, ...]
    preparation: DatasetSpec | None = None
    differs: str | None = None

    @property
    def memory_bytes(self) -> int:
        """What it needs of a worker, or of each of its GPUs; the budget is of one process of a training."""
        if self.budget is None or not KINDS[self.spec.kind].makes_run:
            return 0
        return self.budget.memory.required_bytes * self.processes_per_memory

    @property
    def processes_per_memory(self) -> int:
        """How many of its processes share one memory."""
        return 1 if self.spec.gpus else self.spec.processes

    @property
    def fingerprint(self) -> str:
        """Equal for requests that ask for the same, however they are written."""
        spec = self.spec
        job = json.dumps(spec.job.model_dump(mode="json"), sort_keys=True)
        asked = "\n".join((spec.kind, spec.run or "", spec.config.model_dump_json(), job))
        return hashlib.sha256(asked.encode()).hexdigest()


def read_spec(tree: Tree, *, run: str | None, data_root: Path) -> JobSpec:
    """Read a request.

    Args:
        tree: As the body has it.
        run: Renames the run.
        data_root: Below its ``uploads`` a ``file:`` source may lie.

    Raises:
        InvalidConfig: With every wrong value.
    """
    spec = parse_spec(tree, run=run, data_root=data_root)
    if refused := tuple(_reference_is_a_name(spec.config)):
        raise InvalidConfig(refused)
    return spec


def prepare_submissions(layout: Layout, specs: Sequence[JobSpec]) -> list[PreparedSubmission | Exception]:
    """What the disk says of each request; what it cannot say is an error in its place."""
    found: list[PreparedSubmission | Exception] = []
    for spec in specs:
        try:
            found.append(_prepare(layout, spec))
        except Exception as error:  # noqa: BLE001 - it belongs to the one who asked
            found.append(error)
    return found


def _prepare(layout: Layout, spec: JobSpec) -> PreparedSubmission:
    if spec.kind == "prepare":
        return _prepare_dataset_job(layout, spec)
    if spec.kind == "export":
        return _prepare_export(layout, spec)
    run, status = _run_of(layout, spec), dataset_status(dataset_of(spec.config, layout))
    budget = budget_of(spec.config, train_tokens=status.train_tokens)
    preparation = None
    if KINDS[spec.kind].makes_run:
        warnings = [*disk_shortage(budget.disk, run)]
        if spec.config.data.source is not None and not status.is_ready:
            preparation = DatasetSpec.of(spec.config.data)
            warnings.append(_made_first(preparation))
        if warnings:
            spec = replace(spec, warnings=(*spec.warnings, *warnings))
    elif spec.dataset is None:
        spec = replace(spec, dataset=_dataset_of_run(run))
    # What is missing now may be what it waits for.
    missing = () if spec.job.depends_on else tuple(_missing(spec, layout, status))
    return PreparedSubmission(spec, budget, "exists" if run.exists() else "", missing, preparation)


def _prepare_dataset_job(layout: Layout, spec: JobSpec) -> PreparedSubmission:
    dataset, wanted = dataset_of(spec.config, layout), DatasetSpec.of_job(spec.config)
    if dataset.missing():
        lost = () if spec.job.depends_on else tuple(_lost(spec.config, layout))
        return PreparedSubmission(spec, None, "", lost)
    differs = difference(dataset, wanted, root_of(layout))
    return PreparedSubmission(spec, None, "exists" if differs else "ready", (), differs=differs)


def _prepare_export(layout: Layout, spec: JobSpec) -> PreparedSubmission:
    try:
        run = Run.open(_run_of(layout, spec))
        info = run.resolve(spec.config.testing.checkpoint_path)
        there = export_at(layout, run, info)
    except ModelCoreError as error:
        return PreparedSubmission(spec, None, "", () if spec.job.depends_on else (error,))
    is_as_wanted = there is not None and spec.job.licence in {None, there.licence}
    return PreparedSubmission(spec, None, "ready" if is_as_wanted else "", ())


def _run_of(layout: Layout, spec: JobSpec) -> Path:
    assert spec.run is not None
    return layout.run(spec.run)


def _dataset_of_run(run: Path) -> str | None:
    """What a test reads that names no data; None while there is no such run."""
    try:
        return Run.open(run).config().data.dataset_name
    except ModelCoreError:
        return None


def _made_first(preparation: DatasetSpec) -> ConfigWarning:
    detail = f"dataset {preparation.name!r} is not there yet: a prepare job makes it from {preparation.source!r} first"
    return ConfigWarning("dataset_made_first", f"{detail}, and this one waits for it")


def _missing(spec: JobSpec, layout: Layout, status: DatasetStatus) -> Iterator[ModelCoreError]:
    """What the job needs and the disk does not have as it should be; `status` is of the dataset that it names."""
    config = spec.config
    try:
        if spec.kind == "test":
            config = _tested(config, layout)
        if config.checkpoint.load_checkpoint is not None and KINDS[spec.kind].makes_run:
            _continued(config, layout)
    except ModelCoreError as error:
        yield error
        return
    dataset = dataset_of(config, layout)
    found = status if config is spec.config else dataset_status(dataset)
    if found.is_ready:
        if (refusal := unlike(dataset, found.manifest, config)) is not None:
            yield refusal
    elif config.data.source is None or spec.kind == "test":
        yield not_ready(dataset, config)
    else:
        yield from _lost(config, layout)


def _lost(config: ExperimentConfig, layout: Layout) -> Iterator[ModelCoreError]:
    """A source that should lie on disk and does not."""
    problem = lost_source(config, root_of(layout))
    if problem is not None:
        yield InvalidConfig((problem,))


def root_of(layout: Layout) -> Path:
    """The data root of a service's layout."""
    assert layout.datasets is not None
    return layout.datasets.parent


def _tested(written: ExperimentConfig, layout: Layout) -> ExperimentConfig:
    """A test reads a run that exists, with the model of its checkpoint."""
    run = Run.open(layout.run(written.experiment_name))
    run.resolve(written.testing.checkpoint_path)
    trained = run.config()
    if "model" in written.model_fields_set:
        _refuse_unlike(written.model, trained.model, f"run {run.name!r}", written.model.model_fields_set)
    return trained if "data" not in written.model_fields_set else written


def _continued(config: ExperimentConfig, layout: Layout) -> None:
    """A training that begins with another run's checkpoint has its model."""
    reference = config.checkpoint.load_checkpoint or ""
    name, _, file = reference.partition("/")
    run = Run.open(layout.run(name))
    run.resolve(file or ("latest" if run.full_states() else "best"))
    _refuse_unlike(config.model, run.config().model, f"checkpoint.load_checkpoint {reference!r}")


def _refuse_unlike(ours: ModelConfig, theirs: ModelConfig, there: str, keys: Iterable[str] | None = None) -> None:
    """Refuse a model that does not fit the one of a run."""
    if different := model_differences(ours, theirs, there=there, keys=keys):
        raise CheckpointMismatch("; ".join(different))


def _reference_is_a_name(config: ExperimentConfig) -> Iterator[FieldProblem]:
    reference = config.checkpoint.load_checkpoint
    if reference is not None and not _REFERENCE.fullmatch(reference):
        detail = f"{reference!r} is not RUN or RUN/FILE, for example quickstart/model_latest.pt"
        yield FieldProblem("/checkpoint/load_checkpoint", detail, reference)


_MOST_DATASETS = 256


@dataclass(frozen=True)
class DatasetStatus:
    """What there is of a dataset.

    Attributes:
        is_ready: Whether all its token files are there.
        train_tokens: Tokens of its training split; None while it is not there.
        manifest: What preparation recorded of it; None of files that were not prepared here.
    """

    is_ready: bool
    train_tokens: int | None
    manifest: Mapping[str, Any] | None


def dataset_status(dataset: Dataset) -> DatasetStatus:
    """Look at a dataset."""
    return _looked_at(dataset, *map(_state, (dataset.directory, dataset.train, dataset.directory / MANIFEST)))


@lru_cache(_MOST_DATASETS)
def _looked_at(dataset: Dataset, *_states: tuple[int, int] | None) -> DatasetStatus:
    return DatasetStatus(not dataset.missing(), train_tokens_of(dataset), dataset.manifest())


def _state(path: Path) -> tuple[int, int] | None:
    """Changes when a file of a directory comes, goes or is replaced, and when a file is written over."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size


_MADE_ANYWHERE = "stories"  # a source that needs neither network nor file


def difference(dataset: Dataset, wanted: DatasetSpec, data_root: Path) -> str | None:
    """How a dataset that is ready differs from what is wanted, as half a sentence; None: it does not.

    Args:
        dataset: What is there.
        wanted: How it should be made.
        data_root: Where a relative ``file:`` source lies.
    """
    try:
        manifest = dataset.manifest()
        if manifest is None:
            return "its files were not prepared here, so nobody knows how they were made"
        return _difference(manifest, wanted, data_root)
    except InvalidData as error:
        return str(error)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest cannot be read ({error!r})"


def _difference(manifest: Mapping[str, Any], wanted: DatasetSpec, data_root: Path) -> str | None:
    if different := wanted.differences(manifest, read_files=False):
        return f"it {different[0]}"
    if _changed_since(wanted.source, manifest, data_root):  # to hash a large file would take too long
        return f"its source has changed since it was made at {manifest['created_at']}"
    return None


def unlike(dataset: Dataset, manifest: Mapping[str, Any] | None, config: ExperimentConfig) -> DatasetExists | None:
    """Why a job that reads a dataset would refuse it; None: it would not, as far as a quick look can tell.

    Args:
        dataset: One that is ready.
        manifest: Its own.
        config: Whose section `data` means it.
    """
    different = training_mismatch(manifest, config.data, read_files=False)
    if different is None:
        return None
    return DatasetExists(dataset.name, next_free_name(dataset.directory), f"it {different}")


def _path(source: str) -> Path:
    return portable(source.removeprefix("file:"))


def _changed_since(source: str, manifest: Mapping[str, Any], data_root: Path) -> bool:
    path = data_root / _path(source)
    if not source.startswith("file:") or not path.exists():
        return False
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    return max(file.stat().st_mtime for file in files) > datetime.fromisoformat(manifest["created_at"]).timestamp()


def lost_source(config: ExperimentConfig, data_root: Path) -> FieldProblem | None:
    """A file that a dataset should be made from, if it is not there."""
    source = config.data.source or ""
    if not source.startswith("file:") or (data_root / _path(source)).exists():
        return None
    detail = f"{source!r}: there is no such file below the data root; upload it with POST /datasets, or put it there"
    return FieldProblem("/data/source", detail, source)


def not_ready(dataset: Dataset, config: ExperimentConfig) -> DatasetNotReady:
    """Say that a dataset is missing, and which request would make it.

    Args:
        dataset: The dataset.
        config: Whose section `data` means it.
    """
    lacking = [path.name for path in dataset.missing()] or [EXAMPLES]
    body = request_body(config)
    error = DatasetNotReady(f"dataset {dataset.name!r} lacks {', '.join(lacking)}; {_advice(config, body['source'])}")
    error.request = {"method": "POST", "path": "/datasets", "body": body}
    return error


def _advice(config: ExperimentConfig, source: str) -> str:
    if config.data.source is not None:
        return "POST /datasets makes it"
    where = f"POST /datasets makes it, from {source!r} or another source"
    return f"{where}; a training whose data.source is set has it made first"


def request_body(config: ExperimentConfig) -> dict[str, Any]:
    """What POST /datasets would be given for the dataset that a configuration means."""
    data = config.data
    is_source = data.dataset_name in {*BUILTIN_SOURCES, *HUB_DATASETS}
    source = data.source or (data.dataset_name if is_source else _MADE_ANYWHERE)
    return DatasetSpec.of(data.model_copy(update={"source": source})).as_request()
