"""A fixed probe of a dataset, and what every head of a model does on it.

Windows of the validation split give the statistics of natural text. Sequences of random tokens followed by themselves
show heads that look for an earlier copy; controls, whose second half is fresh, show those that look at a distance. The
texts depend on the dataset and the block size alone, so the values of two steps or two runs compare where `sha256` is
equal.

Shapes: S sequences, T tokens, K tokens of the half that is repeated, H heads of one layer, F tokens of a frame.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from model_core.attention.capture import attention_blocks
from model_core.attention.head_metrics import HISTORY_METRICS
from model_core.attention.heads.detector import (
    HeadLabel,
    HeadType,
    PatternAccumulator,
    PatternScore,
    label_heads,
    natural_patterns,
    repeated_patterns,
)
from model_core.attention.heads.patterns import WINDOW
from model_core.attention.record import quantize
from model_core.attention.statistics import HeadAccumulator, even_statistics
from model_core.data.loader import Tokens, load_tokens
from model_core.errors import InvalidData, ModelCoreError, is_out_of_memory

if TYPE_CHECKING:
    from model_core.gpt import GPT
    from model_core.storage.dataset import Dataset

Ids = NDArray[np.int64]
Scores = dict[HeadType, PatternScore]

SEQUENCES = 8
FRAME = 48  # most tokens of a frame
FEW_IDS = "few_ids"  # reason why `induction` and `duplicate` are null

_LEAST_COUNT = 5  # occurrences of an id in the validation split before random sequences use it
_LEAST_IDS = 32
_LEAST_HALF = 4
_COUNTED = 1 << 20  # tokens of the validation split that are counted
_SEED = 0
_OF_COPIES: tuple[HeadType, ...] = ("induction", "duplicate")
_DIGITS = 4


class ProbeOutOfMemory(ModelCoreError):
    """The probe does not fit in the memory of its device."""

    code = "cuda_oom"

    def __init__(self, device: str) -> None:
        super().__init__(f"{device} ran out of memory while the probe of the heads was read")


@dataclass(frozen=True, eq=False)
class Probe:
    """Texts on which heads are measured.

    Attributes:
        windows: Natural text at even places of the validation split, (S, T).
        repeated: Random tokens, none twice, followed by themselves, (S, 2K); None where too few ids are known.
        control: The same tokens followed by others, none twice, (S, 2K); None like `repeated`.
    """

    windows: Ids
    repeated: Ids | None
    control: Ids | None

    @classmethod
    def of(cls, dataset: Dataset, block_size: int) -> Probe:
        """Choose the texts of a dataset.

        Args:
            dataset: The dataset, whose validation split is read.
            block_size: Most tokens of the model.

        Returns:
            The probe, equal for equal arguments.

        Raises:
            InvalidData: The validation split is shorter than one window, or damaged.
        """
        special = dataset.tokenizer().special.values()
        return cls.of_tokens(load_tokens(dataset.val), block_size, excluded=special, name=dataset.val.name)

    @classmethod
    def of_tokens(
        cls, tokens: Tokens, block_size: int, *, excluded: Collection[int] = (), name: str = "the validation split"
    ) -> Probe:
        """Choose texts from token ids.

        Args:
            tokens: Token ids of the validation split.
            block_size: Most tokens of the model.
            excluded: Ids that no random sequence has, as the end of a text.
            name: Name of the data in errors.

        Returns:
            The probe, equal for equal arguments.

        Raises:
            InvalidData: There are fewer tokens than one window has.
        """
        length = min(WINDOW, block_size)
        spare = len(tokens) - length
        if spare < 0:
            raise InvalidData(f"{name} has {len(tokens)} tokens; one window of the probe has {length}")
        starts = [spare * window // (SEQUENCES - 1) for window in range(SEQUENCES)]
        windows = np.stack([tokens[start : start + length] for start in starts]).astype(np.int64)  # (S, T)
        known = _known_ids(tokens, excluded)
        half = min(length, len(known)) // 2
        if len(known) < _LEAST_IDS or half < _LEAST_HALF:
            return cls(windows, None, None)
        rng = np.random.default_rng(_SEED)
        control = np.stack([rng.permutation(known)[: 2 * half] for _ in range(SEQUENCES)])  # (S, 2K)
        return cls(windows, np.concatenate([control[:, :half]] * 2, axis=1), control)

    @cached_property
    def sha256(self) -> str:
        """Hash of all token ids, hex."""
        digest = hashlib.sha256()
        for ids in (self.windows, self.repeated, self.control):
            shape = (0, 0) if ids is None else ids.shape
            digest.update(np.array(shape, "<u4").tobytes())
            digest.update(b"" if ids is None else ids.astype("<u4").tobytes())
        return digest.hexdigest()

    @property
    def tokens(self) -> int:
        """Tokens of a window, T."""
        return int(self.windows.shape[1])

    @property
    def half(self) -> int | None:
        """Tokens that are repeated, K; None where too few ids are known."""
        return None if self.repeated is None else self.repeated.shape[1] // 2

    @property
    def size(self) -> int:
        """Tokens that a reading of the probe runs through the model."""
        return sum(ids.size for ids in (self.windows, self.repeated, self.control) if ids is not None)

    def summary(self) -> dict[str, Any]:
        """Describe the probe.

        Returns:
            ``{sha256, sequences, tokens, repeated, reason}``: S, T, K, and why `induction` and `duplicate` are null.
        """
        reason = FEW_IDS if self.half is None else None
        return {
            "sha256": self.sha256, "sequences": len(self.windows), "tokens": self.tokens, "repeated": self.half,
            "reason": reason,
        }  # fmt: skip

    def chance(self) -> dict[str, float | None]:
        """Compute what even attention gives.

        Returns:
            The value of each metric of a history; None where even attention says nothing.
        """
        known = even_statistics(self.tokens)
        if self.half is not None:
            known |= {pattern.type: pattern.chance for pattern in repeated_patterns(self.half)}
        return {name: _rounded(known.get(name)) for name in HISTORY_METRICS}


@dataclass(frozen=True)
class ProbeResult:
    """What the heads of a model do on a probe.

    Attributes:
        values: For each metric of a history the number of every head, layer by layer; four significant digits, None
            where there is none.
        types: Labels of each head that has one, by ``layer.head``; see `HeadLabel`.
        frames: Levels of the beginning of the first window, (H, F, F) a layer; see `record.quantize`.
    """

    values: Mapping[str, list[list[float | None]]]
    types: Mapping[str, list[dict[str, Any]]]
    frames: Sequence[NDArray[np.uint8]]


@torch.no_grad()
def run_probe(model: GPT, probe: Probe) -> ProbeResult:
    """Measure every head of a model.

    The model is read in eval mode and float32. Its modes, the random state of the process and its settings are
    afterwards what they were.

    Args:
        model: The model, on any device, with at least as many positions as the probe has tokens.
        probe: The texts.

    Returns:
        Values, labels and frames.

    Raises:
        ProbeOutOfMemory: It does not fit in memory.
    """
    device = next(model.parameters()).device
    try:
        with _reading(model, device.type):
            natural = _read_windows(model, torch.from_numpy(probe.windows).to(device))
            found = [natural.scores, *(_read_patterns(model, ids, device) for ids in (probe.repeated, probe.control))]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ProbeOutOfMemory(str(device)) from error
    texts, repeated, control = found
    labels: list[list[list[HeadLabel]]] = []  # of every head of a layer
    for layer, scores in enumerate(texts):
        of_copies = repeated[layer] if repeated else {}
        n_head = model.config.heads[layer]
        labels.append(label_heads(n_head, scores | of_copies, control[layer] if control else {}))
        for name in _OF_COPIES:
            natural.values[name].append(of_copies[name].score.tolist() if of_copies else [None] * n_head)
    return ProbeResult(
        values={name: [[_rounded(v) for v in row] for row in natural.values[name]] for name in HISTORY_METRICS},
        types={
            f"{layer}.{head}": [_label(label) for label in given]
            for layer, heads in enumerate(labels)
            for head, given in enumerate(heads)
            if given
        },
        frames=natural.frames,
    )


class _Reading:
    """Values, pattern scores and frames of natural text, layer after layer."""

    def __init__(self) -> None:
        self.values: dict[str, list[list[float | None]]] = defaultdict(list)
        self.scores: list[Scores] = []
        self.frames: list[NDArray[np.uint8]] = []


def _read_windows(model: GPT, idx: torch.Tensor) -> _Reading:
    S, T = idx.shape  # noqa: N806 - the letters of the shape legend
    reading, statistics, patterns = _Reading(), None, None
    for block in attention_blocks(model, idx, norms=True):
        attention = block.attention.numpy()  # (S, H, R, K)
        H = attention.shape[1]  # noqa: N806 - the letter of the shape legend
        if statistics is None or patterns is None:
            statistics, patterns = HeadAccumulator(T, S * H), PatternAccumulator(natural_patterns(T), S, H)
            reading.frames.append(np.zeros((H, min(FRAME, T), min(FRAME, T)), np.uint8))  # (H, F, F)
        norms, outputs = block.value_norms, block.output_norms  # (S, H, K), (S, H, R)
        assert norms is not None
        assert outputs is not None
        statistics.add(
            block.first, attention.reshape(S * H, *attention.shape[2:]),
            value_norms=norms.flatten(0, 1).numpy(), output_norms=outputs.flatten(0, 1).numpy(),
        )  # fmt: skip
        patterns.add(block.first, attention)
        part = np.nan_to_num(attention[0, :, : max(0, FRAME - block.first), :FRAME])  # (H, R', F')
        reading.frames[-1][:, block.first : block.first + part.shape[1], : part.shape[2]] = quantize(part)
        if block.is_last:
            for name, column in statistics.columns().items():
                heads = [None] * H if column is None else column.reshape(S, H).mean(axis=0).tolist()
                reading.values[name].append(heads)
            reading.scores.append(patterns.finish())
            statistics = patterns = None
    return reading


def _read_patterns(model: GPT, ids: Ids | None, device: torch.device) -> list[Scores]:
    if ids is None:
        return []
    found, patterns = [], None
    for block in attention_blocks(model, torch.from_numpy(ids).to(device)):
        attention = block.attention.numpy()  # (S, H, R, K)
        if patterns is None:
            patterns = PatternAccumulator(repeated_patterns(ids.shape[1] // 2), *attention.shape[:2])
        patterns.add(block.first, attention)
        if block.is_last:
            found.append(patterns.finish())
            patterns = None
    return found


@contextmanager
def _reading(model: GPT, device: str) -> Iterator[None]:
    """Eval mode and float32 products, without autocast; everything is put back."""
    modes = [(module, module.training) for module in model.modules()]
    precision = torch.get_float32_matmul_precision()
    model.eval()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        for module, is_training in modes:
            module.training = is_training


def _known_ids(tokens: Tokens, excluded: Collection[int]) -> Ids:
    ids, counts = np.unique(np.asarray(tokens[:_COUNTED]), return_counts=True)
    known = ids[(counts >= _LEAST_COUNT) & ~np.isin(ids, list(excluded))]
    return known.astype(np.int64)


def _label(label: HeadLabel) -> dict[str, Any]:
    return {name: _rounded(value) if isinstance(value, float) else value for name, value in asdict(label).items()}


def _rounded(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{_DIGITS}g}")
