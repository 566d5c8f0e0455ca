"""What people see of jobs, queue, workers, datasets, runs, checkpoints and metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from headcount.client import Json
from headcount.follow import made_by
from headcount.tables import Column, Row, print_card, print_table, print_text
from headcount.terminal import ago, duration, elapsed, local_time, number, size


def job_table(jobs: Sequence[Json], *, has_more: bool) -> None:
    """Print jobs, one per row, with the reason below each that failed.

    Args:
        jobs: The jobs of a page.
        has_more: Whether further pages exist.
    """
    columns = (
        Column("job", is_heading=True), Column("run or dataset", is_heading=True), Column("kind"), Column("status"),
        Column("step", is_number=True), Column("loss", is_number=True), Column("val loss", is_number=True),
        Column("took", is_number=True), Column("created"), Column("priority", is_number=True),
    )  # fmt: skip
    print_table(columns, [_job_row(job) for job in jobs])
    if has_more:
        print_text("there are more: --limit, --status, --run")


def job_card(job: Json) -> None:
    """Print one job, one fact per line.

    Args:
        job: The job.
    """
    print_card(_facts(job))


def queue_table(queue: Json) -> None:
    """Print the numbers of waiting and running jobs, and the next ones.

    Args:
        queue: The queue, as the service answered it.
    """
    waits = f"{queue['ready']} ready, {queue['waiting']} waiting for others"
    print_text(f"{queue['running']} running, {queue['queued']} queued: {waits}")
    if not queue["data"]:
        return
    columns = (
        Column("place", is_number=True), Column("job", is_heading=True), Column("run or dataset", is_heading=True),
        Column("kind"), Column("priority", is_number=True), Column("starts in"),
    )  # fmt: skip
    print_table(columns, [_queue_row(job) for job in queue["data"]])
    if len(queue["data"]) < queue["ready"]:
        print_text("there are more: --limit")


def worker_table(workers: Sequence[Json]) -> None:
    """Print workers, one per row, with their GPUs and jobs below them.

    Args:
        workers: The live workers.
    """
    if not workers:
        print_text("no worker is alive")
        return
    columns = (Column("worker", is_heading=True), Column("busy"), Column("GPUs"))
    rows = []
    for worker in workers:
        cells = (worker["id"], f"{worker['busy']}/{worker['slots']}", str(len(worker["gpus"]) or "none"))
        rows.append(Row(cells, (*map(_gpu, worker["gpus"]), *worker["jobs"])))
    print_table(columns, rows)


def dataset_table(datasets: Sequence[Json], *, has_more: bool) -> None:
    """Print datasets, one per row, with the reason below each that failed.

    Args:
        datasets: The datasets of a page.
        has_more: Whether further pages exist.
    """
    columns = (
        Column("dataset", is_heading=True), Column("state"), Column("source"), Column("documents", is_number=True),
        Column("tokens", is_number=True), Column("job"),
    )  # fmt: skip
    rows = []
    for one in datasets:
        counts = ["" if one[key] is None else f"{one[key]:,}" for key in ("documents", "tokens")]
        job = "" if one["state"] == "ready" else one["job"] or ""
        rows.append(Row((one["name"], one["state"], one["source"] or "", *counts, job), _reasons(one["error"])))
    print_table(columns, rows)
    if has_more:
        print_text("there are more: --limit")


def dataset_card(dataset: Json) -> None:
    """Print a dataset that is ready, and how its source was read.

    Args:
        dataset: The dataset.
    """
    from model_core.storage.dataset import describe_reading  # loads numpy

    print_text(f"{dataset['name']}  {dataset['state']}  {dataset['tokens'] or 0:,} tokens")
    for line in describe_reading(dataset.get("reading")):
        print_text(line)


def run_table(runs: Sequence[Json], *, has_more: bool) -> None:
    """Print runs, one per row, with the number and size of their checkpoints.

    Args:
        runs: The runs of a page.
        has_more: Whether further pages exist.
    """
    columns = (
        Column("run", is_heading=True), Column("status"), Column("step", is_number=True),
        Column("val loss", is_number=True), Column("checkpoints", is_number=True), Column("size", is_number=True),
        Column("created"),
    )  # fmt: skip
    rows = []
    for run in runs:
        step = "" if run["step"] is None else str(run["step"])
        best, total = _lowest([run["val_loss"]]), size(run["size_bytes"])
        count = str(run["checkpoint_count"])
        rows.append(Row((run["name"], run["status"], step, best, count, total, ago(run["created_at"]))))
    print_table(columns, rows)
    if has_more:
        print_text("there are more: --limit")


def run_card(run: Json) -> None:
    """Print one run: its model, data, result and checkpoints.

    Args:
        run: The run with its configuration.
    """
    print_card(_run_facts(run))
    if run["checkpoints"]:
        checkpoint_table(run["checkpoints"])


def checkpoint_table(checkpoints: Sequence[Json]) -> None:
    """Print checkpoints, one per row.

    Args:
        checkpoints: The checkpoints of a run.
    """
    columns = (
        Column("checkpoint", is_heading=True), Column("step", is_number=True), Column("val loss", is_number=True),
        Column("size", is_number=True), Column("holds"), Column("saved"), Column("pinned"),
    )  # fmt: skip
    rows = []
    for one in checkpoints:
        loss = "" if one["val_loss"] is None else number(one["val_loss"])
        holds, pinned = "full state" if one["full"] else "parameters", "yes" if one["pinned"] else ""
        rows.append(
            Row((one["file"], str(one["step"]), loss, size(one["size_bytes"]), holds, ago(one["created_at"]), pinned))
        )
    print_table(columns, rows)


def metrics_table(series: Mapping[str, Json]) -> None:
    """Print the curves of a job, one per row.

    Args:
        series: Steps and values by name.
    """
    if not series:
        print_text("no values yet")
        return
    columns = (
        Column("curve", is_heading=True), *(Column(name, is_number=True) for name in ("points", "first", "last")),
        Column("lowest", is_number=True), Column("at step", is_number=True),
    )  # fmt: skip
    rows = []
    for name, curve in series.items():
        values = curve["values"]
        points = zip(values, curve["steps"], strict=True)
        finite = [point for point in points if not isinstance(point[0], str)]  # nan and inf are texts
        lowest, step = min(finite) if finite else ("", "")
        ends = (number(values[0]), number(values[-1])) if values else ("", "")
        rows.append(Row((name, str(curve["points_total"]), *ends, number(lowest), str(step))))
    print_table(columns, rows)


def _job_row(job: Json) -> Row:
    losses = ["" if job["progress"][name] is None else number(job["progress"][name]) for name in ("loss", "val_loss")]
    took = elapsed(job.get("started_at"), job.get("finished_at")) if job["status"] != "queued" else ""
    priority = str(job["priority"]) if job["priority"] else ""
    cells = (job["id"], job["run"] or job["dataset"] or "", job["kind"], _status(job), _steps(job), *losses, took)
    return Row((*cells, ago(job["created_at"]), priority), _reasons(job["error"]))


def _queue_row(job: Json) -> Row:
    place = job["queue"] or {"position": "", "eta_s": None}
    made = job["run"] or job["dataset"] or ""
    return Row((str(place["position"]), job["id"], made, job["kind"], str(job["priority"]), _when(place["eta_s"])))


def _reasons(error: Json | None) -> tuple[str, ...]:
    """Why something failed, and what to do about it."""
    if not error:
        return ()
    detail = f"{error['code']}: {error['detail']}" if error.get("code") else str(error["detail"])
    return (f"{detail}; {error['hint']}" if error.get("hint") else detail,)


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
    memory = f"{gpu['memory_bytes'] / 2**30:.0f} GiB" if gpu.get("memory_bytes") else ""
    return "GPU " + " ".join(filter(None, (str(gpu["index"]), gpu["name"], memory, gpu.get("job") or "free")))


def _lowest(values: Sequence[Any]) -> str:
    finite = [value for value in values if isinstance(value, int | float)]
    return number(min(finite)) if finite else ""


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
    if took := elapsed(job.get("started_at"), job.get("finished_at")):
        yield "took", took
    if progress["eta_s"] is not None and job["status"] == "running":
        yield "ETA", duration(progress["eta_s"])
    yield from _circumstances(job)
    for attempt in job.get("attempts", ()):
        yield f"attempt {attempt['attempt']}", _attempt(attempt, job["run"])
    for change in job["history"]:
        yield local_time(change["time"]), f"{change['from'] or '-'} -> {change['to']} ({change['reason']})"
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
    for warning in job["warnings"]:
        yield "warning", warning["detail"]
    for name, value in job["metadata"].items():
        yield f"metadata {name}", value


def _attempt(attempt: Json, run: str | None) -> str:
    worker, origin = attempt["worker"] or {}, attempt["resumed_from"]
    ended = local_time(attempt["ended_at"]) if attempt["ended_at"] else "now"
    parts = [f"{local_time(attempt['started_at'])} to {ended}"]
    parts += [f"on {worker['host']} {worker.get('device') or ''}".rstrip()] if worker else []
    parts += [f"run {attempt['run']}"] if attempt["run"] != run else []
    parts += [f"from {origin['file']} at step {origin['step']}"] if origin else []
    parts += [f"to step {attempt['step']}"] if attempt["step"] is not None else []
    parts += [f"then {attempt['result']} ({attempt['reason']})"] if attempt["result"] else []
    return ", ".join(parts)


def _run_facts(run: Json) -> Iterator[tuple[str, str]]:
    model, data = run["config"]["model"], run["config"]["data"]
    heads = model["n_head_list"] or [model["n_head"]] * model["n_layer"]
    yield "run", run["name"]
    yield "status", f"{run['status']}, attempt {run['attempt']}"
    if run["job"]:
        yield "job", run["job"]
    yield "heads", " ".join(map(str, heads))
    yield "size", f"{model['n_layer']} layers of {model['n_embd']}, context {model['block_size']}"
    yield "data", data["dataset"] or data["train_file"]
    if run["created_at"]:
        yield "created", f"{local_time(run['created_at'])}, {ago(run['created_at'])}"
    if run["outcome"] and run["outcome"].get("error"):
        yield "error", "".join(_reasons(run["outcome"]["error"]))
