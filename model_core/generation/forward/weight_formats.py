"""Number formats of a model's matmuls, with the operator, the checks and the fallback of each.

Every format gives a row the same bits whatever rows stand beside it. Kernels choose their code by the number of rows,
so a format pads the rows it is given to a number whose kernels round alike; int8 scales every row of activations by
itself. The fast operators are private to torch. Each is tested when a model is packed, and one that is missing or wrong
is replaced by the next format.

Shapes: M rows, K inputs, N outputs.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

Activation = Literal["none", "gelu"]
PackedLinear = Callable[[Tensor], Tensor]  # (M, K) -> (M, N); float32 on the CPU
Packer = Callable[[Tensor, Tensor | None, Activation], PackedLinear]
RowCount = Callable[[int], int]

_CPUINFO = Path("/proc/cpuinfo")
_VNNI = frozenset({"avx512_vnni", "avx_vnni", "avx10_1"})
_AMX = "amx_bf16"
_BFLOAT16 = frozenset({"avx512_bf16", _AMX, "bf16"})
_HALF_MAX = 65504.0  # of float16; larger weights would be cut off
_ONEDNN_LEAST = 2  # rows: one alone takes another kernel, with other roundings
_PLAIN_BLOCK = 16  # rows of each product, because the number of rows decides the order of MKL's sums
_LANES, _ONE_THREAD = 32, 16_384  # numbers that GELU computes at a time, and up to which one thread computes all
_PERIOD = 120  # rows after which fbgemm's choice of kernels repeats


@dataclass(frozen=True)
class WeightFormat:
    """One number format on the CPU.

    Attributes:
        name: What a reply calls it.
        pack: Converts a weight (N, K) and a bias (N,) to a linear map, with an activation behind it.
        rows: Least number of rows, from a given one on, whose kernels round alike; the linear map adds what is missing.
        error: Expected error of an output relative to float32, as a root mean square.
        table: Number format of the embedding tables.
        head: Key in `FORMATS` of the head's format; None shares the embedding table, in float32.
        needs: Any of these CPU flags; none needs nothing.
        largest: Largest weight that it can hold.
    """

    name: str
    pack: Packer
    rows: RowCount
    error: float
    table: torch.dtype
    head: str | None
    needs: frozenset[str] = frozenset()
    largest: float = _HALF_MAX


class FormatUnusable(Exception):
    """This CPU, this version of torch or these weights cannot use a format."""


def cpu_flags() -> frozenset[str]:
    """Return the features of this CPU that decide which formats it can use.

    Returns:
        Flags, as Linux names them; none on another system.
    """
    return _flags(_CPUINFO)


def cpu_features() -> tuple[str, ...]:
    """Return the CPU's features that change which operators run, or their results.

    Returns:
        Flags, sorted.
    """
    return tuple(sorted(cpu_flags() & (_VNNI | _BFLOAT16 | {"avx2", "avx512f", "amx_int8"})))


def pack_plain(weight: Tensor, bias: Tensor | None, activation: Activation) -> PackedLinear:
    """Use `F.linear` on the given tensors themselves, on any device; nothing is copied.

    Args:
        weight: (N, K).
        bias: (N,).
        activation: What follows.

    Returns:
        The linear map.
    """
    if weight.device.type != "cpu":
        return _with_gelu(lambda x: F.linear(x, weight, bias), activation)

    def blockwise(x: Tensor) -> Tensor:
        if len(x) == _PLAIN_BLOCK:
            return F.linear(x, weight, bias)  # (M, N)
        return torch.cat([F.linear(block, weight, bias) for block in torch.split(x, _PLAIN_BLOCK)])  # (M, N)

    return _with_gelu(_padded(blockwise, _plain_rows), activation)


def pack_shared_head(table: Tensor) -> PackedLinear:
    """Use the embedding table as the head, without a copy.

    Args:
        table: Token embeddings, (V, C).

    Returns:
        (M, C) -> (M, V), float32.
    """
    if table.dtype == torch.float32:
        return pack_plain(table, None, "none")
    try:
        torch.mm(table[:1], table[:1].t(), out_dtype=torch.float32)
    except (RuntimeError, TypeError):  # only for CUDA, since torch 2.8
        return lambda x: F.linear(x, table).float()
    return lambda x: torch.mm(x, table.t(), out_dtype=torch.float32)


def gpu_format(name: str) -> WeightFormat:
    """Describe a format outside the CPU, where `F.linear` is fast and activations have the format of the weights.

    Args:
        name: ``fp32``, ``fp16`` or ``bf16``.

    Returns:
        The format.
    """
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[name]

    def pack(weight: Tensor, bias: Tensor | None, activation: Activation) -> PackedLinear:
        return pack_plain(weight.to(dtype), None if bias is None else bias.to(dtype), activation)

    return WeightFormat(name, pack, _any_rows, 0.0, dtype, None)


def check(key: str) -> None:
    """Test the operator of a format on random numbers.

    Args:
        key: Key in `FORMATS`.

    Raises:
        FormatUnusable: The CPU lacks an instruction, torch lacks the operator, or its results are wrong.
    """
    form = FORMATS[key]
    if form.needs and not form.needs & cpu_flags():
        raise FormatUnusable(f"this CPU has none of {', '.join(sorted(form.needs))}")
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(*shape, generator=generator) for shape in ((48, 256), (48,), (5, 256)))
    x[1] *= 50  # must not change its neighbours
    for activation in ("none", "gelu"):
        expected = pack_plain(weight, bias, activation)(x)  # (5, 48)
        try:
            linear = form.pack(weight, bias, activation)
            found, alone = linear(x), linear(x[:1])  # (5, 48), (1, 48)
        except (RuntimeError, AttributeError, TypeError) as error:
            raise FormatUnusable(f"its operator fails in torch {torch.__version__}: {_first_line(error)}") from error
        error_found = max(_relative_error(found[row], expected[row]) for row in range(5))
        if not error_found < 2 * form.error:  # also if it is not a number
            raise FormatUnusable(f"its operator is wrong by {error_found:.1e}; expected is {form.error:.1e}")
        if not torch.equal(alone, found[:1]):
            raise FormatUnusable("its operator rounds a row differently beside other rows")


def _pack_onednn(dtype: torch.dtype) -> Packer:
    """Weights in oneDNN's own layout, float32 or bfloat16."""

    def pack(weight: Tensor, bias: Tensor | None, activation: Activation) -> PackedLinear:
        operators = torch.ops.mkldnn
        packed = operators._reorder_linear_weight(weight.to(dtype).contiguous(), 1)
        bias = None if bias is None else bias.to(dtype)
        rest: tuple[Any, ...] = (packed, bias, activation, [], "tanh" if activation == "gelu" else "")
        run = _operator(operators._linear_pointwise.default)
        if dtype == torch.float32:
            return _padded(lambda x: run(x, *rest), _onednn_rows)
        return _padded(lambda x: run(x.to(dtype), *rest).float(), _onednn_rows)

    return pack


