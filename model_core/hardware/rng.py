"""The random numbers of the devices that a run uses: read, and put back."""

from __future__ import annotations

from typing import Any

import torch


def rng_state(device: str) -> dict[str, Any]:
    """Where the generators are, the CPU's and the device's."""
    cuda = torch.cuda.get_rng_state(device) if device.startswith("cuda") else None
    mps = torch.mps.get_rng_state() if device == "mps" else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda, "mps": mps}


def restore_rng(state: dict[str, Any], device: str) -> None:
    """Go on from there; a device that the state does not know keeps its own numbers."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and device.startswith("cuda"):
        torch.cuda.set_rng_state(state["cuda"], device)
    if state.get("mps") is not None and device == "mps":
        torch.mps.set_rng_state(state["mps"])
