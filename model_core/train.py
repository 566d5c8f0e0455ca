"""Train, test or do both, from a configuration file: the program that a person runs and that a worker starts.

    python -m model_core.train --config configs/baseline.yaml --gpu 0

SIGTERM, Ctrl-C, or the end of standard input when a supervisor started it: the state is saved and the exit code
is 75. The handlers are installed before torch is loaded, so a stop during start-up is heeded too.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_core.attempt import (
    DONE,
    STOPPED,
    Attempt,
    OneLineParser,
    exit_code,
    log_to_stderr,
    make_attempt,
    next_attempt,
    refuse,
)
from model_core.config import ExperimentConfig
from model_core.data.preparation import DEFAULT_SEED, ensure_dataset
from model_core.data.sources import open_source
from model_core.environment import start_facts
from model_core.errors import CheckpointMismatch, InvalidParameter, ModelCoreError, RunBusy, RunExists
from model_core.loading import ParsedConfig, parse_config, read_config
from model_core.preflight import preflight
from model_core.records.dataset import Dataset, dataset_of
from model_core.records.files import Layout, next_free_name
from model_core.records.run import Run
from model_core.schedule import effective_steps
from model_core.stopping import StopRequest

if TYPE_CHECKING:
    from model_core.checkpoint import LoadedModel
    from model_core.device import Runtime

log = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Run the program.

    Args:
        argv: Arguments; the process' own if not given.

    Returns:
        The exit code: 0 done, 1 failed, 2 bad input, 75 stopped with a checkpoint, 76 run busy.
    """
    arguments = _parser().parse_args(argv)
    stop = StopRequest()
    stop.listen(stdin=arguments.attempt is not None)

    def on_refusal(error: ModelCoreError) -> None:
        if arguments.attempt is not None:  # there is no run to write it in: it stands beside the configuration
            refuse(Path(arguments.config).parent, arguments.attempt, error)

    return exit_code(lambda: _run(arguments, stop), on_refusal)


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


def _run(arguments: argparse.Namespace, stop: StopRequest) -> int:
    renamed = [f"experiment_name={arguments.run}"] if arguments.run else []
    parsed = read_config(arguments.config, [*arguments.overrides, *renamed])
    log_to_stderr(verbose=parsed.config.logging.verbose)
    layout = Layout.under(arguments.data_root) if arguments.data_root else Layout.of(parsed.config)
    program = _train if parsed.config.execution.train else _test
    return program(arguments, parsed, layout, stop)


def _train(arguments: argparse.Namespace, parsed: ParsedConfig, layout: Layout, stop: StopRequest) -> int:
    run = _open(arguments, parsed.config, layout)
    with run.lock(timeout_s=5 if arguments.attempt else 0):
        number = _begin(arguments, run)
        run.recover()

        def body(attempt: Attempt) -> int:
            _warn(parsed, attempt)
            return _train_attempt(arguments, run, layout, attempt, stop)

        return make_attempt(
            run.path, number, body, log_to_file=parsed.config.logging.log_to_file, seq_after=arguments.seq_after
        )


def _open(arguments: argparse.Namespace, config: ExperimentConfig, layout: Layout) -> Run:
    """Create the run, or open the one to go on with."""
    path = layout.run(config.experiment_name)
    if arguments.resume:
        if arguments.overrides:
            raise InvalidParameter(
                "--set does not go with --resume: a run's configuration is fixed; "
                "to change it, start a new run with checkpoint.load_checkpoint"
            )
        return Run.open(path)
    if arguments.job_id and (path / "attempt").exists() and Run(path).attempt()["job_id"] == arguments.job_id:
        return Run.open(path)
    if path.exists():
        raise RunExists(path.name, next_free_name(path))
    _check_that_it_can_begin(config, layout, arguments.gpu)
    return Run.create(path, config, arguments.job_id)


def _check_that_it_can_begin(config: ExperimentConfig, layout: Layout, gpu: int | None) -> None:
    """Refuse what would fail at once: no run is created for it, and its name stays free."""
    if dataset_of(config, layout).missing():
        if config.data.source is None:
            ensure_dataset(config, layout)  # raises, with the command that makes it
        else:
            open_source(config.data.source, DEFAULT_SEED)

    from model_core.assemble import referred
    from model_core.device import decide, describe_machine

    decide(config, describe_machine(), gpu)
    if config.checkpoint.load_checkpoint:
        referred(config.checkpoint.load_checkpoint, layout)


def _begin(arguments: argparse.Namespace, run: Run) -> int:
    """Make this attempt the run's owner; under the lock."""
    owner: int = run.attempt()["attempt"]
    number = arguments.attempt or max(next_attempt(run.events), owner + 1)
    if owner > number:
        raise RunBusy(run.name)
    run.begin_attempt(number, arguments.job_id)
    return number


