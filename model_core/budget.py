"""What a configuration costs before anything is allocated: parameters, FLOPs, memory, disk, steps.

At a fixed `n_embd` the number of heads changes neither parameters nor KV size nor matmul FLOPs, because the
heads share the width: head_dim = n_embd / heads. Only the softmax gets smaller. A fixed `head_dim` does save.

Letters: C n_embd, H heads of a layer, D head_dim of a layer, W = H D, T sequence_length, B batch_size, V vocab_size,
L layers, N = B T rows of a micro batch, P parameters.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from model_core.config import ExperimentConfig, ModelConfig, TrainingConfig, divisors
from model_core.schedule import effective_steps

FORMULAS = {
    "layer_parameters": "4 C W + 3 W + C (attention) + 8 C^2 + 5 C (MLP) + 4 C (two layer norms)",
    "kv_bytes_per_token": "2 W numbers of 2 bytes (bfloat16)",
    "flops_per_token": "6 x parameters + 12 W T a layer, 6 (V C + 2 C) for the head; forward and backward",
    "softmax_elements": "H T (T + 1) / 2 a layer and sequence",
    "memory_bytes": "48 MiB + P (16 | 18) + L N C (64 | 36) + 12 N V; float32 | bfloat16",
    "checkpoint_bytes": "12 P a full state, 4 P weights alone",
}
NO_SAVING = (
    "At this n_embd the heads share the width, so the number of heads changes neither parameters nor KV bytes nor "
    "matmul FLOPs; only the softmax gets smaller. Set model.head_dim to save."
)
MEMORY_MARGIN = 1.2  # the estimate was within 17 % of what was measured

_MIB = 1 << 20
_BF16_BYTES = 2


@dataclass(frozen=True)
class LayerBudget:
    """One block of the model; `FORMULAS` says how each number comes about."""

    layer: int
    n_head: int
    head_dim: int
    parameters: int
    kv_bytes_per_token: int
    flops_per_token: int
    softmax_elements: int


@dataclass(frozen=True)
class MemoryBudget:
    """Memory of one training step on the CPU, above the import of torch, by part.

    `measured` is false where a part was estimated from shapes alone: dropout, checkpointing of activations.
    """

    base_bytes: int
    weights_bytes: int
    activations_bytes: int
    cross_entropy_bytes: int
    attention_bytes: int
    total_bytes: int
    measured: bool

    @property
    def required_bytes(self) -> int:
        """What must be free: the estimate with its margin."""
        return int(self.total_bytes * MEMORY_MARGIN)


@dataclass(frozen=True)
class DiskBudget:
    """Checkpoints of a whole run: at most `periodic` + 2 full states at once, and two files of weights."""

    full_state_bytes: int
    weights_bytes: int
    periodic: int
    total_bytes: int


@dataclass(frozen=True)
class ScheduleBudget:
    """How long a training is. `epochs` is None when the size of the training split is not known."""

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
        parameters: Of the whole model.
        kv_bytes_per_token: Of all layers.
        flops_per_token: Of one training step, forward and backward.
        softmax_elements: Of all layers and one sequence.
        memory: Of one training step on the CPU.
        disk: Of the run's checkpoints.
        schedule: Steps, tokens and epochs.
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

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON, with the formulas."""
        tree = asdict(self)
        tree["layers"] = list(tree["layers"])
        tree["memory"]["required_bytes"] = self.memory.required_bytes
        return {**tree, "formulas": FORMULAS}


