"""What changed in all jobs since an entry of the Redis stream of changes, read in one step with its own position.

A change of status is an entry with the fields of the transition, so the id of the entry is a place that any process can
go on from. Other entries name only the job.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from worker.jobs.commands import ScriptCall
from worker.jobs.schemas import Job, QueueView
from worker.jobs.serialization import JobPage, queue_of, rfc3339
from worker.jobs.states import Status

Position = tuple[int, int]  # an id of the stream of changes, in its order


@dataclass(frozen=True)
class StatusChange:
    """A transition of a job, as the stream of changes has it.

    Attributes:
        id: Id of the entry.
        job: Id of the job.
        to: The new status.
        time: Its time, RFC 3339.
        reason: Why.
        attempt: Number of the attempt.
    """

    id: str
    job: str
    to: Status
    time: str
    reason: str
    attempt: int


@dataclass(frozen=True)
class ReadyQueue:
    """The queue in numbers, and its first jobs.

    Attributes:
        queued: Ready and waiting jobs.
        running: Jobs that run or stop.
        ready: Ids of the first ready jobs, in the order of their turn.
        forecast: When they will start, as `QueueForecast.to_json` wrote it; empty when no worker is there.
    """

    queued: int
    running: int
    ready: tuple[str, ...]
    forecast: str

    def places(self) -> list[tuple[str, QueueView]]:
        """Compute the position of each ready job.

        Returns:
            Ids with their positions and estimated starts, in order.
        """
        return [(job_id, queue_of(ahead, self.forecast)) for ahead, job_id in enumerate(self.ready)]


@dataclass(frozen=True)
class JobChanges:
    """Changes of all jobs after a position.

    Attributes:
        last: Id of the newest entry.
        is_known: Whether the position was still there; without it there are no transitions.
        transitions: Changes of status after the position, in order.
        jobs: Jobs that changed after the position, or that were asked for, as they are now.
        queue: The queue.
    """

    last: str
    is_known: bool
    transitions: tuple[StatusChange, ...]
    jobs: Mapping[str, Job]
    queue: ReadyQueue

    @classmethod
    def of(cls, reply: Mapping[str, Any]) -> Self:
        """Read a reply.

        Args:
            reply: What the command ``changes`` returned.

        Returns:
            The changes.
        """
        page, queue = JobPage.of(reply), reply["queue"]
        return cls(
            reply["last"],
            reply["is_known"],
            tuple(map(_status_change, reply["transitions"])),
            {job.id: job for job in page.jobs()},
            ReadyQueue(queue["queued"], queue["running"], tuple(queue["ready"]), page.forecast),
        )


def changes_after(
    after: str | None, *, with_snapshot: bool = False, only: Sequence[str] | None = None
) -> ScriptCall[JobChanges]:
    """Read what changed.

    Args:
        after: Id of an entry of the stream of changes; None reads no transitions.
        with_snapshot: Whether to read jobs that have not changed too: the 100 newest, those that run, and the first
            100 of the queue.
        only: In place of these jobs, the jobs with these ids.

    Returns:
        The call.
    """
    arguments = {"after": after, "with_snapshot": with_snapshot, "only": list(only) if only is not None else None}
    return ScriptCall("queries.changes", arguments, JobChanges.of)


def position_of(entry_id: str) -> Position:
    """Read an id of the stream of changes.

    Args:
        entry_id: Milliseconds, a hyphen, a number.

    Returns:
        The id as numbers, whose order is that of the stream.
    """
    milliseconds, _, number = entry_id.partition("-")
    return int(milliseconds), int(number)


def _status_change(fields: Mapping[str, Any]) -> StatusChange:
    return StatusChange(
        fields["id"], fields["job"], fields["to"], rfc3339(fields["time"]), fields["reason"], int(fields["attempt"])
    )
