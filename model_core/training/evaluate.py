"""Loss on held-out tokens, and the test of a checkpoint: test loss, pictures of attention, statistics of its heads."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch

from model_core.attention.capture import attention_blocks
from model_core.attention.heads.distribution import (
    Distribution,
    DistributionAccumulator,
    TextSample,
    check_distribution,
    spread_examples,
)
from model_core.attention.heads.distribution_record import (
    DistributionRecord,
    distribution_directory,
    distribution_key,
    write_distribution,
)
from model_core.attention.pictures.record_pictures import write_layer_pictures
from model_core.attention.recording import capture_example
from model_core.checkpoint import LoadedModel, load_checkpoint
from model_core.config import ExperimentConfig, TestingConfig
from model_core.config_validation import model_differences
from model_core.data.ensure import ensure_dataset
from model_core.data.loader import LoaderConfig, TokenLoader, Tokens, load_tokens
from model_core.entrypoint import Attempt, Emit, ShutdownSignal, describe
from model_core.errors import (
    DONE,
    AttemptSuperseded,
    AttentionTooLarge,
    CheckpointMismatch,
    CheckpointNotFound,
    ModelCoreError,
    RunBusy,
    Stopped,
    is_out_of_memory,
)
from model_core.gpt import GPT
from model_core.hardware import device
from model_core.hardware.device import Runtime, describe_machine
from model_core.schemas import AttentionRequest
from model_core.storage.checkpoints import FALLBACK, CheckpointInfo, fallback_detail
from model_core.storage.dataset import Dataset, bits_per_byte
from model_core.storage.files import Layout
from model_core.storage.run import Run
from model_core.training.start import emit_start_event

log = logging.getLogger(__name__)

_TEST_ROWS, _TEST_BATCHES = 8, 100


@torch.no_grad()
def mean_loss(model: GPT, tokens: Tokens, loader: LoaderConfig, runtime: Runtime, max_batches: int) -> float | None:
    """Average the loss over the first batches of a split.

    Args:
        model: Model in training or evaluation mode, which is restored afterwards.
        tokens: Token ids of the split.
        loader: Options of the batches; a split that is shorter than one batch is read in a smaller one.
        runtime: Device and number format.
        max_batches: Upper limit of the number of batches.

    Returns:
        Mean cross entropy in nats per token, or None when the split is shorter than one row.
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


def run_test(
    loaded: LoadedModel, run: Run, testing: TestingConfig, *,
    dataset: Dataset, layout: Layout, runtime: Runtime, attempt: Attempt, stop: ShutdownSignal,
) -> bool:  # fmt: skip
    """Test a checkpoint: measure its loss, draw its attention on test examples, and measure its heads on more of them.

    Args:
        loaded: The checkpoint.
        run: Run of the checkpoint.
        testing: Number and length of the examples, the form of the pictures, and on how many examples heads are
            measured.
        dataset: Dataset with the test split and the examples.
        layout: Directories of the data root, for the pictures.
        runtime: Device and number format of the loss.
        attempt: Gets the facts ``test_loss``, ``test_bits_per_byte``, ``rendered`` and, if heads were measured,
            ``distribution``, its name; an event for each example and warnings. A loss that cannot be measured is None,
            with a ``reason``.
        stop: Checked between examples.

    Returns:
        Whether the test was completed; false when the process was asked to stop.
    """
    facts = _test_loss(loaded, testing, dataset, runtime, attempt.emit)
    count = min(testing.num_test_samples, dataset.example_count)
    if count < testing.num_test_samples:
        attempt.emit("warning", code="few_examples", detail=f"the dataset has {count} test examples")
    length = min(testing.test_sample_length, testing.max_seq_len_viz, loaded.config.model.block_size)
    rendered = 0
    while rendered < count and not stop():
        request = AttentionRequest(run=run.name, id=str(rendered), checkpoint=loaded.info.file, max_tokens=length)
        record = capture_example(loaded, run.name, layout, request, dataset)
        files = write_layer_pictures(record, testing=testing)
        attempt.emit("rendered", id=str(rendered), files=[file.name for file in files])
        log.info("attention drawn run=%s id=%d layers=%d", run.name, rendered, len(files))
        rendered += 1
    attempt.facts |= {**facts, "rendered": rendered}
    if testing.num_statistics_samples and not stop():
        _measure_heads(loaded, run, testing, dataset=dataset, layout=layout, attempt=attempt, stop=stop)
    log.info("tested run=%s checkpoint=%s test_loss=%s", run.name, loaded.info.file, facts["test_loss"])
    return not stop()


