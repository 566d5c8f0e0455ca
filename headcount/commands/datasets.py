"""Commands about the datasets of a running service.

The source is a name that the service knows, or a file or folder of this machine, which is uploaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from headcount.commands.common import AsJson, Follow, open_client, print_json, submitted
from model_core.errors import DONE, InvalidParameter


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
        str,
        typer.Argument(metavar="SOURCE", help="stories, babylm, hub:OWNER/NAME ..., or a file or folder to upload."),
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
    as_json: AsJson = False,
) -> int:
    """Prepare a dataset on the service; local files are uploaded."""
    from headcount.output import dataset_card

    options: dict[str, Any] = {
        "name": name, "tokenizer": tokenizer, "revision": revision, "text_column": text_column, "seed": seed,
        "dedupe": dedupe or None, "documents": documents, "special_text": special_text,
        "on_bad_document": on_bad_document,
    }  # fmt: skip
    body, files = dataset_body(source, options)
    with open_client() as client:
        made = client.prepare(body, files)
        if made["object"] == "job":
            return submitted(client, made, follow=follow, as_json=as_json)
    if as_json:
        print_json(made)
    else:
        dataset_card(made)
    return DONE


def dataset_body(source: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], Mapping[str, Path]]:
    """Build the request for a dataset.

    Args:
        source: Source as given on the command line.
        options: Keys of the request; those that are None are left out, and `name` defaults to the source's.

    Returns:
        The request, and the files to upload with it by their paths below the folder.

    Raises:
        InvalidParameter: The folder has no file that can be read, or the tokenizer is unknown.
    """
    from model_core.data.sources.file_names import dataset_name

    path = _local_path(source)
    files = {} if path is None else _files(path)
    known = {key: value for key, value in options.items() if value is not None}
    named = _name_of(source) if path is None else dataset_name(path)
    body = {"name": named, **known, "tokenizer": _tokenizer(str(options["tokenizer"]))}
    return (body, files) if files else ({**body, "source": source}, {})


COMMANDS = (datasets, prepare)


def _local_path(source: str) -> Path | None:
    """The file or folder of this machine that a source names."""
    from model_core.catalog import BUILTIN_SOURCES, HUB_DATASETS
    from model_core.storage.files import portable

    if source in {*BUILTIN_SOURCES, *HUB_DATASETS} or source.startswith("hub:"):
        return None  # a source, even if a folder of that name exists
    path = portable(source.removeprefix("file:"))
    return path if path.exists() else None


def _files(path: Path) -> dict[str, Path]:
    from model_core.data.sources.file_names import READABLE, files_below, is_known_binary, shown_path

    paths = [path] if path.is_file() and not is_known_binary(path.name) else files_below(path)
    if not paths:
        raise InvalidParameter(f"{path} contains no file that can be read: {READABLE}")
    return {shown_path(file, path if path.is_dir() else path.parent): file for file in paths}


def _name_of(source: str) -> str:
    stem = source.rpartition("/")[2].partition(":")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_")[:63] or "text"


def _tokenizer(text: str) -> Any:
    kind, _, size = text.partition(":")
    if kind == "bpe" and size.isdecimal():
        return {"type": "bpe", "vocab_size": int(size)}
    if text != "gpt2":
        raise InvalidParameter(f"--tokenizer {text!r} is neither gpt2 nor bpe:SIZE, such as bpe:1024")
    return text
