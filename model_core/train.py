"""Train, test or do both, as a configuration file says: the program that a person runs and that a worker starts.

    python -m model_core.train --config configs/baseline.yaml --gpu 0

On SIGTERM, Ctrl-C or the end of a supervisor's pipe on standard input, the state is saved and the exit code is 75. The
handlers are installed before torch is loaded, so that a stop during start-up works too. torchrun and model_core.launch
start several of these processes, which train together; then only rank 0 writes to disk.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_core.hardware.process_environment import reexec_with_startup_variables

if __name__ == "__main__":  # before the heavy imports, because it may restart the process
    reexec_with_startup_variables()

from model_core.budget import compute_budget
from model_core.config import ExperimentConfig
from model_core.config_loader import ParsedConfig, read_config
from model_core.config_validation import check_batch_divides
from model_core.data.sources.hub_access import token_from
from model_core.entrypoint import (
    Attempt,
    OneLineParser,
    OnRefusal,
    ShutdownSignal,
    describe,
    exit_code,
    log_to_stderr,
    make_attempt,
    next_attempt,
    refuse,
    whole_number,
)
from model_core.errors import (
    BAD_INPUT,
    DONE,
    FAILED,
    InvalidConfig,
    InvalidParameter,
    ModelCoreError,
    NonFiniteLoss,
    OutOfMemory,
    Stopped,
)
from model_core.launch import DistEnv, dist_env
from model_core.report import preflight
from model_core.storage.dataset import dataset_of
from model_core.storage.files import Layout
from model_core.storage.run import Run
from model_core.training.start import (
    OpenedRun,
    claim_run,
    create_or_open_run,
    emit_start_event,
    open_dataset,
    resolve_config,
)

if TYPE_CHECKING:
    from model_core.training.distributed import Rendezvous
    from model_core.training.trainer import TrainState

log = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Run the program.

    Args:
        argv: Command-line arguments; None takes those of the process.

    Returns:
        The exit code: 0 done, 1 failed, 2 bad input, 75 stopped with a checkpoint, 76 run busy.
    """
    arguments = _parser().parse_args(argv)
    arguments.token = token_from(os.environ)  # of the hub; only this program reads the environment
    stop = ShutdownSignal()

    def on_refusal(error: ModelCoreError) -> None:
        if arguments.attempt is not None:  # no run exists, so it is recorded beside the configuration
            refuse(Path(arguments.config).parent, arguments.attempt, error)

    def body() -> int:
        env = dist_env(os.environ)
        stop.listen(stdin=arguments.attempt is not None, parent=env.launched)
        if env.is_main:
            return _run(arguments, env, stop, on_refusal)
        return _follow(arguments, env, stop)

    return exit_code(body, on_refusal)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m model_core.train",
        description="Train a GPT-2 whose layers may have different head counts, test it, or both.",
        epilog="exit codes: 0 done, 1 failed, 2 bad input, 75 stopped with a checkpoint, 76 run busy",
    )
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help="a YAML file, for example configs/quickstart.yaml")
    add("--gpu", type=whole_number, metavar="N", help="index of the GPU among the visible CUDA devices")
    add("--set", action="append", default=[], metavar="K=V", dest="overrides",
        help="override a key, for example training.max_steps=100; may be repeated")  # fmt: skip
    add("--run", metavar="NAME", help="name of the run; default: the file's experiment_name")
    add("--data-root", type=Path, metavar="DIR", default=os.environ.get("HEADCOUNT_DATA"),
        help="root of datasets, runs and pictures; default: HEADCOUNT_DATA, else the paths in the file")  # fmt: skip
    add("--resume", action="store_true", help="continue a run that exists, from its newest intact full state")
    add("--attempt", type=int, help=argparse.SUPPRESS)  # the supervisor's: number of this attempt
    add("--job-id", help=argparse.SUPPRESS)  # the supervisor's: whose run it is
    add("--seq-after", type=int, default=0, help=argparse.SUPPRESS)  # the supervisor's: last event of an earlier run
    add("--colour", type=int, help=argparse.SUPPRESS)  # the supervisor's: colour of a new run
    add("--record", type=Path, metavar="DIR", help=argparse.SUPPRESS)  # the supervisor's: events of a test job
    return parser


