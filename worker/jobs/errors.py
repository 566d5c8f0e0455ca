"""Errors of the job queue. Clients receive the `code`, which is stable."""

from __future__ import annotations

from model_core.errors import DiskFull, ModelCoreError


class JobNotFound(ModelCoreError):
    """No job has this id."""

    code = "job_not_found"

    def __init__(self, job_id: str) -> None:
        super().__init__(f"no job {job_id!r}")


class ActionNotAllowed(ModelCoreError):
    """The status of the job does not allow the action."""

    code = "action_not_allowed"

    def __init__(self, status: str, action: str, allowed_actions: tuple[str, ...]) -> None:
        allowed = ", ".join(allowed_actions) or "nothing"
        super().__init__(f"a job that is {status} cannot {action}; allowed now: {allowed}")
        self.status, self.action, self.allowed_actions = status, action, allowed_actions


class IdempotencyConflict(ModelCoreError):
    """The Idempotency-Key was used before with a different body."""

    code = "idempotency_conflict"

    def __init__(self, key: str, job_id: str) -> None:
        super().__init__(f"Idempotency-Key {key[:100]!r} was used with a different body, for {job_id}; use a new key")
        self.job_id = job_id


class PreconditionFailed(ModelCoreError):
    """The job has changed since the client read its ETag."""

    code = "precondition_failed"

    def __init__(self, job_id: str, revision: int) -> None:
        super().__init__(f'{job_id} has changed: its ETag is now "{revision}"; read it again, then retry')
        self.revision = revision


class QueueFull(ModelCoreError):
    """The queue has reached its limit of jobs."""

    code = "queue_full"

    def __init__(self, max_queued: int) -> None:
        super().__init__(f"{max_queued} jobs are queued, which is the limit; try again when some have run")


class QueueUnavailable(ModelCoreError):
    """Redis does not answer."""

    code = "queue_unavailable"

    def __init__(self, reason: str) -> None:
        super().__init__(f"the queue does not answer ({reason}); try again in a few seconds")


class QueueDiskFull(QueueUnavailable):
    """Redis refuses changes, because no space is left on its disk."""

    code = DiskFull.code

    def __init__(self) -> None:
        ModelCoreError.__init__(self, "no space is left on the disk of the queue; free some, then try again")
