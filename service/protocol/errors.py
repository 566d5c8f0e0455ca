"""Problem documents (RFC 9457), and the only table from error codes to HTTP statuses.

Paths below /v1 have OpenAI's shape instead of a problem document; see `openai_errors`.

Exception handlers turn each `ModelCoreError` into a reply, so routes need no `try`. An unexpected error is logged with
its traceback; the reply has only the request id.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Self

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import Scope

from model_core.config_problems import field_error
from model_core.errors import FieldProblem, ModelCoreError
from model_core.storage.events import finite
from service.protocol.openai_errors import is_openai_path, openai_error, openai_headers, openai_status
from service.schemas import View, link

log = logging.getLogger(__name__)

PROBLEM_JSON = "application/problem+json"
MAX_ERRORS = 100  # in one reply
_MAX_DETAIL = 2000  # characters

# Attributes of an error that the problem document repeats, and their names there.
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


@dataclass(frozen=True)
class ProblemType:
    """HTTP side of an error code.

    Attributes:
        status: HTTP status.
        title: Sentence that is the same for every error of this code.
        retry_after_s: Value of Retry-After; None sends no such header.
    """

    status: int
    title: str
    retry_after_s: int | None = None


PROBLEMS: Mapping[str, ProblemType] = {
    "malformed_body": ProblemType(400, "The body cannot be read"),
    "forbidden": ProblemType(403, "This request is not allowed"),
    "not_found": ProblemType(404, "There is nothing at this address"),
    "job_not_found": ProblemType(404, "There is no such job"),
    "run_not_found": ProblemType(404, "There is no such run"),
    "checkpoint_not_found": ProblemType(404, "The run has no such checkpoint"),
    "example_not_found": ProblemType(404, "There is no such example"),
    "result_not_found": ProblemType(404, "The run has no such result"),
    "dataset_not_found": ProblemType(404, "There is no such dataset"),
    "unknown_preset": ProblemType(404, "There is no such preset"),
    "method_not_allowed": ProblemType(405, "This address does not take that method"),
    "not_acceptable": ProblemType(406, "None of the accepted types can be served"),
    "run_exists": ProblemType(409, "The run exists already"),
    "dataset_exists": ProblemType(409, "The dataset exists already, made in another way"),
    "dataset_busy": ProblemType(409, "A job that is not over needs the dataset"),
    "run_busy": ProblemType(409, "The run is in use or pinned"),
    "checkpoint_not_ready": ProblemType(409, "The run has no checkpoint yet"),
    "too_few_checkpoints": ProblemType(409, "The run has too few checkpoints for this"),
    "checkpoint_damaged": ProblemType(409, "The checkpoint is damaged"),
    "dataset_not_ready": ProblemType(409, "The dataset is not prepared"),
    "data_changed": ProblemType(409, "The dataset is not the one that the run was trained on"),
    "action_not_allowed": ProblemType(409, "The present state does not allow this"),
    "precondition_failed": ProblemType(412, "The job has changed since its ETag was read"),
    "body_too_large": ProblemType(413, "The body is too large"),
    "uri_too_long": ProblemType(414, "The address is too long"),
    "unsupported_media_type": ProblemType(415, "The body's type cannot be read"),
    "range_not_satisfiable": ProblemType(416, "The range begins after the end"),
    "misdirected_host": ProblemType(421, "The service does not have that name"),
    "invalid_config": ProblemType(422, "The configuration is wrong"),
    "not_available": ProblemType(422, "This version does not have that feature"),
    "does_not_fit": ProblemType(422, "No known worker has room for this"),
    "idempotency_conflict": ProblemType(422, "The Idempotency-Key was used with another body"),
    "checkpoint_mismatch": ProblemType(422, "Configuration and checkpoint differ"),
    "attention_too_large": ProblemType(422, "The attention weights are too large"),
    "prompt_too_long": ProblemType(422, "The prompt is too long"),
    "invalid_parameter": ProblemType(422, "A parameter is wrong"),
    "invalid_data": ProblemType(422, "The data cannot be used"),
    "too_many_requests": ProblemType(429, "This client has too many open requests", retry_after_s=1),
    "inference_busy": ProblemType(429, "Every inference process has a full queue", retry_after_s=5),
    "queue_full": ProblemType(429, "The queue is full", retry_after_s=30),
    "internal_error": ProblemType(500, "The server met an error it did not expect"),
    "queue_unavailable": ProblemType(503, "The job queue does not answer", retry_after_s=5),
    "inference_unavailable": ProblemType(503, "No inference process can take this now", retry_after_s=5),
    "cuda_oom": ProblemType(503, "The inference process is out of memory", retry_after_s=10),
    "not_ready": ProblemType(503, "The service is not complete yet", retry_after_s=2),
    "deadline_exceeded": ProblemType(504, "The request took longer than it may"),
    "disk_full": ProblemType(507, "No space is left on the server"),
}


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


class MalformedBody(ModelCoreError):
    """The body does not match its Content-Type."""

    code = "malformed_body"


class BodyTooLarge(ModelCoreError):
    """The body exceeds a limit, which the message names."""

    code = "body_too_large"


class UriTooLong(ModelCoreError):
    """A query string is too long; the same request works with a body."""

    code = "uri_too_long"


class UnsupportedMediaType(ModelCoreError):
    """The Content-Type is none of those that the route reads."""

    code = "unsupported_media_type"

    def __init__(self, given: str, known: Iterable[str]) -> None:
        super().__init__(f"Content-Type {given!r} is not read here; send {' or '.join(known)}")


class UnsupportedContentEncoding(ModelCoreError):
    """The body is packed in a way that is not read."""

    code = "unsupported_media_type"

    def __init__(self, given: str) -> None:
        super().__init__(f"Content-Encoding {given[:200]!r} is not read here; send gzip or deflate, once, or neither")
        self.headers = {"Accept-Encoding": "gzip, deflate"}


class NotAcceptable(ModelCoreError):
    """The Accept header excludes every media type that the route offers."""

    code = "not_acceptable"

    def __init__(self, accept: str, offered: Iterable[str]) -> None:
        super().__init__(f"Accept {accept!r} fits none of what can be served: {', '.join(offered)}")


class MisdirectedHost(ModelCoreError):
    """The Host header names another service; with such names, DNS rebinding reads from addresses without a login."""

    code = "misdirected_host"

    def __init__(self, given: str, names: Iterable[str]) -> None:
        known = ", ".join(("localhost", "127.0.0.1", *names))
        super().__init__(
            f"Host {given[:200]!r} is no name of this service; it answers to {known}, and to what HEADCOUNT_HOSTS "
            "adds where it is started"
        )


class Forbidden(ModelCoreError):
    """A page of another site sent a request that changes something."""

    code = "forbidden"


class InvalidRequest(ModelCoreError):
    """Wrong values in a query string or a body, each with its JSON pointer."""

    code = "invalid_parameter"

    def __init__(self, problems: Iterable[FieldProblem]) -> None:
        self.problems = tuple(islice(problems, MAX_ERRORS))  # finding what is near to a wrong key takes time
        super().__init__("; ".join(f"{p.pointer}: {p.detail}" for p in self.problems))


class DoesNotFit(ModelCoreError):
    """The job needs more memory or GPUs than any known worker has."""

    code = "does_not_fit"


class InferenceUnavailable(ModelCoreError):
    """No inference process answers."""

    code = "inference_unavailable"


class TooManyRequests(ModelCoreError):
    """One client has as many open requests as it may have."""

    code = "too_many_requests"

    def __init__(self, most: int) -> None:
        super().__init__(f"{most} requests of this client are open, which is the most; wait for one to end")


class Upstream(ModelCoreError):
    """An error of an inference process or of Starlette, passed on with its code.

    Args:
        code: Its code.
        detail: Its message.
        hint: What to do about it.
        problems: The wrong values, if it is about some.
        retry_after_s: Seconds after which it makes sense to ask again; None takes those of the code.

    Attributes:
        headers: Further headers of the reply.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        hint: str | None = None,
        problems: Iterable[FieldProblem] = (),
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code  # type: ignore[misc]  # known only now
        self.hint, self.problems, self.retry_after_s = hint, tuple(problems), retry_after_s
        self.headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}

    def moved(self, place: str, to: str) -> Upstream:
        """Point at the same values in another document.

        Args:
            place: JSON pointer in the request that was refused.
            to: JSON pointer of the same value in the other one.

        Returns:
            The error with other pointers.
        """
        problems = (problem.moved(place, to) for problem in self.problems)
        return Upstream(self.code, str(self), hint=self.hint, problems=problems, retry_after_s=self.retry_after_s)

    @classmethod
    def of(cls, body: Mapping[str, Any], retry_after_s: int | None = None) -> Self:
        """Read the error that an inference process sent.

        Args:
            body: Its ``{code, detail, hint?, problems?}``.
            retry_after_s: Its Retry-After.

        Returns:
            The error.

        Raises:
            KeyError: There is no code or no detail.
            TypeError: A part has another form.
        """
        problems = (FieldProblem(**problem) for problem in body.get("problems", ()))
        return cls(
            str(body["code"]),
            str(body["detail"]),
            hint=body.get("hint"),
            problems=problems,
            retry_after_s=retry_after_s,
        )


