"""Commands that need no running service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headcount.commands.common import AsJson, DataOption, FileArgument, Settings, print_json

_SHELLS = ("bash", "zsh", "fish")


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
    root_path: Annotated[
        str,
        typer.Option(envvar="HEADCOUNT_ROOT_PATH", help="Path prefix under which a proxy publishes the service."),
    ] = "",
) -> int:
    """Start Redis, worker, inference and API, and serve until Ctrl-C.

    Uses the Redis at HEADCOUNT_REDIS_URL if that is set, else an embedded one on a private socket. A process that dies
    is restarted. On Ctrl-C a training saves its state, and continues with the next `up` on the same data.
    """
    from headcount.launcher import UpOptions
    from headcount.launcher import up as serve
    from service.protocol.addresses import checked_root_path

    try:
        prefix = checked_root_path(root_path)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--root-path") from None
    return serve(UpOptions(host, port, data, slots, prefix), lambda message: print(message, flush=True))


def demo(
    data: Annotated[Path, typer.Option(help="The demo's own data root.")] = Path("data-demo"),
) -> int:
    """Run the whole workflow once: start everything, train a small model, generate text, draw its attention, stop."""
    from rich.console import Console

    from headcount.demo import demo as run_demo

    return run_demo(data, Console())


def report(
    file: FileArgument,
    settings: Settings = None,
    formulas: Annotated[bool, typer.Option("--formulas", help="Also print how each number is computed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a configuration costs, compared with the uniform model: parameters, KV cache, FLOPs, memory, steps."""
    from headcount.cost_report import cost_report, print_report

    result = cost_report(file, settings or ())
    if as_json:
        print_json(result.to_dict())
    else:
        print_report(result, formulas=formulas)


def reindex(data: DataOption = Path("data"), as_json: AsJson = False) -> int:
    """Restore job records from disk after Redis lost them.

    Works while the service is up and while it is down. Jobs that Redis knows are not changed. A training that was
    interrupted comes back as paused: `headcount resume ID` continues from its last full state. Jobs that never started
    left no files; submit them again.
    """
    from headcount.exit_codes import print_error
    from headcount.reindex import reindex as bring_back

    return bring_back(data, lambda line: print(line, flush=True), print_error, as_json=as_json)


def completion(shell: Annotated[str, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")]) -> None:
    """Print a script that completes commands, options, runs and jobs with the tab key.

    For bash add to ~/.bashrc: eval "$(headcount completion bash)"; for zsh the same in ~/.zshrc, with zsh; for fish:
    headcount completion fish > ~/.config/fish/completions/headcount.fish
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    if shell not in _SHELLS:
        raise typer.BadParameter(f"{shell!r} is not one of {', '.join(_SHELLS)}", param_hint="SHELL")
    print(get_completion_script(prog_name="headcount", complete_var="_HEADCOUNT_COMPLETE", shell=shell))


COMMANDS = (up, demo, report, reindex, completion)
