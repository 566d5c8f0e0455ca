"""Whether a dataset that is there is the one that is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from model_core.config import DataConfig
from model_core.data.recipe import DEFAULT_SEED, Recipe, asked_of
from model_core.data.sources.opening import revision_of, source_name
from model_core.records.dataset import MANIFEST


def mismatch(manifest: Mapping[str, Any] | None, data: DataConfig, *, read_files: bool = True) -> str | None:
    """Why a training cannot take a dataset for the one that it asks for, as half a sentence; None: it can.

    Args:
        manifest: What preparation recorded; None: nothing, so the tokens are taken for GPT-2's.
        data: What is asked for; without a source any that has the right tokenizer will do.
        read_files: Whether the files of a local source are read, to see whether they are still the same.
    """
    if manifest is not None:
        return next(mismatches(manifest, _promised(data, read_files=read_files)), None)
    if data.tokenizer == "gpt2":
        return None
    taken = f"has no {MANIFEST}, so its tokens are taken for tokenizer 'gpt2'"
    return f"{taken}, not {asked_of(data.tokenizer)!r}"


def mismatches(manifest: Mapping[str, Any], promised: Mapping[str, Any]) -> Iterator[str]:
    """In what a dataset is not as promised, as half sentences; what an earlier version left out is not compared."""
    made = {**manifest, "tokenizer": manifest["tokenizer"].get("asked")}
    for key, value in promised.items():
        if key in made and made[key] != value:
            yield f"was made with {key} {made[key]!r}, not {value!r}"


def origin_of(recipe: Recipe, *, read_files: bool = True) -> dict[str, Any]:
    """What a manifest says of a source, as far as that can be told without a network.

    Args:
        recipe: Of the dataset.
        read_files: Whether a local source is read, which takes as long as its files are large.
    """
    is_known = read_files or not recipe.source.startswith("file:")
    known = revision_of(recipe.source, seed=recipe.seed, revision=recipe.revision) if is_known else None
    return {"source": source_name(recipe.source)} | ({} if known is None else {"revision": known})


def _promised(data: DataConfig, *, read_files: bool) -> dict[str, Any]:
    if data.source is None:
        return {"tokenizer": asked_of(data.tokenizer)}
    recipe = Recipe.of(data, DEFAULT_SEED)
    promised = recipe.promises() | origin_of(recipe, read_files=read_files)
    del promised["seed"]  # of the split; a dataset that was made with another is as good
    return promised
