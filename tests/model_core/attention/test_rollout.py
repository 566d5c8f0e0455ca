"""Rollout is the product of the layers, read beside that of even heads."""

import numpy as np
import pytest
import torch

from model_core.attention.record import quantize
from model_core.attention.rollout import even_rollout, ratio_to_even, rollout


def attention(heads, tokens, seed=0):
    weights = np.tril(np.random.default_rng(seed).random((heads, tokens, tokens), dtype=np.float32)) ** 6
    return weights / weights.sum(-1, keepdims=True)


LAYERS = [attention(heads, 40, seed) for seed, heads in enumerate((4, 1, 2))]


def test_rollout_is_the_product_of_the_mean_heads_and_the_stream():
    steps = [(torch.from_numpy(layer).double().mean(0) + torch.eye(40)) / 2 for layer in LAYERS]
    expected = torch.linalg.multi_dot(steps[::-1])
    torch.testing.assert_close(torch.from_numpy(rollout(LAYERS)).double(), expected, atol=1e-6, rtol=0)
    np.testing.assert_allclose(rollout(LAYERS).sum(axis=1), 1, atol=1e-6)


def test_rollout_of_stored_levels_is_close_to_the_exact_one():
    np.testing.assert_allclose(rollout(map(quantize, LAYERS)), rollout(LAYERS), atol=0.0014)


def test_heads_that_look_at_themselves_move_nothing():
    identity = np.broadcast_to(np.eye(9, dtype=np.float32), (3, 9, 9))
    np.testing.assert_array_equal(rollout([identity] * 5), np.eye(9))


@pytest.mark.parametrize("n_layer", [1, 4])
def test_the_baseline_is_the_rollout_of_even_heads(n_layer):
    even = np.tril(np.ones((1, 30, 30), np.float32)) / np.arange(1, 31, dtype=np.float32)[:, None]
    np.testing.assert_allclose(even_rollout(n_layer, 30), rollout([even] * n_layer), atol=1e-6)
    ratio = ratio_to_even(rollout([even] * n_layer), even_rollout(n_layer, 30))
    np.testing.assert_allclose(ratio, np.tril(np.ones((30, 30))), atol=1e-4)


def test_even_heads_alone_favour_the_first_token():
    assert even_rollout(4, 128)[-1, 0] == pytest.approx(0.064, abs=0.0005)  # 8 times an even share


def test_no_layer_has_no_rollout():
    with pytest.raises(ValueError, match="layer"):
        rollout([])
