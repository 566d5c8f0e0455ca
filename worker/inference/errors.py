"""Errors of the inference process, and the HTTP status of every code that can leave it."""

from __future__ import annotations

from collections.abc import Mapping

from model_core.errors import ModelCoreError

STATUS: Mapping[str, int] = {
    "malformed_body": 400,
    "run_not_found": 404,
    "checkpoint_not_found": 404,
    "example_not_found": 404,
    "dataset_not_found": 404,
    "checkpoint_not_ready": 409,
    "checkpoint_damaged": 409,
    "dataset_not_ready": 409,
    "attention_too_large": 422,
    "does_not_fit": 422,
    "invalid_config": 422,
    "invalid_data": 422,
    "invalid_parameter": 422,
    "not_available": 422,
    "prompt_too_long": 422,
    "cuda_oom": 503,
    "inference_unavailable": 503,
    "disk_full": 507,
}  # any other code is a 500


class ModelDoesNotFit(ModelCoreError):
    """A model that the cap can never hold."""

    code = "does_not_fit"

    def __init__(self, run: str, need_bytes: int, cap_bytes: int) -> None:
        super().__init__(
            f"the model of run {run!r} needs {need_bytes / 2**20:.1f} MiB with room for one text; "
            f"this process may use {cap_bytes / 2**20:.1f}"
        )
        self.hint = "raise HEADCOUNT_INFERENCE_MEMORY_GB"


class ModelsBusy(ModelCoreError):
    """The cap is taken by models that are in use."""

    code = "inference_unavailable"

    def __init__(self, run: str) -> None:
        super().__init__(f"no room for the model of run {run!r} while others are in use; try again in a few seconds")
