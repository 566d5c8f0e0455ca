"""Every key of the configuration has an observable effect.

The table names for each key a value that differs from the base, and what to observe. A key of the configuration
that is missing in the table fails a test.
"""

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model_core.config import Config, ExperimentConfig
from model_core.config_loader import override, parse_config
from model_core.data.sources.registry import open_source, revision_of
from model_core.errors import InvalidConfig, InvalidData, OutOfMemory
from model_core.schedule import effective_steps, get_lr
from model_core.storage.files import Layout
from model_core.storage.run import Run
from model_core.training.tracking import trackers
from model_core.training.trainer import train
from tests.model_core.factories import Experiment

pytestmark = pytest.mark.usefixtures("signals")

Look = Callable[[Experiment], object]


def heads(b: Experiment) -> object:
    return [(block.attn.n_head, block.attn.head_dim, block.attn.dropout) for block in b.state.model.blocks]


def shapes(b: Experiment) -> object:
    return {name: tensor.shape for name, tensor in b.state.model.state_dict().items()}


def batch(b: Experiment) -> object:
    return b.state.loader.next_batch()[0].tolist()


def groups(b: Experiment) -> object:
    return [(group["weight_decay"], group["eps"]) for group in b.state.optimizer.param_groups]


def rows_without_memory(b: Experiment) -> object:
    """Rows of a micro batch after a step for which two were too many."""

    def narrow(idx: Tensor, targets: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if len(idx) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return b.state.model(idx, targets)

    state = replace(b.state, forward=narrow)
    with contextlib.suppress(OutOfMemory):
        train(state, [], lambda: state.step > 0)
    return state.batch_size


def steps(b: Experiment) -> object:
    return effective_steps(b.config.training, train_tokens=320)


def rates(b: Experiment) -> object:
    return [get_lr(step, b.config.training, 4) for step in range(5)]


def paths(b: Experiment) -> object:
    layout = Layout.of(b.config)
    return b.dataset, layout.run(b.config.experiment_name), layout.attention


def losses(b: Experiment) -> object:
    return b.run.told("step", "step", "loss")


def validations(b: Experiment) -> object:
    return b.run.told("validation", "step", "val_loss")


def samples(b: Experiment) -> object:
    return b.run.told("sample", "step", "texts")


def names(b: Experiment) -> object:
    return b.run.names


def revision(b: Experiment) -> object:
    """Of a dataset of the hub, as far as a configuration tells it."""
    return revision_of(str(b.config.data.source), seed=0, revision=b.config.data.revision)


def first_text(b: Experiment) -> object:
    rows = b.dataset.directory.parent / "rows.jsonl"
    rows.write_text('{"text": "One.", "story": "Once."}')
    return next(open_source(f"file:{rows}", seed=0, text_column=b.config.data.text_column).documents(0)).text


def read_documents(b: Experiment) -> object:
    """Documents of a text file in which each choice of how to read it makes a difference."""
    text, data = b.dataset.directory.parent / "text.txt", b.config.data
    text.write_bytes(b"One.\nTwo.\n\nThree <|endoftext|> four.\n" + b"\xff\n" + b"Line.\n" * 2000)
    options = {"documents": data.documents, "special_text": data.special_text, "on_bad_document": data.on_bad_document}
    try:
        return [document.text for document in open_source(f"file:{text}", seed=0, **options).documents(0)]
    except InvalidData as error:
        return error.code


def pictures(b: Experiment) -> object:
    return b.test.pictures()


def distributions(b: Experiment) -> object:
    return {Path(name).name for name in b.test.names if name.startswith("distributions/")}


# key: a value unlike the base's, where the difference shows, and what else both need
OBSERVED: dict[str, tuple[str, Look, *tuple[str, ...]]] = {
    "experiment_name": ("other", paths),
    "model.n_layer": ("3", heads),
    "model.n_head": ("4", heads),
    "model.n_embd": ("32", shapes),
    "model.vocab_size": ("320", shapes),
    "model.block_size": ("64", shapes),
    "model.n_head_list": ("[4, 1]", heads),
    "model.head_dim": ("4", heads),
    "model.dropout": ("0.5", heads),
    "training.batch_size": ("1", batch),
    "training.sequence_length": ("4", batch),
    "training.total_batch_size": ("64", lambda b: b.config.accumulation),
    "training.max_lr": ("0.5", rates),
    "training.min_lr": ("0.0005", rates),
    "training.warmup_steps": ("2", rates),
    "training.max_steps": ("3", steps),
    "training.max_tokens": ("64", steps),
    "training.max_epochs": ("0.2", steps),
    "training.weight_decay": ("0.2", groups),
    "training.grad_clip": ("0.001", losses),
    "training.eps": ("1.0e-6", groups),
    "training.on_oom": ("halve", rows_without_memory),
    "training.gradient_checkpointing": ("true", lambda b: b.state.model.gradient_checkpointing),
    "data.data_dir": ("./elsewhere", paths),
    "data.train_file": ("a_train.npy", paths),
    "data.val_file": ("a_val.npy", paths),
    "data.test_file": ("a_test.npy", paths),
    "data.dataset": ("named", paths),
    "data.source": ("stories", lambda b: open_source(str(b.config.data.source), seed=0).name),
    "data.revision": ("a" * 40, revision, "data.source=babylm"),
    "data.text_column": ("story", first_text),
    "data.documents": ("paragraph", read_documents, "data.special_text=split"),
    "data.special_text": ("strip", read_documents),
    "data.on_bad_document": ("fail", read_documents),
    "data.split": ("[0.5, 0.3, 0.2]", lambda b: b.prepared["splits"]),
    "data.dedupe": ("true", lambda b: b.prepared["duplicates"]),
    "data.tokenizer": ("{type: bpe, vocab_size: 260}", lambda b: b.prepared["tokenizer"]),
    "data.shuffle": ("none", batch),
    "execution.train": ("false", lambda b: b.run.code, "execution.test=true"),
    "execution.test": ("true", lambda b: "test_loss" in b.run.outcome),
    "execution.use_compile": ("true", lambda b: b.runtime().compile_mode),
    "evaluation.val_loss_every": ("1", validations),
    "evaluation.val_max_steps": ("2", validations),
    "evaluation.sample_every": ("1", samples),
    "evaluation.sample_num": ("1", samples),
    "evaluation.sample_length": ("8", samples),
    "evaluation.sample_top_k": ("1", samples),
    "evaluation.sample_temperature": ("0.01", samples),
    "evaluation.checkpoint_every": ("1", names),
    "evaluation.max_checkpoints_to_keep": ("1", names, "evaluation.checkpoint_every=1"),
    "evaluation.head_statistics": ("false", lambda b: b.run.told("heads", "step")),
    "output.exp_dir": ("./elsewhere", paths),
    "output.attention_dir": ("./elsewhere", paths),
    "device.device": ("cuda", lambda b: b.runtime().device),
    "device.dtype": ("bfloat16", lambda b: b.runtime().dtype),
    "device.seed": ("2", losses),
    "device.threads": ("2", lambda b: b.runtime().threads),
    "device.tf32": ("false", lambda b: b.runtime().tf32, "device.device=cuda"),
    "device.attention_backend": ("math", lambda b: b.runtime().attention_backend),
    "checkpoint.save_best": ("false", names),
    "checkpoint.save_final": ("false", names),
    "checkpoint.load_checkpoint": ("base/model_final.pt", lambda b: b.run.told("warning", "code")),
    "checkpoint.resume_every_minutes": ("1.0e-9", lambda b: b.run.told("checkpoint", "file")),
    "testing.checkpoint_path": ("final", lambda b: b.test.told("start", "checkpoint")),
    "testing.num_test_samples": ("2", lambda b: b.test.told("rendered", "id")),
    "testing.test_sample_length": ("8", lambda b: b.test.outcome["test_loss"]),
    "testing.max_seq_len_viz": ("3", pictures),
    "testing.format": ("svg", lambda b: b.test.told("rendered", "files")),
    "testing.cmap": ("magma", pictures),
    "testing.dpi": ("30", pictures),
    "testing.label_max_tokens": ("0", pictures),
    "testing.num_statistics_samples": ("3", distributions),
    "logging.log_interval": ("2", lambda b: b.run.files["logs/log.txt"].count(b" lr=")),
    "logging.log_to_file": ("false", names),
    "logging.verbose": ("false", lambda b: "step=1/4" in b.run.stderr),
    "logging.tensorboard": ("true", lambda b: "tensorboard" in {Path(name).parts[0] for name in b.run.names}),
    "logging.wandb": ("offline", lambda b: len(trackers(b.config, Run(Path()), dataset=b.dataset, emit=print))),
}
FIXED = {"schema_version"}  # of the file's form; there is one


def every_key() -> set[str]:
    sections = {
        name: field.annotation
        for name, field in ExperimentConfig.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Config)
    }
    inside = {f"{name}.{key}" for name, section in sections.items() for key in section.model_fields}
    return inside | (ExperimentConfig.model_fields.keys() - sections.keys())


