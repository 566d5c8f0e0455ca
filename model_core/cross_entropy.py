"""The head and its cross entropy in one, some rows at a time, so that the scores of all rows never stand in memory.

The gradients of a chunk are formed while its scores are there, in the forward pass; the backward pass only scales
them by what comes from above. Products use autocast's number format; softmax and sums are float32 at least. Products
want many rows, so that the head is read seldom; the softmax on a CPU wants few, so that its numbers stay in the cache.

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
    """Score every row, and compare with what should come next; as `F.cross_entropy(F.linear(hidden, weight), targets)`.

    Args:
        hidden: What the head reads, (N, C).
        weight: The head's, (V, C).
        targets: Ids that should come next, (N,); -1 is not counted.

    Returns:
        Mean over the counted rows in nats, (). Where none counts it is nan and the gradients are 0, as in PyTorch:
        a training that has nothing to learn from stops there.
    """
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
        return loss
    total, _, _ = _sums(hidden, weight, targets, (False, False))
    return total / (targets != IGNORED).sum()


class _LinearCrossEntropy(torch.autograd.Function):
    """What a plain function is not: it has its gradients before it is asked for them."""

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
    """Sum the loss over all rows, and its gradients by `hidden` and `weight` where they are wanted."""
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
            scores = rows[chunk] @ head.T  # (R, V)
            losses = _to_errors_(scores, ids[chunk], learns=any(wanted))  # (R,)
            total = total + losses.where(counted[chunk], 0).sum()
            if for_hidden is not None:
                for_hidden[chunk] = scores @ head  # (R, C)
            if for_weight is not None:
                _add_product_(for_weight, scores.T, rows[chunk], anew=start == 0)
            del scores  # before the next chunk's
        if for_hidden is not None:
            for_hidden.masked_fill_(~counted[:, None], 0)
    return total, for_hidden, for_weight


def _to_errors_(scores: Tensor, ids: Tensor, *, learns: bool) -> Tensor:
    """Turn the scores of a chunk into the loss's gradient by them, in place: probabilities, less 1 at the target.

    Args:
        scores: (R, V); where nothing `learns` from them they are left as they come.
        ids: The targets, (R,).
        learns: Whether the gradient is wanted.

    Returns:
        Loss of every row, (R,).
    """
    on_cpu = scores.device.type == "cpu" and not torch.compiler.is_compiling()  # a compiler would write out each part
    at_once = SOFTMAX_ROWS if on_cpu else len(scores)
    parts = zip(torch.split(scores, at_once), torch.split(ids[:, None], at_once), strict=True)  # (P, V), (P, 1)
    return torch.cat([_to_errors_at_once_(part, target, learns=learns) for part, target in parts])  # (R,)


def _to_errors_at_once_(scores: Tensor, target: Tensor, *, learns: bool) -> Tensor:
    exact = scores.to(torch.promote_types(scores.dtype, torch.float32))  # a softmax wants more than autocast's digits
    at_target = exact.gather(1, target)  # (P, 1)
    top = exact.amax(1, keepdim=True)  # (P, 1)
    probabilities = torch.softmax(exact, 1, out=exact)  # (P, V)
    losses = (top - probabilities.amax(1, keepdim=True).log() - at_target).squeeze(1)  # (P,)
    if learns:
        probabilities.scatter_add_(1, target, torch.full_like(at_target, -1))
        if probabilities is not scores:
            scores.copy_(probabilities)
    return losses


def _add_product_(total: Tensor, a: Tensor, b: Tensor, *, anew: bool) -> None:
    """Add the product of two matrices to a sum that may be more exact than they; `anew` forgets what it holds."""
    if total.dtype == a.dtype:
        total.addmm_(a, b, beta=0 if anew else 1)  # (V, C)
    elif anew:
        total.copy_(a @ b)  # (V, C)
    else:
        total.add_(a @ b)  # (V, C)
