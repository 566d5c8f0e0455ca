"""What a service answers: JSON, or a problem document, which is told to a person in one line."""

from __future__ import annotations

from typing import Any

import httpx

from model_core.errors import ModelCoreError

Json = dict[str, Any]


class Refused(ModelCoreError):
    """The service answered with a problem document.

    Attributes:
        status: HTTP status.
        problem: The document.
    """

    def __init__(self, status: int, problem: Json) -> None:
        super().__init__(_one_line(status, problem))
        self.status, self.problem = status, problem
        self.code = str(problem.get("code", "failed"))  # type: ignore[misc]  # known only now


def checked(reply: httpx.Response) -> httpx.Response:
    """A reply that says yes.

    Raises:
        Refused: It says no; also where what says so is no problem document, such as a proxy's page.
    """
    if reply.is_success:
        return reply
    reply.read()
    try:
        problem = reply.json()
    except ValueError:
        problem = None
    raise Refused(reply.status_code, problem if isinstance(problem, dict) else {"detail": reply.reason_phrase})


def _one_line(status: int, problem: Json) -> str:
    entries = [_entry(entry) for entry in problem.get("errors") or ()]
    said = problem.get("detail") or problem.get("title") or f"HTTP {status}"
    return f"{problem.get('code', f'http_{status}')}: {'; '.join(entries) if entries else said}"


def _entry(entry: Json) -> str:
    nearest = [str(value) for value in entry.get("nearest") or ()]
    told = entry.get("detail", "")
    advice = f" (nearest: {', '.join(nearest)})" if nearest and not all(value in told for value in nearest) else ""
    return f"{entry.get('pointer') or 'body'}: {told}{advice}"
