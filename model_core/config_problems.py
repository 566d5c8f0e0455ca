"""Turns pydantic's errors into problems that say, in the words of YAML and JSON, what would be right.

Each has a JSON pointer, the value, and the nearest valid ones: keys, words, numbers or names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from model_core.config import Config, ExperimentConfig, describe_name, nearest_name
from model_core.errors import FieldProblem, shown
from model_core.yaml_core import describe, plain_value

SECTIONS: Mapping[str, type[Config]] = {
    name: field.annotation
    for name, field in ExperimentConfig.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Config)
}
# pydantic adds the tag of the form, of a tokenizer or of a text to score, to the path of an error
_UNION_TAGS = ("gpt2", "bpe", "<text>", "<ids>", "<prefixed>")

# What is wrong, by pydantic's type of error; the braces are filled from its context.
_DETAILS = {
    "missing": "is needed",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "finite_number": "must be a finite number",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must have at least {min_length} characters",
    "too_long": "must have at most {max_length} entries",
    "too_short": "must have at least {min_length} entries",
    "string_unicode": "holds half of a surrogate pair, which is no character",
    "literal_error": "must be {expected}",
    "value_error": "{error}",
}
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
    "list": "a list",
    "dict": "a section with keys",
    "model": "a section with keys",
}
_FORMS = {  # what a text with a pattern is, by its key; other patterns are those of names
    "depends_on": "the id of a job: job_ and 32 hexadecimal digits",
    "licence": "a short name of a licence, such as mit or cc-by-4.0",
    "id": "the number of a test example, or t_ and the hash of a text",
    "example": "the number of a test example, or t_ and the hash of a text",
}
_SYNONYMS = {  # other names of valid words, as they are used elsewhere
    "fp16": "float16", "f16": "float16", "half": "float16", "16": "float16", "torch.float16": "float16",
    "16-mixed": "float16", "bf16": "bfloat16", "brainfloat": "bfloat16", "torch.bfloat16": "bfloat16",
    "bf16-mixed": "bfloat16", "fp32": "float32", "f32": "float32", "float": "float32", "single": "float32",
    "full": "float32", "32": "float32", "tf32": "float32", "torch.float32": "float32", "gpu": "cuda",
    "nvidia": "cuda", "cuda:0": "cuda", "metal": "mps", "apple": "mps", "sdpa": "auto", "eager": "math",
    "xformers": "efficient", "mem_efficient": "efficient", "flash_attention_2": "flash", "jpg": "png", "jpeg": "png",
    "true": "online", "yes": "online", "on": "online",
}  # fmt: skip
_TRAINED_TOKENIZER = {"type": "bpe", "vocab_size": 1024}
_FLAG_WORDS = {"yes": True, "on": True, "y": True, "true": True, "no": False, "off": False, "n": False, "false": False}


def field_errors(error: ValidationError, model: type[BaseModel]) -> Iterator[FieldProblem]:
    """Convert pydantic's errors to `FieldProblem`, with JSON pointers and the nearest valid values.

    Args:
        error: Error of a validation.
        model: Class that was validated.

    Returns:
        The problems, one for each error.
    """
    return (field_error(item, model) for item in error.errors(include_url=False))


def field_error(item: Mapping[str, Any], model: type[BaseModel] | None = None) -> FieldProblem:
    """Convert one of pydantic's errors to a `FieldProblem`.

    Args:
        item: The error, as `ValidationError.errors` lists it.
        model: The model that refused the values, for the nearest known keys; None if there is none.

    Returns:
        The wrong value with its JSON pointer.
    """
    context = item.get("ctx", {})
    path = [*item["loc"], *([context["field"]] if "field" in context else [])]
    path = [part for part in path if part not in _UNION_TAGS]
    pointer = "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)
    if item["type"] == "extra_forbidden":
        near = _nearest_keys(model, path) if model is not None else ()
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        return FieldProblem(pointer, f"unknown key {path[-1]!r}{hint}", _short(item["input"]), near)
    if item["type"] == "misfit":
        return FieldProblem(pointer, item["msg"], context["value"], tuple(context["nearest"]))
    if item["type"] == "missing":
        entry = f"entry {path[-1] + 1}" if path and isinstance(path[-1], int) else str(path[-1] if path else "a value")
        return FieldProblem(pointer, f"{entry} is needed")
    detail, near = _what_is_right(item, path)
    advice = f"; {' or '.join(map(shown, near))} would be right" if near else ""
    value = _short(item["input"])
    given = value if isinstance(value, str) and not isinstance(item["input"], str) else shown(value)
    return FieldProblem(pointer, f"{detail}, got {given}{advice}", value, near)


def _what_is_right(item: Mapping[str, Any], path: list[Any]) -> tuple[str, tuple[Any, ...]]:
    kind, value = str(item["type"]), item["input"]
    key = next((part for part in reversed(path) if isinstance(part, str)), "")
    if kind == "string_pattern_mismatch":
        form = next((_FORMS[part] for part in path if part in _FORMS), None)
        return (f"must be {form}", ()) if form else (f"must be {describe_name()}", nearest_name(value))
    if kind == "literal_error" and key == "tokenizer":
        return "must be 'gpt2', or a section with type and vocab_size", (_TRAINED_TOKENIZER,)
    if kind == "literal_error":
        words = _words(item)
        return f"must be {item['ctx']['expected']}", _nearest_words(value, words)
    if kind in _DETAILS:
        return _DETAILS[kind].format(**item.get("ctx", {})), ()
    wanted = kind.partition("_")[0]
    if wanted not in _KINDS:
        return str(item["msg"]), ()
    if key == "n_head" and (isinstance(value, list) or (isinstance(value, str) and "," in value)):
        return "must be one head count for all layers; n_head_list takes one for each layer", ("n_head_list",)
    if path[-1:] == ["n_head_list"] and isinstance(value, int):
        return "must be a list with a head count for each layer; n_head takes one for all layers", ("n_head",)
    return f"must be {_KINDS[wanted]}", _CONVERSIONS.get(wanted, _no_conversion)(value)


def _words(item: Mapping[str, Any]) -> list[str]:
    expected = str(item.get("ctx", {}).get("expected", ""))
    return [word.strip("' ") for word in expected.replace(" or ", ", ").split(",")]


def _nearest_words(value: Any, words: list[str]) -> tuple[str, ...]:
    text = (str(value).lower() if isinstance(value, str | bool | int) else "").strip()
    if text in words:
        return (text,)
    if _SYNONYMS.get(text) in words:
        return (_SYNONYMS[text],)
    return tuple(get_close_matches(text, words, n=2, cutoff=0.4))


def _as_number(value: Any) -> tuple[Any, ...]:
    """The number that is written as text: in quotes, or with separators between its digits."""
    if not isinstance(value, str):
        return ()
    text = value.strip()
    text = re.sub(r"(?<=[0-9])[_, ](?=[0-9]{3}(?![0-9]))", "", text)
    try:
        found = plain_value(text)
    except ValueError:
        return ()
    return (found,) if isinstance(found, int | float) and not isinstance(found, bool) else ()


def _as_whole(value: Any) -> tuple[Any, ...]:
    if isinstance(value, float) and abs(value) < 2**53:
        below = int(value // 1)
        return (below, below + 1)
    return tuple(int(number) for number in _as_number(value) if float(number).is_integer())


def _as_flag(value: Any) -> tuple[Any, ...]:
    if isinstance(value, int | float) and value in {0, 1}:
        return (bool(value),)
    found = _FLAG_WORDS.get(value.strip().lower()) if isinstance(value, str) else None
    return () if found is None else (found,)


def _as_text(value: Any) -> tuple[Any, ...]:
    return (shown(value),) if isinstance(value, bool | int | float) else ()


def _no_conversion(_: Any) -> tuple[Any, ...]:
    return ()


_CONVERSIONS: Mapping[str, Callable[[Any], tuple[Any, ...]]] = {
    "int": _as_whole,
    "float": _as_number,
    "bool": _as_flag,
    "string": _as_text,
}


def _short(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value if not isinstance(value, int) or abs(value) < 10**40 else "a very large number"
    if isinstance(value, str):
        return value if len(value) <= 200 else value[:200] + "..."
    if isinstance(value, list | tuple) and len(value) <= 200 and all(isinstance(v, int | float) for v in value):
        return list(value)
    return describe(value)


def _nearest_keys(model: type[BaseModel], path: list[Any]) -> tuple[str, ...]:
    """Find known keys that resemble an unknown one: of its section, else ``section.key`` of another."""
    known: type[Any] = model
    for part in path[:-1]:
        field = known.model_fields.get(part) if issubclass(known, BaseModel) else None
        known = _section_of(field.annotation) if field is not None else object
    key = str(path[-1])
    if issubclass(known, BaseModel):
        near = get_close_matches(key, list(known.model_fields), n=2, cutoff=0.6)
        if near:
            return tuple(near)
    elsewhere = {name: f"{section}.{name}" for section, cls in SECTIONS.items() for name in cls.model_fields}
    return tuple(elsewhere[name] for name in get_close_matches(key, list(elsewhere), n=1, cutoff=0.8))


def _section_of(annotation: Any) -> type[Any]:
    """Return the section that a field holds, also where it is one of several forms."""
    if isinstance(annotation, type):
        return annotation
    sections = (_section_of(form) for form in get_args(annotation))
    return next((section for section in sections if issubclass(section, BaseModel)), object)
