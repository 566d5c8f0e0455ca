"""Import as a job: the program that a worker starts to create a run from a model below the data root's uploads.

Events and outcome are in the job's own directory, because the run appears when it is complete. A model that came with
the request is deleted once the run exists.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence

from model_core.config_loader import read_config
from model_core.entrypoint import (
    Attempt,
    OneLineParser,
    ShutdownSignal,
    log_to_stderr,
    make_attempt,
    next_attempt,
    run_job_program,
)
from model_core.errors import DONE, InvalidData
from model_core.storage.events import read_events
from model_core.storage.files import Layout, portable
from model_core.storage.run import Run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        argv: Command-line arguments; None takes those of the process.

    Returns:
        The exit code: 0 done, 1 failed, 2 bad input, 75 stopped.
    """
    return run_job_program(_parser(), argv, _run)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m model_core.hf.import_job", description="Import a model as a job of a worker."
    )
    parser.add_argument(
        "--source", required=True, metavar="file:uploads/PATH", help="folder or archive below the data root"
    )
    return parser


def _run(arguments: argparse.Namespace, stop: ShutdownSignal) -> int:
    log_to_stderr(verbose=read_config(arguments.config).config.logging.verbose)
    number = arguments.attempt or next_attempt(arguments.record / "events.jsonl")
    return make_attempt(arguments.record, number, lambda attempt: _import(arguments, attempt, stop))


def _import(arguments: argparse.Namespace, attempt: Attempt, stop: ShutdownSignal) -> int:
    layout = Layout.under(arguments.data_root)
    source = arguments.data_root / portable(arguments.source.removeprefix("file:"))
    sent = layout.sent_models(arguments.run)
    attempt.emit("start", run=arguments.run, source=arguments.source)
    run = Run(layout.run(arguments.run))
    if arguments.job_id is None or run.attempt()["job_id"] != arguments.job_id:  # else an earlier attempt made it
        from model_core.hf.import_model import ImportCallback, import_model

        if not source.exists():
            raise InvalidData(f"there is nothing at {arguments.source} any more")

        def show_progress(done: int, of: int) -> None:
            attempt.emit("progress", done=done, of=of, unit="tensors")

        callback = ImportCallback(stop.check, show_progress)
        origin = "upload" if source.parent == sent else None
        import_model(source, run.name, layout, job_id=arguments.job_id, origin=origin, callback=callback)
        for warning in read_events(run.events, types={"warning"}):
            attempt.emit("warning", code=warning["code"], detail=warning["detail"])
    if source.is_relative_to(sent):
        shutil.rmtree(sent, ignore_errors=True)
    info = run.resolve("best")
    attempt.facts |= {"run": run.name, "checkpoint": info.file, "step": info.step, "sha256": info.sha256}
    return DONE


if __name__ == "__main__":
    sys.exit(main())
