"""Errors as they leave the service: one shape (RFC 9457), by the table of `errors.py`.

What is not expected is logged with its trace and answered without it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import Scope

from model_core.errors import FieldProblem, ModelCoreError
from model_core.records.events import finite
from service.errors import MOST_ERRORS, PROBLEMS, InvalidRequest, Upstream

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


def document(error: ModelCoreError, request_id: str) -> dict[str, Any]:
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
        document(error, request_id_of(scope)),
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
