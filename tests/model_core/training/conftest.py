"""Trainings of the tiny configuration."""

from collections.abc import Callable
from pathlib import Path

import pytest

from model_core.config_loader import load_config
from model_core.data.ensure import ensure_dataset
from model_core.hardware.device import Machine, apply, decide
from model_core.storage.files import Layout
from model_core.storage.run import setup_experiment_dirs
from model_core.training.setup import build_train_state
from tests.model_core.training.workbench import Bench


@pytest.fixture
def bench(tiny: Callable[..., Path]) -> Callable[..., Bench]:
    def build(name: str = "tiny", **sections: dict) -> Bench:
        config = load_config(tiny(name, **sections))
        dataset = ensure_dataset(config, Layout.of(config))
        runtime = decide(config, Machine("Linux", cores=1))
        apply(runtime)
        state = build_train_state(config, runtime, dataset, lambda *_, **__: None)
        return Bench(state, setup_experiment_dirs(config), dataset)

    return build
