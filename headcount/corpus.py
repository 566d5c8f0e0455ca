"""What a person names as a source: a corpus that the service knows, or files of this machine that are sent to it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model_core.errors import InvalidParameter
from model_core.records.files import portable

ENDINGS = (".txt", ".jsonl", ".parquet")


def dataset_body(source: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], Sequence[Path]]:
    """A request for a dataset, and the files that go with it.

    Args:
        source: As a person wrote it.
        options: Keys of the request; those that are None are left out, and `name` is made from the source.

    Raises:
        InvalidParameter: A folder without a text, or no such tokenizer.
    """
    files = _files(source)
    stem = portable(source.removeprefix("file:")).stem if files else source.rpartition("/")[2].partition(":")[0]
    named = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_")[:63]
    known = {key: value for key, value in options.items() if value is not None}
    body = {"name": named or "text", **known, "tokenizer": _tokenizer(str(options["tokenizer"]))}
    return (body, files) if files else ({**body, "source": source}, ())


def _files(source: str) -> list[Path]:
    path = portable(source.removeprefix("file:"))
    if path.is_file():
        return [path]
    if not path.is_dir() or ("/" not in source and not source.startswith("file:")):
        return []  # a word such as stories is a source, whatever lies here
    found = sorted(one for one in path.iterdir() if one.suffix.lower() in ENDINGS)
    if not found:
        raise InvalidParameter(f"{path} holds no text; files that can be sent end in {', '.join(ENDINGS)}")
    return found


def _tokenizer(text: str) -> Any:
    kind, _, size = text.partition(":")
    if kind == "bpe" and size.isdecimal():
        return {"type": "bpe", "vocab_size": int(size)}
    if text != "gpt2":
        raise InvalidParameter(f"--tokenizer {text!r} is neither gpt2 nor bpe:SIZE, such as bpe:1024")
    return text
