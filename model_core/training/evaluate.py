"""Loss on held-out tokens, and the test mode: test loss and attention pictures of a run."""

from __future__ import annotations

import argparse
import itertools
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from model_core.attention.capture import capture_example
from model_core.attention.plot import write_layer_pictures
from model_core.checkpoint import LoadedModel
from model_core.config import ExperimentConfig, TestingConfig
from model_core.config_loader import ParsedConfig
from model_core.data.ensure import ensure_dataset
from model_core.data.loader import LoaderConfig, TokenLoader, Tokens, load_tokens
from model_core.entrypoint import Attempt, ShutdownSignal, make_attempt, next_attempt
from model_core.errors import DONE, CheckpointMismatch
from model_core.gpt import GPT
from model_core.hardware.device import Runtime
from model_core.schemas import AttentionRequest
from model_core.storage.dataset import Dataset, bits_per_byte
from model_core.storage.files import Layout
from model_core.storage.run import Run
from model_core.training.start import emit_start_event

if TYPE_CHECKING:
    from model_core.checkpoint import LoadedModel
    from model_core.hardware.device import Runtime

log = logging.getLogger(__name__)


def test(arguments: argparse.Namespace, parsed: ParsedConfig, layout: Layout, stop: ShutdownSignal) -> int:
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
    attempt: Attempt, stop: ShutdownSignal, *, loaded: LoadedModel | None = None,
) -> bool:  # fmt: skip
    """Measure the test loss and draw the attention of test examples; true if it came to its end."""
    from model_core.checkpoint import load_model

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
    stop: ShutdownSignal,
) -> int:
    from model_core.checkpoint import load_model
    from model_core.hardware import device
    from model_core.hardware.device import describe_machine

    loaded = load_model(run, written.testing.checkpoint_path)
    config = _agreed(written, loaded)
    if not arguments.data_root:
        layout = replace(layout, data_dir=Layout.of(config).data_dir)
    dataset = ensure_dataset(config, layout, token=arguments.token, emit=attempt.emit, stop=stop)
    runtime = device.decide(config, describe_machine(), arguments.gpu)
    device.apply(runtime)
    emit_start_event(attempt.emit, config, runtime, arguments.gpu, checkpoint=loaded.info.file, step=loaded.info.step)
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


Emit = Callable[..., Any]


@torch.no_grad()
def mean_loss(model: GPT, tokens: Tokens, loader: LoaderConfig, runtime: Runtime, max_batches: int) -> float | None:
    """Average the loss over the first batches of a file.

    Args:
        model: Left in the mode it was in.
        tokens: The file.
        loader: Its batch_size shrinks to what the file holds.
        runtime: Device and number format.
        max_batches: How many batches at most.

    Returns:
        Nats a token, or None when the file is shorter than one row.
    """
    rows = min(loader.batch_size, max(0, (len(tokens) - 1) // loader.sequence_length))
    if rows == 0:
        return None
    config = LoaderConfig(rows, loader.sequence_length, vocab_size=loader.vocab_size)
    batches = TokenLoader(tokens, config, device=runtime.device)
    count = min(max_batches, batches.windows // rows)
    was_training = model.training
    model.eval()
    total = 0.0
    for _ in range(count):
        with runtime.autocast(), runtime.attention():
            _, loss = model(*batches.next_batch())
        total += loss.item()
    model.train(was_training)
    return total / count


def test_run(
    loaded: LoadedModel, run: str, testing: TestingConfig, *,
    dataset: Dataset, layout: Layout, runtime: Runtime, emit: Emit, should_stop: Callable[[], bool],
) -> dict[str, Any]:  # fmt: skip
    """Measure the test loss and draw the attention of test examples.

    Args:
        loaded: The checkpoint.
        run: Name of its run.
        testing: How many examples, how long, how drawn.
        dataset: Where the examples are.
        layout: Where the pictures go.
        runtime: Device and number format of the loss.
        emit: Told ``rendered`` for every example, and ``warning``.
        should_stop: Asked between examples.

    Returns:
        ``test_loss``, ``test_bits_per_byte`` and ``rendered``; a loss that cannot be had is None with a ``reason``.
    """
    facts = _test_loss(loaded, testing, dataset, runtime, emit)
    examples = min(testing.num_test_samples, dataset.example_count)
    if examples < testing.num_test_samples:
        emit("warning", code="few_examples", detail=f"the dataset has {examples} test examples")
    length = min(testing.test_sample_length, testing.max_seq_len_viz, loaded.config.model.block_size)
    rendered = 0
    for example in itertools.takewhile(lambda _: not should_stop(), range(examples)):
        request = AttentionRequest(run=run, id=str(example), checkpoint=loaded.info.file, max_tokens=length)
        record = capture_example(loaded, run, layout, request, dataset)
        files = write_layer_pictures(record, testing=testing)
        rendered += 1
        emit("rendered", id=str(example), files=[file.name for file in files])
        log.info("attention drawn run=%s id=%d layers=%d", run, example, len(files))
    return {**facts, "rendered": rendered}


def _test_loss(
    loaded: LoadedModel, testing: TestingConfig, dataset: Dataset, runtime: Runtime, emit: Emit
) -> dict[str, Any]:
    tokens = load_tokens(dataset.test)
    length = min(testing.test_sample_length, loaded.config.model.block_size, max(1, len(tokens) - 1))
    loader = LoaderConfig(8, length, vocab_size=loaded.config.model.vocab_size)
    model = loaded.model.to(runtime.device)
    loss = mean_loss(model, tokens, loader, runtime, max_batches=100)
    if loss is None:
        reason = f"the test split has {len(tokens)} tokens, too few for one row"
        emit("warning", code="no_test_loss", detail=reason)
        return {"test_loss": None, "test_bits_per_byte": None, "reason": reason}
    return {"test_loss": loss, "test_bits_per_byte": bits_per_byte(loss, dataset, "test")}


test_run.__test__ = False  # type: ignore[attr-defined] # not a test, whatever its name
