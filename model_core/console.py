"""Printing texts of other people: streams that never fail, and texts without control characters.

Prompts, samples, names and messages come from data and from models. A control character in them could move the cursor,
retitle the window or end a line, so every text that is printed for a person goes through `one_line` or `printable`.
"""

from __future__ import annotations

import io
import os
import re
import sys

_SPACES = re.compile("\r\n|[\t\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")  # tab, and what some take for line ends
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and LF


def prepare_streams() -> None:
    """Make stdout and stderr replace characters that their encoding lacks, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def discard_output() -> None:
    """Send what is still buffered, and everything after it, nowhere, because the reader of the output has gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def printable(text: str) -> str:
    """Escape control characters, so that a text of several lines cannot control the terminal.

    Args:
        text: Any text; LF and tab stay, CR LF becomes LF.

    Returns:
        The text, with a code such as x1b after a backslash in place of each.
    """
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """Put a text on one line, whatever its reader takes for a line end, and escape control characters.

    Args:
        text: Any text.

    Returns:
        The line, with a space for each line end and tab.
    """
    return printable(_SPACES.sub(" ", text))
