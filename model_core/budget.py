"""What a configuration costs before anything is allocated: parameters, FLOPs, memory, disk, steps.

At a fixed `n_embd` the number of heads changes neither parameters nor KV size nor matmul FLOPs, because the
heads share the width: head_dim = n_embd / heads. Only the softmax gets smaller. A fixed `head_dim` does save.

Letters: C n_embd, H heads of a layer, D head_dim of a layer, W = H D, T sequence_length, B batch_size, V vocab_size,
L layers, N = B T rows of a micro batch, R of them in a chunk of the cross entropy, P parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from model_core.config import ExperimentConfig, ModelConfig, TrainingConfig, divisors
from model_core.schedule import effective_steps

FORMULAS = {
    "layer_parameters": "4 C W + 3 W + C (attention) + 8 C^2 + 5 C (MLP) + 4 C (two layer norms)",
    "kv_bytes_per_token": "2 W numbers of 2 bytes (bfloat16)",
    "flops_per_token": "6 x parameters + 12 W T a layer, 6 (V C + 2 C) for the head; forward and backward",
    "softmax_elements": "H T (T + 1) / 2 a layer and sequence",
    "memory_bytes": "250 MiB + P (16 | 18) + L N C (85 | 48) + the larger of R V (4 | 2) + V C (4 | 8) and 8 V C; "
    "float32 | bfloat16",
    "checkpoint_bytes": "12 P a full state, 4 P weights alone; at most 3 full states more than the periodic ones",
}
FLASH_MAX_HEAD_DIM = 256  # of PyTorch's flash kernel on a GPU; the one for CPUs takes any size
MEMORY_MARGIN = 1.2  # the estimate was within 7 % of what was measured
CHUNK_BYTES = 2048  # of the logits of one id in a chunk of the cross entropy

PACKED_BYTES = {  # of a number in the matrices of the blocks, in the head, and in the tables
    "auto": (2, 2, 2),
    "fp32": (4, 4, 4),
    "fp16": (2, 2, 2),
    "bf16": (2, 2, 2),
    "int8": (1, 1, 2),
}

_MIB = 1 << 20
_BF16_BYTES = 2


@dataclass(frozen=True)
class LayerBudget:
    """Costs of one block of the model; `FORMULAS` defines each number.

    `flash` is true if PyTorch's fused kernel on a GPU supports the head size.
    """

    layer: int
    n_head: int
    head_dim: int
    parameters: int
    kv_bytes_per_token: int
    flops_per_token: int
    softmax_elements: int
    flash: bool


@dataclass(frozen=True)
class MemoryBudget:
    """Memory of one training step on the CPU, above the import of torch, by part.

    `required_bytes` is what must be free: the total with a margin. `measured` is false where a part was estimated
    from shapes alone: dropout, gradient checkpointing.
    """

    base_bytes: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    logits_bytes: int
    attention_bytes: int
    total_bytes: int
    required_bytes: int
    measured: bool


@dataclass(frozen=True)
class DiskBudget:
    """Upper limit of the size of a run's checkpoints.

    Full states: `periodic` of them, two rolling ones, and the one being written. Two files of parameters: best, final.
    """

    full_state_bytes: int
    weights_bytes: int
    periodic: int
    total_bytes: int


@dataclass(frozen=True)
class ScheduleBudget:
    """Length of a training. `epochs` is None when the size of the training split is not known."""

    steps: int
    accumulation: int
    tokens_per_step: int
    tokens: int
    train_tokens: int | None
    epochs: float | None


@dataclass(frozen=True)
class Budget:
    """What one configuration costs.

    Attributes:
        layers: Every block.
        embedding_parameters: Token table (tied with the head, counted once), position table, last layer norm.
        parameters: Parameters of the whole model.
        kv_bytes_per_token: KV cache of all layers.
        flops_per_token: One training step, forward and backward.
        softmax_elements: All layers and one sequence.
        memory: One training step on the CPU.
        disk: Checkpoints of the run.
        schedule: Steps, tokens and epochs.
        formulas: How the numbers are computed.
    """

    layers: tuple[LayerBudget, ...]
    embedding_parameters: int
    parameters: int
    kv_bytes_per_token: int
    flops_per_token: int
    softmax_elements: int
    memory: MemoryBudget
    disk: DiskBudget
    schedule: ScheduleBudget
    formulas: Mapping[str, str] = field(default_factory=FORMULAS.copy)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON.

        Returns:
            Values by field, with the formulas.
        """
        return asdict(self)


