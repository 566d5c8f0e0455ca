"""Every number format: its error, its self-test, and what replaces it where it cannot be used."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from model_core.budget import PACKED_BYTES, packed_bytes
from model_core.config import ModelConfig
from model_core.generation.forward import weight_formats
from model_core.generation.forward.model_runner import ModelRunner, PromptChunk
from model_core.generation.forward.packed_model import FALLBACK, fingerprint, pack_model, release
from model_core.generation.forward.weight_formats import (
    FORMATS,
    Activation,
    FormatUnusable,
    PackedLinear,
    WeightFormat,
    check,
    cpu_flags,
)
from model_core.gpt import GPT
from tests.model_core.generation.conftest import tiny_model

VOCAB = 301


def usable(key: str) -> bool:
    needs = FORMATS[key].needs
    return not needs or bool(needs & cpu_flags())


each_format = pytest.mark.parametrize(
    "form", [pytest.param(form, id=key) for key, form in FORMATS.items() if usable(key)]
)


@each_format
@pytest.mark.parametrize(("inputs", "outputs"), [(768, 96), (96, 768), (128, 301), (24, 40)], ids=str)
def test_the_error_of_each_format_is_the_expected_one(form: WeightFormat, inputs: int, outputs: int) -> None:
    torch.manual_seed(0)
    weight, bias, x = torch.randn(outputs, inputs), torch.randn(outputs), torch.randn(8, inputs)
    expected = F.gelu(F.linear(x, weight, bias), approximate="tanh")  # (8, outputs)

    found = form.pack(weight, bias, "gelu")(x)  # (8, outputs)

    assert float((found - expected).norm() / expected.norm()) < 2 * form.error


@each_format
@pytest.mark.parametrize(("outputs", "activation"), [(96, "gelu"), (301, "none")])
def test_a_row_has_the_same_bits_beside_any_number_of_rows(
    form: WeightFormat, outputs: int, activation: Activation
) -> None:
    torch.manual_seed(0)
    linear = form.pack(torch.randn(outputs, 64), torch.randn(outputs), activation)
    x = torch.randn(1100, 64) * torch.logspace(-3, 3, 1100)[:, None]  # (1100, 64), rows of all sizes
    every = linear(x)  # (1100, outputs)

    counts = (*range(1, 34), 37, 38, 64, 65, 127, 134, 200, 512, 777, 1024)
    wrong = [count for count in counts if not torch.equal(linear(x[17 : 17 + count]), every[17 : 17 + count])]

    assert wrong == []


@pytest.mark.parametrize("weights", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("damage", [float("nan"), float("inf")])
def test_no_weight_that_is_not_finite_disappears(weights: str, damage: float) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.blocks[1].mlp.c_fc.weight[5, 7] = damage

    assert not _logits(pack_model(model, VOCAB, weights)).isfinite().any()


@each_format
def test_rows_of_zeros_give_the_bias(form: WeightFormat) -> None:
    bias = torch.randn(48)

    y = form.pack(torch.randn(48, 64), bias, "none")(torch.zeros(3, 64))  # (3, 48)

    torch.testing.assert_close(y, bias.expand(3, 48), rtol=2 * form.error, atol=1e-3)


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> dict[str, WeightFormat]:
    """The table of formats, in which a test may replace entries."""
    table = dict(FORMATS)
    monkeypatch.setattr(weight_formats, "FORMATS", table)
    monkeypatch.setattr("model_core.generation.forward.packed_model.FORMATS", table)
    return table


def missing(*_: object) -> PackedLinear:
    raise AttributeError("'_OpNamespace' 'quantized' object has no attribute 'linear_prepack_fp16'")


def wrong(weight: Tensor, bias: Tensor | None, activation: str) -> PackedLinear:
    return lambda x: F.linear(x, weight, bias) * 1.5


def mixing(weight: Tensor, bias: Tensor | None, activation: str) -> PackedLinear:
    right = FORMATS["int8"].pack(weight, bias, activation)  # type: ignore[arg-type]
    return lambda x: right(x) + x.sum() * 1e-9


@pytest.mark.parametrize("pack", [missing, wrong, mixing])
@pytest.mark.parametrize(("wanted", "used"), [("int8", "fp16"), ("fp16", "fp32")])
def test_an_operator_that_is_missing_or_wrong_is_replaced_with_a_warning(
    replaced: dict[str, WeightFormat], pack: object, wanted: str, used: str
) -> None:
    replaced[wanted] = dataclasses.replace(FORMATS[wanted], pack=pack)  # type: ignore[arg-type]
    replaced["bf16"] = dataclasses.replace(FORMATS["bf16"], needs=frozenset({"none"}))

    packed = pack_model(tiny_model(), VOCAB, wanted)

    assert packed.weights == used
    assert [warning.code for warning in packed.warnings] == [FALLBACK]
    assert wanted in packed.warnings[0].detail


def test_what_the_cpu_lacks_is_refused(replaced: dict[str, WeightFormat]) -> None:
    replaced["int8"] = dataclasses.replace(FORMATS["int8"], needs=frozenset({"no_such_flag"}))

    with pytest.raises(FormatUnusable):
        check("int8")


def test_a_weight_beyond_float16_is_served_in_float32() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.blocks[0].attn.c_attn.weight[0, 0] = 70_000

    packed = pack_model(model, VOCAB, "auto")

    assert packed.weights == "fp32"
    assert [warning.code for warning in packed.warnings] == [FALLBACK]


def test_auto_is_half_precision_without_a_warning() -> None:
    packed = pack_model(tiny_model(), VOCAB, "auto")

    assert (packed.weights, packed.warnings) == ("bf16" if "amx_bf16" in cpu_flags() else "fp16", ())
    assert packed.wte.dtype == FORMATS[packed.weights].table
    assert ModelRunner(packed, rows=1, length=8).step([1], [0]).dtype == torch.float32


def test_an_unknown_format_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="int4"):
        pack_model(tiny_model(), VOCAB, "int4")


@pytest.mark.parametrize("weights", ["fp32", "fp16", "int8"])
def test_packing_frees_the_matrices_of_the_module_unless_it_is_kept(weights: str) -> None:
    model = tiny_model()
    kept = pack_model(model, VOCAB, weights, keep=True)
    expected = _logits(kept)

    moved = pack_model(model, VOCAB, weights, keep=False)

    assert _numbers(model) < 10_000  # norms and biases
    torch.testing.assert_close(_logits(moved), expected)


def test_a_kept_model_in_float32_is_shared_and_not_copied() -> None:
    model = tiny_model()
    packed = pack_model(model, VOCAB, "fp32", keep=True)
    before = _logits(packed)

    with torch.no_grad():
        model.blocks[0].mlp.c_fc.weight.mul_(2)

    assert packed.wte.data_ptr() == model.lm_head.weight.data_ptr()
    assert not torch.equal(_logits(packed), before)


def test_a_released_model_holds_no_matrix() -> None:
    model = tiny_model()
    release(model)

    assert _numbers(model) < 10_000


def test_the_table_of_sizes_is_that_of_gpt2() -> None:
    sizes = {name: round(packed_bytes(ModelConfig(vocab_size=50257), name) / 1e6) for name in PACKED_BYTES}

    assert sizes == {"auto": 326, "fp32": 652, "fp16": 326, "bf16": 326, "int8": 203}


def test_the_fingerprint_depends_on_checkpoint_format_and_kind_of_device() -> None:
    first = fingerprint("a" * 64, "fp16", "cpu")

    others = [fingerprint("b" * 64, "fp16", "cpu"), fingerprint("a" * 64, "int8", "cpu")]
    assert len({first, *others, fingerprint("a" * 64, "fp16", "cuda:0")}) == 4
    assert fingerprint("a" * 64, "bf16", "cuda:0") == fingerprint("a" * 64, "bf16", "cuda:1")
    assert len(first) == 12
    assert int(first, 16) >= 0


def _numbers(model: GPT) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _logits(packed) -> Tensor:  # type: ignore[no-untyped-def]
    runner = ModelRunner(packed, rows=1, length=64)
    return runner.logits(runner.prefill([PromptChunk(0, 0, [1, 2, 3])]))  # (3, V)
