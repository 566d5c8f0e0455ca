"""Parts of captured attention: layers, heads and tokens, as clients name them.

A wrong part is refused with a JSON pointer, the value, and what there is.

Shapes: T tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from model_core.errors import FieldProblem, InvalidParameters

_RANGE = re.compile(r"(\d{0,9}):(\d{0,9})", re.ASCII)
_MARKS = re.compile(r"\d{1,9}(?:-\d{1,9})?(?:,\d{1,9}(?:-\d{1,9})?)*", re.ASCII)
_NUMBERS = re.compile(r"\d{1,9}(?:,\d{1,9})*", re.ASCII)


@dataclass(frozen=True)
class TokenRange:
    """Neighbouring tokens of a text.

    Attributes:
        start: The first one.
        stop: The one after the last.
    """

    start: int
    stop: int

    @classmethod
    def parse(cls, text: str | None, tokens: int) -> TokenRange:
        """Read a range.

        Args:
            text: ``a:b`` without token b; either number may be left out. None takes all.
            tokens: Number of tokens of the text, T.

        Returns:
            The range.

        Raises:
            InvalidParameters: It is empty, ends after the text, or is no range.
        """
        if text is None:
            return cls(0, tokens)
        found = _RANGE.fullmatch(text)
        if found is None:
            detail = f"must be two numbers from 0 to {tokens}, such as 0:{tokens}"
            raise InvalidParameters([FieldProblem("/tokens", detail, text[:100], (f"0:{tokens}",))])
        start, stop = int(found[1] or 0), int(found[2]) if found[2] else tokens
        if not start < stop <= tokens:
            first = min(start, tokens - 1)
            near = f"{first}:{min(stop, tokens) if stop > first else tokens}"
            detail = f"must begin before it ends, and end at {tokens} at most"
            raise InvalidParameters([FieldProblem("/tokens", detail, text[:100], (near,))])
        return cls(start, stop)

    def __len__(self) -> int:
        """Number of tokens."""
        return self.stop - self.start

    def __str__(self) -> str:
        """The range as `parse` reads it."""
        return f"{self.start}:{self.stop}"


def parse_highlight(text: str | None, shown: TokenRange) -> tuple[int, ...]:
    """Read tokens to mark.

    Args:
        text: Numbers and ranges, the end of each included, such as ``3,7-9``; None marks none.
        shown: The tokens that are shown.

    Returns:
        Places of the tokens in their text, ascending.

    Raises:
        InvalidParameters: It is no such list, or names a token that is not shown.
    """
    if text is None:
        return ()
    allowed = f"tokens {shown.start} to {shown.stop - 1}, such as {shown.start} or {shown.start}-{shown.stop - 1}"
    refusal = InvalidParameters(
        [FieldProblem("/highlight", f"must name {allowed}", text[:100], (f"{shown.start}-{shown.stop - 1}",))]
    )
    if not _MARKS.fullmatch(text):
        raise refusal
    ends = [[int(end) for end in part.split("-")] for part in text.split(",")]
    if any(part[0] > part[-1] or part[0] < shown.start or part[-1] >= shown.stop for part in ends):
        raise refusal
    return tuple(sorted({token for part in ends for token in range(part[0], part[-1] + 1)}))


def parse_numbers(name: str, text: str | None) -> tuple[int, ...] | None:
    """Read a list of layers or heads.

    Args:
        name: Name of the parameter.
        text: Numbers, separated by commas; None chooses nothing.

    Returns:
        The numbers, ascending, each once; None for None.

    Raises:
        InvalidParameters: It is no such list.
    """
    if text is None:
        return None
    if not _NUMBERS.fullmatch(text):
        raise InvalidParameters([FieldProblem(f"/{name}", "must be numbers, such as 0 or 0,2", text[:100])])
    return tuple(sorted({int(number) for number in text.split(",")}))


def check_layer(layer: int, heads: Sequence[int]) -> int:
    """Check the index of a layer.

    Args:
        layer: The index.
        heads: Head count of every layer.

    Returns:
        The index.

    Raises:
        InvalidParameters: There is no such layer.
    """
    if 0 <= layer < len(heads):
        return layer
    near = min(max(layer, 0), len(heads) - 1)
    detail = f"the model has {_counted(len(heads), 'layer')}, 0 to {len(heads) - 1}"
    raise InvalidParameters([FieldProblem("/layer", detail, layer, (near,))])


def check_head(head: int, layer: int, heads: Sequence[int]) -> int:
    """Check the index of a head.

    Args:
        head: The index of the head in its layer.
        layer: The index of the layer.
        heads: Head count of every layer.

    Returns:
        The index of the head.

    Raises:
        InvalidParameters: There is no such layer, or it has no such head.
    """
    count = heads[check_layer(layer, heads)]
    if 0 <= head < count:
        return head
    detail = f"layer {layer} has {_counted(count, 'head')}, 0 to {count - 1}"
    raise InvalidParameters([FieldProblem("/head", detail, head, (min(max(head, 0), count - 1),))])


def chosen_heads(
    heads: Sequence[int], layers: Sequence[int] | None = None, only: Sequence[int] | None = None
) -> dict[int, tuple[int, ...]]:
    """Choose heads.

    Args:
        heads: Head count of every layer.
        layers: Indices of layers; None takes all.
        only: Indices of heads, which each chosen layer must have; None takes all.

    Returns:
        Indices of the chosen heads by layer, ascending.

    Raises:
        InvalidParameters: There is no such layer, or one of them has no such head.
    """
    chosen = range(len(heads)) if layers is None else [check_layer(layer, heads) for layer in layers]
    return {
        layer: tuple(range(heads[layer])) if only is None else tuple(check_head(head, layer, heads) for head in only)
        for layer in chosen
    }


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
