"""Command line that prepares a dataset, for users and for workers.

    python -m model_core.data.prepare --source stories

SIGTERM, Ctrl-C, or the end of standard input under a supervisor stop the preparation with exit code 75; the same
command continues it. On a terminal it shows a progress bar.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_args

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from model_core.catalog import SOURCE_SYNTAX
from model_core.config_loader import parse_config, read_config
from model_core.console import one_line
from model_core.data.dataset_spec import DEFAULT_SEED, DEFAULT_SPLIT, DatasetSpec
from model_core.data.ensure import prepare_dataset
from model_core.data.pipeline import PrepareContext
from model_core.data.sources.base import DocumentsBy, OnBadDocument, SpecialText
from model_core.data.sources.file_names import READABLE, dataset_name
from model_core.data.sources.hub_access import token_from
from model_core.entrypoint import (
    Attempt,
    OneLineParser,
    ShutdownSignal,
    exit_code,
    log_to_stderr,
    make_attempt,
    refuse,
    whole_number,
)
from model_core.errors import DONE, INTERRUPTED, InvalidParameter, ModelCoreError
from model_core.storage.dataset import Dataset, dataset_of, describe_reading
from model_core.storage.files import Layout, checked_name, portable

log = logging.getLogger(__name__)

_EXAMPLES = """
examples:
  python -m model_core.data.prepare --source stories --tokenizer bpe:1024
  python -m model_core.data.prepare --source file:book.txt --name book --split 0.8,0.1,0.1
  python -m model_core.data.prepare --source stories --data-root ./data
  python -m model_core.data.prepare --source tinystories --revision main
  HF_TOKEN=... python -m model_core.data.prepare --source babylm

The dataset's folder gets <name>_train.npy, <name>_val.npy and <name>_test.npy (token ids, one end of text after
each document), test_examples.json with its index, tokenizer.json and manifest.json. An existing dataset that was made
in the same way is verified and kept. After Ctrl-C or a crash, the same command continues the work.
Exit codes: 0 done, 1 failed, 2 bad input, 75 stopped.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments; those of the process if None.

    Returns:
        The exit code: 0 done, 1 failed, 2 bad input, 75 stopped.
    """
    arguments = _parser().parse_args(argv)
    stop = ShutdownSignal()
    stop.listen(stdin=arguments.attempt is not None)

    def report_refusal(error: ModelCoreError) -> None:
        if arguments.attempt is not None:
            refuse(arguments.record, arguments.attempt, error)

    try:
        return exit_code(lambda: _run(arguments, stop), report_refusal)
    except KeyboardInterrupt:
        return INTERRUPTED


class ProgressBar:
    """Shows ``progress`` events on stderr, if it is a terminal."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[status]}"))
        self._progress = Progress(*columns, console=Console(stderr=True), disable=not Console(stderr=True).is_terminal)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def emit(self, event: str, **fields: Any) -> None:
        """Show one event.

        Args:
            event: Type of the event.
            fields: Fields of the event.
        """
        if event == "resumed":
            self._progress.console.print(f"resuming after {fields['done']:,} {fields['unit']}")
        if event == "warning":
            warning = one_line(f"warning: {fields['detail']}")
            self._progress.console.print(warning, markup=False, highlight=False, emoji=False, soft_wrap=True)
        if event != "progress":
            return
        unit, total = fields["unit"], fields["of"]
        if unit not in self._tasks:
            self._tasks[unit] = self._progress.add_task(unit, total=total, status="")
        self._progress.update(self._tasks[unit], completed=fields["done"], total=total, status=_status(fields))


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m model_core.data.prepare",
        description="Prepare a dataset: split the documents of a source, tokenize them and write the ids to disk.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    inputs = parser.add_mutually_exclusive_group(required=True)
    inputs.add_argument(
        "--source", metavar="SOURCE",
        help=f"one of {', '.join(SOURCE_SYNTAX)}. stories and pydoc need no network; file: takes a file or a folder: "
        f"{READABLE}",
    )  # fmt: skip
    inputs.add_argument(
        "--config", type=portable, metavar="FILE", help="YAML file whose section data describes the dataset"
    )
    add("--name", metavar="DATASET", help="name of the dataset and of its files (default: the source's name)")
    add(
        "--data-root", type=portable, metavar="DIR", default=os.environ.get("HEADCOUNT_DATA"),
        help="data root of the service; the dataset goes to DIR/datasets/DATASET (default: $HEADCOUNT_DATA)",
    )  # fmt: skip
    add("--out", type=portable, metavar="DIR", help="the dataset's folder (default without a data root: ./<name>_data)")
    add("--revision", metavar="REV", help="commit, branch or tag of a hub dataset (default: the newest)")
    add("--text-column", default="text", metavar="NAME", help="column with the text (default: text)")
    add(
        "--tokenizer", default="gpt2", metavar="gpt2|bpe:SIZE",
        help="GPT-2's tokenizer, or a byte-level BPE of SIZE ids, trained on the training split (default: gpt2)",
    )  # fmt: skip
    add(
        "--split", type=_shares, default=DEFAULT_SPLIT, metavar="TRAIN,VAL,TEST",
        help="shares of the documents, exact in every 100 documents (default: 0.90,0.09,0.01)",
    )  # fmt: skip
    add("--seed", type=whole_number, default=DEFAULT_SEED, help="seed of split and stories (default: %(default)s)")
    _add_reading_options(parser)
    add("--dedupe", action="store_true", help="drop documents that repeat an earlier text")
    add(
        "--threads", type=_count, metavar="N",
        help="number of tokenizing threads (default: cores + 1); the result does not depend on it",
    )  # fmt: skip
    add("--run", help=argparse.SUPPRESS)  # part of every job's command line; a preparation creates no run
    add("--attempt", type=int, help=argparse.SUPPRESS)  # from the supervisor: number of this attempt
    add("--job-id", help=argparse.SUPPRESS)  # from the supervisor: job that prepares the dataset
    add("--seq-after", type=int, default=0, help=argparse.SUPPRESS)  # from the supervisor: last event number
    add("--record", type=Path, default=Path(), metavar="DIR", help=argparse.SUPPRESS)  # from the supervisor: events
    return parser


