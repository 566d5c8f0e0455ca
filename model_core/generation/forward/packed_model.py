"""A model's parameters in the number format that generates fastest, and what identifies their results.

The packed parameters replace the module's: with `keep=False` each tensor of the module is freed as soon as it is
packed, so nothing is held twice. Logits are float32 in every format.

Shapes: M rows, C n_embd, V ids of the tokenizer, H heads and D head_dim of a layer.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from model_core.config import ModelConfig
from model_core.generation.forward.weight_formats import (
    FALLBACKS,
    FORMATS,
    PLAIN,
    Activation,
    FormatUnusable,
    PackedLinear,
    RowCount,
    WeightFormat,
    check,
    gpu_format,
    pack_shared_head,
)
from model_core.gpt import GPT, Block
from model_core.schemas import ResultWarning

ENGINE_VERSION = 3  # raised when equal requests give other bits than before
FALLBACK = "weights_fallback"  # code of the warning that another format than the wanted one is used

_HEAD_MULTIPLE = 64
_AMPERE = (8, 0)  # first compute capability with bfloat16


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
        c_fc: (M, C) -> (M, 4 * C), with GELU.
        mlp_proj: (M, 4 * C) -> (M, C).
    """

    n_head: int
    head_dim: int
    ln_1: PackedNorm
    c_attn: PackedLinear
    attn_proj: PackedLinear
    ln_2: PackedNorm
    c_fc: PackedLinear
    mlp_proj: PackedLinear


@dataclass(frozen=True)
class PackedModel:
    """What `ModelRunner` runs.

    Attributes:
        config: Shape of the model.
        n_vocab: Ids of the tokenizer, V; the ids above only pad the vocabulary.
        weights: Name of the weight format.
        device: Device, as torch writes it.
        dtype: Number format of activations, keys and values.
        wte: Token embeddings, (vocab_size, C).
        wpe: Position embeddings, (block_size, C).
        layers: Blocks, in order.
        ln_f: Norm before the head.
        head: (M, C) -> (M, V), float32.
        kernel_rows: See `WeightFormat.rows`; rows that are added once need not be added by each linear map.
        warnings: Why it has another format than the wanted one.
    """

    config: ModelConfig
    n_vocab: int
    weights: str
    device: str
    dtype: torch.dtype
    wte: Tensor
    wpe: Tensor
    layers: tuple[PackedLayer, ...]
    ln_f: PackedNorm
    head: PackedLinear
    kernel_rows: RowCount
    warnings: tuple[ResultWarning, ...] = ()

    def embed(self, tokens: Tensor, at: Tensor) -> Tensor:
        """Look up the input of the first layer.

        Args:
            tokens: Ids, (M,).
            at: Their positions, (M,).

        Returns:
            Sum of both embeddings, (M, C).
        """
        x = F.embedding(tokens, self.wte).to(self.dtype)  # (M, C)
        return x + F.embedding(at, self.wpe).to(self.dtype)  # (M, C)

    def warned(self, warning: ResultWarning) -> PackedModel:
        """Add a warning.

        Args:
            warning: Why it has not the wanted format.

        Returns:
            The same model with one more warning, the first.
        """
        return replace(self, warnings=(warning, *self.warnings))


@torch.no_grad()
def pack_model(model: GPT, n_vocab: int, weights: str = "fp32", *, keep: bool = True) -> PackedModel:
    """Convert a model's parameters, in the wanted format or the next that this machine can use.

    Args:
        model: The model, in float32.
        n_vocab: Ids of its tokenizer.
        weights: Key in `FALLBACKS`: a format, or ``auto``.
        keep: Whether the model stays usable; float32 parameters are then shared with it, not copied.

    Returns:
        The packed parameters.

    Raises:
        ValueError: The format is not known.
    """
    if weights not in FALLBACKS:
        raise ValueError(f"weights {weights!r} are not known; give one of {', '.join(FALLBACKS)}")
    if weights == "fp32" and keep:
        return _pack(model, n_vocab, PLAIN, (), keep=True)
    choose = _cpu_format if model.lm_head.weight.device.type == "cpu" else _gpu_format
    form, warnings = choose(model, weights)
    return _pack(model, n_vocab, form, warnings, keep=keep)


