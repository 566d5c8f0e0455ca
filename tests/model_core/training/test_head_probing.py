"""The history of heads: which steps have it, that it changes no loss, and what happens where it cannot be kept."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from model_core.attention.heads.frames import frame_steps, load_frame
from model_core.attention.heads.history import Probed
from model_core.config_loader import parse_config
from model_core.training.head_probing import HeadHistory, ProbeSchedule
from model_core.training.trainer import TrainState, train
from tests.model_core.training.workbench import Bench, Losses, run_with

MakeBench = Callable[..., Bench]
# 64 tokens of the probe, so 2,048 trained ones between two readings: 2 steps, and the next validation is the third
OFTEN: dict[str, Any] = {
    "model": {"block_size": 8, "dropout": 0.1},
    "training": {"batch_size": 128, "sequence_length": 8, "total_batch_size": 1024, "max_steps": 10},
    "evaluation": {"val_loss_every": 3, "val_max_steps": 1, "sample_num": 0, "checkpoint_every": 100},
}


def without(tree: dict[str, Any]) -> dict[str, Any]:
    return {**tree, "evaluation": {**tree["evaluation"], "head_statistics": False}}


def parameters(state: TrainState) -> list[torch.Tensor]:
    full = state.full()
    moments = [value for moment in full["optimizer"]["state"].values() for value in moment.values()]
    return [*full["model"].values(), *moments, full["rng"]["cpu"]]


@pytest.mark.parametrize(
    ("tokens", "every", "steps", "due"),
    [
        (3072, 200, 1200, [0, 200, 400, 600, 800, 1000, 1200]),  # the quickstart
        (3072, 1, 500, [0, 96, 192, 288, 384, 480]),
        (3072, 50, 500, [0, 100, 200, 300, 400, 500]),
        (3072, 90, 310, [0, 180, 310]),
        (3072, 100, 90, [0]),
        (32, 1, 5, [0, 1, 2, 3, 4, 5]),
        (10**9, 1, 1000, [0]),
    ],
)
def test_a_reading_is_due_at_a_validation_after_32_times_its_tokens(
    tokens: int, every: int, steps: int, due: list[int]
) -> None:
    training = {"max_steps": steps, "total_batch_size": 1024, "batch_size": 8, "sequence_length": 128}
    tree = {"training": {**training, "warmup_steps": 1}, "evaluation": {"val_loss_every": every}}
    schedule = ProbeSchedule.of(parse_config(tree).config, tokens)
    assert [step for step in range(steps + 1) if schedule.is_due(step)] == due
    assert all(b - a >= 32 * tokens / 1024 for a, b in pairwise(due))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_losses_and_states_are_the_same_bits_with_the_probe_and_without(bench: MakeBench, dtype: str) -> None:
    tree = {**OFTEN, "device": {"dtype": dtype}}
    read = bench("read", **tree)
    losses = run_with(read.state, HeadHistory(read.dataset, read.run, read.emit))
    unread = bench("unread", **tree)  # building it sets the random state that dropout uses
    assert run_with(unread.state) == losses
    assert [event["step"] for event in read.events] == [0, 3, 6, 9]
    assert all(torch.equal(one, two) for one, two in zip(parameters(read.state), parameters(unread.state), strict=True))


def test_the_key_decides_whether_a_training_has_events(bench: MakeBench) -> None:
    kinds = [
        [type(one) for one in bench(name, **tree).listeners()]
        for name, tree in (("on", OFTEN), ("off", without(OFTEN)))
    ]
    assert [HeadHistory in kind for kind in kinds] == [True, False]
    assert [kind for kind in kinds[0] if kind is not HeadHistory] == kinds[1]


def test_an_event_and_a_frame_have_every_head_of_every_layer(bench: MakeBench) -> None:
    told = bench(**OFTEN)
    train(told.state, [HeadHistory(told.dataset, told.run, told.emit)], lambda: False)
    readings = [Probed.of(event) for event in told.of("heads")]
    assert [(reading.heads, reading.probe["sequences"]) for reading in readings] == [((4, 2), 8)] * 4
    assert len({reading.probe["sha256"] for reading in readings}) == 1
    assert readings[0].values["previous"] == pytest.approx(readings[0].probe["chance"]["previous"], abs=0.01)
    assert not np.array_equal(readings[0].values["previous"], readings[-1].values["previous"])
    path = told.run.path
    assert frame_steps(path) == [0, 3, 6, 9]
    frame = load_frame(path, 9)
    assert frame is not None
    assert [levels.shape for levels in frame.layers] == [(4, 8, 8), (2, 8, 8)]
    assert len(frame.tokens) == 8
    assert all((levels[:, 0, 0] == 255).all() for levels in frame.layers)


@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_run_has_the_events_of_one_that_was_never_stopped(bench: MakeBench, stop: int) -> None:
    straight = bench("straight", **OFTEN)
    train(straight.state, [HeadHistory(straight.dataset, straight.run, straight.emit)], lambda: False)
    first = bench("first", **OFTEN)
    train(first.state, [HeadHistory(first.dataset, first.run, first.emit)], lambda: first.state.step >= stop)
    saved = first.state.full()
    second = bench("second", **OFTEN)
    second.state.restore(saved)
    train(second.state, [HeadHistory(second.dataset, second.run, second.emit)], lambda: False)
    assert [*first.of("heads"), *second.of("heads")] == straight.of("heads")
    assert [event["step"] for event in first.of("heads")] == [step for step in (0, 3) if step <= stop]


def test_a_model_does_not_fit_beside_the_probe_and_is_trained(bench: MakeBench) -> None:
    small = bench(**OFTEN)

    def fail(module: torch.nn.Module, _: Any) -> None:
        if not module.training and small.state.step < 6:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    small.state.model.blocks[1].ln_1.register_forward_pre_hook(fail)
    losses = run_with(small.state, HeadHistory(small.dataset, small.run, small.emit))
    (warning,) = small.of("warning")
    assert (warning["code"], warning["step"]) == ("heads_skipped", 0)
    assert [event["step"] for event in small.of("heads")] == [6, 9]
    assert frame_steps(small.run.path) == [6, 9]
    assert small.state.model.training
    assert losses == run_with(bench("quiet", **OFTEN).state)


def test_a_model_of_too_many_heads_is_not_probed(bench: MakeBench) -> None:
    many = bench(**{**OFTEN, "model": {"n_embd": 4, "head_dim": 1, "n_head_list": [2048, 1], "block_size": 8}})
    HeadHistory(many.dataset, many.run, many.emit).on_start(many.state)
    (warning,) = many.events
    assert (warning["code"], warning["heads"], warning["most"]) == ("heads_not_probed", 2049, 2048)


@pytest.mark.parametrize("spoil", ["short", "unknown"])
def test_a_validation_split_without_a_window_is_warned_about_once(bench: MakeBench, spoil: str) -> None:
    lacking = bench(**OFTEN)
    tokens = np.load(lacking.dataset.val)
    np.save(lacking.dataset.val, tokens[:7] if spoil == "short" else np.full_like(tokens, 384))
    callback, losses = HeadHistory(lacking.dataset, lacking.run, lacking.emit), Losses()
    train(lacking.state, [callback, losses], lambda: False)
    (warning,) = lacking.events
    assert (warning["code"], len(losses.told)) == ("heads_skipped", 10)
    assert frame_steps(lacking.run.path) == []


def test_a_frame_that_cannot_be_written_loses_no_event(bench: MakeBench) -> None:
    full = bench(**OFTEN)
    (full.run.path / "heads").write_text("in the way")
    train(full.state, [HeadHistory(full.dataset, full.run, full.emit)], lambda: False)
    assert [event["step"] for event in full.of("heads")] == [0, 3, 6, 9]
