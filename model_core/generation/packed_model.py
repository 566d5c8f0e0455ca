"""A model's parameters in the number format that generates fastest.

Shapes: M rows, C n_embd, V ids of the tokenizer, H heads and D head_dim of a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from model_core.config import ModelConfig
from model_core.gpt import GPT, Block

PackedLinear = Callable[[Tensor], Tensor]  # (M, inputs) -> (M, outputs), float32 on the CPU


@dataclass(frozen=True)
class PackedNorm:
    """A layer norm.

    Attributes:
        weight: Scale, (C,).
        bias: Shift, (C,).
        eps: Added to the variance.
    """

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """Normalize each row.

        Args:
            x: Rows, (M, C).

        Returns:
            Rows, (M, C).
        """
        return torch.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class PackedLayer:
    """One block of the model.

    Attributes:
        n_head: Heads, H.
        head_dim: Size of a head, D.
        ln_1: Norm before attention.
        c_attn: (M, C) -> (M, 3 * H * D).
        attn_proj: (M, H * D) -> (M, C).
        ln_2: Norm before the MLP.
        mlp: (M, C) -> (M, C).
    """

    n_head: int
    head_dim: int
    ln_1: PackedNorm
    c_attn: PackedLinear
    attn_proj: PackedLinear
    ln_2: PackedNorm
    mlp: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class PackedModel:
    """What `ModelRunner` runs.

    Attributes:
        config: Shape of the model.
        n_vocab: Ids of the tokenizer, V; the ids above only pad the vocabulary.
        weights: Name of the weight format.
        device: Device, as torch writes it.
        wte: Token embeddings, (V, C).
        wpe: Position embeddings, (block_size, C).
        layers: Blocks, in order.
        ln_f: Norm before the head.
        head: (M, C) -> (M, V), float32.
    """

    config: ModelConfig
    n_vocab: int
    weights: str
    device: str
    wte: Tensor
    wpe: Tensor
    layers: tuple[PackedLayer, ...]
    ln_f: PackedNorm
    head: PackedLinear


def pack_model(model: GPT, n_vocab: int, weights: str = "fp32", *, keep: bool = True) -> PackedModel:  # noqa: ARG001
    """Convert a model's parameters.

    Args:
        model: The model.
        n_vocab: Ids of its tokenizer.
        weights: Name of the weight format.
        keep: Whether the model stays usable; float32 parameters are then shared, not copied.

    Returns:
        The packed parameters.

    Raises:
        ValueError: The format is not known.
    """
    if weights != "fp32":
        raise ValueError(f"weights {weights!r} are not known; give fp32")
    parts, head = model.transformer, model.lm_head.weight.detach()[:n_vocab]  # (V, C)
    return PackedModel(
        config=model.config,
        n_vocab=n_vocab,
        weights="fp32",
        device=str(head.device),
        wte=head,
        wpe=parts["wpe"].get_parameter("weight").detach(),
        layers=tuple(_pack_layer(block) for block in model.blocks),
        ln_f=_pack_norm(parts["ln_f"]),
        head=_pack_linear(head, None),
    )


def _pack_layer(block: Block) -> PackedLayer:
    attn, c_fc, c_proj = block.attn, _pack_module(block.mlp.c_fc), _pack_module(block.mlp.c_proj)
    return PackedLayer(
        n_head=attn.n_head,
        head_dim=attn.head_dim,
        ln_1=_pack_norm(block.ln_1),
        c_attn=_pack_module(attn.c_attn),
        attn_proj=_pack_module(attn.c_proj),
        ln_2=_pack_norm(block.ln_2),
        mlp=lambda x: c_proj(F.gelu(c_fc(x), approximate="tanh")),
    )


def _pack_norm(norm: nn.Module) -> PackedNorm:
    assert isinstance(norm, nn.LayerNorm)
    return PackedNorm(norm.weight.detach(), norm.bias.detach(), norm.eps)


def _pack_module(linear: nn.Linear) -> PackedLinear:
    return _pack_linear(linear.weight.detach(), linear.bias.detach())


def _pack_linear(weight: Tensor, bias: Tensor | None) -> PackedLinear:
    least = 4 if weight.device.type == "cpu" else 1  # fewer rows take other kernels, with other roundings

    def apply(x: Tensor) -> Tensor:
        rows = x.size(0)
        if rows < least:
            x = F.pad(x, (0, 0, 0, least - rows))  # (least, inputs)
        return F.linear(x, weight, bias)[:rows]  # (M, outputs)

    return apply
