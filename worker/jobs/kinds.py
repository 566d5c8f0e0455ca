"""The kinds of jobs, as data: what differs from kind to kind is a field of its row in `KINDS`.

A job is an argv and a directory.
Every module takes ``--config --run --data-root --attempt --job-id`` (and ``--record`` where the work is no training),
writes events.jsonl and outcome.json, and exits 75 (stopped with a checkpoint) or 76 (busy).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Resource = Literal["run", "dataset", "export"]


@dataclass(frozen=True)
class JobKind:
    """One kind of job.

    Attributes:
        name: Value of ``job.kind``.
        title: Noun with its article, for error messages.
        module: Program of the job's child process.
        makes: Resource that the job creates; None if it only reads one. Also the field of the record that names it.
        is_exclusive: Whether a job that is not over reserves the name of what it makes.
        shares_identical: Whether a request gets the identical job that is under way.
        index: Redis key prefix of the list of jobs that make the same resource; None if there is no such list.
        counts: Key of its events that measures progress.
        uses_gpu: Whether it may be given a GPU.
        has_run: Whether the job names a run, which it makes or reads.
    """

    name: str
    title: str
    module: str
    makes: Resource | None = None
    is_exclusive: bool = False
    shares_identical: bool = False
    index: str | None = None
    counts: Literal["step", "done"] = "step"
    uses_gpu: bool = True
    has_run: bool = True

    @property
    def makes_run(self) -> bool:
        """Whether the job creates a run, writes its events there and may start over in a new one."""
        return self.makes == "run"

    @property
    def has_steps(self) -> bool:
        """Whether progress is measured in optimizer steps."""
        return self.counts == "step"


KINDS: Mapping[str, JobKind] = {
    kind.name: kind
    for kind in (
        JobKind("train", "a training", "model_core.train", makes="run", is_exclusive=True),
        JobKind("test", "a test", "model_core.train"),
        JobKind(
            "prepare",
            "a preparation",
            "model_core.data.prepare",
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
            makes="export",
            shares_identical=True,
            index="jobs:export:",
            counts="done",
            uses_gpu=False,
        ),
    )
}

_IN_LUA = ("makes", "is_exclusive", "shares_identical", "index")


def maker_of(resource: Resource) -> str:
    """Return the name of the kind of job that makes a resource."""
    return next(kind.name for kind in KINDS.values() if kind.makes == resource)


def as_lua() -> str:
    """Render the table for the scripts: `KINDS`, and the kind of a job that makes a dataset."""
    rows = ", ".join(f"{name}={{{', '.join(_lua_fields(kind))}}}" for name, kind in KINDS.items())
    return f"local KINDS = {{{rows}}}\nlocal DATASET_MAKER = '{maker_of('dataset')}'"


def _lua_fields(kind: JobKind) -> Iterator[str]:
    for field in _IN_LUA:
        value = getattr(kind, field)
        if value:
            yield f"{field}=true" if value is True else f"{field}='{value}'"


LAUNCHER = "model_core.launch"  # of several processes; it ends them together


def argv(
    kind: str,
    *,
    run: str,
    job_id: str,
    attempt: int,
    data: Path,
    modules: Mapping[str, str],
    seq_after: int = 0,
    processes: int = 1,
    licence: str | None = None,
) -> list[str]:
    """Command line of a job's child.

    Args:
        kind: What the job does.
        run: The run it makes or reads; of a preparation, the dataset it makes.
        job_id: Its id.
        attempt: The number of this process of the job.
        data: The data root.
        modules: Module by kind; it wins over the table.
        seq_after: Number of the job's last event in the run that this one replaces.
        processes: How many of it work together.
        licence: Of an export's model.

    Returns:
        The command line.
    """
    directory = data / "jobs" / job_id
    module = modules.get(kind) or KINDS[kind].module
    several = [LAUNCHER, "--processes", str(processes), "--"] if processes > 1 else []
    command = [sys.executable, "-P", "-m", *several, module, "--config", str(directory / "config.yaml"), "--run", run]
    command += ["--data-root", str(data), "--attempt", str(attempt), "--job-id", job_id]
    command += ["--seq-after", str(seq_after)] if seq_after else []
    command += ["--licence", licence] if licence else []
    return command if KINDS[kind].makes_run else [*command, "--record", str(directory)]
