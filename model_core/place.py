"""Which of the processes that train one model together this one is, as torchrun and our launcher tell it.

Torch-free: the program must know whether it leads before it touches a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from model_core.errors import InvalidParameter

LISTENER = "HEADCOUNT_LISTENER"  # descriptor of a socket that listens at MASTER_PORT, inherited by rank 0
_TORCHRUN = "TORCHELASTIC_RUN_ID"
_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class Place:
    """One process among those that train together.

    Attributes:
        rank: Its number; 0 leads: it alone writes.
        world: How many there are.
        local: Its number on this host, and the GPU that it takes.
        local_world: How many are on this host.
        port: Where they meet on loopback, when our launcher started them; None: as torchrun tells.
        listener: Descriptor of the socket that listens there already.
        launched: Whether a launcher started it, with which it ends.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    local_world: int = 1
    port: int | None = None
    listener: int | None = None
    launched: bool = False

    @property
    def leads(self) -> bool:
        """Whether it is the one that writes."""
        return self.rank == 0


def place_of(environment: Mapping[str, str]) -> Place:
    """Read a process' place from its variables.

    Args:
        environment: With RANK and WORLD_SIZE it is one of several; without them it is alone.

    Raises:
        InvalidParameter: A variable is no number, or a number that cannot be.
    """
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return Place()
    rank, world = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    local = _number(environment, "LOCAL_RANK", "0")
    local_world = _number(environment, "LOCAL_WORLD_SIZE", "1")
    if not (rank < world and local < local_world <= world):
        told = " ".join(f"{name}={environment.get(name)}" for name in _NAMES)
        raise InvalidParameter(f"{told}: a rank is below the number of processes")
    if LISTENER not in environment:
        return Place(rank, world, local, local_world, launched=_TORCHRUN in environment)
    port, listener = _number(environment, "MASTER_PORT"), _number(environment, LISTENER)
    return Place(rank, world, local, local_world, port, listener if rank == 0 else None, launched=True)


def _number(environment: Mapping[str, str], name: str, default: str = "") -> int:
    text = environment.get(name, default)
    if not (text.isascii() and text.isdigit()):
        raise InvalidParameter(f"{name}={text!r} in the environment is not a whole number from 0")
    return int(text)