def _pack_fp16(weight: Tensor, bias: Tensor | None, activation: Activation) -> PackedLinear:
    """Half-precision weights, widened as they are read: fbgemm computes in float32."""
    packed = torch.ops.quantized.linear_prepack_fp16(weight.float().contiguous(), bias)
    run = _operator(torch.ops.quantized.linear_dynamic_fp16.default)
    return _with_gelu(_padded(lambda x: run(x, packed), _fbgemm_rows), activation)


def _fbgemm_rows(count: int) -> int:
    return count + _fbgemm_padding()[(count - 1) % _PERIOD]


@functools.cache
def _fbgemm_padding() -> tuple[int, ...]:
    """How many rows to add to 1, 2 ... `_PERIOD` of them, so that only kernels run that round like the largest.

    fbgemm splits the rows among kernels of 1 to 6 (AVX2) or 14 (AVX-512) rows. Where the small ones round differently,
    a row's bits depend on its place.
    """
    generator = torch.Generator().manual_seed(0)
    packed = torch.ops.quantized.linear_prepack_fp16(torch.randn(16, 64, generator=generator), None)
    run = torch.ops.quantized.linear_dynamic_fp16.default
    x = torch.randn(1, 64, generator=generator).expand(_PERIOD, 64).contiguous()  # equal rows
    usual = run(x, packed)[0]  # (16,)
    alike = [bool((run(x[:count], packed) == usual).all()) for count in range(1, _PERIOD + 1)]
    if not alike[-1]:
        raise FormatUnusable("no number of rows is known whose kernels round alike")
    return tuple(next(more for more in range(_PERIOD) if alike[at + more]) for at in range(_PERIOD))


