"""The model: sizes, initialisation, and that heads may differ by layer."""

import pytest
import torch

from model_core.config import ModelConfig
from model_core.gpt import GPT

TINY = ModelConfig(n_layer=3, n_embd=24, n_head_list=(6, 3, 1), vocab_size=40, block_size=16)


def build(config: ModelConfig, seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    return GPT(config).eval()


@pytest.mark.parametrize("heads", [None, (12, 12, 12, 12, 8, 8, 8, 8, 6, 6, 6, 6)], ids=["uniform", "variable"])
def test_gpt2_has_as_many_parameters_as_it_should(heads: tuple[int, ...] | None) -> None:
    with torch.device("meta"):
        model = GPT(ModelConfig(n_head_list=heads))
    assert sum(p.numel() for p in model.parameters()) == 124_475_904


def test_every_layer_has_its_own_heads() -> None:
    model = build(TINY)
    x = torch.randn(2, 5, 24)  # (B, T, C)
    shapes = [tuple(block.attn.qkv(x)[0].shape) for block in model.blocks]
    assert shapes == [(2, 6, 5, 4), (2, 3, 5, 8), (2, 1, 5, 24)]


def test_a_list_of_equal_heads_is_the_uniform_model() -> None:
    uniform = ModelConfig(n_layer=2, n_head=4, n_embd=16, vocab_size=40, block_size=8)
    listed = uniform.model_copy(update={"n_head_list": (4, 4), "n_head": 1})
    first, second = build(uniform).state_dict(), build(listed).state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


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
    logits, loss = model(idx, targets)
    log_probs = logits.log_softmax(-1)
    counted = [log_probs[b, t, targets[b, t]] for b in range(2) for t in range(6) if targets[b, t] >= 0]
    torch.testing.assert_close(loss, -torch.stack(counted).mean())


def test_recomputing_activations_changes_no_gradient() -> None:
    gradients = []
    for recompute in (False, True):
        model = build(TINY).train()
        model.gradient_checkpointing = recompute
        idx = torch.arange(16).view(2, 8)
        model(idx, idx)[1].backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_more_tokens_than_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="17 tokens, but block_size is 16"):
        build(TINY)(torch.zeros(1, 17, dtype=torch.long))
