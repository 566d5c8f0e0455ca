"""Learning rate and number of steps."""

import math

import pytest

from model_core.config import TrainingConfig
from model_core.config_loader import parse_config
from model_core.errors import InvalidConfig
from model_core.schedule import effective_steps, get_lr

TRAINING = TrainingConfig(max_lr=1.0, min_lr=0.1, warmup_steps=10, max_steps=110, total_batch_size=1000)


@pytest.mark.parametrize(
    ("step", "lr"),
    [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (60, 0.55), (110, 0.1), (500, 0.1)],
)
def test_the_rate_warms_up_and_follows_half_a_cosine(step: int, lr: float) -> None:
    assert get_lr(step, TRAINING, 110) == pytest.approx(lr)


def test_the_rate_between_is_the_formula() -> None:
    expected = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 25 / 100))
    assert get_lr(35, TRAINING, 110) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("budget", "steps"),
    [({}, 110), ({"max_tokens": 50_500}, 51), ({"max_epochs": 2}, 40), ({"max_tokens": 10**9, "max_epochs": 99}, 110)],
)
def test_the_smallest_budget_decides(budget: dict, steps: int) -> None:
    assert effective_steps(TRAINING.model_copy(update=budget), train_tokens=20_000) == steps


def test_a_budget_shorter_than_the_warm_up_is_refused() -> None:
    with pytest.raises(InvalidConfig, match=r"5 steps.* training\.max_tokens"):
        effective_steps(TRAINING.model_copy(update={"max_tokens": 5000}), 20_000)


def test_a_lowest_rate_above_the_highest_is_refused_with_both() -> None:
    with pytest.raises(InvalidConfig, match=r"0\.002.* 0\.001") as refused:
        parse_config({"training": {"max_lr": 0.001, "min_lr": 0.002}})
    assert [problem.pointer for problem in refused.value.problems] == ["/training/min_lr"]
