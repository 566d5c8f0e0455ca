"""The service itself, and what ships with it."""

from __future__ import annotations

from typing import Literal

from service.views.base import View


class PresetView(View):
    """A configuration that ships."""

    object: Literal["config"] = "config"
    name: str
    links: dict[str, str]


class Check(View):
    """One thing that the service needs."""

    ok: bool
    detail: str


class Health(View):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(View):
    """Everything that the service needs is there."""

    status: Literal["ready"] = "ready"
    checks: dict[str, Check]


class Welcome(View):
    """Where to begin."""

    name: Literal["headcount"] = "headcount"
    version: str
    links: dict[str, str]
