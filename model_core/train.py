"""Train, test or do both, from a configuration file: the program that a person runs and that a worker starts.

    python -m model_core.train --config configs/baseline.yaml --gpu 0

SIGTERM, Ctrl-C, or the end of standard input when a supervisor started it: the state is saved and the exit code
is 75. The handlers are installed before torch is loaded, so a stop during start-up is heeded too. Started by torchrun
or model_core.launch it is one of several processes that train together; then rank 0 alone writes.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_core.hardware.allocator import reexec_with_malloc_env

if __name__ == "__main__":  # here, because it begins again: nothing heavy is imported twice
    reexec_with_malloc_env()

from model_core.budget import budget_of
from model_core.config import ExperimentConfig
from model_core.config_loader import ParsedConfig, parse_config, read_config
from model_core.config_validation import check_batch_divides
from model_core.data.ensure import ensure_dataset
from model_core.data.sources.hub_access import token_from
from model_core.entrypoint import (
    Attempt,
    OneLineParser,
    OnRefusal,
    ShutdownSignal,
    exit_code,
    log_to_stderr,
    make_attempt,
    refuse,
)
from model_core.errors import BAD_INPUT, DONE, InvalidConfig, InvalidParameter, ModelCoreError
from model_core.launch import DistEnv, dist_env
from model_core.report import preflight
from model_core.schedule import effective_steps
from model_core.storage.dataset import Dataset
from model_core.storage.files import Layout
from model_core.storage.run import Run
from model_core.training.evaluate import draw, test
from model_core.training.start import claim_run, create_or_open_run, emit_start_event

if TYPE_CHECKING:
    from model_core.hardware.device import Runtime
    from model_core.training.distributed import Rendezvous
    from model_core.training.trainer import TrainState

log = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Run the program.

    Args:
        argv: Arguments; the process' own if not given.

    Returns:
        The exit code: 0 done, 1 failed, 2 bad input, 75 stopped with a checkpoint, 76 run busy.
    """
    arguments = _parser().parse_args(argv)
    arguments.token = token_from(os.environ)  # of the hub; here alone is the environment read
    stop = ShutdownSignal()

    def on_refusal(error: ModelCoreError) -> None:
        if arguments.attempt is not None:  # there is no run to write it in: it stands beside the configuration
            refuse(Path(arguments.config).parent, arguments.attempt, error)

    def body() -> int:
        place = dist_env(os.environ)
        stop.listen(stdin=arguments.attempt is not None, parent=place.launched)
        if place.is_main:
            return _run(arguments, place, stop, on_refusal)
        return _follow(arguments, place, stop)

    return exit_code(body, on_refusal)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m model_core.train",
        description="Train a GPT-2 whose layers may have different head counts, test it, or both.",
        epilog="exit codes: 0 done, 1 failed, 2 bad input, 75 stopped with a checkpoint, 76 run busy",
    )
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help="a YAML file, for example configs/quickstart.yaml")
    add("--gpu", type=int, metavar="N", help="index among the visible CUDA devices")
    add("--set", action="append", default=[], metavar="K=V", dest="overrides",
        help="override a key, for example training.max_steps=100; may be repeated")  # fmt: skip
    add("--run", metavar="NAME", help="name the run; else the file's experiment_name does")
    add("--data-root", type=Path, metavar="DIR", default=os.environ.get("HEADCOUNT_DATA"),
        help="one root for datasets, runs and pictures; default HEADCOUNT_DATA, else the file's own paths")  # fmt: skip
    add("--resume", action="store_true", help="go on with a run that exists, from its newest intact full state")
    add("--attempt", type=int, help=argparse.SUPPRESS)  # the supervisor's: number of this attempt
    add("--job-id", help=argparse.SUPPRESS)  # the supervisor's: whose run it is
    add("--seq-after", type=int, default=0, help=argparse.SUPPRESS)  # the supervisor's: events told of an earlier run
    add("--record", type=Path, metavar="DIR", help=argparse.SUPPRESS)  # the supervisor's: events of a test job
    return parser


def _run(arguments: argparse.Namespace, place: DistEnv, stop: ShutdownSignal, on_refusal: OnRefusal) -> int:
    parsed, layout = _read(arguments, place)
    log_to_stderr(verbose=parsed.config.logging.verbose)
    if place.world_size == 1:
        program = _train if parsed.config.execution.train else test
        return program(arguments, parsed, layout, stop)

    from model_core.training.distributed import Rendezvous

    rendezvous = Rendezvous(place)
    code = exit_code(lambda: _train(arguments, parsed, layout, stop, rendezvous), on_refusal)
    rendezvous.finish(code)
    return code


def _follow(arguments: argparse.Namespace, place: DistEnv, stop: ShutdownSignal) -> int:
    """Train along with rank 0, which says what there is to say."""
    logging.basicConfig(level=logging.ERROR)
    try:
        parsed, layout = _read(arguments, place)
    except ModelCoreError:
        return BAD_INPUT

    from model_core.training.distributed import Rendezvous
    from model_core.training.follower import follow

    return follow(parsed.config, layout, Rendezvous(place), stop)


