"""Tables and files for people: jobs, queue, workers, datasets, attention pictures and cost reports."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from headcount.client import Client, Json
from headcount.follow import duration, made_by, number
from model_core.config_loader import read_config
from model_core.report import Report, build_report
from model_core.report import Table as ReportTable
from model_core.storage.dataset import dataset_of
from model_core.storage.files import Layout

_WIDTH = 150


def job_table(jobs: Sequence[Json], *, has_more: bool) -> None:
    """Print jobs, one per row, with a priority column if any job has one.

    Args:
        jobs: The jobs of a page.
        has_more: Whether further pages exist.
    """
    ranked = any(job["priority"] for job in jobs)
    table = Table(
        "job",
        "kind",
        "run or dataset",
        "status",
        "step",
        "loss",
        "created",
        *(["priority"] if ranked else []),
        box=None,
    )
    for job in jobs:
        loss = "" if job["progress"]["loss"] is None else number(job["progress"]["loss"])
        row = [job["id"], job["kind"], job["run"] or job["dataset"], _status(job), _steps(job), loss, job["created_at"]]
        table.add_row(*row, *([str(job["priority"])] if ranked else []))
    console = _console()
    console.print(table)
    if has_more:
        console.print("there are more: --limit, --status, --run")


def job_card(job: Json) -> None:
    """Print one job, one fact per line.

    Args:
        job: The job.
    """
    table = Table(show_header=False, box=None)
    for name, value in _facts(job):
        table.add_row(name, value)
    _console().print(table)


def queue_table(queue: Json) -> None:
    """Print the numbers of waiting and running jobs, and the next ones.

    Args:
        queue: The queue, as the service answered it.
    """
    console = _console()
    waits = f"{queue['ready']} ready, {queue['waiting']} waiting for others"
    console.print(f"{queue['running']} running, {queue['queued']} queued: {waits}")
    if not queue["data"]:
        return
    table = Table("place", "job", "kind", "run or dataset", "priority", "starts in", box=None)
    for job in queue["data"]:
        place = job["queue"] or {"position": "", "eta_s": None}
        made = job["run"] or job["dataset"]
        row = (str(place["position"]), job["id"], job["kind"], made, str(job["priority"]), _when(place["eta_s"]))
        table.add_row(*row)
    console.print(table)
    if len(queue["data"]) < queue["ready"]:
        console.print("there are more: --limit")


def worker_table(workers: Sequence[Json]) -> None:
    """Print workers, one per row, with their jobs and GPUs.

    Args:
        workers: The live workers.
    """
    if not workers:
        _console().print("no worker is alive")
        return
    table = Table("worker", "busy", "GPUs", "jobs", box=None)
    for worker in workers:
        gpus = "\n".join(_gpu(gpu) for gpu in worker["gpus"]) or "none"
        table.add_row(worker["id"], f"{worker['busy']}/{worker['slots']}", gpus, "\n".join(worker["jobs"]))
    _console().print(table)


def dataset_table(datasets: Sequence[Json], *, has_more: bool) -> None:
    """Print datasets, one per row.

    Args:
        datasets: The datasets of a page.
        has_more: Whether further pages exist.
    """
    table = Table("dataset", "state", "source", "documents", "tokens", "job", box=None)
    for one in datasets:
        counts = ["" if one[key] is None else f"{one[key]:,}" for key in ("documents", "tokens")]
        state = f"{one['state']}: {one['error']['detail']}" if one["error"] else one["state"]
        table.add_row(one["name"], state, one["source"] or "", *counts, one["job"] or "")
    console = _console()
    console.print(table)
    if has_more:
        console.print("there are more: --limit")


def save_attention(client: Client, run: str, example: str, checkpoint: str, directory: Path) -> Iterator[Path]:
    """Download every attention picture of an example.

    Args:
        client: Client of the service.
        run: Name of the run.
        example: Number of the test example.
        checkpoint: Selector of the checkpoint, such as `best`.
        directory: Where to write; created if missing.

    Returns:
        Iterator over the written files.
    """
    manifest = client.attention(run, example, checkpoint=checkpoint)
    directory.mkdir(parents=True, exist_ok=True)
    files = [f"layer{layer['layer']:02d}.png" for layer in manifest["layers"]]
    for file in files:
        (directory / file).write_bytes(client.picture(run, example, file, checkpoint=checkpoint))
        yield directory / file
    (directory / "sheet.png").write_bytes(client.picture(run, example, checkpoint=checkpoint))
    yield directory / "sheet.png"


def report(file: str, overrides: Sequence[str]) -> Report:
    """Calculate what a configuration costs.

    Args:
        file: Path of the configuration.
        overrides: Overrides, `K=V` each.

    Returns:
        The report.

    Raises:
        ConfigFileNotFound: There is no such file.
        InvalidConfig: The configuration is invalid.
    """
    parsed = read_config(file, overrides)
    root = os.environ.get("HEADCOUNT_DATA")
    layout = Layout.under(Path(root)) if root else Layout.of(parsed.config)
    return build_report(parsed, dataset_of(parsed.config, layout))


def print_report(report: Report, console: Console) -> None:
    """Print a report: tables, remarks and formulas.

    Args:
        report: The report.
        console: Where to print.
    """
    for table in report.tables():
        console.print(_drawn(table))
    for remark in report.remarks():
        console.print(remark, markup=False)
    for what, formula in report.budget.formulas.items():
        console.print(f"{what} = {formula}", markup=False, highlight=False, style="dim")


def _console() -> Console:
    """Console wide enough for a row with a full job id, so that the id can be copied."""
    console = Console(highlight=False, markup=False)
    return console if console.width >= _WIDTH else Console(highlight=False, markup=False, width=_WIDTH)


def _status(job: Json) -> str:
    if job["queue"]:
        return f"queued, place {job['queue']['position']}"
    if job["status"] == "queued" and job["waiting_for"]:
        return f"queued, waits for {len(job['waiting_for'])}"
    return str(job["status"])


def _steps(job: Json) -> str:
    progress = job["progress"]
    if progress["step"] is None:
        parts = [f"{progress['done'] or 0:,}", f"/{progress['of']:,}" if progress["of"] else "", progress["unit"] or ""]
        return f"{''.join(parts[:2])} {parts[2]}".rstrip()
    return f"{progress['step']}/{progress['max_steps']}" if progress["max_steps"] else str(progress["step"])


def _when(eta_s: Sequence[float] | None) -> str:
    return " to ".join(dict.fromkeys(duration(bound) for bound in eta_s)) if eta_s else "unknown"


def _gpu(gpu: Json) -> str:
    size = f"{gpu['memory_bytes'] / 2**30:.0f} GiB" if gpu.get("memory_bytes") else ""
    return " ".join(filter(None, (str(gpu["index"]), gpu["name"], size, gpu.get("job") or "free")))


def _facts(job: Json) -> Iterator[tuple[str, str]]:
    progress = job["progress"]
    yield "job", job["id"]
    what, _, name = made_by(job).partition(" ")
    yield what, f"{name} ({job['kind']})"
    if job["run"] and job.get("dataset"):
        yield "dataset", job["dataset"]
    yield "status", f"{job['status']}, attempt {job['attempt']}"
    yield "progress" if progress["step"] is None else "step", _steps(job)
    for name in ("loss", "val_loss", "tokens_per_s"):
        if progress[name] is not None:
            yield name, number(progress[name])
    if progress["eta_s"] is not None and job["status"] == "running":
        yield "ETA", duration(progress["eta_s"])
    yield from _circumstances(job)
    for attempt in job.get("attempts", ()):
        yield f"attempt {attempt['attempt']}", _attempt(attempt, job["run"])
    for change in job["history"]:
        yield change["time"], f"{change['from'] or '-'} -> {change['to']} ({change['reason']})"
    if job["allowed_actions"]:
        yield "allowed", ", ".join(job["allowed_actions"])


def _circumstances(job: Json) -> Iterator[tuple[str, str]]:
    worker, error, queue = job["worker"], job["error"], job["queue"]
    if job["priority"]:
        yield "priority", str(job["priority"])
    if queue:
        yield "queue", f"place {queue['position']}, {queue['jobs_ahead']} ahead; starts in {_when(queue['eta_s'])}"
    if job["waiting_for"]:
        yield "waits for", ", ".join(job["waiting_for"])
    if worker:
        yield "worker", f"{worker['host']} {worker['device'] or ''} pid {worker['pid']}"
    if error:
        yield "error", f"{error['code']}: {error['detail']}"
        if error.get("hint"):
            yield "hint", error["hint"]
    for name, value in job["metadata"].items():
        yield f"metadata {name}", value


def _attempt(attempt: Json, run: str | None) -> str:
    worker, origin = attempt["worker"] or {}, attempt["resumed_from"]
    parts = [f"{attempt['started_at']} to {attempt['ended_at'] or 'now'}"]
    parts += [f"on {worker['host']} {worker.get('device') or ''}".rstrip()] if worker else []
    parts += [f"run {attempt['run']}"] if attempt["run"] != run else []
    parts += [f"from {origin['file']} at step {origin['step']}"] if origin else []
    parts += [f"to step {attempt['step']}"] if attempt["step"] is not None else []
    parts += [f"then {attempt['result']} ({attempt['reason']})"] if attempt["result"] else []
    return ", ".join(parts)


def _drawn(table: ReportTable) -> Table:
    first, *others = table.head
    drawn = Table(title=table.title, title_justify="left", box=SIMPLE_HEAD, collapse_padding=True)
    drawn.add_column(first)
    for name in others:
        drawn.add_column(name, justify="right", overflow="fold")  # wraps in a narrow terminal instead of cutting digits
    for row in table.rows:
        drawn.add_row(*row)
    return drawn