def _train_attempt(arguments: argparse.Namespace, run: Run, layout: Layout, attempt: Attempt, stop: StopRequest) -> int:
    config = run.config()
    dataset = _dataset(config, layout, attempt)
    if stop():
        return _stopped(attempt, stop)

    from model_core import device
    from model_core.assemble import assemble, resume, start_from
    from model_core.observers import observers
    from model_core.optim import parameter_counts
    from model_core.trainer import train

    runtime = device.decide(config, device.describe_machine(), arguments.gpu)
    facts = start_facts(config, runtime)
    config = _resolve(config, dataset, runtime)
    run.write_config(config)
    preflight(config, dataset, run.path, attempt.emit)
    device.apply(runtime)
    state = assemble(config, runtime, dataset, attempt.emit)
    attempt.emit("start", **facts, **parameter_counts(state.model), max_steps=state.max_steps)
    for what in runtime.off.keys() & {"bfloat16", "compile", "flash", "efficient"}:
        attempt.emit("warning", code=f"{what}_off", detail=runtime.off[what])
    resume(state, run, attempt.emit)
    if state.step == 0 and config.checkpoint.load_checkpoint:
        start_from(state, config.checkpoint.load_checkpoint, layout, attempt.emit)

    listeners = observers(config, run, attempt=attempt.number, dataset=dataset, emit=attempt.emit)
    finished = train(state, listeners, stop)
    attempt.facts = {"step": state.step, "loss": state.loss, "val_loss": state.val_loss}
    attempt.facts |= {"epochs": round(state.loader.epoch, 3), "training_seconds": round(state.seconds, 3)}
    if finished and config.execution.test:
        finished = _draw(run, config, layout, dataset, runtime, attempt, stop)
    return DONE if finished else _stopped(attempt, stop)


def _resolve(config: ExperimentConfig, dataset: Dataset, runtime: Runtime) -> ExperimentConfig:
    """Fix what the data and the machine decide, so that every later attempt does the same."""
    from model_core.data.loader import load_tokens

    steps = effective_steps(config.training, len(load_tokens(dataset.train)))
    tree = config.model_dump(mode="json")
    tree["training"]["max_steps"] = steps
    tree["device"]["threads"] = runtime.threads
    return parse_config(tree).config


def _test(arguments: argparse.Namespace, parsed: ParsedConfig, layout: Layout, stop: StopRequest) -> int:
    run = Run.open(layout.run(parsed.config.experiment_name))
    directory = arguments.record or layout.attention_of(run.name)
    number = arguments.attempt or next_attempt(directory / "events.jsonl")

    def body(attempt: Attempt) -> int:
        _warn(parsed, attempt)
        return _test_attempt(arguments, parsed.config, run, layout, attempt, stop)

    return make_attempt(directory, number, body, log_to_file=parsed.config.logging.log_to_file)


def _test_attempt(
    arguments: argparse.Namespace,
    written: ExperimentConfig,
    run: Run,
    layout: Layout,
    attempt: Attempt,
    stop: StopRequest,
) -> int:
    from model_core import device
    from model_core.checkpoint import load_model

    loaded = load_model(run, written.testing.checkpoint_path)
    config = _agreed(written, loaded)
    if not arguments.data_root:
        layout = replace(layout, data_dir=Layout.of(config).data_dir)
    dataset = _dataset(config, layout, attempt)
    runtime = device.decide(config, device.describe_machine(), arguments.gpu)
    device.apply(runtime)
    attempt.emit("start", **start_facts(config, runtime), checkpoint=loaded.info.file, step=loaded.info.step)
    done = _draw(run, config, layout, dataset, runtime, attempt, stop, loaded=loaded)
    return DONE if done else _stopped(attempt, stop)


def _agreed(written: ExperimentConfig, loaded: LoadedModel) -> ExperimentConfig:
    """The test configuration with the checkpoint's model, and its data unless other data is written.

    Raises:
        CheckpointMismatch: A model key is written and differs; both values are named.
    """
    theirs, ours = loaded.config.model, written.model
    different = [
        f"model.{key} is {getattr(ours, key)} in the file and {getattr(theirs, key)} in {loaded.info.file}"
        for key in sorted(ours.model_fields_set)
        if "model" in written.model_fields_set and getattr(ours, key) != getattr(theirs, key)
    ]
    if different:
        raise CheckpointMismatch("; ".join(different))
    changes: dict[str, Any] = {"model": theirs}
    if "data" not in written.model_fields_set:
        changes["data"] = loaded.config.data
    return written.model_copy(update=changes)


def _draw(
    run: Run, config: ExperimentConfig, layout: Layout, dataset: Dataset, runtime: Runtime,
    attempt: Attempt, stop: StopRequest, *, loaded: LoadedModel | None = None,
) -> bool:  # fmt: skip
    """Test mode; true if it came to its end."""
    from model_core.checkpoint import load_model
    from model_core.evaluate import test_run

    loaded = loaded or load_model(run, config.testing.checkpoint_path)
    facts = test_run(
        loaded, run.name, config.testing,
        dataset=dataset, layout=layout, runtime=runtime, emit=attempt.emit, should_stop=stop,
    )  # fmt: skip
    attempt.facts |= facts
    log.info("tested run=%s checkpoint=%s test_loss=%s", run.name, loaded.info.file, facts["test_loss"])
    return not stop()


def _dataset(config: ExperimentConfig, layout: Layout, attempt: Attempt) -> Dataset:
    was_missing = bool(dataset_of(config, layout).missing())

    def report(done: int, of: int, unit: str) -> None:
        attempt.emit("progress", done=done, of=of, unit=unit)

    dataset = ensure_dataset(config, layout, report=report)
    if was_missing:
        attempt.emit("prepared", dataset=dataset.name)
        log.info("dataset prepared name=%s", dataset.name)
    return dataset


def _warn(parsed: ParsedConfig, attempt: Attempt) -> None:
    for advice in parsed.warnings:
        attempt.emit("warning", code=advice.code, detail=advice.detail)


def _stopped(attempt: Attempt, stop: StopRequest) -> int:
    attempt.facts["reason"] = stop.reason
    attempt.finish("stopped")
    return STOPPED


if __name__ == "__main__":
    sys.exit(main())
