"""The test mode: test loss and attention pictures of a run that exists, or of the one just trained."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from model_core.attempt import DONE, Attempt, make_attempt, next_attempt
from model_core.config import ExperimentConfig
from model_core.loading import ParsedConfig
from model_core.records.dataset import Dataset
from model_core.records.errors import CheckpointMismatch
from model_core.records.files import Layout
from model_core.records.run import Run
from model_core.stopping import StopRequest
from model_core.training.environment import announce

if TYPE_CHECKING:
    from model_core.checkpoint import LoadedModel
    from model_core.hardware.device import Runtime

log = logging.getLogger(__name__)


def test(arguments: argparse.Namespace, parsed: ParsedConfig, layout: Layout, stop: StopRequest) -> int:
    """Test the run that a configuration names.

    Args:
        arguments: Of the program: ``data_root``, ``record``, ``attempt``, ``gpu``, ``token``.
        parsed: The configuration and its warnings.
        layout: Where runs and pictures lie.
        stop: Asked between examples.

    Returns:
        The exit code.
    """
    run = Run.open(layout.run(parsed.config.experiment_name))
    directory = arguments.record or layout.attention_of(run.name)
    number = arguments.attempt or next_attempt(directory / "events.jsonl")

    def body(attempt: Attempt) -> int:
        attempt.warn(parsed.warnings)
        return _test_attempt(arguments, parsed.config, run, layout, attempt, stop)

    return make_attempt(directory, number, body, log_to_file=parsed.config.logging.log_to_file)


test.__test__ = False  # type: ignore[attr-defined] # not a test, whatever its name


def draw(
    run: Run, config: ExperimentConfig, layout: Layout, dataset: Dataset, runtime: Runtime,
    attempt: Attempt, stop: StopRequest, *, loaded: LoadedModel | None = None,
) -> bool:  # fmt: skip
    """Measure the test loss and draw the attention of test examples; true if it came to its end."""
    from model_core.checkpoint import load_model
    from model_core.training.evaluate import test_run

    loaded = loaded or load_model(run, config.testing.checkpoint_path)
    facts = test_run(
        loaded, run.name, config.testing,
        dataset=dataset, layout=layout, runtime=runtime, emit=attempt.emit, should_stop=stop,
    )  # fmt: skip
    attempt.facts |= facts
    log.info("tested run=%s checkpoint=%s test_loss=%s", run.name, loaded.info.file, facts["test_loss"])
    return not stop()


def _test_attempt(
    arguments: argparse.Namespace,
    written: ExperimentConfig,
    run: Run,
    layout: Layout,
    attempt: Attempt,
    stop: StopRequest,
) -> int:
    from model_core.checkpoint import load_model
    from model_core.hardware import device
    from model_core.hardware.machine import describe_machine

    loaded = load_model(run, written.testing.checkpoint_path)
    config = _agreed(written, loaded)
    if not arguments.data_root:
        layout = replace(layout, data_dir=Layout.of(config).data_dir)
    dataset = attempt.dataset(config, layout, stop, arguments.token)
    runtime = device.decide(config, describe_machine(), arguments.gpu)
    device.apply(runtime)
    announce(attempt.emit, config, runtime, arguments.gpu, checkpoint=loaded.info.file, step=loaded.info.step)
    done = draw(run, config, layout, dataset, runtime, attempt, stop, loaded=loaded)
    return DONE if done else attempt.stopped(stop.reason)


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
