"""Documentation of the installed Python as a source that needs no network.

The corpus is the prose of the ``help()`` topics and of the docstrings in the standard library. The text depends on the
version of Python, so the revision is a hash of it.
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

_MIN_CHARACTERS = 80  # shorter docstrings rarely say more than the name
_EXCLUDED = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "turtledemo", "encodings"}
)
_PARAGRAPH_END = re.compile(r"\n\s*\n")
_WORDS = re.compile(r"[A-Za-z][a-z]+[ ,.;:]")
_CODE_OR_TABLE = re.compile(r"^\s*(?:>>>|\.\.\.|[|+$#@*=~-]|\w+\s*=|\w+\(.*\)$)|::=|[=*-]{4}", re.MULTILINE)


@cache
def documentation() -> tuple[str, ...]:
    """Return the documents without repetitions, in a fixed order.

    Returns:
        The documents.

    Raises:
        InvalidData: This Python is installed without its documentation.
    """
    documents = tuple(extract_prose([*_topics(), *docstrings(Path(sysconfig.get_path("stdlib")))]))
    if not documents:
        raise InvalidData("source 'pydoc': Python is installed without the topics of help() and its library's source")
    return documents


def documentation_revision() -> str:
    """Return the SHA-256 of the documents.

    Returns:
        The revision, hex; it changes when the documents do.
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
        if _EXCLUDED.isdisjoint(file.relative_to(library).parts):
            yield from _file_docstrings(file)


def extract_prose(texts: Iterable[str]) -> Iterator[str]:
    """Keep the paragraphs of prose; drop code, tables, short texts and repeated texts.

    Args:
        texts: Texts to filter.

    Yields:
        The prose of each remaining text.
    """
    parts = ("\n\n".join(filter(_is_prose, _PARAGRAPH_END.split(cleandoc(text)))) for text in texts)
    yield from dict.fromkeys(text for text in parts if len(text) > _MIN_CHARACTERS)


def _topics() -> Iterator[str]:
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:  # some distributions omit it
        return
    yield from (topics[name] for name in sorted(topics))


def _file_docstrings(file: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in the strings of the library
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return
    yield from _node_docstrings(tree)


def _node_docstrings(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    """Docstrings of a node and of its classes and functions, but not of functions inside functions."""
    text = ast.get_docstring(node, clean=False)
    if text is not None and len(text) > _MIN_CHARACTERS:
        yield text
    if isinstance(node, ast.Module | ast.ClassDef):
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _node_docstrings(child)


def _is_prose(paragraph: str) -> bool:
    """Whether a paragraph consists of sentences, not of code, a table or a heading."""
    return (
        paragraph.rstrip().endswith((".", ":", "!", "?", ")"))
        and not _CODE_OR_TABLE.search(paragraph)
        and sum(len(word) for word in _WORDS.findall(paragraph)) > 0.55 * len(paragraph)
    )
