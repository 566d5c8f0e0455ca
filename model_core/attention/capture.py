"""Captures the attention of every head, which fused kernels never return.

It runs the layers of training with attention written out: softmax(Q K^T / sqrt(D)) under the causal mask (Vaswani et
al., "Attention Is All You Need", 2017). One layer's attention exists at a time; no logits are computed.

Shapes: B batch, T tokens, C n_embd, H heads of this layer, D head_dim of this layer.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model_core.attention.record import (
    AttentionRecord,
    Manifest,
    RecordWriter,
    capture_lock,
    default_max_tokens,
    free_directory,
    layer_file,
    load_text,
    save_text,
    text_directory,
)
from model_core.errors import AttentionTooLarge, DatasetNotReady, ExampleNotFound, InvalidParameter
from model_core.schemas import AttentionRequest, text_id
from model_core.storage.run import Run

if TYPE_CHECKING:
    from model_core.checkpoint import LoadedModel
    from model_core.gpt import GPT
    from model_core.storage.dataset import Dataset
    from model_core.storage.files import Layout

log = logging.getLogger(__name__)

MAX_LAYER_ELEMENTS = 2**27  # of one layer, in memory: 512 MiB each for logits, softmax and the copy that is stored
MAX_RECORD_ELEMENTS = 2**30  # of all layers, on disk: 1 GiB


def causal_attention(q: Tensor, k: Tensor) -> Tensor:
    """Attend from every token to itself and its past.

    Args:
        q: Queries, (B, H, T, D).
        k: Keys, (B, H, T, D).

    Returns:
        Attention, (B, H, T, T). Each row sums to 1; everything after the diagonal is 0.
    """
    logits = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (B, H, T, T)
    future = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(diagonal=1)  # (T, T)
    return logits.masked_fill_(future, float("-inf")).softmax(dim=-1)  # (B, H, T, T)


@torch.no_grad()
def attention_layers(model: GPT, idx: Tensor) -> Iterator[Tensor]:
    """Run a model and yield each layer's attention before the next layer is computed.

    Args:
        model: The model, in eval mode.
        idx: Token ids of one text, (1, T).

    Yields:
        Attention of a layer, (H, T, T) with its own H, float32 on the CPU.
    """
    blocks = model.blocks
    x = model.embed(idx)  # (1, T, C)
    for layer, block in enumerate(blocks):
        q, k, v = block.attn.qkv(block.ln_1(x))  # 3 x (1, H, T, D)
        attention = causal_attention(q, k)  # (1, H, T, T)
        yield attention[0].float().cpu()  # (H, T, T)
        if layer + 1 < len(blocks):  # the output of the last layer is not used
            x = x + block.attn.merge(attention @ v)  # (1, T, C)
            x = x + block.mlp(block.ln_2(x))  # (1, T, C)


def capture(model: GPT, idx: Tensor) -> list[Tensor]:
    """Capture the attention of all layers for one text.

    Args:
        model: The model, in eval mode.
        idx: Token ids of one text, (1, T); T at most block_size.

    Returns:
        Attention of each layer, (H, T, T) with its own H, float32 on the CPU.

    Raises:
        AttentionTooLarge: It would fill the memory or the disk; nothing was computed.
    """
    check_size(model.config.heads, idx.size(1))
    return list(attention_layers(model, idx))


extract_attention_patterns = capture  # the public name of model_core


def check_size(heads: Sequence[int], tokens: int) -> None:
    """Check the size of a capture.

    Args:
        heads: Head count of every layer.
        tokens: Number of tokens, T.

    Raises:
        AttentionTooLarge: It would fill the memory or the disk. The message names the bounds and the largest
            `max_tokens` that fits.
    """
    most = min(math.isqrt(MAX_LAYER_ELEMENTS // max(heads)), math.isqrt(MAX_RECORD_ELEMENTS // sum(heads)))
    if tokens > most:
        raise AttentionTooLarge(
            f"{tokens} tokens in {len(heads)} layers of up to {max(heads)} heads make {sum(heads) * tokens**2:,} "
            f"attention values; the bounds are {MAX_LAYER_ELEMENTS:,} a layer and {MAX_RECORD_ELEMENTS:,} in all: "
            f"max_tokens={most} fits"
        )


def capture_example(
    loaded: LoadedModel, run: str, layout: Layout, request: AttentionRequest, dataset: Dataset | None
) -> AttentionRecord:
    """Capture a test example or a text once for each checkpoint and length; later calls find the record.

    Args:
        loaded: The model of the checkpoint.
        run: Name of the run.
        layout: Paths of the data root.
        request: The example or text. What is longer than `max_tokens` or the model's positions is cut, and the
            record's `truncated_from` has the whole length; None takes the run's `default_max_tokens`.
        dataset: Dataset of the test examples; None if there is none.

    Returns:
        The record, found or new.

    Raises:
        ExampleNotFound: There is no such example, or the text of this id was never sent.
        DatasetNotReady: An example was requested, but there is no dataset.
        InvalidParameter: The id is not that of the text, or the text has no tokens.
        AttentionTooLarge: It would fill the memory or the disk; nothing was computed.
    """
    max_tokens = request.max_tokens or default_max_tokens(Run.open(layout.run(run)).config().testing)
    model, info, directory = loaded.config.model, loaded.info, text_directory(layout, run, request.id)
    if found := AttentionRecord.find(layout, run, request.id, info.sha256, max_tokens=max_tokens):
        return found
    ids = _token_ids(loaded, directory, request, dataset)
    kept = ids[: min(max_tokens, model.block_size)]
    check_size(model.heads, len(kept))
    with capture_lock(directory):
        if found := AttentionRecord.find(layout, run, request.id, info.sha256, max_tokens=max_tokens):
            return found  # another thread or process captured it meanwhile
        if request.text is not None:
            save_text(directory, request.text)
        writer = RecordWriter(free_directory(directory, info.sha256, len(kept)), model.n_layer)
        device = next(loaded.model.parameters()).device
        for attention in attention_layers(loaded.model, torch.tensor([kept], device=device)):  # (H, T, T)
            writer.add(attention.numpy())
        record = writer.finish(_manifest_fields(loaded, run, request.id, kept, max_tokens, len(ids)))
    log.info("attention captured run=%s id=%s checkpoint=%s tokens=%d", run, request.id, info.file, len(kept))
    return record


def _token_ids(loaded: LoadedModel, directory: Path, request: AttentionRequest, dataset: Dataset | None) -> list[int]:
    text = _text(directory, request)
    ids = _example_ids(loaded, request, dataset) if text is None else loaded.tokenizer.encode(text)
    if not ids:
        raise InvalidParameter(f"{request.id!r} has no tokens")
    return ids


def _text(directory: Path, request: AttentionRequest) -> str | None:
    if request.text is None:
        return load_text(directory)
    if request.id != text_id(request.text):
        raise InvalidParameter(f"{request.id!r} is not the id of this text; it is {text_id(request.text)!r}")
    return request.text


def _example_ids(loaded: LoadedModel, request: AttentionRequest, dataset: Dataset | None) -> list[int]:
    if dataset is None:
        raise DatasetNotReady(f"example {request.id!r} needs a dataset's test_examples.json, and there is no dataset")
    if not request.id.isdigit():
        error = ExampleNotFound(dataset.name, request.id, dataset.example_count)
        error.hint = "a text has an id once it was sent: POST /attention"
        raise error
    example = dataset.example(int(request.id))
    if dataset.tokenizer().sha256 == loaded.tokenizer.sha256:
        return list(example.tokens)
    return loaded.tokenizer.encode(example.text)


def _manifest_fields(loaded: LoadedModel, run: str, name: str, ids: list[int], max_tokens: int, whole: int) -> Manifest:
    model, info = loaded.config.model, loaded.info
    return {
        "run": run,
        "id": name,
        "checkpoint": info.file,
        "step": info.step,
        "sha256": info.sha256,
        "text": loaded.tokenizer.decode(ids),
        "tokens": loaded.tokenizer.pieces(ids),
        "token_ids": list(ids),
        "max_tokens": min(max_tokens, model.block_size),
        "truncated_from": whole if whole > len(ids) else None,
        "block_size": model.block_size,
        "layers": [
            {"layer": layer, "n_head": n_head, "head_dim": head_dim, "png": layer_file(layer, model.n_layer)}
            for layer, (n_head, head_dim) in enumerate(zip(model.heads, model.head_dims, strict=True))
        ],
    }
