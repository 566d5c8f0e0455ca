"""Errors of the job queue. Clients see the stable `code` of each."""

from __future__ import annotations

from model_core.errors import ModelCoreError


class JobNotFound(ModelCoreError):
    """No job has this id."""

    code = "job_not_found"

    def __init__(self, job_id: str) -> None:
        super().__init__(f"no job {job_id!r}")


class ActionNotAllowed(ModelCoreError):
    """The job is in a state that the action cannot leave."""

    code = "action_not_allowed"

    def __init__(self, status: str, action: str, allowed_actions: tuple[str, ...]) -> None:
        allowed = ", ".join(allowed_actions) or "nothing"
        super().__init__(f"a job that is {status} cannot {action}; allowed now: {allowed}")
        self.status, self.action, self.allowed_actions = status, action, allowed_actions


class IdempotencyConflict(ModelCoreError):
    """The Idempotency-Key was used before with another body."""

    code = "idempotency_conflict"

    def __init__(self, key: str, job_id: str) -> None:
        super().__init__(f"Idempotency-Key {key[:100]!r} came with another body before, for {job_id}; take a new key")
        self.job_id = job_id


class PreconditionFailed(ModelCoreError):
    """The job has changed since the client read its ETag."""

    code = "precondition_failed"

    def __init__(self, job_id: str, revision: int) -> None:
        super().__init__(f'{job_id} has changed: its ETag is now "{revision}"; look again, then decide')
        self.revision = revision


class QueueFull(ModelCoreError):
    """The queue holds as many jobs as it may."""

    code = "queue_full"

    def __init__(self, most: int) -> None:
        super().__init__(f"{most} jobs are queued, which is the most; try again when some have run")


class QueueUnavailable(ModelCoreError):
    """Redis does not answer."""

    code = "queue_unavailable"

    def __init__(self, reason: str) -> None:
        super().__init__(f"the queue does not answer ({reason}); try again in a few seconds")
