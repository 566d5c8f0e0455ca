"""The model compared with transformers' GPT-2 and with explicit attention."""

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from model_core.attention.capture import causal_attention
from model_core.config import ModelConfig, divisors
from model_core.gpt import GPT, CausalSelfAttention

TOLERANCE = {torch.float64: {"rtol": 1e-9, "atol": 1e-12}, torch.float32: {"rtol": 1e-4, "atol": 1e-5}}
SHAPE = ModelConfig(n_layer=3, n_head=4, n_embd=32, vocab_size=50, block_size=16)
CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # transformers keeps these as (in, out)

each_dtype = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float64", "float32"])


@pytest.fixture
def ours() -> GPT:
    """Its weights and biases are large enough that every term of the forward pass shows."""
    torch.manual_seed(0)
    model = GPT(SHAPE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


@pytest.fixture
def theirs(ours: GPT) -> GPT2LMHeadModel:
    """transformers' model, built from a configuration alone, with our weights."""
    shape = {"n_layer": SHAPE.n_layer, "n_head": SHAPE.n_head, "n_embd": SHAPE.n_embd}
    sizes = {"vocab_size": SHAPE.vocab_size, "n_positions": SHAPE.block_size, "bos_token_id": 0, "eos_token_id": 0}
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = GPT2LMHeadModel(GPT2Config(**shape, **sizes, **no_dropout, attn_implementation="eager"))
    model.load_state_dict({name: as_theirs(name, tensor) for name, tensor in ours.state_dict().items()})
    return model


def as_theirs(name: str, tensor: Tensor) -> Tensor:
    """A tensor of ours, or its gradient, as transformers lays it out."""
    return tensor.T if name.endswith(CONV1D) else tensor


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@each_dtype
def test_logits_loss_and_gradients_are_those_of_transformers(
    ours: GPT, theirs: GPT2LMHeadModel, dtype: torch.dtype
) -> None:
    ours.to(dtype), theirs.to(dtype)
    text = torch.randint(SHAPE.vocab_size, (3, 13), generator=torch.Generator().manual_seed(1))  # (B, T+1)
    (logits, _), (_, loss) = ours(text[:, :-1]), ours(text[:, :-1], text[:, 1:])
    expected = theirs(text[:, :-1]).logits
    expected_loss = torch.nn.functional.cross_entropy(expected.flatten(0, 1), text[:, 1:].flatten())
    loss.backward()
    expected_loss.backward()
    torch.testing.assert_close(logits, expected, **TOLERANCE[dtype])
    torch.testing.assert_close(loss, expected_loss, **TOLERANCE[dtype])
    mine = {name: as_theirs(name, gradient) for name, gradient in gradients(ours).items()}
    torch.testing.assert_close(mine, gradients(theirs), **TOLERANCE[dtype])


def test_the_loss_that_transformers_computes_is_ours(ours: GPT, theirs: GPT2LMHeadModel) -> None:
    text = torch.randint(SHAPE.vocab_size, (2, 9), generator=torch.Generator().manual_seed(2))  # (B, T+1)
    _, loss = ours(text[:, :-1], text[:, 1:])
    assert loss.item() == pytest.approx(theirs(text, labels=text).loss.item(), rel=1e-4)


def outcome(x: Tensor, y: Tensor, attention: CausalSelfAttention) -> list[Tensor]:
    """What attention gave, and the gradients of its input and its parameters."""
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)  # (B, T, C)
    return [y, *torch.autograd.grad((y * weight).sum(), [x, *attention.parameters()])]


@each_dtype
@pytest.mark.parametrize("heads", divisors(768))
def test_the_fused_kernel_is_attention_written_out_for_every_head_count(heads: int, dtype: torch.dtype) -> None:
    torch.manual_seed(heads)
    attention = CausalSelfAttention(24, heads, 768 // heads, dropout=0.0).to(dtype)
    x = torch.randn(2, 7, 24, dtype=dtype, requires_grad=True)  # (B, T, C)
    q, k, v = attention.qkv(x)  # 3 x (B, H, T, D)
    written_out = attention.merge(causal_attention(q, k) @ v)  # (B, T, C)
    torch.testing.assert_close(
        outcome(x, attention(x), attention), outcome(x, written_out, attention), **TOLERANCE[dtype]
    )


def test_there_are_eighteen_head_counts() -> None:
    assert len(divisors(768)) == 18
