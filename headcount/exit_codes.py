"""Exit codes of the command: a code for programs, one line on stderr for people, never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from model_core.errors import BAD_INPUT, BUSY, DONE, FAILED, INTERRUPTED, INVALID_INPUT_CODES, ModelCoreError


def run(command: Callable[[], object]) -> int:
    """Run a command and map any exception to an exit code.

    Args:
        command: Returns its exit code; any other value means success.

    Returns:
        The exit code.
    """
    try:
        code = command()
    except ModelCoreError as error:
        print_error(f"{error}; {error.hint}" if error.hint else str(error))
        return exit_code(error)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the edge of the process
        return _usage(error)
    return code if isinstance(code, int) else DONE


def exit_code(error: ModelCoreError) -> int:
    """Map an error to an exit code.

    Args:
        error: The error.

    Returns:
        76 if the run is busy, 2 for invalid input, else 1.
    """
    if error.code == "run_busy":
        return BUSY
    status = getattr(error, "status", None)
    if isinstance(status, int):  # a refusal of the service
        return BAD_INPUT if 400 <= status < 500 and status != 429 else FAILED
    return BAD_INPUT if error.code in INVALID_INPUT_CODES else FAILED


def print_error(message: str) -> None:
    """Print a message in one line on stderr.

    Args:
        message: The message; line breaks become spaces.
    """
    print(f"headcount: {' '.join(message.split())}", file=sys.stderr)


def _usage(error: Exception) -> int:
    """Report a usage error by its message, and an unexpected one without its traceback."""
    format_message = getattr(error, "format_message", None)
    print_error(format_message() if format_message else f"unexpected {type(error).__name__}: {error}")
    return int(getattr(error, "exit_code", FAILED))
