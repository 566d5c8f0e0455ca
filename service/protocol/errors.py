"""Problem documents (RFC 9457), and the one table from error code to HTTP status.

Routes contain no `try`: every `ModelCoreError` is answered by the table. An unexpected error is logged with its trace
and answered without it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import Scope

from model_core.errors import FieldProblem, ModelCoreError
from model_core.storage.events import finite
from service.schemas import View

log = logging.getLogger(__name__)

PROBLEM_JSON = "application/problem+json"
_LONGEST_DETAIL = 2000

# What an error knows beyond its sentence, by the name it has in the problem document.
_FACTS = {
    "run": "run",
    "dataset": "dataset",
    "next_free": "next_free",
    "request": "request",
    "action": "action",
    "allowed_actions": "allowed_actions",
    "status": "job_status",
    "job_id": "job",
    "checks": "checks",
}
_HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large", 415: "unsupported_media_type"}


def install(app: FastAPI) -> None:
    """Answer every error of an application as a problem document."""
    app.add_exception_handler(ModelCoreError, _known)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _unexpected)


def problem_document(error: ModelCoreError, request_id: str) -> dict[str, Any]:
    """The problem document of an error."""
    kind = PROBLEMS.get(error.code, PROBLEMS["internal_error"])
    problems: tuple[FieldProblem, ...] = getattr(error, "problems", ())
    facts = {name: getattr(error, field) for field, name in _FACTS.items() if getattr(error, field, None) is not None}
    detail = str(error)
    body = {
        "type": f"urn:headcount:problem:{error.code}",
        "title": kind.title,
        "status": kind.status,
        "detail": detail if len(detail) <= _LONGEST_DETAIL else detail[:_LONGEST_DETAIL] + "...",
        "code": error.code,
        "errors": [_field(problem) for problem in problems[:MOST_ERRORS]],
        "request_id": request_id,
        **facts,
    }
    return json_safe(body | ({"hint": error.hint} if error.hint else {}))  # type: ignore[no-any-return]


def json_safe(value: Any) -> Any:
    """The same value with everything replaced that JSON or UTF-8 cannot hold."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, Mapping):
        return {json_safe(str(key)): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_safe(item) for item in value]
    if isinstance(value, float):
        return finite(value)
    return value if value is None or isinstance(value, bool | int) else json_safe(str(value))


def request_id_of(scope: Scope) -> str:
    """The id that the edge gave to a request."""
    return str(scope.get("state", {}).get("request_id", ""))


def problem_response(error: ModelCoreError, scope: Scope, headers: Mapping[str, str] | None = None) -> Response:
    """An error as a response."""
    kind = PROBLEMS.get(error.code, PROBLEMS["internal_error"])
    retry = {"Retry-After": str(kind.retry_after_s)} if kind.retry_after_s is not None else {}
    return JSONResponse(
        problem_document(error, request_id_of(scope)),
        status_code=kind.status,
        media_type=PROBLEM_JSON,
        headers={"Cache-Control": "no-store", "X-Request-Id": request_id_of(scope), **retry, **(headers or {})},
    )


def _field(problem: FieldProblem) -> dict[str, Any]:
    return {
        "pointer": problem.pointer,
        "detail": problem.detail,
        "value": problem.value,
        "nearest": list(problem.nearest),
        "code": problem.code,
    }


async def _known(request: Request, error: Exception) -> Response:
    assert isinstance(error, ModelCoreError)
    if error.code not in PROBLEMS:
        log.error("error without a status code=%s detail=%s", error.code, error)
    return problem_response(error, request.scope, getattr(error, "headers", None))


async def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = [
        FieldProblem("".join(f"/{part}" for part in item["loc"][1:]), item["msg"], item.get("input"))
        for item in error.errors()
    ]
    return problem_response(InvalidRequest(problems), request.scope)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _HTTP_CODES.get(error.status_code, "malformed_body" if error.status_code < 500 else "internal_error")
    path, method = request.scope["path"], request.scope["method"]
    if error.status_code == 405:
        allowed = ", ".join(_methods(request))
        return problem_response(
            Upstream(code, f"{path} takes {allowed}, not {method}"), request.scope, {"Allow": allowed}
        )
    detail = f"there is nothing at {path}; see /docs" if error.status_code == 404 else str(error.detail)
    return problem_response(Upstream(code, detail), request.scope, error.headers)


