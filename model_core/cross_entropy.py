"""Head and cross entropy in one function, in chunks of rows, so that the logits of all rows are never in memory.

The gradients of a chunk are computed with its logits, in the forward pass; the backward pass only scales them by the
incoming gradient. Matmuls use autocast's number format; softmax and sums are at least float32. Matmuls are fast with
many rows, because the head is read less often; the softmax on a CPU is fast with few, which stay in the cache.

Shapes: N rows, R rows of a chunk, P rows of a softmax, C n_embd, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model_core.budget import CHUNK_BYTES

IGNORED = -1
SOFTMAX_ROWS = 32  # at once on a CPU, 6 MiB with 50,304 ids: 16 and 32 were the fastest, 512 took 1.3 x for the whole


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Compute `F.cross_entropy(F.linear(hidden, weight), targets)` in chunks.

    Args:
        hidden: Input of the head, (N, C).
        weight: Weight of the head, (V, C).
        targets: Ids of the next tokens, (N,); -1 is not counted.

    Returns:
        Mean over the counted rows in nats, (). Without counted rows it is nan and the gradients are 0, as in PyTorch:
        a training without anything to learn from stops there.
    """
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
        return loss
    total, _, _ = _sums(hidden, weight, targets, (False, False))
    return total / (targets != IGNORED).sum()


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes its gradients in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        total, for_hidden, for_weight = _sums(hidden, weight, targets, ctx.needs_input_grad[:2])
        count = (targets != IGNORED).sum()
        ctx.save_for_backward(for_hidden, for_weight, count)
        ctx.dtypes = hidden.dtype, weight.dtype
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        *sums, count = ctx.saved_tensors
        scale = above / count.clamp(min=1)  # ()
        for_hidden, for_weight = (
            None if part is None else (part * scale).to(dtype) for part, dtype in zip(sums, ctx.dtypes, strict=True)
        )
        return for_hidden, for_weight, None


def _sums(
    hidden: Tensor, weight: Tensor, targets: Tensor, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Sum the loss over all rows, and its gradients with respect to `hidden` and `weight` where they are wanted."""
    device = hidden.device.type
    narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    exact = torch.promote_types(narrow, torch.float32)
    counted = targets != IGNORED  # (N,)
    ids = targets.where(counted, 0)  # (N,)
    with torch.autocast(device, enabled=False):
        rows, head = hidden.to(narrow).masked_fill(~counted[:, None], 0), weight.to(narrow)  # (N, C), (V, C)
        total = torch.zeros((), dtype=exact, device=hidden.device)
        for_hidden = torch.empty_like(rows, dtype=exact) if wanted[0] else None  # (N, C)
        for_weight = torch.empty_like(head, dtype=exact) if wanted[1] else None  # (V, C)
        chunk_rows = CHUNK_BYTES // rows.itemsize
        for start in range(0, len(rows), chunk_rows):
            chunk = slice(start, start + chunk_rows)
            logits = rows[chunk] @ head.T  # (R, V)
            losses = _to_gradient_(logits, ids[chunk], needs_grad=any(wanted))  # (R,)
            total = total + losses.where(counted[chunk], 0).sum()
            # If a gradient is wanted, `logits` now holds the gradient of the logits.
            if for_hidden is not None:
                for_hidden[chunk] = logits @ head  # (R, C)
            if for_weight is not None:
                _add_matmul_(for_weight, logits.T, rows[chunk], is_first=start == 0)
            del logits  # before the next chunk's
        if for_hidden is not None:
            for_hidden.masked_fill_(~counted[:, None], 0)
    return total, for_hidden, for_weight


def _to_gradient_(logits: Tensor, ids: Tensor, *, needs_grad: bool) -> Tensor:
    """Turn the logits of a chunk into their gradient of the loss, in place: probabilities, less 1 at the target.

    Args:
        logits: Logits, (R, V); without `needs_grad` their content is undefined afterwards.
        ids: Targets, (R,).
        needs_grad: Whether the gradient is wanted.

    Returns:
        Loss of every row, (R,).
    """
    on_cpu = logits.device.type == "cpu" and not torch.compiler.is_compiling()  # a compiler would unroll the parts
    at_once = SOFTMAX_ROWS if on_cpu else len(logits)
    parts = zip(torch.split(logits, at_once), torch.split(ids[:, None], at_once), strict=True)  # (P, V), (P, 1)
    return torch.cat([_to_gradient_of_part_(part, target, needs_grad=needs_grad) for part, target in parts])  # (R,)


def _to_gradient_of_part_(logits: Tensor, target: Tensor, *, needs_grad: bool) -> Tensor:
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))  # softmax needs more precision than autocast's
    at_target = exact.gather(1, target)  # (P, 1)
    top = exact.amax(1, keepdim=True)  # (P, 1)
    probabilities = torch.softmax(exact, 1, out=exact)  # (P, V)
    losses = (top - probabilities.amax(1, keepdim=True).log() - at_target).squeeze(1)  # (P,)
    if needs_grad:
        probabilities.scatter_add_(1, target, torch.full_like(at_target, -1))
        if probabilities is not logits:
            logits.copy_(probabilities)
    return losses


def _add_matmul_(total: Tensor, a: Tensor, b: Tensor, *, is_first: bool) -> None:
    """Add a matmul to a sum of possibly higher precision; `is_first` overwrites its content."""
    if total.dtype == a.dtype:
        total.addmm_(a, b, beta=0 if is_first else 1)  # (V, C)
    elif is_first:
        total.copy_(a @ b)  # (V, C)
    else:
        total.add_(a @ b)  # (V, C)
