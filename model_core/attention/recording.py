"""Captures a test example, or a text that a client sent, into a record on disk.

What a request asks for is checked with the tokenizer alone, so that a refusal loads no model.

Shapes: H heads of one layer, T tokens, R queries of a block, K keys that they see.
"""

from __future__ import annotations

import codecs
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from model_core.attention.capture import attention_blocks
from model_core.attention.quota import AttentionQuota, check_size
from model_core.attention.record import (
    AttentionRecord,
    Manifest,
    default_max_tokens,
    free_directory,
    is_example,
    layer_file,
    text_directory,
)
from model_core.attention.record_writer import RecordWriter
from model_core.attention.texts import (
    drop_other_lengths,
    load_text,
    load_tokens,
    remove_unrecorded,
    save_text,
    save_tokens,
    text_lock,
)
from model_core.errors import (
    DatasetNotReady,
    FieldProblem,
    InvalidParameter,
    InvalidParameters,
    PromptTooLong,
    TextNotFound,
)
from model_core.schemas import AttentionRequest, text_id, tokens_id
from model_core.storage.run import Run
from model_core.tokenizer import unknown_ids

if TYPE_CHECKING:
    from model_core.checkpoint import LoadedModel
    from model_core.config import ModelConfig
    from model_core.storage.dataset import Dataset
    from model_core.storage.files import Layout
    from model_core.tokenizer import Tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CapturePlan:
    """A capture that is possible.

    Attributes:
        layout: Paths of the data root.
        run: Name of the run.
        request: The example or text.
        ids: Token ids that are captured.
        whole: Number of tokens of the whole text.
    """

    layout: Layout
    run: str
    request: AttentionRequest
    ids: tuple[int, ...]
    whole: int

    @property
    def directory(self) -> Path:
        """Directory of the text."""
        return text_directory(self.layout, self.run, self.request.id)

    def find(self, sha256: str) -> AttentionRecord | None:
        """Find what was captured already.

        Args:
            sha256: Hash of the checkpoint's file, hex.

        Returns:
            The record, or its beginning with the planned tokens.
        """
        request = self.request
        return AttentionRecord.find(self.layout, self.run, request.id, sha256, max_tokens=len(self.ids))


def plan_capture(
    tokenizer: Tokenizer,
    model: ModelConfig,
    layout: Layout,
    request: AttentionRequest,
    dataset: Dataset | None,
    *,
    quota: AttentionQuota | None = None,
) -> CapturePlan:
    """Check a request and make room for its record, before a model is loaded.

    Args:
        tokenizer: Tokenizer of the checkpoint.
        model: Shape of its model.
        layout: Paths of the data root.
        request: The example or text. An example that is longer than `max_tokens` or the model's positions is cut;
            without `max_tokens` the run's `default_max_tokens` applies. A text is cut only by `max_tokens`.
        dataset: Dataset of the test examples; None if there is none.
        quota: Makes room on the disk; None leaves that to the disk.

    Returns:
        What to capture.

    Raises:
        ExampleNotFound: There is no such example, or the text of this id was never sent.
        DatasetNotReady: An example was requested, but there is no dataset.
        InvalidParameter: The id is not that of the text, the text has no tokens, or an id is not in the vocabulary.
        PromptTooLong: The text has more tokens than the model has positions, and `max_tokens` does not cut it.
        AttentionTooLarge: Its record would be too large; see `quota`.
    """
    directory = text_directory(layout, request.run, request.id)
    ids = _token_ids(tokenizer, directory, request, dataset)
    limit = request.max_tokens
    if limit is None and is_example(request.id):
        limit = default_max_tokens(Run.open(layout.run(request.run)).config().testing)
    if limit is None and len(ids) > model.block_size:
        pointer = "/text" if request.tokens is None else "/tokens"
        raise PromptTooLong(len(ids), model.block_size, pointer=pointer)
    kept = tuple(ids[: min(limit or len(ids), model.block_size)])
    check_size(model.heads, len(kept), max_tokens=request.max_tokens)
    if quota is not None:
        quota.make_room(request.run, request.id, model.heads, len(kept), max_tokens=request.max_tokens)
    return CapturePlan(layout, request.run, request, kept, len(ids))


def run_capture(loaded: LoadedModel, plan: CapturePlan) -> AttentionRecord:
    """Capture what was planned, unless another thread or process did it meanwhile.

    Args:
        loaded: The model of the checkpoint.
        plan: The plan.

    Returns:
        The record, found or new. It takes the place of a shorter one of the same checkpoint.

    Raises:
        DiskFull: No space is left; a shorter record is intact, and a text without a record is gone.
    """
    info, directory, request = loaded.info, plan.directory, plan.request
    with text_lock(directory):
        if found := plan.find(info.sha256):
            return found
        try:
            if request.text is not None:
                save_text(directory, request.text)
            if request.tokens is not None:
                save_tokens(directory, request.tokens)
            record = _write_record(loaded, plan, free_directory(directory, info.sha256))
        except BaseException:
            remove_unrecorded(directory)
            raise
        drop_other_lengths(directory, record)
    log.info("attention captured run=%s id=%s checkpoint=%s tokens=%d", plan.run, request.id, info.file, len(plan.ids))
    return record