def _add_reading_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--documents", default="auto", choices=get_args(DocumentsBy),
        help="what separates documents in a text file; auto: lines of <|endoftext|>, else blank lines unless they are "
        "rare, else line ends (default: auto)",
    )  # fmt: skip
    add(
        "--special-text", default="keep", choices=get_args(SpecialText),
        help="what happens to <|endoftext|> inside a document (default: keep, as text)",
    )  # fmt: skip
    add(
        "--on-bad-document", default="skip", choices=get_args(OnBadDocument),
        help="what a document that cannot be read does; skip: up to 1 in 1,000, and 100 in all (default: skip)",
    )  # fmt: skip


def _run(arguments: argparse.Namespace, stop: ShutdownSignal) -> int:
    spec, dataset = (_from_arguments if arguments.config is None else _from_config)(arguments)
    token = token_from(os.environ)
    if arguments.attempt is None:
        with ProgressBar() as progress_bar:
            prepare_dataset(spec, dataset, PrepareContext(progress_bar.emit, stop, arguments.threads), token=token)
        _print_summary(dataset)
        return DONE
    log_to_stderr(verbose=True)

    def body(attempt: Attempt) -> int:
        prepare_dataset(spec, dataset, PrepareContext(attempt.emit, stop, arguments.threads), token=token)
        log.info("dataset prepared name=%s", dataset.name)
        return DONE

    return make_attempt(arguments.record, arguments.attempt, body, seq_after=arguments.seq_after)


def _from_arguments(arguments: argparse.Namespace) -> tuple[DatasetSpec, Dataset]:
    """Build the spec from the options of the command line."""
    name = _default_name(arguments.source) if arguments.name is None else arguments.name
    options = ("source", "revision", "text_column", "dedupe", "documents", "special_text", "on_bad_document")
    section = {key: getattr(arguments, key) for key in options} | {"dataset": name, "split": list(arguments.split)}
    data = parse_config({"data": {**section, "tokenizer": _tokenizer(arguments.tokenizer)}}).config.data
    return DatasetSpec.of(data, arguments.seed), Dataset.named(
        checked_name("dataset", name), _directory(arguments, name)
    )


def _from_config(arguments: argparse.Namespace) -> tuple[DatasetSpec, Dataset]:
    """Build the spec from a configuration file."""
    config = read_config(arguments.config).config
    if config.data.source is None:
        raise InvalidParameter(f"{arguments.config} has no data.source, so there is nothing to prepare")
    layout = Layout.under(Path(arguments.data_root)) if arguments.data_root else Layout.of(config)
    return DatasetSpec.of(config.data, config.device.seed), dataset_of(config, layout)


def _directory(arguments: argparse.Namespace, name: str) -> Path:
    if arguments.out is not None:
        return Path(arguments.out)
    return Layout.under(Path(arguments.data_root)).dataset(name) if arguments.data_root else Path(f"{name}_data")


def _default_name(source: str) -> str:
    if source.startswith("file:"):
        return dataset_name(portable(source.removeprefix("file:")))
    stem = portable(source.removeprefix("hub:")).stem
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_")[:63] or "text"


def _tokenizer(text: str) -> str | dict[str, Any]:
    kind, _, size = text.partition(":")
    if kind == "bpe" and size.isdecimal():
        return {"type": "bpe", "vocab_size": int(size)}
    if text != "gpt2":
        raise InvalidParameter(f"--tokenizer {text!r} is neither gpt2 nor bpe:SIZE, such as bpe:1024")
    return text


def _shares(text: str) -> tuple[float, ...]:
    try:
        train, val, test = (float(share) for share in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not three shares, such as 0.90,0.09,0.01") from None
    return train, val, test


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 128:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 128")
    return int(text)


def _print_summary(dataset: Dataset) -> None:
    manifest = dataset.manifest() or {"splits": {}}
    for line in describe_reading(manifest.get("reading")):
        sys.stdout.write(f"{one_line(line)}\n")
    for split, entry in manifest["splits"].items():
        counts = f"{entry['documents']:,} documents, {entry['tokens']:,} tokens, {entry['text_bytes']:,} bytes of text"
        sys.stdout.write(f"{split}: {counts} in {dataset.split(split)}\n")


def _status(fields: dict[str, Any]) -> str:
    total, speed, eta_s = fields["of"], fields.get("mb_per_s"), fields.get("eta_s")
    parts = [f"{fields['done']:,}" + (f" of {total:,}" if total is not None else "")]
    parts += [f"{speed:,.1f} MB/s"] if speed else []
    parts += [f"{_duration(max(1, eta_s))} left"] if eta_s else []
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


if __name__ == "__main__":
    sys.exit(main())
