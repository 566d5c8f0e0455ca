"""Loss on held-out tokens, and the test mode: test loss and attention pictures of a trained run."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable
from typing import Any

import torch

from model_core.capture import capture_example
from model_core.checkpoint import LoadedModel
from model_core.config import TestingConfig
from model_core.data.loader import LoaderConfig, TokenLoader, Tokens, load_tokens
from model_core.gpt import GPT
from model_core.hardware.device import Runtime
from model_core.pictures.heatmap import write_layer_pictures
from model_core.records.dataset import Dataset
from model_core.records.files import Layout
from model_core.requests import AttentionRequest

log = logging.getLogger(__name__)

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


def bits_per_byte(loss: float, dataset: Dataset, split: str) -> float | None:
    """A loss in nats a token as bits a byte of text, comparable between tokenizers.

    Returns:
        None when the dataset's manifest does not say how many bytes its text has.
    """
    bytes_per_token = dataset.bytes_per_token(split)
    return None if bytes_per_token is None else loss / math.log(2) / bytes_per_token


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