def _run(arguments: argparse.Namespace, env: DistEnv, stop: ShutdownSignal, on_refusal: OnRefusal) -> int:
    """Run rank 0."""
    parsed, layout = _read(arguments, env)
    log_to_stderr(verbose=parsed.config.logging.verbose)
    if env.world_size == 1:
        program = _train if parsed.config.execution.train else _test
        return program(arguments, parsed, layout, stop)

    from model_core.training.distributed import Rendezvous

    rendezvous = Rendezvous(env)
    code = exit_code(lambda: _train(arguments, parsed, layout, stop, rendezvous), on_refusal)
    rendezvous.finish(code)
    return code


def _read(arguments: argparse.Namespace, env: DistEnv) -> tuple[ParsedConfig, Layout]:
    """Parse the configuration, once in this process, and find the directories."""
    renamed = [f"experiment_name={json.dumps(arguments.run)}"] if arguments.run is not None else []
    parsed = read_config(arguments.config, [*arguments.overrides, *renamed])
    layout = Layout.under(arguments.data_root) if arguments.data_root else Layout.of(parsed.config)
    if env.world_size > 1:
        if not parsed.config.execution.train:
            raise InvalidParameter(f"a test runs in one process, not in {env.world_size}: start it without torchrun")
        if arguments.gpu is not None:
            raise InvalidParameter(
                f"--gpu {arguments.gpu} does not go with {env.world_size} processes: each takes its own"
            )
        if problems := tuple(check_batch_divides(parsed.config.training, env.world_size)):
            raise InvalidConfig(problems)
    return parsed, layout


def _train(
    arguments: argparse.Namespace,
    parsed: ParsedConfig,
    layout: Layout,
    stop: ShutdownSignal,
    rendezvous: Rendezvous | None = None,
) -> int:
    opened = create_or_open_run(arguments, parsed.config, layout, rendezvous.env if rendezvous else DistEnv())
    run = opened.run
    with run.lock(timeout_s=5 if arguments.attempt else 0):
        number = claim_run(arguments, run)
        run.recover()

        def body(attempt: Attempt) -> int:
            attempt.warn(parsed.warnings)
            return _train_attempt(arguments, parsed.config, opened, layout, attempt, stop, rendezvous)

        return make_attempt(
            run.path, number, body, log_to_file=parsed.config.logging.log_to_file, seq_after=arguments.seq_after
        )


def _train_attempt(
    arguments: argparse.Namespace,
    requested: ExperimentConfig,
    opened: OpenedRun,
    layout: Layout,
    attempt: Attempt,
    stop: ShutdownSignal,
    rendezvous: Rendezvous | None,
) -> int:
    run = opened.run
    if opened.config is None:  # a run that existed keeps its configuration
        requested = run.config(like=requested)
    config = opened.config or requested
    dataset, identity = open_dataset(run, config, layout, token=arguments.token, emit=attempt.emit, stop=stop)
    if stop():
        return attempt.stopped(stop.reason)

    from model_core.hardware import device
    from model_core.training.callbacks import build_callbacks
    from model_core.training.distributed import ProcessGroup
    from model_core.training.evaluate import run_final_test
    from model_core.training.resume import begin
    from model_core.training.setup import build_train_state, choose_runtime
    from model_core.training.trainer import train

    runtime = choose_runtime(config, rendezvous.env if rendezvous else DistEnv(), arguments.gpu)
    if (resolved := resolve_config(config, dataset, runtime)) != config:
        run.write_config(resolved)
    config = resolved
    preflight(config, dataset, run.path, attempt.emit)
    device.apply(runtime)
    if rendezvous:
        rendezvous.start(stop)
    process_group = ProcessGroup.join(rendezvous, runtime.device) if rendezvous else ProcessGroup()
    state = build_train_state(config, runtime, dataset, attempt.emit, process_group, data_sha256=identity.sha256)
    emit_start_event(attempt.emit, requested, runtime, arguments.gpu, **_size(state), data_sha256=identity.sha256)
    begin(state, run, layout, attempt.emit, None if rendezvous else opened.init)  # ranks resolve at the same time

    callbacks = build_callbacks(config, run, attempt=attempt.number, dataset=dataset, emit=attempt.emit)
    try:
        finished = train(state, callbacks, stop)
    finally:
        attempt.facts |= _summary(state)
        process_group.close()
    if finished and config.execution.test:
        finished = run_final_test(
            run, config, dataset=dataset, layout=layout, runtime=runtime, attempt=attempt, stop=stop
        )
    return DONE if finished else attempt.stopped(stop.reason or "a stop of another process")


