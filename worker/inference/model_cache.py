"""The models in memory: loaded on demand, evicted least recently used first, under a cap of memory.

A model's key is run, file and sha256. Training may replace model_best.pt at any time: the next request carries another
sha256 and loads the new model, while open requests end with the old one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

from model_core.budget import compute_budget
from model_core.checkpoint import LoadedModel, load_checkpoint
from model_core.config import ExperimentConfig
from model_core.errors import CheckpointDamaged, ModelCoreError
from model_core.generation.engine import Engine
from model_core.generation.kv_cache import cache_bytes
from model_core.generation.packed_model import pack_model
from model_core.storage.checkpoints import CheckpointInfo
from model_core.storage.files import Layout
from model_core.storage.run import Run

log = logging.getLogger(__name__)

MAX_BATCH = 8
_REPLACED_WITHIN_S, _PAUSE_S = 2.0, 0.25  # replacing a checkpoint and its sidecar takes less time
_FLOAT32_BYTES = 4

Key = tuple[str, str, str]  # run, file, sha256


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


@dataclass(frozen=True)
class ServedModel:
    """A loaded model and the engine that generates with it.

    Attributes:
        run: Name of the run.
        loaded: Model, configuration, tokenizer and sidecar.
        engine: Engine of the model.
        size_bytes: Parameters and KV cache.
    """

    run: str
    loaded: LoadedModel
    engine: Engine
    size_bytes: int

    @property
    def key(self) -> Key:
        """Key in the cache."""
        return (self.run, self.loaded.info.file, self.loaded.info.sha256)


class ModelCache:
    """Every model of this process. Safe to use from many threads.

    Args:
        layout: Paths of the data root.
        device: Device of the models, as torch writes it.
        memory_bytes: Cap for parameters and KV caches together.
        max_batch: Sequences that one model decodes at once; fewer where memory is short.
    """

    def __init__(self, layout: Layout, *, device: str, memory_bytes: int, max_batch: int = MAX_BATCH) -> None:
        self.layout, self.device, self.memory_bytes = layout, device, memory_bytes
        self._max_batch = max_batch
        self._served: OrderedDict[Key, ServedModel] = OrderedDict()  # least recently used first
        self._evicted: list[ServedModel] = []  # take no new requests; counted until their requests have ended
        self._lock, self._loading = threading.Lock(), threading.Lock()

    def get(self, run: str, file: str, sha256: str) -> ServedModel:
        """Return the model of a resolved checkpoint, loading it if necessary, which may take seconds.

        Args:
            run: Name of the run.
            file: File name of the checkpoint.
            sha256: Hash of the file when the reference was resolved, hex. If the file was replaced since and the old
                model is not in memory, the new one is loaded.

        Returns:
            The model and its engine.

        Raises:
            RunNotFound: There is no such run.
            CheckpointNotReady: The run's checkpoints were deleted.
            CheckpointNotFound: The checkpoint was deleted.
            CheckpointDamaged: The bytes are not those of the sidecar.
            ModelDoesNotFit: The model is larger than the cap.
            ModelsBusy: Other models with open requests take the memory.
        """
        deadline = time.monotonic() + _REPLACED_WITHIN_S
        while True:
            try:
                return self._find((run, file, sha256)) or self._load(run, file)
            except (CheckpointDamaged, FileNotFoundError):
                # expected between the two renames that replace a checkpoint and its sidecar
                if served := self._any_version(run, file):
                    return served
                if time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE_S)

    def info(self) -> list[dict[str, str]]:
        """List the models that are loaded.

        Returns:
            ``{run, file, sha256}`` of each, least recently used first.
        """
        with self._lock:
            return [{"run": run, "file": file, "sha256": sha256} for run, file, sha256 in self._served]

    @property
    def open_requests(self) -> int:
        """Generations that run or wait."""
        with self._lock:
            return sum(served.engine.open_requests for served in (*self._served.values(), *self._evicted))

    def sweep(self) -> None:
        """Free the evicted models that have no open request."""
        with self._lock:
            idle = [served for served in self._evicted if not served.engine.open_requests]
            self._evicted = [served for served in self._evicted if served not in idle]
        for served in idle:
            served.engine.close()

    def close(self) -> None:
        """Stop every engine; open requests end with an error."""
        with self._lock:
            everything = [*self._served.values(), *self._evicted]
            self._served.clear()
            self._evicted.clear()
        for served in everything:
            served.engine.close()

    def _find(self, key: Key) -> ServedModel | None:
        with self._lock:
            served = self._served.get(key)
            if served is not None and not served.engine.alive:
                self._evicted.append(self._served.pop(key))
                served = None
            if served is not None:
                self._served.move_to_end(key)
        return served

    def _any_version(self, run: str, file: str) -> ServedModel | None:
        with self._lock:
            same = [served for key, served in self._served.items() if key[:2] == (run, file) and served.engine.alive]
        return same[-1] if same else None

    def _load(self, name: str, file: str) -> ServedModel:
        with self._loading:  # one at a time: two at once take twice the memory and are no faster
            run = Run.open(self.layout.run(name))
            info = run.resolve(file)  # the sidecar may be newer than the one of the request
            if served := self._find((name, info.file, info.sha256)):
                return served
            started = time.monotonic()
            served = self._loaded(run, info)
            self._add(served)
        seconds = time.monotonic() - started
        log.info("model loaded run=%s file=%s step=%d in_s=%.2f", name, file, served.loaded.info.step, seconds)
        return served

    def _loaded(self, run: Run, info: CheckpointInfo) -> ServedModel:
        config = run.config()  # the checkpoint has its own, but is only read when it is known to fit
        rows = self._rows_that_fit(run.name, config)
        size_bytes = _model_bytes(config) + rows * _row_bytes(config)
        self._make_room(run.name, size_bytes)
        loaded = load_checkpoint(run, info, device=self.device)
        engine = Engine(pack_model(loaded.model, loaded.tokenizer.n_vocab), loaded.tokenizer, max_rows=rows)
        return ServedModel(run.name, loaded, engine, size_bytes)

    def _add(self, served: ServedModel) -> None:
        """Serve a model, and evict other versions of its file."""
        with self._lock:
            for key in [key for key in self._served if key[:2] == served.key[:2]]:
                self._evicted.append(self._served.pop(key))
            self._served[served.key] = served
        self.sweep()

    def _rows_that_fit(self, run: str, config: ExperimentConfig) -> int:
        left, row = self.memory_bytes - _model_bytes(config), _row_bytes(config)
        if left < row:
            raise ModelDoesNotFit(run, _model_bytes(config) + row, self.memory_bytes)
        return min(self._max_batch, left // row)

    def _make_room(self, run: str, size_bytes: int) -> None:
        while True:
            self.sweep()
            with self._lock:
                used = sum(served.size_bytes for served in (*self._served.values(), *self._evicted))
                if used + size_bytes <= self.memory_bytes:
                    return
                if not self._served:
                    raise ModelsBusy(run)
                key = next(
                    (k for k, served in self._served.items() if not served.engine.open_requests),
                    next(iter(self._served)),
                )
                self._evicted.append(self._served.pop(key))
            log.info("model evicted run=%s file=%s", key[0], key[1])


def _model_bytes(config: ExperimentConfig) -> int:
    return compute_budget(config).parameters * _FLOAT32_BYTES


def _row_bytes(config: ExperimentConfig) -> int:
    return cache_bytes(config.model, rows=1, length=config.model.block_size)
