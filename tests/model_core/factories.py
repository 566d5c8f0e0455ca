"""Factories of what a configuration builds and of what the program writes, each made on first use."""

import contextlib
import io
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from model_core.config_loader import override, parse_config
from model_core.data.ensure import ensure_dataset
from model_core.data.loader import LoaderConfig, TokenLoader
from model_core.gpt import GPT, Forward
from model_core.hardware.device import Gpu, Machine, Runtime, decide
from model_core.optim import make_optimizer
from model_core.storage.dataset import Dataset, dataset_of
from model_core.storage.events import read_events
from model_core.storage.files import Layout
from model_core.tokenizer import train_bpe
from model_core.train import main
from model_core.training.distributed import ProcessGroup
from model_core.training.setup import build_train_state
from model_core.training.trainer import TrainState

CPU = Machine(system="Linux", cores=2)
WITH_A_GPU = Machine(system="Linux", cores=2, gpus=(Gpu("A100", (8, 0), 40 << 30, "GPU-a"),))


class Experiment:
    """What a configuration builds: dataset, training state and runs, each made on first use."""

    def __init__(self, tree: dict[str, Any], home: Path, name: str) -> None:
        self._tree, self._home, self._name = tree, home, name
        self.config = parse_config(tree).config

    def runtime(self, machine: Machine = WITH_A_GPU) -> Runtime:
        return decide(self.config, machine)

    @property
    def dataset(self) -> Dataset:
        return dataset_of(self.config, Layout.of(self.config))

    @cached_property
    def prepared(self) -> Any:
        """The manifest of a dataset of its own, without what differs each time."""
        manifest = ensure_dataset(self.config, Layout.under(self._home / self._name)).manifest()
        assert manifest is not None
        return {name: manifest[name] for name in ("splits", "tokenizer", "duplicates")}

    @cached_property
    def state(self) -> TrainState:
        """The training state before the first step."""
        dataset = ensure_dataset(self.config, Layout.of(self.config))
        return build_train_state(self.config, self.runtime(CPU), dataset, lambda *args, **kwargs: None)

    @cached_property
    def run(self) -> "ProgramResult":
        """A whole run, by hand."""
        return self._main(self._name, Layout.of(self.config).run(self._name))

    @cached_property
    def test(self) -> "ProgramResult":
        """A test of the base's run, with pictures of its own."""
        pictures = self._home / self._name
        self._tree = override(
            self._tree, ["execution.train=false", "execution.test=true", f"output.attention_dir={pictures}"]
        )
        return self._main("base", pictures / "base")

    def _main(self, run: str, directory: Path) -> "ProgramResult":
        file = self._home / f"{self._name}.yaml"
        file.write_text(yaml.safe_dump(self._tree), encoding="utf-8")
        with contextlib.redirect_stderr(io.StringIO()) as told:
            code = main(["--config", str(file), "--run", run])
        return ProgramResult(directory, code, told.getvalue())


class ProgramResult:
    """Exit code, standard error and files of one call of the program."""

    def __init__(self, directory: Path, code: int, stderr: str) -> None:
        self.directory, self.code, self.stderr = directory, code, stderr

    @property
    def files(self) -> dict[str, bytes]:
        return {str(f.relative_to(self.directory)): f.read_bytes() for f in self.directory.rglob("*") if f.is_file()}

    @property
    def names(self) -> set[str]:
        return set(self.files)

    def pictures(self, suffix: str = "png") -> list[bytes]:
        return [content for name, content in sorted(self.files.items()) if name.endswith(suffix)]

    def told(self, kind: str, *fields: str) -> list[tuple[Any, ...]]:
        events = [event for event in read_events(self.directory / "events.jsonl") if event["type"] == kind]
        return [tuple(event[field] for field in fields) for event in events]

    @property
    def outcome(self) -> dict[str, Any]:
        tree: dict[str, Any] = json.loads((self.directory / "outcome.json").read_text())
        return tree


def tiny_state(
    process_group: ProcessGroup | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    forward: Callable[[GPT], Forward] | None = None,
    **training: Any,
) -> TrainState:
    """A model of two unequal layers in its first step, on random tokens: equal parameters and tokens at every call."""
    group = process_group or ProcessGroup()
    section = {"batch_size": 8, "sequence_length": 16, "total_batch_size": 128, "warmup_steps": 0, **training}
    tree = {
        "model": {"n_layer": 2, "n_embd": 16, "n_head_list": [4, 2], "vocab_size": 300, "block_size": 16},
        "training": section,
        "data": {"tokenizer": {"type": "bpe", "vocab_size": 300}},
        "device": {"dtype": "float32", "threads": 1},
    }
    config = parse_config(tree).config
    torch.manual_seed(0)
    model = GPT(config.model).to(dtype)
    tokens = np.random.default_rng(1).integers(0, 300, 2000, np.uint16)
    rows = LoaderConfig(section["batch_size"], 16, "block", rank=group.env.rank, world_size=group.world_size)
    return TrainState(
        config=config,
        runtime=decide(config, Machine("Linux", cores=1)),
        model=model,
        tokenizer=train_bpe(["some text"], 300),
        optimizer=make_optimizer(model, config.training, fused=True),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        loader=TokenLoader(tokens, rows),
        forward=forward(model) if forward else model,
        process_group=group,
    )
