"""One open request to the engine of a model, seen from the event loop: loaded, submitted, within a deadline, cancelled.

Generation and scoring differ in what they submit and in what they make of the events.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from typing import Generic, Self, TypeVar

from model_core.generation.engine import EngineStopped
from model_core.generation.request import DeadlineExceeded
from worker.inference.loaded_models import ServedModel
from worker.inference.model_cache import ModelCache
from worker.inference.streams import EventQueue, Waker

_Event = TypeVar("_Event")


class EngineCall(ABC, Generic[_Event]):
    """What every open request does.

    Args:
        timeout_s: Time that the client gives it; None leaves that to `deadline_s`.
        deadline_s: Longest time for it, loading of the model included.
        waker: Wakes the event loop for the engine's events.
    """

    def __init__(self, timeout_s: float | None, deadline_s: float, waker: Waker) -> None:
        self._timeout_s = min(deadline_s, timeout_s or deadline_s)
        self._began_s = time.monotonic()
        self._events: EventQueue[_Event] = EventQueue(waker)
        self._is_cancelled = False
        self._served: ServedModel

    async def begin(self, models: ModelCache, sha256: str) -> Self:
        """Load the model if necessary, and submit the request to its engine.

        Args:
            models: The models of this process.
            sha256: Hash of the checkpoint's file, hex.

        Returns:
            This request.

        Raises:
            ModelCoreError: Every error that is known before the first event.
        """
        try:
            await self._start(models, sha256)
        except TimeoutError:
            self.cancel()
            raise DeadlineExceeded(self._timeout_s) from None
        except BaseException:
            self.cancel()
            raise
        return self

    def cancel(self) -> None:
        """Cancel it within one step, also while it is being submitted; does nothing after its end."""
        self._is_cancelled = True
        self._cancel_submitted()

    async def _start(self, models: ModelCache, sha256: str) -> None:
        async with asyncio.timeout(self._timeout_s):
            await asyncio.to_thread(self._load_and_submit, models, sha256)

    def _load_and_submit(self, models: ModelCache, sha256: str) -> None:
        for is_last in (False, True):
            self._served = self._load(models, sha256)
            try:
                self._submit()
                return
            except EngineStopped:  # the model was evicted in this moment
                if is_last:
                    raise

    @property
    def _left_s(self) -> float:
        """Time until the deadline."""
        return max(self._timeout_s - (time.monotonic() - self._began_s), 0.0)

    @abstractmethod
    def _load(self, models: ModelCache, sha256: str) -> ServedModel:
        """Return the model that the request needs."""

    @abstractmethod
    def _submit(self) -> None:
        """Submit the request to the engine of `_served`; cancel what was submitted if it is cancelled by then."""

    @abstractmethod
    def _cancel_submitted(self) -> None:
        """Cancel what was submitted so far."""
