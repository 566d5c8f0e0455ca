"""Options that a training leaves out about its dataset: those of the dataset of that name count.

A client that uploads files and trains on them names the dataset and nothing else. The dataset is on disk, or a job is
preparing it; both state how it is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from model_core.config import BpeTokenizer, DataConfig
from model_core.config_loader import Tree
from model_core.data.dataset_spec import DEFAULT_SEED, DatasetSpec, TokenizerChoice
from model_core.data.sources.registry import uses_seed

_OPTIONS = ("tokenizer", "split", "text_column", "dedupe")


def dataset_named_by(tree: Tree) -> str | None:
    """Find the dataset that a request names itself; the name in a preset does not count.

    Args:
        tree: Tree of the body.

    Returns:
        Name of the dataset; None if the section `data` names none.
    """
    named = {key: value for key, value in _given(tree).items() if key in {"dataset", "train_file"}}
    try:
        return DataConfig.model_validate(named).dataset_name if named else None
    except ValidationError:
        return None


def complete(tree: Tree, options: Mapping[str, Any]) -> Tree:
    """Add the options of an existing dataset to a request that leaves them out.

    Args:
        tree: Tree of the body.
        options: Options by key of the section `data`.

    Returns:
        The tree; a source that the request does not state itself is removed, because a preset's is another one.
    """
    given = _given(tree)
    removed = {} if "source" in given else {"source": None, "revision": None}
    return {**tree, "data": {**options, **removed, **given}}


def options_of_manifest(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Read the options of a dataset on disk.

    Args:
        manifest: Its manifest.

    Returns:
        Options by key of the section `data`, those that the manifest states.
    """
    stated = {key: manifest[key] for key in _OPTIONS if manifest.get(key) is not None}
    tokenizer = _tokenizer_of(manifest.get("tokenizer", {}).get("asked"))
    return {key: value for key, value in {**stated, "tokenizer": tokenizer}.items() if value is not None}


def options_of_spec(spec: DatasetSpec) -> dict[str, Any]:
    """Read the options of a dataset that is being prepared.

    Args:
        spec: What its job prepares.

    Returns:
        Options by key of the section `data`.
    """
    return {key: _as_tree(getattr(spec, key)) for key in _OPTIONS}


def requested_of(spec: DatasetSpec, tree: Tree, data: DataConfig) -> DatasetSpec:
    """Describe the dataset that a training requests: the one that is being prepared, but for what the request states.

    Args:
        spec: What the job prepares.
        tree: Tree of the body.
        data: Section `data` of the training, parsed.

    Returns:
        The spec; it equals `spec` unless the request contradicts it.
    """
    stated = [key for key in (*_OPTIONS, "source", "revision") if key in _given(tree)]
    is_generated = "source" in stated and uses_seed(spec.source)  # of a training the text has the default seed
    seed = DEFAULT_SEED if is_generated else spec.seed
    return replace(spec, seed=seed, **{key: getattr(data, key) for key in stated})


def _given(tree: Tree) -> Tree:
    section = tree.get("data")
    return {key: value for key, value in section.items() if value is not None} if isinstance(section, dict) else {}


def _tokenizer_of(asked: object) -> Any:
    kind, _, size = str(asked).partition(":")
    return {"type": "bpe", "vocab_size": int(size)} if kind == "bpe" and size.isdecimal() else asked


def _as_tree(value: TokenizerChoice | Any) -> Any:
    if isinstance(value, BpeTokenizer):
        return value.model_dump(mode="json")
    return list(value) if isinstance(value, tuple) else value
