"""Commands of the job store: what a client may run, apart from the connection that runs it.

A command is a function of the Lua files with arguments by name; arguments and reply are JSON. `ScriptExecutor` runs it
on a thread, the service's `AsyncStore` on the event loop, in batches.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import redis

from model_core.config_loader import parse_config
from model_core.data.dataset_spec import DatasetSpec
from model_core.errors import FieldProblem, InvalidConfig
from worker.jobs import kinds, states
from worker.jobs.errors import IdempotencyConflict, JobNotFound, QueueFull
from worker.jobs.eta import shape_of
from worker.jobs.redis_client import PREFIX, redis_errors
from worker.jobs.schemas import Capacity, Job, JobDetail, Preview, Rejection, Submission
from worker.jobs.serialization import JobPage, JobRecord, checked_id, known_job, model_of, queue_of, time_estimate
from worker.jobs.spec import JobSpec
from worker.jobs.states import Status

T = TypeVar("T")
Taken = Literal[
    "", "exists", "ready"
]  # on disk: nothing; something of that name; the export, the ablation, or a dataset made equally

_LUA = Path(__file__).parent / "lua"
# Each script has its commands and the files that these need: Redis runs all definitions at every call.
_SCRIPTS = {
    "queries": ("lib", "queries"),
    "scheduling": ("lib", "scheduling"),
    "transitions": ("lib", "dependencies", "scheduling", "transitions"),
}
_DISPATCH = """
local reply = commands[ARGV[1]](cjson.decode(ARGV[2]))
local records = reply.records or {}
reply.records = nil
return {cjson.encode(reply), unpack(records)}
"""
# Fields of a job's record in Redis, as Lua constants.
_FIELDS = {
    "RECORD_FIELDS": (
        "id", "kind", "run", "status", "epoch", "created_at", "started_at", "finished_at", "progress", "error",
        "worker", "warnings", "metadata", "priority", "waiting_for", "revision", "dataset", "colour", "model",
    ),
    "DETAIL_FIELDS": ("depends_on", "gpus", "claimed_at", "claimed_epoch", "resumed", "step", "spec"),
    "CLAIM_FIELDS": (
        "epoch", "id", "kind", "run", "dataset", "devices", "spec", "gpus", "priority", "metadata", "warnings",
        "depends_on", "created_at", "seq_after", "colour",
    ),
}  # fmt: skip


# --- calls -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScriptCall(Generic[T]):
    """One call of a command.

    Attributes:
        command: Lua file and function, such as ``queries.list``.
        arguments: Arguments of the function by name; None counts as absent.
        parse: Turns the decoded reply into the result, or raises what the reply reports.
    """

    command: str
    arguments: Mapping[str, Any]
    parse: Callable[[Any], T]

    @property
    def script(self) -> Script:
        """The script that has the command."""
        return load_script(self.command.partition(".")[0])

    @property
    def argv(self) -> tuple[str, str]:
        """Arguments of the script: the function and its arguments as JSON."""
        present = {name: value for name, value in self.arguments.items() if value is not None}
        return self.command.partition(".")[2], json.dumps(present, separators=(",", ":"))

    def result(self, reply: Sequence[str]) -> T:
        """Decode a reply.

        Args:
            reply: JSON, then the records of jobs, which stay text because what is built of them is cached by it.

        Returns:
            The result.
        """
        text, *records = reply
        return self.parse({**json.loads(text), "records": records})


class ScriptExecutor:
    """Runs calls on a synchronous connection.

    Args:
        client: Connection to Redis.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._scripts = {name: client.register_script(load_script(name).source) for name in _SCRIPTS}

    def run(self, call: ScriptCall[T]) -> T:
        """Run one call.

        Args:
            call: The command and its arguments.

        Returns:
            The parsed reply.

        Raises:
            QueueUnavailable: Redis does not answer; the command may have run all the same.
        """
        with redis_errors():
            reply = self._scripts[call.script.name](args=call.argv)
        return call.result(reply)


@dataclass(frozen=True)
class Script:
    """A script that runs the command that its first argument names.

    Attributes:
        name: Lua file with its commands.
        source: Text of the script.
        sha1: Digest under which Redis keeps it.
    """

    name: str
    source: str
    sha1: str


@cache
def load_script(name: str) -> Script:
    """Join Lua files behind the constants that they read.

    Args:
        name: Lua file with the commands.

    Returns:
        The script.
    """
    constants = [f"local {constant} = {{{', '.join(map(repr, fields))}}}" for constant, fields in _FIELDS.items()]
    files = [(_LUA / f"{file}.lua").read_text(encoding="utf-8") for file in _SCRIPTS[name]]
    source = "\n".join((f"local P = '{PREFIX}'", *constants, states.as_lua(), kinds.as_lua(), *files, _DISPATCH))
    return Script(name, source, hashlib.sha1(source.encode()).hexdigest())


