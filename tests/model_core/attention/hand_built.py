"""A model of two layers, set by hand, whose three heads do what is known: previous token, nothing, induction.

The stream of a token has three parts: its id (one-hot), its position (one-hot), and the id of the token before, which
head 0.0 writes. Head 0.1 has no parameters, so it attends evenly. Head 1.0 looks for positions whose token before is
its own token: induction (Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021).
"""

import torch
from torch import nn

from model_core.config import ModelConfig
from model_core.gpt import GPT

LABELS = {"0.0": "previous", "1.0": "induction"}  # what the probe finds; head 0.1 has none


def hand_built_model(vocab_size: int = 64, block_size: int = 64, *, back: int = 1) -> GPT:
    """Build the model; an even `block_size` is at most twice `vocab_size`. Head 0.0 looks `back` tokens back."""
    width = 2 * vocab_size + block_size
    model = GPT(
        ModelConfig(n_layer=2, n_embd=width, n_head_list=(2, 1), vocab_size=vocab_size, block_size=block_size)
    ).eval()
    before = slice(vocab_size + block_size, width)  # the part of the stream with the token before
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.fill_(1)
        ids, positions = torch.eye(vocab_size), torch.eye(block_size)
        model.transformer["wte"].weight[:, :vocab_size] = ids
        model.transformer["wpe"].weight[:, vocab_size : before.start] = positions
        _look_back(back, model.blocks[0].attn, positions, ids, before)
        read = model.blocks[1].attn.c_attn.weight  # rows: queries, keys, values, `width` each
        read[:vocab_size, :vocab_size] = 2 * ids  # twice: sharper
        read[width : width + vocab_size, before] = ids
    return model


def _look_back(back: int, attn: nn.Module, positions: torch.Tensor, ids: torch.Tensor, before: slice) -> None:
    vocab_size, last, width = len(ids), len(positions) - back, before.stop
    read = attn.c_attn.weight
    read[:last, vocab_size + back : before.start] = positions[:last, :last]  # the query of position i is i - back
    read[width : width + last, vocab_size : before.start - back] = positions[:last, :last]
    read[2 * width : 2 * width + vocab_size, :vocab_size] = ids
    attn.c_proj.weight[before, :vocab_size] = ids / 10
