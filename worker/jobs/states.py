"""The states of a job and every way between them, as data.

The scripts refuse an arrow that is not here, `allowed_actions` and the documentation come from here, and so does the
random walk of the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

Status = Literal["queued", "running", "stopping", "paused", "succeeded", "failed", "cancelled"]
Action = Literal["cancel", "pause", "resume", "retry", "delete"]

STATUSES: tuple[Status, ...] = get_args(Status)
TERMINAL: frozenset[Status] = frozenset({"succeeded", "failed", "cancelled"})
HOLDING: frozenset[Status] = frozenset({"running", "stopping"})  # a worker has it

# What may follow what, whoever does it.
ARROWS: Mapping[Status, tuple[Status, ...]] = {
    "queued": ("running", "cancelled", "paused", "failed"),  # failed: a job it waits for did
    "running": ("stopping", "succeeded", "failed", "queued"),
    "stopping": ("cancelled", "paused", "succeeded", "failed"),
    "paused": ("queued", "cancelled"),
    "cancelled": ("queued",),
    "failed": ("queued",),
    "succeeded": (),
}

# What a client's wish leads to; a state that is missing refuses it. The same state again: already there, or on the way.
ACTIONS: Mapping[Action, Mapping[Status, Status | Literal["deleted"]]] = {
    "cancel": {
        "queued": "cancelled",
        "running": "stopping",
        "stopping": "stopping",
        "paused": "cancelled",
        "cancelled": "cancelled",
    },
    "pause": {"queued": "paused", "running": "stopping", "stopping": "stopping", "paused": "paused"},
    "resume": {"paused": "queued", "cancelled": "queued", "queued": "queued", "running": "running"},
    "retry": {"failed": "queued", "queued": "queued", "running": "running"},
    "delete": {"succeeded": "deleted", "failed": "deleted", "cancelled": "deleted"},
}


def allowed_actions(status: Status) -> tuple[Action, ...]:
    """Actions that would change a job in that state."""
    return tuple(action for action, table in ACTIONS.items() if table.get(status, status) != status)


def as_lua() -> str:
    """The tables, for the scripts."""
    arrows = ", ".join(f"['{old}>{new}']=true" for old, targets in ARROWS.items() for new in targets)
    actions = ", ".join(
        f"{action}={{{', '.join(f'{old}={new!r}' for old, new in table.items())}}}" for action, table in ACTIONS.items()
    )
    terminal, holding = (", ".join(f"{status}=true" for status in sorted(group)) for group in (TERMINAL, HOLDING))
    return "\n".join(
        f"local {name} = {{{table}}}"
        for name, table in (("ARROWS", arrows), ("ACTIONS", actions), ("TERMINAL", terminal), ("HOLDING", holding))
    )