def _size(state: TrainState) -> dict[str, Any]:
    """Collect the size and length of a training for its `start` event."""
    from model_core.optim import parameter_counts

    return {
        **parameter_counts(state.model),
        "max_steps": state.max_steps,
        "batch_size": state.batch_size,
        "accumulation": state.accumulation,
        "processes": state.process_group.world_size,
    }


def _summary(state: TrainState) -> dict[str, Any]:
    """Collect the results of a training, however it ended."""
    from model_core.hardware.memory import peak_bytes
    from model_core.hardware.throughput import throughput_summary

    runtime = state.runtime
    device_flops = compute_budget(state.config).flops_per_token // state.process_group.world_size
    gpu = runtime.gpu.name if runtime.gpu else None
    speed = throughput_summary(state.throughput, device_flops, gpu=gpu, dtype=runtime.dtype, tf32=runtime.tf32)
    log.info("trained step=%d loss=%s %s", state.step, state.loss, " ".join(f"{k}={v!r}" for k, v in speed.items()))
    return {
        "step": state.step,
        "loss": state.loss,
        "val_loss": state.val_loss,
        "epochs": round(state.loader.epoch, 3),
        "training_seconds": round(state.seconds, 3),
        "peak_memory_bytes": peak_bytes(runtime),
        **speed,
    }


def _test(arguments: argparse.Namespace, parsed: ParsedConfig, layout: Layout, stop: ShutdownSignal) -> int:
    run = Run.open(layout.run(parsed.config.experiment_name))
    directory = arguments.record or layout.attention_of(run.name)
    number = arguments.attempt or next_attempt(directory / "events.jsonl")

    def body(attempt: Attempt) -> int:
        from model_core.training.evaluate import run_test_attempt

        attempt.warn(parsed.warnings)
        return run_test_attempt(arguments, parsed.config, run, layout, attempt, stop)

    return make_attempt(directory, number, body, log_to_file=parsed.config.logging.log_to_file)


def _follow(arguments: argparse.Namespace, env: DistEnv, stop: ShutdownSignal) -> int:
    """Run another rank: the same steps on other rows, and nothing on disk. Rank 0 reports what goes wrong here."""
    logging.basicConfig(level=logging.ERROR)
    try:
        parsed, layout = _read(arguments, env)
    except ModelCoreError:  # rank 0 reports it
        return BAD_INPUT

    from model_core.training.distributed import RankFailed, Rendezvous

    rendezvous = Rendezvous(env)
    with contextlib.ExitStack() as closing:  # after the error is reported, since the other ranks notice the end
        try:
            if rendezvous.wait_to_begin() and _follow_steps(parsed.config, layout, rendezvous, stop, closing):
                return DONE
        except (Stopped, RankFailed, NonFiniteLoss, OutOfMemory) as error:  # rank 0 has seen it too
            log.debug("left rank=%d reason=%s", env.rank, error)
        except Exception as error:  # noqa: BLE001 - the edge of the process
            rendezvous.report_failure(describe(error))
            return FAILED
    code = rendezvous.exit_code()
    return FAILED if code is None else code


def _follow_steps(
    config: ExperimentConfig,
    layout: Layout,
    rendezvous: Rendezvous,
    stop: ShutdownSignal,
    closing: contextlib.ExitStack,
) -> bool:
    from model_core.hardware import device
    from model_core.training.distributed import ProcessGroup
    from model_core.training.resume import begin
    from model_core.training.setup import build_train_state, choose_runtime
    from model_core.training.trainer import train

    run = Run.open(layout.run(config.experiment_name))
    config = run.config(like=config)  # as rank 0 resolved it
    runtime = choose_runtime(config, rendezvous.env)
    device.apply(runtime)
    rendezvous.join()
    process_group = ProcessGroup.join(rendezvous, runtime.device)
    closing.callback(process_group.close)
    emit = partial(_log_event, rendezvous.env.rank)
    state = build_train_state(config, runtime, dataset_of(config, layout), emit, process_group)
    begin(state, run, layout, lambda *_, **__: None)  # rank 0 writes these events
    return train(state, (), stop)


def _log_event(rank: int, type: str, **fields: Any) -> None:  # noqa: A002 - the name in events
    """Log what rank 0 does not know, such as a compiler that failed here alone."""
    log.error("%s rank=%d %s", type, rank, " ".join(f"{name}={value}" for name, value in fields.items()))


if __name__ == "__main__":
    sys.exit(main())