def fingerprint(sha256: str, weights: str, device: str) -> str:
    """Identify what determines the result of a request with a seed, besides the number of threads.

    Args:
        sha256: Hash of the checkpoint, hex.
        weights: Name of the weight format.
        device: Device, as torch writes it.

    Returns:
        12 hex digits.
    """
    parts = (sha256, weights, device.partition(":")[0], str(ENGINE_VERSION), torch.__version__)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _cpu_format(model: GPT, weights: str) -> tuple[WeightFormat, tuple[ResultWarning, ...]]:
    """Choose the first usable format; a warning says why the others are not."""
    refused = []
    matrices = [parameter.abs().max() for parameter in model.parameters() if parameter.dim() > 1]
    largest = float(torch.stack(matrices).max())  # NaN if any is: some operators would hide it
    form = PLAIN
    for key in FALLBACKS[weights]:
        try:
            if not largest <= FORMATS[key].largest:
                raise FormatUnusable(f"a weight is {largest:g}; its largest number is {FORMATS[key].largest:.0f}")
            for used in {key, FORMATS[key].head or key}:
                check(used)
            form = FORMATS[key]
            break
        except FormatUnusable as error:
            refused.append(f"{key} weights cannot be used: {error}")
    return form, _warnings(refused, form.name)


def _gpu_format(model: GPT, weights: str) -> tuple[WeightFormat, tuple[ResultWarning, ...]]:
    """Choose a format of `F.linear`: on a CUDA device that computes in bfloat16 that is fastest, elsewhere float32."""
    device = model.lm_head.weight.device
    half = "bf16" if device.type == "cuda" and torch.cuda.get_device_capability(device) >= _AMPERE else "fp32"
    name = half if weights in {"auto", "int8"} else weights
    refused = ["int8 weights are for the CPU"] if weights == "int8" else []
    return gpu_format(name), _warnings(refused, name)


def _warnings(refused: list[str], used: str) -> tuple[ResultWarning, ...]:
    if not refused:
        return ()
    return (ResultWarning(code=FALLBACK, detail="; ".join([*refused, f"{used} is used instead"])),)


def _pack(
    model: GPT, n_vocab: int, form: WeightFormat, warnings: tuple[ResultWarning, ...], *, keep: bool
) -> PackedModel:
    parts, table = model.transformer, model.lm_head.weight.detach()  # (vocab_size, C)
    device = str(table.device)
    dtype = torch.float32 if table.device.type == "cpu" else form.table
    wte = table.to(form.table)  # (vocab_size, C)
    head = _pack_head(table, wte, n_vocab, form)
    del table
    wpe = parts["wpe"].get_parameter("weight").detach().to(form.table)  # (block_size, C)
    if not keep:
        _free(parts["wte"], parts["wpe"], model.lm_head)
    return PackedModel(
        config=model.config,
        n_vocab=n_vocab,
        weights=form.name,
        device=device,
        dtype=dtype,
        wte=wte,
        wpe=wpe,
        layers=tuple(_pack_layer(block, form, dtype, keep=keep) for block in model.blocks),
        ln_f=_pack_norm(parts["ln_f"], dtype),
        head=head,
        kernel_rows=form.rows,
        warnings=warnings,
    )


def _pack_head(table: Tensor, wte: Tensor, n_vocab: int, form: WeightFormat) -> PackedLinear:
    """Pack the head for a number of ids at which kernels are fast; int8 is several times slower at 50257 than 50304."""
    padding = -n_vocab % _HEAD_MULTIPLE
    if form.head is None:
        linear = pack_shared_head(wte[: n_vocab + padding])
    else:
        rows = table[: n_vocab + padding]  # (V and padding, C), or fewer
        rows = F.pad(rows, (0, 0, 0, n_vocab + padding - rows.size(0)))  # (V and padding, C)
        linear = FORMATS[form.head].pack(rows, None, "none")
    return lambda x: linear(x)[:, :n_vocab]  # (M, V)


def _pack_layer(block: Block, form: WeightFormat, dtype: torch.dtype, *, keep: bool) -> PackedLayer:
    def pack(linear: nn.Linear, activation: Activation = "none") -> PackedLinear:
        packed = form.pack(linear.weight.detach(), linear.bias.detach(), activation)
        if not keep:
            _free(linear)
        return packed

    attn, mlp = block.attn, block.mlp
    return PackedLayer(
        n_head=attn.n_head,
        head_dim=attn.head_dim,
        ln_1=_pack_norm(block.ln_1, dtype),
        c_attn=pack(attn.c_attn),
        attn_proj=pack(attn.c_proj),
        ln_2=_pack_norm(block.ln_2, dtype),
        c_fc=pack(mlp.c_fc, "gelu"),
        mlp_proj=pack(mlp.c_proj),
    )


def _pack_norm(norm: nn.Module, dtype: torch.dtype) -> PackedNorm:
    assert isinstance(norm, nn.LayerNorm)
    return PackedNorm(norm.weight.detach().to(dtype), norm.bias.detach().to(dtype), norm.eps)


def release(model: GPT) -> None:
    """Free the matrices of a model that was packed; it is not usable afterwards.

    Args:
        model: The model.
    """
    _free(*(module for module in model.modules() if isinstance(module, nn.Linear | nn.Embedding)))


def _free(*modules: nn.Module) -> None:
    """Release the tensors of modules; what was packed without a copy keeps its own reference."""
    for module in modules:
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.new_empty(0)