def budget_of(config: ExperimentConfig, *, train_tokens: int | None = None) -> Budget:
    """Count what a configuration costs; nothing is allocated.

    Args:
        config: The experiment.
        train_tokens: Tokens of its training split, when they are known.
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


def uniform_of(config: ExperimentConfig) -> ExperimentConfig:
    """The same experiment with equal heads in every layer and GPT-2's split of the width.

    The count is `n_head` where it divides the width, else the nearest one to the largest of the list that does.
    """
    model = config.model
    valid = divisors(model.n_embd)
    wanted = model.n_head if model.n_head in valid else max(model.heads)
    uniform = {"n_head": min(valid, key=lambda n: abs(n - wanted)), "n_head_list": None, "head_dim": None}
    return config.model_copy(update={"model": model.model_copy(update=uniform)})


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
    )


def _memory(config: ExperimentConfig, parameters: int) -> MemoryBudget:
    model, training = config.model, config.training
    half = config.device.dtype != "float32"
    rows = training.batch_size * training.sequence_length
    kept = 36 if half else 64  # bytes of activations a layer, row and channel
    layer = rows * model.n_embd * kept
    activations = model.n_layer * layer
    if training.gradient_checkpointing:  # the input of every layer, and one layer in full
        activations = model.n_layer * rows * model.n_embd * 4 + layer
    parts = {
        "base_bytes": 48 * _MIB,
        "weights_bytes": parameters * (18 if half else 16),
        "activations_bytes": activations,
        "cross_entropy_bytes": 12 * rows * model.vocab_size,
        "attention_bytes": _explicit_attention(model, training, half=half),
    }
    measured = not (training.gradient_checkpointing or parts["attention_bytes"])
    return MemoryBudget(**parts, total_bytes=sum(parts.values()), measured=measured)


def _explicit_attention(model: ModelConfig, training: TrainingConfig, *, half: bool) -> int:
    """Dropout leaves the fused kernel on the CPU: weights, dropped weights and mask of (B, H, T, T) stay."""
    if not model.dropout:
        return 0
    layers = 1 if training.gradient_checkpointing else len(model.heads)
    heads = sum(sorted(model.heads)[-layers:])
    return training.batch_size * heads * training.sequence_length**2 * (5 if half else 9)


def _disk(config: ExperimentConfig, parameters: int, steps: int) -> DiskBudget:
    full, weights = 12 * parameters, 4 * parameters
    periodic = min(config.evaluation.max_checkpoints_to_keep, steps // config.evaluation.checkpoint_every)
    saved = config.checkpoint.save_best + config.checkpoint.save_final
    return DiskBudget(full, weights, periodic, (periodic + 2) * full + saved * weights)


def _schedule(config: ExperimentConfig, train_tokens: int | None) -> ScheduleBudget:
    steps = effective_steps(config.training, train_tokens)
    tokens = steps * config.training.total_batch_size
    epochs = tokens / train_tokens if train_tokens else None
    return ScheduleBudget(steps, config.accumulation, config.training.total_batch_size, tokens, train_tokens, epochs)


# --- beside the uniform model ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One line of the comparison, ready to be read: what, here, uniform, difference."""

    label: str
    value: str
    uniform: str
    difference: str


def comparison(budget: Budget, uniform: Budget) -> list[Row]:
    """The totals of a model beside those of the uniform one."""
    return [
        _row("parameters", budget.parameters, uniform.parameters),
        _row("KV bytes a token (bf16)", budget.kv_bytes_per_token, uniform.kv_bytes_per_token),
        _row("FLOPs a token", budget.flops_per_token, uniform.flops_per_token),
        _row("softmax elements a sequence", budget.softmax_elements, uniform.softmax_elements),
        _row("training memory on a CPU, MiB", _mib(budget), _mib(uniform)),
        _row("checkpoints on disk, MiB", budget.disk.total_bytes // _MIB, uniform.disk.total_bytes // _MIB),
    ]


def text_table(budget: Budget, uniform: Budget) -> str:
    """The comparison as plain text, and what it means where nothing is saved."""
    head = Row("", "this model", "uniform", "difference")
    rows = [head, *comparison(budget, uniform)]
    lines = [f"{r.label:<32}{r.value:>18}{r.uniform:>18}{r.difference:>12}" for r in rows]
    return "\n".join([*lines, *([NO_SAVING] if saves_nothing(budget, uniform) else [])])


def saves_nothing(budget: Budget, uniform: Budget) -> bool:
    """Whether unequal heads leave size and FLOPs as they are."""
    unequal = [layer.n_head for layer in budget.layers] != [layer.n_head for layer in uniform.layers]
    return unequal and budget.parameters == uniform.parameters


def _mib(budget: Budget) -> int:
    return budget.memory.total_bytes // _MIB


def _row(label: str, value: int, uniform: int) -> Row:
    share = 100 * (value - uniform) / uniform if uniform else 0.0
    return Row(label, f"{value:,}", f"{uniform:,}", "same" if value == uniform else f"{share:+.1f} %")