def _methods(request: Request) -> list[str]:
    """Every method that some route of the application takes at this path."""
    known = ("GET", "POST", "PUT", "PATCH", "DELETE")
    scope = {key: value for key, value in request.scope.items() if key not in {"route", "endpoint", "path_params"}}
    routes = request.app.routes
    found = [m for m in known if any(route.matches({**scope, "method": m})[0] is Match.FULL for route in routes)]
    own = request.app.openapi()["paths"].get(scope["path"])  # /configs/validate is no /configs/{name}
    found = [m for m in found if own is None or m.lower() in own]
    return ["GET", "HEAD", *found[1:]] if found[:1] == ["GET"] else found


async def _gone(request: Request, _error: Exception) -> Response:
    log.info("client went away path=%s", request.scope["path"])
    return Response(status_code=499)


async def _unexpected(request: Request, _error: Exception) -> Response:
    request_id = request_id_of(request.scope)  # the server logs the trace
    return problem_response(Upstream("internal_error", f"the log has the rest under {request_id}"), request.scope)


MOST_ERRORS = 100  # named in one answer


@dataclass(frozen=True)
class ProblemType:
    """What a code means in HTTP.

    Attributes:
        status: The HTTP status.
        title: The same sentence for every error of this code.
        retry_after_s: When trying again is worth it, if it is.
    """

    status: int
    title: str
    retry_after_s: int | None = None


PROBLEMS: Mapping[str, ProblemType] = {
    "malformed_body": ProblemType(400, "The body cannot be read"),
    "not_found": ProblemType(404, "There is nothing at this address"),
    "job_not_found": ProblemType(404, "There is no such job"),
    "run_not_found": ProblemType(404, "There is no such run"),
    "checkpoint_not_found": ProblemType(404, "The run has no such checkpoint"),
    "example_not_found": ProblemType(404, "There is no such example"),
    "dataset_not_found": ProblemType(404, "There is no such dataset"),
    "unknown_preset": ProblemType(404, "There is no such preset"),
    "method_not_allowed": ProblemType(405, "This address does not take that method"),
    "not_acceptable": ProblemType(406, "None of the accepted types can be served"),
    "run_exists": ProblemType(409, "The run exists already"),
    "dataset_exists": ProblemType(409, "The dataset exists already, made in another way"),
    "dataset_busy": ProblemType(409, "A job that is not over needs the dataset"),
    "run_busy": ProblemType(409, "Another process holds the run"),
    "checkpoint_not_ready": ProblemType(409, "The run has no checkpoint yet"),
    "checkpoint_damaged": ProblemType(409, "The checkpoint is damaged"),
    "dataset_not_ready": ProblemType(409, "The dataset is not prepared"),
    "action_not_allowed": ProblemType(409, "The present state does not allow this"),
    "precondition_failed": ProblemType(412, "The job has changed since it was looked at"),
    "body_too_large": ProblemType(413, "The body is too large"),
    "uri_too_long": ProblemType(414, "The address is too long"),
    "unsupported_media_type": ProblemType(415, "The body's type cannot be read"),
    "range_not_satisfiable": ProblemType(416, "The range begins behind the end"),
    "invalid_config": ProblemType(422, "The configuration is wrong"),
    "not_available": ProblemType(422, "This version does not have that feature"),
    "does_not_fit": ProblemType(422, "No known worker has room for this"),
    "idempotency_conflict": ProblemType(422, "The Idempotency-Key was used with another body"),
    "checkpoint_mismatch": ProblemType(422, "Configuration and checkpoint differ"),
    "attention_too_large": ProblemType(422, "The attention weights are too large"),
    "prompt_too_long": ProblemType(422, "The prompt is too long"),
    "invalid_parameter": ProblemType(422, "A parameter is wrong"),
    "invalid_data": ProblemType(422, "The data cannot be used"),
    "queue_full": ProblemType(429, "The queue is full", retry_after_s=30),
    "internal_error": ProblemType(500, "The server met an error it did not expect"),
    "queue_unavailable": ProblemType(503, "The job queue does not answer", retry_after_s=5),
    "inference_unavailable": ProblemType(503, "No inference process can take this now", retry_after_s=5),
    "cuda_oom": ProblemType(503, "The inference process is out of memory", retry_after_s=10),
    "not_ready": ProblemType(503, "The service is not complete yet", retry_after_s=2),
    "disk_full": ProblemType(507, "No space is left on the server"),
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


class ProblemField(View):
    """One wrong value."""

    pointer: str
    detail: str
    value: Any = None
    nearest: list[Any] = Field(default=[])
    code: str = "invalid"


class Problem(BaseModel):
    """RFC 9457; further members depend on the code."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[ProblemField]
    request_id: str
