"""How a dataset on disk was made beside how it is wanted, and the request that would make it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from model_core.config import BpeTokenizer, DataConfig, ExperimentConfig
from model_core.errors import DatasetNotReady, FieldProblem
from model_core.records.dataset import EXAMPLES, Dataset
from model_core.records.files import portable
from model_core.rules import SOURCES
from worker.jobs.preparation import RECIPE, Preparation

_MADE_ANYWHERE = "stories"  # a source that needs neither network nor file


def difference(dataset: Dataset, wanted: Preparation, data_root: Path) -> str | None:
    """How a dataset that is ready differs from what is wanted, as half a sentence; None: it does not.

    Args:
        dataset: What is there.
        wanted: How it should be made.
        data_root: Where a relative ``file:`` source lies.
    """
    manifest = dataset.manifest()
    if manifest is None:
        return "its files were not prepared here, so nobody knows how they were made"
    made = {"text_column": "text", "dedupe": False, **manifest, "tokenizer": manifest["tokenizer"].get("asked")}
    for key, value in _recorded(wanted):
        if made.get(key) != value:
            return f"it was made with {key} {made.get(key)!r}, not {value!r}"
    if _changed_since(wanted.config.data.source or "", manifest, data_root):
        return f"its source has changed since it was made at {manifest['created_at']}"
    return None


def _recorded(wanted: Preparation) -> Iterator[tuple[str, Any]]:
    """What a manifest says of a dataset that is made like this."""
    facts, data = wanted.facts, wanted.config.data
    source = data.source or ""
    yield "source", f"file:{_path(source).name}" if source.startswith("file:") else source
    yield "tokenizer", asked_tokenizer(data)
    for key in ("text_column", "split", "seed", "dedupe"):
        yield key, facts[key]
    if data.revision is not None and len(data.revision) == 40:  # a branch or a tag stands there as the commit it was
        yield "revision", data.revision


def asked_tokenizer(data: DataConfig) -> str:
    """A tokenizer as manifests name what was asked for."""
    return f"bpe:{data.tokenizer.vocab_size}" if isinstance(data.tokenizer, BpeTokenizer) else data.tokenizer


def _path(source: str) -> Path:
    return portable(source.removeprefix("file:"))


def _changed_since(source: str, manifest: Mapping[str, Any], data_root: Path) -> bool:
    path = data_root / _path(source)
    if not source.startswith("file:") or not path.exists():
        return False
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    return max(file.stat().st_mtime for file in files) > datetime.fromisoformat(manifest["created_at"]).timestamp()


def lost_source(config: ExperimentConfig, data_root: Path) -> FieldProblem | None:
    """A file that a dataset should be made from, if it is not there."""
    source = config.data.source or ""
    if not source.startswith("file:") or (data_root / _path(source)).exists():
        return None
    detail = f"{source!r}: there is no such file below the data root; upload it with POST /datasets, or put it there"
    return FieldProblem("/data/source", detail, source)


def not_ready(dataset: Dataset, config: ExperimentConfig) -> DatasetNotReady:
    """Say that a dataset is missing, and which request would make it.

    Args:
        dataset: The dataset.
        config: Whose section `data` means it.
    """
    lacking = [path.name for path in dataset.missing()] or [EXAMPLES]
    body = request_body(config)
    error = DatasetNotReady(f"dataset {dataset.name!r} lacks {', '.join(lacking)}; {_advice(config, body['source'])}")
    error.request = {"method": "POST", "path": "/datasets", "body": body}
    return error


def _advice(config: ExperimentConfig, source: str) -> str:
    if config.data.source is not None:
        return "POST /datasets makes it"
    where = f"POST /datasets makes it, from {source!r} or another source"
    return f"{where}; a training whose data.source is set has it made first"


def request_body(config: ExperimentConfig) -> dict[str, Any]:
    """What POST /datasets would be given for the dataset that a configuration means."""
    data = config.data
    written = data.model_dump(mode="json", exclude_defaults=True)
    known = {name for name in SOURCES if ":" not in name}
    source = data.source or (data.dataset_name if data.dataset_name in known else _MADE_ANYWHERE)
    kept = {key: written[key] for key in RECIPE if key in written}
    return {"name": data.dataset_name, **kept, "source": source}
