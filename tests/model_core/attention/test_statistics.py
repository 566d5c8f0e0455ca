"""Each statistic responds to the pattern that it is named after, and equals its formula written as loops."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from model_core.attention.head_metrics import FORMULAS, HISTORY_METRICS, METRICS
from model_core.attention.record import quantize
from model_core.attention.statistics import (
    HeadAccumulator,
    HeadStatistics,
    even_statistics,
    head_statistics,
    layer_statistics,
    range_statistics,
    share_before,
    statistics_record,
    upgrade_record,
)

T = 16


def one_hot(keys):
    weights = np.zeros((T, T))
    weights[np.arange(T), keys] = 1.0
    return weights


def even(tokens):
    return np.tril(np.ones((tokens, tokens))) / np.arange(1, tokens + 1)[:, None]


def random_attention(heads, tokens, seed=0, power=8):
    weights = np.tril(np.random.default_rng(seed).random((heads, tokens, tokens))) ** power
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def measure(attention):
    return head_statistics(attention[None])[0]


DIAGONAL = one_hot(np.arange(T))
PREVIOUS = one_hot(np.maximum(np.arange(T) - 1, 0))
FIRST_KEY = one_hot(np.zeros(T, dtype=int))
THIRD_KEY = one_hot(np.minimum(np.arange(T), 3))
EVEN = even(T)


def by_loops(p, norms, outputs, *, start=0):
    """The formulas of one head, (T, T), as they are written in the table."""
    tokens, queries = len(p), range(max(1, start), len(p))

    def mean(values):
        values = list(values)
        return sum(values) / len(values)

    def entropy(i):
        return -sum(p[i, j] * math.log2(p[i, j]) for j in range(i + 1) if p[i, j] > 0)

    def far(i):
        return sum(p[i, j] * (i - j) for j in range(i + 1))

    def column(j):
        return mean(p[i, j] for i in queries if i > j)

    keys = [j for j in range(tokens) if j < (tokens + start) / 2]
    late = [i for i in queries if i >= tokens // 2]
    spread = {i: 2 ** entropy(i) / (i + 1) for i in late}
    return {
        "entropy": mean(map(entropy, queries)),
        "entropy_relative": mean(entropy(i) / math.log2(i + 1) for i in queries),
        "sparsity": mean(mean(p[i, j] < 0.1 / (i + 1) for j in range(i + 1)) for i in queries),
        "mean_distance": mean(map(far, queries)),
        "diagonal": mean(p[i, i] for i in queries),
        "previous": mean(p[i, i - 1] for i in queries),
        "vertical": max(map(column, keys)),
        "vertical_key": max(keys, key=column),
        "horizontal": max(spread.values()),
        "horizontal_query": max(spread, key=spread.__getitem__),
        "local": mean(sum(p[i, i - 3 : i + 1]) for i in queries if i > 3),
        "long_range": mean(sum(p[i, j] for j in range(i + 1) if j < i / 2) for i in queries),
        "distance_variance": mean(
            sum(p[i, j] * (i - j) ** 2 for j in range(i + 1)) - far(i) ** 2 for i in queries
        ),
        "sink": mean(p[i, 0] for i in queries),
        "sink_norm": mean(p[i, 0] * norms[0] / sum(p[i, : i + 1] * norms[: i + 1]) for i in queries),
        "output_norm": mean(outputs[i] for i in queries),
    }  # fmt: skip


@pytest.mark.parametrize(("tokens", "blocks"), [(70, (70,)), (70, (32, 32, 6)), (61, (1, 7, 53)), (8, (8,))])
@pytest.mark.parametrize("power", [1, 40])
def test_statistics_in_blocks_are_the_formulas_written_as_loops(tokens, blocks, power):
    attention = random_attention(3, tokens, power=power)
    norms, outputs = np.random.default_rng(1).random((2, 3, tokens))
    heads, first = HeadAccumulator(tokens, 3), 0
    for rows in blocks:
        part = slice(first, first + rows)
        heads.add(
            first, attention[:, part, : part.stop], value_norms=norms[:, : part.stop], output_norms=outputs[:, part]
        )
        first += rows
    for measured, exact, norm, output in zip(heads.finish(), attention.astype(np.float64), norms, outputs, strict=True):
        assert asdict(measured) == pytest.approx(by_loops(exact, norm, output), rel=2e-5, abs=2e-6)


def test_a_part_of_a_text_counts_its_own_queries_with_all_their_keys():
    attention = random_attention(2, 60, power=3)
    norms = np.random.default_rng(1).random((2, 60))
    found = range_statistics(quantize(attention), 20, 60, value_norms=norms)
    for measured, exact, norm in zip(found, attention.astype(np.float64), norms, strict=True):
        expected, stored = by_loops(exact, norm, np.zeros(60), start=20), asdict(measured)
        assert (stored.pop("output_norm"), expected.pop("output_norm")) == (None, 0.0)
        assert stored == pytest.approx(expected, rel=1e-3, abs=0.002)
    shares = share_before(quantize(attention), 20, 60)
    assert shares == pytest.approx(attention[:, 20:60, :20].sum(-1).mean(-1).tolist(), abs=0.002)


def test_a_prefix_measured_from_levels_is_that_of_the_exact_attention():
    attention = random_attention(4, 96, power=6)
    exact = head_statistics(attention[:, :40, :40])
    for stored, measured in zip(range_statistics(quantize(attention), 0, 40), exact, strict=True):
        assert stored.entropy == pytest.approx(measured.entropy, abs=0.001)
        assert stored.mean_distance == pytest.approx(measured.mean_distance, abs=0.014)
        assert stored.sink == pytest.approx(measured.sink, abs=0.002)


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("tokens", [2, 6, 33])
def test_the_values_of_even_attention_have_a_closed_form(tokens, start):
    heads = HeadAccumulator(tokens, 1, start=min(start, tokens - 1))
    heads.add(0, even(tokens)[None])
    measured = asdict(heads.finish()[0])
    expected = even_statistics(tokens, start=min(start, tokens - 1))
    assert expected.keys() == FORMULAS.keys() == measured.keys()
    assert {name for name, value in expected.items() if value is None} <= {
        "vertical_key", "horizontal_query", "sink_norm", "output_norm", "local",
    }  # fmt: skip
    known = {name: value for name, value in expected.items() if value is not None}
    assert {name: measured[name] for name in known} == pytest.approx(known, rel=1e-5, abs=1e-6)


def test_the_variance_of_a_sharp_head_is_exact_at_any_distance():
    tokens = 1500
    attention = np.zeros((1, tokens, tokens), np.float32)
    attention[0, np.arange(tokens), 0] = 1
    assert head_statistics(attention)[0].distance_variance == 0
    assert head_statistics(attention)[0].mean_distance == np.arange(1, tokens).mean()


def test_a_token_that_looks_at_itself_is_a_diagonal():
    measured = measure(DIAGONAL)
    assert (measured.diagonal, measured.previous, measured.vertical) == (1.0, 0.0, 0.0)
    assert (measured.entropy, measured.mean_distance, measured.local) == (0.0, 0.0, 1.0)


def test_a_token_that_looks_back_one_is_local_and_no_vertical_line():
    measured = measure(PREVIOUS)
    assert (measured.previous, measured.mean_distance, measured.local) == (1.0, 1.0, 1.0)
    assert measured.vertical == 1 / (T // 2)  # one of the queries that come after a key


def test_many_tokens_that_look_at_one_key_are_a_vertical_line():
    measured = measure(THIRD_KEY)
    assert (measured.vertical, measured.vertical_key) == (1.0, 3)


def test_a_head_that_looks_at_the_first_key_is_long_range_and_a_sink():
    measured = measure(FIRST_KEY)
    assert (measured.long_range, measured.sink, measured.local) == (1.0, 1.0, 0.0)
    assert measured.mean_distance == np.arange(1, T).mean()


def test_a_sink_whose_value_is_small_carries_nothing():
    norms = np.ones((1, T))
    norms[0, 0] = 1e-6
    attention = (FIRST_KEY + EVEN)[None] / 2
    measured = head_statistics(attention, value_norms=norms)[0]
    assert measured.sink > 0.5
    assert measured.sink_norm < 1e-5
    assert head_statistics(attention, value_norms=np.ones((1, T)))[0].sink_norm == pytest.approx(measured.sink)
    assert head_statistics(attention, value_norms=np.zeros((1, T)))[0].sink_norm == 0.0


def test_one_token_that_looks_at_everything_is_a_horizontal_band():
    weights = DIAGONAL.copy()
    weights[11, :12] = 1 / 12
    measured = measure(weights)
    assert measured.horizontal == pytest.approx(1.0)
    assert measured.horizontal_query == 11
    assert measure(DIAGONAL).horizontal == pytest.approx(1 / (T // 2 + 1))


def test_sparsity_is_the_share_of_visible_keys_that_are_ignored():
    seen = np.arange(2, T + 1)
    assert measure(EVEN).sparsity == 0.0
    assert measure(DIAGONAL).sparsity == pytest.approx(((seen - 1) / seen).mean())


def test_a_single_token_has_nothing_to_measure():
    heads = head_statistics(np.ones((2, 1, 1)))
    assert heads == [HeadStatistics(*[None] * len(FORMULAS))] * 2
    record = statistics_record([layer_statistics(0, heads)], 1)
    assert record["layers"][0]["mean"]["entropy"] is None
    assert record["reasons"] == dict.fromkeys(FORMULAS, "too_few_tokens")


def test_a_short_text_leaves_out_only_what_it_cannot_show():
    heads = head_statistics(even(3)[None], value_norms=np.ones((1, 3)))
    assert heads[0].local is None
    assert heads[0].entropy_relative == pytest.approx(1.0)
    reasons = statistics_record([layer_statistics(0, heads)], 3)["reasons"]
    assert reasons == {"local": "too_few_tokens", "output_norm": "norms_unknown"}


def test_a_record_has_every_head_with_formulas_and_even_values():
    layers = [np.stack([DIAGONAL, PREVIOUS, EVEN]), FIRST_KEY[None]]
    rows = [layer_statistics(layer, head_statistics(attention)) for layer, attention in enumerate(layers)]
    record = json.loads(json.dumps(statistics_record(rows, T), allow_nan=False))
    assert (record["schema_version"], record["tokens"]) == (2, T)
    assert [len(layer["heads"]) for layer in record["layers"]] == [3, 1]
    assert record["layers"][0]["heads"][1]["previous"] == 1.0
    assert record["layers"][0]["mean"]["mean_distance"] < record["layers"][1]["mean"]["mean_distance"]
    assert record["formulas"].keys() == record["layers"][0]["heads"][0].keys() - {"head"} == FORMULAS.keys()
    assert record["even"].keys() == FORMULAS.keys()
    assert upgrade_record(record, T) is record


def test_a_record_of_the_first_version_answers_null_with_a_reason():
    new = {"distance_variance", "sink", "sink_norm", "output_norm"}
    row = layer_statistics(0, head_statistics(DIAGONAL[None]))
    older = {
        "schema_version": 1,
        "formulas": {name: formula for name, formula in FORMULAS.items() if name not in new},
        "layers": [
            {
                "layer": 0,
                "mean": {name: value for name, value in row["mean"].items() if name not in new},
                "heads": [{name: value for name, value in row["heads"][0].items() if name not in new}],
            }
        ],
    }
    record = upgrade_record(older, T)
    assert record["reasons"] == dict.fromkeys(new, "older_record")
    head = record["layers"][0]["heads"][0]
    assert {name for name, value in head.items() if value is None} == new
    assert head["diagonal"] == record["layers"][0]["mean"]["diagonal"] == 1.0
    assert record["even"] == even_statistics(T)


def test_the_table_of_metrics_says_what_each_number_can_be():
    assert set(HISTORY_METRICS) == {
        "entropy_relative", "mean_distance", "distance_variance", "diagonal", "previous", "sink", "sink_norm",
        "output_norm", "induction", "duplicate",
    }  # fmt: skip
    assert METRICS.keys() - FORMULAS.keys() == {"induction", "duplicate"}
    attention = np.concatenate([random_attention(3, T), DIAGONAL[None], FIRST_KEY[None]])
    for head in head_statistics(attention, value_norms=np.ones((5, T)), output_norms=np.ones((5, T))):
        for name, value in asdict(head).items():
            low, high = METRICS[name].bounds
            assert low <= value <= (math.inf if high is None else high)
