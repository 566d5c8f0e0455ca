"""The job store: records in Redis, read and changed by one Lua script per transition.

Every script may be repeated, because a command whose reply was lost may have been executed. The part for workers is in
worker_store.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import redis

from model_core.data.dataset_spec import DatasetSpec
from model_core.errors import DatasetBusy, DatasetExists, InvalidParameter, RunBusy, RunExists
from model_core.storage.events import Event, last_event
from model_core.storage.files import further_names
from model_core.storage.run import Run
from worker.jobs import commands
from worker.jobs.commands import Scripts
from worker.jobs.errors import ActionNotAllowed, JobNotFound, PreconditionFailed
from worker.jobs.kinds import kind_of
from worker.jobs.redis_client import PREFIX, redis_errors
from worker.jobs.schemas import ActionResult, Job, JobDetail, Page, QueueState, Rejection, RestoredJob, Submission
from worker.jobs.serialization import checked_id, job_of, jobs_of, known_job
from worker.jobs.settings import JobSettings
from worker.jobs.spec import MOST_METADATA, JobSpec
from worker.jobs.states import Action, Status, allowed_actions


class JobReader:
    """Job records, as clients see them. Every method raises `QueueUnavailable` when Redis is away."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis, self._scripts = client, Scripts(client)

    def get(self, job_id: str) -> Job:
        """Read a job.

        Raises:
            JobNotFound: There is none of that id.
        """
        jobs = self._scripts.ask(commands.jobs([checked_id(job_id)]))
        return known_job(jobs[0] if jobs else None, job_id)

    def detail(self, job_id: str) -> JobDetail:
        """Read a job with its attempts.

        Raises:
            JobNotFound: There is none of that id.
        """
        return self._scripts.ask(commands.detail(job_id))

    def page(
        self,
        *,
        after: str | None = None,
        limit: int = 20,
        status: Status | None = None,
        kind: str | None = None,
        run: str | None = None,
        dataset: str | None = None,
    ) -> Page:
        """List jobs, newest first.

        Args:
            after: The last job of the page before.
            limit: How many at most.
            status: Only these.
            kind: Only these.
            run: Only these.
            dataset: Only those that make or read it.

        Raises:
            JobNotFound: `after` is no job.
        """
        asked = commands.page(after=after, limit=limit, status=status, kind=kind, run=run, dataset=dataset)
        found = self._scripts.ask(asked)
        return Page(tuple(jobs_of(found.rows, found.forecast)), found.has_more)

    def makers(self, datasets: Sequence[str]) -> list[Job | None]:
        """Read the last job that makes or made each dataset, where one is known."""
        return self._scripts.ask(commands.makers(datasets))

    def user(self, dataset: str) -> str | None:
        """A job that makes or reads a dataset and is not over, if there is one."""
        return self._scripts.run("user", dataset) or None

    def queue(self, limit: int = 20) -> QueueState:
        """Count what is queued and running, and list the first ready jobs in the order of their turn."""
        counted = ("jobs:status:queued", "ready", "jobs:status:running", "jobs:status:stopping")
        with redis_errors(), self._redis.pipeline(transaction=False) as pipe:
            for name in counted:
                pipe.zcard(f"{PREFIX}{name}")
            pipe.zrange(f"{PREFIX}ready", 0, limit - 1)
            queued, ready, running, stopping, ids = pipe.execute()
        jobs = self._scripts.ask(commands.jobs(ids))
        in_line = tuple(job for job in jobs if job.queue is not None)
        return QueueState(queued, ready, max(0, queued - ready), running + stopping, in_line)

    def events(self, job_id: str, after: int = 0, limit: int = 100) -> list[Event]:
        """Events of the job's tail with a `seq` above `after`."""
        with redis_errors():
            start = f"({after}-0" if after else "-"
            entries: Any = self._redis.xrange(f"{_key(job_id)}:events", start, "+", count=limit)
        return [json.loads(fields["event"]) for _, fields in entries]

    def time_s(self) -> float:
        """The server's clock."""
        with redis_errors():
            seconds, microseconds = self._redis.time()
        return float(seconds) + microseconds / 1e6


def _key(job_id: str) -> str:
    return f"{PREFIX}job:{job_id}"


CHANGES_KEY = f"{PREFIX}changes"  # a bounded stream; every change of a job adds {job: id}


