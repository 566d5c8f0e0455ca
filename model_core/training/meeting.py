"""Where the processes of one training meet: that it begins, what went wrong at one of them, and how it ended.

Rank 0 leads: it alone writes, and the others leave with its exit code, after it has saved. What they compute together
goes another way (ranks.py).
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from torch.distributed import TCPStore, rendezvous  # type: ignore[attr-defined] # public, whatever the stubs say
from torch.distributed.distributed_c10d import PrefixStore, Store

from model_core.errors import ModelCoreError, Stopped
from model_core.place import Place
from model_core.stopping import StopRequest

_CONNECT = timedelta(minutes=5)  # hosts may start one after the other
_ARRIVE_S = 300.0
_POLL_S, _FAREWELL_S = 0.1, 5.0
_BEGUN, _PRESENT, _FAILED, _LEFT, _HEARD = "begun", "present", "failed", "left", "heard"


class RankLost(Stopped):
    """Another process is gone; the state is that of the last step, and can be saved."""

    def __init__(self, error: object = "") -> None:
        super().__init__("the loss of another process of this training")
        self.reason = "another process was lost"
        self.__cause__ = error if isinstance(error, BaseException) else None


class RankFailed(ModelCoreError):
    """What went wrong at another process, in its own words."""

    def __init__(self, record: dict[str, Any]) -> None:
        super().__init__(f"rank {record['rank']}: {record['detail']}")
        self.code = record["code"]  # type: ignore[misc] # of the instance: it is the other's
        self.hint, self.step = record["hint"], record["step"]


class Meeting:
    """What the processes of a training tell each other.

    Attributes:
        place: This one's.
        store: Where it is written; it lives with rank 0, or with torchrun.
    """

    def __init__(self, place: Place) -> None:
        """Connect, and wait until the others can.

        Raises:
            ModelCoreError: Rank 0 is not there.
        """
        self.place = place
        try:
            self.store: Store = PrefixStore("headcount", _connect(place))
        except RuntimeError as error:
            raise ModelCoreError(f"rank 0 was not reached within {_CONNECT.seconds} s: {error}") from None

    # --- rank 0 -----------------------------------------------------------------------------------------------

    def begin(self, stop: StopRequest) -> None:
        """Call the others, and wait until all are ready.

        Raises:
            Stopped: Somebody asked meanwhile.
            RankFailed: One cannot.
            RankLost: One does not come.
        """
        self.store.set(_BEGUN, "")
        came = _until(lambda: self._count(_PRESENT) == self.place.world - 1 or self._check(stop), _ARRIVE_S)
        if not came:
            raise RankLost

    def leave(self, code: int) -> None:
        """Say how it ended, and give the others a moment to hear it: what they ask may live in this process."""
        with contextlib.suppress(RuntimeError):
            self.store.set(_LEFT, str(code))
            _until(lambda: self._count(_HEARD) == self.place.world - 1, _FAREWELL_S)

    def _check(self, stop: StopRequest) -> bool:
        if failure := self.failure():
            raise RankFailed(failure)
        stop.check()
        return False

    def _count(self, what: str) -> int:
        return int(self.store.add(what, 0))

    # --- the others -------------------------------------------------------------------------------------------

    def wait_to_begin(self) -> bool:
        """Wait for rank 0, which may have a dataset to prepare; false if it left instead."""
        with contextlib.suppress(RuntimeError):
            _until(lambda: self.store.check([_BEGUN]) or self.store.check([_LEFT]))
            return not self.store.check([_LEFT])
        return False

    def arrive(self) -> None:
        """Say that this one is ready.

        Raises:
            RankLost: Rank 0 is gone.
        """
        try:
            self.store.add(_PRESENT, 1)
        except RuntimeError as error:
            raise RankLost(error) from None

    def fail(self, record: dict[str, Any]) -> None:
        """Say why this one leaves: an error as records have it."""
        with contextlib.suppress(RuntimeError):
            self.store.set(_FAILED, json.dumps({"rank": self.place.rank, **record}))

    def last_word(self) -> int | None:
        """Wait for the exit code of rank 0; None if it is gone without one."""
        code = None
        with contextlib.suppress(RuntimeError):
            _until(lambda: self.store.check([_LEFT]))
            code = int(self.store.get(_LEFT))
            self.store.add(_HEARD, 1)  # rank 0 may be gone before it says that it knows
        return code

    # --- all --------------------------------------------------------------------------------------------------

    def failure(self) -> dict[str, Any] | None:
        """What another said that kept it from going on."""
        with contextlib.suppress(RuntimeError):
            if self.store.check([_FAILED]):
                record: dict[str, Any] = json.loads(self.store.get(_FAILED))
                return record
        return None


def _connect(place: Place) -> Store:
    if place.port is None:
        store: Store = next(rendezvous("env://", timeout=_CONNECT))[0]
        return store
    return TCPStore(
        "127.0.0.1", place.port, place.world, is_master=place.leads, timeout=_CONNECT, wait_for_workers=False,
        master_listen_fd=place.listener,
    )  # fmt: skip


def _until(condition: Callable[[], bool], timeout_s: float = float("inf")) -> bool:
    """Wait until something holds; false if it did not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
