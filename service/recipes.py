"""How a dataset on disk was made beside how it is wanted, and the request that would make it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from model_core.catalogue import HUB_DATASETS, WITHOUT_COLUMNS
from model_core.config import ExperimentConfig
from model_core.data.matching import mismatch, mismatches, origin_of
from model_core.data.recipe import Recipe
from model_core.errors import FieldProblem, InvalidData
from model_core.records.dataset import Dataset
from model_core.records.errors import DatasetExists, DatasetNotReady
from model_core.records.examples import EXAMPLES
from model_core.records.files import next_free_name, portable
from worker.jobs.preparation import RECIPE, Preparation

_MADE_ANYWHERE = "stories"  # a source that needs neither network nor file


def difference(dataset: Dataset, wanted: Preparation, data_root: Path) -> str | None:
    """How a dataset that is ready differs from what is wanted, as half a sentence; None: it does not.

    Args:
        dataset: What is there.
        wanted: How it should be made.
        data_root: Where a relative ``file:`` source lies.
    """
    try:
        manifest = dataset.manifest()
        if manifest is None:
            return "its files were not prepared here, so nobody knows how they were made"
        return _difference(manifest, wanted, data_root)
    except InvalidData as error:
        return str(error)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest cannot be read ({error!r})"


def _difference(manifest: Mapping[str, Any], wanted: Preparation, data_root: Path) -> str | None:
    data, seed = wanted.config.data, wanted.config.device.seed
    source = data.source or ""
    recipe = Recipe.of(data, seed)
    promised = recipe.promises() | origin_of(recipe, read_files=False)
    if different := next(mismatches(manifest, promised), None):
        return f"it {different}"
    if _changed_since(source, manifest, data_root):  # to hash a large file would take too long
        return f"its source has changed since it was made at {manifest['created_at']}"
    return None


def unlike(dataset: Dataset, manifest: Mapping[str, Any] | None, config: ExperimentConfig) -> DatasetExists | None:
    """Why a job that reads a dataset would refuse it; None: it would not, as far as a quick look can tell.

    Args:
        dataset: One that is ready.
        manifest: Its own.
        config: Whose section `data` means it.
    """
    different = mismatch(manifest, config.data, read_files=False)
    if different is None:
        return None
    return DatasetExists(dataset.name, next_free_name(dataset.directory), f"it {different}")


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
    is_source = data.dataset_name in {*WITHOUT_COLUMNS, *HUB_DATASETS}
    source = data.source or (data.dataset_name if is_source else _MADE_ANYWHERE)
    kept = {key: written[key] for key in RECIPE if key in written}
    return {"name": data.dataset_name, **kept, "source": source}
