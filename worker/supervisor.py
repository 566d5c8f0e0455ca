"""Runs one claimed job: starts its child process, renews the lease, mirrors its events and stops it on request.

The child does not know its supervisor: it saves and exits on SIGTERM, and writes its outcome to disk. A thread of its
own renews the lease, so that nothing that the supervisor does delays a heartbeat.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self

from model_core.config import ExperimentConfig
from model_core.config_loader import parse_config, to_yaml
from model_core.errors import BAD_INPUT, BUSY, FAILED, STOPPED, DiskFull, InvalidConfig, NotAvailable
from model_core.storage.files import is_disk_full, write_text
from worker.child_process import Child, environment
from worker.event_mirror import Mirror
from worker.jobs.errors import QueueUnavailable
from worker.jobs.kinds import KINDS, argv
from worker.jobs.recovery import write_job_file
from worker.jobs.redis_client import retry_until_available
from worker.jobs.schemas import Claim, JobError, Outcome, WorkerView
from worker.jobs.settings import WorkerSettings
from worker.jobs.spec import options_of, processes_of
from worker.jobs.worker_store import WorkerStore

log = logging.getLogger(__name__)


StopReason = Literal["fenced", "cancel", "pause", "worker stopping", "stalled"]
_POLL_S = 0.1


class Lease:
    """Context that sends the heartbeat of a claim from a thread.

    Args:
        store: Receives the heartbeats.
        claim: The job and its attempt.
        worker: Description of the worker, shown with the job.
        interval_s: Seconds between heartbeats.

    Attributes:
        desired: Answer to the last heartbeat: ``run``, ``pause``, ``cancel`` or ``fenced`` (the lease is lost).
    """

    def __init__(self, store: WorkerStore, claim: Claim, worker: WorkerView, interval_s: float) -> None:
        self._store, self._claim, self._worker, self._interval_s = store, claim, worker, interval_s
        self.desired = "run"
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lease-{claim.id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.is_set() and self.desired != "fenced":
            try:
                self.desired = self._store.heartbeat(self._claim, self._worker)
                wait_s = self._interval_s
            except QueueUnavailable as error:
                log.warning("heartbeat failed job_id=%s reason=%s", self._claim.id, error)
                wait_s = min(1.0, self._interval_s)  # the training continues meanwhile
            except Exception:  # the edge of a thread: without heartbeats another worker would take the job
                log.exception("heartbeat failed job_id=%s", self._claim.id)
                wait_s = self._interval_s
            self._closed.wait(wait_s)


def supervise(
    claim: Claim,
    *,
    store: WorkerStore,
    settings: WorkerSettings,
    worker: WorkerView,
    gpus: tuple[int, ...],
    threads: int,
    stopping: Callable[[], bool],
) -> Outcome | None:
    """Run a job to the end of this attempt.

    Args:
        claim: The job and its attempt.
        store: Receives events and heartbeats.
        settings: Settings of the worker.
        worker: Description of the worker, shown with the job.
        gpus: Indices of the GPUs that the job may use.
        threads: CPU threads that the processes of the job share.
        stopping: True once the worker shuts down: the child saves, and another worker continues.

    Returns:
        How the attempt ended, once its processes have exited; None if another worker has taken the job.
    """
    if claim.kind not in KINDS:
        unknown = f"this worker knows no {claim.kind!r} jobs"
        hint = "a newer version queued it; update the worker, then retry"
        return Outcome("failed", unknown, JobError(code=NotAvailable.code, detail=unknown, hint=hint))
    try:
        config = parse_config(claim.config).config
    except InvalidConfig as error:
        return Outcome("failed", str(error), JobError(code=error.code, detail=str(error)))
    mirror = Mirror(store, claim, settings.layout, config.training.total_batch_size)
    child = _start(claim, config, settings, gpus, threads)
    device = f"cuda:{','.join(map(str, gpus))}" if gpus else "cpu"
    shown = worker.model_copy(update={"device": device, "pid": child.pid})
    log.info("child started job_id=%s attempt=%d pid=%d device=%s", claim.id, claim.attempt, child.pid, device)
    try:
        with Lease(store, claim, shown, settings.beat_s) as lease:
            stop_reason = _watch(child, mirror, lease, settings, stopping)
            code = child.close()
            log.info("child ended job_id=%s code=%d reason=%s", claim.id, code, stop_reason)
            if stop_reason == "fenced":
                return None
            _send_remaining_events(mirror, claim, stopping)
    finally:
        child.kill()
    outcome = outcome_of(
        code,
        mirror.outcome(),
        stop_reason=stop_reason,
        last_line=child.last_line(),
        job_id=claim.id,
        stall_s=settings.stall_s,
    )
    return or_disk_full(outcome, settings.data)


def outcome_of(
    code: int,
    record: dict[str, Any] | None,
    *,
    stop_reason: StopReason | None,
    last_line: str,
    job_id: str,
    stall_s: float,
) -> Outcome:
    """Decide how an attempt ended.

    Args:
        code: Exit code of the child, negative for a signal.
        record: Content of its outcome.json, if this attempt wrote one.
        stop_reason: Why the supervisor asked it to stop, if it did.
        last_line: Last line of its output.
        job_id: The job, for the hint to its logs.
        stall_s: Seconds that a child may go without an event.

    Returns:
        The outcome. A recorded one counts more than the exit code.
    """
    recorded = record["outcome"] if record else None
    if record and recorded == "failed":
        error = JobError.model_validate(record["error"])
        return Outcome("failed", error.detail, error)
    if recorded == "succeeded":
        return Outcome("succeeded", "finished")
    if stop_reason == "stalled":
        reason, hint = f"no event for {stall_s:g} s", f"its stacks: GET /jobs/{job_id}/logs?source=process"
        return Outcome("crashed", reason, JobError(code="stalled", detail=reason, hint=hint))
    if code == BUSY:
        return Outcome("busy", "another process holds the run")
    if stop_reason is not None:
        return Outcome("stopped", stop_reason)
    if recorded == "stopped" or code == STOPPED:
        # a crash, so that the crash budget ends a job whose child always stops unasked
        by = f" ({record['reason']})" if record and record.get("reason") else ""
        return Outcome("crashed", f"the process stopped unasked{by}")
    if code in {FAILED, BAD_INPUT} and last_line.startswith("error: "):
        detail = last_line.removeprefix("error: ")
        return Outcome(
            "failed", detail, JobError(code="invalid_config" if code == BAD_INPUT else "internal_error", detail=detail)
        )
    ended = f"the process was ended by {signal.Signals(-code).name}" if code < 0 else f"the process exited with {code}"
    return Outcome("crashed", f"{ended}: {last_line}" if last_line and code >= 0 else ended)


def or_disk_full(outcome: Outcome, data: Path) -> Outcome:
    """Explain a crash by a full disk, where the disk is too full for the child to have written its error.

    Args:
        outcome: How the attempt ended, as far as it is known.
        data: Data root.

    Returns:
        The outcome; `disk_full` if it has no other explanation and no space is left.
    """
    is_unexplained = outcome.result == "crashed" or (outcome.error and outcome.error.code == "internal_error")
    if not is_unexplained or not is_disk_full(data):
        return outcome
    detail = f"no space is left in the data root: {outcome.reason}"
    return Outcome("failed", detail, JobError(code=DiskFull.code, detail=detail, hint="free some, then retry"))


def _start(
    claim: Claim, config: ExperimentConfig, settings: WorkerSettings, gpus: tuple[int, ...], threads: int
) -> Child:
    data = settings.data.resolve()
    directory = data / "jobs" / claim.id
    write_job_file(directory, claim, "running")
    write_text(directory / "config.yaml", to_yaml(config, written_only=True))
    processes = processes_of(claim.config)
    command = argv(
        claim.kind,
        run=claim.run or claim.dataset or "",
        job_id=claim.id,
        attempt=claim.attempt,
        data=data,
        modules=settings.kind_modules,
        seq_after=claim.seq_after,
        colour=claim.request.get("colour"),
        processes=processes,
        options=options_of(claim.kind, claim.config),
    )
    env = environment(os.environ, gpus, threads=max(1, threads // processes))
    return Child(command, directory=data, log=directory / "child.log", env=env)


def _send_remaining_events(mirror: Mirror, claim: Claim, stopping: Callable[[], bool]) -> None:
    try:
        retry_until_available(mirror.drain, stopping)
    except (OSError, ValueError) as error:  # missing events do not change the outcome
        log.warning("events not all sent job_id=%s reason=%s", claim.id, error)


def _watch(
    child: Child, mirror: Mirror, lease: Lease, settings: WorkerSettings, stopping: Callable[[], bool]
) -> StopReason | None:
    """Wait until the child has exited.

    Returns:
        Why it was asked to stop, if it was.
    """
    stop_reason: StopReason | None = None
    deadline = float("inf")
    while child.exit_code() is None:
        mirror.pump()
        reason = _requested_stop(mirror, lease, settings.stall_s, stopping)
        if reason == "fenced" or (stop_reason is None and reason is not None):
            if stop_reason is None:
                if reason == "stalled":
                    child.dump_stacks()  # before SIGTERM makes it leave the place where it hangs
                child.ask_to_stop()
                deadline = time.monotonic() + settings.stop_grace_s
            stop_reason = reason
        if time.monotonic() > deadline:
            child.kill()
        time.sleep(_POLL_S)
    return stop_reason


def _requested_stop(mirror: Mirror, lease: Lease, stall_s: float, stopping: Callable[[], bool]) -> StopReason | None:
    desired = {mirror.desired, lease.desired}
    if "fenced" in desired:
        return "fenced"
    if "cancel" in desired:
        return "cancel"
    if "pause" in desired:
        return "pause"
    if stopping():
        return "worker stopping"
    return "stalled" if time.monotonic() - mirror.last_event_at > stall_s else None
