"""Tables and cards that fit the terminal: ids and names are never cut.

A table that is wider than the terminal is printed as blocks: the headings of a row on one line, the other cells below
it with their titles. Without a terminal, as in a pipe, every row is one line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from model_core.console import one_line

_GAP, _INDENT = "  ", "  "


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its title; empty for cells that explain themselves.
        is_heading: Whether the cell stands on the first line of a block, without its title.
        is_number: Whether cells are aligned to the right.
    """

    title: str
    is_heading: bool = False
    is_number: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        cells: One text for each column.
        notes: Texts that are printed below the row, over its whole width.
    """

    cells: tuple[str, ...]
    notes: tuple[str, ...] = ()


def print_table(columns: Sequence[Column], rows: Sequence[Row]) -> None:
    """Print a table; columns without any text are left out.

    Args:
        columns: The columns.
        rows: The rows.
    """
    cells = [tuple(map(one_line, row.cells)) for row in rows]
    shown = [i for i, column in enumerate(columns) if not rows or any(row[i] for row in cells)]
    columns, cells = [columns[i] for i in shown], [tuple(row[i] for i in shown) for row in cells]
    widths = [max(map(cell_len, texts)) for texts in zip((c.title for c in columns), *cells, strict=True)]
    width = terminal_width()
    if width is None or sum(widths) + len(_GAP) * (len(widths) - 1) <= width:
        print(_line(columns, [column.title for column in columns], widths))
        blocks: Iterable[Iterable[str]] = ([_line(columns, row, widths)] for row in cells)
    else:
        blocks = (_block(columns, row, width) for row in cells)
    for row, block in zip(rows, blocks, strict=True):
        print("\n".join([*block, *(line for note in row.notes for line in _indented(note, width))]))


def print_card(facts: Iterable[tuple[str, str]]) -> None:
    """Print facts about one thing, one below the other.

    Args:
        facts: Name and value of each.
    """
    pairs = [(one_line(name), one_line(value)) for name, value in facts]
    names = max((cell_len(name) for name, _ in pairs), default=0)
    width = terminal_width()
    beside = None if width is None else width - names - len(_GAP)
    for name, value in pairs:
        if beside is not None and max(map(cell_len, value.split(" "))) > beside:
            print("\n".join([name, *_indented(value, width)]))
            continue
        first, *others = list(wrapped(value, beside)) or [""]
        print(f"{_padded(name, names)}{_GAP}{first}".rstrip())
        for line in others:
            print(" " * (names + len(_GAP)) + line)


def print_text(text: str) -> None:
    """Print a text, wrapped to the terminal between words.

    Args:
        text: The text.
    """
    print("\n".join(wrapped(one_line(text), terminal_width())))


def terminal_width() -> int | None:
    """Find how many columns a line may take.

    Returns:
        COLUMNS if it is set, else the width of the terminal; None if stdout is not a terminal.
    """
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except (OSError, ValueError, AttributeError):
        return None


def wrapped(text: str, width: int | None) -> Iterator[str]:
    """Break a line between words; a word longer than the width keeps its line, because it may be an id or a path.

    Args:
        text: One line.
        width: Columns of a line; None does not break it.

    Yields:
        The lines.
    """
    if width is None:
        yield text
        return
    line = ""
    for word in text.split(" "):
        if line and cell_len(line) + 1 + cell_len(word) > width:
            yield line
            line = word
        else:
            line = f"{line} {word}" if line else word
    yield line


def _line(columns: Sequence[Column], cells: Sequence[str], widths: Sequence[int]) -> str:
    parts = zip(cells, widths, columns, strict=True)
    return _GAP.join(_padded(cell, width, left=column.is_number) for cell, width, column in parts).rstrip()


def _block(columns: Sequence[Column], cells: Sequence[str], width: int) -> Iterator[str]:
    """The headings on one line if they fit, then the rest, as many on a line as fit."""
    pairs = [pair for pair in zip(columns, cells, strict=True) if pair[1]]
    for line in _filled([cell for column, cell in pairs if column.is_heading], width):
        yield from wrapped(line, width)
    rest = [f"{column.title} {cell}".strip() for column, cell in pairs if not column.is_heading]
    for line in _filled(rest, width - len(_INDENT)):
        yield from _indented(line, width)


def _filled(parts: Sequence[str], width: int) -> Iterator[str]:
    line = ""
    for part in parts:
        if line and cell_len(line) + len(_GAP) + cell_len(part) > width:
            yield line
            line = part
        else:
            line = f"{line}{_GAP}{part}" if line else part
    if line:
        yield line


def _indented(text: str, width: int | None) -> Iterator[str]:
    for line in wrapped(one_line(text), None if width is None else width - len(_INDENT)):
        yield _INDENT + line


def _padded(text: str, width: int, *, left: bool = False) -> str:
    space = " " * (width - cell_len(text))
    return space + text if left else text + space
