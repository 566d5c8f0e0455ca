"""Colours of runs, by which charts tell them apart: an index, given once and kept.

The store gives a training's run its colour when the job is accepted. Runs that no job of this version made get theirs
when the service first lists them. One script decides, so processes cannot disagree.
"""

from __future__ import annotations

from worker.jobs.commands import ScriptCall


def keep_colour(run: str, *, created_at_ms: int, colour: int | None = None) -> ScriptCall[int]:
    """Give a run a colour, unless it has one.

    Args:
        run: Name of the run.
        created_at_ms: When it was created; the newest runs are compared.
        colour: The colour that its directory has.

    Returns:
        The call; its result is the colour.
    """
    arguments = {"run": run, "created_at": created_at_ms, "colour": colour}
    return ScriptCall("transitions.keep_colour", arguments, lambda reply: int(reply["colour"]))


def forget_colour(run: str) -> ScriptCall[None]:
    """Forget the colour of a run that was deleted; another run of that name gets its own.

    Args:
        run: Name of the run.

    Returns:
        The call.
    """
    return ScriptCall("transitions.forget_colour", {"run": run}, lambda _reply: None)
