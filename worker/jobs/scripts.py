"""The Lua scripts, each a transition or a question that Redis answers in one go.

In front of every script stand the prefix of all keys, the fields that clients see, the tables of states.py and what
the scripts share (lib.lua; fit.lua for the two that choose a job).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import redis

from worker.jobs.connection import PREFIX, reaching
from worker.jobs.states import as_lua

_LUA = Path(__file__).parent / "lua"
_SHARED, _CHOOSING = {"lib", "fit"}, {"claim", "fitting"}

# Fields of a record, in the order in which `view` of lib.lua returns them.
VIEW = (
    "id", "kind", "run", "status", "epoch", "created_at", "started_at", "finished_at", "progress", "error", "worker",
    "warnings", "metadata", "priority", "waiting_for", "revision",
)  # fmt: skip


class Scripts:
    """Runs scripts by name."""

    def __init__(self, client: redis.Redis) -> None:
        self._scripts = {name: client.register_script(text) for name, text in _sources().items()}

    def run(self, name: str, *args: str | int | float) -> Any:
        """Run one.

        Raises:
            QueueUnavailable: Redis does not answer; the script may have run all the same.
        """
        with reaching():
            return self._scripts[name](args=args)


@cache
def _sources() -> dict[str, str]:
    texts = {path.stem: path.read_text(encoding="utf-8") for path in _LUA.glob("*.lua")}
    fields = ", ".join(f"'{field}'" for field in VIEW)
    head = f"local P = '{PREFIX}'\nlocal VIEW = {{{fields}}}\n{as_lua()}\n{texts['lib']}"
    return {
        name: head + (texts["fit"] if name in _CHOOSING else "") + text
        for name, text in texts.items()
        if name not in _SHARED
    }