@pytest.fixture(scope="module")
def build(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Experiment]:
    """Build the base configuration with some settings; equal settings are built once."""
    home = tmp_path_factory.mktemp("keys")
    base = {
        "model": {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 300, "block_size": 32},
        "training": {
            "batch_size": 2, "sequence_length": 8, "total_batch_size": 32, "max_lr": 0.01, "min_lr": 0.001,
            "warmup_steps": 1, "max_steps": 4,
        },
        "data": {
            "data_dir": str(home / "text_data"), "train_file": "text_train.npy", "val_file": "text_val.npy",
            "test_file": "text_test.npy", "source": f"file:{corpus}", "tokenizer": {"type": "bpe", "vocab_size": 300},
        },
        "evaluation": {
            "val_loss_every": 4, "val_max_steps": 1, "sample_every": 4, "sample_num": 2, "sample_length": 4,
            "checkpoint_every": 4, "max_checkpoints_to_keep": 5,
        },
        "output": {"exp_dir": str(home / "exp"), "attention_dir": str(home / "pictures")},
        "device": {"device": "cpu", "dtype": "float32", "threads": 1},
        "testing": {
            "num_test_samples": 1, "test_sample_length": 16, "max_seq_len_viz": 5, "dpi": 20, "label_max_tokens": 5,
        },
    }  # fmt: skip
    built: dict[tuple[str, ...], Experiment] = {}

    def make(*settings: str) -> Experiment:
        if settings not in built:
            built[settings] = Experiment(override(base, settings), home, f"run{len(built)}" if settings else "base")
        return built[settings]

    assert make().run.code == 0  # others begin with it, or look at it
    return make


