"""Whether a model may be served with int8 weights: its loss, compared with that of float32 on the same tokens.

    packed = QualityGate(max_increase=0.01).pack(loaded, "int8", run=run, layout=layout)

The comparison is made once and recorded beside the checkpoint, as ``model_best.int8.json``; it is repeated for another
checkpoint, version of torch or kind of CPU. The tokens are those of the validation split; without one, the model writes
them itself. A model that int8 spoils is served in float16, with a warning.

Shapes: N tokens of a pass, V ids of the tokenizer.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name

from model_core.checkpoint import LoadedModel
from model_core.data.loader import load_tokens
from model_core.errors import ModelCoreError
from model_core.generation.forward.model_runner import CHUNK, ModelRunner, PromptChunk
from model_core.generation.forward.packed_model import PackedModel, pack_model, release
from model_core.generation.forward.weight_formats import cpu_features
from model_core.schemas import ResultWarning
from model_core.storage.dataset import dataset_of
from model_core.storage.files import Layout, read_json, write_json
from model_core.storage.run import Run

log = logging.getLogger(__name__)

REFUSED = "int8_refused"  # code of the warning that a model is not served in int8
TOKENS = 4096  # over which the losses are compared
_WINDOW, _ROWS = 256, 4  # tokens of a window at most, and windows of a pass


@dataclass(frozen=True)
class GateResult:
    """One comparison.

    Attributes:
        sha256: Hash of the checkpoint, hex.
        torch: Version of torch.
        cpu_flags: Features of the CPU that the operators depend on.
        tokens: Number of tokens.
        loss_fp32: Mean cross entropy in nats with float32 weights; None if it is not finite.
        loss_int8: The same with int8 weights.
        verdict: ``accepted`` or ``refused`` when it was measured; the limit may have changed since.
    """

    sha256: str
    torch: str
    cpu_flags: tuple[str, ...]
    tokens: int
    loss_fp32: float | None
    loss_int8: float | None
    verdict: str = ""

    def accepts(self, max_increase: float) -> bool:
        """Decide.

        Args:
            max_increase: Largest accepted increase of the loss, relative to float32.

        Returns:
            Whether int8 may be used.
        """
        if self.loss_fp32 is None or self.loss_int8 is None:
            return False
        return self.loss_int8 <= self.loss_fp32 * (1 + max_increase)

    def answers(self, sha256: str) -> bool:
        """Check whether it was measured with the same checkpoint, torch and kind of CPU.

        Args:
            sha256: Hash of the checkpoint, hex.

        Returns:
            True if it need not be measured again.
        """
        return (self.sha256, self.torch, self.cpu_flags) == (sha256, torch.__version__, cpu_features())


class QualityGate:
    """Packs models for serving; keeps results in memory where they cannot be written.

    Args:
        max_increase: Largest accepted increase of the loss, relative to float32.
    """

    def __init__(self, max_increase: float = 0.01) -> None:
        self._max_increase = max_increase
        self._results: dict[str, GateResult] = {}  # by sha256

    def pack(self, loaded: LoadedModel, wanted: str, *, run: Run, layout: Layout) -> PackedModel:
        """Convert a model to the wanted format, or to float16 if that is int8 and spoils it.

        Args:
            loaded: The model; it is not usable afterwards.
            wanted: See `pack_model`.
            run: Run of the checkpoint.
            layout: Paths of the data root, for the validation split.

        Returns:
            The packed model, with a warning if it has not the wanted format.
        """
        model, n_vocab = loaded.model, loaded.tokenizer.n_vocab
        if wanted != "int8" or model.lm_head.weight.device.type != "cpu":
            return pack_model(model, n_vocab, wanted, keep=False)
        file = run.path / f"{Path(loaded.info.file).stem}.int8.json"
        result = self._results.get(loaded.info.sha256) or _read(file)
        if result is None or not result.answers(loaded.info.sha256):
            packed = pack_model(model, n_vocab, wanted, keep=True)
            if packed.weights != wanted:
                return pack_model(model, n_vocab, wanted, keep=False)
            result = self._measure(loaded, packed, layout)
            self._record(result, file)
            if result.accepts(self._max_increase):
                release(model)
                return packed
            del packed
        if result.accepts(self._max_increase):
            return pack_model(model, n_vocab, wanted, keep=False)
        log.warning("int8 refused run=%s file=%s %s", run.name, loaded.info.file, _losses(result))
        return pack_model(model, n_vocab, "fp16", keep=False).warned(_refusal(result, self._max_increase))

    def _measure(self, loaded: LoadedModel, packed: PackedModel, layout: Layout) -> GateResult:
        reference = pack_model(loaded.model, loaded.tokenizer.n_vocab, "fp32", keep=True)
        windows = _windows(_validation_tokens(loaded, layout), packed.config.block_size)
        windows = windows or write_texts(reference, loaded.tokenizer.eot)
        fp32, int8 = mean_loss(reference, windows), mean_loss(packed, windows)
        result = GateResult(
            loaded.info.sha256,
            torch.__version__,
            cpu_features(),
            sum(len(window) - 1 for window in windows),
            fp32 if math.isfinite(fp32) else None,
            int8 if math.isfinite(int8) else None,
        )
        verdict = "accepted" if result.accepts(self._max_increase) else "refused"
        return GateResult(**{**asdict(result), "verdict": verdict})

    def _record(self, result: GateResult, file: Path) -> None:
        self._results[result.sha256] = result
        try:
            write_json(file, asdict(result))
        except OSError as error:
            log.info("result of the int8 comparison kept in memory file=%s error=%s", file.name, error)


@torch.inference_mode()
def mean_loss(packed: PackedModel, windows: Sequence[Sequence[int]]) -> float:
    """Compute the mean cross entropy of windows of tokens, each read from position 0.

    Args:
        packed: The model.
        windows: Ids, at least two each; the first of each is not counted.

    Returns:
        Nats per token.
    """
    longest = max(map(len, windows))
    runner = ModelRunner(packed, rows=_ROWS, length=longest)
    total, count = 0.0, 0
    for first in range(0, len(windows), _ROWS):
        together = windows[first : first + _ROWS]
        for start in range(0, longest - 1, CHUNK):
            inputs = [window[start : min(start + CHUNK, len(window) - 1)] for window in together]
            chunks = [PromptChunk(row, start, ids) for row, ids in enumerate(inputs) if ids]
            targets = torch.tensor(
                [t for w, ids in zip(together, inputs, strict=True) for t in w[start + 1 : start + 1 + len(ids)]]
            )  # (N,)
            logits = runner.logits(runner.prefill(chunks))  # (N, V)
            total += float(F.cross_entropy(logits, targets, reduction="sum"))
            count += len(targets)
    return total / count


@torch.inference_mode()
def write_texts(packed: PackedModel, eot: int, count: int = TOKENS) -> list[Sequence[int]]:
    """Let a model write tokens, for a comparison without a validation split.

    Args:
        packed: The model.
        eot: Id that begins each text.
        count: Number of tokens.

    Returns:
        Ids of each text.
    """
    length = min(CHUNK, packed.config.block_size)
    rows = -(-count // length)
    runner, generator = ModelRunner(packed, rows=rows, length=length), torch.Generator().manual_seed(0)
    texts = [[eot] for _ in range(rows)]
    for position in range(length):
        logits = runner.step([text[-1] for text in texts], [position] * rows)  # (rows, V)
        drawn = torch.multinomial(logits.nan_to_num(0.0).softmax(-1), 1, generator=generator)  # (rows, 1)
        for text, token in zip(texts, drawn[:, 0].tolist(), strict=True):
            text.append(token)
    return list(texts)


def _validation_tokens(loaded: LoadedModel, layout: Layout) -> list[int]:
    """The beginning of the validation split; empty if there is none of this tokenizer."""
    try:
        ids = [int(token) for token in load_tokens(dataset_of(loaded.config, layout).val)[: TOKENS + 1]]
    except (OSError, ModelCoreError):
        return []
    return ids if ids and max(ids) < loaded.tokenizer.n_vocab else []


def _windows(ids: Sequence[int], block_size: int) -> list[Sequence[int]]:
    """Windows that share a token at their borders, so that each counts once."""
    length = min(_WINDOW, block_size)
    return [ids[at : at + length + 1] for at in range(0, len(ids) - 1, length)]


def _read(file: Path) -> GateResult | None:
    try:
        record = read_json(file)
        return GateResult(**{**record, "cpu_flags": tuple(record["cpu_flags"])})
    except (OSError, ValueError, TypeError, KeyError):  # none, or not one of ours
        return None


def _losses(result: GateResult) -> str:
    return f"loss_fp32={result.loss_fp32} loss_int8={result.loss_int8}"


def _refusal(result: GateResult, max_increase: float) -> ResultWarning:
    shown = ["not finite" if loss is None else f"{loss:.4f}" for loss in (result.loss_int8, result.loss_fp32)]
    detail = f"the loss with int8 weights is {shown[0]}, with float32 {shown[1]}; at most {max_increase:.1%} more is"
    return ResultWarning(code=REFUSED, detail=f"{detail} accepted, so float16 weights are used instead")
