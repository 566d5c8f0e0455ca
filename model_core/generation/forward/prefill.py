"""Chunks of prompts on their way through a model, and attention over cached keys and values.

A pass over chunks can stop behind any layer and go on later, so that sequences that generate wait for some layers and
not for all. What it computes does not depend on where it stops.

Shapes: N tokens of all chunks, P with the rows that kernels need, T tokens of one chunk, L positions, C n_embd, H heads
and D head_dim of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from model_core.generation.forward.kv_cache import CHUNK, KVCache
from model_core.generation.forward.packed_model import PackedLayer, PackedModel

_MULTIPLE = 16  # of the length of attention


@dataclass(frozen=True)
class PromptChunk:
    """Consecutive tokens of a prompt.

    Attributes:
        row: Row of the sequence.
        start: Position of the first token, a multiple of `CHUNK`.
        tokens: Ids, 1 to `CHUNK` of them; fewer than `CHUNK` only at the prompt's end.
    """

    row: int
    start: int
    tokens: Sequence[int]

    def __post_init__(self) -> None:
        assert self.start % CHUNK == 0 < len(self.tokens) <= CHUNK, (self.start, len(self.tokens))

    @property
    def end(self) -> int:
        """Position behind the last token."""
        return self.start + len(self.tokens)


class Prefill:
    """One pass over chunks of prompts, each behind the earlier chunks of its prompt.

    Args:
        weights: The model.
        cache: Where keys and values are stored.
        chunks: Chunks of any rows; those of one row in order.

    Attributes:
        rows: Row of each chunk's sequence. Sequences may move to other rows between two layers; None is one that has
            ended, whose results mean nothing.
    """

    def __init__(self, weights: PackedModel, cache: KVCache, chunks: Sequence[PromptChunk]) -> None:
        for chunk in chunks:
            cache.write(chunk.row, chunk.start, len(chunk.tokens))
        self.rows: Sequence[int | None] = [chunk.row for chunk in chunks]
        self._weights, self._cache, self._chunks = weights, cache, chunks
        self._sizes = [len(chunk.tokens) for chunk in chunks]
        device, count = weights.device, sum(self._sizes)
        tokens = [token for chunk in chunks for token in chunk.tokens]
        spans = [torch.arange(chunk.start, chunk.end, device=device) for chunk in chunks]  # (T,) each
        lengths = [rounded(chunk.end) for chunk in chunks]
        self._masks = [additive_mask(*it, cache.dtype) for it in zip(spans, lengths, strict=True)]  # (T, L) each
        x = weights.embed(torch.tensor(tokens, device=device), torch.cat(spans))  # (N, C)
        self._count, self._x = count, pad_rows(x, weights.kernel_rows(count))  # (P, C)
        self._layer = 0

    @property
    def is_done(self) -> bool:
        """Whether it has passed all layers."""
        return self._layer == len(self._weights.layers)

    @property
    def hidden(self) -> Tensor:
        """Input of the head for every token, chunk after chunk, (N, C), once it is done."""
        return self._weights.ln_f(self._x)[: self._count]  # (N, C)

    def advance(self) -> None:
        """Run the next layer."""
        layer, x, count = self._weights.layers[self._layer], self._x, self._count
        qkv = layer.c_attn(layer.ln_1(x)).view(-1, 3, layer.n_head, layer.head_dim)[:count]  # (N, 3, H, D)
        parts = torch.split(qkv, self._sizes)  # (T, 3, H, D) each
        y = [self._attend(layer, at, part) for at, part in enumerate(parts)]  # (T, H*D) each
        x += layer.attn_proj(pad_rows(torch.cat(y), len(x)))
        x += layer.mlp_proj(layer.c_fc(layer.ln_2(x)))
        self._layer += 1

    def _attend(self, layer: PackedLayer, at: int, qkv: Tensor) -> Tensor:
        """Store keys and values of a chunk, qkv (T, 3, H, D), and attend to its prompt so far; returns (T, H*D)."""
        row, chunk, mask = self.rows[at], self._chunks[at], self._masks[at]
        if row is None:
            return qkv.new_zeros(len(qkv), layer.n_head * layer.head_dim)  # (T, H*D)
        by_head = qkv.permute(1, 2, 0, 3)  # (3, H, T, D)
        self._cache.row(self._layer, row, chunk.start, chunk.end).copy_(by_head[1:])
        k, v = self._cache.row(self._layer, row, 0, mask.size(-1)).unbind(0)  # 2 x (H, L, D)
        y = attention(by_head[0], k, v, mask)  # (H, T, D)
        return y.transpose(0, 1).flatten(1)  # (T, H*D)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attend from each query to the positions that the mask leaves.

    A batch of one matrix takes another kernel than a larger one, with another order of its sums, so it is doubled.

    Args:
        q: Queries, (H, T, D).
        k: Keys, (H, L, D).
        v: Values, (H, L, D).
        mask: Added to the scaled products, (T, L) or (H, T, L).

    Returns:
        (H, T, D).
    """
    if len(q) == 1:
        twice = (x.expand(2, -1, -1) for x in (q, k, v, mask))  # (2, T, D), 2 x (2, L, D), (2, T, L)
        return attention(*twice)[:1]  # (1, T, D)
    logits = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=1 / math.sqrt(q.size(-1)))  # (H, T, L)
    return logits.softmax(-1) @ v  # (H, T, D)


def additive_mask(at: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """Build the mask that hides what is behind each position.

    Args:
        at: Positions of the queries, (T,).
        length: Positions of the keys, L.
        dtype: Number format.

    Returns:
        0 or minus infinity, (T, L).
    """
    unseen = torch.arange(length, device=at.device) > at[:, None]  # (T, L)
    return torch.zeros(unseen.shape, dtype=dtype, device=at.device).masked_fill_(unseen, float("-inf"))  # (T, L)


def pad_rows(x: Tensor, count: int) -> Tensor:
    """Append rows of zeros.

    Args:
        x: Rows, (M, C).
        count: Number of rows wanted, at least M.

    Returns:
        The same rows and zeros, (count, C).
    """
    return F.pad(x, (0, 0, 0, count - len(x))) if count > len(x) else x  # (count, C)


def rounded(length: int) -> int:
    """Round a length of attention up.

    Args:
        length: Positions.

    Returns:
        A multiple of 16: other lengths may take kernels that round differently.
    """
    return -(-length // _MULTIPLE) * _MULTIPLE
