"""Several processes train one model: start and end together, and average losses and gradients.

Every process has the whole model and a share of the rows of each step. Gradients are summed once a step, tensor by
tensor in the order of the parameters, so a sum has the same bits in every attempt; a single process skips all of it.
`Rendezvous` is the start barrier, error propagation and shutdown over a TCPStore: only rank 0 writes to disk, and the
others leave with its exit code after it has saved. `ProcessGroup` exchanges the tensors.
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
from torch.distributed import TCPStore, rendezvous  # type: ignore[attr-defined] # missing in the stubs
from torch.distributed.distributed_c10d import PrefixStore, Store

from model_core.entrypoint import ShutdownSignal
from model_core.errors import CheckpointMismatch, ModelCoreError, Stopped, is_out_of_memory
from model_core.gpt import GPT
from model_core.launch import DistEnv

_CONNECT = timedelta(minutes=5)  # hosts may start one after the other
_ARRIVE_S = 300.0
_POLL_S, _FAREWELL_S = 0.1, 5.0
_BEGUN, _PRESENT, _FAILED, _LEFT, _HEARD = "begun", "present", "failed", "left", "heard"  # keys of the store
_WAIT = timedelta(minutes=30)  # rank 0 validates, samples and saves while the others wait for it
_SMALL = 1 << 16  # numbers; smaller gradients are sent together, since each message costs a round trip


class RankLost(Stopped):
    """Another process is gone; the state is that of the last step, and can be saved.

    Args:
        error: Error that showed it; it becomes the cause.
    """

    def __init__(self, error: object = "") -> None:
        super().__init__("the loss of another process of this training")
        self.reason = "another process was lost"
        self.__cause__ = error if isinstance(error, BaseException) else None


class RankFailed(ModelCoreError):
    """An error of another process, with its code, detail, hint and step.

    Args:
        record: Entry of the store: ``rank``, and the fields of `describe`.
    """

    def __init__(self, record: dict[str, Any]) -> None:
        super().__init__(f"rank {record['rank']}: {record['detail']}")
        self.code = record["code"]  # type: ignore[misc] # of the instance: it is the other's
        self.hint, self.step = record["hint"], record["step"]


class Rendezvous:
    """Start barrier, error propagation and shutdown of the processes that train together.

    Args:
        env: Rank of this process.

    Attributes:
        env: Rank of this process.
        store: Key-value store of all processes, hosted by rank 0 or by torchrun.

    Raises:
        ModelCoreError: Rank 0 cannot be reached.
    """

    def __init__(self, env: DistEnv) -> None:
        self.env = env
        try:
            self.store: Store = PrefixStore("headcount", _connect(env))
        except RuntimeError as error:
            raise ModelCoreError(f"rank 0 was not reached within {_CONNECT.seconds} s: {error}") from None

    def start(self, stop: ShutdownSignal) -> None:
        """Let the other processes start, and wait until all are ready. Rank 0 calls it.

        Args:
            stop: Checked while waiting.

        Raises:
            Stopped: The process was asked to stop meanwhile.
            RankFailed: Another process reported an error.
            RankLost: Another process did not arrive in time.
        """
        self.store.set(_BEGUN, "")
        arrived = _until(lambda: self._count(_PRESENT) == self.env.world_size - 1 or self._check(stop), _ARRIVE_S)
        if not arrived:
            raise RankLost

    def finish(self, code: int) -> None:
        """Publish the exit code, and give the others a moment to read it. Rank 0, which may host the store, calls it.

        Args:
            code: Exit code of rank 0.
        """
        with contextlib.suppress(RuntimeError):
            self.store.set(_LEFT, str(code))
            _until(lambda: self._count(_HEARD) == self.env.world_size - 1, _FAREWELL_S)

    def _check(self, stop: ShutdownSignal) -> bool:
        if failure := self.failure():
            raise RankFailed(failure)
        stop.check()
        return False

    def _count(self, what: str) -> int:
        return int(self.store.add(what, 0))

    def wait_to_begin(self) -> bool:
        """Wait for rank 0, which may have a dataset to prepare.

        Returns:
            Whether the training starts; false if rank 0 left instead.
        """
        with contextlib.suppress(RuntimeError):
            _until(lambda: self.store.check([_BEGUN]) or self.store.check([_LEFT]))
            return not self.store.check([_LEFT])
        return False

    def join(self) -> None:
        """Report that this process is ready.

        Raises:
            RankLost: Rank 0 is gone.
        """
        try:
            self.store.add(_PRESENT, 1)
        except RuntimeError as error:
            raise RankLost(error) from None

    def report_failure(self, record: dict[str, Any]) -> None:
        """Publish the error with which this process leaves.

        Args:
            record: Fields of the error, as `describe` returns them.
        """
        with contextlib.suppress(RuntimeError):
            self.store.set(_FAILED, json.dumps({"rank": self.env.rank, **record}))

    def exit_code(self) -> int | None:
        """Wait for the exit code of rank 0.

        Returns:
            The exit code; None if rank 0 is gone without one.
        """
        code = None
        with contextlib.suppress(RuntimeError):
            _until(lambda: self.store.check([_LEFT]))
            code = int(self.store.get(_LEFT))
            self.store.add(_HEARD, 1)  # may fail: rank 0 need not wait for it
        return code

    def failure(self) -> dict[str, Any] | None:
        """Read the error that another process reported.

        Returns:
            Rank and fields of the error; None if there is none.
        """
        with contextlib.suppress(RuntimeError):
            if self.store.check([_FAILED]):
                record: dict[str, Any] = json.loads(self.store.get(_FAILED))
                return record
        return None


class ProcessGroup:
    """The processes of one training, as one of them communicates with the others.

    Args:
        rendezvous: Rendezvous of the processes; None for a process that trains alone.

    Attributes:
        env: Rank of this process.
    """

    def __init__(self, rendezvous: Rendezvous | None = None) -> None:
        self._rendezvous = rendezvous
        self.env = DistEnv() if rendezvous is None else rendezvous.env

    @classmethod
    def join(cls, rendezvous: Rendezvous, device: str) -> ProcessGroup:
        """Connect with the other processes, which have all reported that they are ready.

        Args:
            rendezvous: Rendezvous of the processes.
            device: Device of this process's model, which decides the backend.

        Returns:
            The connected group.
        """
        group, env = cls(rendezvous), rendezvous.env
        backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        store = PrefixStore("group", rendezvous.store)
        with group._reaching():
            dist.init_process_group(backend, store=store, rank=env.rank, world_size=env.world_size, timeout=_WAIT)
        return group

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.env.world_size

    def seed_rank(self, seed: int, step: int) -> None:
        """Seed the random numbers of a step, differently in each process, so that no generator has to be saved.

        Args:
            seed: Seed of the run.
            step: Optimizer updates done before.
        """
        if self.world_size > 1:
            numbers = np.random.SeedSequence([seed, self.env.rank, step]).generate_state(1, np.uint64)
            torch.manual_seed(int(numbers[0] >> np.uint64(1)))

    def any(self, flag: bool) -> bool:
        """Combine a flag of each process by logical or.

        Args:
            flag: Flag of this process.

        Returns:
            Whether it is set in any process; the same in all of them.
        """
        return self._sum(float(flag))[0] > 0 if self.world_size > 1 else flag

    def all_agree(self, loss: float, *, fits: bool) -> tuple[float, bool]:
        """Combine the results of each process's rows.

        Args:
            loss: Mean loss of this process.
            fits: Whether its rows fitted in memory.

        Returns:
            The mean loss of all processes, and whether the rows of all fitted in memory.
        """
        if self.world_size == 1:
            return loss, fits
        total, fitting = self._sum(loss, float(fits))
        return total / self.world_size, fitting == self.world_size

    def all_reduce_grads(self, model: GPT) -> None:
        """Replace the gradients by their mean over all processes.

        Args:
            model: Model whose gradients are changed.
        """
        if self.world_size == 1:
            return
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        small = [gradient for gradient in gradients if gradient.numel() < _SMALL]
        packed = torch.cat([gradient.flatten() for gradient in small])  # (elements of all small gradients,)
        with self._reaching():
            for numbers in (packed, *(gradient for gradient in gradients if gradient.numel() >= _SMALL)):
                dist.all_reduce(numbers)
                numbers.div_(self.world_size)
        means = torch.split(packed, [gradient.numel() for gradient in small])
        for gradient, mean in zip(small, means, strict=True):
            gradient.copy_(mean.view_as(gradient))

    def check_that_all_begin_alike(self, model: GPT, step: int) -> None:
        """Compare the states of all processes by step and sum of the parameters.

        Args:
            model: Model of this process.
            step: Optimizer updates done.

        Raises:
            CheckpointMismatch: A process has read another file than rank 0.
        """
        if self.world_size == 1:
            return
        mine = torch.tensor([float(step), _fingerprint(model)], dtype=torch.float64)  # (2,)
        with self._reaching():
            theirs = [torch.empty_like(mine) for _ in range(self.world_size)]
            dist.all_gather(theirs, mine)
        if others := [rank for rank, other in enumerate(theirs) if not torch.equal(other, theirs[0])]:
            raise CheckpointMismatch(
                f"ranks {', '.join(map(str, others))} begin with another state than rank 0 at step "
                f"{int(theirs[0][0])}: all hosts must see the same files below one data root"
            )

    def close(self) -> None:
        """Disconnect from the other processes."""
        if self.world_size > 1:
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()

    def _sum(self, *numbers: float) -> list[float]:
        total = torch.tensor(numbers, dtype=torch.float64)  # (count of numbers,)
        with self._reaching():
            dist.all_reduce(total)
        return [float(number) for number in total]

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        """Replace the library's error about a broken connection by the one that another process reported."""
        try:
            yield
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            failure = self._rendezvous.failure() if self._rendezvous else None
            raise RankFailed(failure) if failure else RankLost(error) from None


def _connect(env: DistEnv) -> Store:
    if env.port is None:
        store: Store = next(rendezvous("env://", timeout=_CONNECT))[0]
        return store
    return TCPStore(
        "127.0.0.1", env.port, env.world_size, is_master=env.is_main, timeout=_CONNECT, wait_for_workers=False,
        master_listen_fd=env.listener,
    )  # fmt: skip


def _until(condition: Callable[[], bool], timeout_s: float = float("inf")) -> bool:
    """Poll a condition; false on a timeout."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _fingerprint(model: GPT) -> float:
    return float(sum(_sum_of(parameter) for parameter in model.parameters()))


def _sum_of(tensor: Tensor) -> float:
    return float(tensor.detach().double().sum())
