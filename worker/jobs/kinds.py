"""The kinds of jobs, as data: what differs from kind to kind is a field of its row in `KINDS`.

A new kind is a row here, the program of its child process, and a route that submits it. The program takes ``--config
--run --data-root --attempt --job-id``, and ``--record`` unless the job writes in its run. It writes events.jsonl and
outcome.json there, and exits 75 (stopped; what is done is saved) or 76 (another process holds the run).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

Resource = Literal["run", "dataset", "export", "ablation"]

LAUNCHER = "model_core.launch"  # starts the processes of one training, and ends them together

_IN_LUA = ("makes", "is_exclusive", "shares_identical", "index", "has_model")


@dataclass(frozen=True)
class JobKind:
    """One kind of job.

    Attributes:
        name: Value of ``job.kind``.
        title: Noun with its article, for error messages.
        module: Program of the job's child process.
        config: Part of the experiment that the job keeps: all of it, what describes a dataset, a run and one of its
            checkpoints, the name of a run, or that name and section `device`.
        trains: Value of ``execution.train`` that implies this kind when a request names none; None if none does.
        check: Lookup on disk before the job is queued; None if it needs nothing from there.
        makes: Resource that the job creates, also the field of the record that has its name; None if it only reads.
        is_exclusive: Whether an unfinished job reserves the name of what it makes.
        shares_identical: Whether a request gets the identical job that is under way.
        index: Redis key prefix of the list of jobs that make the same resource; None if there is no such list.
        counts: Key of its events that measures progress.
        uses_gpu: Whether it may be given a GPU.
        has_run: Whether the job names a run, which it makes or reads.
        has_model: Whether the job's own configuration has the model, so that the job shows model and colour of its run.
        writes_in_run: Whether its events and outcome are in the run that it makes, so that it may start over in a new
            run. Those of other jobs are in their own directories.
        options: Fields of the job section that only this kind takes, each with the reason why others are refused. Its
            program gets the option of the same name; of an object, as JSON.
        needed: Options without which a request is refused, each with what it should be.
    """

    name: str
    title: str
    module: str
    config: Literal["experiment", "dataset", "checkpoint", "run", "device"] = "experiment"
    trains: bool | None = None
    check: Literal["training", "test", "preparation", "export", "import", "ablation"] | None = None
    makes: Resource | None = None
    is_exclusive: bool = False
    shares_identical: bool = False
    index: str | None = None
    counts: Literal["step", "done"] = "step"
    uses_gpu: bool = True
    has_run: bool = True
    has_model: bool = False
    writes_in_run: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    needed: Mapping[str, str] = field(default_factory=dict)

    @property
    def makes_run(self) -> bool:
        """Whether the job creates a run."""
        return self.makes == "run"

    @property
    def has_steps(self) -> bool:
        """Whether progress is measured in optimizer steps."""
        return self.counts == "step"


KINDS: Mapping[str, JobKind] = {
    kind.name: kind
    for kind in (
        JobKind(
            "train",
            "a training",
            "model_core.train",
            trains=True,
            check="training",
            makes="run",
            is_exclusive=True,
            has_model=True,
            writes_in_run=True,
        ),
        JobKind("test", "a test", "model_core.train", trains=False, check="test", has_model=True),
        JobKind(
            "prepare",
            "a preparation",
            "model_core.data.prepare",
            config="dataset",
            check="preparation",
            makes="dataset",
            is_exclusive=True,
            shares_identical=True,
            index="makers:",
            counts="done",
            uses_gpu=False,
            has_run=False,
        ),
        JobKind(
            "export",
            "an export",
            "model_core.hf.job",
            config="checkpoint",
            check="export",
            makes="export",
            shares_identical=True,
            index="jobs:export:",
            counts="done",
            uses_gpu=False,
            options={"licence": "only an export writes a model card"},
        ),
        JobKind(
            "import",
            "an import",
            "model_core.hf.import_job",
            config="run",
            check="import",
            makes="run",
            is_exclusive=True,
            counts="done",
            uses_gpu=False,
            options={"source": "only an import reads a model from files"},
            needed={"source": "file:uploads/PATH, a folder or an archive below the data root"},
        ),
        JobKind(
            "ablate",
            "an ablation",
            "model_core.attention.heads.ablation_job",
            config="device",
            check="ablation",
            makes="ablation",
            shares_identical=True,
            index="jobs:ablation:",
            counts="done",
            options={"options": "only an ablation has options"},
        ),
    )
}

if TYPE_CHECKING:
    Kind = str
else:
    Kind = Literal[tuple(KINDS)]  # requests and their schema accept the names of the table, and nothing else


def kind_of(name: str) -> JobKind:
    """Look up the kind of a stored job.

    Args:
        name: Kind of the record, which another version may have written.

    Returns:
        The row of the table; for an unknown kind, one of a job that makes nothing.
    """
    return KINDS.get(name) or JobKind(name, "a job", "")


def maker_of(resource: Resource) -> str:
    """Look up which kind of job makes a resource.

    Args:
        resource: What is made.

    Returns:
        Name of the kind, the first in the table.
    """
    return next(kind.name for kind in KINDS.values() if kind.makes == resource)


def kind_without_name(*, trains: bool) -> str:
    """Derive the kind of a request that names none.

    Args:
        trains: Its ``execution.train``.

    Returns:
        Name of the kind.
    """
    return next(kind.name for kind in KINDS.values() if kind.trains == trains)


def as_lua() -> str:
    """Render the table for the Lua scripts.

    Returns:
        Lua code that defines `KINDS`, and `DATASET_MAKER`, the kind of job that makes a dataset.
    """
    rows = ", ".join(f"{name}={{{', '.join(_lua_fields(kind))}}}" for name, kind in KINDS.items())
    return f"local KINDS = {{{rows}}}\nlocal DATASET_MAKER = '{maker_of('dataset')}'"


def argv(
    kind: str,
    *,
    run: str,
    job_id: str,
    attempt: int,
    data: Path,
    modules: Mapping[str, str],
    seq_after: int = 0,
    colour: int | None = None,
    processes: int = 1,
    options: Mapping[str, str] = MappingProxyType({}),
) -> list[str]:
    """Build the command line of a job's child process.

    Args:
        kind: Kind of the job.
        run: Run that it makes or reads; for a preparation, the dataset that it makes.
        job_id: Id of the job.
        attempt: Number of this attempt.
        data: Data root.
        modules: Program by kind, in place of the one in the table.
        seq_after: Number of the job's last event in the run that this one replaces.
        colour: Colour of the run that the job makes; None leaves it to the service.
        processes: Number of processes that train together.
        options: Values of the kind's options.

    Returns:
        The command line.
    """
    directory = data / "jobs" / job_id
    module = modules.get(kind) or KINDS[kind].module
    several = [LAUNCHER, "--processes", str(processes), "--"] if processes > 1 else []
    command = [sys.executable, "-P", "-m", *several, module, "--config", str(directory / "config.yaml"), "--run", run]
    command += ["--data-root", str(data), "--attempt", str(attempt), "--job-id", job_id]
    command += ["--seq-after", str(seq_after)] if seq_after else []
    if colour is not None and KINDS[kind].writes_in_run:
        command += ["--colour", str(colour)]
    for name, value in options.items():
        command += [f"--{name}", value]
    return command if KINDS[kind].writes_in_run else [*command, "--record", str(directory)]


def _lua_fields(kind: JobKind) -> Iterator[str]:
    for name in _IN_LUA:
        value = getattr(kind, name)
        if value:
            yield f"{name}=true" if value is True else f"{name}='{value}'"
