"""Commands that need no running service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headcount.commands.common import AsJson, DataOption, FileArgument, Settings, print_json


def up(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    data: Annotated[Path, typer.Option(envvar="HEADCOUNT_DATA", help="The data root; created if missing.")] = Path(
        "data"
    ),
    slots: Annotated[
        int | None,
        typer.Option(min=1, envvar="HEADCOUNT_SLOTS", help="Jobs at a time. Default: one per GPU, at least 1."),
    ] = None,
) -> int:
    """Start Redis, worker, inference and API, and serve until Ctrl-C.

    Uses the Redis at HEADCOUNT_REDIS_URL if that is set, else an embedded one on a private socket. A process that dies
    is restarted. On Ctrl-C a training saves its state, and continues with the next `up` on the same data.
    """
    from headcount.launcher import UpOptions
    from headcount.launcher import up as serve

    return serve(UpOptions(host, port, data, slots), lambda message: print(message, flush=True))


def demo(
    data: Annotated[Path, typer.Option(help="The demo's own data root.")] = Path("data-demo"),
) -> int:
    """Run the whole workflow once: start everything, train a small model, generate text, draw its attention, stop."""
    from rich.console import Console

    from headcount.demo import demo as run_demo

    return run_demo(data, Console())


def report(file: FileArgument, settings: Settings = None, as_json: AsJson = False) -> None:
    """Show what a configuration costs, compared with the uniform model: parameters, KV cache, FLOPs, memory, steps."""
    from rich.console import Console

    from headcount.output import print_report
    from headcount.output import report as count

    result = count(file, settings or ())
    if as_json:
        print_json(result.to_dict())
    else:
        print_report(result, Console())


def reindex(data: DataOption = Path("data")) -> int:
    """Restore job records from disk after Redis lost them.

    Works while the service is up and while it is down. Jobs that Redis knows are not changed. A training that was
    interrupted comes back as paused: `headcount resume ID` continues from its last full state. Jobs that never started
    left no files; submit them again.
    """
    from headcount.exit_codes import print_error
    from headcount.reindex import reindex as bring_back

    return bring_back(data, lambda line: print(line, flush=True), print_error)


COMMANDS = (up, demo, report, reindex)
