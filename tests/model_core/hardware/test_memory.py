"""The error when memory runs out, and the micro batch that would fit."""

import pytest
import torch

from model_core.budget import compute_budget
from model_core.config import ExperimentConfig
from model_core.entrypoint import describe
from model_core.errors import OutOfMemory, is_out_of_memory
from model_core.hardware.memory import fewer_rows, fitting_rows

GIB = 1 << 30


def config(batch_size: int, rows: int) -> ExperimentConfig:
    training = {"batch_size": batch_size, "sequence_length": 1024, "total_batch_size": rows * 1024}
    return ExperimentConfig.model_validate({"training": training})


@pytest.mark.parametrize(
    ("batch_size", "rows", "smaller"),
    [(16, 512, 8), (6, 6, 3), (3, 6, 1), (5, 15, 1), (12, 60, 6), (2, 2, 1), (1, 8, None)],
)
def test_the_next_size_is_the_half_or_the_nearest_below_that_divides_a_step(
    batch_size: int, rows: int, smaller: int | None
) -> None:
    assert fewer_rows(config(batch_size, rows), batch_size) == smaller


def test_the_advised_size_fits_by_the_estimate_and_is_at_most_half() -> None:
    wanted = config(64, 512)
    needs_16 = compute_budget(config(16, 512)).memory.required_bytes
    assert fitting_rows(wanted, 64, needs_16) == 16
    assert fitting_rows(wanted, 64, needs_16 - 1) == 8
    assert fitting_rows(wanted, 64, 10_000 * GIB) == 32
    assert fitting_rows(wanted, 64, None) == 32
    assert fitting_rows(wanted, 64, GIB // 2) is None


@pytest.mark.parametrize("fitting", [4, None])
def test_the_advice_is_what_lowers_memory(fitting: int | None) -> None:
    error = describe(OutOfMemory("cuda:0", 7, 16, peak_bytes=3 * GIB // 2, fitting=fitting))
    assert (error["code"], error["step"]) == ("cuda_oom", 7)
    assert all(value in error["detail"] for value in ("cuda:0", "7", "16", "1.50 GiB"))
    assert ("training.batch_size to 4" in error["hint"]) == (fitting == 4)
    assert "training.sequence_length" in error["hint"]
    assert "training.gradient_checkpointing" in error["hint"]
    assert "total_batch_size" not in error["hint"]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:126] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GiB)"),
    ],
)
def test_a_lack_of_memory_is_recognised_wherever_it_happens(error: Exception) -> None:
    assert is_out_of_memory(error)
    described = describe(error)
    assert described["code"] == "cuda_oom"
    assert "training.batch_size" in described["hint"]
    assert "total_batch_size" not in described["hint"]


def test_another_error_is_none() -> None:
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))
