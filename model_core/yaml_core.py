"""YAML 1.2 with its core schema: text to values and back.

PyYAML reads and writes YAML 1.1, where `off` is false, `0100` is 64, `1:40` is 100 and 1e-8 is text. Here its parser
gives the structure, and the core schema of YAML 1.2 the meaning of every scalar. Aliases, tags of other schemas, keys
that are not text and keys that occur twice are refused with their line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import yaml

from model_core.config import NUMBER_PATTERN
from model_core.config_schema import ANY, Schema
from model_core.errors import MalformedConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_DEPTH = 100
_MAX_DIGITS = 1000
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_FLAGS = {word: word.lower() == "true" for word in ("true", "True", "TRUE", "false", "False", "FALSE")}
_INTEGER = re.compile(r"[-+]?[0-9]+")
_OTHER_BASES = re.compile(r"0o(?P<octal>[0-7]+)|0x(?P<hexadecimal>[0-9a-fA-F]+)")
_REAL = re.compile(NUMBER_PATTERN)
_NOT_FINITE = re.compile(r"(?P<sign>[-+]?)(?:\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN")
_TAGS = "tag:yaml.org,2002:"
_KINDS = {"bool": "true or false", "int": "a whole number", "float": "a number", "null": "null"}

# YAML 1.1, and so PyYAML's scanner, takes these characters for line ends; in YAML 1.2 they are text.
_NOT_LINE_ENDS = "\x85\u2028\u2029"
_PRIVATE_USE = range(0xE000, 0xF900)

_ADVICE = {
    "\\t": "indent with spaces, not tabs",
    "that cannot start any token": "put the value in quotes",
    "mapping values are not allowed": "put a value that contains a colon in quotes",
    "expected alphabetic or numeric character": "put a value that starts with & or * in quotes",
}


def read_yaml(text: str, schema: Schema = ANY) -> Any:
    """Read a YAML document.

    Args:
        text: YAML text.
        schema: Where text is wanted: a plain scalar there is what its author wrote, so 0007 stays 0007.

    Returns:
        Mappings, lists, text, numbers, true, false and null; null for an empty text.

    Raises:
        MalformedConfig: The text is not YAML, or holds what is refused; the message has line and column.
    """
    stand_ins = _stand_ins(text)
    with _reported(text):
        return _Document(text.translate(stand_ins), {after: before for before, after in stand_ins.items()}).read(schema)


def write_yaml(tree: Mapping[str, Any]) -> str:
    """Write a mapping, so that readers of YAML 1.1 and 1.2 alike read it back equal.

    Args:
        tree: Values by key.

    Returns:
        The text.
    """
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def plain_value(text: str) -> Any:
    """Resolve a plain scalar by the core schema.

    Args:
        text: The scalar's characters.

    Returns:
        Null, true or false, a number, or the text itself. A number with a point or an exponent is a float.

    Raises:
        ValueError: A number with more digits than this reads, or too large for a float.
    """
    if text in _NULLS:
        return None
    if text in _FLAGS:
        return _FLAGS[text]
    if text[0] not in "+-.0123456789":
        return text
    if _INTEGER.fullmatch(text):
        return _whole(text, 10)
    if other := _OTHER_BASES.fullmatch(text):
        return _whole(text[2:], 8 if other["octal"] else 16)
    if _REAL.fullmatch(text):
        return finite_number(text)
    if special := _NOT_FINITE.fullmatch(text):
        return math.nan if special["sign"] is None else float(f"{special['sign']}inf")
    return text


def plain_text(text: str, schema: Schema) -> str | None:
    """Read a plain scalar where text is wanted: a run may be called 0007, no or null.

    Args:
        text: The scalar's characters.
        schema: Schema of its place.

    Returns:
        The same characters; None for null, except as a name where null is no value.
    """
    is_name = schema.is_name and not schema.is_nullable and text not in {"", "~"}
    return None if text in _NULLS and not is_name else text


def finite_number(text: str) -> float:
    """Read a decimal number with a point or an exponent, as in YAML and JSON.

    Args:
        text: The number's characters.

    Returns:
        The nearest float.

    Raises:
        ValueError: It is too large for a float.
    """
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is too large a number")
    return value


def _whole(digits: str, base: int) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits is too large")
    return int(digits, base)


def _stand_ins(text: str) -> dict[int, int]:
    """Characters of private use that the text lacks, for those that the scanner would take for line ends."""
    wanted = [ord(character) for character in _NOT_LINE_ENDS if character in text]
    free = (code for code in _PRIVATE_USE if chr(code) not in text)
    return dict(zip(wanted, free, strict=False))


@contextmanager
def _reported(text: str) -> Iterator[None]:
    """Turn PyYAML's errors into ours, on one line and with what would be right."""
    try:
        yield
    except yaml.MarkedYAMLError as error:
        advice = next((advice for sign, advice in _ADVICE.items() if sign in str(error.problem)), None)
        raise _error(error.problem_mark or error.context_mark, str(error.problem), advice) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, error.position - (before.rfind("\n") + 1) + 1
        detail = f"character #x{error.character:04x} is not allowed; write it as an escape in double quotes"
        raise MalformedConfig(f"not valid YAML at line {line}, column {column}: {detail}") from None


def _error(mark: Any, detail: str, advice: str | None = None) -> MalformedConfig:
    where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return MalformedConfig(f"not valid YAML{where}: {detail}" + (f"; {advice}" if advice else ""))


