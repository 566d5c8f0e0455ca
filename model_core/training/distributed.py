"""Several processes train one model: rendezvous, and the mean of losses and gradients.

Every process has the whole model and a share of each step's rows. Gradients are summed once a step, tensor by tensor in
the order of the parameters, so a sum has the same bits in every attempt; a single process skips all of it.
`Rendezvous` is the start barrier, error propagation and shutdown over a TCPStore: rank 0 alone writes, and the
others leave with its exit code after it has saved. `ProcessGroup` carries the tensors.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore, rendezvous  # type: ignore[attr-defined] # public, whatever the stubs say
from torch.distributed.distributed_c10d import PrefixStore, Store

from model_core.entrypoint import ShutdownSignal
from model_core.errors import CheckpointMismatch, ModelCoreError, Stopped, is_out_of_memory
from model_core.gpt import GPT
from model_core.launch import DistEnv

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


class Rendezvous:
    """What the processes of a training tell each other.

    Attributes:
        place: This one's.
        store: Where it is written; it lives with rank 0, or with torchrun.
    """

    def __init__(self, place: DistEnv) -> None:
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

    def start(self, stop: ShutdownSignal) -> None:
        """Call the others, and wait until all are ready.

        Raises:
            Stopped: Somebody asked meanwhile.
            RankFailed: One cannot.
            RankLost: One does not come.
        """
        self.store.set(_BEGUN, "")
        came = _until(lambda: self._count(_PRESENT) == self.place.world_size - 1 or self._check(stop), _ARRIVE_S)
        if not came:
            raise RankLost

    def finish(self, code: int) -> None:
        """Say how it ended, and give the others a moment to hear it: what they ask may live in this process."""
        with contextlib.suppress(RuntimeError):
            self.store.set(_LEFT, str(code))
            _until(lambda: self._count(_HEARD) == self.place.world_size - 1, _FAREWELL_S)

    def _check(self, stop: ShutdownSignal) -> bool:
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

    def join(self) -> None:
        """Say that this one is ready.

        Raises:
            RankLost: Rank 0 is gone.
        """
        try:
            self.store.add(_PRESENT, 1)
        except RuntimeError as error:
            raise RankLost(error) from None

    def report_failure(self, record: dict[str, Any]) -> None:
        """Say why this one leaves: an error as records have it."""
        with contextlib.suppress(RuntimeError):
            self.store.set(_FAILED, json.dumps({"rank": self.place.rank, **record}))

    def exit_code(self) -> int | None:
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


def _connect(place: DistEnv) -> Store:
    if place.port is None:
        store: Store = next(rendezvous("env://", timeout=_CONNECT))[0]
        return store
    return TCPStore(
        "127.0.0.1", place.port, place.world_size, is_master=place.is_main, timeout=_CONNECT, wait_for_workers=False,
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


_WAIT = timedelta(minutes=30)  # rank 0 validates, samples and saves while the others wait for it
_SMALL = 1 << 16  # numbers; a gradient below that travels with others, since each message costs a round


class ProcessGroup:
    """The processes of one training, seen from one of them.

    Attributes:
        place: This one's.
    """

    def __init__(self, rendezvous: Rendezvous | None = None) -> None:
        self._meeting = rendezvous
        self.place = DistEnv() if rendezvous is None else rendezvous.place

    @classmethod
    def join(cls, rendezvous: Rendezvous, device: str) -> ProcessGroup:
        """Connect with the others, all of which have arrived.

        Args:
            rendezvous: Of this process.
            device: Where its model is.
        """
        ranks, place = cls(rendezvous), rendezvous.place
        backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        store = PrefixStore("group", rendezvous.store)
        with ranks._reaching():
            dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world_size, timeout=_WAIT)
        return ranks

    @property
    def world_size(self) -> int:
        """How many there are."""
        return self.place.world_size

    def seed_rank(self, seed: int, step: int) -> None:
        """Draw the random numbers of a step from its own seed, another one in each process: none need be saved."""
        if self.world_size > 1:
            numbers = np.random.SeedSequence([seed, self.place.rank, step]).generate_state(1, np.uint64)
            torch.manual_seed(int(numbers[0] >> np.uint64(1)))

    def any(self, flag: bool) -> bool:
        """Whether it is so in some process; all get the same answer."""
        return self._sum(float(flag))[0] > 0 if self.world_size > 1 else flag

    def all_agree(self, loss: float, *, fits: bool) -> tuple[float, bool]:
        """Tell what came of this process' rows.

        Returns:
            The mean loss, and whether the rows of all fitted in memory.
        """
        if self.world_size == 1:
            return loss, fits
        total, fitting = self._sum(loss, float(fits))
        return total / self.world_size, fitting == self.world_size

    def all_reduce_grads(self, model: GPT) -> None:
        """Replace the gradients by their mean over all processes."""
        if self.world_size == 1:
            return
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        small = [gradient for gradient in gradients if gradient.numel() < _SMALL]
        packed = torch.cat([gradient.flatten() for gradient in small])  # (numbers of all small ones,)
        with self._reaching():
            for numbers in (packed, *(gradient for gradient in gradients if gradient.numel() >= _SMALL)):
                dist.all_reduce(numbers)
                numbers.div_(self.world_size)
        means = torch.split(packed, [gradient.numel() for gradient in small])
        for gradient, mean in zip(small, means, strict=True):
            gradient.copy_(mean.view_as(gradient))

    def check_that_all_begin_alike(self, model: GPT, step: int) -> None:
        """Make sure that every process has the same state.

        Raises:
            CheckpointMismatch: One has read another file than the others.
        """
        if self.world_size == 1:
            return
        mine = torch.tensor([float(step), _fingerprint(model)], dtype=torch.float64)  # (2,)
        with self._reaching():
            theirs = [torch.empty_like(mine) for _ in range(self.world_size)]
            dist.all_gather(theirs, mine)
        if any_other := [rank for rank, other in enumerate(theirs) if not torch.equal(other, theirs[0])]:
            raise CheckpointMismatch(
                f"ranks {', '.join(map(str, any_other))} begin with another state than rank 0 at step "
                f"{int(theirs[0][0])}: all hosts must see the same files below one data root"
            )

    def close(self) -> None:
        """Disconnect."""
        if self.world_size > 1:
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()

    def _sum(self, *numbers: float) -> list[float]:
        total = torch.tensor(numbers, dtype=torch.float64)  # (how many,)
        with self._reaching():
            dist.all_reduce(total)
        return [float(number) for number in total]

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        """Turn what the library says of a broken connection into what the other process said, if it did."""
        try:
            yield
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            failure = self._meeting.failure() if self._meeting else None
            raise RankFailed(failure) if failure else RankLost(error) from None


def _fingerprint(model: GPT) -> float:
    return float(sum(_sum_of(parameter) for parameter in model.parameters()))


def _sum_of(tensor: Tensor) -> float:
    return float(tensor.detach().double().sum())
