"""Formats of attention on the wire, against the weights that they stand for."""

import json
import shutil
import subprocess

import numpy as np
import pytest

from model_core.attention.record import quantize
from model_core.attention.weights import (
    SPARSE_KEYS,
    SPARSE_LEAST,
    largest_weight,
    max_pool,
    norm_weighted,
    pack_triangles,
    sparse_rows,
    unpack_triangles,
)

NODE = shutil.which("node")


def attention(heads: int, tokens: int, sharpness: float = 2.0) -> np.ndarray:
    logits = np.random.default_rng(heads + tokens).standard_normal((heads, tokens, tokens)) * sharpness
    logits[:, np.triu(np.ones((tokens, tokens), bool), 1)] = -np.inf
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (exponentials / exponentials.sum(axis=-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(("heads", "tokens"), [(1, 1), (3, 2), (2, 17), (5, 40)])
def test_triangles_hold_every_weight_once(heads, tokens) -> None:
    exact = attention(heads, tokens)
    data = pack_triangles(quantize(exact))
    assert len(data) == heads * tokens * (tokens + 1) // 2
    restored = np.square(unpack_triangles(data, heads) / 255)
    assert np.abs(restored - exact).max() <= 0.004
    assert not restored[:, *np.triu_indices(tokens, 1)].any()


def test_pooled_blocks_have_their_largest_weight() -> None:
    levels = quantize(attention(2, 23))
    pooled = unpack_triangles(pack_triangles(levels, pool=6), 2)
    edges = [block * 23 // 6 for block in range(7)]
    for (head, row, column), value in np.ndenumerate(pooled):
        block = levels[head, edges[row] : edges[row + 1], edges[column] : edges[column + 1]]
        assert value == block.max()
    assert max_pool(levels, 23) is levels


@pytest.mark.parametrize(("tokens", "sharpness", "start"), [(1, 2.0, 0), (30, 4.0, 0), (30, 0.1, 0), (60, 2.0, 20)])
def test_sparse_rows_hold_the_strongest_keys_and_what_they_leave_out(tokens, sharpness, start) -> None:
    exact = attention(2, tokens, sharpness)
    for head, rows in enumerate(sparse_rows(quantize(exact), start)):
        assert len(rows.offsets) == tokens - start + 1
        for query in range(start, tokens):
            part = slice(rows.offsets[query - start], rows.offsets[query - start + 1])
            keys, weights = rows.keys[part], rows.weights[part] / 1e4
            assert len(keys) <= SPARSE_KEYS
            assert weights.sum() + rows.rest[query - start] / 1e4 == pytest.approx(1, abs=0.001)
            np.testing.assert_allclose(weights, exact[head, query, keys], atol=0.02)
            assert list(weights) == sorted(weights, reverse=True)
            others = np.setdiff1d(np.arange(start, query + 1), keys)
            if others.size and len(keys) < SPARSE_KEYS:
                assert exact[head, query, others].max() < SPARSE_LEAST + 0.001


def test_the_largest_weight_leaves_out_what_every_head_has() -> None:
    exact = np.zeros((1, 4, 4), np.float32)
    exact[0, 0, 0] = 1
    exact[0, 1:, 0] = 0.75
    exact[0, 1:, 1] = 0.25
    assert largest_weight(quantize(exact)) == pytest.approx(0.25, abs=0.004)
    assert largest_weight(quantize(exact)[:, 1:, 1:], first=1) == pytest.approx(0.25, abs=0.004)
    assert largest_weight(quantize(exact)[:, :1, :1]) == 0


def test_norms_weight_what_a_key_contributes() -> None:
    exact, norms = attention(2, 12), np.random.default_rng(0).random((2, 12)).astype(np.float32)
    expected = exact * norms[:, None]
    expected /= expected.sum(axis=-1, keepdims=True)
    weighted = norm_weighted(quantize(exact), norms)
    assert np.abs(np.square(weighted / 255) - expected).max() < 0.02
    assert norm_weighted(quantize(exact), np.zeros((2, 12), np.float32)).max() == 0


DECODE = """
const bytes = require('fs').readFileSync(0), [heads, size] = process.argv.slice(1).map(Number), rows = []
let at = 0
for (let h = 0; h < heads; h++) for (let i = 0; i < size; i++) {
  const row = []
  for (let j = 0; j <= i; j++) row.push((bytes[at++] / 255) ** 2)
  rows.push(row)
}
console.log(JSON.stringify(rows))
"""


@pytest.mark.skipif(NODE is None, reason="no node on PATH")
def test_a_browser_can_decode_triangles() -> None:
    exact = attention(2, 9)
    done = subprocess.run([NODE, "-e", DECODE, "2", "9"], input=pack_triangles(quantize(exact)), capture_output=True)
    rows = json.loads(done.stdout)
    expected = [row[: query + 1] for head in exact for query, row in enumerate(head)]
    assert [len(row) for row in rows] == [len(row) for row in expected]
    assert max(np.abs(np.subtract(row, one)).max() for row, one in zip(rows, expected, strict=True)) <= 0.004
