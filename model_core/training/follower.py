"""What a process that trains along with rank 0 does: the same steps on other rows, and nothing on disk.

It is silent but for a compiler that failed here alone: rank 0 says how it went, also what went wrong here.
"""

from __future__ import annotations

import contextlib
import logging
from functools import partial
from typing import Any

from model_core.config import ExperimentConfig
from model_core.entrypoint import ShutdownSignal, describe
from model_core.errors import DONE, FAILED, NonFiniteLoss, OutOfMemory, Stopped
from model_core.hardware import device
from model_core.storage.dataset import dataset_of
from model_core.storage.files import Layout
from model_core.storage.run import Run
from model_core.training.distributed import ProcessGroup, RankFailed, Rendezvous
from model_core.training.resume import begin
from model_core.training.setup import build_train_state, runtime_of
from model_core.training.trainer import train

log = logging.getLogger(__name__)


def follow(config: ExperimentConfig, layout: Layout, rendezvous: Rendezvous, stop: ShutdownSignal) -> int:
    """Train along until rank 0 is done.

    Args:
        config: Names the run.
        layout: Where it lies.
        rendezvous: With rank 0.
        stop: Told to rank 0, which decides for all.

    Returns:
        The exit code: that of rank 0, unless this process has come to the end, or to its own.
    """
    with contextlib.ExitStack() as closing:  # after what went wrong was told, since the others notice the end
        try:
            if rendezvous.wait_to_begin() and _train_along(config, layout, rendezvous, stop, closing):
                return DONE
        except (Stopped, RankFailed, NonFiniteLoss, OutOfMemory) as error:  # rank 0 knows
            log.debug("left rank=%d reason=%s", rendezvous.place.rank, error)
        except Exception as error:  # noqa: BLE001 - the edge of the process
            rendezvous.report_failure(describe(error))
            return FAILED
    said = rendezvous.exit_code()
    return FAILED if said is None else said


def _train_along(
    config: ExperimentConfig,
    layout: Layout,
    rendezvous: Rendezvous,
    stop: ShutdownSignal,
    closing: contextlib.ExitStack,
) -> bool:
    run = Run.open(layout.run(config.experiment_name))
    config = run.config()  # what rank 0 resolved
    runtime = runtime_of(config, rendezvous.place)
    device.apply(runtime)
    rendezvous.join()
    ranks = ProcessGroup.join(rendezvous, runtime.device)
    closing.callback(ranks.close)
    state = build_train_state(config, runtime, dataset_of(config, layout), partial(_log, rendezvous.place.rank), ranks)
    begin(state, run, layout, _tell_nobody)
    return train(state, (), stop)


def _log(rank: int, type: str, **fields: Any) -> None:  # noqa: A002 - as events have it
    """Rank 0 does not know it."""
    log.error("%s rank=%d %s", type, rank, " ".join(f"{name}={value}" for name, value in fields.items()))


def _tell_nobody(type: str, **fields: Any) -> None:  # noqa: A002 - as events have it
    """Rank 0 writes it."""