def run_final_test(
    run: Run, config: ExperimentConfig, *,
    dataset: Dataset, layout: Layout, runtime: Runtime, attempt: Attempt, stop: ShutdownSignal,
) -> bool:  # fmt: skip
    """Test a run whose training has ended well. An error of the test is a warning: it does not undo the training.

    Args:
        run: The run.
        config: Its configuration. If the run lacks the checkpoint in `testing`, its newest weights are tested.
        dataset: See `run_test`.
        layout: See `run_test`.
        runtime: See `run_test`.
        attempt: See `run_test`; after an error its facts have no test loss, and a ``reason``.
        stop: See `run_test`.

    Returns:
        See `run_test`.
    """
    try:
        loaded = load_checkpoint(run, _tested_checkpoint(run, config.testing.checkpoint, attempt.emit), like=config)
        return run_test(
            loaded, run, config.testing, dataset=dataset, layout=layout, runtime=runtime, attempt=attempt, stop=stop
        )
    except (ModelCoreError, RuntimeError, MemoryError) as error:
        is_known = isinstance(error, ModelCoreError) or is_out_of_memory(error)
        if isinstance(error, Stopped | RunBusy | AttemptSuperseded) or not is_known:
            raise
        facts = describe(error)
        detail = f"the training is complete, and its test failed with {facts['code']}: {facts['detail']}"
        attempt.emit("warning", code="test_failed", detail=f"{detail}; execution.train false tests the run again")
        attempt.facts |= {"test_loss": None, "test_bits_per_byte": None, "reason": facts["detail"]}
        return not stop()


def run_test_attempt(
    arguments: argparse.Namespace,
    written: ExperimentConfig,
    run: Run,
    layout: Layout,
    attempt: Attempt,
    stop: ShutdownSignal,
) -> int:
    """Do the work of one attempt at a test: load the checkpoint, open its dataset, test it.

    Args:
        arguments: Arguments of the program: ``data_root``, ``gpu``, ``token``.
        written: The test's configuration; the checkpoint decides what it does not state.
        run: Run of the checkpoint.
        layout: Directories of the data root.
        attempt: Records events and facts.
        stop: Checked between examples.

    Returns:
        The exit code.

    Raises:
        CheckpointMismatch: The configuration states another model than the checkpoint's.
    """
    info = run.resolve(written.testing.checkpoint)
    _warn_of_fallback(attempt.emit, fallback_detail(written.testing.checkpoint, info))
    loaded = load_checkpoint(run, info)
    config = _with_model_of(loaded, written)
    if not arguments.data_root:
        layout = replace(layout, data_dir=Layout.of(config).data_dir)
    dataset = ensure_dataset(config, layout, token=arguments.token, emit=attempt.emit, stop=stop)
    runtime = device.decide(config, describe_machine(), arguments.gpu)
    device.apply(runtime)
    emit_start_event(attempt.emit, config, runtime, arguments.gpu, checkpoint=loaded.info.file, step=loaded.info.step)
    finished = run_test(
        loaded, run, config.testing, dataset=dataset, layout=layout, runtime=runtime, attempt=attempt, stop=stop
    )
    return DONE if finished else attempt.stopped(stop.reason)


def _tested_checkpoint(run: Run, reference: str, emit: Emit) -> CheckpointInfo:
    try:
        info = run.resolve(reference)
        _warn_of_fallback(emit, fallback_detail(reference, info))
    except CheckpointNotFound as error:
        info = run.newest()
        _warn_of_fallback(emit, f"{error}; {info.file}, its newest weights, of step {info.step}, takes its place")
    return info


def _warn_of_fallback(emit: Emit, detail: str | None) -> None:
    if detail is not None:
        emit("warning", code=FALLBACK, detail=detail)


def _with_model_of(loaded: LoadedModel, written: ExperimentConfig) -> ExperimentConfig:
    """Complete a test's configuration by the checkpoint's model, and by its data unless other data is stated."""
    keys = written.model.model_fields_set if "model" in written.model_fields_set else ()
    if different := model_differences(written.model, loaded.config.model, there=loaded.info.file, keys=keys):
        raise CheckpointMismatch("; ".join(different))
    changes: dict[str, Any] = {"model": loaded.config.model}
    if "data" not in written.model_fields_set:
        changes["data"] = loaded.config.data
    return written.model_copy(update=changes)


