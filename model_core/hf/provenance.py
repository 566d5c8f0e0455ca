"""Where a run's data came from and under what terms, as far as somebody wrote it down: for the model card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from model_core.catalogue import LICENCES_MADE_HERE, HubDataset, hub_dataset
from model_core.config import DataConfig
from model_core.errors import InvalidData
from model_core.records.dataset import Dataset

_UNKNOWN = "not known here"


@dataclass(frozen=True)
class Provenance:
    """What is known of a dataset.

    Attributes:
        source: What it was made of, in Markdown.
        licence: Its terms, in the words of whoever publishes it.
        hub: Its name on the Hugging Face hub, if it is from there.
    """

    source: str = _UNKNOWN
    licence: str = _UNKNOWN
    hub: str | None = None


def provenance_of(data: DataConfig, dataset: Dataset, trained_at: str) -> Provenance:
    """What is known of the data that a checkpoint was trained on.

    Args:
        data: The run's; it may name a source.
        dataset: The one of that name that is there now, if there is one.
        trained_at: When the checkpoint was saved, RFC 3339 UTC; a dataset that is younger is another one.
    """
    try:
        manifest = dataset.manifest()
    except InvalidData:
        manifest = None
    if manifest is None or manifest["created_at"] > trained_at:
        manifest = {"source": data.source, "revision": data.revision, "origin": {}}
    source = manifest["source"]
    if source is None:
        return Provenance()
    hub = hub_dataset(source)
    if hub is None:  # of a file, whose name is nobody else's business, or made by a program of ours
        form = source.partition(":")[0]
        return Provenance(f"`{form}`", LICENCES_MADE_HERE.get(form, _UNKNOWN))
    return Provenance(_published(hub, manifest), manifest["origin"].get("licence") or hub.licence, hub.id)


def _published(hub: HubDataset, manifest: dict[str, Any]) -> str:
    config = manifest["origin"].get("config") or hub.config
    which = f", configuration `{config}`" if config else ""
    at = f", at `{manifest['revision']}`" if manifest["revision"] else ""
    return f"[{hub.id}]({hub.page}){which}{at}"
