"""A configuration's numbers beside the uniform model's, for programs and for people."""

import json
from pathlib import Path

import numpy as np
import pytest

from model_core.config_loader import read_config
from model_core.report import Report, report_of, train_tokens_of
from model_core.storage.dataset import Dataset

VARIABLE = Path(__file__).parents[2] / "configs" / "variable_heads.yaml"


def report(tmp_path: Path, *settings: str) -> Report:
    return report_of(read_config(VARIABLE, settings), Dataset.named("none", tmp_path))


def row(told: Report, table: int, label: str) -> tuple[str, ...]:
    return next(row for row in told.tables()[table].rows if row[0] == label)


def test_unequal_heads_at_one_width_save_softmax_alone_and_it_says_so(tmp_path: Path) -> None:
    told = report(tmp_path)
    assert row(told, 1, "parameters") == ("parameters", "124,475,904", "124,475,904", "same")
    assert row(told, 1, "KV bytes a token (bf16)")[1:] == ("36,864", "36,864", "same")
    assert row(told, 1, "softmax elements a sequence")[3] == "-27.8 %"
    assert "Set model.head_dim to save" in " ".join(told.remarks())


def test_a_head_size_saves_and_the_remark_is_gone(tmp_path: Path) -> None:
    told = report(tmp_path, "model.head_dim=64")
    assert row(told, 1, "parameters")[1:] == ("116,603,904", "124,475,904", "-6.3 %")
    assert row(told, 1, "KV bytes a token (bf16)")[3] == "-27.8 %"
    assert row(told, 1, "softmax elements a sequence") == row(report(tmp_path), 1, "softmax elements a sequence")
    assert list(told.remarks()) == []


def test_a_layer_tells_its_heads_and_whether_the_fused_kernel_takes_them(tmp_path: Path) -> None:
    told = report(tmp_path, "model.n_head_list=[12, 12, 12, 12, 8, 8, 8, 8, 2, 2, 2, 2]")
    assert row(told, 0, "0")[:3] + row(told, 0, "0")[-1:] == ("0", "12", "64", "yes")
    assert row(told, 0, "8")[:3] + row(told, 0, "8")[-1:] == ("8", "2", "384", "no")
    assert "head sizes up to 256" in " ".join(told.remarks())


def test_memory_is_told_by_part(tmp_path: Path) -> None:
    parts = [row[0] for row in report(tmp_path).tables()[2].rows]
    assert parts[1:6] == ["weights", "gradients", "optimizer", "activations", "logits and cross entropy"]


def test_markdown_has_every_table_and_formula(tmp_path: Path) -> None:
    told = report(tmp_path)
    page = told.to_markdown()
    assert page.startswith("# variable_heads\n")
    assert [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")] == [
        *(table.title for table in told.tables()),
        "Formulas",
    ]
    assert "| parameters | 124,475,904 | 124,475,904 | same |" in page


def test_json_has_both_models(tmp_path: Path) -> None:
    tree = json.loads(json.dumps(report(tmp_path).to_dict()))
    assert tree["experiment_name"] == "variable_heads"
    assert tree["budget"]["parameters"] == tree["uniform"]["parameters"] == 124_475_904


def test_epochs_are_implied_by_the_tokens_that_lie_there(tmp_path: Path) -> None:
    dataset = Dataset.named("mine", tmp_path)
    assert (train_tokens_of(dataset), row(report(tmp_path), 3, "epochs")[1]) == (None, "unknown")
    np.save(dataset.train, np.zeros(1_000_000, np.uint16))
    told = report_of(read_config(VARIABLE), dataset)
    assert train_tokens_of(dataset) == 1_000_000
    assert row(told, 3, "epochs")[1] == "9,999.75"


@pytest.mark.parametrize("content", [b"", b"no tokens"])
def test_a_file_that_is_no_token_file_has_no_known_size(tmp_path: Path, content: bytes) -> None:
    dataset = Dataset.named("mine", tmp_path)
    dataset.train.write_bytes(content)
    assert train_tokens_of(dataset) is None