def compute_budget(config: ExperimentConfig, *, train_tokens: int | None = None) -> Budget:
    """Compute what a configuration costs; nothing is allocated.

    Args:
        config: The configuration.
        train_tokens: Tokens of its training split, if they are known.

    Returns:
        The costs.

    Raises:
        InvalidConfig: See `effective_steps`.
    """
    model, length = config.model, config.training.sequence_length
    layers = tuple(_layer(i, h, d, model.n_embd, length) for i, (h, d) in enumerate(_shapes(model)))
    token_table = model.vocab_size * model.n_embd
    embedding = token_table + model.block_size * model.n_embd + 2 * model.n_embd
    parameters = embedding + sum(layer.parameters for layer in layers)
    schedule = _schedule(config, train_tokens)
    return Budget(
        layers=layers,
        embedding_parameters=embedding,
        parameters=parameters,
        kv_bytes_per_token=sum(layer.kv_bytes_per_token for layer in layers),
        flops_per_token=6 * (token_table + 2 * model.n_embd) + sum(layer.flops_per_token for layer in layers),
        softmax_elements=sum(layer.softmax_elements for layer in layers),
        memory=_memory(config, parameters),
        disk=_disk(config, parameters, schedule.steps),
        schedule=schedule,
    )


def batch_sizes(config: ExperimentConfig, at_most: int) -> tuple[int, ...]:
    """List the micro batches that keep total_batch_size.

    Args:
        config: The configuration.
        at_most: Upper limit of the size.

    Returns:
        Rows of a micro batch, largest first.
    """
    rows = config.training.total_batch_size // config.training.sequence_length
    return tuple(size for size in reversed(divisors(rows)) if size <= at_most)


def fitting_batch_size(config: ExperimentConfig, room_bytes: float, at_most: int | None = None) -> int | None:
    """Find the largest micro batch whose training fits in memory, at the same total_batch_size.

    Args:
        config: The configuration.
        room_bytes: Free memory.
        at_most: Upper limit of the size; None takes the configured one.

    Returns:
        Rows of a micro batch; None if not even the smallest fits.
    """
    for size in batch_sizes(config, at_most or config.training.batch_size):
        training = config.training.model_copy(update={"batch_size": size})
        smaller = config.model_copy(update={"training": training})
        if compute_budget(smaller).memory.required_bytes <= room_bytes:
            return size
    return None


