"""What the processes of one training compute together: the mean of their losses and gradients, and when to stop.

Every one has the whole model and a share of each step's rows. Gradients are summed once a step, tensor by tensor in the
order of the parameters, so a sum has the same bits in every attempt. A process that is alone takes none of these ways.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore

from model_core.errors import is_out_of_memory
from model_core.gpt import GPT
from model_core.place import Place
from model_core.records.errors import CheckpointMismatch
from model_core.training.meeting import Meeting, RankFailed, RankLost

_WAIT = timedelta(minutes=30)  # rank 0 validates, samples and saves while the others wait for it
_SMALL = 1 << 16  # numbers; a gradient below that travels with others, since each message costs a round


class Ranks:
    """The processes of one training, seen from one of them.

    Attributes:
        place: This one's.
    """

    def __init__(self, meeting: Meeting | None = None) -> None:
        self._meeting = meeting
        self.place = Place() if meeting is None else meeting.place

    @classmethod
    def join(cls, meeting: Meeting, device: str) -> Ranks:
        """Connect with the others, all of which have arrived.

        Args:
            meeting: Of this process.
            device: Where its model is.
        """
        ranks, place = cls(meeting), meeting.place
        backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        store = PrefixStore("group", meeting.store)
        with ranks._reaching():
            dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world, timeout=_WAIT)
        return ranks

    @property
    def world(self) -> int:
        """How many there are."""
        return self.place.world

    def reseed(self, seed: int, step: int) -> None:
        """Draw the random numbers of a step from its own seed, another one in each process: none need be saved."""
        if self.world > 1:
            numbers = np.random.SeedSequence([seed, self.place.rank, step]).generate_state(1, np.uint64)
            torch.manual_seed(int(numbers[0] >> np.uint64(1)))

    def any(self, flag: bool) -> bool:
        """Whether it is so in some process; all get the same answer."""
        return self._sum(float(flag))[0] > 0 if self.world > 1 else flag

    def agree(self, loss: float, *, fits: bool) -> tuple[float, bool]:
        """Tell what came of this process' rows.

        Returns:
            The mean loss, and whether the rows of all fitted in memory.
        """
        if self.world == 1:
            return loss, fits
        total, fitting = self._sum(loss, float(fits))
        return total / self.world, fitting == self.world

    def average(self, model: GPT) -> None:
        """Replace the gradients by their mean over all processes."""
        if self.world == 1:
            return
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        small = [gradient for gradient in gradients if gradient.numel() < _SMALL]
        packed = torch.cat([gradient.flatten() for gradient in small])  # (numbers of all small ones,)
        with self._reaching():
            for numbers in (packed, *(gradient for gradient in gradients if gradient.numel() >= _SMALL)):
                dist.all_reduce(numbers)
                numbers.div_(self.world)
        means = torch.split(packed, [gradient.numel() for gradient in small])
        for gradient, mean in zip(small, means, strict=True):
            gradient.copy_(mean.view_as(gradient))

    def check_that_all_begin_alike(self, model: GPT, step: int) -> None:
        """Make sure that every process has the same state.

        Raises:
            CheckpointMismatch: One has read another file than the others.
        """
        if self.world == 1:
            return
        mine = torch.tensor([float(step), _fingerprint(model)], dtype=torch.float64)  # (2,)
        with self._reaching():
            theirs = [torch.empty_like(mine) for _ in range(self.world)]
            dist.all_gather(theirs, mine)
        if any_other := [rank for rank, other in enumerate(theirs) if not torch.equal(other, theirs[0])]:
            raise CheckpointMismatch(
                f"ranks {', '.join(map(str, any_other))} begin with another state than rank 0 at step "
                f"{int(theirs[0][0])}: all hosts must see the same files below one data root"
            )

    def close(self) -> None:
        """Disconnect."""
        if self.world > 1:
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
