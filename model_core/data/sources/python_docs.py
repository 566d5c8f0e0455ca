"""What the Python interpreter says of itself: a corpus that needs no network and is nobody's but Python's.

The topics of ``help()`` and the docstrings of the standard library, paragraphs of prose alone. The text differs
from one version of Python to the next, so the revision is a hash of it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from inspect import cleandoc
from pathlib import Path

from model_core.errors import InvalidData

_SHORTEST = 80  # characters of a docstring that says more than its name
_LEFT_OUT = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "turtledemo", "encodings"}
)
_PARAGRAPH_END = re.compile(r"\n\s*\n")
_WORDS = re.compile(r"[A-Za-z][a-z]+[ ,.;:]")
_UNLIKE_PROSE = re.compile(r"^\s*(?:>>>|\.\.\.|[|+$#@*=~-]|\w+\s*=|\w+\(.*\)$)|::=|[=*-]{4}", re.MULTILINE)


@cache
def documentation() -> tuple[str, ...]:
    """Every document once, in a fixed order.

    Returns:
        The documents, in a fixed order.

    Raises:
        InvalidData: This Python comes without its documentation.
    """
    documents = tuple(prose_of([*_topics(), *docstrings(Path(sysconfig.get_path("stdlib")))]))
    if not documents:
        raise InvalidData("source 'pydoc': this Python comes without topics of help() and sources of its library")
    return documents


def documentation_revision() -> str:
    """Hash of the documents, hex.

    Returns:
        The revision; it changes when the documents do.
    """
    return hashlib.sha256("\0".join(documentation()).encode()).hexdigest()


def docstrings(library: Path) -> Iterator[str]:
    """Read the docstrings of the modules, classes and functions below a folder.

    Args:
        library: Folder with Python files.

    Yields:
        Docstrings in the order of the files.
    """
    for file in sorted(library.rglob("*.py")):
        if _LEFT_OUT.isdisjoint(file.relative_to(library).parts):
            yield from _docstrings_of(file)


def prose_of(texts: Iterable[str]) -> Iterator[str]:
    """Keep the paragraphs of prose, and drop repeated texts, short ones, code and tables.

    Args:
        texts: Texts to filter.

    Yields:
        The prose of each remaining text.
    """
    parts = ("\n\n".join(filter(_is_prose, _PARAGRAPH_END.split(cleandoc(text)))) for text in texts)
    yield from dict.fromkeys(text for text in parts if len(text) > _SHORTEST)


def _topics() -> Iterator[str]:
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:  # some distributions leave it out
        return
    yield from (topics[name] for name in sorted(topics))


def _docstrings_of(file: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in other people's strings
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return
    yield from _docstrings_in(tree)


def _docstrings_in(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    """Its own, and those of what it defines; what a function defines is nobody's to read."""
    text = ast.get_docstring(node, clean=False)
    if text is not None and len(text) > _SHORTEST:
        yield text
    if isinstance(node, ast.Module | ast.ClassDef):
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _docstrings_in(child)


def _is_prose(paragraph: str) -> bool:
    """Whether it is sentences, and not code, a table or a heading."""
    return (
        paragraph.rstrip().endswith((".", ":", "!", "?", ")"))
        and not _UNLIKE_PROSE.search(paragraph)
        and sum(len(word) for word in _WORDS.findall(paragraph)) > 0.55 * len(paragraph)
    )
