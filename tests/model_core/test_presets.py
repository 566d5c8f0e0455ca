"""The presets are valid, and one trains without the service."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model_core.config import ExperimentConfig
from model_core.config_loader import load_config, parse_config, preset_names, preset_text, preset_tree
from model_core.errors import UnknownPreset
from model_core.train import main

CONFIGS = Path(__file__).parents[2] / "configs"
DOCUMENTED = "baseline variable_heads test_attention progressive hourglass efficient_late quickstart babylm".split()


def numbers_as_text(value: Any) -> Iterator[str]:
    """Texts below a value that are numbers to a person."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from numbers_as_text(inner)
    elif isinstance(value, str) and value.replace(".", "").replace("e-", "").isdigit():
        yield value


def test_the_presets_are_those_of_the_document() -> None:
    assert set(preset_names()) == set(DOCUMENTED)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_preset_is_right_and_has_no_warnings(name: str) -> None:
    parsed = parse_config(preset_tree(name))
    assert load_config(CONFIGS / f"{name}.yaml") == parsed.config
    assert parsed.warnings == ()


@pytest.mark.parametrize("name", DOCUMENTED)
def test_no_number_in_a_preset_is_text_to_yaml(name: str) -> None:
    assert list(numbers_as_text(preset_tree(name))) == []


def test_baseline_writes_the_defaults() -> None:
    assert parse_config(preset_tree("baseline")).config == ExperimentConfig()


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("variable_heads", [12, 12, 12, 12, 8, 8, 8, 8, 6, 6, 6, 6]),
        ("progressive", [12, 12, 12, 8, 8, 8, 6, 6, 6, 4, 4, 4]),
        ("hourglass", [4, 6, 8, 12, 12, 12, 12, 12, 12, 8, 6, 4]),
        ("efficient_late", [12, 12, 12, 12, 12, 12, 8, 8, 8, 6, 6, 4]),
    ],
)
def test_the_documents_patterns_have_heads_that_divide_the_width(name: str, heads: list[int]) -> None:
    assert list(parse_config(preset_tree(name)).config.model.heads) == heads


def test_a_test_of_attention_leaves_the_model_to_the_checkpoint() -> None:
    assert "model" not in preset_tree("test_attention")
    assert not load_config(CONFIGS / "test_attention.yaml").execution.train


def test_babylm_is_trained_by_epochs() -> None:
    assert parse_config(preset_tree("babylm")).config.training.max_epochs == 10


def test_an_unknown_preset_names_those_there_are() -> None:
    with pytest.raises(UnknownPreset, match=r"'trainig'.* babylm, baseline"):
        preset_text("trainig")


@pytest.mark.usefixtures("signals")
def test_the_baseline_trains_by_hand(corpus: Path, tmp_path: Path) -> None:
    settings = {
        "model": "{n_layer: 2, n_head: 2, n_embd: 16, block_size: 16, vocab_size: 300}",
        "training": "{batch_size: 2, sequence_length: 16, total_batch_size: 64, warmup_steps: 1, max_steps: 2}",
        "data": f"{{source: 'file:{corpus}', data_dir: '{tmp_path}/data', tokenizer: {{type: bpe, vocab_size: 300}}}}",
        "device": "{device: cpu, dtype: float32, threads: 1}",
        "evaluation": "{val_max_steps: 1, sample_length: 2}",
        "output.exp_dir": str(tmp_path / "exp"),
    }
    overrides = [word for setting in settings.items() for word in ("--set", "=".join(setting))]
    assert main(["--config", str(CONFIGS / "baseline.yaml"), *overrides]) == 0
    assert (tmp_path / "exp" / "baseline" / "model_final.pt").is_file()


def test_the_program_needs_nothing_of_the_service() -> None:
    absent = "import sys; sys.modules.update(dict.fromkeys(('redis', 'celery', 'fastapi', 'uvicorn', 'httpx')))"
    subprocess.run([sys.executable, "-c", f"{absent}; import model_core.train"], check=True)
