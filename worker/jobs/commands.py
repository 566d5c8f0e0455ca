"""Commands of the job store: script, arguments and the parser of the reply, apart from the connection.

A command runs from a thread or from the event loop. Each script text starts with the key prefix, the fields of records,
the tables of states and of kinds, and what scripts share: lib.lua, fit.lua for those that choose a job, room.lua for
those that ask what workers could run.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import redis

from model_core.data.dataset_spec import DatasetSpec
from model_core.errors import FieldProblem, InvalidConfig
from worker.jobs import kinds, states
from worker.jobs.errors import IdempotencyConflict, JobNotFound, QueueFull
from worker.jobs.redis_client import PREFIX, redis_errors
from worker.jobs.schemas import (
    DETAIL,
    VIEW,
    Capacity,
    Job,
    JobDetail,
    JobPage,
    JobRecord,
    JobRow,
    Rejection,
    Submission,
)
from worker.jobs.serialization import checked_id, detail_of, job_of, jobs_of, known_job
from worker.jobs.spec import JobSpec
from worker.jobs.states import Status

T = TypeVar("T")
_LUA = Path(__file__).parent / "lua"
_BESIDE = {"claim": "fit", "fitting": "fit", "submit": "room", "shortage": "room"}
_SHARED = {"lib", *_BESIDE.values()}


class Scripts:
    """Runs scripts by name."""

    def __init__(self, client: redis.Redis) -> None:
        self._scripts = {name: client.register_script(text) for name, text in sources().items()}

    def ask(self, call: ScriptCall[T]) -> T:
        """Ask a question.

        Raises:
            QueueUnavailable: Redis does not answer; the script may have run all the same.
        """
        return call.parse(self.run(call.script, *call.arguments))

    def run(self, name: str, *args: str | int | float) -> Any:
        """Run one.

        Raises:
            QueueUnavailable: Redis does not answer; the script may have run all the same.
        """
        with redis_errors():
            return self._scripts[name](args=args)


@cache
def sources() -> dict[str, str]:
    """Every script's whole text, by name."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in _LUA.glob("*.lua")}
    view, detail = (", ".join(f"'{field}'" for field in fields) for fields in (VIEW, DETAIL))
    fields = f"local P = '{PREFIX}'\nlocal VIEW, DETAIL = {{{view}}}, {{{detail}}}"
    head = "\n".join((fields, states.as_lua(), kinds.as_lua(), texts["lib"]))
    return {
        name: head + (texts[_BESIDE[name]] if name in _BESIDE else "") + text
        for name, text in texts.items()
        if name not in _SHARED
    }


@cache
def digests() -> dict[str, str]:
    """What Redis knows each script by once it has run."""
    return {name: hashlib.sha1(text.encode()).hexdigest() for name, text in sources().items()}


Taken = Literal[
    "", "1", "ready"
]  # 1: something has that name; ready: it is a dataset that was made in this way, or the export


@dataclass(frozen=True)
class ScriptCall(Generic[T]):
    """One run of a script.

    Attributes:
        script: Its name.
        arguments: What it is given.
        parse: Turns its reply into the answer, or raises what the reply says.
    """

    script: str
    arguments: tuple[str | int, ...]
    parse: Callable[[Any], T]


def submission(
    spec: JobSpec,
    *,
    key: str | None,
    fingerprint: str,
    taken: Taken,
    max_queued: int,
    is_lacking: bool = False,
    memory_bytes: int | None = None,
    preparation: DatasetSpec | None = None,
) -> ScriptCall[Submission | Rejection]:
    """Record a job, unless its key was used before, or something stands against it.

    Args:
        spec: What to do.
        key: The client's Idempotency-Key, kept for a day.
        fingerprint: Equal for equal requests.
        taken: Whether the disk has what it makes.
        max_queued: Jobs that may wait.
        is_lacking: Whether the disk lacks what the job needs.
        memory_bytes: What it needs of a worker; the known one with most must have as much, and the GPUs. None: whether
            a worker could run it is not asked.
        preparation: Of a dataset that must be made first: a job that is at it is waited for, else one is recorded too.

    The answer may be:
        IdempotencyConflict: The key came with another fingerprint before.
        QueueFull: Too many jobs wait.
        InvalidConfig: It is to wait for a job that is not there.
    """

    def parse(reply: Any) -> Submission | Rejection:
        verdict, fact, *seen = reply
        if verdict in {"run_exists", "ready", "lacking"}:
            return Rejection(verdict)
        if verdict == "dataset_exists":
            return Rejection(verdict, maker=fact or None)
        if verdict == "unfit":
            return Rejection(verdict, _capacity_of(fact))
        if verdict == "conflict":
            raise IdempotencyConflict(key or "", fact)
        if verdict == "full":
            raise QueueFull(max_queued)
        if verdict == "no_dependency":
            pointer = f"/job/depends_on/{spec.job.depends_on.index(fact)}"
            raise InvalidConfig((FieldProblem(pointer, f"there is no job {fact!r}", fact),))
        return Submission(known_job(job_of(*seen), fact), created=verdict == "created")

    arguments = (
        new_id(), hash_of(key) if key else "", fingerprint, spec.kind, spec.run or "",
        "" if spec.gpus is None else spec.gpus, spec.job.priority, json.dumps(spec.record),
        json.dumps([asdict(item) for item in spec.warnings]), json.dumps(spec.job.metadata), taken, max_queued,
        " ".join(dict.fromkeys(spec.job.depends_on)), int(is_lacking),
        "" if memory_bytes is None else memory_bytes, spec.dataset or "", *_making(spec, preparation),
        spec.export,
    )  # fmt: skip
    return ScriptCall("submit", arguments, parse)


