"""The models in memory: loaded on demand, evicted least recently used first, under a cap of memory.

A model's key is run, file, sha256 and format of its parameters. Training may replace model_best.pt at any time: the
next request carries another sha256 and loads the new model, while open requests end with the old one. Attention is
captured with the module itself, which is a model of its own here: packed parameters replace those of the module.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from model_core.budget import packed_bytes
from model_core.checkpoint import LoadedModel, load_checkpoint
from model_core.config import ExperimentConfig
from model_core.errors import CheckpointDamaged, ModelCoreError, is_out_of_memory
from model_core.generation.engine import Engine
from model_core.generation.kv_cache import cache_bytes
from model_core.generation.packed_model import PackedModel, fingerprint
from model_core.generation.quality_gate import QualityGate
from model_core.schemas import ResultWarning
from model_core.storage.checkpoints import CheckpointInfo
from model_core.storage.files import Layout
from model_core.storage.run import Run
from worker.jobs.settings import InferenceSettings

log = logging.getLogger(__name__)

_REPLACED_WITHIN_S, _PAUSE_S = 2.0, 0.25  # replacing a checkpoint and its sidecar takes less time
_MODULE = "module"  # in place of a format: float32 tensors in a module, for attention
_COUNTED = (
    "submitted", "finished", "cancelled", "failed", "prompt_tokens", "completion_tokens", "cached_tokens",
    "scored_tokens",
)  # fmt: skip

Key = tuple[str, str, str, str]  # run, file, sha256, format


class ModelDoesNotFit(ModelCoreError):
    """A model that is larger than the cap of memory."""

    code = "does_not_fit"

    def __init__(self, run: str, need_bytes: int, cap_bytes: int) -> None:
        super().__init__(
            f"the model of run {run!r} needs {need_bytes / 2**20:.1f} MiB with the cache of one sequence; "
            f"this process may use {cap_bytes / 2**20:.1f}"
        )
        self.hint = "raise HEADCOUNT_INFERENCE_MEMORY_GB"


class ModelsBusy(ModelCoreError):
    """The memory is taken by models with open requests."""

    code = "inference_unavailable"

    def __init__(self, run: str) -> None:
        super().__init__(f"no memory for the model of run {run!r} while others are in use; try again in a few seconds")


class DeviceMemoryFull(ModelCoreError):
    """The device has less memory than the cap, or others use it."""

    code = "cuda_oom"

    def __init__(self, run: str) -> None:
        super().__init__(f"the device ran out of memory while it loaded the model of run {run!r}; try again later")
        self.hint = "lower HEADCOUNT_INFERENCE_MEMORY_GB to what the device has free"


class ModelInMemory(ABC):
    """What the cache holds.

    Args:
        run: Name of the run.
        loaded: What was read of the checkpoint.
        weights: Format of the parameters.

    Attributes:
        run: Name of the run.
        info: Sidecar of the checkpoint.
        config: Configuration of the run.
        tokenizer: Tokenizer of the model.
        weights: Format of the parameters.
        used_s: Time of the last use, of `time.monotonic`.
    """

    def __init__(self, run: str, loaded: LoadedModel, weights: str) -> None:
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
        """Stop what runs; open requests end with an error."""

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

    Attributes:
        engine: Engine of the model.
        fingerprint: See `packed_model.fingerprint`.
        warnings: Why the format is another one than requested.
    """

    def __init__(self, run: str, loaded: LoadedModel, packed: PackedModel, engine: Engine) -> None:
        super().__init__(run, loaded, packed.weights)
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
        """Stop the engine; open requests end with an error."""
        self.engine.close()

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
            "open_requests": self.open_requests,
            **asdict(self.engine.stats()),
        }


class ModuleInMemory(ModelInMemory):
    """A model as a module of torch.

    Args:
        run: Name of the run.
        loaded: The module, and what was read with it.

    Attributes:
        loaded: The module, and what was read with it.
        users: Captures that run.
    """

    def __init__(self, run: str, loaded: LoadedModel) -> None:
        super().__init__(run, loaded, _MODULE)
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
        """Do nothing: a capture that runs holds the module itself."""


