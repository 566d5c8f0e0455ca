"""Layout of a picture: the position of everything, in pixels, before anything is drawn.

A page has square panels (one per head), captions and a color bar. Both renderers, numpy for PNG and matplotlib for SVG
and PDF, draw the same page, so they cannot disagree.

Shapes: H heads of one layer, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches

from model_core.config import TestingConfig
from model_core.errors import FieldProblem, InvalidParameters

FORMATS, SCALES = ("png", "svg", "pdf"), ("fixed", "auto")
COLUMNS, ALL_LAYERS_COLUMNS = 4, 16
MAX_PIXELS = 2**26
_MIN_DPI, _MAX_DPI = 10, 600
_TEXT, _MUTED = "0.10", "0.42"  # greys


@dataclass(frozen=True)
class PictureStyle:
    """Format and style of a picture.

    Attributes:
        format: ``png``, ``svg`` or ``pdf``.
        cmap: Name of a matplotlib color map.
        dpi: Pixels per inch, 10 to 600.
        label_max_tokens: Most tokens to label at the axes; the axes of longer texts have numbers.
        scale: ``fixed``, colors from 0 to 1; or ``auto``, to the largest weight shown outside the first query and key.
        scale_max: Weight at the upper end of the colors, which several pictures share; None leaves it to `scale`.

    Raises:
        InvalidParameters: A value cannot be drawn. The error names the nearest one that can.
    """

    format: str = "png"
    cmap: str = "viridis"
    dpi: int = 150
    label_max_tokens: int = 20
    scale: str = "fixed"
    scale_max: float | None = None

    def __post_init__(self) -> None:
        from matplotlib import colormaps  # heavy: loaded when something is drawn

        _check_known("format", self.format, FORMATS)
        _check_known("cmap", self.cmap, tuple(colormaps))
        _check_known("scale", self.scale, SCALES)
        if not _MIN_DPI <= self.dpi <= _MAX_DPI:
            near = min(max(self.dpi, _MIN_DPI), _MAX_DPI)
            raise _refusal("dpi", f"must be {_MIN_DPI} to {_MAX_DPI}", self.dpi, near)
        if self.label_max_tokens < 0:
            raise _refusal("labels", "must be at least 0", self.label_max_tokens, 0)

    @classmethod
    def of(cls, testing: TestingConfig) -> PictureStyle:
        """Read the style from a configuration.

        Args:
            testing: Section `testing`.

        Returns:
            The style.
        """
        return cls(testing.format, testing.cmap, testing.dpi, testing.label_max_tokens)

    def with_dpi(self, dpi: int) -> PictureStyle:
        """Change the resolution.

        Args:
            dpi: Pixels per inch.

        Returns:
            A copy with this resolution.
        """
        return replace(self, dpi=dpi)


@dataclass(frozen=True)
class Box:
    """A rectangle of pixels; y counts from the top."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Caption:
    """A line of text whose baseline starts at a point."""

    x: int
    y: int
    text: str
    points: float
    bold: bool = False
    color: str = _TEXT


