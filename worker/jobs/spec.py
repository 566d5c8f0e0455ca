"""Specification of a job: an experiment, and a `job` section that controls how it runs.

The tree has the structure of the YAML file. With a preset, the rest of the tree is a merge patch on it. The row of the
kind in `kinds.KINDS` defines which options the job accepts and which part of the experiment it keeps.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints, ValidationError

from model_core.attention.heads.ablation_record import AblationOptions
from model_core.catalog import SOURCE_SYNTAX
from model_core.config import Config, ExperimentConfig, Name, Whole
from model_core.config_loader import (
    ConfigWarning,
    ParsedConfig,
    Tree,
    merge_patch,
    parse_config,
    preset_tree,
)
from model_core.config_problems import field_errors
from model_core.config_schema import normalized, schema_of
from model_core.config_validation import check_batch_divides
from model_core.data.dataset_spec import DatasetSpec
from model_core.errors import FieldProblem, InvalidConfig, InvalidParameter, shown
from model_core.hf.export_folder import LICENCE_PATTERN
from model_core.storage.checkpoints import checkpoint_file_name
from model_core.storage.files import checked_name, portable
from worker.jobs.kinds import KINDS, JobKind, Kind, kind_without_name

MAX_METADATA = 16  # pairs
JOB_ID = r"^job_[0-9a-f]{32}$"

Text = Annotated[str, StringConstraints(strict=True, max_length=512)]
Licence = Annotated[str, StringConstraints(strict=True, pattern=LICENCE_PATTERN)]
Label = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=64)]

# Keys with paths of the author's machine, and the paths that need no warning: those that a program by hand suggests.
_PATHS = {
    ("data", "data_dir"): re.compile(r"[\w-]+_data"),
    ("output", "exp_dir"): re.compile("exp"),
    ("output", "attention_dir"): re.compile("attention_outputs"),
}


class Resources(Config):
    """Resources that a job needs on a worker. Distributed training runs one process per GPU."""

    gpus: Whole | None = Field(default=None, ge=0, le=64)  # None: one if the worker has any, else the CPU
    processes: Whole = Field(default=1, ge=1, le=1024)  # of one training; without GPUs they run on the CPU


class JobSection(Config):
    """Section `job` of the tree, which the service reads and the trainer ignores."""

    preset: Name | None = None
    kind: Kind | None = None  # None: from `execution`
    resources: Resources = Resources()
    priority: Whole = Field(default=0, ge=-1000, le=1000)  # higher runs earlier
    licence: Licence | None = None  # of an exported model, for the model card
    source: Text | None = None  # of an imported model: file:uploads/PATH
    options: AblationOptions | None = None  # of an ablation; None: their defaults
    metadata: dict[Label, Text] = Field(default={}, max_length=MAX_METADATA)
    depends_on: tuple[Annotated[str, StringConstraints(strict=True, pattern=JOB_ID)], ...] = Field(
        default=(), max_length=100
    )


class JobRequest(ExperimentConfig):
    """An experiment, and how to run it; with `job.preset` the rest is a merge patch on that preset."""

    job: JobSection = JobSection()


@dataclass(frozen=True)
class JobSpec:
    """A valid job request.

    Attributes:
        kind: Name of its row in `kinds.KINDS`.
        run: Run that the job creates or reads; None if it uses no run.
        config: Part of the experiment that the kind keeps.
        job: Section `job` of the request.
        warnings: Warnings for the author of the request.
        dataset: Dataset that the job creates or reads; None if the configuration of the run names it.
    """

    kind: str
    run: str | None
    config: ExperimentConfig
    job: JobSection
    warnings: tuple[ConfigWarning, ...] = ()
    dataset: str | None = None

    @property
    def recipe(self) -> str:
        """Fingerprint of the dataset that the job creates; empty if it creates none."""
        return DatasetSpec.of_job(self.config).fingerprint if KINDS[self.kind].makes == "dataset" else ""

    @property
    def export(self) -> str:
        """Export that the job creates, as RUN/FILE of the checkpoint; empty if it creates none."""
        return f"{self.run}/{self.config.testing.checkpoint_path}" if KINDS[self.kind].makes == "export" else ""

    @property
    def ablation(self) -> str:
        """Ablation that the job makes, as RUN/FILE of the checkpoint; empty if it makes none."""
        if KINDS[self.kind].makes != "ablation":
            return ""
        reference = (self.job.options or AblationOptions()).checkpoint
        return f"{self.run}/{checkpoint_file_name(reference) or reference}"

    @property
    def gpus(self) -> int | None:
        """Number of GPUs; None: one if the worker has any, else none."""
        if not KINDS[self.kind].uses_gpu:
            return 0
        requested, device = self.job.resources, self.config.device.device
        if requested.gpus is not None:
            return requested.gpus
        return {"cpu": 0, "cuda": requested.processes}.get(device, None if requested.processes == 1 else 0)

    @property
    def processes(self) -> int:
        """Number of processes of the training; each has its own GPU, or all run on the CPU."""
        return max(self.job.resources.processes, self.gpus or 1) if KINDS[self.kind].writes_in_run else 1

    @property
    def record(self) -> dict[str, Any]:
        """The experiment as the queue stores it, with the options of the supervisor in section `job`."""
        tree = self.config.model_dump(mode="json", exclude_unset=True)
        job: dict[str, Any] = {"resources": {"processes": self.processes}} if self.processes > 1 else {}
        options = self.job.model_dump(mode="json", include={*KINDS[self.kind].options})
        job |= {name: value for name, value in options.items() if value}
        return {**tree, "job": job} if job else tree


def parse_spec(tree: Mapping[str, Any], *, run: str | None = None, data_root: Path | None = None) -> JobSpec:
    """Parse and check a job request.

    Args:
        tree: Sections of the experiment, and `job`.
        run: New name of the run; None keeps that of the tree.
        data_root: Data root; a ``file:`` source must be below its ``uploads``. None refuses such sources.

    Returns:
        The request.

    Raises:
        InvalidParameter: `run` is not a valid name, or the job has no run.
        UnknownPreset: There is no such preset.
        InvalidConfig: The tree is invalid; the error contains every problem.
    """
    tree = normalized(tree, schema_of(JobRequest))
    job, problems = _parse_job_section(tree)
    merged = {key: value for key, value in tree.items() if key != "job"}
    if job.preset is not None:
        merged = merge_patch(preset_tree(job.preset), merged)
    merged, replaced = _without_paths(merged)
    _refuse_run_name(job, run)
    renamed = {} if run is None else {"experiment_name": checked_name("run", run)}
    parsed, more = _parse_experiment(merged)
    if parsed is not None:
        more += _contradictions(job, parsed.config, data_root)
    if problems or more or parsed is None:
        raise InvalidConfig((*problems, *more))
    kind = _kind_of(job, parsed.config)
    config = _CONFIG_PARTS[kind.config](parsed.config.model_copy(update=renamed))
    has_data = kind.writes_in_run or "data" in config.model_fields_set
    spec = JobSpec(
        kind.name,
        config.experiment_name if kind.has_run else None,
        config,
        job,
        dataset=config.data.dataset_name if has_data else None,
    )
    if kind.config != "experiment":  # the other warnings are about sections that the job does not use
        return replace(spec, warnings=replaced)
    return replace(spec, warnings=(*parsed.warnings, *replaced, *_idle_gpus(spec)))


def processes_of(record: Mapping[str, Any]) -> int:
    """Read the number of processes of a training.

    Args:
        record: The experiment as the queue stores it.

    Returns:
        Number of processes, at least 1.
    """
    processes: int = record.get("job", {}).get("resources", {}).get("processes", 1)
    return processes


def options_of(kind: str, record: Mapping[str, Any]) -> dict[str, str]:
    """Read the options of a job's program.

    Args:
        kind: Kind of the job.
        record: The experiment as the queue stores it.

    Returns:
        Value by option, an object as JSON; options that are not set are omitted.
    """
    job = record.get("job", {})
    given = {name: job[name] for name in KINDS[kind].options if name in job}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}


# --- parts of a request ----------------------------------------------------------------------------------------------


class _Envelope(Config):
    job: JobSection = JobSection()


def _parse_job_section(tree: Mapping[str, Any]) -> tuple[JobSection, list[FieldProblem]]:
    """Parse section `job`; an invalid section is replaced by the default with the same preset, if that is valid."""
    try:
        job = _Envelope.model_validate({"job": tree["job"]} if "job" in tree else {}).job
    except ValidationError as error:
        section = tree["job"]
        preset = section.get("preset") if isinstance(section, dict) else None
        fallback = JobSection(preset=preset) if isinstance(preset, str) and _is_preset_name(preset) else JobSection()
        return fallback, list(field_errors(error, _Envelope))
    return job, []


def _is_preset_name(text: str) -> bool:
    try:
        return bool(JobSection(preset=text))
    except ValidationError:
        return False


def _without_paths(tree: Tree) -> tuple[Tree, tuple[ConfigWarning, ...]]:
    """Remove the paths of the author's machine: all files are below the data root."""
    found = [(name, key) for name, key in _PATHS if isinstance(_section(tree, name).get(key), str)]
    if not found:
        return tree, ()
    kept = {name: {key: value for key, value in tree[name].items() if (name, key) not in found} for name, _ in found}
    meant = [place for place in found if not _PATHS[place].fullmatch(portable(tree[place[0]][place[1]]).as_posix())]
    names = ", ".join(f"{name}.{key}" for name, key in meant)
    warning = ConfigWarning("paths_replaced", f"{names}: replaced by the directories of the data root")
    return {**tree, **kept}, (warning,) if meant else ()


