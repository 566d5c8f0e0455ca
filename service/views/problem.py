"""An error as it is answered."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from service.views.base import View


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
