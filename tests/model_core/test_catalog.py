"""The table of sources agrees with the documentation."""

from pathlib import Path

import pytest

from model_core.catalog import HUB_DATASETS, SOURCE_SYNTAX, HubDataset, hub_dataset

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("form", SOURCE_SYNTAX)
def test_the_page_on_data_has_a_row_for_every_source(form: str) -> None:
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{form}` |")]
    dataset = HUB_DATASETS.get(form, HubDataset("", size="", licence=""))
    told = (dataset.id, dataset.config or "", dataset.revision or "", dataset.size, dataset.licence)
    assert [fact for fact in told if fact not in row] == []
    assert ("accept the terms" in row) == dataset.gated


def test_a_name_with_owner_is_a_dataset_and_its_configuration() -> None:
    assert hub_dataset("hub:a-b/c.d") == HubDataset("a-b/c.d")
    assert hub_dataset("hub:a/b:en-100.v1") == HubDataset("a/b", "en-100.v1")
    assert [hub_dataset(text) for text in ("stories", "hub:a", "hub:a/b/c", "hub:a/b:", "hub:-/b", "hub:a/..")] == [
        None
    ] * 6
