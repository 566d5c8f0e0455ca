"""What the model cache holds: packed parameters with an engine for text and scores, or a module for attention."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import Any

from model_core.budget import packed_bytes
from model_core.checkpoint import LoadedModel
from model_core.generation.engine import Engine
from model_core.generation.forward.packed_model import PackedModel, fingerprint
from model_core.schemas import ResultWarning
from worker.inference.memory_budget import Reservation

MODULE = "module"  # in place of a format: float32 tensors in a module, for attention

Key = tuple[str, str, str, str]  # run, file, sha256, format


class ModelInMemory(ABC):
    """What the cache holds.

    Args:
        run: Name of the run.
        loaded: What was read of the checkpoint.
        weights: Format of the parameters.
        memory: Its memory, which `close` returns.

    Attributes:
        run: Name of the run.
        info: Sidecar of the checkpoint.
        config: Configuration of the run.
        tokenizer: Tokenizer of the model.
        weights: Format of the parameters.
        memory: Its memory.
        used_s: Time of the last use, of `time.monotonic`.
    """

    def __init__(self, run: str, loaded: LoadedModel, weights: str, memory: Reservation) -> None:
        self.memory = memory
        self.run, self.info, self.config, self.tokenizer = run, loaded.info, loaded.config, loaded.tokenizer
        self.weights, self.used_s = weights, time.monotonic()

    @property
    @abstractmethod
    def size_bytes(self) -> int:
        """Memory that it takes now."""

    @property
    @abstractmethod
    def open_requests(self) -> int:
        """Requests that run or wait."""

    @property
    def alive(self) -> bool:
        """Whether it takes requests."""
        return True

    @property
    def key(self) -> Key:
        """Key in the cache."""
        return (self.run, self.info.file, self.info.sha256, self.weights)

    @abstractmethod
    def close(self) -> None:
        """Stop what runs, and return the memory; open requests end with an error."""

    @abstractmethod
    def close_if_unused(self) -> bool:
        """Close it if no request is open.

        Returns:
            Whether it is closed.
        """

    def describe(self) -> dict[str, Any]:
        """Describe it for the heartbeat and /healthz.

        Returns:
            Values of JSON.
        """
        run, file, sha256, weights = self.key
        return {"run": run, "file": file, "sha256": sha256, "weights": weights}


class ServedModel(ModelInMemory):
    """A packed model and the engine that computes with it.

    Args:
        run: Name of the run.
        loaded: What was read of the checkpoint.
        packed: The parameters.
        engine: Engine of the model.
        memory: See `ModelInMemory`.

    Attributes:
        engine: Engine of the model.
        fingerprint: See `packed_model.fingerprint`.
        warnings: Why the format is another one than requested.
    """

    def __init__(self, run: str, loaded: LoadedModel, packed: PackedModel, engine: Engine, memory: Reservation) -> None:
        super().__init__(run, loaded, packed.weights, memory)
        self.engine = engine
        self.fingerprint = fingerprint(self.info.sha256, packed.weights, packed.device)
        self.warnings: tuple[ResultWarning, ...] = packed.warnings
        self._weight_bytes = packed_bytes(self.config.model, packed.weights)

    @property
    def size_bytes(self) -> int:
        """Parameters and caches in use."""
        stats = self.engine.stats()
        return self._weight_bytes + stats.cache_bytes + stats.prefix_bytes

    @property
    def open_requests(self) -> int:
        """Requests that run or wait."""
        return self.engine.open_requests

    @property
    def alive(self) -> bool:
        """Whether the engine takes requests."""
        return self.engine.alive

    def close(self) -> None:
        """Stop the engine, and return the memory; open requests end with an error."""
        self.engine.close()
        self.memory.close()

    def close_if_unused(self) -> bool:
        """Stop the engine if no request is open.

        Returns:
            Whether it has stopped.
        """
        if is_closed := self.engine.close_if_unused():
            self.memory.close()
        return is_closed

    def describe(self) -> dict[str, Any]:
        """Describe it for the heartbeat and /healthz.

        Returns:
            Values of JSON, with the engine's counters.
        """
        return {
            **super().describe(),
            "fingerprint": self.fingerprint,
            "warnings": [warning.model_dump() for warning in self.warnings],
            "size_bytes": self.size_bytes,
            **asdict(self.engine.stats()),
        }


class ModuleInMemory(ModelInMemory):
    """A model as a module of torch.

    Args:
        run: Name of the run.
        loaded: The module, and what was read with it.
        memory: See `ModelInMemory`.

    Attributes:
        loaded: The module, and what was read with it.
        users: Captures that run.
    """

    def __init__(self, run: str, loaded: LoadedModel, memory: Reservation) -> None:
        super().__init__(run, loaded, MODULE, memory)
        self.loaded, self.users = loaded, 0

    @property
    def size_bytes(self) -> int:
        """The parameters."""
        return packed_bytes(self.config.model, "fp32")

    @property
    def open_requests(self) -> int:
        """Captures that run."""
        return self.users

    def close(self) -> None:
        """Return the memory; a capture that runs holds the module itself."""
        self.memory.close()

    def close_if_unused(self) -> bool:
        """Return the memory if no capture runs.

        Returns:
            Whether it was returned.
        """
        if self.users:
            return False
        self.close()
        return True
