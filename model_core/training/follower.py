"""What a process that trains along with rank 0 does: the same steps on other rows, and nothing on disk.

It is silent but for a compiler that failed here alone: rank 0 says how it went, also what went wrong here.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from functools import partial
from typing import Any

from model_core.attempt import DONE, FAILED, describe
from model_core.config import ExperimentConfig
from model_core.errors import DeviceUnavailable, NonFiniteLoss, OutOfMemory, Stopped
from model_core.hardware import device
from model_core.hardware.machine import describe_machine
from model_core.place import Place
from model_core.records.dataset import dataset_of
from model_core.records.files import Layout
from model_core.records.run import Run
from model_core.stopping import StopRequest
from model_core.training.assemble import assemble, resume
from model_core.training.meeting import Meeting, RankFailed
from model_core.training.origin import find_origin, start_from
from model_core.training.ranks import Ranks
from model_core.training.state import TrainState
from model_core.training.trainer import train

log = logging.getLogger(__name__)


def follow(config: ExperimentConfig, layout: Layout, meeting: Meeting, stop: StopRequest) -> int:
    """Train along until rank 0 is done.

    Args:
        config: Names the run.
        layout: Where it lies.
        meeting: With rank 0.
        stop: Told to rank 0, which decides for all.

    Returns:
        The exit code: that of rank 0, unless this process has come to the end, or to its own.
    """
    with contextlib.ExitStack() as closing:  # after what went wrong was told, since the others notice the end
        try:
            if meeting.wait_to_begin() and _train_along(config, layout, meeting, stop, closing):
                return DONE
        except (Stopped, RankFailed, NonFiniteLoss, OutOfMemory) as error:  # rank 0 knows
            log.debug("left rank=%d reason=%s", meeting.place.rank, error)
        except Exception as error:  # noqa: BLE001 - the edge of the process
            meeting.fail(describe(error))
            return FAILED
    said = meeting.last_word()
    return FAILED if said is None else said


def _train_along(
    config: ExperimentConfig, layout: Layout, meeting: Meeting, stop: StopRequest, closing: contextlib.ExitStack
) -> bool:
    run = Run.open(layout.run(config.experiment_name))
    config = run.config()  # what rank 0 resolved
    runtime = runtime_of(config, meeting.place)
    device.apply(runtime)
    meeting.arrive()
    ranks = Ranks.join(meeting, runtime.device)
    closing.callback(ranks.close)
    state = assemble(config, runtime, dataset_of(config, layout), partial(_log, meeting.place.rank), ranks)
    begin(state, run, layout, _tell_nobody)
    return train(state, (), stop)


def runtime_of(config: ExperimentConfig, place: Place, gpu: int | None = None) -> device.Runtime:
    """What one process uses: alone the machine, else its share of the cores and the GPU of its number.

    Args:
        config: What is asked for.
        place: The process'.
        gpu: Index among the visible GPUs that was asked for on the command line.

    Raises:
        DeviceUnavailable: That is not there, or the device cannot be shared.
    """
    machine = describe_machine()
    if place.world == 1:
        return device.decide(config, machine, gpu)
    if machine.gpus and config.device.device in {"auto", "cuda"}:
        gpu = place.local
    machine = replace(machine, cores=max(1, machine.cores // place.local_world))
    runtime = device.decide(config, machine, gpu)
    if runtime.device_type == "mps":
        raise DeviceUnavailable(f"{place.world} processes cannot share a Metal device; set device.device to cpu")
    return runtime


def begin(state: TrainState, run: Run, layout: Layout, emit: Any) -> None:
    """Put a state where the training begins: at the run's newest full state, another's checkpoint, or the seed.

    Raises:
        CheckpointMismatch: The state is not this configuration's, or not that of the other processes.
    """
    resume(state, run, emit)
    if state.step == 0 and state.config.checkpoint.load_checkpoint:
        start_from(state, find_origin(state.config, layout), emit)
        state.resize(state.config.training.batch_size)  # what did not fit elsewhere may fit here
    state.ranks.check_that_all_begin_alike(state.model, state.step)


def _log(rank: int, type: str, **fields: Any) -> None:  # noqa: A002 - as events have it
    """Rank 0 does not know it."""
    log.error("%s rank=%d %s", type, rank, " ".join(f"{name}={value}" for name, value in fields.items()))


def _tell_nobody(type: str, **fields: Any) -> None:  # noqa: A002 - as events have it
    """Rank 0 writes it."""
