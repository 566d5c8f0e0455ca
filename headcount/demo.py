"""`headcount demo`: the whole workflow on one machine, as a client of an embedded service.

Starts `headcount up` on a free port with its own data root, submits the quickstart, follows the training, generates
text, checks the attention pictures and stops everything.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from headcount.client import DEFAULT_URL, Client, Json, Refused
from headcount.follow import ProgressView, follow, follow_from_queue
from headcount.processes import ProcessGroup, Program
from headcount.terminal import number
from model_core.config_loader import preset_text
from model_core.console import printable
from model_core.errors import ModelCoreError
from model_core.storage.files import Layout

_PRESET, _EXAMPLE, _PROMPT = "quickstart", "0", "One day"
_WORDS, _TRIES = 60, 8
_START_S, _STOP_S = 200.0, 120.0


class DemoFailed(ModelCoreError):
    """A step of the demo failed; the message names the log."""


def demo(data: Path, console: Console) -> int:
    """Train a small model, generate text, check its attention pictures.

    Args:
        data: The data root; a second demo makes a new run in it.
        console: Where progress and results are printed.

    Returns:
        The exit code.

    Raises:
        DemoFailed: The service did not start, or the job did not succeed.
    """
    began = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM stops everything, as Ctrl-C does
    with _service(data, console) as client:
        job = submit_quickstart(client)
        run = job["run"]
        _echo(console, f"submitted {job['id']}: a small GPT-2 with unequal heads, run {run}")
        with cancelled_on_interrupt(client, job["id"]):
            view = follow(follow_from_queue(client, job), console)
        require_success(client.job(job["id"]), data)
        _echo(console, f"\nThe model writes, after {_PROMPT!r}:\n{write(client, run)}")
        pictures = _find_pictures(client, run, data)
    _summary(console, data, run, view, pictures, time.monotonic() - began)
    return 0


@contextlib.contextmanager
def cancelled_on_interrupt(client: Client, job_id: str) -> Iterator[None]:
    """Cancel the job if the block is interrupted, so that the next demo does not run it first.

    Args:
        client: Client of the service.
        job_id: Id of the job.
    """
    try:
        yield
    except KeyboardInterrupt:
        with contextlib.suppress(ModelCoreError):
            client.cancel(job_id)
        raise


def submit_quickstart(client: Client) -> Json:
    """Submit the quickstart, under the next free name if its run exists.

    Args:
        client: Client of the service.

    Returns:
        The job.
    """
    body = preset_text(_PRESET).encode()
    try:
        return client.submit(body, "application/yaml")
    except Refused as refusal:
        free = refusal.problem.get("next_free")
        if free is None:
            raise
        return client.submit(body, "application/yaml", run=free)


def require_success(job: Json, data: Path) -> None:
    """Check that a job succeeded.

    Args:
        job: The job after it has ended.
        data: The data root, for the path of the log.

    Raises:
        DemoFailed: The job ended otherwise.
    """
    if job["status"] == "succeeded":
        return
    error = job["error"] or {}
    why = f"{error.get('code')}: {error.get('detail')}" if error else "see the log"
    log = Layout.under(data).run(job["run"]) / "logs" / "log.txt"
    raise DemoFailed(f"job {job['id']} is {job['status']}: {why} (log: {log})")


def write(client: Client, run: str) -> str:
    """Generate a text of at least 60 words; several seeds are tried because stories vary in length.

    Args:
        client: Client of the service.
        run: Name of the run.

    Returns:
        The prompt and the longest continuation.
    """
    longest = ""
    for seed in range(1, _TRIES + 1):
        wanted = {"run": run, "prompt": _PROMPT, "max_new_tokens": 200, "temperature": 0.8, "seed": seed}
        text = str(client.generate(wanted)["choices"][0]["text"])
        longest = max(longest, text, key=lambda t: len(t.split()))
        if len(longest.split()) >= _WORDS:
            break
    return _PROMPT + longest


@contextlib.contextmanager
def _service(data: Path, console: Console) -> Iterator[Client]:
    """Run a service for the block."""
    port = _free_port()
    log = data.resolve() / "logs" / "up.log"
    environment = {name: value for name, value in os.environ.items() if name != "HEADCOUNT_REDIS_URL"}
    argv = (sys.executable, "-m", "headcount", "up", "--port", str(port), "--data", str(data.resolve()))
    group = ProcessGroup(lambda message: _echo(console, message))
    group.start(Program("up", argv, environment, log))
    try:
        with Client(f"http://127.0.0.1:{port}") as client:
            _echo(console, f"starting Redis, worker, inference and API on {client.url}, data in {data}")
            _await(client, group, log)
            yield client
    finally:
        _echo(console, "stopping everything")
        group.stop(("up",), _STOP_S, lambda: False)
        group.close()


def _await(client: Client, group: ProcessGroup, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while not client.ready():
        if "up" not in group.pids or time.monotonic() > deadline:
            raise DemoFailed(f"the service did not start: {group.programs['up'].last_line()} (full log: {log})")
        time.sleep(0.2)


def _find_pictures(client: Client, run: str, data: Path) -> list[Path]:
    """Find the pictures of the first test example, which the trainer drew in the data root."""
    manifest = client.attention(run, _EXAMPLE)
    directory = Layout.under(data).attention_of(run) / _EXAMPLE
    pictures = [directory / Path(layer["png"]).name for layer in manifest["layers"]]
    missing = [str(picture) for picture in pictures if not picture.is_file()]
    if missing:
        raise DemoFailed(f"attention pictures are missing: {', '.join(missing)}")
    return pictures


def _summary(console: Console, data: Path, run: str, view: ProgressView, pictures: list[Path], seconds: float) -> None:
    bits = f", {view.bits_per_byte:.3f} bits per byte" if view.bits_per_byte is not None else ""
    _echo(console, f"\nrun {run}: {view.step} steps in {data / 'exp' / run}, all in {seconds:.0f} s")
    _echo(console, f"validation loss {number(view.first_val_loss)} -> {number(view.val_loss)}{bits}")
    _echo(console, "attention of test example 0, one picture per layer, one panel per head:")
    for picture in pictures:
        _echo(console, f"  {picture}")
    _echo(console, f"\nTo see the run again:\n  {_command()} up --data {data}")
    _echo(console, f"and open in a browser:\n  {DEFAULT_URL}/attention/{run}/{_EXAMPLE}\n  {DEFAULT_URL}/runs/{run}")


def _command() -> str:
    """The command as it can be typed in this directory."""
    script = Path(sys.executable).parent / "headcount"
    found = shutil.which("headcount")
    if found and Path(found).samefile(script):
        return "headcount"
    here = Path.cwd()
    return str(script.relative_to(here) if script.is_relative_to(here) else script)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _echo(console: Console, text: str) -> None:
    console.print(printable(text), markup=False, highlight=False, emoji=False, soft_wrap=True)
