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
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

from model_core.budget import packed_bytes
from model_core.checkpoint import LoadedModel, load_checkpoint
from model_core.config import ExperimentConfig
from model_core.errors import CheckpointDamaged, ModelCoreError, is_out_of_memory
from model_core.generation.engine import Engine
from model_core.generation.forward.kv_cache import cache_bytes
from model_core.generation.forward.model_runner import least_positions, padded_rows
from model_core.generation.forward.quality_gate import QualityGate
from model_core.hardware.process_environment import run_in_new_thread
from model_core.storage.checkpoints import CheckpointInfo
from model_core.storage.files import Layout
from model_core.storage.run import Run
from worker.inference.loaded_models import MODULE, Key, ModelInMemory, ModuleInMemory, ServedModel
from worker.inference.memory_budget import MemoryBudget, Reservation
from worker.jobs.settings import InferenceSettings

log = logging.getLogger(__name__)

_REPLACED_WITHIN_S, _PAUSE_S = 2.0, 0.25  # replacing a checkpoint and its sidecar takes less time
_COUNTED = (
    "submitted", "open_requests", "finished", "cancelled", "failed",
    "prompt_tokens", "completion_tokens", "cached_tokens", "scored_tokens",
)  # fmt: skip


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
        self._memory = MemoryBudget(settings.memory_bytes)

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
        model = self._get((run, file, sha256, MODULE))
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
        """Free models: evicted ones without open requests, idle ones, and one that is unused while others wait."""
        now_s = time.monotonic()
        with self._lock:
            for key, model in list(self._models.items()):
                if model.open_requests:
                    model.used_s = now_s
                elif now_s - model.used_s > self.settings.idle_unload_s:
                    self._evict(key, "idle")
            if self._memory.is_short and (unused := self._idle_key()) is not None:
                self._evict(unused, "memory")
            evicted = list(self._evicted)
        for model in evicted:
            if not model.close_if_unused():
                continue
            with self._lock:
                if model in self._evicted:
                    self._evicted.remove(model)
                    self._past.update(_counters(model))

    def close(self) -> None:
        """Stop every engine; open requests end with an error."""
        with self._lock:
            everything = [*self._models.values(), *self._evicted]
            self._models.clear()
            self._evicted[:] = everything
        for model in everything:
            model.close()
        self.sweep()

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
        is_module = weights == MODULE
        with self._lock:
            same = [
                model
                for key, model in self._models.items()
                if key[:2] == (run, file) and (key[3] == MODULE) == is_module and model.alive
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
                load = self._loaded_module if weights == MODULE else partial(self._served, weights=weights)
                model = run_in_new_thread(lambda: load(run, info))
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
        memory = self._reserve(run.name, packed_bytes(run.config().model, "fp32"))
        with _returned_on_failure(memory):
            return ModuleInMemory(run.name, load_checkpoint(run, info, device=self.device), memory)

    def _served(self, run: Run, info: CheckpointInfo, *, weights: str) -> ServedModel:
        config = run.config()  # the checkpoint has its own, but is only read when it is known to fit
        memory = self._reserve(run.name, packed_bytes(config.model, weights) + _row_bytes(config))
        with _returned_on_failure(memory):
            loaded = load_checkpoint(run, info, device=self.device)
            packed = self._gate.pack(loaded, weights, run=run, layout=self.layout)
        weight_bytes = packed_bytes(config.model, packed.weights)
        if weight_bytes + _row_bytes(config) > memory.least_bytes:  # a format that replaces the wanted one
            memory.close()
            memory = self._reserve(run.name, weight_bytes + _row_bytes(config))
        settings, rows = self.settings, self._rows(config, weight_bytes, memory)
        engine = Engine(
            packed,
            loaded.tokenizer,
            max_rows=rows,
            max_queue=settings.max_queue,
            prefill_tokens=settings.prefill_tokens,
            prefix_cache_bytes=settings.prefix_cache_bytes,
            take_memory=lambda cache_bytes: memory.resize(weight_bytes + cache_bytes),
        )
        return ServedModel(run.name, loaded, packed, engine, memory)

    def _rows(self, config: ExperimentConfig, weight_bytes: int, memory: Reservation) -> int:
        """Choose the most texts at once; a cache on a GPU has all of its rows from the start."""
        model, settings = config.model, self.settings
        rows = min(settings.max_rows, (settings.memory_bytes - weight_bytes) // _row_bytes(config))
        while self.device != "cpu" and rows > 1:
            if memory.resize(weight_bytes + cache_bytes(model, rows=padded_rows(rows) + 1, length=model.block_size)):
                break
            rows //= 2
        return rows

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

    def _reserve(self, run: str, size_bytes: int) -> Reservation:
        """Reserve memory for a model; idle ones leave for it, then the one that is unused for longest."""
        if size_bytes > self.settings.memory_bytes:
            raise ModelDoesNotFit(run, size_bytes, self.settings.memory_bytes)
        while True:
            self.sweep()
            if (memory := self._memory.reserve(size_bytes)) is not None:
                return memory
            with self._lock:
                oldest = self._idle_key()
                if oldest is None:  # one in use has to leave, unless enough of them do already
                    staying = sum(model.memory.size_bytes for model in self._models.values())
                    if staying + size_bytes <= self.settings.memory_bytes:
                        raise ModelsBusy(run)
                    oldest = next(iter(self._models))
                self._evict(oldest, "memory")

    def _idle_key(self) -> Key | None:
        return next((key for key, model in self._models.items() if not model.open_requests), None)

    def _evict(self, key: Key, reason: str) -> None:
        self._evicted.append(self._models.pop(key))
        log.info("model evicted run=%s file=%s weights=%s reason=%s", key[0], key[1], key[3], reason)


@contextlib.contextmanager
def _returned_on_failure(memory: Reservation) -> Iterator[None]:
    try:
        yield
    except BaseException:
        memory.close()
        raise


def _row_bytes(config: ExperimentConfig) -> int:
    model = config.model
    return cache_bytes(model, rows=1, length=max(model.block_size, least_positions(model)))


def _counters(model: ModelInMemory) -> dict[str, int]:
    if not isinstance(model, ServedModel):
        return {}
    stats = asdict(model.engine.stats())
    return {name: stats[name] for name in _COUNTED}
