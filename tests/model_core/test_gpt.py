"""The model: sizes, initialization, and heads that differ by layer."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model_core.config import ModelConfig
from model_core.gpt import GPT

TINY = ModelConfig(n_layer=3, n_embd=24, n_head_list=(6, 3, 1), vocab_size=40, block_size=16)
ROOT = Path(__file__).parents[2]
RESHAPES = re.compile(
    r"\.(view|transpose|permute|flatten|unbind)\(|F\.(scaled_dot|gelu)| @ |self\.(qkv|lm_head|c_\w+)\("
)


def build(config: ModelConfig, seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    return GPT(config).eval()


@pytest.mark.parametrize("heads", [None, (12, 12, 12, 12, 8, 8, 8, 8, 6, 6, 6, 6)], ids=["uniform", "variable"])
def test_gpt2_has_as_many_parameters_as_it_should(heads: tuple[int, ...] | None) -> None:
    with torch.device("meta"):
        model = GPT(ModelConfig(n_head_list=heads))
    assert sum(p.numel() for p in model.parameters()) == 124_475_904


def test_every_layer_has_its_own_heads() -> None:
    model = build(TINY.model_copy(update={"n_layer": 4, "n_head_list": (12, 8, 6, 4)}))
    x = torch.randn(2, 5, 24)  # (B, T, C)
    shapes = [[tuple(part.shape) for part in block.attn.qkv(x)] for block in model.blocks]
    assert shapes == [[(2, heads, 5, 24 // heads)] * 3 for heads in (12, 8, 6, 4)]
    assert [tuple(block.attn(x).shape) for block in model.blocks] == [(2, 5, 24)] * 4


@pytest.mark.parametrize(
    "file",
    [
        "gpt.py",
        "cross_entropy.py",
        "attention/capture.py",
        "generation/forward/model_runner.py",
        "generation/forward/kv_cache.py",
    ],
)
def test_every_line_that_changes_a_shape_ends_with_the_new_one(file: str) -> None:
    code = (ROOT / "model_core" / file).read_text().splitlines()
    silent = [line for line in code if RESHAPES.search(line) and not re.search(r"# (\d x )?\(.*\)$", line)]
    assert silent == []


def test_a_list_of_equal_heads_is_the_uniform_model_whatever_n_head_says() -> None:
    uniform = ModelConfig(n_layer=2, n_head=4, n_embd=16, vocab_size=40, block_size=8)
    listed = uniform.model_copy(update={"n_head_list": (4, 4), "n_head": 1})
    first, second = build(uniform), build(listed)
    tensors, others = first.state_dict(), second.state_dict()
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)
    idx = torch.arange(8)[None]  # (B, T)
    assert torch.equal(first(idx)[0], second(idx)[0])


def test_a_head_size_of_its_own_changes_the_projections() -> None:
    model = build(TINY.model_copy(update={"head_dim": 5}))
    assert [block.attn.c_attn.out_features for block in model.blocks] == [90, 45, 15]
    assert model(torch.zeros(1, 4, dtype=torch.long))[0].shape == (1, 4, 40)


def test_the_future_does_not_change_the_past() -> None:
    model, idx = build(TINY), torch.randint(0, 40, (1, 10))
    changed = idx.clone()
    changed[0, 7:] = (changed[0, 7:] + 1) % 40
    torch.testing.assert_close(model(idx)[0][:, :7], model(changed)[0][:, :7])


def test_initial_weights_follow_gpt2() -> None:
    model = build(ModelConfig(n_layer=4, n_head=4, n_embd=256, vocab_size=1000, block_size=64))
    block = model.blocks[0]
    assert block.attn.c_attn.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.mlp.c_proj.weight.std().item() == pytest.approx(0.02 / 8**0.5, rel=0.05)
    assert block.attn.c_proj.weight.std().item() == pytest.approx(0.02 / 8**0.5, rel=0.05)
    assert not block.mlp.c_fc.bias.any()
    assert model.lm_head.weight is model.transformer["wte"].weight


def test_the_loss_is_the_mean_over_counted_targets() -> None:
    model, idx = build(TINY), torch.randint(0, 40, (2, 6))
    targets = torch.randint(0, 40, (2, 6))
    targets[0, :3] = -1
    (logits, _), (_, loss) = model(idx), model(idx, targets)
    log_probs = logits.log_softmax(-1)
    counted = [log_probs[b, t, targets[b, t]] for b in range(2) for t in range(6) if targets[b, t] >= 0]
    torch.testing.assert_close(loss, -torch.stack(counted).mean())


def learnt(*, recompute: bool) -> tuple[float, list[Tensor], int]:
    """Loss and gradients of one batch, and the bytes that the forward pass keeps for the backward pass."""
    model = build(TINY.model_copy(update={"dropout": 0.2})).train()
    model.gradient_checkpointing = recompute
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    idx = torch.arange(32).view(4, 8) % 40  # (B, T)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _, loss = model(idx, idx)
    loss.backward()
    return loss.item(), [p.grad for p in model.parameters()], sum(kept.values())


def test_recomputing_activations_gives_the_same_bits_and_keeps_less() -> None:
    loss, gradients, kept = learnt(recompute=False)
    same_loss, same_gradients, less = learnt(recompute=True)
    assert same_loss == loss
    assert all(torch.equal(a, b) for a, b in zip(gradients, same_gradients, strict=True))
    assert less < kept / 4


def test_dropout_works_in_training_alone_and_wherever_gpt2_has_it() -> None:
    model = build(TINY.model_copy(update={"dropout": 0.5}))
    idx = torch.arange(8)[None]  # (B, T)
    assert torch.equal(model(idx)[0], model(idx)[0])
    zeros = []
    for module in (model.transformer["drop"], *(m for b in model.blocks for m in (b.attn, b.mlp))):
        module.register_forward_hook(lambda _, __, out: zeros.append((out == 0).float().mean().item()))
    model.train()(idx)
    assert zeros == pytest.approx([0.5] * 7, abs=0.15)


def test_attention_dropout_applies_in_training() -> None:
    attention = build(TINY.model_copy(update={"dropout": 0.5})).blocks[0].attn
    attention.resid_dropout.p = 0.0
    x = torch.randn(1, 6, 24)  # (B, T, C)
    assert torch.equal(attention(x), attention(x))
    assert not torch.equal(attention.train()(x), attention(x))


def test_more_tokens_than_positions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"17.* 16"):
        build(TINY)(torch.zeros(1, 17, dtype=torch.long))
