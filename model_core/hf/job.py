"""Export as a job: the program that a worker starts to write a run's model to the data root's exports.

The configuration's `testing.checkpoint_path` names the checkpoint; the folder's name is in the `end` event and in
the outcome. An existing export of the same checkpoint is the result.
"""

from __future__ import annotations

import argparse
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
from model_core.errors import DONE
from model_core.storage.checkpoints import FALLBACK, fallback_detail
from model_core.storage.files import Layout
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
    parser = OneLineParser(prog="python -m model_core.hf.job", description="Export a run as a job of a worker.")
    parser.add_argument("--licence", metavar="NAME", help="licence of the model for its card")
    return parser


def _run(arguments: argparse.Namespace, stop: ShutdownSignal) -> int:
    config = read_config(arguments.config).config
    log_to_stderr(verbose=config.logging.verbose)
    layout = Layout.under(arguments.data_root)
    run = Run.open(layout.run(arguments.run))
    number = arguments.attempt or next_attempt(arguments.record / "events.jsonl")
    wanted, licence = config.testing.checkpoint, arguments.licence
    return make_attempt(arguments.record, number, lambda attempt: _export(run, wanted, licence, layout, attempt, stop))


def _export(run: Run, wanted: str, licence: str | None, layout: Layout, attempt: Attempt, stop: ShutdownSignal) -> int:
    attempt.emit("start", run=run.name, checkpoint=wanted, licence=licence)
    from model_core.hf.export import ensure_export

    export = ensure_export(run, layout, checkpoint=wanted, licence=licence, check=stop.check)
    if (detail := fallback_detail(wanted, export.info)) is not None:
        attempt.emit("warning", code=FALLBACK, detail=detail)
    attempt.emit("progress", done=len(export.files), of=len(export.files), unit="files")
    attempt.facts |= {
        "checkpoint": export.info.file,
        "step": export.info.step,
        "sha256": export.info.sha256,
        "folder": export.folder.relative_to(layout.exp.parent).as_posix(),
        "files": export.files,
    }
    return DONE


if __name__ == "__main__":
    sys.exit(main())
