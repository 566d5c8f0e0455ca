"""Heads are compared and paired as loops over rows and all permutations would."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_core.attention.capture import AttentionBlock, attention_blocks
from model_core.attention.heads.matching import assign, head_affinities, hellinger, match_heads
from model_core.attention.heads.patterns import MEASURED, HeadPatterns
from model_core.attention.record import dequantize, quantize
from model_core.attention.statistics import head_statistics
from model_core.config import ModelConfig
from model_core.gpt import GPT

Array = np.ndarray[Any, Any]
W, T = 2, 12


def random_attention(heads: int, *, seed: int, sharpness: float = 3.0) -> Array:
    """Causal attention, (W, H, T, T)."""
    logits = np.random.default_rng(seed).normal(size=(W, heads, T, T)) * sharpness
    weights = np.exp(logits) * np.tri(T)
    attention: Array = (weights / weights.sum(-1, keepdims=True)).astype(np.float32)
    return attention


def patterns(*layers: Array) -> HeadPatterns:
    """Patterns of attention that is given in two blocks of queries a layer."""
    blocks = [
        AttentionBlock(
            layer, first, stop == T, torch.from_numpy(one[:, :, first:stop, :stop].copy()),
            torch.ones(W, one.shape[1], stop), torch.ones(W, one.shape[1], stop - first),
        )
        for layer, one in enumerate(layers)
        for first, stop in ((0, 5), (5, T))
    ]  # fmt: skip
    return HeadPatterns.of(blocks, heads=tuple(one.shape[1] for one in layers), windows=W, tokens=T)


def stored(attention: Array) -> Array:
    """What the levels of attention stand for, in float64 with rows of sum 1."""
    values = dequantize(quantize(attention)).astype(np.float64)
    restored: Array = values / values.sum(-1, keepdims=True)
    return restored


def rows_of(p: Array, q: Array) -> list[tuple[Array, Array]]:
    return [(p[w, i, : i + 1], q[w, i, : i + 1]) for w in range(W) for i in range(1, T)]


def test_distance_and_shuffled_distance_are_those_of_loops_over_rows() -> None:
    a, b = random_attention(3, seed=1), random_attention(2, seed=2)
    found = head_affinities(patterns(a), patterns(b))
    for head_a, head_b in itertools.product(range(3), range(2)):
        rows = rows_of(stored(a)[:, head_a], stored(b)[:, head_b])
        kept = sum(sum(math.sqrt(x * y) for x, y in zip(p, q, strict=True)) for p, q in rows) / len(rows)
        shuffled = sum(np.sqrt(p).sum() * np.sqrt(q).sum() / len(p) for p, q in rows) / len(rows)
        assert found.kept[head_a, head_b] == pytest.approx(kept, abs=1e-6)
        assert found.shuffled[head_a, head_b] == pytest.approx(shuffled, abs=1e-6)


def test_levels_change_a_distance_by_less_than_a_thousandth() -> None:
    a, b = random_attention(2, seed=1), random_attention(2, seed=2)
    found = hellinger(head_affinities(patterns(a), patterns(b)).kept)
    exact = [[np.mean([np.sqrt(p * q).sum() for p, q in rows_of(a[:, x], b[:, y])]) for y in (0, 1)] for x in (0, 1)]
    np.testing.assert_allclose(found, np.sqrt(1 - np.array(exact)), atol=1e-3)


def test_the_shuffled_distance_is_the_mean_over_shuffles_of_the_keys() -> None:
    rng = np.random.default_rng(0)
    p, q = (one[:, 0] for one in (random_attention(1, seed=1), random_attention(1, seed=2)))
    draws = [np.mean([np.sqrt(x * rng.permutation(y)).sum() for x, y in rows_of(p, q)]) for _ in range(400)]
    found = head_affinities(patterns(p[:, None]), patterns(q[:, None])).shuffled[0, 0]
    assert found == pytest.approx(float(np.mean(draws)), abs=float(4 * np.std(draws) / math.sqrt(400)))


def test_overlap_is_the_common_share_of_loops_over_rows() -> None:
    a, b = random_attention(2, seed=1), random_attention(3, seed=2)
    for pair in match_heads(patterns(a), patterns(b)).pairs:
        rows = rows_of(stored(a)[:, pair.a[1]], stored(b)[:, pair.b[1]])
        wanted = sum(sum(map(min, p, q)) for p, q in rows) / len(rows)
        assert pair.overlap == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 3), (7, 7), (7, 5), (4, 6), (2, 7)])
def test_an_assignment_has_the_least_sum_of_all_permutations(rows: int, columns: int) -> None:
    cost = np.random.default_rng(rows * 10 + columns).random((rows, columns))
    wide = cost if rows <= columns else cost.T
    best = min(
        sum(wide[row, column] for row, column in enumerate(chosen))
        for chosen in itertools.permutations(range(wide.shape[1]), wide.shape[0])
    )
    taken_rows, taken_columns = assign(cost)
    assert cost[taken_rows, taken_columns].sum() == pytest.approx(best)
    assert len(set(taken_rows)) == len(set(taken_columns)) == min(rows, columns)


def test_shuffled_heads_are_found_again_and_a_head_too_many_stays_over() -> None:
    first, second = random_attention(4, seed=1), random_attention(2, seed=2)
    found = match_heads(patterns(first, second), patterns(second[:, ::-1], first[:, [2, 0, 3]]))
    assert [(pair.a, pair.b) for pair in found.pairs] == [
        ((0, 0), (1, 1)), ((0, 2), (1, 0)), ((0, 3), (1, 2)), ((1, 0), (0, 1)), ((1, 1), (0, 0)),
    ]  # fmt: skip
    assert (found.unmatched_a, found.unmatched_b) == (((0, 1),), ())
    assert all(pair.similar and pair.mutual for pair in found.pairs)
    assert found.mean == pytest.approx(1.0, abs=1e-5)


def test_heads_of_another_kind_are_paired_but_not_similar() -> None:
    found = match_heads(patterns(random_attention(5, seed=1)), patterns(random_attention(5, seed=2)))
    assert [pair.similar for pair in found.pairs] == [False] * 5
    assert all(pair.ratio is not None and pair.ratio > 0.5 for pair in found.pairs)


def test_flat_heads_are_not_called_similar() -> None:
    flat = random_attention(3, seed=1, sharpness=0.1)
    pairs = match_heads(patterns(flat), patterns(flat)).pairs
    assert [(pair.mutual, pair.similar) for pair in pairs] == [(True, None)] * 3


def test_even_heads_have_no_ratio() -> None:
    even = np.broadcast_to((np.tri(T) / np.arange(1, T + 1)[:, None]).astype(np.float32), (W, 2, T, T))
    found = match_heads(patterns(even), patterns(even))
    assert [pair.ratio for pair in found.pairs] == [None, None]
    assert found.others is None


def test_patterns_of_a_model_are_read_as_they_were_written(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ModelConfig(n_layer=2, n_embd=12, n_head_list=(3, 1), vocab_size=50, block_size=16)
    idx = torch.randint(50, (W, T))
    blocks = attention_blocks(GPT(config).eval(), idx, queries=5, norms=True)
    made = HeadPatterns.of(blocks, heads=config.heads, windows=W, tokens=T)
    made.save(tmp_path / "below" / "one.npz")
    found = HeadPatterns.load(tmp_path / "below" / "one.npz")
    assert found is not None
    assert (found.heads, found.tokens) == ((3, 1), T)
    assert np.array_equal(found.levels, made.levels)
    assert {name: column.tolist() for name, column in found.values.items()} == {
        name: column.tolist() for name, column in made.values.items()
    }
    assert set(found.values) == set(MEASURED)


def test_values_are_means_over_windows() -> None:
    attention = random_attention(2, seed=3)
    found = patterns(attention).values
    windows = [head_statistics(one) for one in attention]
    for name in ("entropy_relative", "sink", "previous", "mean_distance"):
        wanted = [np.mean([getattr(window[head], name) for window in windows]) for head in (0, 1)]
        np.testing.assert_allclose(found[name], wanted, rtol=1e-6)


@pytest.mark.parametrize("content", [None, b"", b"PK\3\4 no archive"], ids=["missing", "empty", "damaged"])
def test_a_file_without_patterns_is_none(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "one.npz"
    if content is not None:
        path.write_bytes(content)
    assert HeadPatterns.load(path) is None
