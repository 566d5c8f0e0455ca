"""A job is an argv and a directory: which module does which kind of work.

Every module takes ``--config --run --data-root --attempt --job-id`` (and ``--record`` where the work is no training),
writes events.jsonl and outcome.json, and exits 75 (stopped with a checkpoint) or 76 (busy).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

MODULES: Mapping[str, str] = {
    "train": "model_core.train",
    "test": "model_core.train",
    "prepare": "model_core.data.prepare",
    "export": "model_core.hf.job",
}
WITHOUT_STEPS = frozenset({"prepare", "export"})  # they count something else, and use no GPU

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
        modules: Module by kind; it wins over `MODULES`.
        seq_after: Number of the job's last event in the run that this one replaces.
        processes: How many of it work together.
        licence: Of an export's model.
    """
    directory = data / "jobs" / job_id
    module = {**MODULES, **modules}[kind]
    several = [LAUNCHER, "--processes", str(processes), "--"] if processes > 1 else []
    command = [sys.executable, "-P", "-m", *several, module, "--config", str(directory / "config.yaml"), "--run", run]
    command += ["--data-root", str(data), "--attempt", str(attempt), "--job-id", job_id]
    command += ["--seq-after", str(seq_after)] if seq_after else []
    command += ["--licence", licence] if licence else []
    return command if kind == "train" else [*command, "--record", str(directory)]
