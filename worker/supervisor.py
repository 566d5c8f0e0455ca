"""Runs one claimed job: starts its child, renews the lease, mirrors its events, ends it when it must end.

The child knows nothing of this; it saves and leaves on SIGTERM, and writes how it ended to disk. The lease is renewed
by a thread of its own, so that nothing the supervisor does can delay it.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self

from model_core.config import ExperimentConfig
from model_core.config_loader import parse_config, to_yaml
from model_core.errors import BAD_INPUT, BUSY, FAILED, STOPPED, InvalidConfig, NotAvailable
from model_core.storage.files import write_text
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


class Lease:
    """Beats while it is entered.

    Attributes:
        desired: What the last beat said: ``run``, ``pause``, ``cancel`` or ``fenced``.
    """

    def __init__(self, store: WorkerStore, claim: Claim, worker: WorkerView, every_s: float) -> None:
        self._store, self._claim, self._worker, self._every_s = store, claim, worker, every_s
        self.desired = "run"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name=f"lease-{claim.id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _beat_on(self) -> None:
        while not self._over.is_set() and self.desired != "fenced":
            try:
                self.desired = self._store.heartbeat(self._claim, self._worker)
                wait_s = self._every_s
            except QueueUnavailable as error:
                log.warning("beat not heard job_id=%s reason=%s", self._claim.id, error)
                wait_s = min(1.0, self._every_s)  # training goes on meanwhile
            except Exception:  # the edge of a thread: without beats another worker would take the job
                log.exception("beat failed job_id=%s", self._claim.id)
                wait_s = self._every_s
            self._over.wait(wait_s)


StopReason = Literal["fenced", "cancel", "pause", "worker stopping", "stalled"]
_POLL_S = 0.1
_LEAST_FREE_BYTES = 1 << 20


def supervise(
    claim: Claim,
    *,
    store: WorkerStore,
    settings: WorkerSettings,
    worker: WorkerView,
    gpus: tuple[int, ...],
    stopping: Callable[[], bool],
) -> Outcome | None:
    """Run a job to the end of this attempt.

    Args:
        claim: The job.
        store: Where it is reported.
        settings: The worker's.
        worker: Who runs it.
        gpus: GPU indices that it may use.
        stopping: Whether the worker leaves: the child saves, and another worker goes on.

    Returns:
        How it ended, once its process is gone; None if the job was taken away meanwhile.
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
    child = _start(claim, config, settings, gpus)
    device = f"cuda:{','.join(map(str, gpus))}" if gpus else "cpu"
    shown = worker.model_copy(update={"device": device, "pid": child.pid})
    log.info("child started job_id=%s attempt=%d pid=%d device=%s", claim.id, claim.attempt, child.pid, device)
    try:
        with Lease(store, claim, shown, settings.beat_s) as lease:
            asked = _watch(child, mirror, lease, settings, stopping)
            code = child.close()
            log.info("child ended job_id=%s code=%d asked=%s", claim.id, code, asked)
            if asked == "fenced":
                return None
            _tell_the_rest(mirror, claim, stopping)
    finally:
        child.kill()
    outcome = outcome_of(
        code, mirror.outcome(), asked=asked, last_line=child.last_line(), job_id=claim.id, stall_s=settings.stall_s
    )
    return _for_lack_of_space(outcome, settings.data)


def _start(claim: Claim, config: ExperimentConfig, settings: WorkerSettings, gpus: tuple[int, ...]) -> Child:
    data = settings.data.resolve()
    directory = data / "jobs" / claim.id
    write_job_file(directory, claim, "running")
    write_text(directory / "config.yaml", to_yaml(config, written_only=True))
    command = argv(
        claim.kind,
        run=claim.run or claim.dataset or "",
        job_id=claim.id,
        attempt=claim.attempt,
        data=data,
        modules=settings.kind_modules,
        seq_after=claim.seq_after,
        processes=processes_of(claim.config),
        options=options_of(claim.kind, claim.config),
    )
    return Child(command, directory=data, log=directory / "child.log", env=environment(os.environ, gpus))


