"""Loss without a head, or without all heads of a layer: a part of what the heads read is replaced.

The reads of a layer, joined before W_O, are replaced by zeros, by their mean or by those of another window. Earlier
layers are not computed again: the sample goes through the model layer by layer, and a pass continues from there. Only
one layer's input and reads are in memory, whatever the depth.

Shapes: N windows of the sample, T tokens, C n_embd, H heads of this layer, D head_dim of this layer, V vocabulary,
R rows of a block of positions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from numpy.typing import NDArray
from torch import Tensor

from model_core.attention.heads.ablation_record import AblationOptions, Baseline, Measurement, Part, parts
from model_core.gpt import GPT, Block

Array = NDArray[np.float64]

MAX_BYTES = 1 << 30  # of input, reads and final stream of the windows that are in memory
_BATCH_TOKENS = {"cpu": 1 << 12}  # of one forward pass
_MANY_TOKENS = 1 << 15
_LOGITS = {"cpu": 1 << 22}  # logits that exist at a time
_MANY_LOGITS = 1 << 26


class SampleInModel:
    """Windows of a sample at one layer of a model; `advance` takes them to the next one.

    Args:
        model: The model, in eval mode and float32.
        ids: Token ids, (N, T + 1).
        measured: Number of windows, from the first, whose loss is measured; the others are only read. None: all.

    Attributes:
        layer: Index of the layer.
        reads: What its heads read, joined, (N, T, H D).
        loss: Clean loss of each measured window in nats, (measured,).
    """

    def __init__(self, model: GPT, ids: Tensor, measured: int | None = None) -> None:
        self._model, self._measured = model, len(ids) if measured is None else measured
        device = model.lm_head.weight.device
        ids = ids.to(device)
        idx, self._targets = ids[:, :-1], ids[: self._measured, 1:]  # (N, T), (measured, T)
        self._batches = _batches(len(ids), self._measured, _BATCH_TOKENS.get(device.type, _MANY_TOKENS) // idx.size(1))
        self._stream = torch.cat([model.embed(idx[rows]) for rows in self._batches])  # (N, T, C)
        self._clean = self._continue(self._stream, model.blocks)  # (measured, T, C)
        totals, losses, expected = map(torch.cat, zip(*self._predict(self._clean, expect=True), strict=True))
        self._total, self._expected = totals, expected.view_as(self._clean)  # (measured T,), (measured, T, C)
        self.loss = self._per_window(losses)
        self.layer = 0
        self.reads = self._read()

    def advance(self) -> None:
        """Go to the next layer."""
        block = self._block
        for rows in self._batches:
            self._stream[rows] = _after(block, self._stream[rows], self.reads[rows])
        self.layer += 1
        self.reads = self._read()

    def change(self, reads: Tensor) -> tuple[Array, Array]:
        """Replace the reads of this layer.

        Args:
            reads: What takes their place in the measured windows, (measured, T, H D).

        Returns:
            Change of the loss of each window, and KL(clean || ablated), in nats; each (measured,).
        """
        stream = torch.empty_like(self._stream[: self._measured])  # (measured, T, C)
        for rows in self._measured_batches:
            stream[rows] = _after(self._block, self._stream[rows], reads[rows])
        hidden = self._continue(stream, self._model.blocks[self.layer + 1 :])  # (measured, T, C)
        total, losses = map(torch.cat, zip(*self._predict(hidden), strict=True))  # 2 x (measured T,)
        # KL = sum_v p_v (logit_v - logit'_v) - log Z + log Z', and the sum is (h - h') . sum_v p_v w_v: no clean logits
        shift = ((self._clean - hidden) * self._expected).sum(-1).flatten()  # (measured T,)
        return self._per_window(losses) - self.loss, self._per_window(shift - self._total + total)

    @property
    def _block(self) -> Block:
        return self._model.blocks[self.layer]

    @property
    def _measured_batches(self) -> list[slice]:
        return [rows for rows in self._batches if rows.start < self._measured]

    def _read(self) -> Tensor:
        attn, norm = self._block.attn, self._block.ln_1
        parts = []
        for rows in self._batches:
            q, k, v = attn.qkv(norm(self._stream[rows]))  # 3 x (B, H, T, D)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, T, D)
            parts.append(y.transpose(1, 2).flatten(2))  # (B, T, H D)
        return torch.cat(parts)  # (N, T, H D)

    def _continue(self, stream: Tensor, blocks: list[Block]) -> Tensor:
        """Run blocks and the last norm over the measured windows, (measured, T, C)."""
        hidden = []
        for rows in self._measured_batches:
            x = stream[rows]  # (B, T, C)
            for block in blocks:
                x = block(x)
            hidden.append(self._model.transformer["ln_f"](x))
        return torch.cat(hidden)

    def _predict(self, hidden: Tensor, *, expect: bool = False) -> Iterator[tuple[Tensor, ...]]:
        """Logarithm of the sum of exponentials and loss of a block of positions; logits of one block exist at a time.

        With `expect` also the head's mean weights under the prediction, (R, C).
        """
        head = self._model.lm_head
        size = max(1, _LOGITS.get(hidden.device.type, _MANY_LOGITS) // head.out_features)
        for x, target in zip(
            torch.split(hidden.flatten(0, 1), size), torch.split(self._targets.flatten(), size), strict=True
        ):
            logits = head(x)  # (R, V)
            total = logits.logsumexp(-1)  # (R,)
            loss = total - logits.gather(1, target[:, None])[:, 0]  # (R,)
            expected = ((logits - total[:, None]).exp() @ head.weight,) if expect else ()  # (R, C)
            yield total, loss, *expected

    def _per_window(self, values: Tensor) -> Array:
        """Mean over the positions of each measured window, (measured,)."""
        means: Array = values.view(self._targets.shape).mean(1, dtype=torch.float64).cpu().numpy()
        return means


@torch.no_grad()
def ablate(
    model: GPT,
    ids: NDArray[np.int64],
    options: AblationOptions,
    *,
    done: Collection[tuple[Part, int]] = (),
    check: Callable[[], None] = lambda: None,
    max_bytes: int = MAX_BYTES,
) -> Iterator[Measurement]:
    """Measure every head and every layer of a model.

    Args:
        model: The model, in eval mode and float32.
        ids: Token ids of the sample, (N, T + 1).
        options: Baseline and draws.
        done: Keys of measurements that are not repeated.
        check: Called between passes; an error from it ends the work.
        max_bytes: Memory for the sample's activations; a larger sample goes through the model in several chunks.

    Yields:
        The clean loss of a chunk, then one measurement a pass.
    """
    chunks = plan_chunks(model, ids.shape, max_bytes=max_bytes)
    donors = options.draws if options.baseline == "resample" and len(chunks) > 1 else 0
    tokens = torch.from_numpy(ids)  # (N, T + 1)
    todo = [
        (
            first,
            size,
            [part for part in (Part("clean"), *parts(model.config.heads, options)) if (part, first) not in done],
        )
        for first, size in chunks
    ]
    means = None
    if options.baseline == "mean" and len(chunks) > 1 and any(pending for _, _, pending in todo):
        means = _mean_reads(model, tokens, chunks, check)
    for first, size, pending in todo:
        if pending:
            taken = torch.arange(first, first + size + donors) % len(tokens)  # (size + donors,)
            yield from _ablate_chunk(model, tokens[taken], options, first, size, pending, means, check)


def plan_chunks(model: GPT, shape: tuple[int, ...], *, max_bytes: int = MAX_BYTES) -> list[tuple[int, int]]:
    """Divide the windows of a sample so that their activations fit in memory.

    Args:
        model: The model.
        shape: Shape of the token ids, (N, T + 1).
        max_bytes: Memory for the activations.

    Returns:
        First window and number of windows of each chunk.
    """
    config = model.config
    joined = max(heads * size for heads, size in zip(config.heads, config.head_dims, strict=True))
    window_bytes = (
        4 * (shape[1] - 1) * (5 * config.n_embd + 4 * joined)
    )  # streams, expected weights; reads, and copies of them
    size = max(1, max_bytes // window_bytes)
    return [(first, min(size, shape[0] - first)) for first in range(0, shape[0], size)]


def replace_reads(
    reads: Tensor, part: Part, *, head_dim: int, baseline: Baseline, measured: int, mean: Tensor | None = None
) -> Tensor:
    """Replace a part of what the heads of a layer read.

    Args:
        reads: Reads of the layer, joined, (N, T, H D).
        part: The head, the whole layer, or a random subspace as large as one head.
        head_dim: Size of a head, D.
        baseline: What takes its place.
        measured: Number of windows, from the first, that are replaced; the others only give to them.
        mean: Mean of the reads over the sample, (H D,); None takes that of the given windows.

    Returns:
        The measured windows with that part replaced, (measured, T, H D).
    """
    mine = reads[:measured]  # (measured, T, H D)
    if baseline == "zero":
        other = torch.zeros_like(mine[:1, :1])  # (1, 1, H D)
    elif baseline == "mean":
        other = (mine.mean((0, 1), dtype=torch.float64).to(mine.dtype) if mean is None else mean).view(
            1, 1, -1
        )  # (1, 1, H D)
    else:
        givers = (torch.arange(measured, device=reads.device) + part.draw + 1) % len(reads)  # (measured,)
        other = reads[givers]  # (measured, T, H D)
    if part.kind == "null":
        basis = _random_basis(reads.size(-1), head_dim, part).to(reads)  # (H D, D)
        return mine - ((mine - other) @ basis) @ basis.T  # (measured, T, H D)
    if part.kind == "layer":
        return other.expand_as(mine)
    replaced = mine.clone()
    place = slice(part.head * head_dim, (part.head + 1) * head_dim)
    replaced[..., place] = other[..., place]
    return replaced


def _ablate_chunk(
    model: GPT, ids: Tensor, options: AblationOptions, first: int, size: int, pending: list[Part],
    means: list[Tensor] | None, check: Callable[[], None],
) -> Iterator[Measurement]:  # fmt: skip
    began = time.perf_counter()
    sample = SampleInModel(model, ids, size)
    if Part("clean") in pending:
        zeros = (0.0,) * size
        yield Measurement(Part("clean"), first, tuple(sample.loss.tolist()), zeros, time.perf_counter() - began)
    for layer, head_dim in enumerate(model.config.head_dims):
        while sample.layer < layer:
            check()
            sample.advance()
        for part in (part for part in pending if part.kind != "clean" and part.layer == layer):
            check()
            began = time.perf_counter()
            replaced = replace_reads(
                sample.reads, part, head_dim=head_dim, baseline=options.baseline, measured=size,
                mean=means[layer] if means is not None else None,
            )  # fmt: skip
            change, kl = sample.change(replaced)
            yield Measurement(part, first, tuple(change.tolist()), tuple(kl.tolist()), time.perf_counter() - began)


def _mean_reads(model: GPT, ids: Tensor, chunks: list[tuple[int, int]], check: Callable[[], None]) -> list[Tensor]:
    """Mean of each layer's reads over all windows and positions, (H D,) with the layer's own H and D."""
    sums: list[Tensor] = []
    for first, size in chunks:
        sample = SampleInModel(model, ids[first : first + size])
        for layer in range(len(model.blocks)):
            check()
            total = sample.reads.sum((0, 1), dtype=torch.float64)  # (H D,)
            sums[layer : layer + 1] = [total + sums[layer] if layer < len(sums) else total]
            if layer + 1 < len(model.blocks):
                sample.advance()
    count = ids.size(0) * (ids.size(1) - 1)
    return [(total / count).float() for total in sums]


def _after(block: Block, x: Tensor, reads: Tensor) -> Tensor:
    """Output of a block whose heads read this, (B, T, C): the operations of `Block.forward`, in their order."""
    x = x + block.attn.resid_dropout(block.attn.c_proj(reads))
    x = x + block.mlp(block.ln_2(x))
    return x


def _random_basis(width: int, size: int, part: Part) -> Tensor:
    """Orthonormal directions, (width, size): the same for the same layer and draw on every device."""
    generator = torch.Generator().manual_seed((part.layer << 16) + part.draw)
    basis: Tensor = torch.linalg.qr(torch.randn(width, size, generator=generator, dtype=torch.float64)).Q
    return basis


def _batches(windows: int, measured: int, size: int) -> list[slice]:
    """Slices of at most `size` windows; none has measured windows and others, so equal work has equal bits."""
    size = max(1, size)
    parts = ((0, measured), (measured, windows))
    return [slice(first, min(first + size, end)) for begin, end in parts for first in range(begin, end, size)]
