"""manifest.json: what a dataset is, where it came from, and the hash of each of its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model_core.data.building import Building
from model_core.data.recipe import Recipe, asked_of
from model_core.data.sources.source import Source
from model_core.records.dataset import TOKENIZER, Dataset, shard_of
from model_core.records.examples import EXAMPLE_INDEX, EXAMPLES
from model_core.records.files import now, sha256_of
from model_core.tokenizer import Tokenizer


def manifest_of(
    recipe: Recipe, source: Source, dataset: Dataset, building: Building, tokenizer: Tokenizer,
    shards: Mapping[str, Sequence[Path]], read: int,
) -> dict[str, Any]:  # fmt: skip
    """Describe a dataset whose files are complete.

    Args:
        recipe: How it was made.
        source: From what.
        dataset: Names of its files.
        building: Where they lie, and what they hold.
        tokenizer: What made its ids.
        shards: The token files of every split.
        read: Documents of the source, duplicates among them.
    """
    ledger = building.ledger
    made = {"kind": tokenizer.kind, "n_vocab": tokenizer.n_vocab, "sha256": tokenizer.sha256, "file": TOKENIZER}
    counted = {split: vars(counts) for split, counts in ledger.splits.items()}
    return {
        "schema_version": 1,
        "name": dataset.name,
        "source": source.name,
        "revision": source.revision,
        "created_at": now(),
        **recipe.promises(),
        "tokenizer": {**made, "asked": asked_of(recipe.tokenizer)},
        "documents": read,
        "duplicates": read - ledger.kept if recipe.dedupe else None,
        "splits": {split: {**counted[split], **_files(dataset.split(split), paths)} for split, paths in shards.items()},
        "examples": {
            **_file(building.directory / EXAMPLES, EXAMPLES),
            "index": EXAMPLE_INDEX,
            "count": ledger.splits["test"].documents,
        },
        "categories": {name: vars(counts) for name, counts in ledger.categories.items()} or None,
        "origin": dict(source.facts),
    }


def _files(place: Path, written: Sequence[Path]) -> dict[str, Any]:
    """Those of a split; several together have no hash of their own."""
    arrays = [np.load(path, mmap_mode="r") for path in written]
    dtype = {"dtype": arrays[0].dtype.name}
    if len(written) == 1:
        return {**_file(written[0], place.name), **dtype}
    files = [
        {**_file(path, shard_of(place, number).name), "tokens": array.size}
        for number, (path, array) in enumerate(zip(written, arrays, strict=True))
    ]
    size_bytes = sum(file["size_bytes"] for file in files)
    return {"file": place.name, "files": files, "size_bytes": size_bytes, "sha256": None, **dtype}


def _file(path: Path, name: str) -> dict[str, Any]:
    return {"file": name, "size_bytes": path.stat().st_size, "sha256": sha256_of(path)}
