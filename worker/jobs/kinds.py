"""The kinds of jobs, as data: what differs from kind to kind is a field of its row in `KINDS`.

A job is an argv and a directory.
Every module takes ``--config --run --data-root --attempt --job-id`` (and ``--record`` where the work is no training),
writes events.jsonl and outcome.json, and exits 75 (stopped with a checkpoint) or 76 (busy).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class JobKind:
    """One kind of job.

    Attributes:
        name: Value of ``job.kind``.
        title: Noun with its article, for error messages.
        module: Program of the job's child process.
        makes: Resource that the job creates; None if it only reads one.
        counts: Key of its events that measures progress.
        uses_gpu: Whether it may be given a GPU.
        has_run: Whether the job names a run, which it makes or reads.
    """

    name: str
    title: str
    module: str
    makes: Literal["run", "dataset", "export"] | None = None
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
        JobKind("train", "a training", "model_core.train", makes="run"),
        JobKind("test", "a test", "model_core.train"),
        JobKind(
            "prepare",
            "a preparation",
            "model_core.data.prepare",
            makes="dataset",
            counts="done",
            uses_gpu=False,
            has_run=False,
        ),
        JobKind("export", "an export", "model_core.hf.job", makes="export", counts="done", uses_gpu=False),
    )
}

LAUNCHER = "model_core.launch"  # of several processes; it ends them together

STOPPED, BUSY, BAD_INPUT = 75, 76, 2  # exit codes of a child


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