class _Document:
    """Builds the values of one document from PyYAML's events."""

    def __init__(self, text: str, originals: Mapping[int, int]) -> None:
        self._parser: Any = yaml.SafeLoader(text)
        self._originals = originals

    def read(self, schema: Schema) -> Any:
        self._next()  # the start of the stream
        if isinstance(self._next(), yaml.StreamEndEvent):
            return None
        value = self._value(self._next(), schema, 0)
        self._next()  # the end of the document
        after = self._next()
        if not isinstance(after, yaml.StreamEndEvent):
            raise _error(after.start_mark, "a second document begins; one is read")
        return value

    def _next(self) -> Any:
        try:
            return self._parser.get_event()
        except (ValueError, OverflowError):  # an escape such as "\UFFFFFFFF"
            raise _error(self._parser.get_mark(), "an escape names no character") from None

    def _value(self, event: Any, schema: Schema, depth: int) -> Any:
        if isinstance(event, yaml.AliasEvent):
            raise _error(event.start_mark, "aliases (*name) are not accepted", "put text that starts with * in quotes")
        if depth > MAX_DEPTH:
            raise _error(event.start_mark, "nested too deeply")
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, schema)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(event, schema, depth)
        return self._mapping(event, schema, depth)

    def _sequence(self, event: Any, schema: Schema, depth: int) -> list[Any]:
        _check_collection(event, "seq")
        items, inner = [], schema.others or ANY
        while not isinstance(item := self._next(), yaml.SequenceEndEvent):
            items.append(self._value(item, inner, depth + 1))
        return items

    def _mapping(self, event: Any, schema: Schema, depth: int) -> dict[str, Any]:
        _check_collection(event, "map")
        values: dict[str, Any] = {}
        while not isinstance(start := self._next(), yaml.MappingEndEvent):
            key = self._key(start, event)
            if key in values:
                raise _error(start.start_mark, f"{key!r} occurs twice", "keep one of them")
            values[key] = self._value(self._next(), schema.below(key), depth + 1)
        return values

    def _key(self, event: Any, mapping: Any) -> str:
        if isinstance(event, yaml.CollectionStartEvent):
            advice = "a key is text, and a value that contains { or [ is put in quotes"
            mark = mapping.start_mark if mapping.flow_style else event.start_mark
            kind = "a mapping" if isinstance(event, yaml.MappingStartEvent) else "a list"
            raise _error(mark, f"{kind} is used as a key", advice)
        key = self._value(event, ANY, 0)
        if not isinstance(key, str):
            detail = f"key {event.value} is {describe(key)}, not text" if event.value else "a key is empty"
            brackets = ", or a list in brackets: [1, 2]" if mapping.flow_style and key is not None else ""
            raise _error(event.start_mark, detail, f'put it in quotes: "{event.value}"{brackets}')
        return key

    def _scalar(self, event: Any, schema: Schema) -> Any:
        text = self._text(event)
        if event.tag is not None:
            return _tagged(event, text)
        if event.style is not None:  # in quotes, or a block of text
            return text
        try:
            value = plain_value(text)
        except ValueError as error:
            raise _error(event.start_mark, str(error)) from None
        return plain_text(text, schema) if schema.holds_text else value

    def _text(self, event: Any) -> str:
        text: str = event.value
        if self._originals:
            text = text.translate(self._originals)
        if any("\ud800" <= character <= "\udfff" for character in text):  # as JSON escapes what lies beyond 16 bits
            try:
                return text.encode("utf-16", "surrogatepass").decode("utf-16")
            except UnicodeDecodeError:
                raise _error(event.start_mark, "half of a surrogate pair is no character") from None
        return text


def describe(value: Any) -> str:
    """Name the kind of a value, in the words of YAML and JSON.

    Args:
        value: A value of a tree.

    Returns:
        For example ``a list`` or ``null``.
    """
    kinds: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (bool, "true or false"), ((int, float), "a number"), (str, "text"), (Mapping, "a mapping"),
        ((list, tuple), "a list"),
    )  # fmt: skip
    return next((name for kind, name in kinds if isinstance(value, kind)), "null")


def _check_collection(event: Any, name: str) -> None:
    if event.tag not in {None, "!", f"{_TAGS}{name}"}:
        raise _unknown_tag(event)


def _tagged(event: Any, text: str) -> Any:
    """Value of a scalar with an explicit tag."""
    if event.tag in {"!", f"{_TAGS}str"}:
        return text
    name = event.tag.removeprefix(_TAGS)
    accept = _TAGGED.get(name) if event.tag.startswith(_TAGS) else None
    if accept is None:
        raise _unknown_tag(event)
    try:
        value = plain_value(text)
    except ValueError as error:
        raise _error(event.start_mark, str(error)) from None
    if not accept(value):
        raise _error(event.start_mark, f"{text!r} is not {_KINDS[name]}, as the tag !!{name} says", "leave the tag out")
    return float(value) if name == "float" else value


_TAGGED: Mapping[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
}


def _unknown_tag(event: Any) -> MalformedConfig:
    shown = f"!!{event.tag.removeprefix(_TAGS)}" if event.tag.startswith(_TAGS) else event.tag
    return _error(event.start_mark, f"tag {shown} is not accepted", "put text that starts with ! in quotes")


class _Dumper(yaml.SafeDumper):
    """Puts text in quotes that a reader of YAML 1.1 or of 1.2 would take for something else."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        is_plain = not any(character in text for character in _NOT_LINE_ENDS)
        return self.represent_scalar(f"{_TAGS}str", text, style=None if is_plain else '"')


_Dumper.add_representer(str, _Dumper.represent_text)
for _name, _pattern in (("int", _OTHER_BASES), ("float", _REAL)):
    _Dumper.add_implicit_resolver(f"{_TAGS}{_name}", re.compile(f"(?:{_pattern.pattern})$"), list("+-.0123456789"))
