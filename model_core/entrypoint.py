"""One process of a job: signals, events, log, exit code and outcome file.

However the process ends, it leaves an exit code, an `end` event and an outcome file; the supervisor reads the file, not
the code. A signal, or the end of the pipe that the supervisor holds, asks the process to save and exit; SIGUSR1 dumps
the stacks of all threads. Torch-free, so that the handlers are installed before the slow imports. Nothing here takes a
lock, because a signal handler may interrupt another one and would wait forever for a lock that it holds.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from model_core.config_loader import ConfigWarning
from model_core.console import discard_output, one_line, prepare_streams
from model_core.errors import (
    BAD_INPUT,
    BAD_INPUT_CODES,
    BUSY,
    FAILED,
    PIPE_CLOSED,
    STOPPED,
    AttemptSuperseded,
    ModelCoreError,
    OutOfMemory,
    RunBusy,
    Stopped,
    is_out_of_memory,
)
from model_core.storage.events import EventWriter, finite, last_event
from model_core.storage.files import now, write_json
from model_core.yaml_core import plain_value

log = logging.getLogger(__name__)

Emit = Callable[..., Any]  # writes an event: its type, then its fields as keywords
OnRefusal = Callable[[ModelCoreError], None]

_STDERR = 2  # the descriptor: sys.stderr may be something that a signal handler cannot write to
_PARENT_POLL_S = 0.5


class ShutdownSignal:
    """Whether the process was asked to stop.

    Attributes:
        reason: Name of the first signal or event that asked; None if there was none.
    """

    def __init__(self) -> None:
        self.reason: str | None = None

    def __call__(self) -> bool:
        """Check whether the process was asked to stop.

        Returns:
            True from the first request on.
        """
        return self.reason is not None

    def listen(self, *, stdin: bool, parent: bool = False) -> None:
        """Handle SIGTERM and SIGINT as requests to stop; on SIGUSR1, write the stacks of all threads to stderr.

        Args:
            stdin: Also handle the end of standard input: a pipe whose other end the supervisor holds, so that it closes
                when the supervisor dies in any way.
            parent: Also handle the end of the parent process, the launcher of processes that train together.
        """
        if hasattr(signal, "SIGUSR1"):  # not on Windows
            faulthandler.register(signal.SIGUSR1, file=_STDERR, all_threads=True)
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        if stdin:
            threading.Thread(target=self._watch, args=(0,), name="supervisor-watch", daemon=True).start()
        if parent:
            threading.Thread(target=self._watch_parent, args=(os.getppid(),), name="parent-watch", daemon=True).start()

    def check(self) -> None:
        """Raise an error if the process was asked to stop.

        Raises:
            Stopped: It was asked.
        """
        if self.reason is not None:
            raise Stopped(self.reason)

    def request(self, reason: str) -> None:
        """Ask the process to stop; only the first reason is kept.

        Args:
            reason: What asks.
        """
        if self.reason is None:
            self.reason = reason

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.request(signal.Signals(number).name)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C does not wait

    def _watch(self, descriptor: int) -> None:
        while os.read(descriptor, 4096):
            pass
        self.request("supervisor gone")

    def _watch_parent(self, parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_POLL_S)
        self.request("launcher gone")


class OneLineParser(argparse.ArgumentParser):
    """Argument parser that reports an error on one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with the code of bad input.

        Args:
            message: What is wrong with the arguments.
        """
        self.exit(BAD_INPUT, f"error: {message}; see --help\n")


def whole_number(text: str) -> int:
    """Read an argument that is a whole number, as in a configuration.

    Args:
        text: The argument: 1000, 1e3 or 1000.0.

    Returns:
        The number.

    Raises:
        argparse.ArgumentTypeError: It is something else.
    """
    try:
        value = plain_value(text)
    except ValueError:
        value = None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")


class Attempt:
    """Records the events and the outcome of one process.

    Args:
        directory: Directory of events.jsonl and outcome.json.
        number: Number of the attempt.
        seq_after: Number of the last event of a run that this one replaces.

    Attributes:
        number: Number of the attempt; it grows with every attempt at the same directory.
        facts: Further fields of the `end` event and the outcome.
        outcome: ``succeeded``, ``failed`` or ``stopped``; None before the end.
    """

    def __init__(self, directory: Path, number: int, *, seq_after: int = 0) -> None:
        self._directory, self.number = directory, number
        self._events = EventWriter(directory / "events.jsonl", number, seq_after=seq_after)
        self.facts: dict[str, Any] = {}
        self.outcome: str | None = None

    def emit(self, type: str, **fields: Any) -> dict[str, Any]:  # noqa: A002 - the name on disk
        """Write an event; a warning is also logged.

        Args:
            type: Type of the event.
            fields: Further fields.

        Returns:
            The event as written.
        """
        if type == "warning":
            log.warning("%s: %s", fields["code"], fields["detail"])
        return self._events.append(type, **fields)

    def warn(self, warnings: Iterable[ConfigWarning]) -> None:
        """Write a `warning` event for each warning about the configuration.

        Args:
            warnings: The warnings.
        """
        for warning in warnings:
            self.emit("warning", code=warning.code, detail=warning.detail)

    def stopped(self, reason: str | None) -> int:
        """End the attempt because the process was asked to stop.

        Args:
            reason: What asked.

        Returns:
            The exit code.
        """
        self.facts["reason"] = reason
        self.finish("stopped")
        return STOPPED

    def finish(self, outcome: str, error: dict[str, Any] | None = None) -> None:
        """Write the `end` event and the outcome file.

        Args:
            outcome: ``succeeded``, ``failed`` or ``stopped``.
            error: Fields of the error, as `describe` returns them.
        """
        self.outcome = outcome
        record = {"schema_version": 1, "attempt": self.number, "outcome": outcome, "error": error, "time": now()}
        try:
            self.emit("end", outcome=outcome, error=error, **self.facts)
            self._events.close()
        finally:
            write_json(self._directory / "outcome.json", finite({**record, **self.facts}))


def make_attempt(
    directory: Path, number: int, body: Callable[[Attempt], int], *, log_to_file: bool = True, seq_after: int = 0
) -> int:
    """Run the body of an attempt and record its outcome, whatever it is.

    Args:
        directory: Directory of events.jsonl, outcome.json and logs/log.txt.
        number: Number of the attempt.
        body: The work. It returns the exit code, and has finished the attempt unless that is 0.
        log_to_file: Whether log lines also go to logs/log.txt.
        seq_after: Number of the last event of a run that this one replaces.

    Returns:
        The exit code.

    Raises:
        RunBusy: The directory belongs to another process; nothing more is written there.
        AttemptSuperseded: Likewise.
    """
    attempt = Attempt(directory, number, seq_after=seq_after)
    with _log_file(directory / "logs" / "log.txt") if log_to_file else contextlib.nullcontext():
        try:
            code = body(attempt)
        except (AttemptSuperseded, RunBusy):
            raise
        except Stopped as stopped:
            return attempt.stopped(stopped.reason)
        except Exception as error:
            log.error("attempt failed number=%d", number, exc_info=not isinstance(error, ModelCoreError))
            attempt.facts |= error.facts if isinstance(error, ModelCoreError) else {}
            with contextlib.suppress(ModelCoreError, OSError):  # on a full disk only stderr works
                attempt.finish("failed", describe(error))
            return _print_error(error)
        if attempt.outcome is None:
            attempt.finish("succeeded")
        return code


def refuse(directory: Path, number: int, error: ModelCoreError) -> None:
    """Record that an attempt ended before it could begin.

    Args:
        directory: Directory of the outcome file.
        number: Number of the attempt.
        error: Why it could not begin.
    """
    record = {"schema_version": 1, "attempt": number, "outcome": "failed", "error": describe(error), "time": now()}
    write_json(directory / "outcome.json", record)


def next_attempt(events: Path) -> int:
    """Return the number of an attempt that is started by hand.

    Args:
        events: Path of events.jsonl.

    Returns:
        One more than the last attempt in the file.
    """
    last = last_event(events)
    return (last["attempt"] if last else 0) + 1


def describe(error: BaseException) -> dict[str, Any]:
    """Convert an error to the fields of a record.

    Args:
        error: The error.

    Returns:
        ``code``, ``detail``, ``step`` and ``hint``.
    """
    code, hint, step, detail = "internal_error", None, None, f"{type(error).__name__}: {error}"
    if isinstance(error, ModelCoreError):
        code, hint, step, detail = error.code, error.hint, error.step, str(error)
    elif is_out_of_memory(error):
        code, detail = OutOfMemory.code, str(error).partition("\n")[0] or type(error).__name__
        hint = f"halve training.batch_size, {OutOfMemory.REMEDIES}"
    elif isinstance(error, ModuleNotFoundError):
        hint = "pip install 'headcount[worker]' brings what training and preparing data need"
    return {"code": code, "detail": detail, "step": step, "hint": hint}


def exit_code(main: Callable[[], int], on_refusal: OnRefusal | None = None) -> int:
    """Run the body of a program; an error becomes one line on stderr and an exit code.

    Args:
        main: The body.
        on_refusal: Called with an error that prevented the work; not if another process holds the run.

    Returns:
        The exit code.
    """
    prepare_streams()
    try:
        code = main()
        if sys.stdout is not None:
            sys.stdout.flush()  # an error after this line could only be printed as a traceback
        return code
    except (AttemptSuperseded, RunBusy) as error:
        return _print_error(error)
    except BrokenPipeError:
        discard_output()
        return PIPE_CLOSED
    except ModelCoreError as error:
        if on_refusal is not None:
            with contextlib.suppress(ModelCoreError, OSError):
                on_refusal(error)
        return _print_error(error)
    except Exception as error:  # noqa: BLE001 - the edge of the process: one line, no stack trace
        return _print_error(error)


def log_to_stderr(*, verbose: bool) -> None:
    """Log to stderr, one line per event.

    Args:
        verbose: Log everything; otherwise, and on a terminal with its progress bar, only warnings.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_WithoutTrace("%(asctime)s %(message)s"))
    if not verbose or sys.stderr.isatty():
        handler.setLevel(logging.WARNING)  # a terminal shows the progress bar
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def run_job_program(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    main: Callable[[argparse.Namespace, ShutdownSignal], int],
) -> int:
    """Run the program of a job that records its attempts in its own directory, not in a run.

    Args:
        parser: Parser with the options of this kind of job; those of every such job are added.
        argv: Command-line arguments; None takes those of the process.
        main: The program; it receives the arguments and the signal to stop.

    Returns:
        The exit code: 0 done, 1 failed, 2 bad input, 75 stopped.
    """
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help="the job's configuration")
    add("--run", required=True, metavar="NAME", help="name of the run")
    add("--data-root", required=True, type=Path, metavar="DIR")
    add("--record", required=True, type=Path, metavar="DIR", help="directory for events and outcome")
    add("--attempt", type=int)
    add("--job-id")
    arguments = parser.parse_args(argv)
    stop = ShutdownSignal()
    stop.listen(stdin=arguments.attempt is not None)

    def on_refusal(error: ModelCoreError) -> None:
        refuse(arguments.record, arguments.attempt or 1, error)

    return exit_code(lambda: main(arguments, stop), on_refusal)


def _print_error(error: Exception) -> int:
    """Print an error on one line of stderr; returns the exit code for it."""
    facts = describe(error)
    hint = f" ({facts['hint']})" if facts["hint"] else ""
    print(f"error: {' '.join(one_line(facts['detail']).split())}{hint}", file=sys.stderr)  # noqa: T201 - the command's voice
    if isinstance(error, Stopped):
        return STOPPED
    if isinstance(error, AttemptSuperseded | RunBusy):
        return BUSY
    return BAD_INPUT if facts["code"] in BAD_INPUT_CODES else FAILED


@contextlib.contextmanager
def _log_file(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


class _WithoutTrace(logging.Formatter):
    """Formats a record on one line; the log file has the stack trace."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return one_line(text.partition("\n")[0])