def per_process_config(config: ExperimentConfig, processes: int) -> ExperimentConfig:
    """Reduce a configuration to one process's share of each step.

    Args:
        config: The configuration.
        processes: Number of processes that train together.

    Returns:
        A copy with the smaller total_batch_size.
    """
    rows = {"total_batch_size": config.training.total_batch_size // processes}
    return config.model_copy(update={"training": config.training.model_copy(update=rows)})


def packed_bytes(model: ModelConfig, weights: str) -> int:
    """Compute the memory of a model that is loaded to generate.

    Args:
        model: Shape of the model.
        weights: Format of its weights, a key of `PACKED_BYTES`.

    Returns:
        Bytes, without the KV cache.
    """
    block, head, table = PACKED_BYTES[weights]
    width, widths = model.n_embd, [heads * head_dim for heads, head_dim in _shapes(model)]
    matrices = sum(4 * width * inner + 8 * width**2 for inner in widths)
    vectors = sum(3 * inner + 10 * width for inner in widths) + 2 * width
    tokens = model.vocab_size * width
    return block * matrices + (head + table) * tokens + table * model.block_size * width + 4 * vectors


def uniform_baseline(config: ExperimentConfig) -> ExperimentConfig:
    """Replace a configuration's heads by equally many in every layer, which share the width as in GPT-2.

    The count is `n_head` if it divides the width, else the divisor nearest to the largest count of the list.

    Args:
        config: The configuration.

    Returns:
        A copy with the uniform model.
    """
    model = config.model
    valid = divisors(model.n_embd)
    wanted = model.n_head if model.n_head in valid else max(model.heads)
    uniform = {"n_head": min(valid, key=lambda n: abs(n - wanted)), "n_head_list": None, "head_dim": None}
    return config.model_copy(update={"model": model.model_copy(update=uniform)})


def saves_nothing(budget: Budget, uniform: Budget) -> bool:
    """Check whether unequal heads leave parameters and FLOPs as they are.

    Args:
        budget: Costs of the configuration.
        uniform: Costs of its uniform baseline.

    Returns:
        True if the heads are unequal and save neither.
    """
    unequal = [layer.n_head for layer in budget.layers] != [layer.n_head for layer in uniform.layers]
    return unequal and budget.parameters == uniform.parameters


def _shapes(model: ModelConfig) -> list[tuple[int, int]]:
    return list(zip(model.heads, model.head_dims, strict=True))


def _layer(index: int, heads: int, head_dim: int, n_embd: int, length: int) -> LayerBudget:
    width = heads * head_dim
    attention = 4 * n_embd * width + 3 * width + n_embd
    parameters = attention + 8 * n_embd**2 + 5 * n_embd + 4 * n_embd
    return LayerBudget(
        layer=index,
        n_head=heads,
        head_dim=head_dim,
        parameters=parameters,
        kv_bytes_per_token=2 * width * _BF16_BYTES,
        flops_per_token=6 * parameters + 12 * width * length,
        softmax_elements=heads * length * (length + 1) // 2,
        flash=head_dim <= FLASH_MAX_HEAD_DIM,
    )


def _memory(config: ExperimentConfig, parameters: int) -> MemoryBudget:
    model, training = config.model, config.training
    half = config.device.dtype in {"bfloat16", "float16"}  # auto may choose float32
    rows = training.batch_size * training.sequence_length
    kept = 48 if half else 85  # bytes per layer, row and channel: 36 and 64 of activations, and temporary tensors
    layer = rows * model.n_embd * kept
    activations = model.n_layer * layer
    if training.gradient_checkpointing:  # the input of every layer, and one layer in full
        activations = model.n_layer * rows * model.n_embd * 4 + layer
    parts = {
        "base_bytes": 250 * _MIB,
        "weights_bytes": parameters * (6 if half else 4),  # autocast keeps a copy of every matrix
        "gradients_bytes": parameters * 4,
        "optimizer_bytes": parameters * 8,
        "activations_bytes": activations,
        "logits_bytes": _cross_entropy(model, rows, half=half),
        "attention_bytes": _explicit_attention(model, training, half=half),
    }
    total = sum(parts.values())
    measured = not (training.gradient_checkpointing or parts["attention_bytes"])
    return MemoryBudget(**parts, total_bytes=total, required_bytes=int(total * MEMORY_MARGIN), measured=measured)


def _cross_entropy(model: ModelConfig, rows: int, *, half: bool) -> int:
    """Logits of one chunk and the gradient of the head, or that gradient and its scaled copy."""
    logits = min(rows * (2 if half else 4), CHUNK_BYTES) * model.vocab_size
    kept = 8 if half else 4  # autocast also keeps the head and the added matmul in its number format
    return max(logits + model.vocab_size * model.n_embd * kept, 8 * model.vocab_size * model.n_embd)


def _explicit_attention(model: ModelConfig, training: TrainingConfig, *, half: bool) -> int:
    """Dropout disables the fused kernel on the CPU: attention, dropped attention and mask, (B, H, T, T), stay."""
    if not model.dropout:
        return 0
    layers = 1 if training.gradient_checkpointing else len(model.heads)
    heads = sum(sorted(model.heads)[-layers:])
    return training.batch_size * heads * training.sequence_length**2 * (5 if half else 9)


def _disk(config: ExperimentConfig, parameters: int, steps: int) -> DiskBudget:
    full, weights = 12 * parameters, 4 * parameters
    periodic = min(config.evaluation.max_checkpoints_to_keep, steps // config.evaluation.checkpoint_every)
    saved = config.checkpoint.save_best + config.checkpoint.save_final
    return DiskBudget(full, weights, periodic, (periodic + 3) * full + saved * weights)


def _schedule(config: ExperimentConfig, train_tokens: int | None) -> ScheduleBudget:
    steps = effective_steps(config.training, train_tokens)
    tokens = steps * config.training.total_batch_size
    epochs = tokens / train_tokens if train_tokens else None
    return ScheduleBudget(steps, config.accumulation, config.training.total_batch_size, tokens, train_tokens, epochs)
