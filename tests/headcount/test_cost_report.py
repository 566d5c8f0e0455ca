"""The output of `headcount report`."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from headcount.cli import app

PRESETS = Path(__file__).parents[2] / "configs"


def told(preset: str, *options: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["report", str(PRESETS / f"{preset}.yaml"), "--json", *options])
    assert result.exit_code == 0, result.output
    tree: dict[str, Any] = json.loads(result.stdout)
    return tree


def test_the_baseline_has_the_parameters_of_gpt2() -> None:
    tree = told("baseline")
    assert tree["budget"]["parameters"] == 124_475_904
    assert tree["budget"]["kv_bytes_per_token"] == 36_864
    assert tree["budget"] == tree["uniform"]


def test_variable_heads_change_the_softmax_alone() -> None:
    tree = told("variable_heads")
    here, uniform = tree["budget"], tree["uniform"]
    same = ("parameters", "kv_bytes_per_token", "flops_per_token", "memory", "disk", "schedule")
    assert {name: here[name] for name in same} == {name: uniform[name] for name in same}
    assert (here["parameters"], here["kv_bytes_per_token"]) == (124_475_904, 36_864)
    assert here["softmax_elements"] < uniform["softmax_elements"]
    assert [layer["n_head"] for layer in here["layers"]] == [12] * 4 + [8] * 4 + [6] * 4


def test_a_head_size_of_64_saves_parameters_kv_and_flops() -> None:
    narrow, shared = told("variable_heads", "--set", "model.head_dim=64"), told("variable_heads")
    assert narrow["budget"]["parameters"] == 116_603_904
    assert narrow["budget"]["kv_bytes_per_token"] < shared["budget"]["kv_bytes_per_token"]
    assert narrow["budget"]["flops_per_token"] < shared["budget"]["flops_per_token"]
    assert narrow["budget"]["softmax_elements"] == shared["budget"]["softmax_elements"]
    assert narrow["uniform"] == shared["uniform"]


@pytest.mark.parametrize("columns", ["20", "60", "80"])
def test_a_narrow_terminal_loses_no_digit(columns: str) -> None:
    arguments = ["report", str(PRESETS / "variable_heads.yaml"), "--set", "model.head_dim=64"]
    narrow, wide = (CliRunner().invoke(app, arguments, env={"COLUMNS": width}).stdout for width in (columns, "200"))
    assert set(re.findall(r"\d[\d,]+", wide)) <= set(re.findall(r"\d[\d,]+", narrow))


def test_formulas_are_printed_on_request_only() -> None:
    arguments = ["report", str(PRESETS / "quickstart.yaml")]
    plain, full = (CliRunner().invoke(app, [*arguments, *more]).stdout for more in ((), ("--formulas",)))
    assert full.startswith(plain)
    assert ("softmax_elements" in plain, "softmax_elements" in full) == (False, True)


def test_a_wide_one_shows_every_part() -> None:
    result = CliRunner().invoke(app, ["report", str(PRESETS / "variable_heads.yaml")], env={"COLUMNS": "200"})
    for words in ("flash", "gradients", "optimizer", "activations", "logits", "checkpoints", "epochs", "-27.8 %"):
        assert words in result.stdout


def test_epochs_are_computed_from_the_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "datasets" / "babylm").mkdir(parents=True)
    np.save(tmp_path / "datasets" / "babylm" / "babylm_train.npy", np.zeros(524_288, np.uint16))
    monkeypatch.setenv("HEADCOUNT_DATA", str(tmp_path))
    schedule = told("babylm", "--set", "training.warmup_steps=0")["budget"]["schedule"]
    assert (schedule["train_tokens"], schedule["steps"], schedule["epochs"]) == (524_288, 10, 10.0)
