"""Every data source as data: the syntax of a configuration and the table of the documentation.

It has everything that can be named without a network, and loads nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class HubDataset:
    """A dataset of the Hugging Face hub.

    Attributes:
        id: Owner and name.
        config: Name of its configuration; None if it has one only.
        revision: Revision that is read unless a configuration states another; None: the newest commit.
        gated: Whether its terms must be accepted.
        size: Approximate size of the download.
        licence: Licence as stated on the dataset's page.
        articles: Whether its rows are lines of articles with headings, which are joined again.
    """

    id: str
    config: str | None = None
    revision: str | None = None
    gated: bool = False
    size: str = "unknown"
    licence: str = "see its page"
    articles: bool = False

    @property
    def page(self) -> str:
        """Page about the dataset, where its terms can be accepted."""
        return f"https://huggingface.co/datasets/{self.id}"


HUB_DATASETS = {
    "babylm": HubDataset("BabyLM-community/babylm-eng", gated=True, size="300 MB", licence="by document"),
    "tinystories": HubDataset("roneneldan/TinyStories", size="1 GB", licence="CDLA-Sharing-1.0"),
    "wikitext": HubDataset(
        "Salesforce/wikitext", "wikitext-103-raw-v1", size="300 MB", licence="CC BY-SA 3.0", articles=True
    ),
    "openwebtext": HubDataset(
        "Skylion007/openwebtext",
        revision="refs/convert/parquet",
        size="up to 24 GB",
        licence="CC0 1.0, of the collection",
    ),
}
BUILTIN_SOURCES = ("stories", "pydoc")
LICENCES_MADE_HERE = {
    "stories": "MIT",
    "pydoc": "PSF-2.0",
}  # licences of generated stories and of Python's documentation
SOURCE_SYNTAX = (*BUILTIN_SOURCES, *HUB_DATASETS, "hub:OWNER/NAME[:CONFIG]", "file:PATH")

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_HUB = re.compile(rf"hub:(?P<id>{_PART}/{_PART})(?::(?P<config>[A-Za-z0-9_][A-Za-z0-9_.+-]*))?")


def hub_dataset(source: str) -> HubDataset | None:
    """Find the dataset of the hub that a source names.

    Args:
        source: Source as a configuration states it.

    Returns:
        The dataset; None if the source is not on the hub.
    """
    if source in HUB_DATASETS:
        return HUB_DATASETS[source]
    match = _HUB.fullmatch(source)
    return HubDataset(match["id"], match["config"]) if match else None