def accumulate_distribution(model: GPT, sample: TextSample, stop: Callable[[], bool]) -> Distribution | None:
    """Measure every head on every text, in one pass.

    Args:
        model: The model, in eval mode, on any device.
        sample: The texts.
        stop: Checked between batches.

    Returns:
        The distribution; None if it was stopped.
    """
    place = next(model.parameters()).device
    accumulator = DistributionAccumulator(sample, model.config.heads)
    for texts in sample.batches():
        if stop():
            return None
        idx = torch.tensor([sample.texts[text] for text in texts], device=place)  # (B, T)
        blocks = attention_blocks(model, idx, norms=True)
        for layer, parts in groupby(blocks, key=lambda block: block.layer):
            sums = accumulator.layer(texts, layer)
            for part in parts:
                norms = (part.value_norms, part.output_norms)
                values, outputs = (None if norm is None else norm.numpy() for norm in norms)
                sums.add(part.first, part.attention.numpy(), value_norms=values, output_norms=outputs)
            accumulator.add(texts, layer, sums)
    return accumulator.finish()


def _example_tokens(loaded: LoadedModel, dataset: Dataset, numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    """Token ids of test examples, in the tokenizer of the checkpoint."""
    is_same = dataset.tokenizer().sha256 == loaded.tokenizer.sha256
    for number in numbers:
        example = dataset.example(number)
        yield example.tokens if is_same else loaded.tokenizer.encode(example.text)


def _measure_heads(
    loaded: LoadedModel, run: Run, testing: TestingConfig, *,
    dataset: Dataset, layout: Layout, attempt: Attempt, stop: ShutdownSignal,
) -> None:  # fmt: skip
    """Measure the distribution of heads unless it is there; what makes that impossible is a warning."""
    model, info = loaded.config.model, loaded.info
    numbers = spread_examples(dataset.example_count, testing.num_statistics_samples)
    if len(numbers) < testing.num_statistics_samples:
        attempt.emit("warning", code="few_examples", detail=f"the dataset has {len(numbers)} test examples")
    max_tokens = min(testing.test_sample_length, model.block_size)
    try:
        check_distribution(
            sum(model.heads), len(numbers), max_tokens, model.vocab_size, pointer="/testing/num_statistics_samples"
        )
    except AttentionTooLarge as error:
        attempt.emit("warning", code=error.code, detail=str(error))
        return
    sample = TextSample.of(numbers, _example_tokens(loaded, dataset, numbers), max_tokens)
    if not sample.texts:
        attempt.emit("warning", code="few_examples", detail="no test example has two tokens: heads were not measured")
        return
    key = distribution_key(dataset, len(numbers), max_tokens)
    directory = distribution_directory(layout, run.name, info, key)
    if DistributionRecord.open(directory) is None:
        began = time.monotonic()
        measured = accumulate_distribution(loaded.model, sample, stop)
        if measured is None:
            return
        described = {
            "run": run.name,
            "checkpoint": info.file,
            "step": info.step,
            "sha256": info.sha256,
            "dataset": dataset.name,
            "heads": list(model.heads),
            "head_dims": list(model.head_dims),
            "sample": {"max_tokens": max_tokens, "too_short": len(numbers) - len(sample.texts)},
            "seconds": round(time.monotonic() - began, 3),
        }
        write_distribution(directory, measured, sample, described, loaded.tokenizer.pieces)
    attempt.facts |= {"distribution": directory.name}
    log.info("heads measured run=%s examples=%d distribution=%s", run.name, len(sample.texts), directory.name)


def _test_loss(
    loaded: LoadedModel, testing: TestingConfig, dataset: Dataset, runtime: Runtime, emit: Emit
) -> dict[str, Any]:
    tokens = load_tokens(dataset.test)
    length = min(testing.test_sample_length, loaded.config.model.block_size, max(1, len(tokens) - 1))
    loader = LoaderConfig(_TEST_ROWS, length, vocab_size=loaded.config.model.vocab_size)
    model = loaded.model.to(runtime.device)
    loss = mean_loss(model, tokens, loader, runtime, _TEST_BATCHES)
    if loss is None:
        reason = f"the test split has {len(tokens)} tokens, too few for one row"
        emit("warning", code="no_test_loss", detail=reason)
        return {"test_loss": None, "test_bits_per_byte": None, "reason": reason}
    return {"test_loss": loss, "test_bits_per_byte": bits_per_byte(loss, dataset, "test")}
