"""A run that is interrupted at any step resumes bit for bit."""

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model_core.checkpoint import State, writer
from model_core.config import ExperimentConfig
from model_core.config_loader import parse_config
from model_core.data.ensure import prepare
from model_core.errors import CheckpointMismatch, DataChanged
from model_core.hardware.device import Machine, Runtime, decide
from model_core.storage.checkpoints import LATEST, PREVIOUS, CheckpointInfo, periodic_name
from model_core.storage.dataset import Dataset, save_tokenizer
from model_core.storage.run import Run
from model_core.tokenizer import train_bpe
from model_core.training.callbacks import build_callbacks
from model_core.training.resume import resume
from model_core.training.setup import build_train_state
from model_core.training.trainer import TrainState, take_step, train

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 10
BPE = {"type": "bpe", "vocab_size": 300}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """What the configuration says; the state is assembled here without the program around it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def dataset(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """So small that ten steps are several epochs."""
    directory = tmp_path_factory.mktemp("few")
    few = directory / "few.txt"
    few.write_text("\n\n".join(corpus.read_text().split("\n\n")[:12]))
    tokenizer = parse_config({"model": {"vocab_size": 300}, "data": {"tokenizer": BPE}}).config.data.tokenizer
    return prepare(f"file:{few}", directory, name="few", tokenizer=tokenizer, split=(0.5, 0.25, 0.25))


def tiny(dtype: str = "float32", dropout: float = 0.1, **sections: Any) -> ExperimentConfig:
    tree = {
        "model": {
            "n_layer": 2, "n_embd": 16, "n_head_list": [4, 2], "vocab_size": 300, "block_size": 16, "dropout": dropout
        },
        "training": {
            "batch_size": 2, "sequence_length": 16, "total_batch_size": 64, "max_lr": 0.01, "min_lr": 0.001,
            "warmup_steps": 2, "max_steps": STEPS,
        },
        "data": {"tokenizer": BPE},
        "evaluation": {"val_loss_every": 2, "sample_num": 0, "checkpoint_every": 4},
        "device": {"dtype": dtype, "threads": 1},
    }  # fmt: skip
    merged = {name: {**tree.get(name, {}), **sections.get(name, {})} for name in {*tree, *sections}}
    return parse_config(merged).config


def choose_runtime(config: ExperimentConfig) -> Runtime:
    """That of a CPU; a number format that it would rather not use is used all the same, with the scaler."""
    runtime = decide(config, Machine("Linux", cores=1))
    return replace(runtime, dtype=config.device.dtype, scaler=config.device.dtype == "float16")


def fresh(config: ExperimentConfig, dataset: Dataset) -> TrainState:
    state = build_train_state(config, choose_runtime(config), dataset, lambda *_, **__: None)
    # grows every third step and overflows at times, as one with the usual settings does in a long run
    state.scaler = torch.amp.GradScaler("cpu", 2.0**14, growth_interval=3, enabled=state.runtime.scaler)
    return state


def stepped(state: TrainState, steps: int) -> list[tuple[str, str]]:
    """Take steps; the bits of their losses and gradient norms."""
    results = [take_step(state) for _ in range(steps)]
    return [(result.loss.hex(), result.grad_norm.hex()) for result in results]


def through_a_file(saved: State) -> State:
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    restored: State = torch.load(file, weights_only=True)
    return restored


def going_on(config: ExperimentConfig, dataset: Dataset, saved: State) -> list[tuple[str, str]]:
    """What the steps that are left measure, when they begin with a state from a file."""
    state = fresh(config, dataset)
    state.restore(saved)
    return stepped(state, STEPS - state.step)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_run_interrupted_at_any_step_goes_on_bit_for_bit(dataset: Dataset, dtype: str, dropout: float) -> None:
    config = tiny(dtype, dropout)
    straight = fresh(config, dataset)
    told = [(through_a_file(straight.full()), *stepped(straight, 1)) for _ in range(STEPS)]
    bits = [step for _, step in told]
    assert [going_on(config, dataset, saved) for saved, _ in told] == [bits[after:] for after in range(STEPS)]


def test_ten_steps_are_several_epochs(dataset: Dataset) -> None:
    state = fresh(tiny(), dataset)
    stepped(state, STEPS)
    assert state.loader.epoch > 2


class Told:
    """Collects events."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def __call__(self, type: str, **fields: Any) -> None:  # noqa: A002
        self.events.append({"type": type, **fields})

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]


