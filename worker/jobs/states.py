"""The states of a job, the transitions between them and the actions of clients, as data.

The Lua scripts refuse a transition that is not in these tables. `allowed_actions`, the documentation and the random
walks of the tests read the same tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

Status = Literal["queued", "running", "stopping", "paused", "succeeded", "failed", "cancelled"]
Action = Literal["cancel", "pause", "resume", "retry", "delete"]

STATUSES: tuple[Status, ...] = get_args(Status)
TERMINAL: frozenset[Status] = frozenset({"succeeded", "failed", "cancelled"})
HOLDING: frozenset[Status] = frozenset({"running", "stopping"})  # a worker holds the job

# Transitions, by a client or a worker.
TRANSITIONS: Mapping[Status, tuple[Status, ...]] = {
    "queued": ("running", "cancelled", "paused", "failed"),  # failed: a job that it waits for has failed
    "running": ("stopping", "succeeded", "failed", "queued"),
    "stopping": ("cancelled", "paused", "succeeded", "failed"),
    "paused": ("queued", "cancelled"),
    "cancelled": ("queued",),
    "failed": ("queued",),
    "succeeded": (),
}

# Target of each action by state; the action is refused in a state that is missing. The same state: nothing to do.
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
    """List the actions that would change a job.

    Args:
        status: State of the job.

    Returns:
        The actions, in the order of `ACTIONS`.
    """
    return tuple(action for action, table in ACTIONS.items() if table.get(status, status) != status)


def as_lua() -> str:
    """Render the tables for the Lua scripts.

    Returns:
        Definitions of the local tables TRANSITIONS, ACTIONS, TERMINAL and HOLDING.
    """
    transitions = ", ".join(f"['{old}>{new}']=true" for old, targets in TRANSITIONS.items() for new in targets)
    actions = ", ".join(
        f"{action}={{{', '.join(f'{old}={new!r}' for old, new in table.items())}}}" for action, table in ACTIONS.items()
    )
    terminal, holding = (", ".join(f"{status}=true" for status in sorted(group)) for group in (TERMINAL, HOLDING))
    return "\n".join(
        f"local {name} = {{{table}}}"
        for name, table in (
            ("TRANSITIONS", transitions),
            ("ACTIONS", actions),
            ("TERMINAL", terminal),
            ("HOLDING", holding),
        )
    )