def new_id() -> str:
    """The id of a job that is to be."""
    return f"job_{uuid.uuid4().hex}"


def _making(spec: JobSpec, preparation: DatasetSpec | None) -> tuple[str, str, str]:
    """Fingerprint, and id and configuration of the job that makes the dataset first."""
    if preparation is None:
        return (spec.recipe, "", "")
    return (preparation.fingerprint, new_id(), preparation.as_config().model_dump_json(exclude_unset=True))


def detail(job_id: str) -> ScriptCall[JobDetail]:
    """Read a job with its attempts.

    Raises:
        JobNotFound: There is none of that id; also as the answer.
    """
    return ScriptCall("detail", (checked_id(job_id),), lambda reply: known_job(detail_of(_look_of(reply)), job_id))


def look(job_id: str) -> ScriptCall[JobRecord]:
    """The same, as the store keeps it; without a job of that id its record is empty.

    Raises:
        JobNotFound: No job can have that id.
    """
    return ScriptCall("detail", (checked_id(job_id),), _look_of)


def _look_of(reply: Any) -> JobRecord:
    row, forecast, more = reply
    return JobRecord(JobRow(*row), forecast, more)


def jobs(ids: Sequence[str]) -> ScriptCall[list[Job]]:
    """Read jobs; those that there are not are left out."""
    return ScriptCall("views", tuple(ids), lambda reply: jobs_of(*reply))


def page(
    *,
    after: str | None = None,
    limit: int = 20,
    status: Status | None = None,
    kind: str | None = None,
    run: str | None = None,
    dataset: str | None = None,
) -> ScriptCall[JobPage]:
    """List jobs, newest first.

    Args:
        after: The last job of the page before.
        limit: How many at most.
        status: Only these.
        kind: Only these.
        run: Only these.
        dataset: Only those that make or read it.

    Raises:
        JobNotFound: `after` is no job; also as the answer.
    """
    cursor = checked_id(after) if after else ""

    def parse(reply: Any) -> JobPage:
        verdict, *rest = reply
        if verdict == "missing":
            raise JobNotFound(cursor)
        seen, forecast, has_more = rest
        return JobPage(tuple(JobRow(*row) for row in seen), forecast, has_more=bool(has_more))

    return ScriptCall("page", (cursor, limit + 1, status or "", kind or "", run or "", dataset or ""), parse)


def makers(datasets: Sequence[str]) -> ScriptCall[list[Job | None]]:
    """Read the last job that makes or made each dataset, where one is known."""

    def parse(reply: Any) -> list[Job | None]:
        rows, forecast = reply
        return [job_of(JobRow(*row), forecast) for row in rows]

    return ScriptCall("makers", tuple(datasets), parse)


def datasets(*, after: str | None, limit: int) -> ScriptCall[list[str]]:
    """Names of datasets that some job makes or made, in order."""
    return ScriptCall("datasets", (after or "", limit), list)


def shortage(gpus: int, memory_bytes: int) -> ScriptCall[Capacity | None]:
    """What the known workers have, if none of them could run a job of that size."""
    return ScriptCall("shortage", (gpus, memory_bytes), lambda reply: _capacity_of(reply) if reply else None)


def _capacity_of(reply: Sequence[Any]) -> Capacity:
    gpus, memory_bytes = reply
    return Capacity(int(gpus), int(memory_bytes) if memory_bytes else None)


def hash_of(key: str) -> str:
    """An Idempotency-Key as the store keeps it."""
    return hashlib.sha256(key.encode()).hexdigest()