def _section(tree: Tree, name: str) -> Tree:
    section = tree.get(name)
    return section if isinstance(section, dict) else {}


def _refuse_run_name(job: JobSection, run: str | None) -> None:
    if run is None or job.kind is None or KINDS[job.kind].has_run:
        return
    advice = "; data.dataset is the name of the dataset" if KINDS[job.kind].makes == "dataset" else ""
    raise InvalidParameter(f"run {run!r}: a {job.kind} job makes no run{advice}")


def _parse_experiment(tree: Tree) -> tuple[ParsedConfig | None, list[FieldProblem]]:
    try:
        return parse_config(tree), []
    except InvalidConfig as error:
        return None, list(error.problems)


def _kind_of(job: JobSection, config: ExperimentConfig) -> JobKind:
    return KINDS[job.kind or kind_without_name(trains=config.execution.train)]


def _dataset_part(config: ExperimentConfig) -> ExperimentConfig:
    return DatasetSpec.of_job(config).as_config()


def _checkpoint_part(config: ExperimentConfig) -> ExperimentConfig:
    """Keep the run and the checkpoint, by file name if the reference is valid."""
    reference = config.testing.checkpoint_path
    file = checkpoint_file_name(reference) or reference
    return parse_config({"experiment_name": config.experiment_name, "testing": {"checkpoint_path": file}}).config


