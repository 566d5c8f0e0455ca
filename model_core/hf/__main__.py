"""Exports runs to folders of transformers, and imports them: ``python -m model_core.hf export --run RUN --out DIR``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from model_core.config import ExperimentConfig
from model_core.entrypoint import OneLineParser, exit_code, log_to_stderr
from model_core.errors import DONE, INTERRUPTED, InvalidParameter
from model_core.storage.checkpoints import FALLBACK, fallback_detail
from model_core.storage.files import Layout, portable
from model_core.storage.run import Run

log = logging.getLogger(__name__)

_EXAMPLES = """
examples:
  python -m model_core.hf export --run first-steps --out ./first-steps-hf
  python -m model_core.hf export --run first-steps --checkpoint step=250 --out ./at-250
  python -m model_core.hf import ./gpt2 --run gpt2
  python -m model_core.hf import gpt2.zip --run gpt2

Runs are in DIR/exp of a data root, and in ./exp without one. transformers loads an exported folder with
from_pretrained; it needs trust_remote_code=True if the heads are not GPT-2's. An imported run can generate text, show
its attention, and be named in checkpoint.load_checkpoint. Exit codes: 0 done, 1 failed, 2 bad input.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        argv: Command-line arguments; None takes those of the process.

    Returns:
        The exit code: 0 done, 1 failed, 2 bad input, 130 interrupted.
    """
    arguments = _parser().parse_args(argv)
    log_to_stderr(verbose=False)
    try:
        return exit_code(lambda: _run(arguments))
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m model_core.hf",
        description="Exchange models with Hugging Face's transformers.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="export|import")
    export = commands.add_parser("export", help="write a run as a folder that transformers loads")
    export.add_argument("--run", required=True, metavar="RUN")
    export.add_argument(
        "--checkpoint", default="best", help="best, final, latest, step=N or a file name (default: best)"
    )
    export.add_argument(
        "--out", type=portable, metavar="DIR",
        help="folder to create; it must be empty if it exists (default with a data root: DIR/exports/RUN/CHECKPOINT)",
    )  # fmt: skip
    export.add_argument("--licence", metavar="NAME", help="licence of the model for its card, for example mit")
    import_ = commands.add_parser("import", help="create a run from a folder or an archive with a GPT-2")
    import_.add_argument(
        "source", type=portable, metavar="PATH",
        help="folder with config.json, weights and tokenizer files, or a .zip or .tar.gz of one",
    )  # fmt: skip
    import_.add_argument("--run", required=True, metavar="NAME", help="name of the run; it must not exist")
    for command in (export, import_):
        command.add_argument(
            "--data-root", type=portable, metavar="DIR", default=os.environ.get("HEADCOUNT_DATA"),
            help="data root of the service (default: $HEADCOUNT_DATA)",
        )  # fmt: skip
    return parser


def _run(arguments: argparse.Namespace) -> int:
    root = arguments.data_root
    layout = Layout.under(root) if root else Layout.of(ExperimentConfig())
    return _export(arguments, layout) if arguments.command == "export" else _import(arguments, layout)


def _export(arguments: argparse.Namespace, layout: Layout) -> int:
    if arguments.out is None and layout.exports is None:
        raise InvalidParameter("name a folder with --out, or a data root with --data-root or HEADCOUNT_DATA")
    run = Run.open(layout.run(arguments.run))

    from model_core.hf.export import ensure_export, export_run

    how = {"checkpoint": arguments.checkpoint, "licence": arguments.licence}
    if arguments.out:
        export = export_run(run, arguments.out, **how, layout=layout if arguments.data_root else None)
    else:
        export = ensure_export(run, layout, **how)
    if (detail := fallback_detail(arguments.checkpoint, export.info)) is not None:
        log.warning("%s: %s", FALLBACK, detail)
    total = sum(export.files.values())
    sys.stdout.write(
        f"{export.info.file} of run {run.name}: {len(export.files)} files, {total:,} bytes in {export.folder}\n"
    )
    return DONE


def _import(arguments: argparse.Namespace, layout: Layout) -> int:
    from model_core.hf.import_model import import_model

    run = import_model(arguments.source, arguments.run, layout)
    model = run.config().model
    heads = ",".join(map(str, model.heads))
    sys.stdout.write(f"run {run.name}: {model.n_layer} layers of {heads} heads, width {model.n_embd}, in {run.path}\n")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