def capture_example(
    loaded: LoadedModel, run: str, layout: Layout, request: AttentionRequest, dataset: Dataset | None
) -> AttentionRecord:
    """Capture a test example or a text once for each checkpoint; later and shorter calls find the record.

    Args:
        loaded: The model of the checkpoint.
        run: Name of the run.
        layout: Paths of the data root.
        request: The example or text, see `plan_capture`.
        dataset: Dataset of the test examples; None if there is none.

    Returns:
        The record with the tokens that were asked for, found or new.

    Raises:
        ModelCoreError: As `plan_capture` and `run_capture`.
    """
    sha256, max_tokens = loaded.info.sha256, request.max_tokens
    if found := AttentionRecord.find(layout, run, request.id, sha256, max_tokens=max_tokens):
        return found
    return run_capture(loaded, plan_capture(loaded.tokenizer, loaded.config.model, layout, request, dataset))


def _write_record(loaded: LoadedModel, plan: CapturePlan, path: Path) -> AttentionRecord:
    writer = RecordWriter(path, loaded.config.model.n_layer, len(plan.ids))
    device = next(loaded.model.parameters()).device
    try:
        for block in attention_blocks(loaded.model, torch.tensor([plan.ids], device=device), norms=True):
            assert block.value_norms is not None
            assert block.output_norms is not None
            writer.add_block(
                block.first,
                block.attention[0].numpy(),  # (H, R, K)
                value_norms=block.value_norms[0].numpy(),  # (H, K)
                output_norms=block.output_norms[0].numpy(),  # (H, R)
            )
        return writer.finish(_manifest_fields(loaded, plan))
    except BaseException:
        writer.discard()
        raise


def _token_ids(
    tokenizer: Tokenizer, directory: Path, request: AttentionRequest, dataset: Dataset | None
) -> Sequence[int]:
    if request.text is not None:
        _check_id(request.id, text_id(request.text))
        ids: Sequence[int] = tokenizer.encode(request.text)
        if not ids:
            raise InvalidParameters([FieldProblem("/text", "has no tokens", request.text)])
        return ids
    if request.tokens is not None:
        _check_id(request.id, tokens_id(request.tokens))
        if unknown := list(unknown_ids(request.tokens, tokenizer.n_vocab, "/tokens")):
            raise InvalidParameters(unknown)
        return request.tokens
    if is_example(request.id):
        return _example_ids(tokenizer, request.id, dataset)
    if (text := load_text(directory)) is not None:
        return tokenizer.encode(text)
    if (stored := load_tokens(directory)) is not None:
        return stored
    raise TextNotFound(request.run, request.id)


def _check_id(given: str, right: str) -> None:
    if given != right:
        raise InvalidParameter(f"{given!r} is not the id of this text; it is {right!r}")


def _example_ids(tokenizer: Tokenizer, example: str, dataset: Dataset | None) -> Sequence[int]:
    if dataset is None:
        raise DatasetNotReady(f"example {example!r} needs a dataset's test_examples.json, and there is no dataset")
    stored = dataset.example(int(example))
    same = dataset.tokenizer().sha256 == tokenizer.sha256
    ids: Sequence[int] = list(stored.tokens) if same else tokenizer.encode(stored.text)
    if not ids:
        raise InvalidParameter(f"example {example!r} has no tokens")
    return ids


def _manifest_fields(loaded: LoadedModel, plan: CapturePlan) -> Manifest:
    model, info, tokenizer, ids = loaded.config.model, loaded.info, loaded.tokenizer, plan.ids
    return {
        "run": plan.run,
        "id": plan.request.id,
        "checkpoint": info.file,
        "step": info.step,
        "sha256": info.sha256,
        "text": tokenizer.decode(ids),
        "tokens": tokenizer.names(ids),
        "token_ids": list(ids),
        "ends": _text_ends(tokenizer, ids),
        "max_tokens": len(ids) if plan.whole > len(ids) else min(plan.request.max_tokens or len(ids), model.block_size),
        "truncated_from": plan.whole if plan.whole > len(ids) else None,
        "block_size": model.block_size,
        "layers": [
            {"layer": layer, "n_head": n_head, "head_dim": head_dim, "png": layer_file(layer, model.n_layer)}
            for layer, (n_head, head_dim) in enumerate(zip(model.heads, model.head_dims, strict=True))
        ],
    }


def _text_ends(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """Whole characters of the text up to the end of each token."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    sizes = (len(decoder.decode(tokenizer.decode_bytes([token]))) for token in ids)
    return list(itertools.accumulate(sizes))
