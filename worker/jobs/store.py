"""The job store: records in Redis, read and changed by the commands of commands.py.

`JobStore` runs any command. Its methods are operations that also look at the disk or take several commands. What only
workers do is in worker_store.py.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import redis

from model_core.errors import DatasetBusy, DatasetExists, InvalidData, InvalidParameter, RunBusy, RunExists
from model_core.storage.dataset import Dataset
from model_core.storage.events import Event, last_event
from model_core.storage.files import further_names
from model_core.storage.run import Run
from worker.jobs import commands
from worker.jobs.commands import ScriptCall, ScriptExecutor
from worker.jobs.errors import ActionNotAllowed, JobNotFound, PreconditionFailed
from worker.jobs.kinds import kind_of
from worker.jobs.redis_client import PREFIX, redis_errors
from worker.jobs.schemas import ActionResult, Job, JobDetail, QueueState, Rejection
from worker.jobs.serialization import JobPage, checked_id
from worker.jobs.settings import JobSettings
from worker.jobs.spec import MAX_METADATA, JobSpec
from worker.jobs.states import Action, allowed_actions

CHANGES_KEY = f"{PREFIX}changes"  # a bounded stream; every change of a job adds {job: id}

T = TypeVar("T")


class JobStore:
    """Job records, as clients see and change them. Every method raises `QueueUnavailable` when Redis is away.

    Args:
        client: Connection to Redis.
        settings: Where runs and datasets are.
    """

    def __init__(self, client: redis.Redis, settings: JobSettings) -> None:
        self._redis, self.settings = client, settings
        self._executor = ScriptExecutor(client)

    def run(self, call: ScriptCall[T]) -> T:
        """Run one command.

        Args:
            call: The command and its arguments.

        Returns:
            The parsed reply.
        """
        return self._executor.run(call)

    # --- read ------------------------------------------------------------------------------------------------

    def get(self, job_id: str) -> Job:
        """Read a job.

        Args:
            job_id: Id of the job.

        Returns:
            The job.

        Raises:
            JobNotFound: There is no such job.
        """
        return self.run(commands.job(job_id))

    def detail(self, job_id: str) -> JobDetail:
        """Read a job with its attempts.

        Args:
            job_id: Id of the job.

        Returns:
            The job.

        Raises:
            JobNotFound: There is no such job.
        """
        return self.run(commands.detail(job_id))

    def queue(self, limit: int = 20) -> QueueState:
        """Count queued and running jobs, and list the first ready ones.

        Args:
            limit: Most jobs of the list.

        Returns:
            The counts, and jobs in queue order.
        """
        counted = ("jobs:status:queued", "ready", "jobs:status:running", "jobs:status:stopping")
        with redis_errors(), self._redis.pipeline(transaction=False) as pipe:
            for name in counted:
                pipe.zcard(f"{PREFIX}{name}")
            pipe.zrange(f"{PREFIX}ready", 0, limit - 1)
            queued, ready, running, stopping, ids = pipe.execute()
        jobs = tuple(job for job in self.run(commands.jobs(ids)) if job.queue is not None)
        return QueueState(queued, ready, max(0, queued - ready), running + stopping, jobs)

    def events(self, job_id: str, after: int = 0, limit: int = 100) -> list[Event]:
        """Read the latest events of a job, which Redis keeps.

        Args:
            job_id: Id of the job.
            after: Only events with a greater ``seq``.
            limit: Most events.

        Returns:
            Events in order.
        """
        with redis_errors():
            start = f"({after}-0" if after else "-"
            entries: Any = self._redis.xrange(f"{PREFIX}job:{job_id}:events", start, "+", count=limit)
        return [json.loads(fields["event"]) for _, fields in entries]

    def time_s(self) -> float:
        """Read the server's clock.

        Returns:
            Seconds since the Unix epoch.
        """
        with redis_errors():
            seconds, microseconds = self._redis.time()
        return float(seconds) + microseconds / 1e6

    # --- names -----------------------------------------------------------------------------------------------

    def name_conflict(
        self, spec: JobSpec, rejection: Rejection, differs: str | None = None
    ) -> RunExists | DatasetExists:
        """Describe a submission whose name another job owns or the disk has.

        Args:
            spec: The job that was submitted.
            rejection: Why it was not recorded.
            differs: How the dataset on disk differs from the requested one.

        Returns:
            The error, with the next free name.
        """
        if rejection.why == "run_exists":
            assert spec.run is not None
            return RunExists(spec.run, self.next_free_run(spec.run))
        assert spec.dataset is not None
        why = f"{rejection.maker} makes it in another way" if rejection.maker else differs
        return DatasetExists(spec.dataset, self.next_free_dataset(spec.dataset), why or "it was made in another way")

    def next_free_run(self, run: str) -> str:
        """Find a free name for a run.

        Args:
            run: The name that is not free.

        Returns:
            The first of run-2, run-3 ... that neither a directory nor an active job has.
        """
        return next(self._free("run", run, self.settings.layout.run))

    def free_run(self, run: str) -> str:
        """Find a free name for a run, which may be the given one.

        Args:
            run: The preferred name.

        Returns:
            The first of run, run-2, run-3 ... that neither a directory nor an active job has.
        """
        with redis_errors():
            is_owned = self._redis.exists(f"{PREFIX}run:{run}")
        return self.next_free_run(run) if is_owned or self.settings.layout.run(run).exists() else run

    def next_free_dataset(self, dataset: str) -> str:
        """Find a free name for a dataset.

        Args:
            dataset: The name that is not free.

        Returns:
            The first of dataset-2, dataset-3 ... that neither a directory nor an active job has.
        """
        return next(self._free("dataset", dataset, self.settings.layout.dataset))

    def _free(self, resource: Literal["run", "dataset"], name: str, path_of: Callable[[str], Path]) -> Iterator[str]:
        for candidate in further_names(name):
            with redis_errors():
                is_owned = self._redis.exists(f"{PREFIX}{resource}:{candidate}")
            if not is_owned and not path_of(candidate).exists():
                yield candidate

    # --- act -------------------------------------------------------------------------------------------------

    def request_action(self, job_id: str, action: Action, *, run: str | None = None) -> ActionResult:
        """Request a change of status. Idempotent.

        A queued or paused job changes at once; a running one when its process ended. A job that is queued again looks
        at the jobs that it waits for, and fails at once if one of them will not succeed; a preparation that was lost
        is submitted anew, unless the dataset is ready.

        Args:
            job_id: Id of the job.
            action: The action.
            run: New run that a retry starts from scratch.

        Returns:
            The job, and whether the request changed something.

        Raises:
            JobNotFound: There is no such job.
            ActionNotAllowed: Its status does not allow the action.
            RunExists: Another job owns the run's name now.
            DatasetExists: Another job makes the dataset now.
        """
        before = self.get(job_id) if action in {"resume", "retry"} else None
        arguments: dict[str, Any] = {"id": checked_id(job_id), "action": action, "run": run}
        if before is not None:
            if kind_of(before.kind).writes_in_run:
                arguments |= {"last_seq": self._last_seq(before, run), "run": run or self._deleted_run(before)}
            arguments |= {"is_dataset_ready": self._is_dataset_ready(before)}
            arguments["preparation_id"] = commands.new_id()
        reply = self.run(ScriptCall("transitions.request_action", arguments, dict))
        match reply.get("error"):
            case "missing":
                raise JobNotFound(job_id)
            case "refused":
                raise ActionNotAllowed(reply["status"], action, allowed_actions(reply["status"]))
            case "run_exists":
                raise RunExists(reply["name"], self.next_free_run(reply["name"]))
            case "dataset_exists":
                name = reply["name"]
                raise DatasetExists(name, self.next_free_dataset(name), "another job is making it")
        return ActionResult(JobPage.of(reply).only(job_id), is_new=reply["is_new"])

    def _is_dataset_ready(self, job: Job) -> bool:
        """Whether the disk has the dataset that the job makes or reads. The job itself reports a damaged one."""
        if job.dataset is None:
            return False
        with contextlib.suppress(InvalidData):
            return not Dataset.named(job.dataset, self.settings.layout.dataset(job.dataset)).missing()
        return True

    def _deleted_run(self, job: Job) -> str | None:
        """Run of a job, if it was deleted since: the job begins it anew, and its events go on after the old ones."""
        is_over = job.terminal and job.attempt > 0 and job.run is not None
        return job.run if is_over and not self.settings.layout.run(job.run or "").exists() else None

    def _last_seq(self, job: Job, new_run: str | None) -> int:
        """Number of the last event of the job's run, which must be its own unless a new run replaces it."""
        assert job.run is not None
        run = Run(self.settings.layout.run(job.run))
        if not run.path.exists():
            return 0
        if run.attempt()["job_id"] != job.id:
            if job.terminal and new_run is None:
                raise RunExists(job.run, self.next_free_run(job.run))
            return 0
        last = last_event(run.events)
        return int(last["seq"]) if last else 0

    def retry(self, job_id: str, *, scratch: bool = False) -> ActionResult:
        """Run a failed job again.

        Args:
            job_id: Id of the job.
            scratch: In a new run, instead of from the last full state.

        Returns:
            The job, and whether the request changed something.

        Raises:
            JobNotFound: There is no such job.
            ActionNotAllowed: Its status does not allow it.
            RunExists: Another job owns the run's name now.
        """
        job = self.get(job_id)
        if not scratch or job.run is None or not kind_of(job.kind).writes_in_run or job.status != "failed":
            return self.request_action(job_id, "retry")
        if not self.settings.layout.run(job.run).exists():
            return self.request_action(job_id, "retry")  # it has made nothing yet
        for candidate in self._free("run", job.run, self.settings.layout.run):
            try:
                return self.request_action(job_id, "retry", run=candidate)
            except RunExists:
                continue  # another client took it in between
        raise AssertionError("names never end")

    def update(
        self,
        job_id: str,
        *,
        priority: int | None = None,
        metadata: Mapping[str, str | None] | None = None,
        expected: int | None = None,
    ) -> Job:
        """Change priority and metadata of a job, whatever its status.

        Args:
            job_id: Id of the job.
            priority: New priority; a queued job changes its position at once.
            metadata: Merged into the present metadata (RFC 7396): None removes a key.
            expected: Revision that the client has seen; None: any.

        Returns:
            The changed job.

        Raises:
            JobNotFound: There is no such job.
            PreconditionFailed: The job has another revision.
            InvalidParameter: There would be too many pairs.
        """
        while True:
            job = self.get(job_id)
            merged = {**job.metadata, **(metadata or {})}
            kept = {key: value for key, value in merged.items() if value is not None}
            if len(kept) > MAX_METADATA:
                raise InvalidParameter(f"metadata would have {len(kept)} pairs; at most {MAX_METADATA} are kept")
            arguments = {
                "id": job_id,
                "priority": job.priority if priority is None else priority,
                "metadata": json.dumps(kept),
                "revision": job.revision if expected is None else expected,
            }
            reply = self.run(ScriptCall("transitions.update", arguments, dict))
            if "error" not in reply:
                return JobPage.of(reply).only(job_id)
            if reply["error"] == "missing":
                raise JobNotFound(job_id)
            if expected is not None:
                raise PreconditionFailed(job_id, int(reply["revision"]))

    def mark_deleted(self, job_id: str, *, with_artifacts: bool) -> Job:
        """Begin to delete a job that is over: it accepts no action from now on, and `purge` removes it.

        Args:
            job_id: Id of the job.
            with_artifacts: Whether what it made is deleted too.

        Returns:
            The job.

        Raises:
            JobNotFound: There is no such job.
            ActionNotAllowed: It is not over.
            RunBusy: An active job uses its run.
            DatasetBusy: An active job uses the dataset that it made.
        """
        job = self.get(job_id)
        reply = self.run(ScriptCall("transitions.mark_deleted", {"id": job_id, "with_artifacts": with_artifacts}, dict))
        match reply.get("error"):
            case "missing":
                raise JobNotFound(job_id)
            case "refused":
                raise ActionNotAllowed(reply["status"], "delete", allowed_actions(reply["status"]))
            case "busy":
                raise DatasetBusy(job.dataset or "", reply["id"]) if job.run is None else RunBusy(job.run)
        return job

    def purge(self, job_id: str, *, keeps_run: bool = False) -> None:
        """Remove everything that Redis has of a job that was marked as deleted.

        Args:
            job_id: Id of the job.
            keeps_run: Whether the run that it made stays, and with it its colour.
        """
        self.run(ScriptCall("transitions.purge", {"id": job_id, "keeps_run": keeps_run}, dict))