def _run_part(config: ExperimentConfig) -> ExperimentConfig:
    return parse_config({"experiment_name": config.experiment_name}).config


def _device_part(config: ExperimentConfig) -> ExperimentConfig:
    """Keep the run, and what the request says of the device."""
    tree = config.model_dump(mode="json", include={"experiment_name", "device"}, exclude_unset=True)
    return parse_config(tree).config


_CONFIG_PARTS: Mapping[str, Callable[[ExperimentConfig], ExperimentConfig]] = {  # by `JobKind.config`
    "experiment": lambda config: config,
    "dataset": _dataset_part,
    "checkpoint": _checkpoint_part,
    "run": _run_part,
    "device": _device_part,
}


def _idle_gpus(spec: JobSpec) -> Iterator[ConfigWarning]:
    gpus, processes = spec.gpus or 0, spec.processes
    if gpus > processes:
        yield ConfigWarning("gpus_idle", f"resources.gpus {gpus}: a {spec.kind} job uses one GPU; the others stay idle")
    if processes > 1 and spec.job.resources.gpus is None and not gpus and spec.config.device.device == "auto":
        detail = f"resources.processes {processes} run on the CPU; resources.gpus {processes} gives each process a GPU"
        yield ConfigWarning("processes_on_cpu", detail)


