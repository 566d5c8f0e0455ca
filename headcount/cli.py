"""The command line. Each command reads its arguments, makes one call and prints; `exits.py` says how it ends.

Nothing heavy is imported until a command needs it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headcount import exits

if TYPE_CHECKING:
    from headcount.client import Client, Json

_HERE, _JOBS, _MODELS = "On this machine, no server needed", "Jobs of a running service", "Models of a running service"
_HELP = """Train GPT-2 models whose layers have different numbers of attention heads, and see where every head looks.

Start everything on this machine with [bold]headcount up[/bold], then, in another terminal:

    headcount submit configs/quickstart.yaml --follow
    headcount generate quickstart "One day"
    headcount attention quickstart 0

Clients talk to HEADCOUNT_URL (default http://127.0.0.1:8000). [bold]headcount COMMAND --help[/bold] says more.
"""

app = typer.Typer(
    help=_HELP, rich_markup_mode="rich", add_completion=False, pretty_exceptions_enable=False,
    invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip

FileArgument = Annotated[str, typer.Argument(metavar="FILE", help="A configuration, such as configs/quickstart.yaml.")]
JobArgument = Annotated[str, typer.Argument(metavar="ID", help="A job, job_... as `headcount jobs` lists it.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run, by the name of its experiment.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="K=V", help="Override one value: training.max_steps=100. May be repeated."),
]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Stay until the job has ended.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
CheckpointOption = Annotated[str, typer.Option(help="best, final, latest, step=N or a file name.")]


def main() -> None:
    """Run the command and leave with its exit code."""
    sys.exit(exits.run(lambda: app(standalone_mode=False)))


@app.callback()
def _root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


# --- on this machine ------------------------------------------------------------------------------------------------


@app.command(rich_help_panel=_HERE)
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


@app.command(rich_help_panel=_HERE)
def demo(
    data: Annotated[Path, typer.Option(help="The demo's own data root.")] = Path("data-demo"),
) -> int:
    """Do the whole job once: start everything, train a small model, let it write, draw its attention, stop."""
    from rich.console import Console

    from headcount.demo import demo as show

    return show(data, Console())


@app.command(rich_help_panel=_HERE)
def report(file: FileArgument, settings: Settings = None, as_json: AsJson = False) -> None:
    """Say what a configuration costs: parameters, KV cache, FLOPs, memory and steps, beside the uniform model."""
    from rich.console import Console

    from headcount.report import report as count

    result = count(file, settings or ())
    if as_json:
        _print_json(result.to_dict())
    else:
        result.print(Console())


# --- jobs -----------------------------------------------------------------------------------------------------------


@app.command(rich_help_panel=_JOBS)
def submit(
    file: FileArgument,
    run: Annotated[str | None, typer.Option(help="Name of the run, instead of the file's experiment_name.")] = None,
    settings: Settings = None,
    follow: Follow = False,
) -> int:
    """Submit a configuration as a job; with --follow, watch it and exit as it does.

    Exit codes with --follow: 0 succeeded, 1 failed, 75 cancelled.
    """
    from headcount.client import body_of

    body, content_type = body_of(file, settings or ())
    with _client() as client:
        job = client.submit(body, content_type, run)
        for warning in job.get("warnings", ()):
            exits.complain(f"warning: {warning['detail']}")
        if not follow:
            print(f"{job['id']}  {job['status']}  run {job['run']}")
            return exits.DONE
        print(f"{job['id']}  run {job['run']}", flush=True)
        return _watch(client, job["id"])


@app.command(rich_help_panel=_JOBS)
def jobs(
    status: Annotated[str | None, typer.Option(help="Only jobs in this state: queued, running, ...")] = None,
    run: Annotated[str | None, typer.Option(help="Only jobs of this run.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many, newest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    from headcount.show import job_table

    with _client() as client:
        page = client.jobs(status=status, run=run, limit=limit)
    if as_json:
        _print_json(page)
    else:
        job_table(page["data"], has_more=page["has_more"])


@app.command(rich_help_panel=_JOBS)
def job(job_id: JobArgument, as_json: AsJson = False) -> None:
    """Show one job: state, progress, worker, error, history."""
    from headcount.show import job_card

    with _client() as client:
        found = client.job(job_id)
    if as_json:
        _print_json(found)
    else:
        job_card(found)


@app.command(rich_help_panel=_JOBS)
def cancel(job_id: JobArgument) -> None:
    """Stop a job for good; a running one saves its state first."""
    with _client() as client:
        found = client.cancel(job_id)
    print(f"{found['id']}  {found['status']}")


@app.command(rich_help_panel=_JOBS)
def events(
    job_id: JobArgument,
    follow: Follow = False,
    after: Annotated[int, typer.Option(min=0, help="Only events with a higher number.")] = 0,
) -> None:
    """Print a job's events as JSON, one a line; a broken stream is taken up again."""
    with _client() as client:
        for event in client.follow(job_id, after) if follow else client.events(job_id, after):
            print(json.dumps(event, ensure_ascii=False), flush=follow)


@app.command(rich_help_panel=_JOBS)
def logs(job_id: JobArgument, follow: Follow = False) -> None:
    """Print what a job did, one line an event, for people."""
    from headcount.follow import log_line

    with _client() as client:
        for event in client.follow(job_id) if follow else client.events(job_id):
            print(log_line(event), flush=follow)


# --- models ---------------------------------------------------------------------------------------------------------


@app.command(rich_help_panel=_MODELS)
def generate(
    run: RunArgument,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Text to continue.")] = "",
    checkpoint: CheckpointOption = "best",
    max_new_tokens: Annotated[int, typer.Option(help="Longest continuation, in tokens.")] = 100,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Only the K likeliest tokens; 0: all.")] = 50,
    top_p: Annotated[float, typer.Option(help="Only the likeliest tokens of this total probability.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes the text repeatable.")] = None,
    n: Annotated[int, typer.Option("-n", help="How many continuations.")] = 1,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text. May be repeated.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print pieces as they come (one continuation).")] = False,
    as_json: AsJson = False,
) -> None:
    """Let a trained model continue a prompt, also while it trains."""
    request: dict[str, Any] = {
        "run": run, "checkpoint": checkpoint, "prompt": prompt, "max_new_tokens": max_new_tokens,
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed, "n": n, "stop": stop or [],
    }  # fmt: skip
    with _client() as client:
        if stream and n == 1 and not as_json:
            print(prompt, end="", flush=True)
            for piece in client.generate_stream(request):
                print(piece["text"], end="", flush=True)
            print()
            return
        reply = client.generate(request)
    if as_json:
        _print_json(reply)
    else:
        print("\n---\n".join(prompt + choice["text"] for choice in reply["choices"]))


@app.command(rich_help_panel=_MODELS)
def attention(
    run: RunArgument,
    example: Annotated[str, typer.Argument(metavar="ID", help="Number of a test example.")],
    out: Annotated[Path | None, typer.Option(help="Directory; default attention_outputs/RUN/ID.")] = None,
    checkpoint: CheckpointOption = "best",
) -> None:
    """Save where every head looks: a picture a layer (layer00.png ...) and all of them on one sheet (sheet.png)."""
    from headcount.show import save_attention

    directory = out or Path("attention_outputs") / run / example
    with _client() as client:
        for file in save_attention(client, run, example, checkpoint, directory):
            print(file)


def _client() -> Client:
    from headcount.client import Client

    return Client()


def _watch(client: Client, job_id: str) -> int:
    from rich.console import Console

    from headcount.follow import follow

    try:
        follow(client.follow(job_id), Console())
    except KeyboardInterrupt:
        exits.complain(f"the job goes on; watch it with: headcount logs {job_id} --follow")
        return exits.INTERRUPTED
    return _ended(client.job(job_id))


def _ended(found: Json) -> int:
    if found["status"] == "failed":
        error = found["error"] or {}
        hint = f"; {error['hint']}" if error.get("hint") else ""
        exits.complain(f"{error.get('code', 'failed')}: {error.get('detail', 'see the log')}{hint}")
        return exits.FAILED
    return exits.DONE if found["status"] == "succeeded" else exits.STOPPED


def _print_json(value: object) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))