@dataclass(frozen=True)
class Margins:
    """Pixels around a panel for its ticks and axis labels."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Page:
    """Layout of one picture.

    Attributes:
        width: Width in pixels.
        height: Height in pixels.
        dpi: Pixels per inch.
        panels: Squares of one size, in the order of the heads.
        captions: Every text but the axis labels.
        bar: Gradient of the color bar.
        bar_frame: The color bar with its ticks and name.
        margins: Space around each panel for its axes; None if panels have no axes.
    """

    width: int
    height: int
    dpi: int
    panels: tuple[Box, ...]
    captions: tuple[Caption, ...]
    bar: Box
    bar_frame: Box
    margins: Margins | None = None

    @property
    def fitting_dpi(self) -> int:
        """The largest resolution, up to its own, that keeps the page within MAX_PIXELS."""
        return min(self.dpi, int(self.dpi * math.sqrt(MAX_PIXELS / (self.width * self.height))))

    def checked(self) -> Page:
        """Check the number of pixels.

        Returns:
            The same page.

        Raises:
            InvalidParameters: More than MAX_PIXELS. The error names a resolution that fits.
        """
        if self.fitting_dpi < self.dpi:
            detail = f"makes a picture of {self.width} x {self.height} pixels, and {MAX_PIXELS:,} is the most"
            raise _refusal("dpi", f"{detail}; {self.fitting_dpi} fits", self.dpi, self.fitting_dpi)
        return self


@dataclass(frozen=True)
class Annotations:
    """What is drawn around and over the panels of a page.

    Attributes:
        tokens: Label of every token shown.
        first: Place of the first one in its text, from which numbers at the axes count.
        highlight: Places of marked tokens among those shown, ascending.
        scale_max: Weight at the upper end of the color map.
        bar_name: Name of the color bar.
        metadata: Facts that are stored in the file.
    """

    tokens: Sequence[str]
    first: int = 0
    highlight: tuple[int, ...] = ()
    scale_max: float = 1.0
    bar_name: str = "Attention weight"
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def bands(self) -> list[tuple[int, int]]:
        """Highlighted tokens as ranges, the end of each not included: neighbours are one band."""
        starts = [token for token in self.highlight if token - 1 not in self.highlight]
        ends = [token + 1 for token in self.highlight if token + 1 not in self.highlight]
        return list(zip(starts, ends, strict=True))


def layer_page(
    names: Sequence[str], *, title: str, notes: Sequence[str], dpi: int, labelled: bool, side_in: float = 3.2
) -> Page:
    """Lay out the heads of a layer in at most four columns.

    Args:
        names: Names of the heads, in order.
        title: Title of the page.
        notes: Notes below the title, broken into lines between each other.
        dpi: Pixels per inch.
        labelled: Whether the axes have token labels, which take more space.
        side_in: Side of a panel in inches.

    Returns:
        The page; its size is not checked.
    """
    columns = min(COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    around = (0.98, 0.34, 0.14, 0.98) if labelled else (0.62, 0.34, 0.14, 0.62)
    margins = Margins(*(_px(inches, dpi) for inches in around))
    side = _px(side_in, dpi)
    cell_w, cell_h = margins.left + side + margins.right, margins.top + side + margins.bottom
    header = _Header(title, notes, margins.left, margins.left + columns * cell_w, dpi)
    panels = tuple(
        Box(margins.left + n % columns * cell_w, header.height + n // columns * cell_h + margins.top, side, side)
        for n in range(len(names))
    )
    captions = (
        Caption(panel.x, panel.y - _px(0.09, dpi), name, 10, color="0.25")
        for name, panel in zip(names, panels, strict=True)
    )
    bar, frame = _bar(columns * cell_w + _px(0.12, dpi), panels[0].y, side, dpi)
    height = header.height + rows * cell_h + _px(0.08, dpi)
    return Page(
        frame.x + frame.width, height, dpi, panels, (*header.captions(), *captions), bar, frame, margins
    )  # fmt: skip


def all_layers_page(heads: Sequence[int], *, title: str, notes: Sequence[str], dpi: int) -> Page:
    """Lay out every head of every layer in small panels: one row per layer, broken after sixteen heads.

    Args:
        heads: Head count of every layer.
        title: Title of the page.
        notes: Notes below the title, broken into lines between each other.
        dpi: Pixels per inch.

    Returns:
        The page, without axes; its size is not checked.
    """
    columns = min(ALL_LAYERS_COLUMNS, max(heads))
    left, name, gap, between = (_px(inches, dpi) for inches in (1.0, 0.2, 0.09, 0.12))
    side = _px(min(1.7, max(0.62, 11.0 / columns - 0.09)), dpi)
    right = left + columns * (side + gap)
    header = _Header(title, notes, _px(0.28, dpi), right, dpi)
    panels: list[Box] = []
    captions = [*header.captions()]
    y = header.height + _px(0.06, dpi)
    for layer, count in enumerate(heads):
        middle = y + name + side // 2
        captions.append(Caption(_px(0.28, dpi), middle, f"Layer {layer}", 9, bold=True))
        captions.append(Caption(_px(0.28, dpi), middle + _px(0.17, dpi), _counted(count, "head"), 7, color=_MUTED))
        for head in range(count):
            x, top = left + head % columns * (side + gap), y + head // columns * (name + side) + name
            panels.append(Box(x, top, side, side))
            captions.append(Caption(x, top - _px(0.045, dpi), str(head), 6, color=_MUTED))
        y += math.ceil(count / columns) * (name + side) + between
    bar, frame = _bar(right + _px(0.06, dpi), panels[0].y, min(_px(2.4, dpi), y - between - panels[0].y), dpi)
    return Page(frame.x + frame.width, y + _px(0.12, dpi), dpi, tuple(panels), tuple(captions), bar, frame)


def ranked_page(names: Sequence[str], *, title: str, notes: Sequence[str], dpi: int) -> Page:
    """Lay out heads of any layers in small panels, in their order, in at most sixteen columns.

    Args:
        names: Names of the heads, in order.
        title: Title of the page.
        notes: Notes below the title, broken into lines between each other.
        dpi: Pixels per inch.

    Returns:
        The page, without axes; its size is not checked.
    """
    columns = min(ALL_LAYERS_COLUMNS, len(names))
    left, name_height, gap = (_px(inches, dpi) for inches in (0.28, 0.22, 0.12))
    side = _px(min(1.7, max(0.78, 11.0 / columns - 0.12)), dpi)
    header = _Header(title, notes, left, left + max(columns * (side + gap), _px(3.5, dpi)), dpi)
    top = header.height + _px(0.06, dpi)
    panels = tuple(
        Box(left + n % columns * (side + gap), top + n // columns * (name_height + side) + name_height, side, side)
        for n in range(len(names))
    )
    captions = (
        Caption(panel.x, panel.y - _px(0.05, dpi), name, 6, color=_MUTED)
        for name, panel in zip(names, panels, strict=True)
    )
    right = left + max(columns * (side + gap), _px(3.5, dpi))
    end = panels[-1].y + side
    bar, frame = _bar(right + _px(0.06, dpi), panels[0].y, min(_px(2.4, dpi), end - panels[0].y), dpi)
    return Page(frame.x + frame.width, end + _px(0.12, dpi), dpi, panels, (*header.captions(), *captions), bar, frame)


def _check_known(what: str, value: str, known: Sequence[str]) -> None:
    if value in known:
        return
    by_name = {name.lower(): name for name in known}
    near = [by_name[name] for name in get_close_matches(str(value).lower(), by_name, n=1, cutoff=0.0)]
    offer = f": {', '.join(known)}" if len(known) < 10 else ""
    raise _refusal(what, f"is not known{offer}; the nearest is {near[0]!r}", value, near[0])


def _refusal(name: str, detail: str, value: str | int, near: str | int) -> InvalidParameters:
    return InvalidParameters([FieldProblem(f"/{name}", detail, value, (near,))])


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


class _Header:
    """Title and notes. Lines break between notes; a note longer than a line is cut."""

    def __init__(self, title: str, notes: Sequence[str], x: int, right: int, dpi: int) -> None:
        self._title, self._x, self._dpi = title, x, dpi
        width = max(20, int((right - x) / dpi * 72 / (9 * 0.58)))  # characters of 9 points, a bit wide
        self._lines = list(_packed(notes, width))
        self.height = _px(0.62 + 0.19 * len(self._lines), dpi)

    def captions(self) -> Iterator[Caption]:
        yield Caption(self._x, _px(0.42, self._dpi), self._title, 15, bold=True)
        for number, line in enumerate(self._lines):
            yield Caption(self._x, _px(0.66 + 0.19 * number, self._dpi), line, 9, color=_MUTED)


def _packed(notes: Sequence[str], width: int) -> Iterator[str]:
    line = ""
    for note in notes:
        short = note if len(note) <= width else note[: width - 1] + "…"
        if line and len(line) + 3 + len(short) > width:
            yield line
            line = ""
        line = f"{line} · {short}" if line else short
    if line:
        yield line


def _bar(x: int, y: int, height: int, dpi: int) -> tuple[Box, Box]:
    bar = Box(x + _px(0.06, dpi), y, _px(0.16, dpi), height)
    around = _px(0.1, dpi)  # half a line of the outermost ticks
    return bar, Box(x, y - around, _px(0.95, dpi), height + 2 * around)


def _px(inches: float, dpi: int) -> int:
    return max(1, round(inches * dpi))
