"""Errors in OpenAI's shape, which every path below /v1 has, so that OpenAI's clients raise their own exceptions.

A client chooses the class of the exception by the status, and shows `message`, `type`, `param` and `code`. Codes are
those of problem documents, except where OpenAI has a code for the same error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from starlette.types import Scope

from model_core.errors import FieldProblem, ModelCoreError

OPENAI_PATH = "/v1"
UNKNOWN_PARAMETER = "unrecognized_parameter"  # code of a problem: the request has a key that is not known
_MAX_MESSAGE = 2000  # characters
_MAX_PROBLEMS = 10  # that the message lists

_CODES: Mapping[str, str | None] = {  # where OpenAI's differs from ours
    "invalid_parameter": "invalid_value",
    "prompt_too_long": "context_length_exceeded",
    "run_not_found": "model_not_found",
    "checkpoint_not_found": "model_not_found",
    "not_found": None,
}
_PARAMS: Mapping[str, str] = {  # the parameter to which an error belongs
    "prompt_too_long": "prompt",
    "run_not_found": "model",
    "checkpoint_not_found": "model",
    "checkpoint_not_ready": "model",
    "checkpoint_damaged": "model",
    "does_not_fit": "model",
}


_NAMES: Mapping[str, str] = {  # of parameters, where OpenAI's differ from ours
    "prompts": "prompt",
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
}


class OpenAIErrorDetail(BaseModel):
    """What OpenAI's clients read of an error."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """An error as OpenAI's API replies it."""

    error: OpenAIErrorDetail


class NotAChatModel(ModelCoreError):
    """A chat was requested; the message is OpenAI's, by which tools recognize it."""

    code = "not_found"
    param = "model"

    def __init__(self) -> None:
        super().__init__(
            "This is not a chat model and thus not supported in the v1/chat/completions endpoint. "
            "Did you mean to use v1/completions?"
        )


def is_openai_path(scope: Scope) -> bool:
    """Check whether a request gets its errors in OpenAI's shape.

    Args:
        scope: ASGI scope of the request.

    Returns:
        Whether its path is /v1 or below.
    """
    path: str = scope.get("path", "").removeprefix(scope.get("root_path", ""))
    return path == OPENAI_PATH or path.startswith(f"{OPENAI_PATH}/")


def openai_status(status: int) -> int:
    """Translate the status of a problem document.

    Args:
        status: That status.

    Returns:
        The status below /v1: OpenAI has 400 for every wrong value.
    """
    return 400 if status == 422 else status


def openai_headers(status: int) -> dict[str, str]:
    """Build the headers that OpenAI's clients read beside Retry-After.

    Args:
        status: Status of the reply.

    Returns:
        For 409 the header that forbids a retry, because a client would repeat the request although nothing changes.
    """
    return {"X-Should-Retry": "false"} if status == 409 else {}


def openai_error(error: ModelCoreError, status: int) -> dict[str, Any]:
    """Describe an error as OpenAI does.

    Args:
        error: The error.
        status: Status of its reply.

    Returns:
        ``{"error": {message, type, param, code}}``, safe to serialize as JSON.
    """
    problems: tuple[FieldProblem, ...] = getattr(error, "problems", ())
    code, param = _CODES.get(error.code, error.code), getattr(error, "param", _PARAMS.get(error.code))
    message = str(error)
    if problems:
        param = _parameter(problems[0])
        code = UNKNOWN_PARAMETER if problems[0].code == UNKNOWN_PARAMETER else code
        message = "; ".join(f"{_parameter(problem)}: {problem.detail}" for problem in problems[:_MAX_PROBLEMS])
    if error.hint:
        message = f"{message}; {error.hint}"
    if len(message) > _MAX_MESSAGE:
        message = message[:_MAX_MESSAGE] + "..."
    whole = message.encode("utf-8", "backslashreplace").decode("utf-8")
    return {"error": {"message": whole, "type": _type(status), "param": param, "code": code}}


def _type(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


def _parameter(problem: FieldProblem) -> str:
    """Write a JSON pointer as OpenAI writes a parameter: `/prompt/3` is `prompt[3]`."""
    parts = [part.replace("~1", "/").replace("~0", "~") for part in problem.pointer.removeprefix("/").split("/")]
    first = parts[0] if problem.code == UNKNOWN_PARAMETER else _NAMES.get(parts[0], parts[0])
    whole = first + "".join(f"[{part}]" if re.fullmatch("[0-9]+", part) else f".{part}" for part in parts[1:])
    return whole[:200].encode("utf-8", "backslashreplace").decode("utf-8")