@pytest.fixture
def in_a_run(dataset: Dataset, tmp_path: Path) -> Callable[..., TrainState]:
    """Train in a run directory, as the program does, until some step; go on with what is there."""
    told = Told()

    def go(name: str, until: int = STEPS, data: Dataset = dataset, **sections: Any) -> TrainState:
        config, path = tiny(**sections), tmp_path / name
        run = Run(path) if path.exists() else Run.create(path, config)
        state = build_train_state(config, choose_runtime(config), data, told)
        resume(state, run, told)
        train(
            state,
            build_callbacks(config, run, attempt=1, dataset=data, emit=told),
            should_stop=lambda: state.step >= until,
        )
        return state

    go.told, go.path = told, tmp_path  # type: ignore[attr-defined]
    return go


def test_a_state_of_another_number_of_processes_is_gone_on_from_with_a_warning(
    in_a_run: Callable[..., TrainState],
) -> None:
    saved = in_a_run("shared", until=3).full() | {"processes": 2}
    Run(in_a_run.path / "shared").publish(LATEST, writer(saved), attempt=1, step=3, full=True, loss=None, val_loss=None)

    assert in_a_run("shared").step == STEPS

    (warning,) = [event for event in in_a_run.told.of("warning") if event["code"] == "processes_changed"]
    assert all(value in warning["detail"] for value in ("model_latest.pt", "2", "1"))


def plain(value: Any) -> Any:
    """With lists in place of tensors."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value.tolist() if isinstance(value, torch.Tensor) else value


def comparable(state: TrainState) -> State:
    """A full state but for the time that it took, and the optimizer's rate, which every step sets anew."""
    full = plain(state.full())
    return {**full, "seconds": None, "optimizer": full["optimizer"]["state"]}


@pytest.mark.parametrize("after", [1, 4, 5, 9])
def test_everything_that_a_state_holds_is_that_of_an_uninterrupted_run(in_a_run: Any, after: int) -> None:
    straight = comparable(in_a_run("straight"))
    stopped = comparable(in_a_run("cut", until=after))
    assert comparable(in_a_run("cut", until=after)) == stopped  # read back, and stopped again at once
    assert comparable(in_a_run("cut")) == straight
    assert [event["step"] for event in in_a_run.told.of("resumed")] == [after, after]


def test_a_full_state_names_everything(dataset: Dataset) -> None:
    state = fresh(tiny("float16"), dataset)
    stepped(state, 1)
    full = state.full()
    assert full.keys() >= {"model", "optimizer", "scaler", "rng", "position", "best_val_loss", "step", "config"}
    assert (full["schema_version"], full["tokenizer"]["sha256"]) == (1, dataset.tokenizer().sha256)
    assert (full["scaler"]["scale"] > 0, full["position"], full["config"]["device"]["threads"]) == (True, 4, 1)


def test_the_best_loss_before_an_interruption_still_counts(in_a_run: Any) -> None:
    in_a_run("cut", until=4)
    run = Run(in_a_run.path / "cut")
    state = torch.load(run.path / LATEST, weights_only=True)
    best_ever = {**state, "best_val_loss": 0.0}
    run.publish(
        LATEST, lambda file: torch.save(best_ever, file), attempt=1, step=4, full=True, loss=None, val_loss=None
    )
    resumed = in_a_run("cut")
    assert (resumed.best_val_loss, run.resolve("best").step) == (0.0, 4)


