"""A training process validates its configuration once, and refuses it before it loads torch."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from model_core.config_loader import load_config, parse_saved
from model_core.errors import InvalidConfig
from model_core.storage.run import Run

Tiny = Callable[..., Path]
COUNTED_TRAINING = """
import sys
from model_core.config import ExperimentConfig
from model_core.train import main
validate, count = ExperimentConfig.model_validate, 0
def counted(*args, **kwargs):
    global count
    count += 1
    return validate(*args, **kwargs)
ExperimentConfig.model_validate = counted
code = main(sys.argv[1:])
print(code, count)
"""


def train(*arguments: str) -> tuple[int, int]:
    """Train in a process of its own; returns the exit code and how often a whole configuration was validated."""
    command = [sys.executable, "-c", COUNTED_TRAINING, *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    code, count = done.stdout.split()
    return int(code), int(count)


@pytest.mark.slow
def test_a_new_run_and_a_resumed_one_validate_their_configuration_once(tiny: Tiny, tmp_path: Path) -> None:
    file = tiny(
        training={"max_steps": 999, "max_epochs": 0.02, "warmup_steps": 0},
        device={"threads": None},
        execution={"test": True},
    )
    run = Run(tmp_path / "exp" / "tiny")

    assert train("--config", str(file)) == (0, 1)
    assert train("--config", str(file), "--resume") == (0, 1)
    assert train("--config", str(file), "--run", "prepared") == (0, 1)

    fixed = run.config()
    assert (fixed.training.max_steps < 999, fixed.device.threads is None) == (True, False)
    assert Run(tmp_path / "exp" / "prepared").config().training == fixed.training


def test_a_saved_configuration_that_is_known_keeps_what_was_resolved(tiny: Tiny) -> None:
    known = load_config(tiny())
    saved = known.resolved(max_steps=7, threads=3)
    assert parse_saved(saved.model_dump(mode="json"), known) == saved


def test_a_saved_configuration_that_is_not_the_known_one_is_parsed(tiny: Tiny) -> None:
    known, other = load_config(tiny()), load_config(tiny(training={"max_lr": 0.5}))
    assert parse_saved(other.model_dump(mode="json"), known) == other


@pytest.mark.parametrize("change", [{"max_steps": 0}, {"max_steps": "many"}, {"total_batch_size": 1}])
def test_a_saved_configuration_that_is_damaged_is_refused(tiny: Tiny, change: dict[str, object]) -> None:
    known = load_config(tiny())
    tree = known.model_dump(mode="json")
    tree["training"] |= change
    with pytest.raises(InvalidConfig):
        parse_saved(tree, known)


def test_importing_the_program_loads_no_torch() -> None:
    code = "import sys, model_core.train; assert not {'torch', 'matplotlib'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
