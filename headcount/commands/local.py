"""Commands that need no running service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headcount.commands.common import AsJson, DataOption, FileArgument, Settings, print_json


def up(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    data: Annotated[Path, typer.Option(envvar="HEADCOUNT_DATA", help="The data root; made if missing.")] = Path("data"),
    slots: Annotated[
        int | None,
        typer.Option(min=1, envvar="HEADCOUNT_SLOTS", help="Jobs at a time. Default: one a GPU, at least 1."),
    ] = None,
) -> int:
    """Start Redis, worker, inference and API, and serve until Ctrl-C.

    Redis is HEADCOUNT_REDIS_URL's if that is set, else one of our own on a private socket. What dies is started again.
    On Ctrl-C a training saves its state, and goes on with the next `up` on the same data.
    """
    from headcount.launcher import UpOptions
    from headcount.launcher import up as serve

    return serve(UpOptions(host, port, data, slots), lambda message: print(message, flush=True))


def demo(
    data: Annotated[Path, typer.Option(help="The demo's own data root.")] = Path("data-demo"),
) -> int:
    """Do the whole job once: start everything, train a small model, let it write, draw its attention, stop."""
    from rich.console import Console

    from headcount.demo import demo as show

    return show(data, Console())


def report(file: FileArgument, settings: Settings = None, as_json: AsJson = False) -> None:
    """Say what a configuration costs: parameters, KV cache, FLOPs, memory and steps, beside the uniform model."""
    from rich.console import Console

    from headcount.output import report as count
    from headcount.output import show

    result = count(file, settings or ())
    if as_json:
        print_json(result.to_dict())
    else:
        show(result, Console())


def reindex(data: DataOption = Path("data")) -> int:
    """Make job records again from the disk, when Redis has lost them.

    Works while the service is up and while it is down. Jobs that Redis knows are left alone. A training that was cut
    off comes back as paused: `headcount resume ID` goes on from its last full state. Jobs that never started left
    nothing; submit them again.
    """
    from headcount.exit_codes import complain
    from headcount.reindex import reindex as bring_back

    return bring_back(data, lambda line: print(line, flush=True), complain)


COMMANDS = (up, demo, report, reindex)
