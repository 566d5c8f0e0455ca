"""Captures the attention of every head, which fused kernels never return.

It runs the layers of training with attention written out: softmax(Q K^T / sqrt(D)) under the causal mask (Vaswani et
al., "Attention Is All You Need", 2017), in blocks of queries, so that memory does not grow with T^2. The language
model's logits are not computed.

Shapes: B batch, T tokens, C n_embd, H heads of this layer, D head_dim of this layer, R queries of a block, K keys that
they see.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model_core.attention.quota import check_size

if TYPE_CHECKING:
    from model_core.gpt import GPT, CausalSelfAttention

QUERIES = 128  # of a block: its weights stay in the cache of a core
MAX_BLOCK_ELEMENTS = 2**22  # of a block: 16 MiB each for logits, softmax and the copy on the CPU


@dataclass(frozen=True)
class AttentionBlock:
    """Attention of some queries of a layer.

    Attributes:
        layer: Index of the layer.
        first: Index of the first query; the last is `first` + R - 1.
        is_last: Whether the layer has no more queries.
        attention: Attention from R queries to the K = `first` + R keys up to the last of them, (B, H, R, K), float32 on
            the CPU. Each row sums to 1; what is after its query is 0.
        value_norms: Norm of what head and key contribute, |f(x_j)| with f(x_j) = v_j W_O, (B, H, K), float32 on the
            CPU (Kobayashi et al., "Attention is Not Only a Weight", 2020); None without `norms`.
        output_norms: Norm of what a head adds to a query, |sum_j p f(x_j)| / |x_i|, where x is the residual stream
            before the layer, (B, H, R), float32 on the CPU; None without `norms`.
    """

    layer: int
    first: int
    is_last: bool
    attention: Tensor
    value_norms: Tensor | None = None
    output_norms: Tensor | None = None


def causal_attention(q: Tensor, k: Tensor) -> Tensor:
    """Attend from the last tokens of a text to themselves and their past.

    Args:
        q: Queries of the last R tokens, (B, H, R, D); with R = K those of the whole text.
        k: Keys of the text, (B, H, K, D).

    Returns:
        Attention, (B, H, R, K). Each row sums to 1; everything after its query is 0.
    """
    R, K = q.size(-2), k.size(-2)  # noqa: N806 - the letters of the shape legend
    logits = (q @ k.transpose(-2, -1)).div_(math.sqrt(q.size(-1)))  # (B, H, R, K)
    future = torch.ones(R, R, dtype=torch.bool, device=q.device).triu(diagonal=1)  # (R, R)
    logits[..., K - R :].masked_fill_(future, float("-inf"))
    return logits.softmax(dim=-1)  # (B, H, R, K)


@torch.no_grad()
def attention_blocks(
    model: GPT, idx: Tensor, *, queries: int = QUERIES, norms: bool = False
) -> Iterator[AttentionBlock]:
    """Run a model and yield its attention in blocks of queries: layer by layer, from the first query to the last.

    At most MAX_BLOCK_ELEMENTS weights exist at a time, whatever T, unless a single query of all heads has more: that
    is never more than the layer's keys take.

    Args:
        model: The model, in eval mode.
        idx: Token ids, (B, T); T at most block_size.
        queries: Most queries of a block; fewer where B H T is large.
        norms: Also compute `value_norms` and `output_norms`.

    Yields:
        The blocks. What a layer adds to the stream is computed before the first block of the next one.
    """
    blocks = model.blocks
    x = model.embed(idx)  # (B, T, C)
    for layer, block in enumerate(blocks):
        is_output_used = layer + 1 < len(blocks)
        q, k, v = block.attn.qkv(block.ln_1(x))  # 3 x (B, H, T, D)
        measure = _HeadNorms(block.attn, x, v) if norms else None
        outputs = (
            torch.empty_like(v) if is_output_used else None
        )  # (B, H, T, D); pieces would tear the memory of blocks
        for first, stop in _query_ranges(q, queries):
            attention = causal_attention(q[:, :, first:stop], k[:, :, :stop])  # (B, H, R, K)
            output = attention @ v[:, :, :stop] if is_output_used or measure else None  # (B, H, R, D)
            if outputs is not None and output is not None:
                outputs[:, :, first:stop] = output
            yield AttentionBlock(
                layer, first, stop == q.size(2), attention.float().cpu(),
                None if measure is None else measure.values[:, :, :stop],
                None if measure is None or output is None else measure.outputs(output, first),
            )  # fmt: skip
            del attention, output  # the next block takes their memory
        if outputs is not None:
            x = x + block.attn.merge(outputs)  # (B, T, C)
            x = x + block.mlp(block.ln_2(x))  # (B, T, C)


def attention_layers(model: GPT, idx: Tensor) -> Iterator[Tensor]:
    """Run a model and yield each layer's attention before the next layer is computed.

    Args:
        model: The model, in eval mode.
        idx: Token ids of one text, (1, T).

    Yields:
        Attention of a layer, (H, T, T) with its own H, float32 on the CPU.
    """
    T = idx.size(1)  # noqa: N806 - the letters of the shape legend
    whole = torch.empty(0)
    for block in attention_blocks(model, idx):
        H, R, K = block.attention.shape[1:]  # noqa: N806 - the letters of the shape legend
        if block.first == 0:
            whole = torch.zeros(H, T, T)  # (H, T, T)
        whole[:, block.first : block.first + R, :K] = block.attention[0]
        if block.is_last:
            yield whole


def capture(model: GPT, idx: Tensor) -> list[Tensor]:
    """Capture the attention of all layers for one text.

    Args:
        model: The model, in eval mode.
        idx: Token ids of one text, (1, T); T at most block_size.

    Returns:
        Attention of each layer, (H, T, T) with its own H, float32 on the CPU.

    Raises:
        AttentionTooLarge: It would fill the memory or the disk; nothing was computed.
    """
    check_size(model.config.heads, idx.size(1))
    return list(attention_layers(model, idx))


extract_attention_patterns = capture  # the public name of model_core


class _HeadNorms:
    """Norms of what the heads of a layer write, without an (H, T, C) tensor: |v W_O|^2 = v (W_O W_O^T) v^T.

    Args:
        layer: The layer.
        x: Residual stream before the layer, (B, T, C).
        v: Values, (B, H, T, D).
    """

    def __init__(self, layer: CausalSelfAttention, x: Tensor, v: Tensor) -> None:
        w_o = layer.c_proj.weight.view(-1, layer.n_head, layer.head_dim)  # (C, H, D)
        self._gram = torch.einsum("chd,che->hde", w_o, w_o)  # (H, D, D)
        self._stream: Tensor = x.norm(dim=-1)[:, None]  # (B, 1, T)
        self.values = self._written(v).float().cpu()  # (B, H, T)

    def outputs(self, y: Tensor, first: int) -> Tensor:
        stream = self._stream[..., first : first + y.size(2)]  # (B, 1, R)
        return (self._written(y) / stream.clamp_min(torch.finfo(stream.dtype).tiny)).float().cpu()  # (B, H, R)

    def _written(self, y: Tensor) -> Tensor:
        squared: Tensor = ((y @ self._gram) * y).sum(dim=-1)  # (B, H, R)
        return squared.clamp_min_(0).sqrt_()


def _query_ranges(q: Tensor, queries: int) -> Iterator[tuple[int, int]]:
    B, H, T, _ = q.shape  # noqa: N806 - the letters of the shape legend
    rows = max(1, min(queries, MAX_BLOCK_ELEMENTS // (B * H * T)))
    return ((first, min(first + rows, T)) for first in range(0, T, rows))
