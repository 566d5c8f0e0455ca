"""Each statistic responds to the pattern that it is named after, and not to the others."""

import json

import numpy as np
import pytest

from model_core.attention.statistics import FORMULAS, head_statistics, layer_statistics, model_statistics

T = 16


def one_hot(keys):
    weights = np.zeros((T, T))
    weights[np.arange(T), keys] = 1.0
    return weights


DIAGONAL = one_hot(np.arange(T))
PREVIOUS = one_hot(np.maximum(np.arange(T) - 1, 0))
FIRST_KEY = one_hot(np.zeros(T, dtype=int))
THIRD_KEY = one_hot(np.minimum(np.arange(T), 3))
EVEN = np.tril(np.ones((T, T))) / np.arange(1, T + 1)[:, None]


def test_a_token_that_looks_at_itself_is_a_diagonal():
    measured = head_statistics(DIAGONAL)
    assert (measured.diagonal, measured.previous, measured.vertical) == (1.0, 0.0, 0.0)
    assert (measured.entropy, measured.mean_distance, measured.local) == (0.0, 0.0, 1.0)


def test_a_token_that_looks_back_one_is_local_and_no_vertical_line():
    measured = head_statistics(PREVIOUS)
    assert (measured.previous, measured.mean_distance, measured.local) == (1.0, 1.0, 1.0)
    assert measured.vertical == 1 / (T // 2)  # one of the queries that come after a key


def test_many_tokens_that_look_at_one_key_are_a_vertical_line():
    measured = head_statistics(THIRD_KEY)
    assert (measured.vertical, measured.vertical_key) == (1.0, 3)


def test_a_head_that_looks_far_back_is_long_range_and_not_local():
    measured = head_statistics(FIRST_KEY)
    assert measured.long_range == 1.0
    assert measured.local == 0.0
    assert measured.mean_distance == np.arange(1, T).mean()


def test_one_token_that_looks_at_everything_is_a_horizontal_band():
    weights = DIAGONAL.copy()
    weights[11, :12] = 1 / 12
    measured = head_statistics(weights)
    assert measured.horizontal == pytest.approx(1.0)
    assert measured.horizontal_query == 11
    assert head_statistics(DIAGONAL).horizontal == pytest.approx(1 / (T // 2 + 1))


def test_even_attention_has_all_the_entropy_and_no_sparsity():
    measured = head_statistics(EVEN)
    assert measured.entropy_relative == pytest.approx(1.0)
    assert measured.entropy == pytest.approx(np.log2(np.arange(2, T + 1)).mean())
    assert measured.sparsity == 0.0


def test_sparsity_is_the_share_of_visible_keys_that_are_ignored():
    seen = np.arange(2, T + 1)
    assert head_statistics(DIAGONAL).sparsity == pytest.approx(((seen - 1) / seen).mean())


def test_a_single_token_has_nothing_to_measure():
    assert head_statistics(np.ones((1, 1))).entropy is None
    assert layer_statistics(0, np.ones((2, 1, 1)))["mean"]["entropy"] is None


def test_a_short_text_leaves_out_only_what_it_cannot_show():
    measured = head_statistics(EVEN[:3, :3] / EVEN[:3, :3].sum(axis=1, keepdims=True))
    assert measured.local is None
    assert measured.entropy_relative == pytest.approx(1.0)


def test_a_model_is_measured_by_layer_and_head_with_the_formulas():
    layers = [np.stack([DIAGONAL, PREVIOUS, EVEN]), FIRST_KEY[None]]
    record = json.loads(json.dumps(model_statistics(layers), allow_nan=False))
    assert [len(layer["heads"]) for layer in record["layers"]] == [3, 1]
    assert record["layers"][0]["heads"][1]["previous"] == 1.0
    assert record["layers"][0]["mean"]["mean_distance"] < record["layers"][1]["mean"]["mean_distance"]
    assert record["formulas"].keys() == record["layers"][0]["heads"][0].keys() - {"head"} == FORMULAS.keys()