def test_every_key_is_in_the_table() -> None:
    assert every_key() == OBSERVED.keys() | FIXED


@pytest.mark.parametrize("key", OBSERVED)
def test_a_key_changes_what_can_be_seen(build: Callable[..., Experiment], key: str) -> None:
    value, look, *needed = OBSERVED[key]
    before, after = look(build(*needed)), look(build(*needed, f"{key}={value}"))
    assert before != after


@pytest.mark.parametrize(("length", "plotted", "tokens"), [(16, 3, 3), (2, 5, 2)])
def test_exactly_as_many_examples_and_tokens_are_drawn_as_asked(
    build: Callable[..., Experiment], length: int, plotted: int, tokens: int
) -> None:
    asked = ("testing.num_test_samples=2", f"testing.test_sample_length={length}", f"testing.max_seq_len_viz={plotted}")
    test = build(*asked).test
    assert test.told("rendered", "id") == [("0",), ("1",)]
    assert {Path(name).parts[0] for name in test.names if name.endswith(".png")} == {"0", "1"}
    drawn = [len(json.loads(test.files[f"{example}/manifest.json"])["tokens"]) for example in range(2)]
    assert drawn == [tokens] * 2


def test_another_form_of_the_file_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="schema_version"):
        parse_config({"schema_version": 2})