class NotReady(ModelCoreError):
    """A dependency of the service is missing."""

    code = "not_ready"

    def __init__(self, checks: Mapping[str, Any]) -> None:
        self.checks = checks
        missing = [f"{name}: {check['detail']}" for name, check in checks.items() if not check["ok"]]
        super().__init__("; ".join(missing))


def add_exception_handlers(app: FastAPI) -> None:
    """Make an application reply to every error with a problem document.

    Args:
        app: The application.
    """
    app.add_exception_handler(ModelCoreError, _handle_model_core_error)
    app.add_exception_handler(RequestValidationError, _handle_validation_error)
    app.add_exception_handler(HTTPException, _handle_http_exception)
    app.add_exception_handler(ClientDisconnect, _handle_disconnect)
    app.add_exception_handler(Exception, _handle_unexpected_error)


def problem_document(error: ModelCoreError, request_id: str) -> dict[str, Any]:
    """Describe an error as RFC 9457 does.

    Args:
        error: The error; its code selects status and title.
        request_id: Id of the request that failed.

    Returns:
        The problem document, safe to serialize as JSON.
    """
    kind = PROBLEMS.get(error.code, PROBLEMS["internal_error"])
    problems: tuple[FieldProblem, ...] = getattr(error, "problems", ())
    facts = {name: getattr(error, field) for field, name in _FACTS.items() if getattr(error, field, None) is not None}
    if request := facts.get("request"):
        facts["request"] = {**request, "path": link(request["path"])}
    detail = str(error)
    body = {
        "type": f"urn:headcount:problem:{error.code}",
        "title": kind.title,
        "status": kind.status,
        "detail": detail if len(detail) <= _MAX_DETAIL else detail[:_MAX_DETAIL] + "...",
        "code": error.code,
        "errors": [_field(problem) for problem in problems[:MAX_ERRORS]],
        "request_id": request_id,
        **facts,
    }
    return json_safe(body | ({"hint": error.hint} if error.hint else {}))  # type: ignore[no-any-return]


