"""The models in memory: loaded when asked for, replaced when their file is, the least used leave first.

A model is known by run, file and sha256. Training may replace model_best.pt at any time; the next request sees
another hash beside it and loads the new one, while requests in work end with the old.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

from model_core.budget import budget_of
from model_core.checkpoint import LoadedModel, load_model
from model_core.config import ExperimentConfig
from model_core.errors import CheckpointDamaged, ModelCoreError
from model_core.generation.engine import Engine
from model_core.generation.model_runner import cache_bytes
from model_core.storage.checkpoints import CheckpointInfo
from model_core.storage.files import Layout
from model_core.storage.run import Run

log = logging.getLogger(__name__)

MAX_BATCH = 8
_REPLACED_WITHIN_S, _PAUSE_S = 2.0, 0.25  # a checkpoint being replaced is whole again in this time
_FLOAT32_BYTES = 4

Key = tuple[str, str, str]  # run, file, sha256


@dataclass(frozen=True)
class ServedModel:
    """A loaded model and the engine that writes with it."""

    run: str
    loaded: LoadedModel
    engine: Engine
    size_bytes: int

    @property
    def key(self) -> Key:
        """What it is known by."""
        return (self.run, self.loaded.info.file, self.loaded.info.sha256)


class Models:
    """Every model of this process; safe to use from many threads.

    Args:
        layout: Where runs are.
        device: As torch names it.
        memory_bytes: Cap for parameters and caches together.
        max_batch: Texts that one model writes at once; fewer where memory is short.
    """

    def __init__(self, layout: Layout, *, device: str, memory_bytes: int, max_batch: int = MAX_BATCH) -> None:
        self.layout, self.device, self.memory_bytes = layout, device, memory_bytes
        self._max_batch = max_batch
        self._served: OrderedDict[Key, ServedModel] = OrderedDict()  # the least used first
        self._leaving: list[ServedModel] = []  # not for new requests; still counted
        self._lock, self._loading = threading.Lock(), threading.Lock()

    def get(self, run: str, checkpoint: str) -> ServedModel:
        """Find or load a model; may take seconds.

        Raises:
            RunNotFound: There is no such run.
            CheckpointNotReady: It has no checkpoint yet.
            CheckpointNotFound: It has others.
            CheckpointDamaged: Its bytes are not those that were written.
            ModelDoesNotFit: The cap is too small for it.
            ModelsBusy: There is no room now.
        """
        opened = Run.open(self.layout.run(run))
        deadline = time.monotonic() + _REPLACED_WITHIN_S
        while True:
            info = opened.resolve(checkpoint)
            try:
                return self._find((run, info.file, info.sha256)) or self._load(opened, info)
            except (CheckpointDamaged, FileNotFoundError):
                # seen also between the two renames that replace a checkpoint and its sidecar
                if served := self._older(run, info.file):
                    return served
                if time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE_S)

    def info(self) -> list[dict[str, str]]:
        """Run, file and sha256 of each model that answers at once."""
        with self._lock:
            return [{"run": run, "file": file, "sha256": sha256} for run, file, sha256 in self._served]

    @property
    def open_requests(self) -> int:
        """Generations in work or in line."""
        with self._lock:
            return sum(served.engine.open_requests for served in (*self._served.values(), *self._leaving))

    def sweep(self) -> None:
        """Free the models that are leaving and have no request in work."""
        with self._lock:
            idle = [served for served in self._leaving if not served.engine.open_requests]
            self._leaving = [served for served in self._leaving if served not in idle]
        for served in idle:
            served.engine.close()

    def close(self) -> None:
        """End every engine and its requests."""
        with self._lock:
            everything = [*self._served.values(), *self._leaving]
            self._served.clear()
            self._leaving.clear()
        for served in everything:
            served.engine.close()

    def _find(self, key: Key) -> ServedModel | None:
        with self._lock:
            served = self._served.get(key)
            if served is not None and not served.engine.alive:
                self._leaving.append(self._served.pop(key))
                served = None
            if served is not None:
                self._served.move_to_end(key)
        return served

    def _older(self, run: str, file: str) -> ServedModel | None:
        with self._lock:
            same = [served for key, served in self._served.items() if key[:2] == (run, file) and served.engine.alive]
        return same[-1] if same else None

    def _load(self, run: Run, info: CheckpointInfo) -> ServedModel:
        with self._loading:  # one at a time: two at once would only be slower and twice as large
            if served := self._find((run.name, info.file, info.sha256)):
                return served
            config = run.config()
            rows = self._rows_that_fit(run.name, config)
            size_bytes = _model_bytes(config) + rows * _row_bytes(config)
            self._make_room(run.name, size_bytes)
            started = time.monotonic()
            loaded = load_model(run, info.file, device=self.device)
            engine = Engine(loaded.model, loaded.tokenizer, max_batch=rows)
            served = ServedModel(run.name, loaded, engine, size_bytes)
            self._take(served)
        seconds = time.monotonic() - started
        log.info("model loaded run=%s file=%s step=%d in_s=%.2f", run.name, info.file, loaded.info.step, seconds)
        return served

    def _take(self, served: ServedModel) -> None:
        """Serve a model; what it replaces leaves."""
        with self._lock:
            for key in [key for key in self._served if key[:2] == served.key[:2]]:
                self._leaving.append(self._served.pop(key))
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
                used = sum(served.size_bytes for served in (*self._served.values(), *self._leaving))
                if used + size_bytes <= self.memory_bytes:
                    return
                if not self._served:
                    raise ModelsBusy(run)
                key = next(
                    (k for k, served in self._served.items() if not served.engine.open_requests),
                    next(iter(self._served)),
                )
                self._leaving.append(self._served.pop(key))
            log.info("model left run=%s file=%s", key[0], key[1])


def _model_bytes(config: ExperimentConfig) -> int:
    return budget_of(config).parameters * _FLOAT32_BYTES


def _row_bytes(config: ExperimentConfig) -> int:
    return cache_bytes(config.model, rows=1, length=config.model.block_size)


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
