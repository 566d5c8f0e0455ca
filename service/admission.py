"""Admission of job requests: all checks that need the disk but not the queue.

Parses a request, looks up its run, dataset and source on disk, and reports the reason to refuse it. Each kind of job
has one check function, named in its row of `kinds.KINDS`. The status of a dataset is cached until its directory
changes, because many requests use the same dataset.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from model_core.attention.heads.ablation_record import AblationOptions, ablation_name, read_sample, result_file
from model_core.budget import Budget, compute_budget
from model_core.catalog import BUILTIN_SOURCES, HUB_DATASETS
from model_core.config import NAME_PATTERN, ExperimentConfig, ModelConfig
from model_core.config_loader import ConfigWarning, Tree
from model_core.config_validation import check_tokens_suffice, model_differences
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
from model_core.hf.export_folder import find_export
from model_core.hf.hf_config import CONFIG, parse_model_config, read_object
from model_core.hf.model_folder import model_folder
from model_core.report import count_train_tokens, disk_shortage
from model_core.storage.checkpoints import FALLBACK, CheckpointInfo, fallback_detail
from model_core.storage.dataset import EXAMPLES, MANIFEST, Dataset, dataset_of
from model_core.storage.files import Layout, next_free_name, portable
from model_core.storage.run import Run
from worker.jobs.commands import Taken
from worker.jobs.kinds import KINDS
from worker.jobs.spec import JobSpec, parse_spec

_CHECKPOINT_REFERENCE = re.compile(rf"{NAME_PATTERN[:-1]}(/[A-Za-z0-9_=.-]{{1,100}})?$")
_CACHED_DATASETS = 256
_OFFLINE_SOURCE = "stories"  # needs neither network nor file


@dataclass(frozen=True)
class PreparedSubmission:
    """A valid job request, and the state of the disk that concerns it.

    Attributes:
        spec: The request.
        budget: Costs of the model; None if the job uses no model.
        taken: Whether the result of the job already exists.
        missing: Error about input of the job that is missing on disk or does not match; None if all of it exists.
        preparation: Spec of the dataset, if it is missing and another job can prepare it first.
        differs: How an existing dataset of the same name differs from the requested one.
        lacks_dataset: Whether the dataset of a training is not ready, or differs from the request and the defaults.
        requested: The request as the client wrote it, if options of its dataset were added to `spec`.
    """

    spec: JobSpec
    budget: Budget | None = None
    taken: Taken = ""
    missing: ModelCoreError | None = None
    preparation: DatasetSpec | None = None
    differs: str | None = None
    lacks_dataset: bool = False
    requested: JobSpec | None = None

    @property
    def memory_bytes(self) -> int:
        """Memory that the worker needs, or each of its GPUs; the budget is for one process."""
        if self.budget is None or not KINDS[self.spec.kind].makes_run:
            return 0
        return self.budget.memory.required_bytes * self.processes_per_memory

    @property
    def processes_per_memory(self) -> int:
        """Number of processes that share the same memory."""
        return 1 if self.spec.gpus else self.spec.processes

    @property
    def training_tokens(self) -> int | None:
        """Tokens of a training; None for other jobs."""
        is_training = self.budget is not None and KINDS[self.spec.kind].writes_in_run
        return self.budget.schedule.tokens if is_training and self.budget is not None else None

    @property
    def fingerprint(self) -> str:
        """Hash that is equal for equal requests, whatever their format; a later version's new keys do not change it."""
        spec = self.requested or self.spec
        job = json.dumps(spec.job.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
        text = "\n".join((spec.kind, spec.run or "", spec.config.model_dump_json(exclude_defaults=True), job))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class DatasetStatus:
    """Status of a dataset on disk.

    Attributes:
        is_ready: Whether all its token files exist.
        train_tokens: Number of tokens of its training split; None if the split is missing.
        manifest: Manifest that its preparation wrote; None if it was not prepared here.
    """

    is_ready: bool
    train_tokens: int | None
    manifest: Mapping[str, Any] | None


def read_spec(tree: Tree, *, run: str | None, data_root: Path) -> JobSpec:
    """Parse a job request.

    Args:
        tree: Tree of the body.
        run: New name of the run; None keeps that of the tree.
        data_root: Data root; a ``file:`` source must be below its ``uploads``.

    Returns:
        The request.

    Raises:
        InvalidConfig: The tree is invalid; the error contains every problem.
    """
    spec = parse_spec(tree, run=run, data_root=data_root)
    reference = spec.config.checkpoint.load_checkpoint
    if reference is not None and not _CHECKPOINT_REFERENCE.fullmatch(reference):
        detail = f"{reference!r} is not RUN or RUN/FILE, for example quickstart/model_latest.pt"
        raise InvalidConfig((FieldProblem("/checkpoint/load_checkpoint", detail, reference),))
    return spec


def prepare_submissions(layout: Layout, specs: Sequence[JobSpec]) -> list[PreparedSubmission | Exception]:
    """Check requests against the disk.

    Args:
        layout: Directories of the data root.
        specs: The requests.

    Returns:
        One result per request, in order; an exception if its check failed.
    """
    results: list[PreparedSubmission | Exception] = []
    for spec in specs:
        check = KINDS[spec.kind].check
        try:
            results.append(_CHECKS[check](layout, spec) if check is not None else PreparedSubmission(spec))
        except Exception as error:  # noqa: BLE001 - the other requests are not affected
            results.append(error)
    return results


def join_preparation(prepared: PreparedSubmission, preparation: DatasetSpec) -> PreparedSubmission:
    """Let a training wait for a dataset that a job is preparing.

    Args:
        prepared: The training.
        preparation: The dataset that it requests, as the job prepares it.

    Returns:
        The training; its dataset is no longer missing.
    """
    missing = None if isinstance(prepared.missing, DatasetNotReady) else prepared.missing
    spec = prepared.spec
    if prepared.preparation is None:
        spec = replace(spec, warnings=(*spec.warnings, _prepared_first(preparation)))
    return replace(prepared, spec=spec, missing=missing, preparation=preparation)


def manifest_of_ready(layout: Layout, name: str) -> Mapping[str, Any] | None:
    """Read the manifest of a dataset that is ready.

    Args:
        layout: Directories of the data root.
        name: Name of the dataset.

    Returns:
        The manifest; None if the dataset is not ready, or was not prepared here.
    """
    status = _dataset_status(Dataset.named(name, layout.dataset(name)))
    return status.manifest if status.is_ready else None


def not_ready(dataset: Dataset, config: ExperimentConfig) -> DatasetNotReady:
    """Build the error about a missing dataset, with the request that prepares it.

    Args:
        dataset: Dataset that lacks files.
        config: Configuration whose section `data` names it.

    Returns:
        The error.
    """
    lacking = [path.name for path in dataset.missing()] or [EXAMPLES]
    body = _dataset_request(config)
    advice = "POST /datasets prepares it"
    if config.data.source is None:
        origin = f"from {body['source']!r} or another source"
        advice = f"{advice}, {origin}; a training whose data.source is set waits until it is prepared"
    error = DatasetNotReady(f"dataset {dataset.name!r} lacks {', '.join(lacking)}; {advice}")
    error.request = {"method": "POST", "path": "/datasets", "body": body}
    return error


# --- one check per kind of job; missing input is ignored if the job depends on others, which may create it ----------


def _check_training(layout: Layout, spec: JobSpec) -> PreparedSubmission:
    run, status = _run_of(layout, spec), _dataset_status(dataset_of(spec.config, layout))
    budget = compute_budget(spec.config, train_tokens=status.train_tokens)
    preparation, warnings = None, [*disk_shortage(budget.disk, run)]
    if spec.config.data.source is not None and not status.is_ready:
        preparation = DatasetSpec.of(spec.config.data)
        warnings.append(_prepared_first(preparation))
    missing = _missing_for_training(layout, spec, status)
    return PreparedSubmission(
        replace(spec, warnings=(*spec.warnings, *warnings)),
        budget,
        "exists" if run.exists() else "",
        missing,
        preparation,
        lacks_dataset=not status.is_ready or isinstance(missing, DatasetExists),
    )


def _check_test(layout: Layout, spec: JobSpec) -> PreparedSubmission:
    status = _dataset_status(dataset_of(spec.config, layout))
    budget = compute_budget(spec.config, train_tokens=status.train_tokens)
    if spec.dataset is None:
        spec = replace(spec, dataset=_dataset_of_run(_run_of(layout, spec)))
    missing = None if spec.job.depends_on else _missing_for_test(layout, spec.config, status)
    with contextlib.suppress(ModelCoreError):  # of a run that does not exist yet, or is reported as missing
        spec = _with_fallback(spec, Run.open(_run_of(layout, spec)).resolve(spec.config.testing.checkpoint))
    return PreparedSubmission(spec, budget, missing=missing)


def _check_preparation(layout: Layout, spec: JobSpec) -> PreparedSubmission:
    dataset = dataset_of(spec.config, layout)
    if dataset.missing():
        return PreparedSubmission(spec, missing=None if spec.job.depends_on else _missing_source(layout, spec.config))
    differs = _difference(dataset, DatasetSpec.of_job(spec.config), _data_root(layout))
    return PreparedSubmission(spec, taken="exists" if differs else "ready", differs=differs)


def _check_export(layout: Layout, spec: JobSpec) -> PreparedSubmission:
    try:
        run = Run.open(_run_of(layout, spec))
        info = run.resolve(spec.config.testing.checkpoint)
        found = find_export(layout, run, info)
    except ModelCoreError as error:
        return PreparedSubmission(spec, missing=None if spec.job.depends_on else error)
    is_identical = found is not None and spec.job.licence in {None, found.licence}
    return PreparedSubmission(_with_fallback(spec, info), taken="ready" if is_identical else "")


def _check_import(layout: Layout, spec: JobSpec) -> PreparedSubmission:
    taken: Taken = "exists" if _run_of(layout, spec).exists() else ""
    source = spec.job.source or ""
    path = _data_root(layout) / _source_path(source)
    try:
        if not path.exists():
            detail = (
                f"{source!r}: there is nothing of that name below the data root; send it with POST /runs, or copy it"
            )
            raise InvalidConfig((FieldProblem("/job/source", detail, source),))
        if path.is_dir():  # what can be said without unpacking or reading tensors
            parse_model_config(read_object(model_folder(path, shown=source) / CONFIG))
    except ModelCoreError as error:
        return PreparedSubmission(spec, taken=taken, missing=None if spec.job.depends_on else error)
    return PreparedSubmission(spec, taken=taken)


def _check_ablation(layout: Layout, spec: JobSpec) -> PreparedSubmission:
    options = spec.job.options or AblationOptions()
    spec = replace(spec, dataset=_dataset_of_run(_run_of(layout, spec)))
    try:
        run = Run.open(_run_of(layout, spec))
        info = run.resolve(options.checkpoint)
        path = ablation_file(layout, run, info, options)
    except ModelCoreError as error:
        return PreparedSubmission(spec, missing=None if spec.job.depends_on else error)
    detail = fallback_detail(options.checkpoint, info)
    if detail is not None:
        spec = replace(spec, warnings=(*spec.warnings, ConfigWarning(FALLBACK, detail)))
    return PreparedSubmission(spec, taken="ready" if path.is_file() else "")


def ablation_file(layout: Layout, run: Run, info: CheckpointInfo, options: AblationOptions) -> Path:
    """Return the path of an ablation's result; its sample is read for that.

    Args:
        layout: Directories of the data root.
        run: The run.
        info: Sidecar of the checkpoint.
        options: Options of the ablation.

    Returns:
        The path; the file need not exist.

    Raises:
        DatasetNotReady: The dataset of the run lacks files.
        InvalidData: The split gives no sample.
    """
    config = run.config()
    dataset = dataset_of(config, layout)
    if dataset.missing():
        raise not_ready(dataset, config)
    model = config.model
    sample = read_sample(dataset, options, block_size=model.block_size, vocab_size=model.vocab_size)
    return result_file(layout, run.name, ablation_name(info, options, sample))


_CHECKS: Mapping[str, Callable[[Layout, JobSpec], PreparedSubmission]] = {  # by `JobKind.check`
    "training": _check_training,
    "test": _check_test,
    "preparation": _check_preparation,
    "export": _check_export,
    "import": _check_import,
    "ablation": _check_ablation,
}


def _run_of(layout: Layout, spec: JobSpec) -> Path:
    assert spec.run is not None
    return layout.run(spec.run)


def _data_root(layout: Layout) -> Path:
    assert layout.datasets is not None
    return layout.datasets.parent


def _prepared_first(preparation: DatasetSpec) -> ConfigWarning:
    detail = f"dataset {preparation.name!r} does not exist yet: a prepare job makes it from {preparation.source!r}"
    return ConfigWarning("dataset_made_first", f"{detail} first, and this job waits for it")


def _with_fallback(spec: JobSpec, info: CheckpointInfo) -> JobSpec:
    """The request, with a warning if its checkpoint takes the place of another."""
    detail = fallback_detail(spec.config.testing.checkpoint, info)
    return spec if detail is None else replace(spec, warnings=(*spec.warnings, ConfigWarning(FALLBACK, detail)))


def _dataset_of_run(run: Path) -> str | None:
    """Name of the dataset of a run; None if there is no such run."""
    try:
        return Run.open(run).config().data.dataset_name
    except ModelCoreError:
        return None


# --- missing input of a job ------------------------------------------------------------------------------------------


def _missing_for_training(layout: Layout, spec: JobSpec, status: DatasetStatus) -> ModelCoreError | None:
    config, dataset = spec.config, dataset_of(spec.config, layout)
    unfit = (_mismatch_error(dataset, status, config) or _too_few_tokens(spec, status)) if status.is_ready else None
    if spec.job.depends_on:
        return unfit
    try:
        if config.checkpoint.load_checkpoint is not None:
            _check_init_checkpoint(layout, config.checkpoint.load_checkpoint, config.model)
    except ModelCoreError as error:
        return error
    if status.is_ready:
        return unfit
    return not_ready(dataset, config) if config.data.source is None else _missing_source(layout, config)


def _too_few_tokens(spec: JobSpec, status: DatasetStatus) -> InvalidConfig | None:
    """Error about a training split that is smaller than one batch."""
    if status.train_tokens is None and status.manifest is None:  # the file cannot be read, which the job reports
        return None
    problems = tuple(check_tokens_suffice(spec.config.training, status.train_tokens or 0, spec.processes))
    return InvalidConfig(problems) if problems else None


def _missing_for_test(layout: Layout, config: ExperimentConfig, status: DatasetStatus) -> ModelCoreError | None:
    try:
        trained = _config_of_tested_run(layout, config)
    except ModelCoreError as error:
        return error
    if "data" not in config.model_fields_set:
        config, status = trained, _dataset_status(dataset_of(trained, layout))
    dataset = dataset_of(config, layout)
    return _mismatch_error(dataset, status, config) if status.is_ready else not_ready(dataset, config)


def _check_init_checkpoint(layout: Layout, reference: str, model: ModelConfig) -> None:
    """Refuse a training whose model differs from that of its initial checkpoint."""
    name, _, file = reference.partition("/")
    run = Run.open(layout.run(name))
    run.resolve_start(file)
    _refuse_mismatch(model, run.config().model, f"checkpoint.load_checkpoint {reference!r}")


def _config_of_tested_run(layout: Layout, config: ExperimentConfig) -> ExperimentConfig:
    """Configuration of the tested run; refuses a test whose model differs from it."""
    run = Run.open(layout.run(config.experiment_name))
    run.resolve(config.testing.checkpoint)
    trained = run.config()
    if "model" in config.model_fields_set:
        _refuse_mismatch(config.model, trained.model, f"run {run.name!r}", config.model.model_fields_set)
    return trained


def _refuse_mismatch(ours: ModelConfig, theirs: ModelConfig, there: str, keys: Iterable[str] | None = None) -> None:
    if differences := model_differences(ours, theirs, there=there, keys=keys):
        raise CheckpointMismatch("; ".join(differences))


def _missing_source(layout: Layout, config: ExperimentConfig) -> InvalidConfig | None:
    """Error about the source file of a dataset, if the file does not exist."""
    source = config.data.source or ""
    if not source.startswith("file:") or (_data_root(layout) / _source_path(source)).exists():
        return None
    detail = f"{source!r}: there is no such file below the data root; upload it with POST /datasets, or copy it there"
    return InvalidConfig((FieldProblem("/data/source", detail, source),))


# --- datasets on disk ------------------------------------------------------------------------------------------------


def _dataset_status(dataset: Dataset) -> DatasetStatus:
    paths = (dataset.directory, dataset.train, dataset.directory / MANIFEST)
    return _cached_status(dataset, *map(_file_version, paths))


@lru_cache(_CACHED_DATASETS)
def _cached_status(dataset: Dataset, *_versions: tuple[int, int] | None) -> DatasetStatus:
    return DatasetStatus(not dataset.missing(), count_train_tokens(dataset), dataset.manifest())


def _file_version(path: Path) -> tuple[int, int] | None:
    """Time and size of a file or directory: a directory changes when a file is added, removed or replaced in it."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


def _mismatch_error(dataset: Dataset, status: DatasetStatus, config: ExperimentConfig) -> DatasetExists | None:
    """Error about a dataset that does not match section `data`, found without reading its files."""
    mismatch = training_mismatch(status.manifest, config.data, read_files=False)
    if mismatch is None:
        return None
    return DatasetExists(dataset.name, next_free_name(dataset.directory), f"it {mismatch}")


def _difference(dataset: Dataset, requested: DatasetSpec, data_root: Path) -> str | None:
    """Clause about the difference between an existing dataset and the requested one; None if there is none."""
    try:
        manifest = dataset.manifest()
        if manifest is None:
            return "its files were not prepared here, so it is unknown how they were made"
        if differences := requested.differences(manifest, read_files=False):
            return f"it {differences[0]}"
        if _changed_since(requested.source, manifest, data_root):  # hashing a large file would take too long
            return f"its source has changed since it was made at {manifest['created_at']}"
    except InvalidData as error:
        return str(error)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest cannot be read ({error!r})"
    return None


def _changed_since(source: str, manifest: Mapping[str, Any], data_root: Path) -> bool:
    path = data_root / _source_path(source)
    if not source.startswith("file:") or not path.exists():
        return False
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    return max(file.stat().st_mtime for file in files) > datetime.fromisoformat(manifest["created_at"]).timestamp()


def _source_path(source: str) -> Path:
    return portable(source.removeprefix("file:"))


def _dataset_request(config: ExperimentConfig) -> dict[str, Any]:
    """Body of the POST /datasets request that prepares the dataset of a configuration."""
    data = config.data
    is_source = data.dataset_name in {*BUILTIN_SOURCES, *HUB_DATASETS}
    source = data.source or (data.dataset_name if is_source else _OFFLINE_SOURCE)
    return DatasetSpec.of(data.model_copy(update={"source": source})).as_request()