def _pack_int8(weight: Tensor, bias: Tensor | None, activation: Activation) -> PackedLinear:
    """Integer weights with a scale for each output, and activations with a scale for each row.

    The operator is given no scale, so it returns sums of integers, which are exact: with scales its kernels for AMX
    round one row differently than many. Plain dtypes: quantized ones are deprecated. Activations are unsigned around a
    zero point, because oneDNN's path for signed ones is hundreds of times slower.
    """
    levels = 127 if cpu_flags() & _VNNI else 63  # without VNNI, sums of two products saturate at 16 bits
    zero, scale = levels + 1, weight.abs().amax(1).clamp(min=1e-12) / 127  # (N,)
    integers = torch.round(weight / scale[:, None]).to(torch.int8)  # (N, K)
    packed = torch.ops.onednn.qlinear_prepack(integers, None)
    ones, zeros = torch.ones_like(scale), torch.zeros(len(scale), dtype=torch.int32)  # (N,) each
    rest: tuple[Any, ...] = (1.0, zero, packed, ones, zeros, None, 1.0, 0, torch.float32, "none", [], "")
    run = _operator(torch.ops.onednn.qlinear_pointwise.default)
    top_level, rounding, output_scale = float(levels), zero + 0.5, scale / levels  # (N,)

    def apply(x: Tensor) -> Tensor:
        largest = torch.linalg.vector_norm(x, math.inf, -1, keepdim=True).clamp_(min=1e-12)  # (M, 1)
        unsigned = (x * (top_level / largest)).add_(rounding).to(torch.uint8)  # (M, K), rounded half up
        y: Tensor = run(unsigned, *rest).mul_(output_scale).mul_(largest)  # (M, N)
        return y if bias is None else y.add_(bias)

    return _with_gelu(apply, activation)


def _any_rows(count: int) -> int:
    return count


def _plain_rows(count: int) -> int:
    return -(-count // _PLAIN_BLOCK) * _PLAIN_BLOCK


def _onednn_rows(count: int) -> int:
    return max(count, _ONEDNN_LEAST)


def _padded(linear: PackedLinear, rows: RowCount) -> PackedLinear:
    def apply(x: Tensor) -> Tensor:
        count = x.size(0)
        missing = rows(count) - count
        return linear(F.pad(x, (0, 0, 0, missing)))[:count] if missing else linear(x)  # (M, N)

    return apply


def _operator(overload: Any) -> Any:
    """Call an operator without torch's checks for tracing, which take longer than a small product."""
    return getattr(overload, "_op", overload)


def _with_gelu(linear: PackedLinear, activation: Activation) -> PackedLinear:
    if activation == "none":
        return linear
    return lambda x: _gelu(linear(x))


def _gelu(x: Tensor) -> Tensor:
    """Apply GELU, so that a number's bits do not depend on its place.

    torch computes `_LANES` numbers at a time and the remainder of each thread one by one, with another tanh. So there
    is no remainder: columns are added, and where the threads' shares would have one, one thread computes all.
    """
    columns = x.size(1)
    if x.device.type != "cpu":
        return F.gelu(x, approximate="tanh")  # (M, N)
    if missing := -columns % _LANES:
        return _gelu(F.pad(x, (0, missing)))[:, :columns]  # (M, N)
    if x.numel() <= _ONE_THREAD or -(-x.numel() // torch.get_num_threads()) % _LANES == 0:
        return F.gelu(x, approximate="tanh")  # (M, N)
    return torch.cat([F.gelu(part, approximate="tanh") for part in torch.split(x.flatten(), _ONE_THREAD)]).view_as(
        x
    )  # (M, N)


def _relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


@functools.cache
def _flags(cpuinfo: Path) -> frozenset[str]:
    try:
        found = re.search(r"^(flags|Features)\s*:(.*)$", cpuinfo.read_text(errors="replace"), re.MULTILINE)
    except OSError:
        return frozenset()
    return frozenset(found[2].split()) if found else frozenset()


PLAIN = WeightFormat("fp32", pack_plain, _plain_rows, 0.0, torch.float32, None, largest=float("inf"))
FORMATS: Mapping[str, WeightFormat] = {
    "int8": WeightFormat("int8", _pack_int8, _any_rows, 1.7e-2, torch.float16, "int8"),
    "fp16": WeightFormat("fp16", _pack_fp16, _fbgemm_rows, 2.1e-4, torch.float16, "fp16"),
    # a head in bfloat16 makes ties: its steps are 0.06 at a logit of 10
    "bf16": WeightFormat("bf16", _pack_onednn(torch.bfloat16), _onednn_rows, 3e-3, torch.bfloat16, "fp16", _BFLOAT16),
    "fp32": WeightFormat(
        "fp32", _pack_onednn(torch.float32), _onednn_rows, 1e-6, torch.float32, "fp32", largest=float("inf")
    ),
}
_HALVES = ("bf16", "fp16") if _AMX in cpu_flags() else ("fp16", "bf16")  # fp16 is more exact, and as fast without AMX
FALLBACKS: Mapping[str, tuple[str, ...]] = {  # formats to try in order; F.linear in float32 is the last of all
    "auto": (*_HALVES, "fp32"),
    "fp32": ("fp32",),
    "fp16": ("fp16", "bf16", "fp32"),
    "bf16": ("bf16", "fp16", "fp32"),
    "int8": ("int8", "fp16", "bf16", "fp32"),
}
