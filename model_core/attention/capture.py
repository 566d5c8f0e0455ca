"""Where every head looks: the softmax weights that fused kernels never return.

The same layers as in training, with attention written out: softmax(Q K^T / sqrt(D)) under the causal mask. One
layer's weights exist at a time, and the language model's head is skipped, for nobody reads its scores here.

Shapes: T tokens, C n_embd, H heads of this layer, D head_dim of this layer; the batch is 1.
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
    capturing,
    default_max_tokens,
    free_place,
    home_of,
    keep_text,
    kept_text,
    layer_name,
)
from model_core.errors import AttentionTooLarge, DatasetNotReady, ExampleNotFound, InvalidParameter
from model_core.schemas import AttentionRequest, text_id

if TYPE_CHECKING:
    from model_core.checkpoint import LoadedModel
    from model_core.gpt import GPT
    from model_core.storage.dataset import Dataset
    from model_core.storage.files import Layout

log = logging.getLogger(__name__)

MAX_LAYER_WEIGHTS = 2**27  # of one layer, in memory: 512 MiB each for scores, softmax and the copy that is stored
MAX_RECORD_WEIGHTS = 2**30  # of all layers, on disk: 1 GiB


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """Attend from every token to itself and its past.

    Args:
        q: Queries, (B, H, T, D).
        k: Keys, (B, H, T, D).

    Returns:
        Weights, (B, H, T, T). Each row sums to 1; everything after the diagonal is 0.
    """
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (B, H, T, T)
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(diagonal=1)  # (T, T)
    return scores.masked_fill_(future, float("-inf")).softmax(dim=-1)


@torch.no_grad()
def attention_layers(model: GPT, idx: Tensor) -> Iterator[Tensor]:
    """Run a model and hand out each layer's weights before the next is computed.

    Args:
        model: In eval mode.
        idx: One text, (1, T).

    Yields:
        float32 on the CPU, (H, T, T), H of that layer.
    """
    blocks = model.blocks
    x = model.embed(idx)  # (1, T, C)
    for layer, block in enumerate(blocks):
        q, k, v = block.attn.qkv(block.ln_1(x))  # 3 x (1, H, T, D)
        weights = attention_weights(q, k)  # (1, H, T, T)
        yield weights[0].float().cpu()
        if layer + 1 < len(blocks):  # nothing reads what the last layer adds
            x = x + block.attn.merge(weights @ v)  # (1, T, C)
            x = x + block.mlp(block.ln_2(x))  # (1, T, C)


def capture(model: GPT, idx: Tensor) -> list[Tensor]:
    """All layers' weights of one text.

    Args:
        model: In eval mode.
        idx: Token ids, (1, T); T at most block_size.

    Returns:
        One (H, T, T) a layer, float32 on the CPU.

    Raises:
        AttentionTooLarge: Before anything is computed.
    """
    check_size(model.config.heads, idx.size(1))
    return list(attention_layers(model, idx))


extract_attention_patterns = capture  # the name that the first version of this program used


def check_size(heads: Sequence[int], tokens: int) -> None:
    """Refuse weights that would fill the memory or the disk.

    Raises:
        AttentionTooLarge: Naming the bound and the longest text that fits.
    """
    most = min(math.isqrt(MAX_LAYER_WEIGHTS // max(heads)), math.isqrt(MAX_RECORD_WEIGHTS // sum(heads)))
    if tokens > most:
        raise AttentionTooLarge(
            f"{tokens} tokens in {len(heads)} layers of up to {max(heads)} heads make {sum(heads) * tokens**2:,} "
            f"weights; the bounds are {MAX_LAYER_WEIGHTS:,} a layer and {MAX_RECORD_WEIGHTS:,} in all: "
            f"max_tokens={most} fits"
        )


def capture_example(
    loaded: LoadedModel, run: str, layout: Layout, request: AttentionRequest, dataset: Dataset | None
) -> AttentionRecord:
    """Capture a test example or a text once for each checkpoint and length; later calls find the record.

    Args:
        loaded: The checkpoint's model.
        run: Name of its run.
        layout: Where records lie.
        request: What to look at. A text longer than `max_tokens` or the model's positions is cut, and the record
            says so; without `max_tokens`, the run's `testing.max_seq_len_viz` holds.
        dataset: Holds the test examples; None if only texts are asked for.

    Raises:
        ExampleNotFound: No such example, or a text that was never sent.
        DatasetNotReady: An example is wanted, but there is no dataset.
        InvalidParameter: An id that is not the text's, or a text without tokens.
        AttentionTooLarge: Before anything is computed.
    """
    wanted = request.max_tokens or default_max_tokens(layout, run)
    model, info, home = loaded.config.model, loaded.info, home_of(layout, run, request.id)
    if found := AttentionRecord.find(layout, run, request.id, info.sha256, max_tokens=wanted):
        return found
    ids = _token_ids(loaded, home, request, dataset)
    kept = ids[: min(wanted, model.block_size)]
    check_size(model.heads, len(kept))
    with capturing(home):
        if found := AttentionRecord.find(layout, run, request.id, info.sha256, max_tokens=wanted):
            return found  # somebody else captured it meanwhile
        if request.text is not None:
            keep_text(home, request.text)
        writer = RecordWriter(free_place(home, info.sha256, len(kept)), model.n_layer)
        device = next(loaded.model.parameters()).device
        for weights in attention_layers(loaded.model, torch.tensor([kept], device=device)):
            writer.add(weights.numpy())
        record = writer.finish(_facts(loaded, run, request.id, kept, wanted, len(ids)))
    log.info("attention captured run=%s id=%s checkpoint=%s tokens=%d", run, request.id, info.file, len(kept))
    return record


def _token_ids(loaded: LoadedModel, home: Path, request: AttentionRequest, dataset: Dataset | None) -> list[int]:
    text = _text(home, request)
    ids = _example_ids(loaded, request, dataset) if text is None else loaded.tokenizer.encode(text)
    if not ids:
        raise InvalidParameter(f"{request.id!r} has no tokens to look at")
    return ids


def _text(home: Path, request: AttentionRequest) -> str | None:
    if request.text is None:
        return kept_text(home)
    if request.id != text_id(request.text):
        raise InvalidParameter(f"{request.id!r} is not the id of this text; it is {text_id(request.text)!r}")
    return request.text


def _example_ids(loaded: LoadedModel, request: AttentionRequest, dataset: Dataset | None) -> list[int]:
    if dataset is None:
        raise DatasetNotReady(f"example {request.id!r} stands in a dataset's test_examples.json, and none was given")
    if not request.id.isdigit():
        error = ExampleNotFound(dataset.name, request.id, dataset.example_count)
        error.hint = "a text has an id once it was sent: POST /attention"
        raise error
    example = dataset.example(int(request.id))
    if dataset.tokenizer().sha256 == loaded.tokenizer.sha256:
        return list(example.tokens)
    return loaded.tokenizer.encode(example.text)


def _facts(loaded: LoadedModel, run: str, name: str, ids: list[int], wanted: int, whole: int) -> Manifest:
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
        "max_tokens": min(wanted, model.block_size),
        "truncated_from": whole if whole > len(ids) else None,
        "block_size": model.block_size,
        "layers": [
            {"layer": layer, "n_head": n_head, "head_dim": head_dim, "png": layer_name(layer, model.n_layer)}
            for layer, (n_head, head_dim) in enumerate(zip(model.heads, model.head_dims, strict=True))
        ],
    }
