"""Attention rollout as clients read it, always beside that of even heads and their ratio."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_core.attention.pictures.layout import PictureStyle
from model_core.attention.pictures.rollout_picture import rollout_picture
from model_core.attention.record import AttentionRecord
from model_core.attention.rollout import CAVEAT, even_rollout, ratio_to_even, rollout
from model_core.attention.selection import check_layer
from model_core.errors import AttentionTooLarge, FieldProblem
from service.attention.replies import identity_of

Matrix = NDArray[np.float32]

MAX_TOKENS = 2048  # a product of two matrices of this size takes half a second
_DIGITS = 6  # after the point


@dataclass(frozen=True)
class Rollout:
    """Rollout of a record.

    Attributes:
        record: The record.
        layer: Index of the last layer.
        shares: The rollout, (T, T).
        even: That of even heads of the same depth, (T, T).
        ratio: Their ratio, (T, T).
    """

    record: AttentionRecord
    layer: int
    shares: Matrix
    even: Matrix
    ratio: Matrix

    @classmethod
    def of(cls, record: AttentionRecord, layer: int | None) -> Rollout:
        """Multiply the layers of a record.

        Args:
            record: The record.
            layer: Index of the last layer; None takes all layers.

        Returns:
            The rollout.

        Raises:
            InvalidParameters: There is no such layer.
            AttentionTooLarge: The text has too many tokens.
        """
        last = record.n_layer - 1 if layer is None else check_layer(layer, record.heads)
        tokens = len(record.tokens)
        if tokens > MAX_TOKENS:
            detail = f"a rollout has at most {MAX_TOKENS} tokens, this text has {tokens}: max_tokens={MAX_TOKENS} fits"
            raise AttentionTooLarge(detail, [FieldProblem("/max_tokens", detail, tokens, (MAX_TOKENS,))])
        shares = rollout(record.layer(number) for number in range(last + 1))  # (T, T)
        even = even_rollout(last + 1, tokens)  # (T, T)
        return cls(record, last, shares, even, ratio_to_even(shares, even))

    def to_json(self) -> bytes:
        """Write rows up to the diagonal.

        Returns:
            JSON.
        """
        body = {
            "object": "attention_rollout",
            **identity_of(self.record),
            "tokens": self.record.tokens,
            "layer": self.layer,
            "caveat": CAVEAT,
            "rollout": _rows(self.shares),
            "even": _rows(self.even),
            "ratio": _rows(self.ratio),
        }
        return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()

    def to_npz(self) -> bytes:
        """Write the matrices for numpy.

        Returns:
            An archive of `rollout`, `even` and `ratio`, float32, (T, T).
        """
        file = io.BytesIO()
        np.savez(file, rollout=self.shares, even=self.even, ratio=self.ratio)
        return file.getvalue()

    def to_picture(self, style: PictureStyle) -> bytes:
        """Draw the matrices side by side.

        Args:
            style: Color map, resolution, labels and range of colors.

        Returns:
            The picture's file.

        Raises:
            InvalidParameters: The picture has too many pixels.
        """
        facts = identity_of(self.record)
        notes = [str(facts["run"]), f"{facts['checkpoint']}, step {facts['step']}", f"id {facts['id']}"]
        tokens = self.record.tokens
        metadata = {name: str(value) for name, value in facts.items()} | {"tokens": f"0:{len(tokens)}"}
        return rollout_picture(
            self.shares, self.even, self.ratio, tokens, layer=self.layer, style=style, notes=notes, metadata=metadata
        )


def _rows(matrix: Matrix) -> list[Any]:
    return [row[: place + 1] for place, row in enumerate(np.round(matrix.astype(np.float64), _DIGITS).tolist())]
