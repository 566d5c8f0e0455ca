"""A model's forward pass over a KV cache: a whole prompt, then one token of every sequence per step.

It runs the blocks itself, without dropout, so the model's mode does not matter and no global generator is used. The
cache is one static tensor per layer, because layers differ in H and D; nothing is padded. Rows in use are always the
first ones, so a step takes a view and never gathers. Rows have different lengths; a mask hides the positions that a
shorter row has not written.

Shapes: R rows, A rows in use, T tokens of a prompt or positions, L tokens of the longest row, C n_embd, V ids of the
tokenizer, H heads and D head_dim of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from model_core.config import ModelConfig
from model_core.gpt import GPT, MLP, CausalSelfAttention


class ModelRunner:
    """One model and the KV cache of the sequences that it generates.

    Args:
        model: The model; its parameters are only read.
        n_vocab: Ids of the tokenizer; no logits are computed for the ids above, which only pad the vocabulary.
        rows: Most sequences at once.
        length: Most tokens of a sequence, prompt included; at most the model's block_size.
    """

    def __init__(self, model: GPT, n_vocab: int, *, rows: int, length: int) -> None:
        parts, head = model.transformer, model.lm_head.weight
        self._wte = parts["wte"].get_parameter("weight")  # (V and padding, C)
        self._wpe = parts["wpe"].get_parameter("weight")  # (block_size, C)
        self._ln_f, self._blocks, self._head = parts["ln_f"], model.blocks, head[:n_vocab]  # (V, C)
        self.device, self.rows, self.length = str(head.device), rows, length
        # one-query attention on the CPU is six times slower in bfloat16 than in float32
        dtype = torch.float32 if head.device.type == "cpu" else head.dtype
        self._cache = KVCache(model.config, rows=rows, length=length, dtype=dtype, device=self.device)

    def prefill(self, row: int, prompt: Sequence[int]) -> Tensor:
        """Run a prompt and store its keys and values in a row.

        Args:
            row: Row of the sequence.
            prompt: Token ids, at least one.

        Returns:
            Logits of the next token, (V,), float32.
        """
        idx = torch.tensor(prompt, device=self.device)  # (T,)
        x = F.embedding(idx, self._wte) + self._wpe[: len(prompt)]  # (T, C)
        for layer, block in enumerate(self._blocks):
            qkv = _qkv(block.attn, block.ln_1(x)).permute(1, 2, 0, 3)  # (3, H, T, D)
            self._cache.fill(layer, row, qkv[1:])  # (2, H, T, D)
            q, k, v = qkv.unsqueeze(1).unbind(0)  # 3 x (1, H, T, D)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (1, H, T, D)
            x = x + block.attn.c_proj(y[0].transpose(0, 1).flatten(1))  # (T, C)
            x = x + _mlp(block.mlp, block.ln_2(x))  # (T, C)
        return self._logits(x[-1])  # (V,)

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy the cached beginning of a sequence to another row.

        Args:
            source: Row to copy from.
            target: Row to copy to.
            length: Number of tokens to copy.
        """
        self._cache.copy_row(source, target, length)

    def step(self, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Run one token of every row in use.

        Args:
            tokens: Newest token of each row, A ids.
            positions: Index of that token in its sequence, A of them.

        Returns:
            Logits of the next tokens, (A, V), float32.
        """
        at = torch.tensor(positions, device=self.device)  # (A,)
        x = F.embedding(torch.tensor(tokens, device=self.device), self._wte) + self._wpe[at]  # (A, C)
        length = max(positions) + 1
        mask = self._mask(positions, at, length)  # (A, 1, 1, L)
        for layer, block in enumerate(self._blocks):
            qkv = _qkv(block.attn, block.ln_1(x))  # (A, 3, H, D)
            self._cache.append(layer, at, qkv[:, 1:])  # (A, 2, H, D)
            k, v = self._cache.past(layer, len(tokens), length)  # 2 x (A, H, L, D)
            q = qkv[:, 0].unsqueeze(2).to(k.dtype)  # (A, H, 1, D)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (A, H, 1, D)
            x = x + block.attn.c_proj(y.to(x.dtype).flatten(1))  # (A, C)
            x = x + _mlp(block.mlp, block.ln_2(x))  # (A, C)
        return self._logits(x)  # (A, V)

    def _mask(self, positions: Sequence[int], at: Tensor, length: int) -> Tensor | None:
        """Additive mask of the positions that a row has not written; None if all rows are equally long."""
        if min(positions) == length - 1:
            return None
        unseen = torch.arange(length, device=self.device) > at[:, None]  # (A, L)
        zeros = torch.zeros(unseen.shape, dtype=self._cache.dtype, device=self.device)  # (A, L)
        return zeros.masked_fill(unseen, float("-inf"))[:, None, None]  # (A, 1, 1, L)

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(self._ln_f(x), self._head).float()  # (..., V)


class KVCache:
    """Keys and values of every layer, preallocated.

    Args:
        config: Shape of the model.
        rows: Sequences, R.
        length: Positions of a sequence, T.
        dtype: Number format of keys and values.
        device: Device, as torch writes it.
    """

    def __init__(
        self, config: ModelConfig, *, rows: int, length: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> None:
        shapes = zip(config.heads, config.head_dims, strict=True)
        self._layers = [_zeros((2, rows, h, length, d), dtype, device) for h, d in shapes]  # (2, R, H, T, D) each
        self._device = device

    def fill(self, layer: int, row: int, kv: Tensor) -> None:
        """Store a whole prompt.

        Args:
            layer: Index of the layer.
            row: Row of the sequence.
            kv: Keys and values, (2, H, T, D).
        """
        self._layers[layer][:, row, :, : kv.size(2)] = kv

    def append(self, layer: int, positions: Tensor, kv: Tensor) -> None:
        """Store one token of each row in use, keys and values in one copy.

        Args:
            layer: Index of the layer.
            positions: Position that each row writes, (A,).
            kv: Keys and values, (A, 2, H, D).
        """
        rows = torch.arange(len(positions), device=self._device)  # (A,)
        self._layers[layer][:, rows, :, positions] = kv.to(self.dtype)

    def past(self, layer: int, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """Return a view of the rows in use.

        Args:
            layer: Index of the layer.
            rows: Number of rows, from the first, A.
            length: Number of positions, from the first, L.

        Returns:
            Keys and values, each (A, H, L, D).
        """
        keys, values = self._layers[layer][:, :rows, :, :length].unbind(0)  # 2 x (A, H, L, D)
        return keys, values

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy the beginning of a row to another, in every layer.

        Args:
            source: Row to copy from.
            target: Row to copy to.
            length: Number of positions to copy.
        """
        for kv in self._layers:
            kv[:, target, :, :length] = kv[:, source, :, :length]

    @property
    def dtype(self) -> torch.dtype:
        """Number format of keys and values."""
        return self._layers[0].dtype


def cache_bytes(config: ModelConfig, *, rows: int, length: int, item_bytes: int = 4) -> int:
    """Compute the memory of a `KVCache`.

    Args:
        config: Shape of the model.
        rows: Sequences.
        length: Positions of a sequence.
        item_bytes: Bytes of a number.

    Returns:
        Bytes.
    """
    width = sum(h * d for h, d in zip(config.heads, config.head_dims, strict=True))
    return 2 * rows * length * width * item_bytes


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: str) -> Tensor:
    if device == "cpu" and dtype == torch.float32:
        # numpy takes zeroed pages from the kernel, which cost nothing before they are written; torch writes them all
        return torch.from_numpy(np.zeros(shape, dtype=np.float32))
    return torch.zeros(*shape, dtype=dtype, device=device)


def _qkv(attn: CausalSelfAttention, x: Tensor) -> Tensor:
    qkv: Tensor = attn.c_attn(x)  # (T or A, 3 * H * D)
    return qkv.view(-1, 3, attn.n_head, attn.head_dim)  # (T or A, 3, H, D)


def _mlp(mlp: MLP, x: Tensor) -> Tensor:
    out: Tensor = mlp.c_proj(F.gelu(mlp.c_fc(x), approximate="tanh"))  # (T or A, C)
    return out