def _tell_the_rest(mirror: Mirror, claim: Claim, stopping: Callable[[], bool]) -> None:
    try:
        retry_until_available(mirror.drain, stopping)
    except (OSError, ValueError) as error:  # what clients miss does not change how the job ended
        log.warning("events not all told job_id=%s reason=%s", claim.id, error)


def _watch(
    child: Child, mirror: Mirror, lease: Lease, settings: WorkerSettings, stopping: Callable[[], bool]
) -> StopReason | None:
    """Wait until the child is gone.

    Returns:
        Why it was asked to go, if it was.
    """
    asked: StopReason | None = None
    deadline = float("inf")
    while child.exit_code() is None:
        mirror.pump()
        reason = _why_stop(mirror, lease, settings.stall_s, stopping)
        if reason == "fenced" or (asked is None and reason is not None):
            if asked is None:
                if reason == "stalled":
                    child.dump_stacks()  # before it leaves the place where it hangs
                child.ask_to_stop()
                deadline = time.monotonic() + settings.stop_grace_s
            asked = reason
        if time.monotonic() > deadline:
            child.kill()
        time.sleep(_POLL_S)
    return asked


def _why_stop(mirror: Mirror, lease: Lease, stall_s: float, stopping: Callable[[], bool]) -> StopReason | None:
    wishes = {mirror.desired, lease.desired}
    if "fenced" in wishes:
        return "fenced"
    if "cancel" in wishes:
        return "cancel"
    if "pause" in wishes:
        return "pause"
    if stopping():
        return "worker stopping"
    return "stalled" if time.monotonic() - mirror.heard_at > stall_s else None


def _for_lack_of_space(outcome: Outcome, data: Path) -> Outcome:
    """The outcome, unless a disk so full that the child could not even say so explains it."""
    unexplained = outcome.result == "crashed" or (outcome.error and outcome.error.code == "internal_error")
    if not unexplained or shutil.disk_usage(data).free >= _LEAST_FREE_BYTES:
        return outcome
    detail = f"no space is left in the data root: {outcome.reason}"
    return Outcome("failed", detail, JobError(code="disk_full", detail=detail, hint="free some, then retry"))


def outcome_of(
    code: int,
    record: dict[str, Any] | None,
    *,
    asked: StopReason | None,
    last_line: str,
    job_id: str,
    stall_s: float,
) -> Outcome:
    """Decide how an attempt ended.

    Args:
        code: The child's exit code.
        record: Its outcome file, if this attempt wrote one.
        asked: Why we asked it to stop, if we did.
        last_line: The last line of its output.
        job_id: Whose it is.
        stall_s: How long a child may be silent.
    """
    said = record["outcome"] if record else None
    if record and said == "failed":
        error = JobError.model_validate(record["error"])
        return Outcome("failed", error.detail, error)
    if said == "succeeded":
        return Outcome("succeeded", "finished")
    if asked == "stalled":
        reason, hint = f"no event for {stall_s:g} s", f"its stacks: GET /jobs/{job_id}/logs?source=process"
        return Outcome("crashed", reason, JobError(code="stalled", detail=reason, hint=hint))
    if code == BUSY:
        return Outcome("busy", "another process holds the run")
    if asked is not None:
        return Outcome("stopped", asked)
    if said == "stopped" or code == STOPPED:  # not our wish: a child that always does so must not go on for ever
        by = f" ({record['reason']})" if record and record.get("reason") else ""
        return Outcome("crashed", f"the process stopped unasked{by}")
    if code in {FAILED, BAD_INPUT} and last_line.startswith("error: "):
        detail = last_line.removeprefix("error: ")
        return Outcome(
            "failed", detail, JobError(code="invalid_config" if code == BAD_INPUT else "internal_error", detail=detail)
        )
    ended = f"the process was ended by {signal.Signals(-code).name}" if code < 0 else f"the process exited with {code}"
    return Outcome("crashed", f"{ended}: {last_line}" if last_line and code >= 0 else ended)
