"""A model's forward pass over a KV cache: chunks of prompts, then one token of every sequence per step.

It runs the blocks itself, without dropout, so the model's mode does not matter and no global generator is used. The
logits of a row have the same bits whatever runs beside it: no operation mixes rows, a chunk's attention depends on the
chunk alone, and attention of one query is two matmuls over a length that is a multiple of 16. Rows in use are always
the first ones, so a step takes a view and never gathers.

Shapes: A rows in use, N tokens of all chunks, T tokens of one, L positions, C n_embd, V ids of the tokenizer, H heads
and D head_dim of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from model_core.generation.kv_cache import CHUNK, Block, KVCache
from model_core.generation.packed_model import PackedModel

__all__ = ["CHUNK", "Block", "ModelRunner", "PromptChunk"]

_MULTIPLE = 16  # of the length of attention
_SMALL_MATMUL = 400  # products of a matmul below which torch takes another kernel, with another order of its sums


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


class ModelRunner:
    """One model and the KV cache of the sequences that it generates.

    Args:
        weights: The model.
        rows: Most sequences at once.
        length: Most tokens of a sequence, prompt included; at most the model's block_size.
    """

    def __init__(self, weights: PackedModel, *, rows: int, length: int) -> None:
        self.weights, self.rows, self.length, self.device = weights, rows, length, weights.device
        self._shortest = _rounded(-(-_SMALL_MATMUL // min(weights.config.head_dims)))
        self._cache = KVCache(
            weights.config, rows=rows, shortest=self._shortest, dtype=weights.dtype, device=self.device
        )

    @torch.inference_mode()
    def prefill(self, chunks: Sequence[PromptChunk]) -> Tensor:
        """Run chunks of prompts, each behind the earlier chunks of its prompt, and store their keys and values.

        Args:
            chunks: Chunks of any rows; those of one row in order.

        Returns:
            Input of the head for every token, chunk after chunk, (N, C).
        """
        for chunk in chunks:
            self._cache.write(chunk.row, chunk.start, len(chunk.tokens))
        tokens = [token for chunk in chunks for token in chunk.tokens]
        at = torch.cat([torch.arange(chunk.start, chunk.end, device=self.device) for chunk in chunks])  # (N,)
        x = self._embed(torch.tensor(tokens, device=self.device), at)  # (N, C)
        sizes = [len(chunk.tokens) for chunk in chunks]
        masks = [self._causal_mask(chunk) for chunk in chunks]  # (T, L) each
        for index, layer in enumerate(self.weights.layers):
            qkv = layer.c_attn(layer.ln_1(x)).view(-1, 3, layer.n_head, layer.head_dim)  # (N, 3, H, D)
            parts = torch.split(qkv, sizes)  # (T, 3, H, D) each
            y = [self._attend(index, *each) for each in zip(chunks, parts, masks, strict=True)]
            x = x + layer.attn_proj(torch.cat(y))  # (N, C)
            x = x + layer.mlp_proj(layer.c_fc(layer.ln_2(x)))  # (N, C)
        return self.weights.ln_f(x)  # (N, C)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Compute the logits of the next tokens.

        Args:
            hidden: Rows of what `prefill` returned, (M, C).

        Returns:
            Logits, (M, V), float32.
        """
        return self.weights.head(hidden)  # (M, V)

    @torch.inference_mode()
    def step(self, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Run one token of every row in use.

        Args:
            tokens: Newest token of each row, A ids.
            positions: Index of that token in its sequence, A of them.

        Returns:
            Logits of the next tokens, (A, V), float32.
        """
        self._cache.write_next(positions)
        at = torch.tensor(positions, device=self.device)  # (A,)
        x = self._embed(torch.tensor(tokens, device=self.device), at)  # (A, C)
        length = max(_rounded(max(positions) + 1), self._shortest)
        indices, masks = self._cache.indices(at), self._masks(at, length)
        for index, layer in enumerate(self.weights.layers):
            qkv = layer.c_attn(layer.ln_1(x)).view(-1, 3, layer.n_head, layer.head_dim)  # (A, 3, H, D)
            self._cache.append(index, indices[layer.n_head], qkv[:, 1:])
            k, v = self._cache.rows(index, len(tokens), length)  # 2 x (A*H, L, D)
            q = qkv[:, 0].reshape(-1, 1, layer.head_dim)  # (A*H, 1, D)
            y = _attention(q, k, v, masks[layer.n_head])  # (A*H, 1, D)
            x = x + layer.attn_proj(y.view(len(tokens), -1))  # (A, C)
            x = x + layer.mlp_proj(layer.c_fc(layer.ln_2(x)))  # (A, C)
        return self.weights.head(self.weights.ln_f(x))  # (A, V)

    @torch.inference_mode()
    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy the cached beginning of a sequence to another row.

        Args:
            source: Row to copy from.
            target: Row to copy to.
            length: Number of tokens to copy.
        """
        self._cache.write(target, 0, length)
        self._cache.copy_row(source, target, length)

    @torch.inference_mode()
    def swap_rows(self, first: int, second: int) -> None:
        """Exchange the sequences of two rows.

        Args:
            first: One row.
            second: The other.
        """
        self._cache.swap_rows(first, second)

    def free_row(self, row: int) -> None:
        """Forget the sequence of a row, so that the cache can shrink; a row that is reused needs no call.

        Args:
            row: Row of the sequence.
        """
        self._cache.free_row(row)

    @torch.inference_mode()
    def clear_row(self, row: int) -> None:
        """Forget the sequence of a row whose keys or values are not finite.

        Attention gives positions that it masks a weight of 0, and 0 times NaN would reach the row's next sequence.

        Args:
            row: Row of the sequence.
        """
        self._cache.clear_row(row)

    @torch.inference_mode()
    def read_block(self, row: int, start: int) -> Block:
        """Copy the keys and values of `CHUNK` positions, for later prompts that begin alike.

        Args:
            row: Row of the sequence.
            start: First position, a multiple of `CHUNK`.

        Returns:
            Keys and values of every layer.
        """
        return self._cache.read_block(row, start)

    @torch.inference_mode()
    def write_block(self, row: int, start: int, block: Block) -> None:
        """Store what `read_block` returned; the sequence of the row ends behind it.

        Args:
            row: Row of the sequence.
            start: First position, that of `read_block`.
            block: Keys and values of every layer.
        """
        self._cache.write_block(row, start, block)

    @property
    def cache_bytes(self) -> int:
        """Memory of the KV cache."""
        return self._cache.size_bytes

    def _embed(self, tokens: Tensor, at: Tensor) -> Tensor:
        weights = self.weights
        x = F.embedding(tokens, weights.wte).to(weights.dtype)  # (N or A, C)
        return x + F.embedding(at, weights.wpe).to(weights.dtype)  # (N or A, C)

    def _attend(self, index: int, chunk: PromptChunk, qkv: Tensor, mask: Tensor) -> Tensor:
        """Store keys and values of a chunk, qkv (T, 3, H, D), and attend to its prompt so far; returns (T, H*D)."""
        by_head = qkv.permute(1, 2, 0, 3)  # (3, H, T, D)
        self._cache.row(index, chunk.row, chunk.start, chunk.end).copy_(by_head[1:])
        k, v = self._cache.row(index, chunk.row, 0, mask.size(-1)).unbind(0)  # 2 x (H, L, D)
        y = _attention(by_head[0], k, v, mask)  # (H, T, D)
        return y.transpose(0, 1).flatten(1)  # (T, H*D)

    def _causal_mask(self, chunk: PromptChunk) -> Tensor:
        """Additive mask of the positions behind each token of a chunk, (T, L)."""
        at = torch.arange(chunk.start, chunk.end, device=self.device)  # (T,)
        return _mask(at, _rounded(chunk.end), self._cache.dtype)  # (T, L)

    def _masks(self, at: Tensor, length: int) -> dict[int, Tensor]:
        """Additive masks of the positions behind each row's token, by number of heads, (A*H, 1, L)."""
        mask = _mask(at, length, self._cache.dtype)[:, None]  # (A, 1, L)
        counts = {layer.n_head for layer in self.weights.layers}
        return {h: mask.expand(-1, h, -1).reshape(-1, 1, length) for h in counts}  # (A*H, 1, L) each


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention of queries (H, T, D) over keys and values (H, L, D) with an additive mask; returns (H, T, D)."""
    logits = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=1 / math.sqrt(q.size(-1)))  # (H, T, L)
    return logits.softmax(-1) @ v  # (H, T, D)


def _mask(at: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    unseen = torch.arange(length, device=at.device) > at[:, None]  # (A or T, L)
    return torch.zeros(unseen.shape, dtype=dtype, device=at.device).masked_fill_(unseen, float("-inf"))  # (A or T, L)


def _rounded(length: int) -> int:
    return -(-length // _MULTIPLE) * _MULTIPLE
