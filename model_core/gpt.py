"""GPT-2 whose layers may have different numbers of attention heads.

Pre-norm blocks, learned positions, biases, tanh GELU and a tied head, as in GPT-2 (Radford et al., 2019). Only
attention depends on the heads: a layer maps C to 3 H D and back, so layers of any H and D can be stacked. Parameters
have nanoGPT's names, so its checkpoints can be loaded.

Shapes: B batch, T tokens, C n_embd, H heads of this layer, D head_dim of this layer, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model_core.config import ModelConfig
from model_core.cross_entropy import linear_cross_entropy

Forward = Callable[[Tensor, Tensor], tuple[Tensor | None, Tensor | None]]  # a GPT, or its compiled version
_STD = 0.02  # GPT-2's initial standard deviation


class CausalSelfAttention(nn.Module):
    """Causal self-attention with H heads of size D.

    Args:
        n_embd: Width C.
        n_head: Heads H of this layer.
        head_dim: Size D of a head of this layer.
        dropout: Probability of dropout.
    """

    def __init__(self, n_embd: int, n_head: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        self.n_head, self.head_dim, self.dropout = n_head, head_dim, dropout
        self.c_attn = nn.Linear(n_embd, 3 * n_head * head_dim)
        self.c_proj = nn.Linear(n_head * head_dim, n_embd)
        self.resid_dropout = nn.Dropout(dropout)

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project to queries, keys and values.

        Args:
            x: Normalized input, (B, T, C).

        Returns:
            Three tensors, each (B, H, T, D).
        """
        B, T, _ = x.shape  # noqa: N806 - the letters of the shape legend
        heads = self.c_attn(x).view(B, T, 3, self.n_head, self.head_dim)  # (B, T, 3, H, D)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)  # 3 x (B, H, T, D)
        return q, k, v

    def merge(self, y: Tensor) -> Tensor:
        """Join the heads and project back to the width.

        Args:
            y: Output of each head, (B, H, T, D).

        Returns:
            Output of the layer, (B, T, C).
        """
        joined = y.transpose(1, 2).flatten(2)  # (B, T, H*D)
        x: Tensor = self.resid_dropout(self.c_proj(joined))  # (B, T, C)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Attend with the fused kernel.

        Args:
            x: Normalized input, (B, T, C).

        Returns:
            Output of the layer, (B, T, C).
        """
        q, k, v = self.qkv(x)  # 3 x (B, H, T, D)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)  # (B, H, T, D)
        return self.merge(y)


class MLP(nn.Module):
    """Two linear maps with a GELU between them, four times as wide inside.

    Args:
        n_embd: Width C.
        dropout: Probability of dropout.
    """

    def __init__(self, n_embd: int, dropout: float) -> None:
        super().__init__()
        self.c_fc = nn.Linear(n_embd, 4 * n_embd)
        self.c_proj = nn.Linear(4 * n_embd, n_embd)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Transform every token by itself.

        Args:
            x: Normalized input, (B, T, C).

        Returns:
            Output, (B, T, C).
        """
        hidden = F.gelu(self.c_fc(x), approximate="tanh")  # (B, T, 4C)
        x = self.dropout(self.c_proj(hidden))  # (B, T, C)
        return x


class Block(nn.Module):
    """One layer: attention, then MLP, each with its own norm and a residual connection.

    Args:
        n_embd: Width C.
        n_head: Heads H of this layer.
        head_dim: Size D of a head of this layer.
        dropout: Probability of dropout.
    """

    def __init__(self, n_embd: int, n_head: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(n_embd)
        self.attn = CausalSelfAttention(n_embd, n_head, head_dim, dropout)
        self.ln_2 = nn.LayerNorm(n_embd)
        self.mlp = MLP(n_embd, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Add the outputs of attention and MLP to the residual stream.

        Args:
            x: Residual stream, (B, T, C).

        Returns:
            Residual stream, (B, T, C).
        """
        x = x + self.attn(self.ln_1(x))
        x = x + self.mlp(self.ln_2(x))
        return x


class GPT(nn.Module):
    """The whole model.

    Args:
        config: Section `model`.

    Attributes:
        config: Section `model`.
        gradient_checkpointing: Recompute each block in the backward pass instead of keeping its activations.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        width, dropout = config.n_embd, config.dropout
        blocks = [Block(width, h, d, dropout) for h, d in zip(config.heads, config.head_dims, strict=True)]
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, width),
                "wpe": nn.Embedding(config.block_size, width),
                "drop": nn.Dropout(dropout),
                "h": nn.ModuleList(blocks),
                "ln_f": nn.LayerNorm(width),
            }
        )
        self.lm_head = nn.Linear(width, config.vocab_size, bias=False)
        self.tie_head()
        self.apply(_initialize)
        self._scale_residual_projections()

    @property
    def blocks(self) -> list[Block]:
        """The layers in order."""
        return [cast("Block", block) for block in cast("nn.ModuleList", self.transformer["h"])]

    def tie_head(self) -> None:
        """Share the token embedding with the head, as in GPT-2; needed again after parameters were assigned."""
        self.lm_head.weight = cast("nn.Embedding", self.transformer["wte"]).weight

    def embed(self, idx: Tensor) -> Tensor:
        """Add token and position embeddings.

        Args:
            idx: Token ids, (B, T); T at most block_size.

        Returns:
            Input of the first layer, (B, T, C).

        Raises:
            ValueError: T is above block_size.
        """
        length = idx.size(1)
        if length > self.config.block_size:
            raise ValueError(f"{length} tokens, but block_size is {self.config.block_size}")
        positions = torch.arange(length, device=idx.device)  # (T,)
        x: Tensor = self.transformer["drop"](
            self.transformer["wte"](idx) + self.transformer["wpe"](positions)
        )  # (B, T, C)
        return x

    def hidden(self, idx: Tensor) -> Tensor:
        """Run all layers.

        Args:
            idx: Token ids, (B, T).

        Returns:
            Input of the head, after the last norm, (B, T, C).
        """
        x = self.embed(idx)  # (B, T, C)
        for block in self.blocks:
            if self.gradient_checkpointing and self.training:
                x = cast("Tensor", checkpoint(block, x, use_reentrant=False))
            else:
                x = block(x)
        normed: Tensor = self.transformer["ln_f"](x)  # (B, T, C)
        return normed

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
        """Compute the logits of the next token at each position, or the loss.

        Args:
            idx: Token ids, (B, T).
            targets: Ids of the next tokens, (B, T); -1 is not counted.

        Returns:
            Without targets the logits, (B, T, V), and None. With targets None, because the logits of all rows are never
            in memory together, and the mean cross entropy in nats.
        """
        x = self.hidden(idx)  # (B, T, C)
        if targets is None:
            return self.lm_head(x), None  # (B, T, V)
        return None, linear_cross_entropy(x.flatten(0, 1), self.lm_head.weight, targets.flatten())  # ()

    def _scale_residual_projections(self) -> None:
        std = _STD / math.sqrt(2 * self.config.n_layer)  # two residual additions per layer
        for block in self.blocks:
            nn.init.normal_(block.attn.c_proj.weight, std=std)
            nn.init.normal_(block.mlp.c_proj.weight, std=std)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
