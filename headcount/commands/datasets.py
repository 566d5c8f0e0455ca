"""Commands about the datasets of a running service.

The source is a name that the service knows, or a file or folder of this machine, which is uploaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from headcount.commands.common import AsJson, Follow, open_client, print_json
from model_core.errors import InvalidParameter
from model_core.storage.files import portable

_ENDINGS = (".txt", ".jsonl", ".parquet")


def datasets(
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many, by name.")] = 100, as_json: AsJson = False
) -> None:
    """List datasets: what is ready, what is being prepared, and what failed."""
    from headcount.output import dataset_table

    with open_client() as client:
        page = client.datasets(limit=limit)
    if as_json:
        print_json(page)
    else:
        dataset_table(page["data"], has_more=page["has_more"])


def prepare(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="stories, babylm, hub:OWNER/NAME ..., or a local file to upload.")
    ],
    name: Annotated[str | None, typer.Option(help="Name of the dataset. Default: the source's name.")] = None,
    tokenizer: Annotated[str, typer.Option(help="gpt2, or bpe:SIZE to train one.")] = "gpt2",
    revision: Annotated[str | None, typer.Option(help="Commit, branch or tag of the source.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column that contains the text.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the split and of generated text.")] = None,
    dedupe: Annotated[bool, typer.Option("--dedupe", help="Drop exact duplicates.")] = False,
    documents: Annotated[
        str | None, typer.Option(help="What separates them in a text file: auto, line, paragraph, marker or file.")
    ] = None,
    special_text: Annotated[
        str | None, typer.Option(help="<|endoftext|> inside a document: keep, strip or split.")
    ] = None,
    on_bad_document: Annotated[
        str | None, typer.Option(help="A document that cannot be read: fail, or skip a few.")
    ] = None,
    follow: Follow = False,
) -> int:
    """Prepare a dataset on the service; local files are uploaded."""
    from headcount.commands.common import submitted
    from model_core.errors import DONE
    from model_core.storage.dataset import describe_reading

    options: dict[str, Any] = {
        "name": name, "tokenizer": tokenizer, "revision": revision, "text_column": text_column, "seed": seed,
        "dedupe": dedupe or None, "documents": documents, "special_text": special_text,
        "on_bad_document": on_bad_document,
    }  # fmt: skip
    body, files = dataset_body(source, options)
    with open_client() as client:
        made = client.prepare(body, files)
        if made["object"] == "job":
            return submitted(client, made, follow=follow)
    print(f"{made['name']}  {made['state']}  {made['tokens'] or 0:,} tokens")
    for line in describe_reading(made.get("reading")):
        print(line)
    return DONE


def dataset_body(source: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], Sequence[Path]]:
    """Build the request for a dataset.

    Args:
        source: Source as given on the command line.
        options: Keys of the request; those that are None are left out, and `name` defaults to the source's.

    Returns:
        The request, and the files to upload with it.

    Raises:
        InvalidParameter: The folder has no text files, or the tokenizer is unknown.
    """
    files = _files(source)
    stem = portable(source.removeprefix("file:")).stem if files else source.rpartition("/")[2].partition(":")[0]
    named = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_")[:63]
    known = {key: value for key, value in options.items() if value is not None}
    body = {"name": named or "text", **known, "tokenizer": _tokenizer(str(options["tokenizer"]))}
    return (body, files) if files else ({**body, "source": source}, ())


COMMANDS = (datasets, prepare)


def _files(source: str) -> list[Path]:
    path = portable(source.removeprefix("file:"))
    if path.is_file():
        return [path]
    if not path.is_dir() or ("/" not in source and not source.startswith("file:")):
        return []  # a word such as stories is a source, even if a folder of that name exists
    found = sorted(one for one in path.iterdir() if one.suffix.lower() in _ENDINGS)
    if not found:
        raise InvalidParameter(f"{path} holds no text; files that can be sent end in {', '.join(_ENDINGS)}")
    return found


def _tokenizer(text: str) -> Any:
    kind, _, size = text.partition(":")
    if kind == "bpe" and size.isdecimal():
        return {"type": "bpe", "vocab_size": int(size)}
    if text != "gpt2":
        raise InvalidParameter(f"--tokenizer {text!r} is neither gpt2 nor bpe:SIZE, such as bpe:1024")
    return text
