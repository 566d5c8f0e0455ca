"""A model's forward pass over a KV cache: a whole prompt, then one token of every sequence per step.

It walks the blocks itself, without dropout, so the model's mode does not matter and no global generator is used. The
cache is one static tensor per layer, because layers differ in H and D; nothing is padded. Rows in use are always the
first ones, so a step takes a view and never gathers. Rows have different lengths; a mask hides what a shorter row has
not written.

Shapes: R rows, A rows in use, T tokens of a prompt or positions, L tokens of the longest row, C n_embd, V ids of the
tokenizer, H heads and D head_dim of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from torch import Tensor

from model_core.config import ModelConfig
from model_core.gpt import GPT, MLP, CausalSelfAttention


class KVCache:
    """Room for `rows` texts of `length` tokens."""

    def __init__(
        self, config: ModelConfig, *, rows: int, length: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> None:
        shapes = zip(config.heads, config.head_dims, strict=True)
        self._layers = [_zeros((2, rows, h, length, d), dtype, device) for h, d in shapes]  # (2, R, H, T, D) each
        self._device = device

    def fill(self, layer: int, row: int, kv: Tensor) -> None:
        """Store a whole prompt.

        Args:
            layer: Which layer.
            row: Whose text.
            kv: Keys and values, (2, H, T, D).
        """
        self._layers[layer][:, row, :, : kv.size(2)] = kv

    def append(self, layer: int, positions: Tensor, kv: Tensor) -> None:
        """Store one token of each row in use, keys and values in one copy.

        Args:
            layer: Which layer.
            positions: Where each row writes, (A,).
            kv: Keys and values, (A, 2, H, D).
        """
        rows = torch.arange(len(positions), device=self._device)  # (A,)
        self._layers[layer][:, rows, :, positions] = kv.to(self.dtype)

    def past(self, layer: int, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first `rows` rows and `length` positions, each (A, H, length, D); views."""
        keys, values = self._layers[layer][:, :rows, :, :length].unbind(0)
        return keys, values

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Give a row the first `length` positions of another."""
        for kv in self._layers:
            kv[:, target, :, :length] = kv[:, source, :, :length]

    @property
    def dtype(self) -> torch.dtype:
        """Number format of keys and values."""
        return self._layers[0].dtype


def cache_bytes(config: ModelConfig, *, rows: int, length: int, item_bytes: int = 4) -> int:
    """Memory of a full cache."""
    width = sum(h * d for h, d in zip(config.heads, config.head_dims, strict=True))
    return 2 * rows * length * width * item_bytes


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: str) -> Tensor:
    if device == "cpu" and dtype == torch.float32:
        # numpy takes zeroed pages from the kernel, which cost nothing before they are written; torch writes them all
        return torch.from_numpy(np.zeros(shape, dtype=np.float32))
    return torch.zeros(*shape, dtype=dtype, device=device)


class Decoder:
    """One model and the cache of the texts it is writing.

    Args:
        model: Its parameters are read, never changed.
        n_vocab: Ids of the tokenizer; logits of ids above them, which only pad the vocabulary, are never made.
        rows: Texts at once.
        length: Tokens of a text, prompt included; at most the model's block_size.
    """

    def __init__(self, model: GPT, n_vocab: int, *, rows: int, length: int) -> None:
        parts, weight = model.transformer, model.lm_head.weight
        self._wte = parts["wte"].get_parameter("weight")  # (V and padding, C)
        self._wpe = parts["wpe"].get_parameter("weight")  # (block_size, C)
        self._ln_f, self._blocks, self._head = parts["ln_f"], model.blocks, weight[:n_vocab]
        self.device, self.rows, self.length = str(weight.device), rows, length
        # one-query attention on the CPU is six times slower in bfloat16 than in float32
        dtype = torch.float32 if weight.device.type == "cpu" else weight.dtype
        self._cache = KVCache(model.config, rows=rows, length=length, dtype=dtype, device=self.device)

    def prefill(self, row: int, prompt: Sequence[int]) -> Tensor:
        """Read a prompt into a row.

        Returns:
            Logits of the token after it, (V,), float32.
        """
        idx = torch.tensor(prompt, device=self.device)  # (T,)
        x = F.embedding(idx, self._wte) + self._wpe[: len(prompt)]  # (T, C)
        for layer, block in enumerate(self._blocks):
            heads = _heads(block.attn, block.ln_1(x)).permute(1, 2, 0, 3)  # (3, H, T, D)
            self._cache.fill(layer, row, heads[1:])
            q, k, v = heads.unsqueeze(1).unbind(0)  # 3 x (1, H, T, D)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (1, H, T, D)
            x = x + block.attn.c_proj(y[0].transpose(0, 1).flatten(1))  # (T, C)
            x = x + _mlp(block.mlp, block.ln_2(x))  # (T, C)
        return self._logits(x[-1])  # (V,)

    def share(self, source: int, target: int, length: int) -> None:
        """Give a row the first `length` tokens that another has read."""
        self._cache.copy_row(source, target, length)

    def step(self, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Read one token of every row in use.

        Args:
            tokens: Ids, A of them.
            positions: Where each stands in its text, A of them.

        Returns:
            Logits of the tokens after them, (A, V), float32.
        """
        at = torch.tensor(positions, device=self.device)  # (A,)
        x = F.embedding(torch.tensor(tokens, device=self.device), self._wte) + self._wpe[at]  # (A, C)
        length = max(positions) + 1
        mask = self._mask(positions, at, length)
        for layer, block in enumerate(self._blocks):
            heads = _heads(block.attn, block.ln_1(x))  # (A, 3, H, D)
            self._cache.append(layer, at, heads[:, 1:])
            k, v = self._cache.past(layer, len(tokens), length)  # 2 x (A, H, L, D)
            q = heads[:, 0].unsqueeze(2).to(k.dtype)  # (A, H, 1, D)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (A, H, 1, D)
            x = x + block.attn.c_proj(y.to(x.dtype).flatten(1))  # (A, C)
            x = x + _mlp(block.mlp, block.ln_2(x))  # (A, C)
        return self._logits(x)  # (A, V)

    def _mask(self, positions: Sequence[int], at: Tensor, length: int) -> Tensor | None:
        if min(positions) == length - 1:
            return None
        unseen = torch.arange(length, device=self.device) > at[:, None]  # (A, L)
        zeros = torch.zeros(unseen.shape, dtype=self._cache.dtype, device=self.device)
        return zeros.masked_fill(unseen, float("-inf"))[:, None, None]  # (A, 1, 1, L)

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(self._ln_f(x), self._head).float()


def _heads(attention: CausalSelfAttention, x: Tensor) -> Tensor:
    joined: Tensor = attention.c_attn(x)  # (T or A, 3 * H * D)
    return joined.view(-1, 3, attention.n_head, attention.head_dim)  # (T or A, 3, H, D)


def _mlp(mlp: MLP, x: Tensor) -> Tensor:
    out: Tensor = mlp.c_proj(F.gelu(mlp.c_fc(x), approximate="tanh"))
    return out
