"""Make a dataset from the command line: ``python -m model_core.data.prepare --source stories``."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model_core.attempt import DONE, OneLineParser, exit_code
from model_core.data.preparation import DEFAULT_SEED, DEFAULT_SPLIT, prepare
from model_core.errors import InvalidParameter
from model_core.loading import parse_config
from model_core.records.dataset import Dataset
from model_core.records.files import Layout, portable

_EXAMPLES = """
examples:
  python -m model_core.data.prepare --source stories --tokenizer bpe:1024
  python -m model_core.data.prepare --source file:book.txt --name book --split 0.8,0.1,0.1
  python -m model_core.data.prepare --source stories --data-root ./data

The dataset's folder gets <name>_train.npy, <name>_val.npy and <name>_test.npy (token ids, one end of text after
each document), test_examples.json with its index, tokenizer.json and manifest.json. A dataset that is already
there and was made in the same way is left as it is. Exit codes: 0 done, 1 failed, 2 bad input.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare a dataset as asked; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return exit_code(lambda: _run(arguments))
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m model_core.data.prepare",
        description="Make a dataset: split the documents of a source, tokenize them, write them to disk.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--source", required=True, metavar="SOURCE",
        help="stories (made from a seed, needs no network), or file:PATH: UTF-8 text with blank lines or lines of "
        "<|endoftext|> between documents; without either, every line is one",
    )  # fmt: skip
    add("--name", metavar="DATASET", help="what the files are called after (default: the source's name)")
    add(
        "--data-root", type=portable, metavar="DIR", default=os.environ.get("HEADCOUNT_DATA"),
        help="data root of the service; the dataset goes to DIR/datasets/DATASET (default: $HEADCOUNT_DATA)",
    )  # fmt: skip
    add("--out", type=portable, metavar="DIR", help="the dataset's folder (default without a data root: ./<name>_data)")
    add(
        "--tokenizer", default="gpt2", metavar="gpt2|bpe:SIZE",
        help="GPT-2's, or a byte-level BPE of SIZE ids that is trained on the training split (default: gpt2)",
    )  # fmt: skip
    add(
        "--split", type=_shares, default=DEFAULT_SPLIT, metavar="TRAIN,VAL,TEST",
        help="shares of the documents, exact in every hundred of them (default: 0.90,0.09,0.01)",
    )  # fmt: skip
    add("--seed", type=int, default=DEFAULT_SEED, help="of the split, and of made text (default: %(default)s)")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    name = arguments.name or _name_of(arguments.source)
    section = {"source": arguments.source, "dataset": name, "split": list(arguments.split)}
    data = parse_config({"data": {**section, "tokenizer": _tokenizer(arguments.tokenizer)}}).config.data
    dataset = prepare(
        arguments.source, _directory(arguments, name), name=name, tokenizer=data.tokenizer, split=data.split,
        seed=arguments.seed, report=_show if sys.stderr.isatty() else None,
    )  # fmt: skip
    _describe(dataset)
    return DONE


def _directory(arguments: argparse.Namespace, name: str) -> Path:
    if arguments.out is not None:
        return Path(arguments.out)
    return Layout.under(arguments.data_root).dataset(name) if arguments.data_root else Path(f"{name}_data")


def _name_of(source: str) -> str:
    stem = portable(source.removeprefix("file:")).stem
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


def _show(done: int, of: int, unit: str) -> None:
    sys.stderr.write(f"\r{done:,} of {of:,} {unit}\x1b[K" + ("\n" if done == of else ""))
    sys.stderr.flush()


def _describe(dataset: Dataset) -> None:
    for split, facts in (dataset.manifest() or {"splits": {}})["splits"].items():
        line = f"{facts['documents']:,} documents, {facts['tokens']:,} tokens, {facts['text_bytes']:,} bytes of text"
        sys.stdout.write(f"{split}: {line} in {dataset.split(split)}\n")


if __name__ == "__main__":
    sys.exit(main())
