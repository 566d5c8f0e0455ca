"""Text files: what separates their documents, and the documents.

Unless it is asked for, the separator is decided by the whole file: lines that are exactly ``<|endoftext|>``; else blank
lines, unless they are rare; else every line is a document. Files are read in blocks, so memory use is constant.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain

from model_core.data.sources.base import BadDocument, Batch, Document, File, ReadAs, ReadOptions, unreadable_text
from model_core.data.sources.text_stream import BLOCK_BYTES, text_blocks
from model_core.tokenizer import END_OF_TEXT

# Mean lines of at least so many paragraphs; blank lines that are rarer do not separate documents.
_PARAGRAPH_LINES = ((2, 16), (10, 100))

_MARKER = rf"[^\S\n]*{re.escape(END_OF_TEXT)}[^\S\n]*\n"
_MARKER_LINE = re.compile(rf"\n{_MARKER}")
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
_SEPARATORS: dict[str, re.Pattern[str]] = {
    "line": re.compile(rf"\n(?:{_MARKER})*"),
    "paragraph": re.compile(rf"\n(?:[^\S\n]*(?:{re.escape(END_OF_TEXT)}[^\S\n]*)?\n)+"),
    "marker": re.compile(rf"\n(?:{_MARKER})+"),
    "file": re.compile(r"(?!)"),
}
_NOT_STARTED = "\n"  # prefix of a document, because a separator follows a line end
_MAX_MARKER_LINE, _LONG_LINE = 1000, "..."  # characters; a longer line is more than a marker
_NOT_SPACE = re.compile(r"\S")
_SENTENCE_END = re.compile(r"[.!?…][\"'\u201d\u2019»)\]]*(?=\s)|[\u3002\uff01\uff1f]")  # also Chinese and Japanese


def separator_of(
    file: File, options: ReadOptions, *, block_bytes: int = BLOCK_BYTES, on_block: Callable[[], None] = lambda: None
) -> ReadAs:
    """Decide what separates the documents of a text file.

    Args:
        file: File to read.
        options: How documents are read.
        block_bytes: Bytes read at a time; the result does not depend on it.
        on_block: Called for each block; may raise an error.

    Returns:
        ``line``, ``paragraph``, ``marker`` or ``file``.

    Raises:
        InvalidData: The file is not text.
    """
    if options.documents != "auto":
        return options.documents
    lines = paragraphs = 0
    line_start, gap = _NOT_STARTED, ""  # start of the last line, and white space after the last text
    for block in text_blocks(file, block_bytes):
        on_block()
        if _MARKER_LINE.search(line_start + block):
            return "marker"
        line_start = _last_line(line_start + block)
        text = gap + block if lines else block.lstrip()
        content = text.rstrip()
        gap = text[len(content) :]
        if content:
            runs = [run.count("\n") - 1 for run in _BLANK_LINES.findall(content)]
            lines += content.count("\n") - sum(runs) + (lines == 0)
            paragraphs += len(runs) + (paragraphs == 0)
    if _MARKER_LINE.search(line_start + "\n"):
        return "marker"
    is_paragraph = any(paragraphs >= least and lines <= mean * paragraphs for least, mean in _PARAGRAPH_LINES)
    return "paragraph" if is_paragraph else "line"


def text_batches(file: File, options: ReadOptions, *, block_bytes: int = BLOCK_BYTES) -> Iterator[Batch]:
    """Read the documents of a text file.

    Args:
        file: File to read.
        options: How documents are read.
        block_bytes: Bytes read at a time; the documents do not depend on it.

    Yields:
        Batches in the order of the file.

    Raises:
        InvalidData: The file is not text.
    """
    read_as = separator_of(file, options, block_bytes=block_bytes)
    separator, is_line = _SEPARATORS[read_as], read_as == "line"
    started, number = _NOT_STARTED, 0  # the unfinished document, and the number of its first line
    for block in chain(text_blocks(file, block_bytes), ["\n"]):
        window = started + block
        *complete, started = separator.split(window)
        started = _NOT_STARTED + started if complete else started
        complete = [part for text in complete for part in _pieces_of(_trim(text, is_line=is_line), options.piece)]
        if len(started) > options.piece:
            ready, started = _cut_unfinished(started, options.piece, is_line=is_line)
            complete += ready
        yield _batch(complete, window, number, file)
        number += window.count("\n") - started.count("\n")
    yield _batch(_pieces_of(_trim(started, is_line=is_line), options.piece), started, number, file)


def pieces(text: str, length: int) -> list[str]:
    """Cut a long text, preferably at the end of a line, else of a sentence, else of a word.

    Args:
        text: Text without white space at its end.
        length: Largest length of a piece in characters; pieces are longer than half of it, except the last.

    Returns:
        The pieces. They depend only on the text before their end, so the text may grow.
    """
    parts, start = list[str](), 0
    while len(text) - start > length:
        end = _boundary(text, start + length // 2, start + length)
        parts.append(text[start:end].rstrip())
        following = _NOT_SPACE.search(text, end)
        assert following is not None, "text ends with white space"
        start = following.start()
    return [*parts, text[start:]]


def _boundary(text: str, start: int, end: int) -> int:
    if (line_end := text.rfind("\n", start, end)) >= 0:
        return line_end
    if (sentence := deque(_SENTENCE_END.finditer(text, start, end), maxlen=1)) and sentence[0].end() > start:
        return sentence[0].end()
    return max(text.rfind(space, start, end) for space in " \t\u3000") + 1 or end


def _pieces_of(text: str, length: int) -> list[str]:
    return [text] if len(text) <= length else pieces(text, length)


def _cut_unfinished(text: str, length: int, *, is_line: bool) -> tuple[list[str], str]:
    """Cut pieces from a document that may continue: the pieces, and the rest."""
    unfinished, text = text, text[_start(text, is_line=is_line) :]
    end = text.rfind("\n") if len(text) - text.rfind("\n") <= _MAX_MARKER_LINE else len(text)
    content = text[: max(end, 0)].rstrip()  # without a last line that may become a separator
    if len(content) <= length:
        return [], unfinished
    *ready, rest = pieces(content, length)
    return ready, rest + text[len(content) :]


def _batch(texts: list[str], window: str, number: int, file: File) -> Batch:
    """Build a batch of the texts that are not blank; `window` contains them, and starts in line `number`."""
    texts = [text for text in texts if text]
    bad = list[BadDocument]()
    if unreadable_text(window) is not None:
        bad = list(_bad_documents(texts, window, number, file))
        texts = [text for text in texts if unreadable_text(text) is None]
    return Batch(len(texts), lambda: map(Document, texts), max(map(len, texts), default=0), tuple(bad))


def _bad_documents(texts: list[str], window: str, number: int, file: File) -> Iterator[BadDocument]:
    end = 0
    for text in texts:
        start = window.index(text, end)
        end = start + len(text)
        if (reason := unreadable_text(text)) is not None:
            position = next(n for n in range(start, end) if "\ud800" <= window[n] <= "\udfff")
            yield BadDocument(f"{file.display_name}, line {number + window.count(_NOT_STARTED, 0, position)}", reason)


def _trim(text: str, *, is_line: bool) -> str:
    """Remove white space at the end, and at the start; the first line of several keeps its indentation."""
    return text.strip() if is_line else text[_start(text, is_line=False) :].rstrip()


def _start(text: str, *, is_line: bool) -> int:
    """Position of a document's first character."""
    first = len(text) - len(text.lstrip())
    return first if is_line else text.rfind("\n", 0, first) + 1


def _last_line(text: str) -> str:
    """The last line after its line feed; a long one is no marker."""
    line = text[text.rfind("\n") :] if "\n" in text else text
    return line if len(line) <= _MAX_MARKER_LINE else _LONG_LINE