def _read(arguments: argparse.Namespace, place: DistEnv) -> tuple[ParsedConfig, Layout]:
    """The configuration, and where things lie."""
    renamed = [f"experiment_name={arguments.run}"] if arguments.run else []
    parsed = read_config(arguments.config, [*arguments.overrides, *renamed])
    layout = Layout.under(arguments.data_root) if arguments.data_root else Layout.of(parsed.config)
    if place.world_size > 1:
        if not parsed.config.execution.train:
            raise InvalidParameter(f"a test runs in one process, not in {place.world_size}: start it without torchrun")
        if arguments.gpu is not None:
            raise InvalidParameter(
                f"--gpu {arguments.gpu} does not go with {place.world_size} processes: each takes its own"
            )
        if problems := tuple(check_batch_divides(parsed.config.training, place.world_size)):
            raise InvalidConfig(problems)
    return parsed, layout


def _train(
    arguments: argparse.Namespace,
    parsed: ParsedConfig,
    layout: Layout,
    stop: ShutdownSignal,
    rendezvous: Rendezvous | None = None,
) -> int:
    run = create_or_open_run(arguments, parsed.config, layout, rendezvous.place if rendezvous else DistEnv())
    with run.lock(timeout_s=5 if arguments.attempt else 0):
        number = claim_run(arguments, run)
        run.recover()

        def body(attempt: Attempt) -> int:
            attempt.warn(parsed.warnings)
            return _train_attempt(arguments, run, layout, attempt, stop, rendezvous)

        return make_attempt(
            run.path, number, body, log_to_file=parsed.config.logging.log_to_file, seq_after=arguments.seq_after
        )


def _train_attempt(
    arguments: argparse.Namespace,
    run: Run,
    layout: Layout,
    attempt: Attempt,
    stop: ShutdownSignal,
    rendezvous: Rendezvous | None,
) -> int:
    config = run.config()
    dataset = ensure_dataset(config, layout, token=arguments.token, emit=attempt.emit, stop=stop)
    if stop():
        return attempt.stopped(stop.reason)

    from model_core.hardware import device
    from model_core.optim import parameter_counts
    from model_core.training.callbacks import build_callbacks
    from model_core.training.distributed import ProcessGroup
    from model_core.training.resume import begin
    from model_core.training.setup import build_train_state, runtime_of
    from model_core.training.trainer import train

    asked, place = config, rendezvous.place if rendezvous else DistEnv()
    runtime = runtime_of(asked, place, arguments.gpu)
    config = _resolve(config, dataset, runtime)
    run.write_config(config)
    preflight(config, dataset, run.path, attempt.emit)
    device.apply(runtime)
    if rendezvous:
        rendezvous.start(stop)
    ranks = ProcessGroup.join(rendezvous, runtime.device) if rendezvous else ProcessGroup()
    state = build_train_state(config, runtime, dataset, attempt.emit, ranks)
    sizes = {"max_steps": state.max_steps, "batch_size": state.batch_size, "accumulation": state.accumulation}
    facts = {**parameter_counts(state.model), **sizes, "processes": ranks.world_size}
    emit_start_event(attempt.emit, asked, runtime, arguments.gpu, **facts)
    begin(state, run, layout, attempt.emit)

    listeners = build_callbacks(config, run, attempt=attempt.number, dataset=dataset, emit=attempt.emit)
    try:
        finished = train(state, listeners, stop)
    finally:
        attempt.facts |= _summary(state)
        ranks.close()
    if finished and config.execution.test:
        finished = draw(run, config, layout, dataset, runtime, attempt, stop)
    return DONE if finished else attempt.stopped(stop.reason or "a stop of another process")


def _summary(state: TrainState) -> dict[str, Any]:
    """What a training came to, however it ended."""
    from model_core.hardware.memory import peak_bytes
    from model_core.hardware.throughput import summarise

    runtime, flops = state.runtime, budget_of(state.config).flops_per_token // state.ranks.world_size  # of one device
    gpu = runtime.gpu.name if runtime.gpu else None
    speed = summarise(state.pace, flops, gpu=gpu, dtype=runtime.dtype, tf32=runtime.tf32)
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


def _resolve(config: ExperimentConfig, dataset: Dataset, runtime: Runtime) -> ExperimentConfig:
    """Fix what the data and the machine decide, so that every later attempt does the same."""
    from model_core.data.loader import load_tokens

    steps = effective_steps(config.training, len(load_tokens(dataset.train)))
    tree = config.model_dump(mode="json")
    tree["training"]["max_steps"] = steps
    tree["device"]["threads"] = runtime.threads
    return parse_config(tree).config


if __name__ == "__main__":
    sys.exit(main())