class ModelCache:
    """Every model of this process. Safe to use from many threads.

    Args:
        layout: Paths of the data root.
        device: Device of the models, as torch writes it.
        settings: Memory, formats and limits.
    """

    def __init__(self, layout: Layout, *, device: str, settings: InferenceSettings) -> None:
        self.layout, self.device, self.settings = layout, device, settings
        self._models: OrderedDict[Key, ModelInMemory] = OrderedDict()  # least recently used first
        self._evicted: list[ModelInMemory] = []  # take no new requests; counted until their requests have ended
        self._formats: dict[Key, str] = {}  # of what was requested, what it became
        self._past: Counter[str] = Counter()  # counters of engines that have stopped
        self._lock, self._loading = threading.Lock(), threading.Lock()
        self._gate = QualityGate(settings.int8_max_loss)

    def get(self, run: str, file: str, sha256: str, weights: str | None = None) -> ServedModel:
        """Return the model of a resolved checkpoint, loading it if necessary, which may take seconds.

        Args:
            run: Name of the run.
            file: File name of the checkpoint.
            sha256: Hash of the file when the reference was resolved, hex. If the file was replaced since and the old
                model is not in memory, the new one is loaded.
            weights: Format of the parameters; None takes that of the settings.

        Returns:
            The model and its engine.

        Raises:
            RunNotFound: There is no such run.
            CheckpointNotReady: The run's checkpoints were deleted.
            CheckpointNotFound: The checkpoint was deleted.
            CheckpointDamaged: The bytes are not those of the sidecar.
            ModelDoesNotFit: The model is larger than the cap.
            ModelsBusy: Other models with open requests take the memory.
            DeviceMemoryFull: The device has no memory left.
        """
        model = self._get((run, file, sha256, weights or self.settings.weights))
        assert isinstance(model, ServedModel)
        return model

    def loaded(self, run: str, file: str, sha256: str, weights: str | None = None) -> ServedModel | None:
        """Return the model of a resolved checkpoint if it is in memory, at once.

        Args:
            run: Name of the run.
            file: File name of the checkpoint.
            sha256: Hash of the file, hex.
            weights: See `get`.

        Returns:
            The model and its engine; None if `get` would have to load it.
        """
        model = self._find((run, file, sha256, weights or self.settings.weights))
        assert model is None or isinstance(model, ServedModel)
        return model

    @contextlib.contextmanager
    def module(self, run: str, file: str, sha256: str) -> Iterator[LoadedModel]:
        """Lend the module of a resolved checkpoint, in float32.

        Args:
            run: Name of the run.
            file: File name of the checkpoint.
            sha256: See `get`.

        Yields:
            The module, which stays in memory as long as the context.

        Raises:
            ModelCoreError: As `get`.
        """
        model = self._get((run, file, sha256, _MODULE))
        assert isinstance(model, ModuleInMemory)
        with self._lock:
            model.users += 1
        try:
            yield model.loaded
        finally:
            with self._lock:
                model.users -= 1

    def info(self) -> list[dict[str, Any]]:
        """Describe the models that are loaded.

        Returns:
            Their descriptions, least recently used first.
        """
        with self._lock:
            models = list(self._models.values())
        return [model.describe() for model in models]

    def totals(self) -> dict[str, int]:
        """Add up the counters of all engines of this process, those that have stopped included.

        Returns:
            Requests and tokens since its start.
        """
        with self._lock:
            counts, models = Counter(self._past), [*self._models.values(), *self._evicted]
        for model in models:
            counts.update(_counters(model))
        return {name: counts[name] for name in _COUNTED}

    @property
    def open_requests(self) -> int:
        """Requests that run or wait."""
        with self._lock:
            models = [*self._models.values(), *self._evicted]
        return sum(model.open_requests for model in models)

    def sweep(self) -> None:
        """Free models: evicted ones without open requests, idle ones, and those that make the caches too large."""
        now_s = time.monotonic()
        with self._lock:
            for key, model in list(self._models.items()):
                if model.open_requests:
                    model.used_s = now_s
                elif now_s - model.used_s > self.settings.idle_unload_s:
                    self._evict(key, "idle")
            while self._used_bytes() > self.settings.memory_bytes and (unused := self._idle_key()) is not None:
                self._evict(unused, "memory")
            ended = [model for model in self._evicted if not model.open_requests]
        for model in ended:
            model.close()
            with self._lock:
                if model in self._evicted:
                    self._evicted.remove(model)
                    self._past.update(_counters(model))

    def close(self) -> None:
        """Stop every engine; open requests end with an error."""
        with self._lock:
            everything = [*self._models.values(), *self._evicted]
            self._models.clear()
            self._evicted.clear()
        for model in everything:
            model.close()

    def _get(self, wanted: Key) -> ModelInMemory:
        deadline = time.monotonic() + _REPLACED_WITHIN_S
        while True:
            try:
                return self._find(wanted) or self._load(wanted)
            except (CheckpointDamaged, FileNotFoundError):
                # expected between the two renames that replace a checkpoint and its sidecar
                if model := self._any_version(wanted):
                    return model
                if time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE_S)

    def _find(self, wanted: Key) -> ModelInMemory | None:
        with self._lock:
            key = (*wanted[:3], self._formats.get(wanted, wanted[3]))
            model = self._models.get(key)
            if model is not None and not model.alive:
                self._evicted.append(self._models.pop(key))
                model = None
            if model is not None:
                self._models.move_to_end(key)
                model.used_s = time.monotonic()
        return model

    def _any_version(self, wanted: Key) -> ModelInMemory | None:
        run, file, _, weights = wanted
        is_module = weights == _MODULE
        with self._lock:
            same = [
                model
                for key, model in self._models.items()
                if key[:2] == (run, file) and (key[3] == _MODULE) == is_module and model.alive
            ]
        return same[-1] if same else None

    def _load(self, wanted: Key) -> ModelInMemory:
        name, file, _, weights = wanted
        with self._loading:  # one at a time: two at once take twice the memory and are no faster
            run = Run.open(self.layout.run(name))
            info = run.resolve(file)  # the sidecar may be newer than the one of the request
            if model := self._find((name, info.file, info.sha256, weights)):
                return model
            started = time.monotonic()
            try:
                model = self._loaded_module(run, info) if weights == _MODULE else self._served(run, info, weights)
            except BaseException as error:
                if is_out_of_memory(error):
                    raise DeviceMemoryFull(name) from error
                raise
            model = self._add(model, weights)
        seconds = time.monotonic() - started
        step = model.info.step
        log.info("model loaded run=%s file=%s step=%d weights=%s in_s=%.2f", name, file, step, model.weights, seconds)
        return model

    def _loaded_module(self, run: Run, info: CheckpointInfo) -> ModuleInMemory:
        self._make_room(run.name, packed_bytes(run.config().model, "fp32"))
        return ModuleInMemory(run.name, load_checkpoint(run, info, device=self.device))

    def _served(self, run: Run, info: CheckpointInfo, weights: str) -> ServedModel:
        config = run.config()  # the checkpoint has its own, but is only read when it is known to fit
        rows = self._rows_that_fit(run.name, config, weights)
        self._make_room(run.name, packed_bytes(config.model, weights) + _row_bytes(config))
        loaded = load_checkpoint(run, info, device=self.device)
        packed = self._gate.pack(loaded, weights, run=run, layout=self.layout)
        settings = self.settings
        engine = Engine(
            packed,
            loaded.tokenizer,
            max_rows=rows,
            max_queue=settings.max_queue,
            prefill_tokens=settings.prefill_tokens,
            prefix_cache_bytes=settings.prefix_cache_bytes,
        )
        return ServedModel(run.name, loaded, packed, engine)

    def _add(self, model: ModelInMemory, weights: str) -> ModelInMemory:
        """Hold a model, and evict other versions of its file."""
        with self._lock:
            run, file, sha256, _ = model.key
            self._formats[run, file, sha256, weights] = model.weights
            for key in [key for key in self._models if key[:2] == (run, file) and key[2] != sha256]:
                self._evict(key, "replaced")
            before = self._models.get(model.key)
            if before is not None and before.alive:  # the same format under two names
                self._evicted.append(model)
                model = before
            self._models[model.key] = model
        self.sweep()
        return model

    def _rows_that_fit(self, run: str, config: ExperimentConfig, weights: str) -> int:
        cap, size, row = self.settings.memory_bytes, packed_bytes(config.model, weights), _row_bytes(config)
        if cap - size < row:
            raise ModelDoesNotFit(run, size + row, cap)
        return min(self.settings.max_rows, (cap - size) // row)

    def _make_room(self, run: str, size_bytes: int) -> None:
        if size_bytes > self.settings.memory_bytes:
            raise ModelDoesNotFit(run, size_bytes, self.settings.memory_bytes)
        while True:
            self.sweep()
            with self._lock:
                if self._used_bytes() + size_bytes <= self.settings.memory_bytes:
                    return
                oldest = self._idle_key() or next(iter(self._models), None)
                if oldest is None:
                    raise ModelsBusy(run)
                self._evict(oldest, "memory")

    def _used_bytes(self) -> int:
        return sum(model.size_bytes for model in (*self._models.values(), *self._evicted))

    def _idle_key(self) -> Key | None:
        return next((key for key, model in self._models.items() if not model.open_requests), None)

    def _evict(self, key: Key, reason: str) -> None:
        self._evicted.append(self._models.pop(key))
        log.info("model evicted run=%s file=%s weights=%s reason=%s", key[0], key[1], key[3], reason)


def _row_bytes(config: ExperimentConfig) -> int:
    return cache_bytes(config.model, rows=1, length=config.model.block_size)


def _counters(model: ModelInMemory) -> dict[str, int]:
    if not isinstance(model, ServedModel):
        return {}
    stats = asdict(model.engine.stats())
    return {name: stats[name] for name in _COUNTED}
