"""Labels of tokens: what is invisible or half a character is spelled out, each sign is drawn in a font that has it.

DejaVu Sans comes with matplotlib and is the font of everything else. A sign that it lacks is drawn in the first
installed font that has it; only a sign of no font is written as its code, because a box says nothing.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import matplotlib
import numpy as np
from matplotlib.font_manager import fontManager, get_font
from numpy.typing import NDArray

from model_core.attention.pictures.layout import PictureStyle

Codes = NDArray[np.uint32]

FONT = "DejaVu Sans"
DRAWING = threading.RLock()  # fonts and figures share matplotlib's global state
_LABEL_LENGTH = 10  # characters
_BYTES_LENGTH = 12  # of three bytes, the most that a part of a character has
_NO_TEXT = ("Last Resort", "STIXSize", "STIXNonUnicode", "cm")  # boxes, parts of formulas, and their own encodings
_VISIBLE = {"\n": "↵", "\t": "⇥"}
_BYTES = re.compile(r"bytes:((?:\\x[0-9a-f]{2})+)")  # as the tokenizer names a token that is no whole character


def axis_labels(tokens: Sequence[str], style: PictureStyle) -> tuple[str, ...] | None:
    """Shorten and escape the labels of the axes.

    Args:
        tokens: Label of every token.
        style: Its `label_max_tokens` is the most tokens to label.

    Returns:
        Label of every token; None if there are too many.
    """
    return tuple(map(_label, tokens)) if len(tokens) <= style.label_max_tokens else None


def escape(text: str) -> str:
    """Escape what no font has and what is invisible.

    Args:
        text: Any text.

    Returns:
        Text that can be drawn in the fonts of `font_families`.
    """
    return "".join(_VISIBLE.get(character) or _drawable(character) for character in text)


def font_families(text: str) -> list[str]:
    """Choose the fonts of a text.

    Args:
        text: A text, as `escape` returns it.

    Returns:
        The usual font, and those of the signs that it lacks.
    """
    others = (_family(character) for character in dict.fromkeys(text) if ord(character) not in _glyphs())
    return list(dict.fromkeys([FONT, *filter(None, others)]))


def _label(token: str) -> str:
    if part := _BYTES.fullmatch(token):
        return _shortened(part[1], _BYTES_LENGTH)
    return _shortened(escape(token.strip(" ") or "␣" * len(token)), _LABEL_LENGTH)


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _drawable(character: str) -> str:
    is_visible = unicodedata.category(character)[0] not in "CZ"
    if character == " " or (is_visible and (ord(character) in _glyphs() or _family(character))):
        return character
    return character.encode("unicode_escape").decode() if ord(character) > 127 else repr(character)[1:-1]


@lru_cache(maxsize=1)
def _glyphs() -> frozenset[int]:
    with DRAWING:
        return frozenset(get_font(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf").get_charmap())


@lru_cache(maxsize=4096)
def _family(character: str) -> str | None:
    """The first installed family that can draw a sign which the usual font lacks."""
    code = ord(character)
    with DRAWING:
        return next((family for family, codes in _coverage() if _holds(codes, code)), None)


@lru_cache(maxsize=1)
def _coverage() -> tuple[tuple[str, Codes], ...]:
    """Family and sorted signs of every upright outline font; sans-serif ones first. Read once: it opens every font."""
    files = {entry.name: entry.fname for entry in fontManager.ttflist if entry.style == "normal"}
    usable = sorted(
        (name for name in files if not name.startswith(_NO_TEXT)), key=lambda name: ("Sans" not in name, name)
    )
    return tuple((name, codes) for name in usable if (codes := _signs(files[name])).size)


def _signs(path: str) -> Codes:
    try:
        font = get_font(path)
        return np.array(sorted(font.get_charmap()) if font.scalable else [], dtype=np.uint32)
    except (OSError, RuntimeError):  # a file that was removed, or a format that the renderer cannot read
        return np.array([], dtype=np.uint32)


def _holds(codes: Codes, code: int) -> bool:
    place = int(np.searchsorted(codes, code))
    return place < codes.size and int(codes[place]) == code
