"""What the service answered, for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from headcount.client import Client, Json
from headcount.follow import duration, number

_WIDTH = 150


def job_table(jobs: Iterable[Json], *, has_more: bool) -> None:
    """Print jobs, one a row."""
    table = Table("job", "kind", "run", "status", "step", "loss", "created", box=None)
    for job in jobs:
        progress = job["progress"]
        loss = "" if progress["loss"] is None else number(progress["loss"])
        table.add_row(job["id"], job["kind"], job["run"], job["status"], _steps(job), loss, job["created_at"])
    console = _console()
    console.print(table)
    if has_more:
        console.print("there are more: --limit, --status, --run")


def job_card(job: Json) -> None:
    """Print one job, a fact a line."""
    table = Table(show_header=False, box=None)
    for name, value in _facts(job):
        table.add_row(name, value)
    _console().print(table)


def save_attention(client: Client, run: str, example: str, checkpoint: str, directory: Path) -> Iterator[Path]:
    """Fetch and write every picture of an example, yielding each file."""
    manifest = client.attention(run, example, checkpoint=checkpoint)
    directory.mkdir(parents=True, exist_ok=True)
    files = [f"layer{layer['layer']:02d}.png" for layer in manifest["layers"]]
    for file in files:
        (directory / file).write_bytes(client.picture(run, example, file, checkpoint=checkpoint))
        yield directory / file
    (directory / "sheet.png").write_bytes(client.picture(run, example, checkpoint=checkpoint))
    yield directory / "sheet.png"


def _console() -> Console:
    """At least as wide as a row with a whole job id, which somebody wants to copy."""
    console = Console(highlight=False, markup=False)
    return console if console.width >= _WIDTH else Console(highlight=False, markup=False, width=_WIDTH)


def _steps(job: Json) -> str:
    progress = job["progress"]
    return f"{progress['step']}/{progress['max_steps']}" if progress["max_steps"] else str(progress["step"])


def _facts(job: Json) -> Iterator[tuple[str, str]]:
    progress, worker, error, queue = job["progress"], job["worker"], job["error"], job["queue"]
    yield "job", job["id"]
    yield "run", f"{job['run']} ({job['kind']})"
    yield "status", f"{job['status']}, attempt {job['attempt']}"
    yield "step", _steps(job)
    for name in ("loss", "val_loss", "tokens_per_s"):
        if progress[name] is not None:
            yield name, number(progress[name])
    if progress["eta_s"] is not None and job["status"] == "running":
        yield "ETA", duration(progress["eta_s"])
    if queue:
        yield "queue", f"position {queue['position']}, {queue['jobs_ahead']} ahead"
    if worker:
        yield "worker", f"{worker['host']} {worker['device'] or ''} pid {worker['pid']}"
    if error:
        yield "error", f"{error['code']}: {error['detail']}" + (f"; {error['hint']}" if error.get("hint") else "")
    for change in job["history"]:
        yield change["time"], f"{change['from'] or '-'} -> {change['to']} ({change['reason']})"
    if job["allowed_actions"]:
        yield "allowed", ", ".join(job["allowed_actions"])
