"""GPT-2 whose layers have head counts, and head sizes, of their own.

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

It is transformers' GPT-2 except for attention: layer i has `n_head_list[i]` heads of size `head_dim`, or of
`n_embd / n_head_list[i]` where `head_dim` is null. The configuration's `n_head` is deliberately invalid, so that a
GPT-2 without this file refuses the folder instead of loading it wrong. transformers 5 reads the heads of its caches
from `per_layer_config`. The code runs in transformers 4.51 and later.
Attentions are a tuple with one (batch, heads of the layer, queries, keys) per layer; they need
`attn_implementation="eager"`.
"""

from __future__ import annotations

import copy
from typing import ClassVar

from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention, GPT2Block, GPT2PreTrainedModel
from transformers.pytorch_utils import Conv1D


class HeadcountConfig(GPT2Config):
    """GPT-2's configuration, with a head count for every layer."""

    model_type: ClassVar[str] = "headcount"

    n_head_list: list[int] | None = None
    head_dim: int | None = None


class HeadcountAttention(GPT2Attention):
    """Attention with the head count of its layer.

    Args:
        config: Configuration of the model.
        layer_idx: Index of the layer, which decides its heads.
    """

    def __init__(self, config: HeadcountConfig, layer_idx: int) -> None:
        super().__init__(_with_one_head(config), layer_idx=layer_idx)
        self.config = config
        self.num_heads = config.n_head_list[layer_idx]
        self.head_dim = config.head_dim or config.n_embd // self.num_heads
        self.split_size = self.num_heads * self.head_dim
        self.scaling = self.head_dim**-0.5
        self.c_attn = Conv1D(3 * self.split_size, config.n_embd)
        self.c_proj = Conv1D(config.n_embd, self.split_size)


class HeadcountBlock(GPT2Block):
    """GPT-2's block with that attention.

    Args:
        config: Configuration of the model.
        layer_idx: Index of the layer, which decides its heads.
    """

    def __init__(self, config: HeadcountConfig, layer_idx: int) -> None:
        super().__init__(_with_one_head(config), layer_idx=layer_idx)
        self.attn = HeadcountAttention(config, layer_idx)


class HeadcountModel(GPT2Model):
    """The layers, without the language modeling head.

    Args:
        config: Configuration of the model.
    """

    config_class = HeadcountConfig
    _no_split_modules: ClassVar[list[str]] = ["HeadcountBlock"]

    def __init__(self, config: HeadcountConfig) -> None:
        GPT2PreTrainedModel.__init__(self, config)  # GPT2Model would build layers of n_head heads
        self.embed_dim = config.n_embd
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList([HeadcountBlock(config, layer_idx) for layer_idx in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.gradient_checkpointing = False
        self.model_parallel, self.device_map = False, None  # this and the next: read by transformers 4
        self._attn_implementation = config._attn_implementation
        self.post_init()


class HeadcountForCausalLM(GPT2LMHeadModel):
    """The whole model.

    Args:
        config: Configuration of the model.
    """

    config_class = HeadcountConfig
    _no_split_modules: ClassVar[list[str]] = ["HeadcountBlock"]

    def __init__(self, config: HeadcountConfig) -> None:
        GPT2PreTrainedModel.__init__(self, config)
        self.transformer = HeadcountModel(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.model_parallel, self.device_map = False, None  # read by transformers 4
        self.post_init()


def _with_one_head(config: HeadcountConfig) -> HeadcountConfig:
    """Return a copy that GPT-2's own constructors accept: one head fits any width."""
    single = copy.copy(config)
    single.per_layer_config = None
    single.n_head = 1
    return single