# --- submission ------------------------------------------------------------------------------------------------------


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
    tokens: int | None = None,
) -> ScriptCall[Submission | Rejection]:
    """Record a job, unless its key was used before or something prevents it.

    The result may be raised: `IdempotencyConflict` if the key came with another fingerprint, `QueueFull`,
    `InvalidConfig` if the job depends on one that does not exist.

    Args:
        spec: The validated job.
        key: The client's Idempotency-Key, kept for a day.
        fingerprint: Equal for equal requests.
        taken: What the disk has of what the job makes.
        max_queued: Limit of queued jobs.
        is_lacking: Whether the disk lacks what the job needs.
        memory_bytes: Memory that it needs; the known workers are checked for it and for the GPUs. None: no check.
        preparation: Dataset that must be made first: a job that makes it is awaited, or recorded too, and again if the
            job is retried and the dataset is still missing.
        tokens: Tokens of a training, whose duration is kept for estimates; None for other jobs.

    Returns:
        The call.
    """
    arguments = {
        "id": new_id(),
        "kind": spec.kind,
        "run": spec.run,
        "dataset": spec.dataset,
        "export": spec.export or None,
        "ablation": spec.ablation or None,
        "gpus": spec.gpus,
        "priority": spec.job.priority,
        "spec": json.dumps(spec.record),
        "model": model_of(spec.kind, spec.config),
        "warnings": json.dumps([asdict(item) for item in spec.warnings]),
        "metadata": json.dumps(spec.job.metadata),
        "depends_on": list(dict.fromkeys(spec.job.depends_on)),
        "key_hash": hash_of(key) if key else None,
        "fingerprint": fingerprint,
        "max_queued": max_queued,
        "taken": taken,
        "is_lacking": is_lacking,
        "memory_bytes": memory_bytes,
        "recipe": (preparation.fingerprint if preparation else spec.recipe) or None,
        "preparation": _preparation(preparation) if preparation else None,
        "shape": shape_of(spec.config, spec.processes, spec.gpus) if tokens else None,
        "tokens": tokens,
    }

    def parse(reply: Any) -> Submission | Rejection:
        if error := reply.get("error"):
            return _rejection(error, reply, spec, key, max_queued)
        return Submission(JobPage.of(reply).only(reply["id"]), created=reply["created"])

    return ScriptCall("transitions.submit", arguments, parse)


def new_id() -> str:
    """Draw the id of a new job.

    Returns:
        ``job_`` and 32 hexadecimal digits.
    """
    return f"job_{uuid.uuid4().hex}"


def hash_of(key: str) -> str:
    """Hash an Idempotency-Key, which the store does not keep in clear.

    Args:
        key: The client's key.

    Returns:
        Its SHA-256 in hexadecimal.
    """
    return hashlib.sha256(key.encode()).hexdigest()


def _preparation(dataset: DatasetSpec) -> dict[str, str]:
    return {"id": new_id(), "spec": dataset.as_config().model_dump_json(exclude_unset=True)}


def _rejection(error: Any, reply: Mapping[str, Any], spec: JobSpec, key: str | None, max_queued: int) -> Rejection:
    if error == "conflict":
        raise IdempotencyConflict(key or "", reply["id"])
    if error == "full":
        raise QueueFull(max_queued)
    if error == "no_dependency":
        awaited = reply["id"]
        pointer = f"/job/depends_on/{spec.job.depends_on.index(awaited)}"
        raise InvalidConfig((FieldProblem(pointer, f"there is no job {awaited!r}", awaited),))
    return Rejection(error, _capacity(reply), maker=reply.get("maker"))


# --- colours of runs: an index by which charts tell runs apart, given once and kept ----------------------------------


def keep_colour(run: str, *, created_at_ms: int, colour: int | None = None) -> ScriptCall[int]:
    """Give a run a colour, unless it has one. A training's run gets its own when the job is accepted.

    Args:
        run: Name of the run.
        created_at_ms: When it was created; the newest runs are compared.
        colour: The colour that its directory has.

    Returns:
        The call; its result is the colour.
    """
    arguments = {"run": run, "created_at": created_at_ms, "colour": colour}
    return ScriptCall("transitions.keep_colour", arguments, lambda reply: int(reply["colour"]))


def forget_colour(run: str) -> ScriptCall[None]:
    """Forget the colour of a run that was deleted; another run of that name gets its own.

    Args:
        run: Name of the run.

    Returns:
        The call.
    """
    return ScriptCall("transitions.forget_colour", {"run": run}, lambda _reply: None)


# --- queries ---------------------------------------------------------------------------------------------------------


def jobs(ids: Sequence[str]) -> ScriptCall[list[Job]]:
    """Read jobs.

    Args:
        ids: Ids of the jobs.

    Returns:
        The call; its result leaves out jobs that do not exist.
    """
    return ScriptCall("queries.get_many", {"ids": list(ids)}, lambda reply: JobPage.of(reply).jobs())


def job(job_id: str) -> ScriptCall[Job]:
    """Read a job.

    Args:
        job_id: Id of the job.

    Returns:
        The call; it raises `JobNotFound` if there is no such job.

    Raises:
        JobNotFound: No job can have that id.
    """
    arguments = {"ids": [checked_id(job_id)]}
    return ScriptCall("queries.get_many", arguments, lambda reply: JobPage.of(reply).only(job_id))