def json_safe(value: Any) -> Any:
    """Replace what JSON or UTF-8 cannot represent.

    Args:
        value: Any value.

    Returns:
        The same value with lone surrogates escaped, numbers that are not finite as text, and unknown types as text.
    """
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
    """Read the id that the middleware gave to a request.

    Args:
        scope: ASGI scope of the request.

    Returns:
        The id; empty outside the middleware.
    """
    return str(scope.get("state", {}).get("request_id", ""))


def problem_response(error: ModelCoreError, scope: Scope, headers: Mapping[str, str] | None = None) -> Response:
    """Build the response to an error.

    Args:
        error: The error.
        scope: ASGI scope of the request.
        headers: Further response headers.

    Returns:
        The problem document with its status, and Retry-After where retrying makes sense; below /v1 in OpenAI's shape.
    """
    kind = PROBLEMS.get(error.code, PROBLEMS["internal_error"])
    retry = {"Retry-After": str(kind.retry_after_s)} if kind.retry_after_s is not None else {}
    sent = {"Cache-Control": "no-store", "X-Request-Id": request_id_of(scope), **retry, **(headers or {})}
    if is_openai_path(scope):
        status = openai_status(kind.status)
        return JSONResponse(openai_error(error, status), status, headers=sent | openai_headers(status))
    document = problem_document(error, request_id_of(scope))
    return JSONResponse(document, status_code=kind.status, media_type=PROBLEM_JSON, headers=sent)


def _field(problem: FieldProblem) -> dict[str, Any]:
    return {
        "pointer": problem.pointer,
        "detail": problem.detail,
        "value": problem.value,
        "nearest": list(problem.nearest),
        "code": problem.code,
    }


async def _handle_model_core_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ModelCoreError)
    if error.code not in PROBLEMS:
        log.error("error without a status code=%s detail=%s", error.code, error)
    return problem_response(error, request.scope, getattr(error, "headers", None))


async def _handle_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = [field_error({**item, "loc": item["loc"][1:]}) for item in error.errors()]
    return problem_response(InvalidRequest(problems), request.scope)


async def _handle_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _HTTP_CODES.get(error.status_code, "malformed_body" if error.status_code < 500 else "internal_error")
    path, method = request.scope["path"], request.scope["method"]
    if error.status_code == 405:
        allowed = ", ".join(_methods(request))
        return problem_response(
            Upstream(code, f"{path} takes {allowed}, not {method}"), request.scope, {"Allow": allowed}
        )
    detail = f"there is nothing at {path}; see {link('/docs')}" if error.status_code == 404 else str(error.detail)
    return problem_response(Upstream(code, detail), request.scope, error.headers)


def _methods(request: Request) -> list[str]:
    """Every method that the application supports at this path."""
    known = ("GET", "POST", "PUT", "PATCH", "DELETE")
    scope = {key: value for key, value in request.scope.items() if key not in {"route", "endpoint", "path_params"}}
    routes = request.app.routes
    found = [m for m in known if any(route.matches({**scope, "method": m})[0] is Match.FULL for route in routes)]
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    own = request.app.openapi()["paths"].get(path)  # /configs/validate is no /configs/{name}
    found = [m for m in found if own is None or m.lower() in own]
    return ["GET", "HEAD", *found[1:]] if found[:1] == ["GET"] else found


async def _handle_disconnect(request: Request, _error: Exception) -> Response:
    log.info("client went away path=%s", request.scope["path"])
    return Response(status_code=499)


async def _handle_unexpected_error(request: Request, _error: Exception) -> Response:
    request_id = request_id_of(request.scope)  # the server logs the trace
    return problem_response(Upstream("internal_error", f"the log has the rest under {request_id}"), request.scope)
