"""Exit codes of the command: a code for programs, one line on stderr for people, never a traceback."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

import typer

from model_core.console import discard_output, one_line
from model_core.errors import (
    BAD_INPUT,
    BUSY,
    DONE,
    FAILED,
    INTERRUPTED,
    INVALID_INPUT_CODES,
    PIPE_CLOSED,
    InvalidData,
    ModelCoreError,
)

_OUTPUT_ERRORS = {errno.EPIPE, errno.ENOSPC}


def run(command: Callable[[], object]) -> int:
    """Run a command and map any exception to an exit code.

    Args:
        command: Returns its exit code; any other value means success.

    Returns:
        The exit code.
    """
    try:
        code = _run(command)
        if sys.stdout is not None:
            sys.stdout.flush()  # an error after this line could only be printed as a traceback
    except BrokenPipeError:
        discard_output()
        return PIPE_CLOSED
    except SystemExit as end:
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        discard_output()  # the libraries of the help and of the progress bar exit instead of raising
        return PIPE_CLOSED
    except OSError as error:
        print_error(f"the output cannot be written: {error.strerror}")
        discard_output()
        return FAILED
    return code


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
    return BAD_INPUT if error.code in {*INVALID_INPUT_CODES, InvalidData.code} else FAILED


def print_error(message: str) -> None:
    """Print a message in one line on stderr.

    Args:
        message: The message; line breaks become spaces.
    """
    print(f"headcount: {' '.join(one_line(message).split())}", file=sys.stderr)


def _run(command: Callable[[], object]) -> int:
    """Run a command; only errors of the output are raised."""
    try:
        code = command()
    except ModelCoreError as error:
        print_error(f"{error}; {error.hint}" if error.hint else str(error))
        return exit_code(error)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None and error.errno in _OUTPUT_ERRORS:
            raise
        return _usage(error)
    return code if isinstance(code, int) else DONE


def _usage(error: Exception) -> int:
    """Report a usage error by its message, and an unexpected one without its traceback."""
    format_message = getattr(error, "format_message", None)
    print_error(format_message() if format_message else f"unexpected {type(error).__name__}: {error}")
    return int(getattr(error, "exit_code", FAILED))
