"""The probe of one model: a reading for a `heads` event, or of a checkpoint without events, stored beside its pictures.

A stored reading is ``<run>/probes/<checkpoint's sha256[:8]>-<probe's sha256[:8]>.json`` below the attention of the run.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from model_core.attention.heads.history import SCHEMA_VERSION, probe_file, read_stored
from model_core.attention.heads.probe import Probe, ProbeResult, run_probe
from model_core.config import ModelConfig
from model_core.errors import DatasetNotReady, InvalidData
from model_core.storage.files import Layout, write_text

if TYPE_CHECKING:
    from model_core.checkpoint import LoadedModel
    from model_core.storage.dataset import Dataset

log = logging.getLogger(__name__)

Reading = dict[str, Any]


def choose_probe(dataset: Dataset, model: ModelConfig) -> Probe:
    """Choose the probe of a dataset for a model.

    Args:
        dataset: The dataset.
        model: Shape of the model.

    Returns:
        The probe.

    Raises:
        InvalidData: The validation split is shorter than one window, or has ids that the model does not know.
    """
    probe = Probe.of(dataset, model.block_size)
    largest = max(int(ids.max()) for ids in (probe.windows, probe.repeated, probe.control) if ids is not None)
    if largest >= model.vocab_size:
        raise InvalidData(f"{dataset.val.name} contains id {largest}; the vocabulary has {model.vocab_size} ids")
    return probe


def as_reading(step: int, probe: Probe, result: ProbeResult) -> Reading:
    """Build what an event tells.

    Args:
        step: Optimizer updates done.
        probe: The probe.
        result: What it found.

    Returns:
        ``{step, probe, values, types}``, as `history.Probed.of` reads it.
    """
    texts = {**probe.summary(), "chance": probe.chance()}
    return {"step": step, "probe": texts, "values": result.values, "types": result.types}


def probe_checkpoint(loaded: LoadedModel, layout: Layout, run: str, dataset: Dataset) -> Reading:
    """Read the probe of a checkpoint, unless the reading is stored.

    Args:
        loaded: The model of the checkpoint.
        layout: Paths of the data root.
        run: Name of the run.
        dataset: Dataset of the run.

    Returns:
        The reading as stored: ``{schema_version, run, checkpoint, sha256}`` and what `as_reading` builds.

    Raises:
        DatasetNotReady: The dataset is not prepared.
        InvalidData: Its validation split has no window of the probe, or another tokenizer than the checkpoint.
        ProbeOutOfMemory: The probe does not fit in memory.
        DiskFull: The reading cannot be stored.
    """
    if dataset.missing():
        raise DatasetNotReady(f"the probe needs the validation split of dataset {dataset.name!r}")
    if dataset.tokenizer().sha256 != loaded.tokenizer.sha256:
        raise InvalidData(f"dataset {dataset.name!r} has another tokenizer than checkpoint {loaded.info.file!r}")
    probe = choose_probe(dataset, loaded.config.model)
    file = probe_file(layout, run, loaded.info.sha256, probe.sha256)
    if (stored := read_stored(file, loaded.info.sha256)) is not None:
        return stored  # of a request that waited before this one
    reading = {
        "schema_version": SCHEMA_VERSION, "run": run, "checkpoint": loaded.info.file, "sha256": loaded.info.sha256,
        **as_reading(loaded.info.step, probe, run_probe(loaded.model, probe)),
    }  # fmt: skip
    write_text(file, json.dumps(reading, ensure_ascii=False, allow_nan=False) + "\n")
    log.info("heads probed run=%s checkpoint=%s step=%d", run, loaded.info.file, loaded.info.step)
    return reading
