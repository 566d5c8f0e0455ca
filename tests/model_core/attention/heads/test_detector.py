"""A pattern drives its own label and no other; nothing else has one."""

import numpy as np
import pytest

from model_core.attention.heads.detector import (
    PatternAccumulator,
    label_heads,
    natural_patterns,
    repeated_patterns,
)

T, HALF, S = 64, 32, 2
QUERIES = np.arange(T)
EVEN = np.tril(np.ones((T, T))) / (QUERIES + 1)[:, None]


def one_hot(keys):
    weights = np.zeros((T, T))
    weights[QUERIES, np.maximum(keys, 0)] = 1
    return weights


def from_copy(shift):
    """Looks where the earlier copy is, and elsewhere in the first half."""
    return one_hot(np.where(QUERIES >= HALF, QUERIES - HALF + shift, QUERIES // 2))


def scores(patterns, head, blocks=(T,)):
    found = PatternAccumulator(patterns, S, 1)
    attention, first = np.broadcast_to(head, (S, 1, T, T)), 0
    for rows in blocks:
        found.add(first, attention[:, :, first : first + rows, : first + rows])
        first += rows
    return found.finish()


def labels(natural, repeated, control, blocks=(T,)):
    given = scores(natural_patterns(T), natural, blocks) | scores(repeated_patterns(HALF), repeated, blocks)
    found = label_heads(1, given, scores(repeated_patterns(HALF), control, blocks))[0]
    return [(label.type, label.strength) for label in found]


@pytest.mark.parametrize(
    ("name", "head"), [("previous", one_hot(QUERIES - 1)), ("self", one_hot(QUERIES)), ("sink", one_hot(QUERIES * 0))]
)
@pytest.mark.parametrize("blocks", [(T,), (7, 40, 17)])
def test_a_pattern_of_any_text_has_score_1_and_is_labelled(name, head, blocks):
    assert scores(natural_patterns(T), head, blocks)[name].score == 1
    assert labels(head, head, head, blocks) == [(name, "strong")]


@pytest.mark.parametrize(("name", "shift"), [("duplicate", 0), ("induction", 1)])
def test_a_head_that_finds_the_copy_has_score_1_and_is_labelled(name, shift):
    assert scores(repeated_patterns(HALF), from_copy(shift))[name].score == 1
    assert labels(EVEN, from_copy(shift), EVEN) == [(name, "strong")]


@pytest.mark.parametrize("shift", [0, 1])
def test_a_head_that_looks_at_a_distance_is_none_that_finds_the_copy(shift):
    assert labels(EVEN, from_copy(shift), from_copy(shift)) == []


@pytest.mark.parametrize("shift", [-1, 2, 5])
def test_a_head_beside_the_copy_has_no_label(shift):
    assert labels(EVEN, from_copy(shift), EVEN) == []


def test_even_attention_has_no_label():
    assert labels(EVEN, EVEN, EVEN) == []


@pytest.mark.parametrize(("share", "expected"), [(0.5, "strong"), (0.2, "weak"), (0.05, None)])
def test_the_strength_of_a_label_is_that_of_its_score(share, expected):
    mixed = share * one_hot(QUERIES - 1) + (1 - share) * EVEN
    assert labels(mixed, EVEN, EVEN) == ([("previous", expected)] if expected else [])


def test_a_head_that_looks_as_much_at_others_has_no_label():
    halves = (one_hot(QUERIES - 1) + one_hot(QUERIES - 3)) / 2
    assert labels(halves, EVEN, EVEN) == []


def test_a_label_says_what_it_rests_on():
    given = scores(repeated_patterns(HALF), from_copy(1))
    label = label_heads(1, given, scores(repeated_patterns(HALF), EVEN))[0][0]
    assert (label.type, label.score) == ("induction", 1.0)
    assert label.chance == label.control == pytest.approx((1 / np.arange(HALF + 1, 2 * HALF)).mean())
    assert label.z == pytest.approx((1 - label.chance) / given["induction"].sd[0])
    assert label.z > 50


def test_the_shuffled_score_has_the_mean_and_deviation_of_real_shuffles():
    rng = np.random.default_rng(0)
    weights = np.tril(rng.random((T, T))) ** 12
    weights /= weights.sum(-1, keepdims=True)
    found = scores(natural_patterns(T), weights)["previous"]
    rows = [np.tile(weights[i, : i + 1], (2000 * S, 1)) for i in range(32, T)]  # (draws, i + 1) each
    picked = [rng.permuted(row, axis=1)[:, -2].reshape(2000, S) for row in rows]
    shuffled = np.mean(picked, axis=(0, 2))  # (draws,)
    assert np.mean(shuffled) == pytest.approx(found.chance, rel=0.1)
    assert np.std(shuffled) == pytest.approx(found.sd[0], rel=0.1)


def test_rivals_all_lie_in_the_text():
    for patterns, tokens in [(natural_patterns(n), n) for n in range(1, 70)] + [
        (repeated_patterns(half), 2 * half) for half in range(4, 70)
    ]:
        for pattern in patterns:
            assert pattern.target in pattern.rivals
            targets = [*pattern.rivals, pattern.target]
            keys = targets if pattern.is_key else [row - t for row in pattern.rival_rows[:1] for t in targets]
            assert min(keys) >= 0
            assert 0 < pattern.rows[0] < pattern.rows[1] <= tokens
            assert 0 < pattern.rival_rows[0] < pattern.rival_rows[1] <= tokens
