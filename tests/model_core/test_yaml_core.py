"""YAML 1.2 by its core schema, compared with another reader; what is written reads back equal in YAML 1.1 and 1.2."""

import json
import math
from contextlib import suppress
from typing import Any

import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from model_core.config_schema import ANY, Schema
from model_core.errors import MalformedConfig
from model_core.yaml_core import MAX_DEPTH, read_yaml, write_yaml

TEXT = Schema(is_nullable=False, holds_text=True)
LINE_ENDS_OF_YAML_1_1 = "\x85\u2028\u2029"

texts = st.text(
    st.characters(codec="utf-8", exclude_characters="\r")
    | st.sampled_from("\n \t:#-?'\"{}[],&*!|>%@`~.0123456789ex_" + LINE_ENDS_OF_YAML_1_1),
    max_size=12,
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_infinity=False, allow_nan=False) | texts
trees = st.dictionaries(
    texts,
    st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=4
    ),
    min_size=1,
    max_size=3,
)
SNIPPETS = [
    "a", "b", ": ", ":", "- ", "\n", "\n  ", "\n    ", "? ", "{", "}", "[", "]", ", ", "'", '"', "|\n", ">-\n",
    "# c", "!!str ",
    "!!int ", "&x ", "42", "0100", "1e3", "0x1f", "0o17", ".5", "-.inf", "null", "~", "true", "no", "x y", "\\n",
    "---\n",
]  # fmt: skip


def theirs(text: str) -> Any:
    """What ruamel.yaml reads; it also takes 1_000 for a number, 2026-11-30 for a date and << for a merge."""
    return YAML(typ="safe", pure=True).load(text)


def is_equal(one: Any, other: Any) -> bool:
    """Equality by type and value, at any depth."""
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(is_equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_equal, one, other))
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    return type(one) is type(other) and bool(one == other)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("0100", 100), ("-007", -7), ("0x10", 16), ("0o20", 16), ("+5", 5), ("1e3", 1000.0), ("5E5", 500000.0),
        (".5", 0.5),
        ("5.", 5.0), ("1e-8", 1e-8), ("1:40", "1:40"), ("1_000", "1_000"), ("0b11", "0b11"),
        ("2026-11-30", "2026-11-30"),
        ("off", "off"), ("No", "No"), ("y", "y"), ("TRUE", True), ("tRue", "tRue"), ("Null", None), ("~", None),
        ("nUll", "nUll"),
        ("9007199254740993", 9007199254740993), ("-.INF", -math.inf), (".Nan", ".Nan"),
        ("-.nan", "-.nan"),
        ("<<", "<<"), ("=", "="), ("! 42", "42"), ("!!str 42", "42"), ("!!float 1", 1.0), ("!!int '7'", 7),
        ("'42'", "42"),
        ('"\\ud83d\\ude00"', "😀"), ('"\\N\\L\\P"', LINE_ENDS_OF_YAML_1_1), ("a\u2028 b", "a\u2028 b"),
        ("'a \x85 b'", "a \x85 b"),
    ],
)  # fmt: skip
def test_a_scalar_has_the_value_of_the_core_schema(written: str, value: Any) -> None:
    found = read_yaml(f"a: {written}")["a"]
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("0007", "0007"), ("1e5", "1e5"), ("true", "true"), ("2026-11-30", "2026-11-30"), ("0x1F", "0x1F"),
        ("1.10", "1.10"),
        ("null", None), ("", None), ("no", "no"), ("'null'", "null"), ("'~'", "~"),
    ],
)  # fmt: skip
def test_where_text_is_wanted_it_is_what_was_written(written: str, text: str | None) -> None:
    assert read_yaml(f"a: {written}", Schema(keys={"a": TEXT})) == {"a": text}
    assert read_yaml(f"a: [{written or '~'}]", Schema(keys={"a": Schema(others=TEXT)})) == {"a": [text]}


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("a: 1\n42: x", 2, 1), ("a:\n  null: x", 2, 3), ("a: {b: {1.5: x}}", 1, 9), ("a: [{true: x}]", 1, 6),
        ("? [a, b]\n: 1", 1, 3),
        ("? {a: b}\n: 1", 1, 3), ("'x': 1\n? |-\n  x\n: 2", 2, 3), (": x", 1, 1), ("a: {{ name }}", 1, 4),
        ("a: !!timestamp x", 1, 4),
        ("a: !!int ''", 1, 4), ("a: !!bool no", 1, 4), ("a: !!binary eA==", 1, 4), ("a: !mine x", 1, 4),
        ("a: !!set {b}", 1, 4),
        ("a: !!python/name:os.system ''", 1, 4), ("a: &x [1]\nb: *x", 2, 4), ("a: 1\nb: 2\na: 3", 3, 1),
        ("a: @x", 1, 4),
        ("a: b: c", 1, 5), ("a:\n\tb: 1", 2, 1), ("a: 1e999", 1, 4), ("a: " + "9" * 5000, 1, 4),
        ("a: 1\n---\nb: 2", 2, 1),
        ('a: "\\ud800"', 1, 4), ("a: 1\nb: \x07", 2, 4), ("a: " + "[" * 200, 1, MAX_DEPTH + 4),
        ("a: '\u2028'\n1: x", 2, 1),
    ],
)  # fmt: skip
def test_what_cannot_be_a_configuration_is_refused_with_its_place(text: str, line: int, column: int) -> None:
    with pytest.raises(MalformedConfig, match=rf"at line {line}, column {column}: .") as caught:
        read_yaml(text)
    assert not {"tuple", "dict", "NoneType", "unhashable", "Traceback"} & set(str(caught.value).split())


@settings(deadline=None, max_examples=60)
@given(trees)
def test_json_and_what_other_writers_write_read_equal(tree: dict[str, Any]) -> None:
    assert is_equal(read_yaml(json.dumps(tree).replace("\x7f", "\\u007f")), tree)
    assert is_equal(read_yaml(write_yaml(tree)), tree)
    assert is_equal(yaml.safe_load(write_yaml(tree)), tree)


@settings(deadline=None, max_examples=60)
@given(st.text("0123456789.+-eExoabfnulTRUE:~", min_size=1, max_size=7))
@example("0o8")
def test_a_plain_scalar_means_what_another_reader_says(written: str) -> None:
    try:
        expected = theirs(f"- {written}")
    except (YAMLError, ValueError):
        expected = None
    assume(expected is not None and not written.startswith(("0b", "-0b", "+0b")))
    try:
        found = read_yaml(f"- {written}")
    except MalformedConfig:
        found = expected  # refused, which gives no other value
    assert is_equal(found, expected)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from(SNIPPETS), max_size=14).map("".join))
def test_a_text_is_refused_or_means_what_another_reader_says(text: str) -> None:
    try:
        found = read_yaml(text)
    except MalformedConfig:
        return
    assert is_equal(found, theirs(text))


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(MalformedConfig):
        read_yaml(text, ANY)
