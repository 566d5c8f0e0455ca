"""The Idempotency-Key of a request: sent again with the same key, it is answered with the job it made before.

As draft-ietf-httpapi-idempotency-key-header has it. It is read from the request itself, without the price of a
dependency: jobs come in crowds.
"""

from __future__ import annotations

from typing import Any

from fastapi import Request

from model_core.errors import FieldProblem
from service.errors import InvalidRequest

_HEADER, _LONGEST = "Idempotency-Key", 255

KEY_PARAMETER: dict[str, Any] = {
    "name": _HEADER,
    "in": "header",
    "required": False,
    "description": "sent again with the same key, a request gets the job that it made before; kept for a day",
    "schema": {"type": "string", "minLength": 1, "maxLength": _LONGEST},
}


def key_of(request: Request) -> str | None:
    """The key, if there is one.

    Raises:
        InvalidRequest: It is empty or too long.
    """
    key = request.headers.get(_HEADER)
    if key is None or 1 <= len(key) <= _LONGEST:
        return key
    shown = key if len(key) <= 80 else f"{key[:80]}..."
    detail = f"a key has 1 to {_LONGEST} characters, this one has {len(key)}"
    raise InvalidRequest((FieldProblem(f"/{_HEADER}", detail, shown),))
