"""Captured attention equals what the fused kernel computes, in blocks and as a whole."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from model_core.attention.capture import (
    MAX_BLOCK_ELEMENTS,
    attention_blocks,
    attention_layers,
    capture,
    causal_attention,
    extract_attention_patterns,
)
from model_core.config import ExperimentConfig
from model_core.errors import AttentionTooLarge
from model_core.gpt import GPT

HEADS = (4, 1, 2)


def config(**model):
    shape = {"n_layer": 3, "n_embd": 16, "n_head_list": HEADS, "block_size": 64, **model}
    training = {"batch_size": 1, "sequence_length": 16, "total_batch_size": 16}
    return ExperimentConfig.model_validate({"experiment_name": "tiny", "model": shape, "training": training})


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPT(config(vocab_size=100).model).eval()


@pytest.fixture
def idx():
    return torch.randint(100, (1, 12), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("head_dim", [1, 4, 7])
def test_attention_times_values_is_what_the_fused_kernel_returns(head_dim):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 9, head_dim)  # three of (B, H, T, D)
    weights = causal_attention(q, k)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(weights @ v, expected, atol=1e-5, rtol=0)


def test_attention_never_looks_ahead_and_sums_to_one():
    q, k = torch.randn(2, 1, 3, 5, 4, generator=torch.Generator().manual_seed(0)) * 30  # two of (B, H, T, D)
    weights = causal_attention(q, k)
    assert not weights.triu(diagonal=1).any()
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(1, 3, 5))


def test_a_model_gives_one_matrix_a_head_with_each_layers_own_heads(model, idx):
    layers = capture(model, idx)
    assert [tuple(weights.shape) for weights in layers] == [(heads, 12, 12) for heads in HEADS]
    assert extract_attention_patterns is capture


def test_every_layer_sees_the_stream_that_the_model_itself_computes(model, idx):
    inputs = []
    for block in model.blocks:
        block.attn.register_forward_hook(lambda _, args, out: inputs.append((args[0], out)))
    model.hidden(idx)
    pairs = zip(model.blocks, capture(model, idx), inputs, strict=True)
    rebuilt = [block.attn.merge(weights[None] @ block.attn.qkv(x)[2]) for block, weights, (x, _) in pairs]
    torch.testing.assert_close(rebuilt, [out for _, out in inputs], atol=1e-5, rtol=0)


def test_layers_come_one_by_one_and_without_the_language_models_head(model, idx):
    ran = []
    model.lm_head.register_forward_hook(lambda *_: ran.append("head"))
    for number, block in enumerate(model.blocks):
        block.mlp.register_forward_hook(lambda *_, number=number: ran.append(number))
    layers = attention_layers(model, idx)
    next(layers)
    assert ran == []
    assert torch.is_grad_enabled()  # the caller's mode is its own between two layers
    assert len(list(layers)) == 2
    assert ran == [0, 1]


@pytest.mark.parametrize("queries", [1, 5, 11, 12, 128])
def test_blocks_of_queries_are_rows_of_the_whole_softmax(model, queries):
    idx = torch.randint(100, (2, 12), generator=torch.Generator().manual_seed(1))  # (B, T)
    seen = []
    x = model.embed(idx)
    for block in model.blocks:
        q, k, v = block.attn.qkv(block.ln_1(x))
        seen.append(
            (q @ k.mT / q.size(-1) ** 0.5).masked_fill(torch.ones(12, 12).triu(1).bool(), -torch.inf).softmax(-1)
        )
        x = x + block.attn.merge(seen[-1] @ v)
        x = x + block.mlp(block.ln_2(x))
    parts = [torch.zeros_like(layer) for layer in seen]
    for part in attention_blocks(model, idx, queries=queries):
        rows, keys = part.attention.shape[2:]
        assert (rows <= queries, keys) == (True, part.first + rows)
        assert part.is_last == (keys == 12)
        assert not parts[part.layer][:, :, part.first :].any()  # no query comes twice
        parts[part.layer][:, :, part.first : keys, :keys] = part.attention
    torch.testing.assert_close(parts, seen, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("rows", "queries"), [(1, 64), (64, 1)])
def test_a_block_has_a_bounded_number_of_weights_and_at_least_one_query(rows, queries):
    wide = GPT(config(vocab_size=2, block_size=4096, n_layer=1, n_head_list=(16,)).model).eval()
    block = next(attention_blocks(wide, torch.zeros(rows, 4096, dtype=torch.long)))
    assert block.attention.shape == (rows, 16, queries, queries)
    assert queries * rows * 16 * 4096 == MAX_BLOCK_ELEMENTS


def test_norms_are_those_of_what_each_head_writes(model, idx):
    streams = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, args: streams.append(args[0]))
    model.hidden(idx)
    checked = 0
    for part in attention_blocks(model, idx, queries=5, norms=True):
        attn = model.blocks[part.layer].attn
        stream, keys = streams[part.layer], part.attention.size(-1)
        v = attn.qkv(model.blocks[part.layer].ln_1(stream))[2]  # (1, H, T, D)
        written = [v[0, head] @ w.T for head, w in enumerate(attn.c_proj.weight.split(attn.head_dim, dim=1))]
        f = torch.stack(written)[:, :keys]  # (H, K, C)
        torch.testing.assert_close(part.value_norms[0], f.norm(dim=-1), atol=1e-7, rtol=1e-4)
        relative = (part.attention[0] @ f).norm(dim=-1) / stream[0, part.first : keys].norm(dim=-1)  # (H, R)
        torch.testing.assert_close(part.output_norms[0], relative, atol=1e-7, rtol=1e-4)
        checked += 1
    assert checked == 3 * len(HEADS)
    assert all(part.value_norms is part.output_norms is None for part in attention_blocks(model, idx))


def test_the_beginning_of_a_text_has_the_beginning_of_its_attention(model, idx):
    for whole, part in zip(capture(model, idx), capture(model, idx[:, :5]), strict=True):
        torch.testing.assert_close(whole[:, :5, :5], part)


def test_too_much_attention_is_refused_before_anything_is_computed():
    with torch.device("meta"):
        model = GPT(config(block_size=2**17, n_head_list=(16, 1, 2)).model)
    with pytest.raises(AttentionTooLarge) as refused:
        capture(model, torch.zeros(1, 2**17, dtype=torch.long))
    [problem] = refused.value.problems
    assert (problem.pointer, problem.value, problem.nearest) == ("/max_tokens", 2**17, (7517,))
    assert 19 * 7517**2 <= 2**30 < 19 * 7518**2


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/status tells the peak on Linux alone")
@pytest.mark.parametrize(("heads", "tokens"), [(1, 32_768), (64, 4096)])
def test_a_capture_of_four_gigabytes_of_weights_takes_less_than_200_mib(heads, tokens):
    program = Path(__file__).parents[3] / "bench" / "child" / "capture_memory.py"
    given = json.dumps({"heads": heads, "tokens": tokens})
    done = subprocess.run([sys.executable, program, given], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert measured["weights"] == 2**30
    assert 0 < measured["memory_mib"] <= 200