def test_a_state_of_another_tokenizer_is_refused(in_a_run: Any, dataset: Dataset, tmp_path: Path) -> None:
    in_a_run("cut", until=4)
    other = Dataset.named("few", tmp_path / "other")
    other.directory.mkdir()
    for file in dataset.directory.glob("*[!t]"):
        (other.directory / file.name).write_bytes(file.read_bytes())
    save_tokenizer(other.directory / "tokenizer.json", train_bpe(["other words"], 300))
    with pytest.raises(DataChanged):
        in_a_run("cut", data=other)
    run = Run(in_a_run.path / "cut")
    state = torch.load(run.path / LATEST, weights_only=True)
    del state["data_sha256"]  # as an earlier version saved it
    run.publish(LATEST, lambda file: torch.save(state, file), attempt=1, step=4, full=True, loss=None, val_loss=None)
    with pytest.raises(CheckpointMismatch, match=r"model_latest\.pt.* tokenizer"):
        in_a_run("cut", data=other)


def test_a_state_of_a_later_version_is_refused_and_not_begun_anew(in_a_run: Any) -> None:
    in_a_run("cut", until=4)
    run = Run(in_a_run.path / "cut")
    later = {**torch.load(run.path / LATEST, weights_only=True), "schema_version": 2}
    run.publish(LATEST, lambda file: torch.save(later, file), attempt=1, step=4, full=True, loss=None, val_loss=None)
    with pytest.raises(CheckpointMismatch, match="schema_version 2"):
        in_a_run("cut")


def test_keys_that_an_earlier_version_did_not_have_do_not_keep_a_run_from_going_on(in_a_run: Any) -> None:
    in_a_run("cut", until=4)
    run = Run(in_a_run.path / "cut")
    state = torch.load(run.path / LATEST, weights_only=True)
    for section, key in (("model", "head_dim"), ("training", "on_oom"), ("device", "tf32")):
        del state["config"][section][key]
    run.publish(LATEST, lambda file: torch.save(state, file), attempt=1, step=4, full=True, loss=None, val_loss=None)
    assert in_a_run("cut").step == STEPS


def damage(run: Run, *files: str) -> None:
    for file in files:
        (run.path / file).write_bytes((run.path / file).read_bytes()[:-1] + b"!")


def test_damaged_states_are_named_and_the_one_before_is_gone_on_from(in_a_run: Any) -> None:
    straight = comparable(in_a_run("straight"))
    in_a_run("cut", until=9)
    damage(Run(in_a_run.path / "cut"), LATEST, periodic_name(8))
    assert comparable(in_a_run("cut")) == straight
    warnings = [(event["code"], event["detail"].split("'")[1]) for event in in_a_run.told.of("warning")]
    assert warnings == [("checkpoint_damaged", LATEST), ("checkpoint_damaged", periodic_name(8))]
    assert in_a_run.told.of("resumed") == [{"type": "resumed", "file": periodic_name(4), "step": 4}]


def test_a_run_without_an_intact_state_starts_over_and_says_so(in_a_run: Any) -> None:
    straight = comparable(in_a_run("straight"))
    in_a_run("cut", until=3)
    damage(Run(in_a_run.path / "cut"), LATEST)
    assert comparable(in_a_run("cut")) == straight
    assert "no full state of run 'cut' is intact: training begins anew" in in_a_run.told.of("warning")[-1]["detail"]
    assert not in_a_run.told.of("resumed")


def saved(run: Run) -> dict[str, CheckpointInfo]:
    return {info.file: info for info in run.checkpoints()}


def test_the_rolling_states_are_the_last_two_ends(in_a_run: Any) -> None:
    in_a_run("cut", until=3)
    in_a_run("cut", until=6)
    present = saved(Run(in_a_run.path / "cut"))
    assert (present[LATEST].step, present[PREVIOUS].step) == (6, 3)