# --- contradictions in a request whose parts are valid ---------------------------------------------------------------


def _contradictions(job: JobSection, config: ExperimentConfig, data_root: Path | None) -> Iterator[FieldProblem]:
    kind = _kind_of(job, config)
    yield from _source_problems("/data/source", config.data.source, data_root)
    yield from _model_problems(job, data_root)
    yield from _option_problems(job, kind)
    yield from _missing_options(job, kind)
    yield from _kind_problems(job, kind, config)
    yield from _process_problems(job, kind, config)


def _model_problems(job: JobSection, data_root: Path | None) -> Iterator[FieldProblem]:
    if job.source is not None and not job.source.startswith("file:"):
        detail = f"{job.source!r} is not file:uploads/PATH, a folder or an archive below the data root"
        yield FieldProblem("/job/source", detail, job.source, ("file:uploads/NAME",))
    else:
        yield from _source_problems("/job/source", job.source, data_root)


def _source_problems(pointer: str, source: str | None, data_root: Path | None) -> Iterator[FieldProblem]:
    if source is None:
        return
    if "\0" in source or not _is_unicode(source):
        yield FieldProblem(pointer, f"{source!r} contains a character that is not allowed in a name", source)
        return
    if not source.startswith("file:"):
        return
    uploads = (data_root / "uploads").resolve() if data_root is not None else None
    path = portable(source.removeprefix("file:"))
    if uploads is None or not ((data_root or Path()) / path).resolve().is_relative_to(uploads):
        detail = f"{source!r} is not below the data root's uploads; copy the file there and set file:uploads/NAME"
        yield FieldProblem(pointer, detail, source, ("file:uploads/NAME",))


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)  # JSON can encode a lone surrogate


def _option_problems(job: JobSection, kind: JobKind) -> Iterator[FieldProblem]:
    for other in KINDS.values():
        for name, reason in other.options.items():
            value = getattr(job, name)
            if value is not None and name not in kind.options:
                yield FieldProblem(f"/job/{name}", f"{reason}; leave it out", value)


def _missing_options(job: JobSection, kind: JobKind) -> Iterator[FieldProblem]:
    for name, wanted in kind.needed.items():
        if getattr(job, name) is None:
            yield FieldProblem(f"/job/{name}", f"{kind.title} needs a {name}: {wanted}")


def _kind_problems(job: JobSection, kind: JobKind, config: ExperimentConfig) -> Iterator[FieldProblem]:
    if not kind.uses_gpu and job.resources.gpus:
        detail = f"gpus {job.resources.gpus}: {kind.title} uses none; leave it out"
        yield FieldProblem("/job/resources/gpus", detail, job.resources.gpus, (0,))
    if kind.config == "dataset" and config.data.source is None:
        detail = f"{kind.title} needs a source of documents"
        yield FieldProblem("/data/source", detail, None, SOURCE_SYNTAX)
    if kind.trains not in {None, config.execution.train}:
        derived = kind_without_name(trains=config.execution.train)
        trains = shown(config.execution.train)
        detail = f"{kind.name!r} contradicts execution.train {trains}, which makes it {derived!r}"
        yield FieldProblem("/job/kind", detail, kind.name, (derived,))


def _process_problems(job: JobSection, kind: JobKind, config: ExperimentConfig) -> Iterator[FieldProblem]:
    gpus, processes = job.resources.gpus or 0, job.resources.processes
    trains = config.execution.train and kind.has_run
    if processes > 1 and not trains:
        yield FieldProblem("/job/resources/processes", "a job without training runs in one process", processes, (1,))
    elif processes > 1 and gpus not in {0, processes}:
        detail = f"{processes} is not resources.gpus {gpus}: each process uses one GPU; with 0 GPUs all use the CPU"
        yield FieldProblem("/job/resources/processes", detail, processes, (gpus,))
    elif trains and max(processes, gpus) > 1:
        yield from check_batch_divides(config.training, max(processes, gpus))
