"""What can go wrong in the service, and one table from every error code to HTTP.

Routes contain no `try`: `problem.py` answers whatever raises a `ModelCoreError` by this table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from model_core.errors import FieldProblem, ModelCoreError

MOST_ERRORS = 100  # named in one answer


@dataclass(frozen=True)
class Kind:
    """What a code means in HTTP.

    Attributes:
        status: The HTTP status.
        title: The same sentence for every error of this code.
        retry_after_s: When trying again is worth it, if it is.
    """

    status: int
    title: str
    retry_after_s: int | None = None


PROBLEMS: Mapping[str, Kind] = {
    "malformed_body": Kind(400, "The body cannot be read"),
    "not_found": Kind(404, "There is nothing at this address"),
    "job_not_found": Kind(404, "There is no such job"),
    "run_not_found": Kind(404, "There is no such run"),
    "checkpoint_not_found": Kind(404, "The run has no such checkpoint"),
    "example_not_found": Kind(404, "There is no such example"),
    "dataset_not_found": Kind(404, "There is no such dataset"),
    "unknown_preset": Kind(404, "There is no such preset"),
    "method_not_allowed": Kind(405, "This address does not take that method"),
    "not_acceptable": Kind(406, "None of the accepted types can be served"),
    "run_exists": Kind(409, "The run exists already"),
    "dataset_exists": Kind(409, "The dataset exists already, made in another way"),
    "dataset_busy": Kind(409, "A job that is not over needs the dataset"),
    "run_busy": Kind(409, "Another process holds the run"),
    "checkpoint_not_ready": Kind(409, "The run has no checkpoint yet"),
    "checkpoint_damaged": Kind(409, "The checkpoint is damaged"),
    "dataset_not_ready": Kind(409, "The dataset is not prepared"),
    "action_not_allowed": Kind(409, "The job's status does not allow this"),
    "precondition_failed": Kind(412, "The job has changed since it was looked at"),
    "body_too_large": Kind(413, "The body is too large"),
    "uri_too_long": Kind(414, "The address is too long"),
    "unsupported_media_type": Kind(415, "The body's type cannot be read"),
    "range_not_satisfiable": Kind(416, "The range begins behind the end"),
    "invalid_config": Kind(422, "The configuration is wrong"),
    "not_available": Kind(422, "This version does not have that feature"),
    "does_not_fit": Kind(422, "No known worker has room for this"),
    "idempotency_conflict": Kind(422, "The Idempotency-Key was used with another body"),
    "checkpoint_mismatch": Kind(422, "Configuration and checkpoint differ"),
    "attention_too_large": Kind(422, "The attention weights are too large"),
    "prompt_too_long": Kind(422, "The prompt is too long"),
    "invalid_parameter": Kind(422, "A parameter is wrong"),
    "invalid_data": Kind(422, "The data cannot be used"),
    "queue_full": Kind(429, "The queue is full", retry_after_s=30),
    "internal_error": Kind(500, "The server met an error it did not expect"),
    "queue_unavailable": Kind(503, "The job queue does not answer", retry_after_s=5),
    "inference_unavailable": Kind(503, "No inference process can take this now", retry_after_s=5),
    "cuda_oom": Kind(503, "The inference process is out of memory", retry_after_s=10),
    "not_ready": Kind(503, "The service is not complete yet", retry_after_s=2),
    "disk_full": Kind(507, "No space is left on the server"),
}


class MalformedBody(ModelCoreError):
    """A body that is not what its type says."""

    code = "malformed_body"


class BodyTooLarge(ModelCoreError):
    """A body above a limit; the message names it."""

    code = "body_too_large"


class UriTooLong(ModelCoreError):
    """A query string longer than what an address should carry."""

    code = "uri_too_long"


class UnsupportedMediaType(ModelCoreError):
    """A body of a type that is not read here."""

    code = "unsupported_media_type"

    def __init__(self, given: str, known: Iterable[str]) -> None:
        super().__init__(f"Content-Type {given!r} is not read here; send {' or '.join(known)}")


class NotAcceptable(ModelCoreError):
    """The client accepts nothing that can be served."""

    code = "not_acceptable"

    def __init__(self, accept: str, offered: Iterable[str]) -> None:
        super().__init__(f"Accept {accept!r} fits none of what can be served: {', '.join(offered)}")


class InvalidRequest(ModelCoreError):
    """Wrong values in a query string or a body, with the place of each."""

    code = "invalid_parameter"

    def __init__(self, problems: Iterable[FieldProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{p.pointer}: {p.detail}" for p in self.problems[:MOST_ERRORS]))


class DoesNotFit(ModelCoreError):
    """More memory, or more GPUs, than any known worker has."""

    code = "does_not_fit"


class InferenceUnavailable(ModelCoreError):
    """No inference process answers."""

    code = "inference_unavailable"


class Upstream(ModelCoreError):
    """An error that an inference process found, passed on with its code."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code  # type: ignore[misc]  # known only now


class NotReady(ModelCoreError):
    """Something that the service needs is missing."""

    code = "not_ready"

    def __init__(self, checks: Mapping[str, Any]) -> None:
        self.checks = checks
        missing = [f"{name}: {check['detail']}" for name, check in checks.items() if not check["ok"]]
        super().__init__("; ".join(missing))
