"""The Lua scripts, each a transition or a question that Redis answers in one go.

In front of every script stand the prefix of all keys, the fields that clients see, the tables of states.py and what
the scripts share: lib.lua, fit.lua for those that choose a job, room.lua for those that ask what workers could run.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import redis

from worker.jobs.connection import PREFIX, reaching
from worker.jobs.states import as_lua

if TYPE_CHECKING:
    from worker.jobs.questions import Question

T = TypeVar("T")
_LUA = Path(__file__).parent / "lua"
_BESIDE = {"claim": "fit", "fitting": "fit", "submit": "room", "shortage": "room"}
_SHARED = {"lib", *_BESIDE.values()}

# Fields of a record, in the order in which `view` of lib.lua returns them.
VIEW = (
    "id", "kind", "run", "status", "epoch", "created_at", "started_at", "finished_at", "progress", "error", "worker",
    "warnings", "metadata", "priority", "waiting_for", "revision", "dataset",
)  # fmt: skip
# Fields that only a look at one job needs beside.
DETAIL = ("depends_on", "gpus", "claimed_at", "claimed_epoch", "resumed", "step")


class Scripts:
    """Runs scripts by name."""

    def __init__(self, client: redis.Redis) -> None:
        self._scripts = {name: client.register_script(text) for name, text in sources().items()}

    def ask(self, question: Question[T]) -> T:
        """Ask a question.

        Raises:
            QueueUnavailable: Redis does not answer; the script may have run all the same.
        """
        return question.read(self.run(question.script, *question.arguments))

    def run(self, name: str, *args: str | int | float) -> Any:
        """Run one.

        Raises:
            QueueUnavailable: Redis does not answer; the script may have run all the same.
        """
        with reaching():
            return self._scripts[name](args=args)


@cache
def sources() -> dict[str, str]:
    """Every script's whole text, by name."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in _LUA.glob("*.lua")}
    view, detail = (", ".join(f"'{field}'" for field in fields) for fields in (VIEW, DETAIL))
    head = f"local P = '{PREFIX}'\nlocal VIEW, DETAIL = {{{view}}}, {{{detail}}}\n{as_lua()}\n{texts['lib']}"
    return {
        name: head + (texts[_BESIDE[name]] if name in _BESIDE else "") + text
        for name, text in texts.items()
        if name not in _SHARED
    }


@cache
def digests() -> dict[str, str]:
    """What Redis knows each script by once it has run."""
    return {name: hashlib.sha1(text.encode()).hexdigest() for name, text in sources().items()}