def detail(job_id: str) -> ScriptCall[JobDetail]:
    """Read a job with its attempts.

    Args:
        job_id: Id of the job.

    Returns:
        The call; it raises `JobNotFound` if there is no such job.

    Raises:
        JobNotFound: No job can have that id.
    """
    arguments = {"id": checked_id(job_id)}
    return ScriptCall("queries.get_detail", arguments, lambda reply: known_job(JobRecord.of(reply).detail(), job_id))


def record(job_id: str) -> ScriptCall[JobRecord]:
    """Read a job with its attempts as the store keeps it; without a job of that id the record is empty.

    Args:
        job_id: Id of the job.

    Returns:
        The call.

    Raises:
        JobNotFound: No job can have that id.
    """
    return ScriptCall("queries.get_detail", {"id": checked_id(job_id)}, JobRecord.of)


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
        after: Last job of the previous page.
        limit: Most jobs of the page.
        status: Only jobs in this status.
        kind: Only jobs of this kind.
        run: Only jobs that make or read this run.
        dataset: Only jobs that make or read this dataset.

    Returns:
        The call; it raises `JobNotFound` if `after` is no job.

    Raises:
        JobNotFound: No job can have the id `after`.
    """
    cursor = checked_id(after) if after else None
    filters = {"status": status, "kind": kind, "run": run, "dataset": dataset}

    def parse(reply: Any) -> JobPage:
        if "error" in reply:
            raise JobNotFound(cursor or "")
        return JobPage.of(reply)

    present = {name: value for name, value in filters.items() if value}
    return ScriptCall("queries.list", {"after": cursor, "limit": limit, "filter": present}, parse)


def dataset_jobs(datasets: Sequence[str]) -> ScriptCall[list[Job | None]]:
    """Read the last job that makes or made each dataset.

    Args:
        datasets: Names.

    Returns:
        The call; its result has one job a name, None where no job is known.
    """
    return ScriptCall("queries.dataset_jobs", {"names": list(datasets)}, lambda reply: JobPage.of(reply).jobs_or_none())


def dataset_names(*, after: str | None, limit: int) -> ScriptCall[list[str]]:
    """List datasets that some job makes or made.

    Args:
        after: Last name of the previous page.
        limit: Most names of the page.

    Returns:
        The call; its result is in order.
    """
    return ScriptCall("queries.dataset_names", {"after": after, "limit": limit}, lambda reply: list(reply["names"]))


def active_user(dataset: str) -> ScriptCall[str | None]:
    """Find a job that makes or reads a dataset and is not over.

    Args:
        dataset: Name of the dataset.

    Returns:
        The call; its result is the id of such a job, or None.
    """
    return ScriptCall("queries.active_user", {"dataset": dataset}, lambda reply: reply.get("id"))


def preparation_of(dataset: str) -> ScriptCall[DatasetSpec | None]:
    """Read what the job makes that is making a dataset.

    Args:
        dataset: Name of the dataset.

    Returns:
        The call; its result is the spec of the dataset, or None if no job is making it.
    """

    def parse(reply: Any) -> DatasetSpec | None:
        return DatasetSpec.of_job(parse_config(json.loads(reply["spec"])).config) if "spec" in reply else None

    return ScriptCall("queries.preparation", {"dataset": dataset}, parse)


def run_user(run: str) -> ScriptCall[str | None]:
    """Find a job that makes or reads a run, or starts from one of its checkpoints, and is not over.

    Args:
        run: Name of the run.

    Returns:
        The call; its result is the id of such a job, or None.
    """
    start = [f'"load_checkpoint": "{run}{end}' for end in ('"', "/")]  # as `submission` writes the spec
    return ScriptCall("queries.run_user", {"run": run, "start": start}, lambda reply: reply.get("id"))


def preview(spec: JobSpec, *, memory_bytes: int, tokens: int | None) -> ScriptCall[Preview]:
    """Look up what the queue and the workers are to a job that is not submitted.

    Args:
        spec: The validated job.
        memory_bytes: Memory that it needs.
        tokens: Tokens of a training; None for other jobs.

    Returns:
        The call.
    """
    arguments = {
        "gpus": spec.gpus or 0,
        "memory_bytes": memory_bytes,
        "priority": spec.job.priority,
        "depends_on": list(spec.job.depends_on),
        "shape": shape_of(spec.config, spec.processes, spec.gpus) if tokens else None,
    }

    def parse(reply: Any) -> Preview:
        ahead, hosts = reply.get("jobs_ahead"), set(reply["hosts"])
        queue = queue_of(int(ahead), reply["forecast"]) if ahead is not None else None
        estimate = time_estimate(reply["samples"], hosts, tokens) if tokens else None
        return Preview(_capacity(reply), queue, estimate)

    return ScriptCall("scheduling.preview", arguments, parse)


def _capacity(reply: Mapping[str, Any]) -> Capacity | None:
    known = reply.get("capacity")
    if known is None:
        return None
    memory_bytes = known.get("memory_bytes")
    return Capacity(int(known["gpus"]), int(memory_bytes) if memory_bytes else None)