class JobStore(JobReader):
    """Job records, as clients see and change them. Every method raises `QueueUnavailable` when Redis is away."""

    def __init__(self, client: redis.Redis, settings: JobSettings) -> None:
        super().__init__(client)
        self._settings = settings

    # --- submit ----------------------------------------------------------------------------------------------

    def submit(
        self, spec: JobSpec, *, key: str | None = None, fingerprint: str, preparation: DatasetSpec | None = None
    ) -> Submission:
        """Record a job, unless its key was used before.

        The run's name is refused when a directory has it or a job that is not over keeps it; a known key comes first,
        so that a repeated request gets its job also when the run has been made meanwhile.

        Args:
            spec: What to do.
            key: The client's Idempotency-Key, kept for a day.
            fingerprint: Equal for equal requests.
            preparation: Of a dataset that must be made first.

        Raises:
            IdempotencyConflict: The key came with another fingerprint before.
            RunExists: Naming the next free name.
            DatasetExists: Another job makes it in another way.
            QueueFull: Too many jobs wait.
            InvalidConfig: It is to wait for a job that is not there.
        """
        exists = spec.run is not None and self._settings.layout.run(spec.run).exists()
        asked = commands.submission(
            spec,
            key=key,
            fingerprint=fingerprint,
            taken="1" if exists else "",
            max_queued=self._settings.max_queued,
            preparation=preparation,
        )
        submitted = self._scripts.ask(asked)
        if isinstance(submitted, Rejection):
            raise self.name_conflict(spec, submitted)
        return submitted

    def name_conflict(self, spec: JobSpec, refusal: Rejection, differs: str | None = None) -> RunExists | DatasetExists:
        """What to say of a name that another job keeps or the disk has.

        Args:
            spec: What was asked for.
            refusal: Why it was not recorded.
            differs: How the dataset on disk differs from it.
        """
        if refusal.why == "run_exists":
            assert spec.run is not None
            return RunExists(spec.run, self.next_free_run(spec.run))
        assert spec.dataset is not None
        why = f"{refusal.maker} makes it in another way" if refusal.maker else differs
        return DatasetExists(spec.dataset, self.next_free_dataset(spec.dataset), why or "it was made in another way")

    def next_free_run(self, run: str) -> str:
        """The first of run-2, run-3 ... that neither a directory nor a job that is not over has."""
        return next(self._free("run", run, self._settings.layout.run))

    def next_free_dataset(self, dataset: str) -> str:
        """The first of dataset-2, dataset-3 ... that neither a directory nor a job that is not over has."""
        return next(self._free("dataset", dataset, self._settings.layout.dataset))

    def _free(self, what: Literal["run", "dataset"], name: str, place: Callable[[str], Path]) -> Iterator[str]:
        for candidate in further_names(name):
            with redis_errors():
                kept = self._redis.exists(f"{PREFIX}{what}:{candidate}")
            if not kept and not place(candidate).exists():
                yield candidate

    # --- act -------------------------------------------------------------------------------------------------

    def cancel(self, job_id: str) -> ActionResult:
        """Ask that a job ends; a queued one is cancelled at once, a running one when its process is gone."""
        return self.request_action(job_id, "cancel")

    def request_action(self, job_id: str, action: Action, *, run: str | None = None) -> ActionResult:
        """Apply a client's wish; one that came before changes nothing.

        Args:
            job_id: The job.
            action: What is wished.
            run: With retry, the new run that it begins from scratch.

        Raises:
            JobNotFound: There is none of that id.
            ActionNotAllowed: Its state does not allow it.
            RunExists: Another job has taken the run's name meanwhile.
        """
        before = self.get(job_id) if action in {"resume", "retry"} else None
        told = 0
        if before is not None and kind_of(before.kind).makes_run:
            told = self._own_run(before, run)
        verdict, fact, *seen = self._scripts.run("want", checked_id(job_id), action, run or "", told)
        if verdict == "missing":
            raise JobNotFound(job_id)
        if verdict == "refused":
            raise ActionNotAllowed(fact, action, allowed_actions(fact))
        if verdict == "run_exists":
            raise RunExists(fact, self.next_free_run(fact))
        if verdict == "dataset_exists":
            raise DatasetExists(fact, self.next_free_dataset(fact), "another job is making it")
        return ActionResult(known_job(job_of(*seen), job_id), is_new=verdict == "changed")

    def _own_run(self, job: Job, new_run: str | None) -> int:
        """Number of the last event of the job's run, which must be its own unless it is left behind."""
        assert job.run is not None
        run = Run(self._settings.layout.run(job.run))
        if not run.path.exists():
            return 0
        if run.attempt()["job_id"] != job.id:
            if job.terminal and new_run is None:
                raise RunExists(job.run, self.next_free_run(job.run))
            return 0
        last = last_event(run.events)
        return int(last["seq"]) if last else 0

    def retry(self, job_id: str, *, scratch: bool = False) -> ActionResult:
        """Run a failed job again, from its last full state or, in a new run, from scratch.

        Raises:
            JobNotFound: There is none of that id.
            ActionNotAllowed: Its state does not allow it.
            RunExists: Another job has taken the run's name meanwhile.
        """
        job = self.get(job_id)
        if not scratch or job.run is None or not kind_of(job.kind).makes_run or job.status != "failed":
            return self.request_action(job_id, "retry")
        if not self._settings.layout.run(job.run).exists():
            return self.request_action(job_id, "retry")  # it has made nothing yet
        for candidate in self._free("run", job.run, self._settings.layout.run):
            try:
                return self.request_action(job_id, "retry", run=candidate)
            except RunExists:
                continue  # somebody took it in this moment
        raise AssertionError("names never end")

    def update(
        self,
        job_id: str,
        *,
        priority: int | None = None,
        metadata: Mapping[str, str | None] | None = None,
        expected: int | None = None,
    ) -> Job:
        """Change what a client may change of a job, whatever its state.

        Args:
            job_id: The job.
            priority: The new one; a queued job takes its new place at once.
            metadata: Merged into what there is (RFC 7396): None removes a key.
            expected: The revision that the client has seen; None: whatever it is now.

        Raises:
            JobNotFound: There is none of that id.
            PreconditionFailed: The job has changed since.
            InvalidParameter: Too many pairs.
        """
        while True:
            job = self.get(job_id)
            merged = {**job.metadata, **(metadata or {})}
            kept = {key: value for key, value in merged.items() if value is not None}
            if len(kept) > MOST_METADATA:
                raise InvalidParameter(f"metadata would have {len(kept)} pairs; at most {MOST_METADATA} are kept")
            wanted = job.priority if priority is None else priority
            seen_at = job.revision if expected is None else expected
            verdict, fact, *seen = self._scripts.run("amend", job_id, seen_at, wanted, json.dumps(kept))
            if verdict == "ok":
                return known_job(job_of(*seen), job_id)
            if verdict == "missing":
                raise JobNotFound(job_id)
            if expected is not None:
                raise PreconditionFailed(job_id, int(fact))

    def mark_deleted(self, job_id: str, *, with_run: bool) -> Job:
        """Begin to delete a job that is over: it can do nothing else from now on, and `purge` ends it.

        Args:
            job_id: The job.
            with_run: Whether what it made goes too.

        Raises:
            JobNotFound: There is none of that id.
            ActionNotAllowed: It is not over.
            RunBusy: A job that is not over uses its run.
            DatasetBusy: A job that is not over uses the dataset that it made.
        """
        job = self.get(job_id)
        verdict, fact = self._scripts.run("doom", job_id, int(with_run))
        if verdict == "missing":
            raise JobNotFound(job_id)
        if verdict == "refused":
            raise ActionNotAllowed(fact, "delete", allowed_actions(fact))
        if verdict == "busy":
            raise DatasetBusy(job.dataset or "", fact) if job.run is None else RunBusy(job.run)
        return job

    def purge(self, job_id: str) -> None:
        """Remove what there is of a job that `mark_deleted` was said of."""
        self._scripts.run("forget", job_id)

    def restore(self, record: RestoredJob) -> bool:
        """Put a record back that was lost.

        Returns:
            False if the job is known, or another job keeps its name.
        """
        gpus = "" if record.gpus is None else str(record.gpus)
        optional = {
            "started_at": record.started_at_ms,
            "finished_at": record.finished_at_ms,
            "error": record.error.model_dump_json() if record.error else None,
        }
        counted = record.progress.step or record.progress.done or 0
        fields: dict[str, str | int] = {
            "kind": record.kind, "run": record.run or "", "epoch": record.attempt, "priority": record.priority,
            "spec": json.dumps(record.config), "warnings": json.dumps([item.model_dump() for item in record.warnings]),
            "metadata": json.dumps(dict(record.metadata)), "gpus": gpus, "class": gpus or "any", "desired": "run",
            "step": counted, "crash_step": counted, "mirrored": record.last_seq, "key": "",
            "progress": record.progress.model_dump_json(), "depends_on": " ".join(record.depends_on),
            "waiting_for": "", "dataset": record.dataset or "", "recipe": record.recipe, "export": record.export,
            **{name: value for name, value in optional.items() if value is not None},
        }  # fmt: skip
        pairs = [item for pair in fields.items() for item in pair]
        return bool(self._scripts.run("restore", record.id, record.status, record.created_at_ms, *pairs))
