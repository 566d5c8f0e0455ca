"""A job request: an experiment, and a `job` section that says how to run it.

The tree is that of the YAML file, as JSON or YAML. With a preset, the rest of the tree is a merge patch on it. Kind,
source, GPUs and processes have to agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError

from model_core.catalog import SOURCE_SYNTAX
from model_core.config import Config, ExperimentConfig, Name, Whole
from model_core.config_loader import (
    ConfigWarning,
    ParsedConfig,
    Tree,
    field_errors,
    merge_patch,
    parse_config,
    preset_tree,
)
from model_core.config_validation import check_batch_divides
from model_core.data.dataset_spec import DatasetSpec
from model_core.errors import FieldProblem, InvalidConfig, InvalidParameter
from model_core.hf.export_folder import LICENCE_PATTERN
from model_core.storage.checkpoints import file_of
from model_core.storage.files import checked_name, portable
from worker.jobs.kinds import KINDS

Text = Annotated[str, StringConstraints(strict=True, max_length=512)]
Kind = Literal["train", "test", "prepare", "export"]
MOST_METADATA = 16  # pairs
JOB_ID = r"^job_[0-9a-f]{32}$"
Licence = Annotated[str, StringConstraints(strict=True, pattern=LICENCE_PATTERN)]
Label = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=64)]


class Resources(Config):
    """What a job needs of a worker. Several GPUs are driven by as many processes, which train together."""

    gpus: Whole | None = Field(default=None, ge=0, le=64)  # None: one if the worker has any, else the CPU
    processes: Whole = Field(default=1, ge=1, le=1024)  # that train together, on the CPU unless there are as many GPUs


class JobSection(Config):
    """The part of the tree that the service reads and the trainer ignores."""

    preset: Name | None = None
    kind: Kind | None = None  # None: from `execution`
    resources: Resources = Resources()
    priority: Whole = Field(default=0, ge=-1000, le=1000)  # higher runs earlier
    licence: Licence | None = None  # of the model that an export writes, for its card
    metadata: dict[Label, Text] = Field(default={}, max_length=MOST_METADATA)
    depends_on: tuple[Annotated[str, StringConstraints(strict=True, pattern=JOB_ID)], ...] = Field(
        default=(), max_length=100
    )


class _Envelope(Config):
    job: JobSection = JobSection()


def job_section(tree: Mapping[str, Any]) -> tuple[JobSection, list[FieldProblem]]:
    """The section of a request, and what is wrong with it; one that is wrong keeps its preset, if that is a name."""
    try:
        job = _Envelope.model_validate({"job": tree["job"]} if tree.get("job") is not None else {}).job
    except ValidationError as error:
        section = tree["job"]
        preset = section.get("preset") if isinstance(section, dict) else None
        fallback = JobSection(preset=preset) if isinstance(preset, str) and _is_name(preset) else JobSection()
        return fallback, list(field_errors(error, _Envelope))
    return job, []


def _is_name(text: str) -> bool:
    try:
        return bool(JobSection(preset=text))
    except ValidationError:
        return False


_PATHS = (("data", "data_dir"), ("output", "exp_dir"), ("output", "attention_dir"))


@dataclass(frozen=True)
class JobSpec:
    """A request that is right in itself.

    Attributes:
        kind: ``train`` makes a run; ``test`` and ``export`` read one; ``prepare`` makes a dataset.
        run: Its name; None of a preparation.
        config: The experiment, named by the run; of a preparation the part that says how its dataset is made, of an
            export the run and the file of its checkpoint.
        job: How to run it.
        warnings: What its author should know.
        dataset: The one that it makes or reads; None where the run's own configuration says it.
    """

    kind: str
    run: str | None
    config: ExperimentConfig
    job: JobSection
    warnings: tuple[ConfigWarning, ...] = ()
    dataset: str | None = None

    @property
    def recipe(self) -> str:
        """Of the dataset that a preparation makes; empty of every other job."""
        return DatasetSpec.of_job(self.config).fingerprint if KINDS[self.kind].makes == "dataset" else ""

    @property
    def export(self) -> str:
        """What an export makes, as RUN/FILE of the checkpoint; empty of every other job."""
        return f"{self.run}/{self.config.testing.checkpoint_path}" if KINDS[self.kind].makes == "export" else ""

    @property
    def gpus(self) -> int | None:
        """GPUs it takes; None: one if the worker has any, else none."""
        if not KINDS[self.kind].uses_gpu:
            return 0
        asked, device = self.job.resources, self.config.device.device
        if asked.gpus is not None:
            return asked.gpus
        return {"cpu": 0, "cuda": asked.processes}.get(device, None if asked.processes == 1 else 0)

    @property
    def processes(self) -> int:
        """Processes that train together; each has a GPU of its own, or none has any."""
        return max(self.job.resources.processes, self.gpus or 1) if KINDS[self.kind].makes_run else 1

    @property
    def record(self) -> dict[str, Any]:
        """The experiment as the queue keeps it, with what its supervisor must know of the job."""
        tree = self.config.model_dump(mode="json", exclude_unset=True)
        job: dict[str, Any] = {"resources": {"processes": self.processes}} if self.processes > 1 else {}
        job |= {"licence": self.job.licence} if self.job.licence else {}
        return {**tree, "job": job} if job else tree


def parse_spec(tree: Mapping[str, Any], *, run: str | None = None, data_root: Path | None = None) -> JobSpec:
    """Check a request.

    Args:
        tree: Sections of the experiment, and `job`.
        run: Renames the run without changing the tree.
        data_root: Below its ``uploads`` a ``file:`` source may lie; without it there is no such place.

    Raises:
        InvalidParameter: `run` is no name, or the job makes no run.
        UnknownPreset: There is no such preset.
        InvalidConfig: With every problem of the tree.
    """
    job, problems = job_section(tree)
    merged = {key: value for key, value in tree.items() if key != "job"}
    if job.preset is not None:
        merged = merge_patch(preset_tree(job.preset), merged)
    merged, replaced = _without_paths(merged)
    _refuse_to_name(job, run)
    renamed = {} if run is None else {"experiment_name": checked_name("run", run)}
    parsed, more = _experiment(merged)
    if parsed is not None:
        more += disagreements(job, parsed.config, data_root)
    if problems or more or parsed is None:
        raise InvalidConfig((*problems, *more))
    if job.kind == "prepare":
        dataset = DatasetSpec.of_job(parsed.config)
        return JobSpec("prepare", None, dataset.as_config(), job, replaced, dataset.name)
    config = parsed.config.model_copy(update=renamed)
    if job.kind == "export":
        return JobSpec("export", config.experiment_name, _what_is_exported(config), job, replaced)
    kind = derived_kind(config)
    reads = config.data.dataset_name if kind == "train" or "data" in config.model_fields_set else None
    spec = JobSpec(kind, config.experiment_name, config, job, dataset=reads)
    return replace(spec, warnings=(*parsed.warnings, *replaced, *_idle_gpus(spec)))


def processes_of(record: Mapping[str, Any]) -> int:
    """Processes that train together, of an experiment as the queue keeps it."""
    processes: int = record.get("job", {}).get("resources", {}).get("processes", 1)
    return processes


def licence_of(record: Mapping[str, Any]) -> str | None:
    """The licence that an export's model card states, of an experiment as the queue keeps it."""
    licence: str | None = record.get("job", {}).get("licence")
    return licence


