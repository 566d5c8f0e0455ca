"""How the command ends: an exit code for programs, one line on stderr for people, never a trace."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from model_core.errors import ModelCoreError

DONE, FAILED, BAD_INPUT, STOPPED, BUSY, INTERRUPTED = 0, 1, 2, 75, 76, 130

_BAD_INPUT_CODES = {"invalid_config", "not_available", "malformed_body", "invalid_parameter", "unknown_preset"}


def run(command: Callable[[], object]) -> int:
    """Run a command and turn whatever it raises into an exit code.

    Args:
        command: Returns its exit code, or anything else when it is done.
    """
    try:
        code = command()
    except ModelCoreError as error:
        complain(f"{error}; {error.hint}" if error.hint else str(error))
        return exit_code(error)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the edge of the process
        return _usage(error)
    return code if isinstance(code, int) else DONE


def exit_code(error: ModelCoreError) -> int:
    """What an error means for a calling program."""
    if error.code == "run_busy":
        return BUSY
    status = getattr(error, "status", None)
    if isinstance(status, int):  # a refusal of the service
        return BAD_INPUT if 400 <= status < 500 and status != 429 else FAILED
    return BAD_INPUT if error.code in _BAD_INPUT_CODES else FAILED


def complain(message: str) -> None:
    """Tell a person what is wrong, in one line on stderr."""
    print(f"headcount: {' '.join(message.split())}", file=sys.stderr)


def _usage(error: Exception) -> int:
    """A wrong command line names itself; anything else is a mistake of ours, told without its trace."""
    say = getattr(error, "format_message", None)
    complain(say() if say else f"unexpected {type(error).__name__}: {error}")
    return int(getattr(error, "exit_code", FAILED))