def _refuse_to_name(job: JobSection, run: str | None) -> None:
    if job.kind == "prepare" and run is not None:
        raise InvalidParameter(f"run {run!r}: a prepare job makes no run; data.dataset is the name of what it makes")


def _what_is_exported(config: ExperimentConfig) -> ExperimentConfig:
    wanted = config.testing.checkpoint_path
    file = file_of(wanted) or wanted
    return parse_config({"experiment_name": config.experiment_name, "testing": {"checkpoint_path": file}}).config


def _experiment(tree: Tree) -> tuple[ParsedConfig | None, list[FieldProblem]]:
    try:
        return parse_config(tree), []
    except InvalidConfig as error:
        return None, list(error.problems)


def _without_paths(tree: Tree) -> tuple[Tree, tuple[ConfigWarning, ...]]:
    """Paths of the author's machine mean nothing here: everything lies below the data root."""
    written = [(name, key) for name, key in _PATHS if isinstance(_section(tree, name).get(key), str)]
    if not written:
        return tree, ()
    kept = {
        name: {key: value for key, value in tree[name].items() if (name, key) not in written} for name, _ in written
    }
    names = ", ".join(f"{name}.{key}" for name, key in written)
    return {**tree, **kept}, (
        ConfigWarning("paths_replaced", f"{names}: replaced by the directories of the data root"),
    )


def _section(tree: Tree, name: str) -> Tree:
    section = tree.get(name)
    return section if isinstance(section, dict) else {}


def _idle_gpus(spec: JobSpec) -> Iterator[ConfigWarning]:
    gpus, processes = spec.gpus or 0, spec.processes
    if gpus > processes:
        yield ConfigWarning(
            "gpus_idle", f"resources.gpus {gpus}: a {spec.kind} job drives one GPU; the others stay idle"
        )
    if processes > 1 and spec.job.resources.gpus is None and not gpus and spec.config.device.device == "auto":
        detail = f"resources.processes {processes} run on the CPU; resources.gpus {processes} gives each a GPU"
        yield ConfigWarning("processes_on_cpu", detail)


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
    if job.kind is not None and not KINDS[job.kind].uses_gpu:
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
        yield FieldProblem("/data/source", detail, None, SOURCE_SYNTAX)


def _needs_no_gpu(job: JobSection) -> Iterator[FieldProblem]:
    if job.resources.gpus and job.kind is not None:
        detail = f"gpus {job.resources.gpus}: {KINDS[job.kind].title} uses none; leave it out"
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
        yield from check_batch_divides(config.training, max(processes, gpus))
